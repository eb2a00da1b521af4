# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Small files that outlast a crash: after it there is the old one or the new one, whole."""

from __future__ import annotations

import contextlib
import os


def write_durably(path: str, data: bytes, mode: int = 0o600) -> None:
    """Write a file, whole or not at all, and bring it and its name onto the storage; an old one is replaced.

    :param mode: its permission bits.
    :raises OSError: a step failed. The old file is there, or, where only the last flush failed, the new one.
    """
    scratch = scratch_path(path)
    with contextlib.suppress(FileNotFoundError):  # a run was cut off; also a FIFO, which would be waited for
        os.unlink(scratch)
    try:
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        try:
            os.fchmod(descriptor, mode)
            write_all(descriptor, data, 0)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(scratch, path)
    except BaseException:  # whatever it is, a signal, too: half a file is none
        with contextlib.suppress(OSError):
            os.unlink(scratch)
        raise
    flush_directory(os.path.dirname(path))


def scratch_path(path: str) -> str:
    """Where a file is written before it gets its name; what a run that was cut off left is there."""
    return f"{path}.new"


def write_all(descriptor: int, data: bytes, offset: int) -> None:
    """Write all of ``data`` at ``offset`` of an open file; raises OSError."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def flush_directory(path: str) -> None:
    """Bring the names in a directory onto the storage; raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directories(path: str, mode: int) -> None:
    """Make a directory where it is missing, and those above it, each onto the storage.

    :param mode: the permission bits of those that are made, as far as the umask leaves them.
    :raises OSError: one cannot be made.
    """
    if os.path.isdir(path):
        return
    above = os.path.dirname(path)
    make_directories(above, mode)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, mode)
    flush_directory(above)
