# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether media are still the ones that a saved memory belongs to.

A file is told by its size and the time of its last change, to the nanosecond: QEMU (7.2 to 10.0) touches neither from
the completion of a migration to its end, nor while it waits with ``-incoming defer``, whatever the format, the cache
mode and the file system; the first write after ``cont`` changes the time. Inode and device may be others: images and
disks are moved to other hosts together, and a copy that keeps the times (``cp -p``, ``rsync -t``) will do. Of firmware
in a flash chip that the guest only reads, which a package's update writes anew, the size alone counts, and so of a disk
in memory (nvdimm) that a restore has begun to write anew. A loop device is told as the file behind it is, any other
device by what it says it is (a number of the disk's own, a volume's UUID), or by its path where it says nothing.

The kinds: ``disk_written`` (another size or time), ``disk_gone``, ``disk_replaced`` (no file any more, or another
medium than the saved one), ``disk_chain`` (other layers), ``disk_missing`` and ``disk_added`` (a medium too few or too
many), and ``disk_unchecked``, which alone does not block.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import stat
import time
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.block_device import read_block_device
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.media import Medium, MediumFile
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.media_record import parse_media, record_media
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.verdict import Problem

#: Nanoseconds in which two writes may get the same time: twice the longest tick of a kernel (CONFIG_HZ=100).
_TICK_NS = 20 * 10**6

#: The same where times are whole seconds, or, on FAT, even ones.
_COARSE_NS = 2 * 10**9

_CURE = (
    "Put the disk back as it was when the VM was saved, or remove the image and start the VM from its disks;"
    " with disks=ignore the guest is restored all the same, which may destroy its file systems"
)
_SAME_MEDIA = (
    "Start it with the same disks, CDs and floppies in its drives as when it was saved;"
    " with disks=ignore the guest is restored all the same, which may destroy its file systems"
)
_LOOK = "Make sure that nobody wrote to it since the VM was saved"

_Key = t.Tuple[str, str, int]


def settling_time(media: t.Iterable[Medium], now_ns: int | None = None) -> float:
    """Seconds to wait after media were read until a later write surely gives a file another time than the one read.

    Nothing needs to be read again afterwards. 0 where all were changed long enough ago.

    :param now_ns: the time, in nanoseconds since the epoch, at which they were read; None for now.
    """
    now = time.time_ns() if now_ns is None else now_ns
    longest = 0
    for medium in media:
        for file in medium.files:
            if not file.uncheckable:
                tick = _TICK_NS if file.mtime_ns % 10**9 else _COARSE_NS
                # A server's clock may be ahead of ours.
                longest = max(longest, tick - max(0, now - file.mtime_ns))
    return longest / 1e9


# --- before anything is started ---


def changed_media(recorded: t.Iterable[Medium]) -> list[Problem]:
    """What became of the recorded files: written to since, gone, or no files any more; looks at each, which may block.

    Those that could not be checked when they were recorded are problems that do not block.
    """
    return [problem for medium in recorded for file in medium.files for problem in _changed_file(medium, file)]


def _changed_file(medium: Medium, file: MediumFile) -> list[Problem]:
    label = medium.label
    unchecked = [_unchecked(label, file.path, file.uncheckable)] if file.uncheckable else []
    if file.uncheckable and not file.inode:
        return unchecked
    try:
        facts = os.stat(file.path)
    except PermissionError:
        # QEMU may be allowed to open it; then it is compared when it has.
        return [_unchecked(label, file.path, "this user may not look at it")]
    except OSError as exc:
        what = f"the disk {label} is not what it was when the VM was saved: {file.path}: {exc.strerror}"
        return [Problem("disk_gone", what, _CURE)]
    device = read_block_device(facts.st_rdev) if stat.S_ISBLK(facts.st_mode) else None
    if file.uncheckable:
        if device and file.size in (0, device.size) and file.identity in ("", device.identity):
            return unchecked
        became = _device(device.size, device.identity) if device else "no device"
        what = (
            f"the disk {label} is another one: {file.path} was {_device(file.size, file.identity)} when the VM was"
            f" saved, and is {became} now"
        )
        return [Problem("disk_replaced", what, _CURE)]
    if device and device.mtime_ns is not None:
        now = dataclasses.replace(file, size=device.size, mtime_ns=device.mtime_ns, identity=device.identity)
    elif stat.S_ISREG(facts.st_mode):
        now = MediumFile(file.path, file.format, facts.st_size, facts.st_mtime_ns)
    else:
        what = f"the disk {label} is another one: {file.path} was a file when the VM was saved, and is not one now"
        return [Problem("disk_replaced", what, _CURE)]
    if _is_same(file, now, medium.is_told_by_size):
        return []
    return [_written(label, file, now)]


def _device(size: int, identity: str) -> str:
    return f"a device of {_bytes(size)}{f' ({identity})' if identity else ''}"


def _is_same(old: MediumFile, new: MediumFile, size_alone: bool) -> bool:
    return old.size == new.size and (size_alone or old.mtime_ns == new.mtime_ns)


def _written(label: str, file: MediumFile, now: MediumFile) -> Problem:
    if file.identity != now.identity:
        what = (
            f"the disk {label} is another one than when the VM was saved: {file.path} was {_what(file)} then, which"
            f" {_state(file, now)}, and is {_what(now)} now, which {_state(now, file)}"
        )
        return Problem("disk_replaced", what, _CURE)
    what = (
        f"the disk {label} was written to after the VM was saved: {file.path} {_state(file, now)} then,"
        f" and {_state(now, file)} now"
    )
    return Problem("disk_written", what, _CURE)


def _what(file: MediumFile) -> str:
    return file.identity or "a file"


def _unchecked(label: str, path: str, reason: str) -> Problem:
    what = f"it is not known whether the disk {label} ({path}) is as it was when the VM was saved, as {reason}"
    return Problem("disk_unchecked", what, _LOOK, blocks=False)


# --- what the QEMU that waits for the memory has opened ---


def other_media(recorded: t.Iterable[Medium], opened: t.Iterable[Medium], label: str) -> list[Problem]:
    """What the QEMU that waits for the saved memory has opened other media for than those the memory belongs to.

    Drives are paired by the name of their backend, else by their device, else in their order; by whatever path their
    files were opened, they must be the same layers with the same content.

    :param label: the VM as messages name it.
    """
    before, now = _by_key(recorded), _by_key(parse_media(record_media(opened)))
    _pair_the_rest(before, now)
    problems = []
    for key in dict.fromkeys((*before, *now)):
        old, new = before.get(key), now.get(key)
        old_files, new_files = old.files if old else (), new.files if new else ()
        drive = (old or new or Medium("", "", "", False)).label
        if old_files and not new_files:
            what = f"{label} has nothing in the drive {drive}, in which {old_files[0].path} was when it was saved"
            problems.append(Problem("disk_missing", what, _SAME_MEDIA))
        elif new_files and not old_files:
            what = f"{label} has {new_files[0].path} in the drive {drive}, which was empty when it was saved"
            problems.append(Problem("disk_added", what, _SAME_MEDIA))
        else:
            size_alone = bool(old and old.is_told_by_size)
            problems.extend(_other_files(drive, old_files, new_files, size_alone) or _other_place(drive, old, new))
    return problems


def _other_place(drive: str, old: Medium | None, new: Medium | None) -> list[Problem]:
    """Two disks of one kind in each other's slot load without an error, and the guest takes each for the other."""
    if not old or not new or not old.place or not new.place or old.place == new.place:
        return []
    what = f"the guest would find the disk {drive} in another place: at {old.place} then, and at {new.place} now"
    return [Problem("disk_replaced", what, _SAME_MEDIA)]


def _by_key(media: t.Iterable[Medium]) -> dict[_Key, Medium]:
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    found = {}
    for medium in media:
        name = ("backend", medium.backend) if medium.backend else ("qdev", medium.qdev)
        found[name[0], name[1], counts[name]] = medium
        counts[name] += 1
    return found


def _pair_the_rest(before: dict[_Key, Medium], now: dict[_Key, Medium]) -> None:
    """Give those that are left, if as many on both sides, the same keys: another QEMU may number devices otherwise."""
    old = [key for key in before if key not in now and key[0] == "qdev"]
    new = [key for key in now if key not in before and key[0] == "qdev"]
    if len(old) == len(new):
        for old_key, new_key in zip(old, new):
            now[old_key] = now.pop(new_key)


def _other_files(
    drive: str, before: tuple[MediumFile, ...], now: tuple[MediumFile, ...], size_alone: bool
) -> list[Problem]:
    if [file.format for file in before] != [file.format for file in now]:
        what = (
            f"the disk {drive} has other layers than when the VM was saved: {_layers(before)} then, {_layers(now)} now"
        )
        return [Problem("disk_chain", what, _SAME_MEDIA)]
    return [problem for old, new in zip(before, now) for problem in _other_file(drive, old, new, size_alone)]


def _other_file(drive: str, old: MediumFile, new: MediumFile, size_alone: bool) -> list[Problem]:
    if not old.uncheckable and not new.uncheckable:
        if _is_same(old, new, size_alone):
            return []
        if old.path == new.path:
            return [_written(drive, old, new)]
        what = (
            f"the disk {drive} is another one than when the VM was saved: {old.path}, which {_state(old, new)}, then,"
            f" and {new.path}, which {_state(new, old)}, now"
        )
        return [Problem("disk_replaced", what, _SAME_MEDIA)]
    was_device, is_device = (bool(file.uncheckable and file.size) for file in (old, new))
    if was_device and is_device:
        # By whatever path: that one of /dev is another disk after a reboot is nothing unusual.
        same = old.size == new.size and (old.identity == new.identity if old.identity else old.path == new.path)
    elif was_device and not new.uncheckable:
        same = not old.identity and old.path == new.path  # an earlier version knew nothing of loop devices
    elif is_device and not old.uncheckable:
        same = bool(old.identity) and old.path == new.path
    else:
        same = old.path == new.path or (bool(old.uncheckable) and os.path.isabs(old.path))
    if same:
        return [_unchecked(drive, new.path, old.uncheckable or new.uncheckable)]
    what = (
        f"the disk {drive} is another one than when the VM was saved: {_shown(old)} then, and {_shown(new)} now, which"
        f" cannot be compared, as {new.uncheckable or old.uncheckable}"
    )
    return [Problem("disk_replaced", what, _SAME_MEDIA)]


def _shown(file: MediumFile) -> str:
    return f"{file.path}, {_device(file.size, file.identity)}," if file.uncheckable and file.size else file.path


def _layers(files: t.Sequence[MediumFile]) -> str:
    return " over ".join(f"{file.path} ({file.format})" for file in files)


def _state(file: MediumFile, other: MediumFile) -> str:
    """Its size and time, for a comparison with another state."""
    changed, differs = time.gmtime(file.mtime_ns // 10**9), file.size != other.size
    fraction = f"{file.mtime_ns % 10**9:09d}".rstrip("0") or "0"
    text = f"was last changed at {time.strftime('%Y-%m-%d %H:%M:%S', changed)}.{fraction} UTC"
    return f"had {_bytes(file.size)} and {text}" if differs else text


def _bytes(count: int) -> str:
    return f"{count} bytes" if count != 1 else "1 byte"
