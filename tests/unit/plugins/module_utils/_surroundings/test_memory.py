# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Memory in files, with this process in the place of QEMU's; a real QEMU is in functional/test_memory_files.py."""

from __future__ import annotations

import dataclasses
import os
import threading

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings import memory
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.memory import (
    MemoryFile,
    empty_memory,
    memory_media,
    memory_problems,
)

from support.descriptors import COPIES_DESCRIPTORS

MIB = 1024 * 1024

copies = pytest.mark.skipif(not COPIES_DESCRIPTORS, reason="no descriptor can be taken from another process here")


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "memory"
    path.write_bytes(b"x" * 3 * MIB)
    return path


@pytest.fixture
def held(path):
    """The file, as a RAM block of this process which holds it open for writing."""
    descriptor = os.open(path, os.O_RDWR)
    yield block_of(path)
    os.close(descriptor)


def block_of(path, **facts):
    whole = ((0, path.stat().st_size),)
    return MemoryFile("mem", str(path), os.getpid(), path.stat().st_ino, **{"ranges": whole, **facts})


def kinds(problems):
    return [(problem.kind, problem.blocks) for problem in problems]


@copies
def test_file_is_emptied(path, held):
    assert empty_memory([held]) == []
    assert path.read_bytes() == bytes(3 * MIB)
    assert path.stat().st_blocks == 0


@copies
def test_only_the_ranges_are_emptied(path, held):
    assert empty_memory([dataclasses.replace(held, ranges=((MIB, MIB),))]) == []
    assert path.read_bytes() == b"x" * MIB + bytes(MIB) + b"x" * MIB


@copies
def test_range_beyond_the_end_of_the_file(path, held):
    assert empty_memory([dataclasses.replace(held, ranges=((MIB, 9 * MIB),))]) == []
    assert path.read_bytes() == b"x" * MIB + bytes(2 * MIB)


@copies
def test_what_cannot_be_punched_is_written(path, held, monkeypatch):
    def no_holes(*_arguments):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(memory, "punch", no_holes)
    assert empty_memory([held]) == []
    assert path.read_bytes() == bytes(3 * MIB)


@copies
def test_allocated_memory_stays_allocated(path, held):
    assert empty_memory([dataclasses.replace(held, allocated=True)]) == []
    assert path.read_bytes() == bytes(3 * MIB)
    assert path.stat().st_blocks * 512 >= 3 * MIB


@copies
def test_file_that_the_process_may_only_read_is_not_written_to(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        assert kinds(empty_memory([block_of(path)])) == [("memory_file", True)]
    finally:
        os.close(descriptor)
    assert path.read_bytes() == b"x" * 3 * MIB


def test_file_that_the_process_does_not_hold_is_not_written_to(path):
    assert kinds(empty_memory([block_of(path)])) == [("memory_file", True)]
    assert path.read_bytes() == b"x" * 3 * MIB


def test_other_file_under_the_same_name_is_not_written_to(path, held):
    os.rename(path, path.with_name("moved"))
    path.write_bytes(b"y" * MIB)
    assert kinds(empty_memory([held])) == [("memory_file", True)]
    assert path.read_bytes() == b"y" * MIB
    assert path.with_name("moved").read_bytes() == b"x" * 3 * MIB


def test_fifo_is_not_read(tmp_path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    descriptor = os.open(path, os.O_RDWR)
    try:
        fifo = block_of(path, ranges=((0, MIB),), shared=False)
        assert kinds(memory_problems([fifo], sparse=True)) == [("memory_file", True)]
        assert kinds(empty_memory([fifo])) == [("memory_file", True)]
    finally:
        os.close(descriptor)


def test_no_problem_in_a_stream(held):
    assert memory_problems([held, dataclasses.replace(held, shared=False)], sparse=False) == []


@copies
def test_private_copy(path, held):
    private = dataclasses.replace(held, shared=False)
    assert kinds(memory_problems([private], sparse=True)) == [("memory_file", True)]
    path.write_bytes(bytes(3 * MIB))
    assert memory_problems([private], sparse=True) == []
    path.write_bytes(bytes(3 * MIB - 1) + b"x")
    assert kinds(memory_problems([private], sparse=True)) == [("memory_file", True)]
    assert memory_problems([dataclasses.replace(private, ranges=((0, 2 * MIB),))], sparse=True) == []


def test_look_that_nobody_waits_for_ends(held):
    stop = threading.Event()
    stop.set()
    memory_problems([dataclasses.replace(held, shared=False)], True, stop)


def test_process_that_has_ended(path):
    gone = dataclasses.replace(block_of(path), pid=2**22 + 1)
    assert kinds(memory_problems([gone], sparse=True)) == [("memory_file", True)]
    assert kinds(empty_memory([gone])) == [("memory_file", True)]
    disk = dataclasses.replace(gone, device_type="nvdimm", device="nv0")
    assert memory_media([disk])[0].files[0].uncheckable


def test_medium_is_flushed_and_tells_of_later_writes(path):
    import mmap

    with open(path, "r+b") as handle, mmap.mmap(handle.fileno(), 0) as mapped:
        disk = block_of(path, device_type="nvdimm", device="nv0")
        mapped[0] = 1
        (before,) = memory_media([disk])[0].files
        if before.uncheckable:
            pytest.skip(f"the temporary directory: {before.uncheckable}")
        assert memory_media([disk])[0].files == (before,)
        while os.stat(path).st_mtime_ns == before.mtime_ns:  # the kernel's clock may be coarse, but it goes on
            mapped[0] ^= 1
            mapped.flush()
        assert memory_media([disk])[0].files[0].mtime_ns != before.mtime_ns


def test_only_memory_that_outlives_qemu_is_a_medium(held):
    disk = dataclasses.replace(held, device_type="nvdimm", device="nv0")
    assert [medium.qdev for medium in memory_media([disk])] == ["nv0"]
    assert memory_media([held]) == []
    assert memory_media([dataclasses.replace(disk, shared=False)]) == []
    assert memory_media([dataclasses.replace(disk, deleted=True)]) == []
