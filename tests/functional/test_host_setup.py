# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the role host_setup says of a host that it has never prepared: in check mode, as it is of this very host."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from support.guest import COLLECTIONS, REPOSITORY

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="it prepares a host for root")

SERVICES = ("host_setup_boot_restore", "host_setup_shutdown_save", "host_setup_metrics")


@pytest.fixture
def place():
    """A directory on a disk, which pytest's own may not be, where only the role writes."""
    with tempfile.TemporaryDirectory(dir=REPOSITORY / "build") as name:
        yield Path(name)


@pytest.fixture
def host_setup(tmp_path, place):
    """Run the role in check mode, which changes nothing: how it ended, and what it said."""
    (tmp_path / "metrics").mkdir()
    (tmp_path / "ansible.cfg").touch()
    play = tmp_path / "play.yml"
    play.write_text(json.dumps([{"hosts": "localhost", "gather_facts": False, "roles": ["vmops.qemu.host_setup"]}]))
    settings = {
        "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS),
        "ANSIBLE_LOCALHOST_WARNING": "false",
        "ANSIBLE_INVENTORY_UNPARSED_WARNING": "false",
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_CONFIG": str(tmp_path / "ansible.cfg"),
    }
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}

    def run(services, save_dir):
        variables = {
            "ansible_python_interpreter": sys.executable,
            "vmops_qemu_save_dir": str(save_dir),
            "host_setup_program_dir": str(place / "lib" / "vmops-qemu"),
            "host_setup_metrics_dir": str(tmp_path / "metrics"),
            **{name: name in services for name in SERVICES},
        }
        done = subprocess.run(
            [
                str(Path(sys.executable).parent / "ansible-playbook"),
                *("--check", "-c", "local", "-e", json.dumps(variables)),
                str(play),
            ],
            env={**environment, **settings},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        assert os.listdir(place) == [], done.stdout
        assert sorted(os.listdir(tmp_path)) == ["ansible.cfg", "metrics", "play.yml"]
        return done.returncode, done.stdout

    return run


@pytest.mark.parametrize("services", [(), SERVICES], ids=["plain", "with services"])
def test_fresh_host_in_check_mode(host_setup, place, services):
    """Nothing fails that only is not there yet, and nothing is warned of."""
    status, said = host_setup(services, place / "vmops" / "save")
    assert status == 0, said
    assert "WARNING" not in said, said


@pytest.mark.parametrize("services", [SERVICES[:1], SERVICES[:2], ()], ids=["boot", "shutdown", "neither"])
def test_images_that_a_reboot_would_take(host_setup, services):
    """Its services are for images that a reboot leaves; without them a directory in memory is the user's own affair."""
    status, said = host_setup(services, f"/dev/shm/vmops-{os.getpid()}/save")
    said = " ".join(said.split())
    if not services:
        assert status == 0, said
        return
    assert status != 0, said
    assert f"{services[-1]} is for images that are there after a reboot" in said
    assert "mounted on /dev/shm" in said
    assert "Nothing was changed. Choose a directory on a disk (vmops_qemu_save_dir)" in said


# --- the generator of the save at shutdown ---

QEMU = "/usr/bin/qemu-system-x86_64 -name web1"

#: Units, by name, and whether they execute QEMU.
UNITS = {
    "plain.service": (f"[Service]\nExecStart={QEMU}\n", True),
    "blanks.service": (f"[Service]\n  ExecStart = {QEMU}\n", True),
    "by-hand.service.d/override.conf": (f"[Service]\nExecStart=\nExecStart={QEMU}\n", True),
    "continued.service": (f"[Service]\nExecStart=/usr/bin/numactl --membind=0 \\\n    {QEMU}\n", True),
    "thrice.service": (f"[Service]\nExecStart=\\\n/usr/bin/numactl \\\n --membind=0 \\  \n    {QEMU}", True),
    "commented.service": (
        f"[Service]\nExecStart=/usr/bin/numactl \\\n# a word \\\n  ; and another\n --membind=0 \\\n {QEMU}\n",
        True,
    ),
    "kvm.service": ("[Service]\nExecStart=/usr/bin/kvm -name web1\n", True),
    "relative.service": ("[Service]\nExecStart=kvm -name web1\n", True),
    "quoted.service": ('[Service]\nExecStart="/usr/bin/kvm" -name web1\n', True),
    "rhel.service": ("[Service]\nExecStart=/usr/libexec/qemu-kvm -name web1\n", True),
    "vm@.service": (f"[Service]\nExecStart=/bin/sh -c 'exec \\\n{QEMU}'\n", True),
    "other.service": (f"[Service]\nExecStart=/bin/true\n# {QEMU}\n#ExecStart={QEMU}\n", False),
    "next.service": (f"[Service]\nExecStart=/bin/true \\\\\nExecStop={QEMU}\n", False),
    "ended.service": (f"[Service]\nExecStart=/bin/echo \\\n hello\nExecStop={QEMU}\n", False),
    "module.service": ("[Service]\nExecStart=/sbin/tool -enable-kvm.d --kvm-intel\n", False),
    "open.service": ("[Service]\nExecStart=/bin/true \\", False),
}


def test_units_that_the_save_comes_before(tmp_path):
    """The generator, where these are the units of the host."""
    units, made = tmp_path / "units", tmp_path / "made"
    for name, (text, _found) in UNITS.items():
        (units / name).parent.mkdir(parents=True, exist_ok=True)
        (units / name).write_text(text)
    made.mkdir()
    generator = REPOSITORY / "roles" / "host_setup" / "files" / "vmops-save-generator"
    script = (
        "set -e; for place in /etc/systemd/system /run/systemd/system /usr/local/lib/systemd/system"
        " /usr/lib/systemd/system; do"
        ' if [ -d "$place" ]; then mount --bind "$1" "$place"; fi; done; exec sh "$2" "$3"'
    )
    subprocess.run(["unshare", "--mount", "sh", "-c", script, "sh", units, generator, made], check=True)
    found = {path.name for path in made.iterdir()}
    expected = {f"{name.partition('.service')[0]}.service.d" for name, (_text, is_found) in UNITS.items() if is_found}
    assert found == expected
    for name in found:
        assert (made / name / "50-vmops-save.conf").read_text() == "[Unit]\nBefore=vmops-save.service\n"
