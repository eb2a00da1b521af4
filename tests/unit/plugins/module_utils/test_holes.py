# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where a file has data."""

from __future__ import annotations

import os

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._holes import data_ranges, holes, next_data, punch

MIB = 1024 * 1024


@pytest.fixture
def descriptor(tmp_path):
    """A file of 8 MiB that has data in its second, third and sixth."""
    path = tmp_path / "file"
    with path.open("w+b") as file:
        for place in (1, 2, 5):
            os.pwrite(file.fileno(), b"x" * MIB, place * MIB)
        os.truncate(file.fileno(), 8 * MIB)
        yield file.fileno()


def test_data_and_holes(descriptor):
    assert list(data_ranges(descriptor, 0, 8 * MIB)) == [(MIB, 2 * MIB), (5 * MIB, MIB)]
    assert list(holes(descriptor, 0, 8 * MIB)) == [(0, MIB), (3 * MIB, 2 * MIB), (6 * MIB, 2 * MIB)]


@pytest.mark.parametrize("start", [0, MIB, MIB + 4096, 3 * MIB, 6 * MIB, 9 * MIB])
@pytest.mark.parametrize("end", [MIB, 2 * MIB + 4096, 4 * MIB, 8 * MIB, 10 * MIB])
def test_parts_of_a_file(descriptor, start, end):
    """Data and holes together are the part that was asked for; what is beyond the file's end is a hole."""
    data, empty = list(data_ranges(descriptor, start, end)), list(holes(descriptor, start, end))
    assert sum(length for _offset, length in data + empty) == max(0, end - start)
    position = start
    for offset, length in sorted(data + empty):
        assert offset == position
        position += length
    for offset, length in data:
        assert os.pread(descriptor, length, offset) == b"x" * length
    for offset, length in empty:
        assert not any(os.pread(descriptor, length, offset))


def test_next_data(descriptor):
    assert [next_data(descriptor, place * MIB) for place in (0, 1, 3, 6, 9)] == [MIB, MIB, 5 * MIB, None, None]


def test_a_hole_that_is_punched(descriptor):
    punch(descriptor, 0, 2 * MIB)
    assert list(data_ranges(descriptor, 0, 8 * MIB)) == [(2 * MIB, MIB), (5 * MIB, MIB)]
    punch(descriptor, 5 * MIB, 5 * MIB)
    assert next_data(descriptor, 3 * MIB) == 5 * MIB
    assert os.fstat(descriptor).st_size == 8 * MIB


def test_a_file_that_becomes_shorter_meanwhile(descriptor, monkeypatch):
    seek = os.lseek

    def cut(number, position, how):
        if how == os.SEEK_HOLE:
            os.truncate(descriptor, 0)
        return seek(number, position, how)

    monkeypatch.setattr(os, "lseek", cut)
    assert list(data_ranges(descriptor, 0, 8 * MIB)) == []


def test_a_file_system_that_cannot_tell(descriptor, monkeypatch):
    def refuse(*_arguments):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "lseek", refuse)
    with pytest.raises(OSError, match="Input/output"):
        list(holes(descriptor, 0, MIB))
