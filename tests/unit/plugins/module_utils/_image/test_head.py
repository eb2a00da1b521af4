# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What stands before the QEMU stream, as it is read."""

from __future__ import annotations

import os
import struct
import tracemalloc
from pathlib import Path

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    ImageFormatError,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image import head as head_module
from ansible_collections.vmops.qemu.plugins.module_utils._image.head import MAX_TEXT_SIZE
from ansible_collections.vmops.qemu.plugins.module_utils._image.header import (
    HEADER_SIZE,
    ImageFormat,
    SaveImageHeader,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_file import (
    read_image_head,
)


def raw_image(path, data: bytes, data_length: int, cookie_offset: int = 0) -> str:
    header = SaveImageHeader(2, ImageFormat.RAW, True, True, data_length, cookie_offset)
    path.write_bytes(header.pack() + data)
    return str(path)


def test_reads_the_head_of_libvirts_image(golden):
    path = golden / "sparse.save"
    head = read_image_head(str(path))
    facts = path.stat()
    assert head.header.format is ImageFormat.SPARSE
    assert head.xml.startswith("<domain type='qemu'>")
    assert head.xml.endswith("</domain>\n")
    assert head.cookie.strip().endswith("</cookie>")
    assert (head.size, head.allocated) == (20094105, facts.st_blocks * 512)
    assert (head.mtime, head.uid, head.gid, head.mode) == (facts.st_mtime, facts.st_uid, facts.st_gid, 0o600)


def test_an_image_without_cookie(tmp_path):
    head = read_image_head(raw_image(tmp_path / "i", b"<domain/>" + bytes(91), 100))
    assert (head.xml, head.cookie) == ("<domain/>", "")


@pytest.mark.parametrize(
    ("data", "data_length", "cookie_offset", "message"),
    [
        (b"<domain/>\0", 11, 0, "ends at byte 102"),
        (b"<domain/>.", 10, 0, "domain XML does not end"),
        (b"<domain/>\0cookie", 16, 10, "cookie does not end"),
        (b"<domain/>\xff\0", 11, 0, r"not UTF-8 \(byte 9\)"),
    ],
)
def test_refuses_text_that_does_not_fit_its_lengths(tmp_path, data, data_length, cookie_offset, message):
    with pytest.raises(ImageFormatError, match=message):
        read_image_head(raw_image(tmp_path / "i", data, data_length, cookie_offset))


def test_endless_text_costs_little_memory(tmp_path):
    path = tmp_path / "i"
    raw_image(path, b"x" * (MAX_TEXT_SIZE + 4096), 2**32 - 1)
    os.truncate(path, 2**32 + 4096)
    with path.open("r+b") as file:  # no NUL anywhere near
        file.seek(HEADER_SIZE + MAX_TEXT_SIZE)
        file.write(b"x" * 4096)
    tracemalloc.start()
    with pytest.raises(ImageFormatError, match=f"within {MAX_TEXT_SIZE} bytes"):
        read_image_head(str(path))
    assert tracemalloc.get_traced_memory()[1] < 4 * MAX_TEXT_SIZE
    tracemalloc.stop()


def test_only_the_header_module_knows_the_magic():
    assert struct.calcsize("<16s6I52x") == HEADER_SIZE
    rooms = Path(head_module.__file__).parent.glob("*.py")
    assert [room.name for room in rooms if "Libvirt" in room.read_text()] == ["header.py"]
