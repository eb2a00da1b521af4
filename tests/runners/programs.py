# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The runners' programs, as Debian or PyPI has them, and what has them start a guest of the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

import pytest

from support import CounterGuest
from support.guest import REPOSITORY

RUNNERS = REPOSITORY / ".cache" / "runners"


def program(name: str, command: Optional[str] = None) -> Path:
    """A runner's program; the test is skipped where it is not set up."""
    path = RUNNERS / name / "bin" / (command or name)
    if not path.exists():
        pytest.skip(f"no {path.name}: scripts/setup runners")
    return path


def tool(name: str, command: str) -> list[str]:
    """Another command of a package that is set up for its program, as words to call it by.

    With those of its libraries that this host does not have, as the program itself has them.
    """
    root = RUNNERS / name / "root"
    path = root / "usr" / "bin" / command
    if not path.exists():
        pytest.skip(f"no {command}: scripts/setup runners")
    libraries = ":".join(str(place) for place in root.glob("usr/lib/*-linux-gnu"))
    return ["env", *([f"LD_LIBRARY_PATH={libraries}"] if libraries else []), str(path)]


def words_of(guest: CounterGuest, monitor: bool = True, serial: bool = True) -> list[str]:
    """What makes a machine that a runner starts the guest's: its serial port, its disk and, if wanted, its monitor.

    serial: whether the runner leaves the first serial port to QEMU; else it gives the machine none.
    """
    words = guest.argv()
    words = words[words.index("-chardev") :]
    if not serial:
        place = words.index("-serial")
        words[place : place + 2] = ["-device", "isa-serial,chardev=serial0,index=0"]
    if not monitor:
        place = words.index("-qmp")
        del words[place : place + 2]
    return words
