# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The disk's limit: O_DIRECT, from as many threads as a save has channels, with a flush."""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

_CHUNK = 1 << 20  # bytes


def _in_threads(path: Path, flags: int, threads: int, chunks: int, move: Callable[[int, mmap.mmap, int], int]) -> None:
    errors: list[BaseException] = []

    def work(first: int) -> None:
        try:
            with mmap.mmap(-1, _CHUNK) as buffer:  # at a page's begin, as O_DIRECT wants it
                buffer.write(os.urandom(_CHUNK))
                for chunk in range(first, chunks, threads):
                    if move(descriptor, buffer, chunk * _CHUNK) != _CHUNK:
                        raise OSError(f"short transfer at {chunk} MiB of {path}")
        except BaseException as error:
            errors.append(error)

    descriptor = os.open(path, flags | os.O_DIRECT, 0o600)
    try:
        workers = [threading.Thread(target=work, args=[first]) for first in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if errors:
            raise errors[0]
        if flags & os.O_WRONLY:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write(path: Path, mib: int, threads: int) -> float:
    """Seconds until that much random data is durable in a new file."""
    started = time.monotonic()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    _in_threads(path, flags, threads, mib, lambda fd, buffer, at: os.pwritev(fd, [buffer], at))
    return time.monotonic() - started


def read(path: Path, mib: int, threads: int) -> float:
    """Seconds to read it."""
    started = time.monotonic()
    _in_threads(path, os.O_RDONLY, threads, mib, lambda fd, buffer, at: os.preadv(fd, [buffer], at))
    return time.monotonic() - started
