# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""An offline reader of the QEMU migration stream in a save image: reads bitmaps and descriptions, never a page.

Format: QEMU's ``migration/savevm.c``, ``migration/ram.c`` and ``docs/devel/migration/mapped-ram.rst``. Big-endian; all
offsets are bytes from the start of the file. The device state between RAM and the stream's end has no lengths in it and
is not read; the description (JSON) that QEMU puts at the very end names its sections.
"""

from __future__ import annotations

import array
import dataclasses
import json
import re
import struct
import sys
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._errors import ImageFormatError
from ansible_collections.vmops.qemu.plugins.module_utils._image.header import ImageFormat, SaveImageHeader
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_file import ImageFile

_MAGIC = b"QEVM\x00\x00\x00\x03"
_END_OF_STREAM = b"\x00\x06"  # QEMU_VM_EOF, QEMU_VM_VMDESCRIPTION
_SECTION_CONFIGURATION = 0x07
_SUBSECTION = 0x05
_CONFIGURATION = ("configuration/capabilities", "configuration/target-page-bits", "configuration/uuid")
_SECTION_STARTS = (0x01, 0x02, 0x03, 0x04)
_SECTION_FOOTER = 0x7E
_RAM_SECTION = re.compile(rb"\x01(.{4})\x03ram\x00{4}\x00\x00\x00\x04", re.DOTALL)  # id, name, instance, version 4
_RAM_SIZE = 0x04  # RAM_SAVE_FLAG_MEM_SIZE
_RAM_END = 0x10  # RAM_SAVE_FLAG_EOS
_MAPPED_RAM_HEADER = ">IQQQ"
_CAPABILITY_MAPPED_RAM = "mapped-ram"
_CAPABILITY_IGNORE_SHARED = "x-ignore-shared"
_LOW_BITS = 0x3FF  # of a RAM word: flags, none above 0x200; lengths are multiples of the page size, 1 KiB at least

_MAX_BEFORE_RAM = 1024 * 1024
_MAX_RAM_BLOCKS = 4096
_MAX_CAPABILITIES = 64
_MAX_RAM = 1 << 46
_MIN_PAGE = 1024
_MAX_PAGE = 1 << 30
_MAX_DESCRIPTION = 16 * 1024 * 1024
_MAX_SECTIONS = 65536
_SMALL_DESCRIPTION = 64 * 1024
_MAX_DIGITS = 20
_MAX_RAM_FLAGS = 8
#: Families of machine types whose pages have 4 KiB; others record theirs in the stream, or are old boards.
_MACHINES_WITH_4K_PAGES = ("pc-", "microvm", "pseries-", "s390-ccw-virtio-")
_BITMAP_CHUNK = 1024 * 1024
_COMPRESSION_MAGIC = {
    ImageFormat.GZIP: b"\x1f\x8b",
    ImageFormat.BZIP2: b"BZh",
    ImageFormat.XZ: b"\xfd7zXZ\x00",
    ImageFormat.LZOP: b"\x89LZO\x00",
    ImageFormat.ZSTD: b"\x28\xb5\x2f\xfd",
}


@dataclasses.dataclass(frozen=True)
class RamBlock:
    """A RAM block of the guest; ``used_length`` is bytes."""

    name: str
    used_length: int


@dataclasses.dataclass(frozen=True)
class MappedRamBlock(RamBlock):
    """A RAM block whose pages have fixed places in the file; sizes and offsets are bytes.

    ``present_pages`` is the number of pages that the bitmap promises; the others are zero.
    """

    page_size: int
    bitmap_offset: int
    pages_offset: int
    byte_order: str
    present_pages: int = 0

    @property
    def pages(self) -> int:
        """How many pages the block has."""
        return self.used_length // self.page_size

    @property
    def zero_pages(self) -> int:
        """How many pages are not in the file, because they are zero."""
        return self.pages - self.present_pages

    @property
    def bitmap_length(self) -> int:
        """Bytes of the bitmap: whole 64-bit words."""
        return -(-self.pages // 64) * 8

    @property
    def end(self) -> int:
        """The offset after the last page, where the next block starts."""
        return self.pages_offset + self.used_length

    def count_present(self, image: ImageFile, first: int, last: int) -> int:
        """How many of the pages from ``first`` up to ``last``, without it, are present; reads that part of the bitmap.

        :raises ImageAccessError: the file cannot be read.
        """
        present = 0
        while first < last:
            start = first // 64 * 8
            chunk_last = min(last, (start + _BITMAP_CHUNK) * 8)
            length = -(-chunk_last // 64) * 8 - start
            words = image.read(length, self.bitmap_offset + start).ljust(length, b"\0")
            if self.byte_order == "big":
                native = array.array("Q", words)
                native.byteswap()
                words = native.tobytes()
            bits = int.from_bytes(words, "little") >> (first - start * 8)
            present += bin(bits & ((1 << (chunk_last - first)) - 1)).count("1")
            first = chunk_last
        return present


@dataclasses.dataclass(frozen=True)
class DeviceSection:
    """A device's state in the stream. ``version`` is None for devices that QEMU does not describe."""

    name: str
    instance: int
    version: int | None


@dataclasses.dataclass(frozen=True)
class StreamFacts:
    """What a stream tells without a QEMU.

    ``sections`` is None where the stream does not end with its description; then ``end``, the byte of the file at which
    the stream ends, is None, too.
    """

    machine: str
    capabilities: list[str]
    ram_blocks: list[RamBlock]
    sections: list[DeviceSection] | None
    end: int | None = None

    @property
    def mapped_ram(self) -> bool:
        """Whether the stream was written with mapped-ram."""
        return _CAPABILITY_MAPPED_RAM in self.capabilities

    @property
    def memory(self) -> int:
        """All RAM blocks together, in bytes: the guest's memory, and some of devices and firmware."""
        return sum(block.used_length for block in self.ram_blocks)

    def as_result(self) -> dict[str, t.Any]:
        """For a module's result."""
        blocks = []
        for block in self.ram_blocks:
            shown: dict[str, t.Any] = {"name": block.name, "used_length": block.used_length}
            if isinstance(block, MappedRamBlock):
                for name in ("page_size", "bitmap_offset", "pages_offset", "present_pages", "zero_pages"):
                    shown[name] = getattr(block, name)
            blocks.append(shown)
        return {
            "machine": self.machine,
            "capabilities": self.capabilities,
            "ram_blocks": blocks,
            "sections": None if self.sections is None else [dataclasses.asdict(section) for section in self.sections],
            "end": self.end,
        }


def read_stream(path: str, header: SaveImageHeader) -> StreamFacts | None:
    """Read what the stream of the image at a path tells.

    The other parameter, what is returned and the errors are those of :func:`read_stream_of`.

    :raises ImageNotFoundError: there is no file.
    """
    with ImageFile.open(path) as image:
        return read_stream_of(image, header)


def read_stream_of(image: ImageFile, header: SaveImageHeader) -> StreamFacts | None:
    """Read what an open image's stream tells; None for a compressed one.

    :param header: the image's header, which says where and how the stream lies.
    :raises ImageAccessError: it cannot be read.
    :raises ImageFormatError: it is no stream of the header's format, or contradicts itself or the file's size.
    """
    path = image.path
    reader = _Reader(image, header.stream_offset)
    compression_magic = _COMPRESSION_MAGIC.get(header.format)
    if compression_magic is not None:
        if reader.take(len(compression_magic)) != compression_magic:
            raise ImageFormatError(path, f"the stream is not compressed with {header.format.label}, as the header says")
        return None
    machine, capabilities, page_size = _read_start(reader)
    mapped_ram = _CAPABILITY_MAPPED_RAM in capabilities
    if mapped_ram != header.mapped_ram:
        raise ImageFormatError(
            path,
            f"the stream was written {'with' if mapped_ram else 'without'} mapped-ram,"
            f" but the header says {header.format.label}",
        )
    section = _find_ram(reader)
    ram_blocks = _read_ram_blocks(reader, capabilities, header.byte_order, page_size)
    _read_ram_end(reader, section)
    return StreamFacts(machine, capabilities, ram_blocks, *_read_description(reader, padded=not mapped_ram))


def read_plain_head(head: ImageFile) -> StreamFacts:
    """What the first bytes of a plain stream tell: machine type and RAM blocks; ``sections`` is None.

    :param head: holds those bytes from its start on; its path is that of the image that they come from.
    :raises ImageFormatError: they are no plain QEMU stream, or end too early.
    """
    reader = _Reader(head, 0)
    machine, capabilities, page_size = _read_start(reader)
    if _CAPABILITY_MAPPED_RAM in capabilities:
        raise ImageFormatError(head.path, "the stream was written with mapped-ram, which cannot be compressed")
    section = _find_ram(reader)
    ram_blocks = _read_ram_blocks(reader, capabilities, sys.byteorder, page_size)
    _read_ram_end(reader, section)
    return StreamFacts(machine, capabilities, ram_blocks, None)


def _read_start(reader: _Reader) -> tuple[str, list[str], int]:
    """Machine name, recorded capabilities and page size, from the stream's first byte on."""
    start = reader.position
    if reader.take(len(_MAGIC)) != _MAGIC:
        raise ImageFormatError(reader.path, f"there is no QEMU stream (version 3) at byte {start}")
    return _read_configuration(reader)


class _Reader:
    """Reads forward from a position, within the file."""

    def __init__(self, image: ImageFile, position: int) -> None:
        self.image = image
        self.path = image.path
        self.position = position
        self.size = image.size

    def take(self, length: int) -> bytes:
        data = self.image.read(length, self.position)
        if len(data) < length:
            raise ImageFormatError(self.path, f"the stream is cut off at byte {self.size}")
        self.position += length
        return data

    def number(self, length: int) -> int:
        return int.from_bytes(self.take(length), "big")

    def text(self, length: int) -> str:
        return self.take(length).decode("utf-8", "backslashreplace")


def _read_configuration(reader: _Reader) -> tuple[str, list[str], int]:
    """Machine name, recorded capabilities and page size (0: not known); ends before the first unknown thing."""
    if reader.number(1) != _SECTION_CONFIGURATION:
        raise ImageFormatError(reader.path, "the stream does not name its machine type")
    length = reader.number(4)
    if not 0 < length < 256:
        raise ImageFormatError(reader.path, f"the stream's machine type has an impossible length: {length}")
    machine = reader.text(length)
    capabilities: list[str] = []
    page_size = 4096 if machine.startswith(_MACHINES_WITH_4K_PAGES) else 0
    while True:
        start = reader.position
        if reader.number(1) != _SUBSECTION:
            break
        name, version = reader.text(reader.number(1)), reader.number(4)
        if name not in _CONFIGURATION:
            break
        if version != 1:
            raise ImageFormatError(reader.path, f"the stream's {name!r} has version {version}, only 1 is known")
        if name == "configuration/capabilities":
            count = reader.number(4)
            if count > _MAX_CAPABILITIES:
                raise ImageFormatError(reader.path, f"the stream records an impossible number of capabilities: {count}")
            capabilities = [reader.text(reader.number(1)) for _index in range(count)]
        elif name == "configuration/target-page-bits":
            page_size = 1 << min(reader.number(4), _MAX_PAGE.bit_length())
        else:
            reader.take(16)
    reader.position = start
    return machine, capabilities, page_size


def _find_ram(reader: _Reader) -> bytes:
    """Go to the inside of the RAM section; commands and early device sections, without lengths, may come before.

    :returns: the section's id.
    """
    window = reader.image.read(_MAX_BEFORE_RAM, reader.position)
    match = _RAM_SECTION.search(window)
    if not match:
        raise ImageFormatError(reader.path, "the stream has no RAM section")
    reader.position += match.end()
    return match.group(1)


def _read_ram_blocks(reader: _Reader, capabilities: list[str], byte_order: str, page_size: int) -> list[RamBlock]:
    """The RAM blocks of the RAM section's set-up part, and what mapped-ram keeps between them.

    :param page_size: that of the machine type; 0 where it is not known: then all blocks must have the same.
    """
    word = reader.number(8)
    remaining = word & ~_LOW_BITS
    if word & _LOW_BITS != _RAM_SIZE:
        raise ImageFormatError(reader.path, "the RAM section does not begin with the size of the guest's memory")
    if not 0 < remaining <= _MAX_RAM:
        raise ImageFormatError(reader.path, f"the stream says that the guest has {remaining} bytes of RAM")
    blocks: dict[str, RamBlock] = {}
    while remaining > 0:
        name = reader.text(reader.number(1))
        used_length = reader.number(8)
        if not name or name in blocks or len(blocks) >= _MAX_RAM_BLOCKS or not 0 < used_length <= remaining:
            raise ImageFormatError(reader.path, f"RAM block {name!r} with {used_length} bytes makes no sense")
        remaining -= used_length
        if _CAPABILITY_IGNORE_SHARED in capabilities:
            reader.take(8)  # the block's guest address
        if _CAPABILITY_MAPPED_RAM in capabilities:
            block = _read_mapped_block(reader, name, used_length, byte_order, page_size)
            blocks[name], page_size = block, block.page_size
        else:
            blocks[name] = RamBlock(name, used_length)
    return list(blocks.values())


def _read_ram_end(reader: _Reader, section: bytes) -> None:
    """See that the RAM section's set-up part ends where its blocks do: only there are all of their numbers right."""
    for _word in range(_MAX_RAM_FLAGS):
        word = reader.number(8)
        if word == _RAM_END:
            mark = reader.number(1)
            # Machine types of QEMU 2.3 and before have no footers.
            if mark in _SECTION_STARTS or (mark == _SECTION_FOOTER and reader.take(4) == section):
                return
            break
        if not word or word & ~_LOW_BITS:
            break
    raise ImageFormatError(reader.path, f"the RAM section does not end after its blocks, at byte {reader.position}")


def _read_mapped_block(reader: _Reader, name: str, used_length: int, byte_order: str, page_size: int) -> MappedRamBlock:
    layout = struct.unpack(_MAPPED_RAM_HEADER, reader.take(struct.calcsize(_MAPPED_RAM_HEADER)))
    version, stated_page_size, bitmap_offset, pages_offset = layout
    if version != 1:
        raise ImageFormatError(reader.path, f"RAM block {name!r} has mapped-ram version {version}, only 1 is known")
    if not _MIN_PAGE <= stated_page_size <= _MAX_PAGE or used_length % stated_page_size:
        raise ImageFormatError(reader.path, f"RAM block {name!r} has an impossible page size: {stated_page_size}")
    if stated_page_size != (page_size or stated_page_size):
        # QEMU 10.0 believes it, takes the bitmap for longer or shorter than it is, and loads other pages.
        raise ImageFormatError(
            reader.path, f"RAM block {name!r} has the page size {stated_page_size}, but the VM's is {page_size}"
        )
    block = MappedRamBlock(name, used_length, stated_page_size, bitmap_offset, pages_offset, byte_order)
    if bitmap_offset != reader.position or not bitmap_offset + block.bitmap_length <= pages_offset:
        raise ImageFormatError(
            reader.path, f"the bitmap of RAM block {name!r} is not in its place, or overlaps the pages"
        )
    if block.end > reader.size:
        raise ImageFormatError(
            reader.path,
            f"the file ends at byte {reader.size}, inside RAM block {name!r} (bytes {pages_offset} to {block.end})",
        )
    reader.position = block.end
    if block.count_present(reader.image, block.pages, block.bitmap_length * 8):
        raise ImageFormatError(reader.path, f"the bitmap of RAM block {name!r} has pages beyond the last one")
    present = block.count_present(reader.image, 0, block.pages)
    return dataclasses.replace(block, present_pages=present)


def _read_description(reader: _Reader, padded: bool) -> tuple[list[DeviceSection] | None, int | None]:
    """The sections that the description at the end of the file names, and where it ends; None without one.

    :param padded: allow zeros after it, as older writers leave after plain streams.
    """
    start = max(reader.position, reader.size - _MAX_DESCRIPTION)
    tail = reader.image.read(reader.size - start, start)
    if padded:
        tail = tail.rstrip(b"\0")
    # JSON holds neither 0x00 nor 0x06: the last such pair is the one before the length, or in the length itself.
    position = len(tail)
    for _attempt in range(4):
        position = tail.rfind(_END_OF_STREAM, 0, position)
        if position < 0:
            return None, None
        text = position + len(_END_OF_STREAM) + 4
        if text + int.from_bytes(tail[text - 4 : text], "big") == len(tail):
            sections = _parse_description(tail[text:])
            return sections, None if sections is None else start + len(tail)
    return None, None


def _parse_description(text: bytes) -> list[DeviceSection] | None:
    """The ``devices`` of the description; None where it is not QEMU's."""

    def keep_little(pairs: list[tuple[str, t.Any]]) -> dict[str, t.Any]:
        return {key: value for key, value in pairs if key in ("devices", "name", "instance_id", "version")}

    def number(digits: str) -> int:
        if len(digits) > _MAX_DIGITS:  # Python before 3.9.14 takes hours for millions
            raise ValueError("not a number of QEMU's")
        return int(digits)

    # QEMU writes some words for each thing; thousands of things in few bytes would take many times their memory.
    if len(text) > _SMALL_DESCRIPTION and (
        (text.count(b"[") + text.count(b"{")) * 16 > len(text) or text.count(b",") * 8 > len(text)
    ):
        return None
    try:
        description = json.loads(text.decode("ascii"), object_pairs_hook=keep_little, parse_int=number)
        sections = [(device["name"], device["instance_id"], device.get("version")) for device in description["devices"]]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    if len(sections) > _MAX_SECTIONS or not all(
        isinstance(name, str) and isinstance(instance, int) and isinstance(version, (int, type(None)))
        for name, instance, version in sections
    ):
        return None
    return [
        # An escaped half of a character could not be shown.
        DeviceSection(name.encode("utf-8", "backslashreplace").decode(), instance, version)
        for name, instance, version in sections
    ]
