# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A copy of a good image that is spoilt and mended again, over and over."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from corpus.layout import Layout, Range, data_ranges
from corpus.mutations import Mutation

_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # of linux/falloc.h
_libc = ctypes.CDLL(None, use_errno=True)


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a file with its holes."""
    with source.open("rb") as old, target.open("wb") as new:
        for start, end in data_ranges(source):
            os.pwrite(new.fileno(), os.pread(old.fileno(), end - start, start), start)
        os.truncate(new.fileno(), os.fstat(old.fileno()).st_size)
    target.chmod(0o600)


def punch_hole(descriptor: int, where: Range) -> None:
    """Make a range a hole; raises OSError."""
    start, length = ctypes.c_int64(where[0]), ctypes.c_int64(where[1] - where[0])
    if _libc.fallocate(descriptor, _KEEP_SIZE | _PUNCH_HOLE, start, length) != 0:
        raise OSError(ctypes.get_errno(), "fallocate")


class SpoiltImage:
    """A copy of a good image; where it can, it is mended in place."""

    def __init__(self, layout: Layout, path: Path) -> None:
        self.path = path
        self._layout = layout
        self._data = data_ranges(layout.path)
        self._old: list[tuple[int, bytes]] = []
        self._copy = True
        self.mend()

    def spoil(self, mutation: Mutation) -> Path:
        """Do it to the copy, and return its path."""
        self._copy = bool(mutation.holes) or mutation.size is not None or mutation.move_stream is not None
        with self.path.open("r+b") as file:
            descriptor = file.fileno()
            if mutation.move_stream is not None:
                tail = os.pread(descriptor, self._layout.size - self._layout.stream, self._layout.stream)
                os.pwrite(descriptor, tail, mutation.move_stream)
            if mutation.size is not None:
                os.truncate(descriptor, mutation.size)
            for hole in mutation.holes:
                punch_hole(descriptor, hole)
            for offset, data in mutation.writes:
                end = offset + len(data)
                # What is written into a hole, or beyond the end, does not become one again.
                self._copy = self._copy or not any(start <= offset and end <= stop for start, stop in self._data)
                self._old.append((offset, b"" if self._copy else os.pread(descriptor, len(data), offset)))
                assert os.pwrite(descriptor, data, offset) == len(data)
        return self.path

    def mend(self, copy: bool = False) -> None:
        """Make the copy good again; ``copy``: also where it is gone."""
        if self._copy or copy:
            copy_sparse(self._layout.path, self.path)
        else:
            with self.path.open("r+b") as file:
                for offset, data in reversed(self._old):
                    os.pwrite(file.fileno(), data, offset)
        self._old, self._copy = [], False
