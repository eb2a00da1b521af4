# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Data in the memory of a large guest which its program does not reach: written by the host, into QEMU's mapping."""

from __future__ import annotations

import os
from pathlib import Path

#: Of random data; the same is written again and again, further apart than any compressor looks back.
CHUNK_MIB = 64


class Fill:
    """What the memory of one guest holds from some address on."""

    def __init__(self, memory_mib: int, from_mib: int) -> None:
        """Memory of this size is filled from there on, both in MiB."""
        self._memory_mib = memory_mib
        self._from_mib = from_mib
        self._chunk = os.urandom(CHUNK_MIB << 20)

    def write(self, pid: int) -> None:
        """Write it. Raises RuntimeError where the QEMU has no such memory."""
        with open(f"/proc/{pid}/mem", "wb", buffering=0) as memory:
            for position, size in self._pieces(pid):
                memory.seek(position)
                if memory.write(self._chunk[:size]) != size:
                    raise RuntimeError(f"the memory of QEMU {pid} could not be written")

    def require(self, pid: int) -> None:
        """Raises RuntimeError where the memory holds anything else, of which the first page of each chunk is seen."""
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            for position, _size in self._pieces(pid):
                memory.seek(position)
                if memory.read(4096) != self._chunk[:4096]:
                    raise RuntimeError(f"the memory of QEMU {pid} is not what it was")

    def _pieces(self, pid: int) -> list[tuple[int, int]]:
        """Address in QEMU, and bytes."""
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            start, end = (int(number, 16) for number in line.split()[0].split("-"))
            if end - start == self._memory_mib << 20:
                first = start + (self._from_mib << 20)
                return [(at, min(CHUNK_MIB << 20, end - at)) for at in range(first, end, CHUNK_MIB << 20)]
        raise RuntimeError(f"QEMU {pid} has no mapping of {self._memory_mib} MiB")
