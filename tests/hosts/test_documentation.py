# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Does what the first pages say come true, word for word, on a host that has never seen the collection?"""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support import CounterGuest
from support.documentation import Block, blocks, commands, file_of
from support.guest import COLLECTIONS, SOURCES, counters_in, gaps
from support.machine_tool import UNAVAILABLE
from support.observe import wait_until

pytestmark = pytest.mark.skipif(bool(UNAVAILABLE), reason=UNAVAILABLE)

CONSOLE = "/srv/vm/web1.console"


class Reader:
    """Who reads a page and does what it says, at a controller and at its host."""

    def __init__(self, host, place: Path) -> None:
        self.host = host
        self.place = place
        #: How often the guest has booted so far, as the reader means it.
        self.boots = 0
        # A disk with a system on it, which speaks on the console.
        guest = CounterGuest(place / "guest", "web1", memory_mib=256)
        guest.prepare()
        disk = place / "web1.qcow2"
        subprocess.run(["qemu-img", "convert", "-q", "-O", "qcow2", str(guest.boot_image), str(disk)], check=True)
        self.host.run("install -d /srv/vm && cat >/srv/vm/web1.qcow2", stdin=disk.read_bytes())
        # The page leaves to the reader how ssh comes to his host.
        (place / "ansible.cfg").write_text(
            "[defaults]\ninterpreter_python = /usr/bin/python3\n"
            f"[ssh_connection]\nssh_common_args = -F {host.ssh_config}\n"
        )

    def controller(self, command: str) -> str:
        """What a command says there."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
        done = subprocess.run(
            command,
            shell=True,
            cwd=self.place,
            env={
                **environment,
                "PATH": f"{Path(sys.executable).parent}:{environment['PATH']}",
                "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS),
                "ANSIBLE_LOCAL_TEMP": str(self.place / "tmp"),
                "ANSIBLE_REMOTE_USER": "root",
                "ANSIBLE_SSH_CONTROL_PATH_DIR": f"/tmp/rd-{os.getpid()}",
                "ANSIBLE_NOCOLOR": "1",
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=400,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}"
        assert "WARNING" not in done.stdout, done.stdout
        return done.stdout

    def start(self, name: str, qmp: str) -> None:
        """Start the VM by hand."""
        self.boots += 1
        self.host.run(
            f"mkdir -p /run/vm && qemu-system-x86_64 -name {name} -m 256 -drive file=/srv/vm/web1.qcow2,if=virtio"
            f" -display none -serial file:{CONSOLE} -qmp {qmp} -daemonize"
        )
        self.goes_on()
        (self.place / "hosts.ini").write_text("[hypervisors]\nhv1\n")

    def is_saved(self) -> bool:
        """Whether its image is there."""
        return "web1.save" in self.host.run("ls /var/lib/vmops/save", check=False)

    def follow(self, block: Block) -> list[str]:
        """Do what a block says; what its commands said, those of the controller each."""
        name = file_of(block)
        if name.startswith("/"):
            self.host.run(f"cat >{name}", stdin=block.text.encode())
        elif name:
            (self.place / name).write_text(block.text)
        elif block.before.endswith("n the host:"):
            self.host.run(block.text)
        elif block.before.endswith("n the controller:"):
            return [self.controller(command) for command in commands(block.text)]
        else:
            raise AssertionError(f"{block} does not say where")
        return []

    def counters(self) -> list[int]:
        """What the guest has said since it booted, which it did as often as is meant."""
        said = self.host.run(f"cat {CONSOLE}", check=False)
        assert len(re.findall(r"boot block=", said)) <= self.boots, said[-2000:]
        last = said.rpartition("boot block=")[2]
        return counters_in(last)

    def goes_on(self) -> None:
        """The guest runs, and has missed nothing."""
        known = len(self.counters())
        wait_until(lambda: len(self.counters()) > known + 2, timeout=60, interval=0.2)
        assert gaps(self.counters()) == []


@pytest.fixture
def reader(machine, tmp_path):
    place = tmp_path / "controller"
    place.mkdir()
    return Reader(machine, place)


def test_first_save(reader):
    for block in blocks("docs/first-save.md"):
        if "systemctl" in block.text:
            # The guest was shut down, as the page says.
            reader.host.run("systemctl stop vmops-qemu-web1.service")
        reader.boots += "qemu-system" in block.text or "systemctl" in block.text
        told = reader.follow(block)
        if block.language == "sh":
            reader.goes_on()
        for command, said in zip(commands(block.text), told):
            assert "--check" in command or "changed=0" not in said, said
    assert not reader.is_saved()
    assert reader.host.run("stat --format=%a /run/vm") == "755"
    # It is a service by now, and all is as before.
    again = [block for block in blocks("docs/first-save.md") if block.before.endswith("n the controller:")]
    assert len(again) == 3
    for block in again:
        reader.follow(block)
        reader.goes_on()
    assert reader.host.run("systemctl is-active qemu@web1.service") == "active"


def test_readme(reader):
    """With the socket that it names, which is in a directory that goes with the host's reboot."""
    text = (SOURCES / "README.md").read_text(encoding="utf-8")
    (qmp,) = set(re.findall(r"`-qmp (unix:\S+)`", text))
    assert qmp.startswith("unix:/run/vm/")
    reader.start("web1", qmp)
    found = blocks("README.md")
    (playbook,) = (block.text for block in found if block.language == "yaml")
    (reader.place / "reboot.yml").write_text(playbook)
    told = [line for block in found for line in commands(block.text) if re.match(r"ansible(-playbook)? ", line)]
    assert len(told) == 3
    for command in [*told, "ansible-playbook reboot.yml"]:
        reader.controller(f"{command} -i hosts.ini")
        assert reader.is_saved() == (" vmops.qemu.qemu_save " in command)
        if not reader.is_saved():
            reader.goes_on()


def test_first_night(reader):
    """The guide up to the end of the night, with the file of tasks that it asks for."""
    page = "docs/fleet-maintenance.md"
    end = (SOURCES / page).read_text(encoding="utf-8").splitlines().index("What happens:")
    reader.start("test1", "unix:/run/vm/test1.qmp,server=on,wait=off")
    (reader.place / "upgrade-kernel.yml").write_text("- ansible.builtin.command: touch /srv/vm/upgraded\n")
    told = []
    for block in [block for block in blocks(page) if block.line < end]:
        if block.text.startswith("- hosts:"):
            (reader.place / "setup.yml").write_text(block.text)
            told.append(["ansible-playbook setup.yml"])
        elif block.text.startswith("host_maintenance_"):
            here = block.text.replace("/srv/ansible/", f"{reader.place}/")
            (reader.place / "maintenance.yml").write_text(here)
        else:
            told.append(commands(block.text))
    assert [len(each) for each in told] == [1, 1, 2, 1, 1]
    for command in itertools.chain.from_iterable(told):
        reader.controller(f"{command} -i hosts.ini")
        if " vmops.qemu.qemu_save " not in command:
            reader.goes_on()
    assert reader.host.run("ls /srv/vm/upgraded; ls /var/lib/vmops/save") == "/srv/vm/upgraded"
    reports = {str(path.relative_to(reader.place)) for path in reader.place.glob("reports/**/*.html")}
    assert reports == {"reports/host-maintenance-check.html", "reports/kernel/host-maintenance.html"}
