# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import lzma
import os
import subprocess

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._errors import ImageAccessError, ImageFormatError, RequestError
from ansible_collections.vmops.qemu.plugins.module_utils._image.compressed_head import read_compressed_head
from ansible_collections.vmops.qemu.plugins.module_utils._image.compressor import COMPRESSORS, Compressor
from ansible_collections.vmops.qemu.plugins.module_utils._image.header import ImageFormat
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_file import read_image_head

COMPRESSED = ["gzip", "bzip2", "xz", "lzop", "zstd"]


def read(path):
    return read_compressed_head(str(path), read_image_head(str(path)).header)


@pytest.mark.parametrize("label", COMPRESSED)
def test_the_head_of_a_compressed_stream(golden, label):
    facts = read(golden / f"{label}.save")
    assert facts is not None
    assert facts.machine == "pc-i440fx-10.0"
    assert [block.name for block in facts.ram_blocks] == ["pc.ram", "pc.bios", "pc.rom"]


def test_a_stream_that_is_not_compressed(golden):
    assert read(golden / "raw.save") is None


@pytest.mark.parametrize("label", COMPRESSED)
def test_a_stream_that_its_tool_cannot_expand(copy_of, label):
    """It is the tool that cannot go on; an error about bytes of what it expanded would help nobody."""
    path = copy_of(f"{label}.save")
    stream = read_image_head(str(path)).header.stream_offset
    with path.open("r+b") as file:
        file.seek(stream + 8)
        file.write(b"\xff" * 1000)
    with pytest.raises(ImageFormatError, match=rf"{label} cannot expand the stream: .* after \d+ bytes"):
        read(path)
    os.truncate(path, stream + 7)
    with pytest.raises(ImageFormatError, match=rf"{label} cannot expand the stream: .* after \d+ bytes"):
        read(path)


@pytest.mark.parametrize("label", COMPRESSED)
def test_storage_that_fails_the_tool(golden, label):
    """The pages of a process that it has not mapped: they give an input/output error, to the tool as to us."""
    header = read_image_head(str(golden / f"{label}.save")).header
    with pytest.raises(ImageAccessError, match="read the image: Input/output error"):
        read_compressed_head("/proc/self/mem", header)


def test_a_tool_that_cannot_be_started(golden, tmp_path, monkeypatch):
    program = tmp_path / "gzip"
    program.write_text("#!/nonexistent/shell\n")
    program.chmod(0o700)
    monkeypatch.setitem(COMPRESSORS, ImageFormat.GZIP, Compressor(str(program)))
    with pytest.raises(RequestError, match="cannot be started: No such file"):
        read(golden / "gzip.save")


def test_memory_that_an_image_asks_for_has_a_bound():
    options = {"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 3 << 29}
    try:
        asks_for_much = lzma.compress(b"x" * 100, filters=[options])
    except MemoryError:
        pytest.skip("there is not that much memory to make it")
    command = COMPRESSORS[ImageFormat.XZ].expand_command()
    assert subprocess.run(command, input=lzma.compress(b"x", preset=9), capture_output=True, check=True).stdout == b"x"
    done = subprocess.run(command, input=asks_for_much, capture_output=True, check=False)
    assert done.returncode != 0
    assert b"limit" in done.stderr
