# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The file system in which a directory lies, by what the kernel says of all mounts (proc_pid_mountinfo(5))."""

from __future__ import annotations

import os
import re
import typing as t


class _Mount(t.NamedTuple):
    device: bytes
    place: str
    kind: str = ""


#: File systems that a reboot of the host empties.
_VOLATILE = frozenset(("tmpfs", "ramfs", "devtmpfs", "hugetlbfs"))


def mount_point(directory: str) -> str:
    """Where a directory's file system is mounted, on the directory's own path; the root where that cannot be told."""
    return _mount_of(directory, _mounts()).place


def file_system(directory: str) -> str:
    """The first place at which a directory's file system is mounted: the same for all directories in it.

    The root where that cannot be told.
    """
    mounts = _mounts()
    mount = _mount_of(directory, mounts)
    return next((other.place for other in mounts if other.device == mount.device), mount.place)


def volatile_mount(path: str) -> str:
    """Where the file system of a path is mounted, if a reboot of the host empties it; else the empty string."""
    mount = _mount_of(path, _mounts())
    return mount.place if mount.kind in _VOLATILE else ""


def file_system_type(path: str) -> str:
    """The type of a path's file system, such as ``tmpfs``; the empty string where that cannot be told."""
    return _mount_of(path, _mounts()).kind


def mount_points() -> set[str]:
    """Every place where something is mounted; none where that cannot be told."""
    return {mount.place for mount in _mounts()}


def _mount_of(directory: str, mounts: list[_Mount]) -> _Mount:
    """The mount with the longest path on the way to a directory; of two on one place, the later."""
    place = f"{os.path.realpath(directory)}/"
    found = _Mount(b"", "/")
    for mount in mounts:
        if len(mount.place) >= len(found.place) and place.startswith(f"{mount.place.rstrip('/')}/"):
            found = mount
    return found


def _mounts() -> list[_Mount]:
    """All mounts of this process, in order; none where they cannot be read."""
    try:
        with open("/proc/self/mountinfo", "rb") as lines:
            fields = [line.split(b" ") for line in lines]
    except OSError:
        return []
    return [_Mount(line[2], os.fsdecode(_unescaped(line[4])), _kind_of(line)) for line in fields]


def _kind_of(line: list[bytes]) -> str:
    """The type, which comes after any number of optional fields and a dash."""
    after = line[line.index(b"-") :] if b"-" in line else []
    return os.fsdecode(after[1]) if len(after) > 1 else ""


def _unescaped(path: bytes) -> bytes:
    """A path in which blanks and backslashes are written as three octal digits."""
    return re.sub(rb"\\([0-7]{3})", lambda code: bytes([int(code.group(1), 8)]), path)
