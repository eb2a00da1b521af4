# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A machine on which tests of this tree are run.

It has no pytest and no ansible-core: what is pure Python of this tree's virtual environment goes along.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Optional

from .counter import build_counter
from .guest import COLLECTIONS, REPOSITORY

#: Where all of it is on the machine; it has room there, and every user may look into it.
PLACE = "/opt/run"

_COPIED = (
    "build/collections",
    "tests/conftest.py",
    "tests/functional",
    "tests/support",
    "tests/guests",
    "pyproject.toml",
)
_PACKAGES = ("_pytest", "ansible", "iniconfig", "packaging", "pluggy", "py", "pygments", "pytest")


def _own(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Files of root's, without what Python made of them."""
    if "__pycache__" in info.name:
        return None
    info.uid = info.gid = 0
    info.uname = info.gname = "root"
    return info


def _archive() -> bytes:
    """The collection, its tests, the guest's boot image, and the packages."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in _COPIED:
            tar.add(REPOSITORY / name, name, filter=_own)
        # After its source, so that it is newer there, too: nothing is to be built, and nothing could be.
        tar.add(build_counter(), "build/guests/counter.img", filter=_own)
        for package in _PACKAGES:
            found = importlib.util.find_spec(package)
            assert found is not None
            assert found.origin is not None
            path, name = Path(found.origin), f"packages/{package.replace('.', '/')}"
            if path.name == "__init__.py":
                tar.add(path.parent, name, filter=_own)
            else:
                tar.add(path, f"{name}.py", filter=_own)
    return buffer.getvalue()


class HostMachine:
    """A machine that runs, by the directory of ``tests/machines.py`` and its name."""

    def __init__(self, directory: Path, name: str) -> None:
        self.directory = directory
        self.name = name

    @property
    def ssh_config(self) -> Path:
        """For ``ssh -F``."""
        return self.directory / "ssh_config"

    def run(
        self, command: str, user: str = "root", stdin: Optional[bytes] = None, timeout: float = 120, check: bool = True
    ) -> str:
        """What a command of the shell's has printed there, its complaints among it."""
        done = subprocess.run(
            ["ssh", "-F", str(self.ssh_config), "-l", user, self.name, command],
            input=b"" if stdin is None else stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            check=False,
        )
        said = done.stdout.decode(errors="replace")
        assert not check or done.returncode == 0, f"{command}: {said}"
        return said.strip()

    def unpack(self) -> None:
        """Bring the tree there, and what its tests need of other packages."""
        command = f"mkdir -p {PLACE} && tar -C {PLACE} -xf - && touch {PLACE}/build/guests/counter.img"
        command += f" && install -d -m 1777 {PLACE}/tmp"
        self.run(command, stdin=_archive())
        # Where every Python finds them, also that of a module, whose PYTHONPATH is another.
        site = "$(python3 -c 'import site; print(site.getsitepackages()[0])')"
        self.run(f'mkdir -p "{site}" && echo {PLACE}/packages >"{site}/packages.pth"')

    def pytest(self, arguments: str, user: str = "root", timeout: float = 900) -> str:
        """Run tests there, all of which must pass; the last line that pytest has printed."""
        paths = ":".join(f"{PLACE}/{name}" for name in ("tests", "build/collections"))
        options = f"PYTHONPATH={paths} PYTHONDONTWRITEBYTECODE=1 LC_ALL=C.UTF-8"
        # Not on the machine's /tmp, a tmpfs, of which each save would warn.
        place = f"{PLACE}/tmp/{user}"
        command = f"cd {PLACE} && {options} python3 -m pytest -q -p no:cacheprovider --basetemp={place} {arguments}"
        said = self.run(command, user, timeout=timeout, check=False)
        assert " passed" in said, said
        closing = said.splitlines()[-1]
        assert "failed" not in closing, said
        assert "error" not in closing, said
        return closing

    def reboot(self, timeout: float = 180) -> None:
        """Have it reboot by itself, and wait until it has."""
        before = self.run("cat /proc/sys/kernel/random/boot_id; systemctl show --property=UserspaceTimestampMonotonic")
        self.run("systemctl reboot", check=False)
        deadline = time.monotonic() + timeout
        while True:
            assert time.monotonic() < deadline, f"{self.name} does not come back"
            said = self.run(
                "cat /proc/sys/kernel/random/boot_id; systemctl show --property=UserspaceTimestampMonotonic;"
                " systemctl is-system-running --wait",
                check=False,
            )
            if said.endswith(("running", "degraded")) and not said.startswith(before):
                return
            time.sleep(0.2)


def run_playbook(
    machine: HostMachine, place: Path, user: str, *arguments: str, **variables: object
) -> subprocess.CompletedProcess[str]:
    """Run ansible-playbook from here, as a user of a machine.

    place: where it runs, and keeps what is its own; arguments: the playbook, and options before it.
    """
    inventory = place / "inventory.json"
    host = {
        "ansible_user": user,
        "ansible_ssh_common_args": f"-F {machine.ssh_config}",
        "ansible_python_interpreter": "/usr/bin/python3",
    }
    inventory.write_text(json.dumps({"all": {"hosts": {machine.name: host}}}))
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(inventory), *arguments]
    return subprocess.run(
        [*command, "-e", json.dumps(variables)],
        cwd=place,
        env={
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS),
            "ANSIBLE_LOCAL_TEMP": str(place / "ansible"),
            "ANSIBLE_SSH_CONTROL_PATH_DIR": f"/tmp/vmops-ssh-{os.getpid()}",
            "ANSIBLE_NOCOLOR": "1",
        },
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
