# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the kernel says of a block device without its being opened, which may do something to some devices."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import stat

from ansible_collections.vmops.qemu.plugins.module_utils._bounded_read import read_bounded

#: Where a device says which one it is, the best first: of a volume, an array, a disk, a card. What there is of a disk
#: is what it says itself, and an empty text where it has no number.
_NAMES = ("dm/uuid", "md/uuid", "wwid", "device/wwid", "serial", "device/serial", "device/cid")

#: Bytes of such a text; sysfs has a page.
_MAX_TEXT = 4096

#: Devices below each other: partitions, and files that are devices.
_MAX_DEPTH = 8


@dataclasses.dataclass(frozen=True)
class BlockDevice:
    """A block device that is there."""

    #: Bytes, 0 where unknown.
    size: int
    #: Which one it is, whatever it is called, as people can read it; empty where nothing tells it.
    identity: str = ""
    #: Of a loop device over a file: the time of the last change of that, in nanoseconds, and where in it the device
    #: begins, in bytes; None and 0 of any other device.
    mtime_ns: int | None = None
    offset: int = 0


def block_device_size(number: int) -> int:
    """Bytes of the block device with this number (``st_rdev``), 0 where unknown."""
    try:
        return int(_read(_place(number), "size")) * 512
    except ValueError:
        return 0


def read_block_device(number: int) -> BlockDevice:
    """What is known of the block device with this number (``st_rdev``); never raises."""
    place = _place(number)
    size = block_device_size(number)
    backing = _read(place, "loop/backing_file")
    if backing:
        with contextlib.suppress(OSError, ValueError):  # it was removed, or is in another root directory
            facts = os.stat(backing)
            if stat.S_ISREG(facts.st_mode):
                return BlockDevice(size, f"loop over {backing}", facts.st_mtime_ns, int(_read(place, "loop/offset")))
    return BlockDevice(size, _identity(place, _MAX_DEPTH))


def _place(number: int) -> str:
    # By its real name: what a partition is a part of is the directory above.
    return os.path.realpath(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")


def _identity(place: str, depth: int) -> str:
    """As ``BlockDevice.identity``.

    :param depth: how far it may go from a partition, or from a loop device, to what is below.
    """
    if depth <= 0:
        return ""
    for name in _NAMES:
        text = _read(place, name)
        if text:
            return f"{name.rpartition('/')[2]} {text}"
    part = _read(place, "partition")
    if part:
        whole = _identity(os.path.dirname(place), depth - 1)
        return f"partition {part} from sector {_read(place, 'start')} of {whole}" if whole else ""
    backing = _read(place, "loop/backing_file")
    if not backing:
        return ""
    below = backing
    with contextlib.suppress(OSError, ValueError):
        facts = os.stat(backing)
        if stat.S_ISBLK(facts.st_mode):
            below = _identity(_place(facts.st_rdev), depth - 1)
    return f"loop over {below} from byte {_read(place, 'loop/offset')}" if below else ""


def _read(place: str, name: str) -> str:
    with contextlib.suppress(OSError):  # not of this kind of device, or one that does not answer
        return read_bounded(f"{place}/{name}", _MAX_TEXT).decode("utf-8", "replace").replace("\0", "").strip()
    return ""
