# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The file system in which a directory lies, by what the kernel says of all mounts (proc_pid_mountinfo(5)).

And whether a reboot of the host keeps what is in it. An overlay keeps what its upper layer keeps, and a file system on
a device what that keeps: a loop device is as good as its file. What lies out of sight, such as the upper layer of a
container, or what a program serves (FUSE), is not known to last.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import typing as t


class _Mount(t.NamedTuple):
    device: bytes
    place: str
    kind: str = ""
    #: A device, or whatever else the file system takes for one.
    source: str = ""
    #: The options of the file system (not of this mount of it), as the kernel escapes them.
    options: tuple[bytes, ...] = ()


class Lasting(t.NamedTuple):
    """Whether a reboot of the host keeps the files in a directory."""

    #: Where its file system is mounted, and of which type that is; empty where that cannot be told.
    place: str
    kind: str
    #: None where it is not known.
    lasts: bool | None

    @property
    def is_refused(self) -> bool:
        """Whether nothing that is to be there after a reboot may be put there.

        Of what is not known that is a file system in layers, but in a container: there the layer that is written to is
        out of sight as a rule, and on a disk. On other hosts it is the initramfs's memory that is out of sight (live
        systems), and whoever has a disk can have it mounted at a place of its own.
        """
        return self.lasts is False or (self.lasts is None and self.kind in _LAYERED and not _is_container())


#: File systems that a reboot of the host empties.
_VOLATILE = frozenset(("tmpfs", "ramfs", "rootfs", "devtmpfs", "hugetlbfs"))

#: File systems that show others, and are as good as the one among these that is written to.
_LAYERED = frozenset(("overlay", "overlayfs", "aufs", "unionfs"))

#: File systems without a device that others serve, or that find their devices by themselves.
_LASTING = frozenset(
    ("nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "virtiofs", "zfs", "afs", "lustre", "beegfs", "gpfs", "orangefs")
)

#: Block devices in memory.
_MEMORY_DEVICE = re.compile(r"(?:ram|zram|nullb)\d+")

#: What stands on each other at most: an overlay on a loop device on …
_MAX_DEPTH = 8

#: What containers have, by which systemd knows them, too (systemd's src/basic/virt.c).
_OF_CONTAINERS = ("/run/systemd/container", "/run/host/container-manager", "/run/.containerenv", "/.dockerenv")


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


def lasting(path: str) -> Lasting:
    """Whether a reboot of the host keeps what is at a path, or would be."""
    mounts = _mounts()
    mount = _mount_of(path, mounts)
    return Lasting(mount.place, mount.kind, _lasts(mount, mounts, _MAX_DEPTH))


def volatile_mount(path: str) -> str:
    """Where the file system of a path is mounted, if a reboot of the host is known to empty it; or the empty string."""
    found = lasting(path)
    return found.place if found.lasts is False else ""


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
    return [_mount_from(line) for line in fields]


def _mount_from(line: list[bytes]) -> _Mount:
    """Type, source and options come after any number of optional fields and a dash."""
    after = [*line[line.index(b"-") + 1 :], b"", b"", b""] if b"-" in line else [b"", b"", b""]
    kind, source, options = after[:3]
    return _Mount(
        line[2],
        os.fsdecode(_unescaped(line[4])),
        os.fsdecode(kind),
        os.fsdecode(_unescaped(source)),
        tuple(options.strip().split(b",")),
    )


def _unescaped(path: bytes) -> bytes:
    """A path in which blanks and backslashes are written as three octal digits."""
    return re.sub(rb"\\([0-7]{3})", lambda code: bytes([int(code.group(1), 8)]), path)


# --- what a reboot keeps ----------------------------------------------------------------------------------------


def _lasts(mount: _Mount, mounts: list[_Mount], depth: int) -> bool | None:
    """:param depth: how much further may be looked, as for the functions below."""
    if mount.kind in _VOLATILE:
        return False
    if not depth:
        return None
    if mount.kind in _LAYERED:
        return _upper_lasts(mount, mounts, depth - 1)
    device = _device_of(mount)
    if device:
        return _device_lasts(device, mounts, depth - 1)
    return True if mount.kind in _LASTING else None


def _upper_lasts(mount: _Mount, mounts: list[_Mount], depth: int) -> bool | None:
    """Of an overlay: its upper layer decides, where it has one that is seen."""
    found = [option.partition(b"=")[2] for option in mount.options if option.startswith(b"upperdir=")]
    upper = os.fsdecode(_unescaped(found[0])) if found else ""
    # One that never flushes to the disk is not mounted again, until somebody has looked at it.
    never_flushes = not {b"volatile", b"fsync=volatile"}.isdisjoint(mount.options)
    if not os.path.isabs(upper) or never_flushes or not os.path.isdir(upper):
        return None
    return _lasts(_mount_of(upper, mounts), mounts, depth)


def _device_of(mount: _Mount) -> str:
    """The numbers of the device on which a file system is; empty where it has none."""
    if not mount.device.startswith(b"0:"):
        return os.fsdecode(mount.device)
    with contextlib.suppress(OSError):  # such as Btrfs, whose own numbers are none of a device
        facts = os.stat(mount.source) if mount.source.startswith("/dev/") else None
        if facts and stat.S_ISBLK(facts.st_mode):
            return f"{os.major(facts.st_rdev)}:{os.minor(facts.st_rdev)}"
    return ""


def _device_lasts(numbers: str, mounts: list[_Mount], depth: int) -> bool | None:
    """Of a block device, with all on which it stands."""
    place = os.path.realpath(f"/sys/dev/block/{numbers}")
    if not depth or not os.path.isdir(place):
        return None
    if os.path.exists(f"{place}/partition"):
        place = os.path.dirname(place)
    if _MEMORY_DEVICE.fullmatch(os.path.basename(place)):
        return False
    if os.path.isdir(f"{place}/loop"):
        return _file_lasts(_first_line(f"{place}/loop/backing_file"), mounts, depth - 1)
    below = [_first_line(f"{place}/slaves/{name}/dev") for name in _names_in(f"{place}/slaves")]
    all_of_it = [_device_lasts(device, mounts, depth - 1) for device in below]
    return False if False in all_of_it else None if None in all_of_it else True


def _file_lasts(path: str, mounts: list[_Mount], depth: int) -> bool | None:
    """Of the file, or the device, that a loop device shows."""
    try:
        facts = os.stat(path)
    except OSError:
        # The kernel says so of a file that was removed: it ends with its loop device.
        return False if path.endswith(" (deleted)") else None
    if stat.S_ISBLK(facts.st_mode):
        return _device_lasts(f"{os.major(facts.st_rdev)}:{os.minor(facts.st_rdev)}", mounts, depth)
    return _lasts(_mount_of(path, mounts), mounts, depth)


def _first_line(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return os.fsdecode(file.readline().rstrip(b"\n"))
    except OSError:
        return ""


def _names_in(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _is_container() -> bool:
    if any(os.path.exists(path) for path in _OF_CONTAINERS):
        return True
    with contextlib.suppress(OSError), open("/proc/1/environ", "rb") as file:
        return any(word.startswith(b"container=") for word in file.read(64 * 1024).split(b"\0"))
    return False
