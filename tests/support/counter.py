# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The counter guest (tests/guests/counter/counter.S): boots in a second and says on its serial port who it is."""

from __future__ import annotations

import os
import struct
import tempfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Optional, Union

from .guest import REPOSITORY, SOURCES, Guest, GuestError, escaped, run

_SOURCE = SOURCES / "tests" / "guests" / "counter" / "counter.S"
_IMAGE_SIZE = 1474560  # bytes, a 1.44 MB floppy; a disk of this size does as well
_SIGNATURE_AT = 0x180
_SIGNATURE = b"VMOPSCTR"
_PAGE = 4096  # bytes
_TICKS = 100  # a second


def build_counter() -> Path:
    """Assemble the counter guest, unless that was done since its source changed; the path of its boot image."""
    image = REPOSITORY / "build" / "guests" / "counter.img"
    if image.exists() and image.stat().st_mtime >= _SOURCE.stat().st_mtime:
        return image
    image.parent.mkdir(parents=True, exist_ok=True)
    # In a directory of its own and renamed at the end: tests run side by side
    with tempfile.TemporaryDirectory(dir=image.parent) as scratch:
        objects, binary = os.path.join(scratch, "counter.o"), os.path.join(scratch, "counter.img")
        run(["as", "--32", "-o", objects, str(_SOURCE)], "counter guest")
        linked = ["-Ttext", "0x7c00", "--oformat", "binary", "-o", binary, objects]
        run(["ld", "-m", "elf_i386", *linked], "counter guest")
        os.truncate(binary, _IMAGE_SIZE)
        os.replace(binary, image)
    return image


def expected_checksum(seed: int, block_mib: int) -> str:
    """The checksum that the guest must give for its block, computed here (slowly: some seconds for a MiB)."""
    value, total = seed, 0x811C9DC5
    for _word in range(block_mib << 18):
        value ^= (value << 13) & 0xFFFFFFFF
        value ^= value >> 17
        value ^= (value << 5) & 0xFFFFFFFF
        total = (total * 0x01000193 + value) & 0xFFFFFFFF
    return f"{total:08x}"


class CounterGuest(Guest):
    """A guest of 4 KiB that fills a block of its memory, counts, and dirties another region when told."""

    kind: ClassVar[str] = "counter"
    boot_line: ClassVar[str] = r"boot block=\d+\r?$"
    checksum_command: ClassVar[bytes] = b"c"

    def __init__(
        self,
        workdir: Union[str, os.PathLike[str]],
        name: str,
        *,
        memory_mib: int = 64,
        block_mib: int = 16,
        dirty_mib: int = 0,
        dirty_rate_mib: int = 0,
        line_ms: int = 120,
        seed: Optional[int] = None,
        uuid: Optional[str] = None,
        extra_args: Iterable[str] = (),
        qemu: str = "qemu-system-x86_64",
        machine: str = "pc",
        accel: str = "tcg",
        observer: bool = False,
    ) -> None:
        """Describe the guest.

        block_mib: size of the checksummed block; dirty_mib: size of the region dirtied after "d"; dirty_rate_mib:
        how much of it is dirtied in a second (one word in each page), 0 as much as the CPU can; line_ms: time
        between two lines; seed: of the block's pattern, from the name if not given.
        """
        super().__init__(
            workdir,
            name,
            memory_mib=memory_mib,
            uuid=uuid,
            extra_args=extra_args,
            qemu=qemu,
            machine=machine,
            accel=accel,
            observer=observer,
        )
        self.block_mib = block_mib
        self.dirty_mib = dirty_mib
        self.dirty_rate_mib = dirty_rate_mib
        self.line_ms = line_ms
        self.seed = seed if seed is not None else zlib.crc32(name.encode()) or 1
        # The block begins at 1 MiB, and the firmware's tables are in the last one. From some size on, part of the
        # memory moves above 4 GiB, where the guest does not reach: on pc from 3.5 GiB, on q35 from 2.75 GiB.
        low = memory_mib
        if "q35" in machine and memory_mib >= 2816:
            low = 2048
        elif memory_mib >= 3584:
            low = 3072
        if block_mib + dirty_mib + 2 > low:
            raise GuestError(f"{block_mib} + {dirty_mib} MiB do not fit into {memory_mib} MiB ({low} below 4 GiB)")
        if self.line_ms < 10 or not 0 < self.seed < 1 << 32:
            raise GuestError("line_ms must be 10 at least, seed a 32-bit number that is not 0")
        self.boot_image = self.workdir / "boot.img"

    def config(self) -> dict[str, Any]:
        """The constructor's arguments beside workdir."""
        return {
            **super().config(),
            "block_mib": self.block_mib,
            "dirty_mib": self.dirty_mib,
            "dirty_rate_mib": self.dirty_rate_mib,
            "line_ms": self.line_ms,
            "seed": self.seed,
        }

    def prepare(self) -> None:
        """Build the boot image and patch this guest's parameters into its own copy."""
        super().prepare()
        image = bytearray(build_counter().read_bytes())
        end = _SIGNATURE_AT + len(_SIGNATURE)
        if image[_SIGNATURE_AT:end] != _SIGNATURE:
            raise GuestError(f"no signature in {build_counter()}")
        rate = -(-self.dirty_rate_mib * (1 << 20) // (_PAGE * _TICKS))
        values = (self.block_mib, self.dirty_mib, self.seed, max(1, self.line_ms * _TICKS // 1000), rate)
        struct.pack_into("<5I", image, end, *values)
        # As it is, where it is right already: a disk that was written anew is not the one of a saved guest any more.
        if self.boot_image.exists() and self.boot_image.read_bytes() == image:
            return
        new = self.boot_image.with_suffix(".new")
        new.write_bytes(image)
        os.replace(new, self.boot_image)

    def device_args(self) -> list[str]:
        """The boot disk: read-only, so that a second QEMU may open it while the first still has it."""
        drive = f"if=none,id=boot,format=raw,readonly=on,file={escaped(self.boot_image)}"
        return ["-drive", drive, "-device", "virtio-blk-pci,drive=boot,bootindex=0"]

    def dirty(self, on: bool, timeout: float = 10.0) -> None:
        """Start or stop dirtying, and wait up to timeout seconds for the guest to say so."""
        word = "on" if on else "off"
        self.command(b"d" if on else b"s", f"^dirty={word} counter=", timeout)

    def power_off(self, timeout: float = 10.0) -> None:
        """Have the guest power its machine off, and wait up to timeout seconds for QEMU to end."""
        self.send(b"p")
        self.wait_exit(timeout)


class NamelessGuest(CounterGuest):
    """A counter guest of whose name QEMU does not know."""

    def argv(self, incoming: Union[bool, str] = False) -> list[str]:
        """The command without the name."""
        argv = super().argv(incoming)
        place = argv.index("-name")
        return argv[:place] + argv[place + 2 :]

    @property
    def shown_name(self) -> str:
        """Nothing."""
        return ""
