# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where everything is in a good save image, read without the code under test, so that the two cannot err together.

Written after docs/image-format.md. Regions are half-open ranges of bytes, counted from the start of the file.
"""

from __future__ import annotations

import dataclasses
import os
import struct
from pathlib import Path

MIB = 1024 * 1024
HEADER_SIZE = 92
#: The words of the header by their names, each four bytes.
WORDS = {
    "version": 16,
    "data_len": 20,
    "was_running": 24,
    "compressed": 28,
    "cookie_offset": 32,
    "features": 36,
    "checkpoint": 88,
}
FORMATS = ("raw", "gzip", "bzip2", "xz", "lzop", "zstd", "sparse")

Range = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Block:
    """A RAM block; ``row`` is where its name, length and mapped-ram header are, ``numbers`` where each number is."""

    name: str
    length: int
    row: Range
    numbers: dict[str, Range]
    page_size: int = 0
    bitmap: Range = (0, 0)
    pages: Range = (0, 0)

    @property
    def page_count(self) -> int:
        return self.length // self.page_size


@dataclasses.dataclass
class Layout:
    """A good image's regions by name; a region may lie in several places."""

    path: Path
    size: int
    version: int
    format: str
    stream: int
    regions: dict[str, list[Range]]
    blocks: list[Block] = dataclasses.field(default_factory=list)

    @property
    def sparse(self) -> bool:
        return self.format == "sparse"

    @property
    def compressed(self) -> bool:
        return self.format not in ("raw", "sparse")

    def read(self, where: Range) -> bytes:
        """The bytes of a region."""
        with self.path.open("rb") as file:
            file.seek(where[0])
            return file.read(where[1] - where[0])

    def only(self, region: str) -> Range:
        """The one place of a region."""
        (where,) = self.regions[region]
        return where

    def text(self, region: str) -> str:
        """A region's text."""
        return self.read(self.only(region)).decode()

    def present(self, block: Block) -> list[int]:
        """The pages that the bitmap promises."""
        bits = int.from_bytes(self.read(block.bitmap), "little")
        return [page for page in range(block.page_count) if bits >> page & 1]


class _Cursor:
    def __init__(self, data: bytes, position: int) -> None:
        self.data = data
        self.position = position

    def take(self, length: int) -> bytes:
        piece = self.data[self.position : self.position + length]
        assert len(piece) == length
        self.position += length
        return piece

    def number(self, length: int) -> int:
        return int.from_bytes(self.take(length), "big")

    def text(self) -> str:
        return self.take(self.number(1)).decode()

    def here(self, length: int) -> Range:
        return self.position, self.position + length


def read_layout(path: Path) -> Layout:
    """The regions of an image that is known to be good; written on this host, so its words are this host's."""
    data = path.read_bytes()
    words = {name: struct.unpack_from("=I", data, offset)[0] for name, offset in WORDS.items()}
    stream = HEADER_SIZE + words["data_len"]
    cookie = words["cookie_offset"]
    xml_end = data.index(b"\0", HEADER_SIZE)
    regions: dict[str, list[Range]] = {"magic": [(0, 16)], "unused": [(40, WORDS["checkpoint"])]}
    regions.update({name: [(offset, offset + 4)] for name, offset in WORDS.items()})
    regions.update(xml=[(HEADER_SIZE, xml_end)], xml_end=[(xml_end, xml_end + 1)])
    text_end = xml_end + 1
    if cookie:
        cookie_end = data.index(b"\0", HEADER_SIZE + cookie)
        regions.update(cookie=[(HEADER_SIZE + cookie, cookie_end)], cookie_end=[(cookie_end, cookie_end + 1)])
        text_end = cookie_end + 1
    regions["padding"] = [(text_end, stream)]
    image_format = "sparse" if words["features"] else FORMATS[words["compressed"]]
    layout = Layout(path, len(data), words["version"], image_format, stream, regions)
    if layout.compressed:
        regions["compressed_stream"] = [(stream, layout.size)]
    else:
        _read_plain(layout, data)
    return layout


def _read_plain(layout: Layout, data: bytes) -> None:
    regions = layout.regions
    cursor = _Cursor(data, layout.stream)
    regions["stream_magic"] = [cursor.here(8)]
    assert cursor.take(8) == b"QEVM\0\0\0\3"
    regions["machine_mark"] = [cursor.here(1)]
    assert cursor.number(1) == 7
    regions["machine_length"] = [cursor.here(4)]
    length = cursor.number(4)
    regions["machine"] = [cursor.here(length)]
    cursor.take(length)
    if layout.sparse:
        # subsection, text name, version, count, texts
        start = cursor.position
        assert cursor.number(1) == 5
        assert cursor.text() == "configuration/capabilities"
        assert cursor.number(4) == 1
        regions["capability_count"] = [cursor.here(4)]
        for _index in range(cursor.number(4)):
            cursor.text()
        regions["capabilities"] = [(start, cursor.position)]
    ram = data.index(b"\x03ram\0\0\0\0\0\0\0\4", cursor.position) - 5
    regions["before_ram"] = [(cursor.position, ram)] if ram > cursor.position else []
    section = data[ram + 1 : ram + 5]
    cursor.position = ram
    regions["ram_section"] = [cursor.here(17)]
    cursor.take(17)
    regions["ram_total"] = [cursor.here(8)]
    remaining = cursor.number(8) & ~0x3FF
    while remaining:
        block = _read_block(cursor, layout.sparse)
        layout.blocks.append(block)
        remaining -= block.length
    regions["block_rows"] = [block.row for block in layout.blocks]
    if layout.sparse:
        regions["bitmaps"] = [block.bitmap for block in layout.blocks]
        regions["pages"] = [
            (block.pages[0] + page * block.page_size, block.pages[0] + (page + 1) * block.page_size)
            for block in layout.blocks
            for page in layout.present(block)
        ]
        regions["gaps"] = [(block.bitmap[1], block.pages[0]) for block in layout.blocks]
    _read_ram_parts(cursor, layout, section)
    _read_end(cursor, layout)


def _read_block(cursor: _Cursor, mapped: bool) -> Block:
    start = cursor.position
    numbers = {"name_length": cursor.here(1)}
    name = cursor.text()
    numbers["length"] = cursor.here(8)
    length = cursor.number(8)
    if not mapped:
        return Block(name, length, (start, cursor.position), numbers)
    values = {}
    for number, size in (("mapped_version", 4), ("page_size", 8), ("bitmap_offset", 8), ("pages_offset", 8)):
        numbers[number] = cursor.here(size)
        values[number] = cursor.number(size)
    row = (start, cursor.position)
    bitmap = values["bitmap_offset"], values["bitmap_offset"] + -(-length // values["page_size"] // 64) * 8
    pages = values["pages_offset"], values["pages_offset"] + length
    cursor.position = pages[1]
    return Block(name, length, row, numbers, values["page_size"], bitmap, pages)


def _read_ram_parts(cursor: _Cursor, layout: Layout, section: bytes) -> None:
    """The parts of the RAM section, up to the first section of a device."""
    marks: list[Range] = []
    words: list[Range] = []
    pages: list[Range] = []
    while True:
        start = cursor.position
        while True:
            word_start = cursor.position
            word = cursor.number(8)
            if word & 0x10:
                break
            if not word & 0x20:
                cursor.text()
            words.append((word_start, cursor.position))
            if word & 0x02:
                words[-1] = (word_start, cursor.position + 1)
                assert cursor.number(1) == 0
            else:
                assert word & 0x08
                pages.append(cursor.here(4096))
                cursor.take(4096)
        start = start if not words else word_start
        assert cursor.number(1) == 0x7E
        assert cursor.take(4) == section
        marks.append((start, cursor.position))
        if cursor.data[cursor.position] not in (2, 3) or cursor.data[cursor.position + 1 :][:4] != section:
            break
        marks.append(cursor.here(5))
        cursor.take(5)
    layout.regions["ram_marks"] = marks
    if not layout.sparse:
        layout.regions.update(page_words=words, pages=pages)


def _read_end(cursor: _Cursor, layout: Layout) -> None:
    end = cursor.data.rstrip(b"\0").rindex(b"\0\6")
    length = int.from_bytes(cursor.data[end + 2 : end + 6], "big")
    assert end + 6 + length <= layout.size
    layout.regions.update(
        devices=[(cursor.position, end)],
        end=[(end, end + 1)],
        description_mark=[(end + 1, end + 2)],
        description_length=[(end + 2, end + 6)],
        description=[(end + 6, end + 6 + length)],
    )
    if end + 6 + length < layout.size:
        layout.regions["after"] = [(end + 6 + length, layout.size)]


def data_ranges(path: Path) -> list[Range]:
    """What of a file is no hole."""
    found = []
    with path.open("rb") as file:
        position, size = 0, os.fstat(file.fileno()).st_size
        while position < size:
            try:
                position = os.lseek(file.fileno(), position, os.SEEK_DATA)
            except OSError:  # only a hole is left
                break
            end = os.lseek(file.fileno(), position, os.SEEK_HOLE)
            found.append((position, end))
            position = end
    return found
