# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import struct

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    ImageError,
    ImageFormatError,
    ImageUnsupportedError,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.header import (
    HEADER_SIZE,
    MAGIC_COMPLETE,
    MAGIC_PARTIAL,
    ImageFormat,
    SaveImageHeader,
)
from hypothesis import given
from hypothesis import strategies as st


def words(*values: int, magic: bytes = MAGIC_COMPLETE, byte_order: str = "<", checkpoint: int = 0) -> bytes:
    """A header from its words: version, data_len, was_running, compressed, cookieOffset, features."""
    return struct.pack(f"{byte_order}16s6I48xI", magic, *values, checkpoint)


headers = st.builds(
    SaveImageHeader,
    version=st.sampled_from((2, 3)),
    format=st.sampled_from(ImageFormat),
    was_running=st.booleans(),
    complete=st.booleans(),
    data_length=st.integers(2, 2**32 - 1),
    cookie_offset=st.integers(0, 1),
    byte_order=st.sampled_from(("little", "big")),
    checkpoint=st.booleans(),
)


@pytest.mark.parametrize("label", ["raw", "gzip", "bzip2", "xz", "lzop", "zstd", "sparse"])
def test_reads_what_libvirt_writes(golden, label):
    data = (golden / f"{label}.save").read_bytes()[:HEADER_SIZE]
    header = SaveImageHeader.parse(data, "p")
    assert header == SaveImageHeader(
        version=2,
        format=ImageFormat.from_label(label),
        was_running=True,
        complete=True,
        data_length=67266,
        cookie_offset=1494,
        byte_order="little",
    )
    assert header.format.label == label
    assert header.stream_offset == 67358
    assert header.mapped_ram is (label == "sparse")
    assert header.features == 0
    assert header.pack() == data


def test_reads_the_paused_state(golden):
    data = (golden / "sparse-paused.save").read_bytes()[:HEADER_SIZE]
    assert SaveImageHeader.parse(data, "p").was_running is False


def test_writes_version_3_sparse_as_the_rfc_does():
    header = SaveImageHeader(3, ImageFormat.SPARSE, True, data_length=100, byte_order="little")
    assert header.pack() == words(3, 100, 1, 0, 0, 1, magic=MAGIC_PARTIAL)
    assert header.features == 1
    assert len(header.pack()) == HEADER_SIZE == 92


@pytest.mark.parametrize(
    ("compressed", "features", "expected"),
    [(0, 1, "sparse"), (6, 1, "sparse"), (6, 0, "sparse"), (0, 0, "raw"), (5, 0, "zstd")],
)
def test_logical_format_of_version_3(compressed, features, expected):
    header = SaveImageHeader.parse(words(3, 100, 1, compressed, 0, features), "p")
    assert header.format.label == expected


def test_version_2_ignores_the_word_that_became_features():
    assert SaveImageHeader.parse(words(2, 100, 1, 0, 0, 0xFFFF), "p").format is ImageFormat.RAW


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_last_word_marks_a_checkpoint(version, byte_order):
    for checkpoint in (0, 1):
        data = words(version, 100, 1, 0, 0, 0, byte_order=byte_order, checkpoint=checkpoint)
        header = SaveImageHeader.parse(data, "p")
        assert header.checkpoint is bool(checkpoint)
        assert header.pack() == data


def test_other_unused_words_are_not_looked_at():
    data = bytearray(words(3, 100, 1, 0, 0, 1))
    data[40:88] = b"\xff" * 48
    assert SaveImageHeader.parse(bytes(data), "p").checkpoint is False


@given(headers)
def test_parse_undoes_pack(header):
    assert SaveImageHeader.parse(header.pack() + b"<domain/>", "p") == header


@given(st.sampled_from((MAGIC_COMPLETE, MAGIC_PARTIAL, b"")), st.binary(max_size=120))
def test_any_bytes_are_a_header_or_an_image_error(magic, data):
    try:
        header = SaveImageHeader.parse(magic + data, "p")
    except ImageError as error:
        assert error.path == "p"
    else:
        assert header.cookie_offset < header.data_length
        assert SaveImageHeader.parse(header.pack(), "p") == header


def test_the_other_byte_order_is_recognised():
    header = SaveImageHeader.parse(words(2, 100, 1, 6, 50, 0, byte_order=">"), "p")
    assert (header.byte_order, header.data_length, header.cookie_offset) == ("big", 100, 50)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (b"", ImageFormatError, "magic"),
        (b"LibvirtQemudSav", ImageFormatError, "magic"),
        (b"\x7fELF".ljust(92, b"\0"), ImageFormatError, "magic"),
        (words(2, 100, 1, 0, 0, 0)[:91], ImageFormatError, "only 91 bytes"),
        (words(1, 100, 1, 0, 0, 0), ImageUnsupportedError, "version 1 "),
        (words(4, 100, 1, 0, 0, 0), ImageUnsupportedError, "version 4 "),
        (words(4, 100, 1, 0, 0, 0, byte_order=">"), ImageUnsupportedError, "version 4 "),
        (words(2, 0, 1, 0, 0, 0), ImageFormatError, "data length: 0"),
        (words(2, 100, 2, 0, 0, 0), ImageFormatError, "was_running is 2,"),
        (words(3, 100, 0x1000001, 0, 0, 0), ImageFormatError, "was_running is 16777217,"),
        (words(2, 100, 1, 0, 100, 0), ImageFormatError, "cookie offset 100"),
        (words(2, 100, 1, 7, 0, 0), ImageUnsupportedError, "format: 7"),
        (words(3, 100, 1, 0, 0, 2), ImageUnsupportedError, "features: 0x2"),
        (words(3, 100, 1, 0, 0, 0x80000001), ImageUnsupportedError, "features: 0x80000000"),
        (words(3, 100, 1, 1, 0, 1), ImageUnsupportedError, "compression"),
        (words(3, 100, 1, 0, 0, 1, checkpoint=2), ImageUnsupportedError, "last word is 0x2,"),
        (words(2, 100, 1, 0, 0, 0, checkpoint=0x1000000), ImageUnsupportedError, "last word is 0x1000000,"),
    ],
)
def test_refuses(data, error, message):
    with pytest.raises(error, match=message) as caught:
        SaveImageHeader.parse(data, "/p")
    assert str(caught.value).startswith("/p: ")
