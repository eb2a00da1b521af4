# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import dataclasses
import os
import subprocess

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._errors import ImageNotFoundError
from ansible_collections.vmops.qemu.plugins.module_utils._image.file import open_image
from ansible_collections.vmops.qemu.plugins.module_utils._image.header import ImageFormat
from ansible_collections.vmops.qemu.plugins.module_utils._image.stream import MappedRamBlock, read_stream
from ansible_collections.vmops.qemu.plugins.module_utils._image.verify import structure_problems

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
    descriptor = open_image(path)
    assert structure_problems(path, descriptor) == []
    os.close(descriptor)


def test_pages_that_were_never_written(builder):
    builder.blocks = [(b"a", 200 * PAGE, {0, 1, 2, 70, 199}), (b"b", 9 * PAGE, {8}), (b"c", PAGE, {0})]
    builder.unwritten = {(b"a", 1), (b"a", 70), (b"a", 199), (b"b", 8)}
    assert structure_problems(str(builder.write())) == [
        "3 pages of RAM block 'a' were never written: they lie in holes of the file",
        "1 pages of RAM block 'b' were never written: they lie in holes of the file",
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
        "1 pages of RAM block 'pc.ram' were never written: they lie in holes of the file"
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
    assert structure_problems(str(tmp_path)) == ["not a regular file"]
    with pytest.raises(ImageNotFoundError):
        structure_problems(str(tmp_path / "none"))
