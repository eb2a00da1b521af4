# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The digest of a stream, held against a second implementation, written from the text in docs/image-format.md."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
import struct
import subprocess
import sys
import threading
import time

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    ImageAccessError,
    ImageFormatError,
    ImageNotFoundError,
    ImageUnsupportedError,
    InterruptedOperationError,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.digest import (
    digest_problems,
    stream_digest,
    stream_digest_of,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.header import ImageFormat, SaveImageHeader
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_file import ImageFile

MIB = 1 << 20
DAMAGED = ["its QEMU stream does not match the checksum that the save recorded: it was changed since"]


def naive_digest(path) -> str:
    """By the document alone: slow, in one piece, and of its own."""
    image = path.read_bytes()
    order = "<" if image[16] in (2, 3) else ">"
    stream = image[92 + struct.unpack(order + "I", image[20:24])[0] :]
    text = b"vmops.qemu sha256-tree\x00"
    text += (1048576).to_bytes(8, "big")
    text += len(stream).to_bytes(8, "big")
    for number in range(-(-len(stream) // 1048576)):
        chunk = stream[number * 1048576 : (number + 1) * 1048576]
        if chunk != b"\x00" * len(chunk):
            text += number.to_bytes(8, "big") + hashlib.sha256(chunk).digest()
    return "sha256-tree:" + hashlib.sha256(text).hexdigest()


@pytest.fixture
def write_image(tmp_path):
    """Write an image with that stream: ``write_image(b"...", stream_offset=65536)``."""

    def write(stream: bytes, stream_offset: int = 65536, name: str = "web1.save"):
        path = tmp_path / name
        header = SaveImageHeader(3, ImageFormat.SPARSE, True, complete=True, data_length=stream_offset - 92)
        path.write_bytes(header.pack() + b"<domain/>".ljust(stream_offset - 92, b"\0") + stream)
        return path

    return write


def some_stream(length: int, seed: int = 1) -> bytes:
    """Data, chunks of zeros, chunks with one byte, and a last chunk that is shorter."""
    source = random.Random(seed)
    stream = bytearray(length)
    for start in range(0, length, MIB):
        kind = source.randrange(3)
        if kind == 1:
            stream[start : start + MIB] = source.randbytes(len(stream[start : start + MIB]))
        elif kind == 2:
            stream[source.randrange(start, min(start + MIB, length))] = 1
    return bytes(stream)


def flip(path, place: int, bit: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        (value,) = file.read(1)
        file.seek(place)
        file.write(bytes([value ^ 1 << bit]))


# --- the definition ---


@pytest.mark.parametrize("bypass_cache", [True, False])
@pytest.mark.parametrize("length", [0, 1, 4095, MIB - 1, MIB, MIB + 1, 2 * MIB, 5 * MIB + 12345, 40 * MIB + 1])
@pytest.mark.parametrize("stream_offset", [65536, 131072, 70001], ids=["64k", "128k", "unaligned"])
def test_agrees_with_the_document(write_image, length, stream_offset, bypass_cache):
    path = write_image(some_stream(length, seed=length + stream_offset), stream_offset)
    assert stream_digest(str(path), bypass_cache) == naive_digest(path)


@pytest.mark.parametrize("name", ["raw", "gzip", "bzip2", "xz", "lzop", "zstd", "sparse", "sparse-paused"])
def test_agrees_on_libvirts_images(golden, name):
    path = golden / f"{name}.save"
    assert stream_digest(str(path)) == naive_digest(path)


def test_stays_what_it_was(write_image):
    """A known answer: the label promises this definition to images of years ago."""
    stream = bytes(range(256)) * 4096 + bytes(2 * MIB) + b"the end"
    known = "sha256-tree:0b80ca98fdaf805d85edd15f80ef68f7e2cee5731fe8fbe8f63179eb3f40915d"
    assert stream_digest(str(write_image(stream))) == known


def test_header_of_the_other_byte_order(builder):
    builder.header = SaveImageHeader(3, ImageFormat.SPARSE, True, complete=True, byte_order="big")
    path = builder.write()
    assert stream_digest(str(path)) == naive_digest(path)


def test_all_of_a_stream_of_zeros_is_its_length(write_image):
    digests = {stream_digest(str(write_image(bytes(length)))) for length in (0, 1, MIB, MIB + 1, 3 * MIB)}
    assert len(digests) == 5


def test_zeros_before_a_chunk_count(write_image):
    chunk = random.Random(1).randbytes(MIB)
    streams = [chunk + bytes(2 * MIB), bytes(MIB) + chunk + bytes(MIB), bytes(2 * MIB) + chunk]
    assert len({stream_digest(str(write_image(stream))) for stream in streams}) == 3


# --- holes ---


@pytest.mark.parametrize("bypass_cache", [True, False])
def test_holes_and_zeros_are_the_same(builder, tmp_path, bypass_cache):
    builder.blocks = [(b"pc.ram", 4096 * 4096, {0, 1, 300, 4095}), (b"vga", 3 * 4096, {2})]
    path = builder.write()
    copies = {}
    for how in ("always", "never"):
        copies[how] = tmp_path / f"{how}.save"
        subprocess.run(["cp", f"--sparse={how}", str(path), str(copies[how])], check=True)
    assert copies["never"].stat().st_blocks > copies["always"].stat().st_blocks
    assert {stream_digest(str(each), bypass_cache) for each in (path, *copies.values())} == {naive_digest(path)}


def test_holes_at_the_end(write_image):
    path = write_image(b"x" * 1000)
    os.truncate(path, 65536 + 7 * MIB + 5)
    assert stream_digest(str(path)) == naive_digest(path)


def test_holes_are_not_read(write_image, monkeypatch):
    """64 GiB would take a minute."""
    path = write_image(b"x")
    os.truncate(path, 64 << 30)
    with path.open("r+b") as file:
        file.seek((48 << 30) + 1)
        file.write(b"x")
    chunks = []
    preadv = os.preadv

    def counting(descriptor, buffers, offset):
        chunks.append(offset)
        return preadv(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", counting)
    stream_digest(str(path))
    assert len(chunks) <= 4


# --- what it finds ---


def test_each_flipped_bit_is_found(write_image):
    """At both ends of chunks and of the stream, in data and in zeros, and at 100 other places."""
    stream = some_stream(6 * MIB + 777, seed=5)
    path = write_image(stream)
    recorded = stream_digest(str(path))
    assert digest_problems(str(path), recorded) == []
    source = random.Random(2)
    edges = [place for chunk in range(7) for place in (chunk * MIB, chunk * MIB - 1)]
    places = [place for place in edges if place >= 0] + [len(stream) - 1]
    places += [source.randrange(len(stream)) for _time in range(100)]
    for place in places:
        bit = source.randrange(8)
        flip(path, 65536 + place, bit)
        assert digest_problems(str(path), recorded) == DAMAGED, (place, bit)
        flip(path, 65536 + place, bit)
    assert digest_problems(str(path), recorded) == []


def test_the_head_does_not_count(write_image):
    path = write_image(some_stream(3 * MIB))
    recorded = stream_digest(str(path))
    with path.open("r+b") as file:
        file.write(SaveImageHeader(2, ImageFormat.SPARSE, False, complete=False, data_length=65536 - 92).pack())
        file.write(b"<domain>another</domain>")
    assert digest_problems(str(path), recorded) == []


@pytest.mark.parametrize("change", [-1, -4096, -MIB, 1, 4096, MIB])
@pytest.mark.parametrize("end", [b"the end", bytes(2 * MIB)], ids=["data", "zeros"])
def test_another_length_is_found(write_image, change, end):
    path = write_image(some_stream(3 * MIB) + end)
    recorded = stream_digest(str(path))
    os.truncate(path, path.stat().st_size + change)
    assert digest_problems(str(path), recorded) == DAMAGED


def test_chunks_that_changed_places_are_found(write_image):
    one, other = random.Random(1).randbytes(MIB), random.Random(2).randbytes(MIB)
    recorded = stream_digest(str(write_image(one + other)))
    assert digest_problems(str(write_image(other + one)), recorded) == DAMAGED


# --- what was recorded ---


@pytest.mark.parametrize("recorded", ["sha512-tree:" + 64 * "0", "crc32", ":" + 64 * "0", "x" * 5000])
def test_unknown_algorithm_cannot_be_checked(write_image, recorded):
    with pytest.raises(ImageUnsupportedError, match="is not known here, so it cannot be checked") as caught:
        digest_problems(str(write_image(b"x")), recorded)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("value", ["", "0" * 63, "0" * 65, "g" * 64, "0" * 63 + "\n", "x" * 5000])
def test_what_is_no_digest_cannot_be_checked(write_image, value):
    with pytest.raises(ImageFormatError, match="is damaged, so it cannot be checked") as caught:
        digest_problems(str(write_image(b"x")), f"sha256-tree:{value}")
    assert len(str(caught.value)) < 500


# --- how it works ---


def test_a_descriptor_stays_open(write_image):
    path = write_image(some_stream(MIB))
    image = ImageFile.open(str(path))
    open_before = os.listdir("/proc/self/fd")
    os.rename(path, path.with_suffix(".moved"))
    path.write_bytes(b"another file")
    digest = stream_digest_of(image)
    assert digest == naive_digest(path.with_suffix(".moved"))
    assert os.listdir("/proc/self/fd") == open_before
    image.close()


def test_files_that_are_none(write_image, tmp_path):
    path = write_image(b"")
    with pytest.raises(ImageNotFoundError):
        stream_digest(str(tmp_path / "none"))
    with pytest.raises(ImageFormatError, match="not a regular file"):
        stream_digest(str(tmp_path))
    os.truncate(path, 65535)
    with pytest.raises(ImageFormatError, match="before its QEMU stream would start"):
        stream_digest(str(path))
    (tmp_path / "text").write_bytes(b"text")
    with pytest.raises(ImageFormatError, match="magic is incorrect"):
        stream_digest(str(tmp_path / "text"))


def test_short_reads(write_image, monkeypatch):
    """A read that is interrupted, or crosses what a file system does at a time, returns less."""
    path = write_image(some_stream(4 * MIB + 99, seed=3), 70001)
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: preadv(fd, [buffers[0][:300001]], offset))
    assert stream_digest(str(path)) == naive_digest(path)


@pytest.mark.parametrize("refused", ["open", "read"])
def test_without_o_direct(write_image, monkeypatch, refused):
    path = write_image(some_stream(4 * MIB + 99, seed=3))
    real_open, real_preadv = os.open, os.preadv
    directs: set[int] = set()

    def open_(name, flags, *arguments, **keywords):
        if flags & os.O_DIRECT and refused == "open":
            raise OSError(errno.EINVAL, "Invalid argument")
        descriptor = real_open(name, flags, *arguments, **keywords)
        if flags & os.O_DIRECT:
            directs.add(descriptor)
        return descriptor

    def preadv(descriptor, *arguments):
        if descriptor in directs:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_preadv(descriptor, *arguments)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "preadv", preadv)
    assert stream_digest(str(path)) == naive_digest(path)
    assert bool(directs) == (refused == "read")


def test_a_failing_disk(write_image, monkeypatch):
    path = write_image(some_stream(40 * MIB, seed=3))
    preadv = os.preadv

    def failing(descriptor, buffers, offset):
        if offset > 20 * MIB:
            raise OSError(errno.EIO, "Input/output error")
        return preadv(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", failing)
    with pytest.raises(ImageAccessError, match="cannot read the image: Input/output error"):
        stream_digest(str(path))
    assert threading.active_count() == 1


@pytest.mark.parametrize("length", [0, 1000, 3 * MIB, 8 * MIB - 1, 9 * MIB])
def test_a_file_whose_length_changes_meanwhile(write_image, monkeypatch, length):
    path = write_image(random.Random(1).randbytes(8 * MIB))
    preadv = os.preadv

    def changing(descriptor, buffers, offset):
        os.truncate(path, 65536 + length)
        return preadv(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", changing)
    with pytest.raises(ImageFormatError, match="the file's length changed while it was read"):
        stream_digest(str(path))


def test_is_given_up_at_once(write_image, monkeypatch):
    """50 chunks of which each takes 0.2 s: told to stop in the middle, it is over after those that are being read."""
    path = write_image(random.Random(1).randbytes(50 * MIB))
    stop, began = threading.Event(), threading.Event()
    reads = []
    preadv = os.preadv

    def slow(*arguments):
        reads.append(arguments[2])
        if len(reads) > 8:
            began.set()
        time.sleep(0.2)
        return preadv(*arguments)

    monkeypatch.setattr(os, "preadv", slow)
    errors = []

    def work():
        try:
            stream_digest(str(path), stop=stop)
        except InterruptedOperationError as error:
            errors.append(error)

    worker = threading.Thread(target=work)
    worker.start()
    assert began.wait(20)
    stop.set()
    told = time.monotonic()
    read_before = len(reads)
    worker.join(20)
    assert time.monotonic() - told < 5
    assert len(errors) == 1
    assert len(reads) - read_before <= 1, "at most the one that had just looked"
    assert threading.active_count() == 1


def test_told_to_stop_before_it_begins(write_image):
    stop = threading.Event()
    stop.set()
    with pytest.raises(InterruptedOperationError):
        stream_digest(str(write_image(some_stream(2 * MIB))), stop=stop)


_MEASURE_MEMORY = """
import re, sys
from ansible_collections.vmops.qemu.plugins.module_utils._image.digest import stream_digest
stream_digest(sys.argv[1], sys.argv[2] == "True")
print(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1])
"""


@pytest.mark.parametrize("bypass_cache", [True, False])
def test_memory_does_not_grow_with_the_image(write_image, bypass_cache):
    peaks = []
    for size in (1, 300):
        path = write_image(b"")
        with path.open("ab") as file:
            for _mib in range(size):
                file.write(os.urandom(MIB))
        command = [sys.executable, "-c", _MEASURE_MEMORY, str(path), str(bypass_cache)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        peaks.append(int(subprocess.run(command, env=environment, check=True, capture_output=True).stdout))
    assert peaks[1] - peaks[0] < 40 * 1024, "KiB; a buffer for each of at most eight threads, and their stacks"


def cached(path) -> int:
    """Bytes of the file that are in the page cache."""
    return int(subprocess.run(["fincore", "-nbo", "RES", str(path)], check=True, capture_output=True).stdout)


@pytest.mark.skipif(not shutil.which("fincore"), reason="needs fincore (util-linux)")
@pytest.mark.parametrize("direct", [True, False], ids=["O_DIRECT", "buffered"])
def test_does_not_fill_the_page_cache(write_image, monkeypatch, direct):
    path = write_image(random.Random(1).randbytes(64 * MIB))
    with path.open("r+b") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if cached(path) > MIB:
        pytest.skip("the file system keeps files in the page cache (tmpfs)")
    if not direct:
        real_open = os.open

        def open_(name, flags, *arguments, **keywords):
            if flags & os.O_DIRECT:
                raise OSError(errno.EINVAL, "Invalid argument")
            return real_open(name, flags, *arguments, **keywords)

        monkeypatch.setattr(os, "open", open_)
    digest = stream_digest(str(path))
    assert cached(path) < 8 * MIB
    assert stream_digest(str(path), bypass_cache=False) == digest
    assert cached(path) > 60 * MIB, "this way they stay for whoever reads next"
