# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""An unprivileged user of the host, played with real system calls, and the modules as root runs them.

Memory is bounded in these tests (C(BOUNDED)), so that a module that would take all of it fails instead.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Callable

import pytest
from functional.conftest import guest, image, make_guest, restore, run_module, save, start_module

__all__ = ["guest", "image", "make_guest", "restore", "run_module", "save", "start_module"]

#: A module's memory at most, as a prefix of its command: ten times what it needs.
BOUNDED = ("prlimit", f"--data={512 * 1024 * 1024}")

ATTACKERS = Path(__file__).resolve().parent / "attackers"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() != 0:
        for item in items:
            if item.path.is_relative_to(Path(__file__).parent):
                item.add_marker(pytest.mark.skip(reason="the modules run as root here, and an attacker as nobody"))


class Attacker:
    """The user C(nobody), with a directory of his own; C(/tmp) is above it, as the tests' own may not be entered."""

    def __init__(self, place: Path) -> None:
        entry = pwd.getpwnam("nobody")
        self.uid, self.gid = entry.pw_uid, entry.pw_gid
        #: His home, which root can look into, too.
        self.home = place / "home"
        self.home.mkdir()
        os.chown(self.home, self.uid, self.gid)
        #: What root made and he may read and execute.
        self.programs = place / "programs"
        self.programs.mkdir(mode=0o755)
        place.chmod(0o755)
        self._processes: list[subprocess.Popen[str]] = []

    def compile(self, source: str, name: str) -> Path:
        """Build one of the programs in C(attackers/)."""
        program = self.programs / name
        subprocess.run(["cc", "-O1", "-o", str(program), str(ATTACKERS / source)], check=True)
        return program

    def start(self, argv: Sequence[str | Path], ready: str = "ready", **options: Any) -> subprocess.Popen[str]:
        """Run a program as him, and wait until it says that it is ready."""
        process = subprocess.Popen(
            [str(word) for word in argv],
            user=self.uid,
            group=self.gid,
            extra_groups=[],
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            **options,
        )
        self._processes.append(process)
        line = process.stdout.readline() if process.stdout else ""
        assert line.strip() == ready, f"{argv}: {line!r}"
        return process

    def python(self, script: str, *arguments: str | Path, named: str = "") -> subprocess.Popen[str]:
        """Run one of the scripts in C(attackers/); with C(named) by a program of that name, as a QEMU has one."""
        argv = ["/usr/bin/python3", str(ATTACKERS / script), *(str(word) for word in arguments)]
        # Some have a server of QMP in common, which they look for beside them.
        for name in (script, "qmp_server.py"):
            shutil.copyfile(ATTACKERS / name, self.programs / name)
            (self.programs / name).chmod(0o644)
        argv[1] = str(self.programs / script)
        if named:
            # What it executes, too, has the name: a copy of the interpreter.
            program = self.programs / named
            if not program.exists():
                shutil.copy(os.path.realpath("/usr/bin/python3"), program)
            argv[0] = str(program)
        return self.start(argv)

    def close(self) -> None:
        """End what he has started."""
        for process in self._processes:
            process.kill()
            process.communicate()


@pytest.fixture
def attacker() -> Iterator[Attacker]:
    place = Path(tempfile.mkdtemp(prefix="vmops-attacker-", dir="/tmp"))
    attacker = Attacker(place)
    yield attacker
    attacker.close()
    shutil.rmtree(place)


@pytest.fixture
def run_bounded(start_module: Callable[..., Any]) -> Callable[..., tuple[dict[str, Any], float]]:
    """Run a module with bounded memory; its result, and the seconds that it took."""

    def run(module: str, **options: Any) -> tuple[dict[str, Any], float]:
        started = time.monotonic()
        result = start_module(module, prefix=BOUNDED, **options).result(timeout=60)
        return result, time.monotonic() - started

    return run
