# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The files that a QEMU has open, and by which of its names this host reaches each.

QEMU's own name for a file may be relative, and to a directory that it has left (``-daemonize``), or mean another file
here than in its mount namespace or jail, or than at the time when it was opened. What counts is the inode behind its
descriptor: a name is believed only where it leads to one of those.
"""

from __future__ import annotations

import dataclasses
import os
import stat
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._proc import proc_path
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import QemuProcess

#: Descriptors that are looked at. A QEMU has some hundreds at most; a process that wants to keep us busy has more.
_MAX_DESCRIPTORS = 16384

_DELETED = " (deleted)"
_FDSET = "/dev/fdset/"

#: What tells an inode from all others of this host.
Identity = t.Tuple[int, int]


@dataclasses.dataclass(frozen=True)
class OpenFile:
    """A regular file or block device that the process has open."""

    #: Where the kernel says it is, or was; as seen from here, where it can be seen from here.
    place: str
    deleted: bool
    facts: os.stat_result

    @property
    def identity(self) -> Identity:
        """Its file system and inode."""
        return self.facts.st_dev, self.facts.st_ino


@dataclasses.dataclass(frozen=True)
class FoundFile:
    """What a name of QEMU's led to; ``reason`` says, as a clause, why it led to none, and is else empty."""

    path: str
    facts: os.stat_result | None
    reason: str = ""


class OpenFiles:
    """What a process has open, as it was when this was made."""

    def __init__(self, process: QemuProcess | None, fdsets: t.Mapping[int, t.Collection[int]] | None = None) -> None:
        """Look at the process's descriptors; never raises.

        :param process: the QEMU; None where it is not known, or not on this host.
        :param fdsets: QEMU's descriptors by the number of their set.
        """
        self._process = process
        self._fdsets = fdsets or {}
        self._root = "/"
        self._by_number: dict[int, OpenFile] = {}
        #: Why nothing is known, as a clause; else empty.
        self.reason = self._look()
        self._by_identity = {file.identity: file for file in self._by_number.values()}

    def _look(self) -> str:
        if self._process is None:
            return "the process of its QEMU is not known on this host"
        try:
            self._root = os.readlink(proc_path(self._process.pid, "root"))
            with os.scandir(proc_path(self._process.pid, "fd")) as entries:
                for count, entry in enumerate(entries):
                    if count >= _MAX_DESCRIPTORS:
                        return f"its QEMU has more than {_MAX_DESCRIPTORS} descriptors open"
                    self._add(int(entry.name), entry.path)
        except PermissionError:
            return "its QEMU belongs to another user, and only root sees what it has open"
        except OSError:
            return "its QEMU has ended"
        return ""

    def _add(self, number: int, link: str) -> None:
        try:
            facts = os.stat(link)
            if not stat.S_ISREG(facts.st_mode) and not stat.S_ISBLK(facts.st_mode):
                return
            place = os.readlink(link)
        except FileNotFoundError:
            return  # closed meanwhile
        deleted = facts.st_nlink == 0 or place.endswith(_DELETED)
        place = place[: -len(_DELETED)] if place.endswith(_DELETED) else place
        self._by_number[number] = OpenFile(place, deleted, facts)

    def find(self, name: str) -> FoundFile:
        """The file that QEMU calls so.

        :param name: as QEMU reports it of a node that reads a file.
        """
        if self.reason or self._process is None:
            return FoundFile(name, None, self.reason)
        if name.startswith(_FDSET):
            return self._find_in_set(name)
        path = os.path.join(self._process.cwd, name)
        for candidate in dict.fromkeys((path, self._root.rstrip("/") + path)):
            file = self._by_identity.get(_identity_of(candidate) or (-1, -1))
            if file is not None:
                return FoundFile(candidate, file.facts)
        return self._find_by_place(name, path)

    def _find_by_place(self, name: str, path: str) -> FoundFile:
        """By where the kernel says the open files are: the name leads to none of them any more, or from here."""
        wanted = os.path.normpath(path if os.path.isabs(name) else name)
        matching = [file for file in self._by_identity.values() if _ends_with(file.place, wanted)]
        if len(matching) > 1:
            return FoundFile(path, None, "QEMU has several files of this name open")
        if not matching:
            there = "another file has this name now" if _identity_of(path) else "no file has this name now"
            return FoundFile(path, None, f"the file that QEMU opened by this name has been moved, and {there}")
        return self._from_here(matching[0])

    def _find_in_set(self, name: str) -> FoundFile:
        number = name[len(_FDSET) :]
        descriptors = self._fdsets.get(int(number), ()) if number.isdigit() and len(number) < 10 else ()
        files = {file.identity: file for file in (self._by_number.get(each) for each in descriptors) if file}
        if len(files) != 1:
            return FoundFile(name, None, "it cannot be told which of the files that QEMU was handed it is")
        return self._from_here(next(iter(files.values())))

    def _from_here(self, file: OpenFile) -> FoundFile:
        if _identity_of(file.place) == file.identity:
            return FoundFile(file.place, file.facts)
        if file.deleted:
            return FoundFile(file.place, None, "it was deleted or replaced while QEMU has it open")
        return FoundFile(file.place, None, "on this host, this name does not lead to the file that QEMU has open")


def _identity_of(path: str) -> Identity | None:
    try:
        facts = os.stat(path)
    except (OSError, ValueError):  # ValueError: a NUL in it
        return None
    return facts.st_dev, facts.st_ino


def _ends_with(place: str, wanted: str) -> bool:
    # QMP shows what is not UTF-8 so.
    shown = os.fsencode(place).decode("utf-8", "replace")
    return shown == wanted or shown.endswith("/" + wanted.lstrip("/"))
