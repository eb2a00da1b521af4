# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import dataclasses
import json
import os
import struct
import sys
import time
import tracemalloc

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._errors import ImageFormatError, ImageNotFoundError
from ansible_collections.vmops.qemu.plugins.module_utils._image import stream as stream_module
from ansible_collections.vmops.qemu.plugins.module_utils._image.header import ImageFormat, SaveImageHeader
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_file import ImageFile, read_image_head
from ansible_collections.vmops.qemu.plugins.module_utils._image.stream import (
    DeviceSection,
    MappedRamBlock,
    RamBlock,
    StreamFacts,
    read_stream,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.verify import structure_problems
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

PAGE = 4096
STREAM = 65536


def read(path, **changes) -> StreamFacts | None:
    return read_stream(str(path), dataclasses.replace(read_image_head(str(path)).header, **changes))


def facts_of(path) -> StreamFacts:
    facts = read(path)
    assert facts is not None
    return facts


# --- what QEMU wrote ---


@pytest.mark.parametrize("name", ["sparse.save", "sparse-paused.save"])
def test_a_sparse_stream_of_qemu(golden, name):
    facts = facts_of(golden / name)
    assert facts.machine == "pc-i440fx-10.0"
    assert facts.capabilities == ["mapped-ram"]
    assert facts.mapped_ram
    blocks = [block for block in facts.ram_blocks if isinstance(block, MappedRamBlock)]
    assert [(block.name, block.used_length, block.present_pages, block.zero_pages) for block in blocks] == [
        ("pc.ram", 16 << 20, 72, 4024),
        ("pc.bios", 256 << 10, 47, 17),
        ("pc.rom", 128 << 10, 0, 32),
    ]
    assert all(block.page_size == PAGE and block.pages_offset % (1 << 20) == 0 for block in blocks)
    assert blocks[0].bitmap_offset == 67500
    assert facts.sections is not None
    assert len(facts.sections) == 28
    assert facts.sections[0] == DeviceSection("timer", 0, 2)
    assert facts.sections[-1] == DeviceSection("globalstate", 0, 1)


def test_the_bitmap_tells_which_pages_are_zero(golden):
    path = golden / "sparse.save"
    data = path.read_bytes()
    with path.open("rb") as file:
        for block in facts_of(path).ram_blocks:
            assert isinstance(block, MappedRamBlock)
            for page in range(block.pages):
                start = block.pages_offset + page * PAGE
                assert block.count_present(ImageFile("p", file.fileno()), page, page + 1) == any(
                    data[start : start + PAGE]
                )


def test_a_raw_stream_of_qemu(golden):
    facts = facts_of(golden / "raw.save")
    assert facts.machine == "pc-i440fx-10.0"
    assert facts.ram_blocks == [
        RamBlock("pc.ram", 16 << 20),
        RamBlock("pc.bios", 256 << 10),
        RamBlock("pc.rom", 128 << 10),
    ]
    assert facts.sections is not None
    assert facts.as_result()["ram_blocks"][2] == {"name": "pc.rom", "used_length": 128 << 10}


@pytest.mark.parametrize("label", ["gzip", "bzip2", "xz", "lzop", "zstd"])
def test_nothing_is_known_of_a_compressed_stream(golden, label):
    assert read(golden / f"{label}.save") is None
    with pytest.raises(ImageFormatError, match="there is no QEMU stream"):
        read(golden / f"{label}.save", format=ImageFormat.RAW)


@pytest.mark.parametrize(
    ("name", "image_format", "message"),
    [
        ("raw", ImageFormat.SPARSE, "without mapped-ram, but the header says sparse"),
        ("sparse", ImageFormat.RAW, "with mapped-ram, but the header says raw"),
        ("raw", ImageFormat.ZSTD, "not compressed with zstd"),
    ],
)
def test_a_header_of_another_format(golden, name, image_format, message):
    with pytest.raises(ImageFormatError, match=message):
        read(golden / f"{name}.save", format=image_format)


def test_a_missing_image(tmp_path):
    with pytest.raises(ImageNotFoundError):
        read_stream(str(tmp_path / "none"), SaveImageHeader(2, ImageFormat.RAW, True))


# --- what QEMU may write ---


def test_a_built_stream(builder):
    path = builder.write()
    facts = facts_of(path)
    assert facts.machine == "pc-q35-10.0"
    assert facts.as_result() == {
        "machine": "pc-q35-10.0",
        "capabilities": ["mapped-ram"],
        "ram_blocks": [
            {
                "name": name,
                "used_length": pages * PAGE,
                "page_size": PAGE,
                "bitmap_offset": getattr(block, "bitmap_offset"),  # noqa: B009
                "pages_offset": offset,
                "present_pages": present,
                "zero_pages": pages - present,
            }
            for block, (name, pages, offset, present) in zip(
                facts.ram_blocks, [("pc.ram", 64, 1 << 20, 3), ("vga", 3, 2 << 20, 1)]
            )
        ],
        "sections": [{"name": "cpu", "instance": 1, "version": 12}],
        "end": os.path.getsize(path),
    }


def test_what_may_come_before_ram(builder):
    def subsection(name, content, version=1):
        return bytes([5, len(name)]) + name + struct.pack(">I", version) + content

    builder.before_ram = (
        subsection(b"configuration/target-page-bits", struct.pack(">I", 12))
        + subsection(b"configuration/uuid", bytes(16))
        + subsection(b"configuration/from-the-future", b"what?", version=7)
        + b"\x08\0\3\0\0"  # a command
        + b"\x04\0\0\0\1\x05early\0\0\0\0\0\0\0\1state\x7e\0\0\0\1"
    )
    assert len(facts_of(builder.write()).ram_blocks) == 2


def test_blocks_of_a_save_that_ignores_shared_memory(builder):
    builder.capabilities = [b"x-ignore-shared", b"mapped-ram"]
    assert len(facts_of(builder.write()).ram_blocks) == 2


@pytest.mark.parametrize("byte_order", ["little", "big"])
@pytest.mark.parametrize("page_size", [1024, 4096, 16384, 65536, 2 << 20])
def test_other_page_sizes_and_byte_orders(builder, page_size, byte_order):
    builder.header = dataclasses.replace(builder.header, byte_order=byte_order)
    builder.page_size = page_size
    builder.machine = b"virt-10.0"
    # One page, one word, and a bit more than a word: the bitmap is whole words in each case.
    present = {b"one": {0}, b"word": {1, 62}, b"more": {0, 63, 64}}
    builder.blocks = [
        (name, pages * page_size, present[name]) for name, pages in ((b"one", 1), (b"word", 64), (b"more", 65))
    ]
    path = builder.write()
    facts = facts_of(path)
    assert facts.sections == [DeviceSection("cpu", 1, 12)]
    with path.open("rb") as file:
        for block in facts.ram_blocks:
            assert isinstance(block, MappedRamBlock)
            assert (block.page_size, block.byte_order) == (page_size, byte_order)
            found = {
                page
                for page in range(block.pages)
                if block.count_present(ImageFile(str(path), file.fileno()), page, page + 1)
            }
            assert found == present[block.name.encode()]
            assert block.zero_pages == block.pages - len(found)
    assert structure_problems(str(path)) == []


@pytest.mark.parametrize(
    ("byte_order", "first_word"), [("little", b"\x02\x01\0\0\0\0\0\x80"), ("big", b"\x80\0\0\0\0\0\x01\x02")]
)
def test_bitmap_words_are_the_hosts(builder, byte_order, first_word):
    """Written out by hand, so that builder and reader cannot err together: pages 1, 8, 63 and 64 of 65."""
    builder.header = dataclasses.replace(builder.header, byte_order=byte_order)
    builder.blocks = [(b"ram", 65 * PAGE, set())]
    path = builder.write()
    (block,) = facts_of(path).ram_blocks
    assert isinstance(block, MappedRamBlock)
    assert (block.present_pages, block.bitmap_length) == (0, 16)
    with path.open("r+b") as file:
        file.seek(block.bitmap_offset)
        file.write(first_word + (1).to_bytes(8, "little" if byte_order == "little" else "big"))
    (block,) = facts_of(path).ram_blocks
    assert isinstance(block, MappedRamBlock)
    assert block.present_pages == 4
    with path.open("rb") as file:
        assert [page for page in range(65) if block.count_present(ImageFile("p", file.fileno()), page, page + 1)] == [
            1,
            8,
            63,
            64,
        ]
    # Of a host of the other byte order, the same bytes mean other pages.
    other = dataclasses.replace(block, byte_order="big" if byte_order == "little" else "little")
    with path.open("rb") as file:
        assert not other.count_present(ImageFile("p", file.fileno()), 63, 64)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    byte_order=st.sampled_from(("little", "big")),
    present=st.sets(st.integers(0, 199)),
    first=st.integers(0, 200),
    last=st.integers(0, 200),
)
def test_counting_present_pages(builder, monkeypatch, byte_order, present, first, last):
    monkeypatch.setattr(stream_module, "_BITMAP_CHUNK", 8)
    builder.header = dataclasses.replace(builder.header, byte_order=byte_order)
    builder.blocks = [(b"ram", 200 * PAGE, present)]
    path = builder.write()
    (block,) = facts_of(path).ram_blocks
    assert isinstance(block, MappedRamBlock)
    assert block.present_pages == len(present)
    with path.open("rb") as file:
        counted = block.count_present(ImageFile(str(path), file.fileno()), first, last)
    assert counted == len([page for page in present if first <= page < last])


def write_huge(builder, ram: int) -> tuple[int, int]:
    """Write an image of so many bytes of RAM, the first and the last page present; bitmap's length and pages' offset.

    The builder holds the bitmap as Python integers, so this writes only what differs from zeros.
    """
    bitmap_length = ram // PAGE // 8
    with builder.path.open("wb") as file:
        header = dataclasses.replace(builder.header, data_length=STREAM - 92)
        file.write(header.pack() + builder.xml.encode())
        file.seek(STREAM)
        file.write(b"QEVM\0\0\0\3\x07\0\0\0\x02pc\x05\x1aconfiguration/capabilities" + struct.pack(">II", 1, 1))
        file.write(b"\x0amapped-ram\x01\0\0\0\2\x03ram\0\0\0\0\0\0\0\4" + struct.pack(">Q", ram | 4))
        file.write(b"\3ram" + struct.pack(">Q", ram))
        bitmap_offset = file.tell() + 28
        pages_offset = -(-(bitmap_offset + bitmap_length) // (1 << 20)) << 20
        file.write(struct.pack(">IQQQ", 1, PAGE, bitmap_offset, pages_offset) + b"\1")
        file.seek(bitmap_offset + bitmap_length - 1)
        file.write(b"\x80")
        file.seek(pages_offset + ram)
        file.write(struct.pack(">Q", 0x10) + b"\x7e\0\0\0\2")
        file.write(b"\0\x06" + struct.pack(">I", 14) + b'{"devices":[]}')
    return bitmap_length, pages_offset


def test_time_grows_with_the_bitmap_only(builder):
    write_huge(builder, 1 << 40)
    started = time.monotonic()
    (block,) = facts_of(builder.path).ram_blocks
    assert isinstance(block, MappedRamBlock)
    assert block.present_pages == 2
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("ram", [1 << 30, 1 << 33, 1 << 38], ids=["1G", "8G", "256G"])
def test_no_page_is_read(builder, monkeypatch, ram):
    """What is read beside the bitmap, one bit for each page, is the same for every size."""
    bitmap_length, pages_offset = write_huge(builder, ram)
    reads: list[tuple[int, int]] = []
    pread = os.pread

    def watch(descriptor: int, length: int, offset: int) -> bytes:
        data = pread(descriptor, length, offset)
        reads.append((offset, len(data)))
        return data

    monkeypatch.setattr(os, "pread", watch)
    assert facts_of(builder.path).sections == []
    monkeypatch.undo()
    assert sum(length for _offset, length in reads) < bitmap_length + (2 << 20)
    # A search for the RAM section, which begins before the pages, is all that may reach into them.
    assert all(offset < pages_offset or offset >= pages_offset + ram for offset, _length in reads)


# --- what nobody should have written ---


def spoil(builder, offset_of: bytes, new: bytes, distance: int = 0) -> None:
    """Write ``new`` at ``distance`` behind the end of the first ``offset_of`` in the stream."""
    path = builder.write()
    with path.open("r+b") as file:
        position = file.read(STREAM + 4096).index(offset_of, STREAM) + len(offset_of) + distance
        file.seek(position)
        file.write(new)


RAM_SECTION = b"\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04"
FIRST_BLOCK = b"\x06pc.ram"


@pytest.mark.parametrize(
    ("where", "distance", "new", "message"),
    [
        (b"QEVM", 0, struct.pack(">I", 2), "no QEMU stream"),
        (b"QEVM\0\0\0\3", 0, b"\x06", "does not name its machine"),
        (b"QEVM\0\0\0\3\x07", 0, b"\0\0\0\0", "impossible length: 0"),
        (b"QEVM\0\0\0\3\x07", 0, b"\xff" * 4, "impossible length: 4294967295"),
        (b"configuration/capabilities", 0, b"\0\0\0\2", "has version 2"),
        (b"configuration/capabilities", 4, b"\0\0\xff\xff", "number of capabilities: 65535"),
        (b"\x03ra", 0, b"n", "no RAM section"),
        (b"\x03ram", 0, b"\0\0\0\1", "no RAM section"),
        (RAM_SECTION, 0, bytes(7) + b"\4", "has 0 bytes of RAM"),
        (RAM_SECTION, 0, b"\x7f" + b"\xff" * 5 + b"\xfc\4", "bytes of RAM"),
        (RAM_SECTION, 7, b"\x0c", "does not begin with the size"),
        (RAM_SECTION, 7, b"\0", "does not begin with the size"),
        (RAM_SECTION, 8, b"\0", "makes no sense"),
        (FIRST_BLOCK, 0, b"\xff" * 8, "makes no sense"),
        (FIRST_BLOCK, 0, bytes(8), "makes no sense"),
        (FIRST_BLOCK, 8, b"\0\0\0\2", "version 2"),
        (FIRST_BLOCK, 12, bytes(8), "page size: 0"),
        (FIRST_BLOCK, 12, struct.pack(">Q", 1), "page size: 1"),
        (FIRST_BLOCK, 12, struct.pack(">Q", 4097), "page size: 4097"),
        (FIRST_BLOCK, 12, struct.pack(">Q", 8192), "page size 8192, but the VM's is 4096"),
        (FIRST_BLOCK, 20, bytes(8), "not in its place"),
        (FIRST_BLOCK, 20, struct.pack(">Q", 1 << 19), "not in its place"),
        (FIRST_BLOCK, 20, b"\xff" * 8, "not in its place"),
        (FIRST_BLOCK, 28, struct.pack(">Q", STREAM), "overlaps the pages"),
        (FIRST_BLOCK, 28, struct.pack(">Q", (1 << 20) - PAGE), "makes no sense"),
        (FIRST_BLOCK, 28, b"\xff" * 8, "inside RAM block 'pc.ram'"),
    ],
)
def test_contradictions(builder, where, distance, new, message):
    spoil(builder, where, new, distance)
    with pytest.raises(ImageFormatError, match=message):
        read(builder.path)


def test_a_bitmap_a_little_beside_its_place(builder):
    """Where a shifted bitmap still fits before the pages, QEMU would take zeros for it, and load no page."""
    path = builder.write()
    (block, _other) = facts_of(path).ram_blocks
    assert isinstance(block, MappedRamBlock)
    for distance in (-8, 8, 64, PAGE):
        spoil(builder, FIRST_BLOCK, struct.pack(">Q", block.bitmap_offset + distance), 20)
        with pytest.raises(ImageFormatError, match=r"bitmap of RAM block 'pc\.ram' is not in its place"):
            read(path)


@pytest.mark.parametrize(
    ("machine", "page_bits", "page_size", "message"),
    [
        (b"virt-10.0", 16, 65536, None),
        (b"virt-10.0", 12, 65536, "page size 65536, but the VM's is 4096"),
        (b"virt-10.0", 0, PAGE, "the VM's is 1"),
        (b"virt-10.0", 0xFFFFFFFF, PAGE, "the VM's is"),
        (b"virt-10.0", None, 8192, None),
        (b"pc-q35-10.0", None, 8192, "page size 8192, but the VM's is 4096"),
        (b"s390-ccw-virtio-10.0", None, 1024, "page size 1024, but the VM's is 4096"),
    ],
)
def test_a_page_size_that_is_not_the_vms(builder, machine, page_bits, page_size, message):
    """QEMU believes it, and takes the bitmap for shorter or longer than it is."""
    builder.machine, builder.page_size = machine, page_size
    builder.blocks = [(b"a", 64 * page_size, {0, 63}), (b"b", 2 * page_size, {1})]
    if page_bits is not None:
        name = b"configuration/target-page-bits"
        builder.before_ram = bytes([5, len(name)]) + name + struct.pack(">II", 1, page_bits)
    path = builder.write()
    if message is None:
        assert facts_of(path).ram_blocks[0].used_length == 64 * page_size
    else:
        with pytest.raises(ImageFormatError, match=message):
            read(path)


def test_a_page_size_of_one_block_alone(builder):
    builder.machine = b"virt-10.0"
    first = facts_of(builder.write()).ram_blocks[0]
    assert isinstance(first, MappedRamBlock)
    with builder.path.open("r+b") as file:
        file.seek(first.end + len(b"\x03vga") + 8 + 4)
        file.write(struct.pack(">Q", 1024))
    with pytest.raises(ImageFormatError, match="'vga' has the page size 1024, but the VM's is 4096"):
        read(builder.path)


@pytest.mark.parametrize("byte_order", ["little", "big"])
@pytest.mark.parametrize("page", [3, 63])
def test_a_bitmap_with_pages_beyond_the_last(builder, byte_order, page):
    builder.header = dataclasses.replace(builder.header, byte_order=byte_order)
    builder.blocks = [(b"a", 3 * PAGE, {0, page})]
    with pytest.raises(ImageFormatError, match="the bitmap of RAM block 'a' has pages beyond the last one"):
        read(builder.write())


RAM_END = struct.pack(">Q", 0x10)


@pytest.mark.parametrize(
    ("end", "good"),
    [
        (RAM_END + b"\x7e\0\0\0\2", True),
        (struct.pack(">Q", 0x200) + RAM_END + b"\x7e\0\0\0\2", True),  # multifd's flush mark
        (RAM_END + b"\x04\0\0\0\3", True),  # of a machine type without footers
        (RAM_END + b"\x7e\0\0\0\3", False),
        (RAM_END + b"\x7f\0\0\0\2", False),
        (bytes(16), False),
        (struct.pack(">Q", 0x1010), False),
        (struct.pack(">Q", 0x8) * 16, False),
    ],
)
def test_the_end_of_the_blocks(builder, end, good):
    builder.ram_end = end
    path = builder.write()
    if good:
        assert len(facts_of(path).ram_blocks) == 2
    else:
        with pytest.raises(ImageFormatError, match="RAM section does not end after its blocks"):
            read(path)


def test_two_blocks_of_one_name(builder):
    builder.blocks = [(b"a", PAGE, set()), (b"a", PAGE, set())]
    with pytest.raises(ImageFormatError, match="makes no sense"):
        read(builder.write())


@pytest.mark.parametrize("name", ["sparse.save", "raw.save"])
def test_a_stream_that_is_cut_off_is_never_whole(copy_of, name):
    path = copy_of(name)
    size = path.stat().st_size
    for cut in [1, 2, 100, 29000, 30000, 31000, size // 2, size - 67358 - 500, size - 67358 - 60, size - 67358 - 3]:
        os.truncate(path, size - cut)
        try:
            facts = facts_of(path)
        except ImageFormatError:
            continue
        assert facts.sections is None


def test_what_follows_the_end(builder, copy_of):
    builder.after = b"\0"
    assert facts_of(builder.write()).sections is None
    raw = copy_of("raw.save")  # older writers pad plain streams
    os.truncate(raw, raw.stat().st_size + 4096)
    assert facts_of(raw).sections is not None
    with raw.open("ab") as file:
        file.write(b"x")
    assert facts_of(raw).sections is None


@pytest.mark.parametrize(
    "description",
    [
        b"",
        b"[]",
        b"{}",
        b'{"devices": 1}',
        b'{"devices": [1]}',
        b'{"devices": [{"name": "a"}]}',
        b'{"devices": [{"name": "a", "instance_id": "x"}]}',
        b'{"devices": [{"name": "a", "instance_id": 1e999}]}',
        b'{"devices": [{"name": "a", "instance_id": 1.5}]}',
        b'{"devices": [{"name": "a", "instance_id": "1"}]}',
        b'{"devices": [{"name": ["a"], "instance_id": 1}]}',
        b'{"devices": [{"name": "a", "instance_id": 1, "version": "1"}]}',
        b'{"devices": [{"name": "a", "instance_id": 111111111111111111111}]}',
        b'{"devices": [' + b'{"name": "a", "instance_id": 1},      ' * 66_000 + b'{"name": "a", "instance_id": 1}]}',
        b'{"devices": [], "x": [' + b"[]," * 30_000 + b"[]]}",
        b'{"devices": [], "x": [' + b'"ab",' * 30_000 + b"1]}",
        '{"devices": [], "x": "\u00e9"}'.encode(),
        b"[" * 100_000,
        b"\xff",
    ],
    ids=range(19),
)
def test_descriptions_that_are_none(builder, description):
    path = builder.write()
    with path.open("ab") as file:
        file.write(b"\0\x06" + struct.pack(">I", len(description)) + description)
    assert facts_of(path).sections is None


def test_a_description_with_a_number_of_a_million_digits(builder):
    """Pythons before 3.9.14 have no limit to what they convert, for which they need the square of the time."""
    limit = sys.get_int_max_str_digits() if hasattr(sys, "get_int_max_str_digits") else None
    builder.description = {"x": 0, "devices": []}
    path = builder.write()
    spoilt = json.dumps(builder.description).replace("0", "1" * 1_000_000).encode()
    with path.open("ab") as file:
        file.write(b"\0\x06" + struct.pack(">I", len(spoilt)) + spoilt)
    if limit is not None:
        sys.set_int_max_str_digits(0)
    try:
        started = time.process_time()
        assert facts_of(path).sections is None
        assert time.process_time() - started < 2
    finally:
        if limit is not None:
            sys.set_int_max_str_digits(limit)


@pytest.mark.parametrize("piece", ["[],", '"":{},', "{},", "1.5,", '"ab",', '{"name":"a","instance_id":1},'])
def test_a_hostile_description_takes_little_memory(builder, piece):
    builder.description = {"devices": []}
    path = builder.write()
    around = ('{"devices":[],"x":{', '"":0}}') if ":" in piece[:3] else ('{"devices":[],"x":[', "0]}")
    spoilt = (around[0] + piece * (2_000_000 // len(piece)) + around[1]).encode()
    with path.open("ab") as file:
        file.write(b"\0\x06" + struct.pack(">I", len(spoilt)) + spoilt)
    tracemalloc.start()
    try:
        read(path)
        assert tracemalloc.get_traced_memory()[1] < 15 * len(spoilt)
    finally:
        tracemalloc.stop()


def test_a_device_name_that_no_terminal_can_show(builder):
    builder.description = {"devices": [{"name": "a\ud800", "instance_id": 0}]}
    assert facts_of(builder.write()).sections == [DeviceSection("a\\ud800", 0, None)]


def test_a_length_that_looks_like_the_end(builder):
    shortest = len(json.dumps({"devices": [{"name": "", "instance_id": 0}]}))
    builder.description = {"devices": [{"name": "x" * (0x0612 - shortest), "instance_id": 0}]}
    path = builder.write()
    assert b"\0\x06\0\0\x06\x12{" in path.read_bytes()
    assert facts_of(path).sections


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), min_size=1, max_size=4))
def test_flipped_bytes_are_facts_or_a_format_error(builder, flips):
    path = builder.path if builder.path.exists() else builder.write()
    with path.open("r+b") as file:
        original = file.read(STREAM + 301)
        for distance, value in flips:
            file.seek(STREAM + distance)
            file.write(bytes([value]))
    try:
        read(path)
    except ImageFormatError:
        pass
    finally:
        with path.open("r+b") as file:
            file.write(original)


BLOCK_NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=60)
BLOCKS = st.lists(
    st.tuples(BLOCK_NAMES.map(str.encode), st.sets(st.integers(0, 150), max_size=5), st.integers(1, 151)),
    min_size=1,
    max_size=6,
    unique_by=lambda block: block[0],
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(BLOCKS, st.sampled_from(("little", "big")))
def test_ram_blocks_are_read_as_they_were_written(builder, blocks, byte_order):
    builder.header = dataclasses.replace(builder.header, byte_order=byte_order)
    builder.blocks = [
        (name, pages * PAGE, {page for page in present if page < pages}) for name, present, pages in blocks
    ]
    path = builder.write()
    found = facts_of(path).ram_blocks
    assert [(block.name.encode(), block.used_length) for block in found] == [block[:2] for block in builder.blocks]
    for block, (_name, _length, present) in zip(found, builder.blocks):
        assert isinstance(block, MappedRamBlock)
        assert block.present_pages == len(present)
    builder.xml = builder.xml.replace("128", "4")
    assert structure_problems(str(builder.write())) == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from((8, 12, 20, 28)), st.integers(0, 2**64 - 1) | st.integers(0, 2**21).map(lambda x: x * 8))
def test_no_other_number_in_a_ram_blocks_row_is_believed(builder, place, number):
    """Each number of mapped-ram's has one value that fits to all others."""
    path = builder.write()
    before = facts_of(path).ram_blocks
    size = 4 if place == 8 else 8
    spoil(builder, FIRST_BLOCK, (number % (1 << size * 8)).to_bytes(size, "big"), place)
    try:
        assert facts_of(path).ram_blocks == before
    except ImageFormatError as error:
        assert error.path == str(path)
