# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a run that fails must leave as it was: a guest, its QEMU, and what is in a directory."""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import time
from pathlib import Path

from .counter import CounterGuest
from .module_run import Result, check_error
from .observe import VM, Continuity, run_state, settings

#: Seconds within which a run that fails has said so.
BOUND = 20.0


def contents(place: Path) -> dict[str, str]:
    """What is in a directory: of each name what it is, whose, and every byte."""
    found = {}
    for path in sorted(place.iterdir()):
        facts = path.lstat()
        what = ""
        if path.is_symlink():
            what = os.readlink(path)
        elif stat.S_ISREG(facts.st_mode):
            what = hashlib.sha256(path.read_bytes()).hexdigest()
        found[path.name] = f"{stat.filemode(facts.st_mode)} {facts.st_uid} {facts.st_ino} {what}"
    return found


class Before:
    """Taken before a run that fails: ``check`` then shows that nothing came of it but the error."""

    def __init__(self, guest: CounterGuest, place: Path) -> None:
        self.guest = guest
        self.place = place
        self.settings = settings(guest)
        self.continuity = Continuity(guest)
        self.contents = contents(place)
        self.started = time.monotonic()

    def check(self, result: Result, error: str, *said: str, guest: str = "running") -> None:
        check_error(result, error, *said, guest=guest)
        self.check_all_is_as_before()

    def check_all_is_as_before(self) -> None:
        assert time.monotonic() - self.started < BOUND
        assert settings(self.guest) == self.settings
        assert contents(self.place) == self.contents
        assert run_state(self.guest) == "running"
        self.continuity.check()


def make_image(path: Path, magic: bytes = b"LibvirtQemudSave") -> Path:
    """Make an image of the VM that was there before, whose every byte must stay."""
    xml = f"<domain type='qemu'><name>{VM}</name></domain>\0".encode()
    header = struct.pack("=16s6I52x", magic, 3, 65444, 1, 0, 0, 0)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(header + xml.ljust(65444, b"\0") + b"an older state of the guest")
    path.chmod(0o600)
    return path
