# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Reading what others have written, or say of themselves in /proc: no more than a bound, and never without an end."""

from __future__ import annotations

import errno
import os
import stat

_PIECE = 64 * 1024


class TooLongError(OSError):
    """There is more to read than the bound; ``beginning`` is as much of it as was asked for."""

    def __init__(self, path: str, limit: int, beginning: bytes) -> None:
        super().__init__(errno.EFBIG, f"it has more than {limit} bytes", path)
        self.beginning = beginning


def read_bounded(path: str, limit: int) -> bytes:
    """All that is in a regular file, or in a file of /proc.

    A FIFO or a device in its place is not read, nor waited for.

    :param limit: bytes that it may have at most.
    :raises TooLongError: it has more.
    :raises OSError: it cannot be read, or is no regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", path)
        data = read_up_to(descriptor, limit + 1)
    finally:
        os.close(descriptor)
    if len(data) > limit:
        raise TooLongError(path, limit, data[:limit])
    return data


def read_up_to(descriptor: int, limit: int) -> bytes:
    """What can be read from where the descriptor is, up to so many bytes; raises OSError."""
    pieces = []
    while limit > 0:
        piece = os.read(descriptor, min(limit, _PIECE))
        if not piece:
            break
        pieces.append(piece)
        limit -= len(piece)
    return b"".join(pieces)
