# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The holes of a file: where it has data and where it has none, and the making of a hole.

A file system that knows no holes shows all as data.
"""

from __future__ import annotations

import ctypes
import errno
import os
import typing as t

_PUNCH_HOLE = 0x02 | 0x01  # FALLOC_FL_PUNCH_HOLE, which needs FALLOC_FL_KEEP_SIZE (linux/falloc.h)


def next_data(descriptor: int, position: int) -> int | None:
    """The first byte from a position on that is not in a hole; None where there is none up to the file's end.

    :raises OSError: the file system cannot tell.
    """
    return _seek(descriptor, position, os.SEEK_DATA)


def data_ranges(descriptor: int, start: int, end: int) -> t.Iterator[tuple[int, int]]:
    """Where a file has data between two offsets, in order: offset and length of each range, in bytes.

    :raises OSError: the file system cannot tell.
    """
    while start < end:
        data = next_data(descriptor, start)
        if data is None or data >= end:
            return
        hole = _seek(descriptor, data, os.SEEK_HOLE)
        if hole is None:  # the file has become shorter meanwhile
            return
        start = min(hole, end)
        yield data, start - data


def holes(descriptor: int, start: int, end: int) -> t.Iterator[tuple[int, int]]:
    """The holes of a file between two offsets, in order: offset and length; what is beyond its end counts as one.

    :raises OSError: the file system cannot tell.
    """
    for data, length in data_ranges(descriptor, start, end):
        if data > start:
            yield start, data - start
        start = data + length
    if start < end:
        yield start, end - start


def punch(descriptor: int, start: int, end: int) -> None:
    """Give the blocks between two offsets back to the file system; raises OSError."""
    library = ctypes.CDLL(None, use_errno=True)
    fallocate = getattr(library, "fallocate64", None) or library.fallocate
    fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    if end > start and fallocate(descriptor, _PUNCH_HOLE, start, end - start) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _seek(descriptor: int, position: int, how: int) -> int | None:
    """Where the next data or hole begins; None where there is neither from there on; raises OSError."""
    try:
        return os.lseek(descriptor, position, how)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return None
