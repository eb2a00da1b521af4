# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import dataclasses
import os
import struct
import subprocess

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._errors import ImageError, ImageNotFoundError
from ansible_collections.vmops.qemu.plugins.module_utils._image.header import ImageFormat
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_file import ImageFile
from ansible_collections.vmops.qemu.plugins.module_utils._image.info import image_info
from ansible_collections.vmops.qemu.plugins.module_utils._image.stream import MappedRamBlock, read_stream
from ansible_collections.vmops.qemu.plugins.module_utils._image.verify import structure_problems, structure_problems_of

PAGE = 4096


def first_block(path, header) -> MappedRamBlock:
    stream = read_stream(str(path), header)
    assert stream is not None
    block = stream.ram_blocks[0]
    assert isinstance(block, MappedRamBlock)
    return block


@pytest.mark.parametrize("name", ["raw", "gzip", "bzip2", "xz", "lzop", "zstd", "sparse", "sparse-paused"])
def test_libvirts_images_are_whole(golden, name):
    assert structure_problems(str(golden / f"{name}.save")) == []


def test_a_sparse_copy_is_whole(copy_of):
    assert structure_problems(str(copy_of("sparse.save"))) == []


def test_a_built_image_is_whole_complete_or_partial(builder):
    assert structure_problems(str(builder.write())) == []
    builder.header = dataclasses.replace(builder.header, complete=False)
    path = str(builder.write())
    with ImageFile.open(path) as image:
        assert structure_problems_of(image) == []


def test_pages_that_were_never_written(builder):
    builder.blocks = [(b"a", 200 * PAGE, {0, 1, 2, 70, 199}), (b"b", 9 * PAGE, {8}), (b"c", PAGE, {0})]
    builder.unwritten = {(b"a", 1), (b"a", 70), (b"a", 199), (b"b", 8)}
    assert structure_problems(str(builder.write())) == [
        "pages of RAM block 'a' were never written (3): they lie in holes of the file",
        "pages of RAM block 'b' were never written (1): they lie in holes of the file",
    ]


def test_pages_that_were_lost_later(copy_of, golden):
    """Pages of libvirt's image, given back to the file system."""
    path = copy_of("sparse.save")
    with path.open("rb") as file:
        data = file.read()
    block = 1 << 20
    page = next(index for index in range(4096) if any(data[block + index * PAGE :][:PAGE]))
    subprocess.run(
        ["fallocate", "--punch-hole", "-o", str(block + page * PAGE), "-l", str(PAGE), str(path)], check=True
    )
    assert structure_problems(str(path)) == [
        "pages of RAM block 'pc.ram' were never written (1): they lie in holes of the file"
    ]


def test_zero_pages_that_were_written_are_no_loss(builder):
    path = builder.write()
    block = first_block(path, dataclasses.replace(builder.header, data_length=65536 - 92))
    with path.open("r+b") as file:
        file.seek(block.pages_offset + PAGE)
        file.write(bytes(PAGE))
    assert structure_problems(str(path)) == []


def test_a_file_system_without_holes_finds_nothing(builder, monkeypatch):
    builder.unwritten = {(b"pc.ram", 1)}
    original = os.lseek

    def lseek(descriptor, offset, how):
        if how == os.SEEK_HOLE:
            return os.fstat(descriptor).st_size
        return offset if how == os.SEEK_DATA else original(descriptor, offset, how)

    monkeypatch.setattr(os, "lseek", lseek)
    assert structure_problems(str(builder.write())) == []


@pytest.mark.parametrize("name", ["sparse.save", "raw.save"])
@pytest.mark.parametrize("lost", [1, 100, 40000])
def test_a_lost_end(copy_of, name, lost):
    path = copy_of(name)
    os.truncate(path, path.stat().st_size - lost)
    (problem,) = structure_problems(str(path))
    assert "does not end where the file ends" in problem


def test_half_a_file(copy_of):
    path = copy_of("sparse.save")
    os.truncate(path, path.stat().st_size // 2)
    (problem,) = structure_problems(str(path))
    assert problem == ("the file ends at byte 10047052, inside RAM block 'pc.ram' (bytes 1048576 to 17825792)")


def test_something_after_the_end(builder):
    builder.after = b"more"
    assert len(structure_problems(str(builder.write()))) == 1


def test_a_file_that_shrinks_while_it_is_read(copy_of, golden, monkeypatch):
    """After each of its reads once: a problem, or one error of the tree, and no page counts as lost for nothing."""
    name = "sparse.save"
    size = (golden / name).stat().st_size
    pread = os.pread

    def problems_of(path, new_size, shrinks_at):
        reads = 0

        def read(descriptor, length, offset):
            nonlocal reads
            reads += 1
            if reads == shrinks_at:
                os.truncate(path, new_size)
            return pread(descriptor, length, offset)

        with monkeypatch.context() as patched:
            patched.setattr(os, "pread", read)
            try:
                return structure_problems(str(path)), reads
            except ImageError as error:
                return [error.problem], reads

    problems, reads = problems_of(golden / name, 0, -1)
    assert problems == []
    assert reads > 20
    for new_size in (0, 70_000, size // 2, size - 1):
        for shrinks_at in range(1, reads + 1):
            assert problems_of(copy_of(name), new_size, shrinks_at)[0], f"{new_size} from read {shrinks_at} on"


def test_holes_of_a_file_that_has_shrunk(builder, monkeypatch):
    """Gone after the last read, when all that was read was good."""
    path = builder.write()
    original = os.lseek

    def lseek(descriptor, offset, how):
        if how == os.SEEK_HOLE:
            os.truncate(path, 0)
        return original(descriptor, offset, how)

    monkeypatch.setattr(os, "lseek", lseek)
    assert structure_problems(str(path)) == ["the file was cut off while it was read"]


@pytest.mark.parametrize(
    ("cookie_offset", "text", "message"),
    [
        (0, b"", None),
        (0, b"x", "something after the domain XML"),
        ("right", b"<cookie/>", None),
        ("right", b"", None),
        (5000, b"<cookie/>", "the cookie does not follow the domain XML (it is said to start at byte 5000, not "),
    ],
)
def test_a_cookie_in_its_place(builder, cookie_offset, text, message):
    """A cookie tells that libvirt wrote the image: whether it has one must be beyond doubt."""
    path = builder.write()
    place = len(builder.xml) + 1
    with path.open("r+b") as file:
        file.seek(92 + place)
        file.write(text)
        file.seek(32)
        file.write(struct.pack("<I", place if cookie_offset == "right" else cookie_offset))
    problems = structure_problems(str(path))
    assert [message in problem for problem in problems] == ([] if message is None else [True])
    assert image_info(str(path), verify=True)["problems"] == problems


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        ("<memory unit='bytes'>274432</memory>", None),
        ("<memory unit='bytes'>274433</memory>", "has 274433 bytes of memory, the VM's state only 274432"),
        ("<memory unit='EiB'>99</memory>", "bytes of memory, the VM's state only 274432"),
        ("<os><type machine='pc-q35-10.0'>hvm</type></os>", None),
        ("<os><type machine='q35'>hvm</type></os>", None),
        ("<os><type machine='pc-q35-noble'>hvm</type></os>", None),
        ("<os><type machine='pc-q35-9.2'>hvm</type></os>", "machine type pc-q35-9.2, the VM's state is of pc-q35-10.0"),
    ],
)
def test_a_domain_xml_of_another_vm(builder, xml, message):
    builder.xml = f"<domain><name>web1</name>{xml}</domain>"
    path = str(builder.write())
    problems = structure_problems(path)
    assert [message in problem for problem in problems] == ([] if message is None else [True])
    assert image_info(path, verify=True)["problems"] == problems


def test_all_problems_are_told(builder):
    builder.xml = "<domain/>"
    builder.after = b"more"
    builder.unwritten = {(b"pc.ram", 0)}
    name, pages, end = structure_problems(str(builder.write()))
    assert "no name" in name
    assert "never written" in pages
    assert "does not end" in end


def test_heads_that_are_none(builder, tmp_path):
    builder.header = dataclasses.replace(builder.header, format=ImageFormat.RAW)
    (problem,) = structure_problems(str(builder.write()))
    assert "header says raw" in problem
    builder.path.write_bytes(b"something else")
    (problem,) = structure_problems(str(builder.path))
    assert "magic is incorrect" in problem
    assert structure_problems(str(tmp_path)) == ["it is a directory, not a regular file"]
    with pytest.raises(ImageNotFoundError):
        structure_problems(str(tmp_path / "none"))
