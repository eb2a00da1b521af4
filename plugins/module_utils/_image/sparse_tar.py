# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A tar file with one member in the sparse format 1.0 of pax headers (GNU tar's manual, "Storing Sparse Files").

Holes are not in it, only a map of them.
"""

from __future__ import annotations

import os
import stat
import tarfile
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._errors import ImageFormatError

BLOCK = tarfile.BLOCKSIZE
PIECE = 1024 * 1024
"""Bytes that are read or compared at a time."""

_MAX_PAX_HEADER = 1024 * 1024
_MAX_RANGES = 1 << 26
#: As many are kept of a map for a look at the head alone, which stands in the first one or two of them.
_HEAD_RANGES = 4096
#: Bytes of two numbers in the map at most.
_MAX_ENTRY = 64

Ranges = t.List[t.Tuple[int, int]]
"""Where a file has data: offset and length of each range, in bytes, in order."""


def chunks_of(ranges: Ranges, size: int) -> list[Ranges]:
    """The ranges, cut into chunks of ``size`` bytes of data; at least one."""
    chunks: list[Ranges] = [[]]
    room = size
    for offset, length in ranges:
        while length > 0:
            if room == 0:
                chunks.append([])
                room = size
            part = min(length, room)
            chunks[-1].append((offset, part))
            offset, length, room = offset + part, length - part, room - part
    return chunks


def member_head(name: str, facts: os.stat_result, ranges: Ranges) -> bytes:
    """All that stands before the data: the headers and the map of data ranges."""
    numbers = [len(ranges), *(number for each in ranges for number in each)]
    sparse_map = "".join(f"{number}\n" for number in numbers).encode()
    sparse_map += bytes(-len(sparse_map) % BLOCK)
    member = tarfile.TarInfo(f"GNUSparseFile.0/{name}")
    member.size = len(sparse_map) + sum(length for _offset, length in ranges)
    member.mode = stat.S_IMODE(facts.st_mode)
    member.uid, member.gid = facts.st_uid, facts.st_gid
    member.mtime = facts.st_mtime
    member.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": name,
        "GNU.sparse.realsize": str(facts.st_size),
    }
    return member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape") + sparse_map


def member_end(ranges: Ranges) -> bytes:
    """All that stands behind the data: the rest of its last block, and the end of the archive."""
    return bytes(-sum(length for _offset, length in ranges) % BLOCK + 2 * BLOCK)


class SparseTarReader:
    """Reads an expanded archive from its start; ``size`` is the image's, ``mtime`` in seconds since the epoch."""

    def __init__(self, path: str, stream: t.IO[bytes], head: bool = False) -> None:
        """:param head: keep no more of the map than the image's head needs."""
        self._path = path
        self._stream = stream
        try:
            records = self._pax_records()
            tarfile.TarInfo.frombuf(self._take(BLOCK), "utf-8", "surrogateescape")
            if (records.get("GNU.sparse.major"), records.get("GNU.sparse.minor")) != ("1", "0"):
                raise ValueError("no sparse member")
            self.size = int(records["GNU.sparse.realsize"])
            self.mtime = float(records.get("mtime", 0))
            self.ranges = self._map(_HEAD_RANGES if head else _MAX_RANGES)
        except (ValueError, KeyError, OverflowError, tarfile.TarError) as error:
            raise ImageFormatError(path, f"this is not an archive of a save image ({error})") from error

    def pieces(self, most: int, ranges: Ranges | None = None) -> t.Iterator[tuple[int, bytes]]:
        """The image's data: offset and bytes, at most ``most`` at a time; raises ImageFormatError.

        :param ranges: the first of the image's ranges, or parts of them; all when it is not given.
        """
        for offset, length in self.ranges if ranges is None else ranges:
            while length > 0:
                data = self._take(min(length, most))
                yield offset, data
                offset, length = offset + len(data), length - len(data)

    def finish(self) -> None:
        """Read what follows the data, up to the end, so that the tool checks its own checksums."""
        while True:
            data = self._stream.read(PIECE)
            if data.strip(b"\0"):
                raise ImageFormatError(self._path, "something follows the image in it")
            if not data:
                return

    def _take(self, length: int) -> bytes:
        data = self._stream.read(length)
        if len(data) < length:
            raise ImageFormatError(self._path, "this is not an archive, or it is cut off")
        return data

    def _pax_records(self) -> dict[str, str]:
        header = tarfile.TarInfo.frombuf(self._take(BLOCK), "utf-8", "surrogateescape")
        if header.type != tarfile.XHDTYPE or not 0 < header.size <= _MAX_PAX_HEADER:
            raise ValueError("no pax header")
        data = self._take(header.size)
        self._take(-header.size % BLOCK)
        records = {}
        while data:
            length = int(data.partition(b" ")[0])
            key, _equals, value = data[:length].partition(b" ")[2].rstrip(b"\n").partition(b"=")
            records[key.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
            if length < 1:
                raise ValueError("broken pax header")
            data = data[length:]
        return records

    def _map(self, most: int) -> Ranges:
        """The map, of which so many ranges are kept."""
        consumed = 0

        def number() -> int:
            nonlocal consumed
            line = self._stream.readline(32)
            consumed += len(line)
            if not line.endswith(b"\n") or not line[:-1].isdigit():
                raise ValueError("broken map of holes")
            return int(line)

        count = number()
        if count > _MAX_RANGES:
            raise ValueError("too many holes")
        ranges = []
        position = 0
        for _index in range(min(count, most)):
            offset, length = number(), number()
            if offset < position or offset + length > self.size:
                raise ValueError("ranges that overlap or are beyond the image's end")
            position = offset + length
            if length:  # GNU tar marks the end with an empty one
                ranges.append((offset, length))
        if count > most:
            self._skip_numbers(2 * (count - most), consumed)
        else:
            self._take(-consumed % BLOCK)
        return ranges

    def _skip_numbers(self, lines: int, consumed: int) -> None:
        """Read on behind the rest of the map, block by block, without a look at its numbers."""
        most = lines * _MAX_ENTRY
        part = self._take(-consumed % BLOCK)
        while True:
            lines -= part.count(b"\n")
            if lines <= 0:
                return
            most -= len(part)
            if most < 0:
                raise ValueError("broken map of holes")
            part = self._take(BLOCK)
