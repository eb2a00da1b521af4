# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""An unprivileged user of the host, played with real system calls."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .guest import SOURCES

#: The programs that he runs.
ATTACKERS = SOURCES / "tests" / "security" / "attackers"


class Attacker:
    """The user ``nobody``, with a directory of his own; ``/tmp`` is above it, as the tests' own may not be entered."""

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
        """Build one of the programs in ``attackers/``."""
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
        """Run one of the scripts in ``attackers/``; with ``named`` by a program of that name, as a QEMU has one."""
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
