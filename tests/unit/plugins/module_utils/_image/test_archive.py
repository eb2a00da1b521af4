# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    ConflictError,
    ImageAccessError,
    ImageError,
    ImageFormatError,
    ImageSpaceError,
    RequestError,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image import archive as archive_module
from ansible_collections.vmops.qemu.plugins.module_utils._image import expand as expand_module
from ansible_collections.vmops.qemu.plugins.module_utils._image.archive import create_archive
from ansible_collections.vmops.qemu.plugins.module_utils._image.archive_reader import is_same_image, read_archive_head
from ansible_collections.vmops.qemu.plugins.module_utils._image.archive_record import unfinished_archive
from ansible_collections.vmops.qemu.plugins.module_utils._image.compressor import COMPRESSORS, Compressor
from ansible_collections.vmops.qemu.plugins.module_utils._image.edit import open_for_edit
from ansible_collections.vmops.qemu.plugins.module_utils._image.expand import expand_archive, undo_archive
from ansible_collections.vmops.qemu.plugins.module_utils._image.header import ImageFormat
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_file import ImageFile, read_image_head
from ansible_collections.vmops.qemu.plugins.module_utils._image.info import describe, directory_info, image_info
from ansible_collections.vmops.qemu.plugins.module_utils._image.names import (
    SUFFIXES,
    archive_path,
    find_archives,
    split_archive_path,
)

PAGE = 4096
FORMATS = pytest.mark.parametrize("image_format", list(SUFFIXES), ids=lambda each: each.label)


def ranges_of(path):
    with ImageFile.open(str(path)) as image:
        return image.data_ranges()


class Tool(Compressor):
    """Compresses with a shell script, and expands as gzip does."""

    def __init__(self, script):
        super().__init__("sh", ("-c", script))

    def expand_command(self):
        return ["gzip", "-dc"]


def archive_it(path, image_format=ImageFormat.GZIP, tight=False):
    with open_for_edit(str(path)) as image:
        return create_archive(image, image_format, tight)


def expand_it(path, image_format=ImageFormat.GZIP):
    with open_for_edit(archive_path(str(path), image_format)) as archive:
        expand_archive(archive)


def undo_it(image):
    state = unfinished_archive(image)
    assert state
    undo_archive(image, state)


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(archive_module, "CHUNK_SIZE", 3 * PAGE + 100)


@pytest.fixture
def large(builder):
    """An image whose data are many chunks, with pages in many places."""
    builder.blocks = [(b"pc.ram", 640 * PAGE, set(range(0, 640, 37)) | {638, 639})]
    builder.write()
    return builder.path


# --- there and back ---


def test_fifo_in_the_place_of_the_new_record_is_not_waited_for(large, small_chunks):
    os.mkfifo(large.with_name(f".{large.name}.archiving.new"))
    signal.alarm(20)  # ends the tests
    try:
        archive_it(large, tight=True)
    finally:
        signal.alarm(0)


@FORMATS
@pytest.mark.parametrize("tight", [False, True])
def test_the_same_bytes_and_the_same_holes(large, image_format, tight, small_chunks):
    if tight and image_format is ImageFormat.LZOP:
        with pytest.raises(RequestError, match="cannot be continued"):
            archive_it(large, image_format, tight)
        assert os.listdir(large.parent) == [large.name]
        return
    os.chmod(large, 0o640)
    os.utime(large, (1e9, 1234567890.25))
    before, ranges = large.read_bytes(), ranges_of(large)
    assert len(ranges) > 15
    assert archive_it(large, image_format, tight) == str(large) + SUFFIXES[image_format]
    assert os.listdir(large.parent) == [large.name + SUFFIXES[image_format]]
    assert find_archives(str(large)) == [image_format]
    facts = os.stat(archive_path(str(large), image_format))
    assert stat.S_IMODE(facts.st_mode) == 0o640
    expand_it(large, image_format)
    assert os.listdir(large.parent) == [large.name]
    assert large.read_bytes() == before
    assert ranges_of(large) == ranges
    assert (stat.S_IMODE(large.stat().st_mode), large.stat().st_mtime) == (0o640, 1234567890.25)


@FORMATS
def test_tar_expands_it(large, image_format, tmp_path, small_chunks):
    before, ranges = large.read_bytes(), ranges_of(large)
    archive = archive_it(large, image_format)
    program = COMPRESSORS[image_format].program
    subprocess.run(["tar", "-I", program, "-C", str(tmp_path), "--sparse", "-xf", archive], check=True)
    assert large.read_bytes() == before
    assert ranges_of(large) == ranges


def test_an_archive_made_by_tar_is_read(large, tmp_path):
    before, head = large.read_bytes(), read_image_head(str(large))
    command = ["tar", "-C", str(tmp_path), "--sparse", "--format=posix", "-czf", f"{large}.tar.gz", large.name]
    subprocess.run(command, check=True)
    large.unlink()
    assert read_archive_head(f"{large}.tar.gz").xml == head.xml
    expand_it(large)
    assert large.read_bytes() == before


def test_images_of_libvirt(copy_of):
    for name in ("raw", "sparse", "sparse-paused"):
        path = copy_of(f"{name}.save")
        before, ranges = path.read_bytes(), ranges_of(path)
        archive_it(path, ImageFormat.ZSTD)
        expand_it(path, ImageFormat.ZSTD)
        assert path.read_bytes() == before
        assert ranges_of(path) == ranges


def test_an_image_that_ends_in_a_hole(builder):
    path = builder.write()
    os.truncate(path, path.stat().st_size + 5 * 1024 * 1024 + 7)
    size = path.stat().st_size
    head = read_archive_head(archive_it(path))
    assert head.size == size


# --- names and what is shown ---


def test_names():
    for image_format in SUFFIXES:
        assert split_archive_path(archive_path("/x/web1.save", image_format)) == ("/x/web1.save", image_format)
    assert split_archive_path("/x/web1.save") == ("/x/web1.save", None)
    assert split_archive_path("/x/.tar.gz") == ("/x/.tar.gz", None)


@FORMATS
def test_info_of_an_archive(large, image_format, tmp_path):
    before = image_info(str(large))
    archive = archive_it(large, image_format)
    info = image_info(str(large), stream=True, verify=True)
    assert info == {**image_info(archive), "stream": None}
    assert (info["state"], info["path"], info["archive"]) == ("archived", archive, image_format.label)
    assert info["readable_by"] == info["problems"] == []
    for key in ("name", "uuid", "size", "stream_offset", "domain_xml", "version", "format", "vm_state"):
        assert info[key] == before[key]
    assert info["allocated"] == os.stat(archive).st_blocks * 512
    assert describe(info).startswith(f"web1: archived ({image_format.label}) sparse image, version 3, ")
    assert [image["state"] for image in directory_info(str(tmp_path))] == ["archived"]


def test_info_of_what_is_none(tmp_path):
    junk = subprocess.run(["gzip", "-c"], input=b"junk" * 1000, stdout=subprocess.PIPE, check=True).stdout
    for content in (b"", b"junk", junk, junk[:-20]):
        (tmp_path / "web1.save.tar.gz").write_bytes(content)
        info = image_info(str(tmp_path / "web1.save"))
        assert (info["state"], len(info["problems"])) == ("invalid", 1)
        assert describe(info).startswith(str(tmp_path / "web1.save.tar.gz"))


def test_info_without_the_tool(large, monkeypatch):
    archive_it(large)
    monkeypatch.setitem(COMPRESSORS, ImageFormat.GZIP, Compressor("no-such-tool"))
    info = image_info(str(large))
    assert info["state"] == "archived"
    assert "no-such-tool" in describe(info)


# --- damage ---


def test_a_damaged_archive_is_kept_and_nothing_is_made_of_it(large, small_chunks):
    archive = archive_it(large, ImageFormat.ZSTD)
    with open(archive, "rb") as file:
        good = file.read()
    middle = len(good) // 2
    flipped = good[:middle] + bytes([good[middle] ^ 0x10]) + good[middle + 1 :]
    for bad in (good[:-1], good[:middle], good[:100], flipped, b"", good + good):
        with open(archive, "wb") as file:
            file.write(bad)
        with pytest.raises(ImageFormatError):
            expand_it(large, ImageFormat.ZSTD)
        assert os.listdir(large.parent) == [os.path.basename(archive)]


def test_a_chunk_that_is_missing_is_noticed(large, small_chunks):
    """An archive that lacks whole chunks is whole for its tool."""
    archive = archive_it(large, ImageFormat.GZIP)
    with open(archive, "r+b") as file:
        content = file.read()
        file.truncate(content.rindex(b"\x1f\x8b\x08\x00"))
    subprocess.run(["gzip", "-t", archive], check=True)
    with pytest.raises(ImageFormatError, match="cut off"):
        expand_it(large, ImageFormat.GZIP)


def test_what_does_not_read_back_is_not_trusted(large, monkeypatch, small_chunks):
    """A tool that loses data: the image stays."""
    before = large.read_bytes()
    monkeypatch.setitem(COMPRESSORS, ImageFormat.GZIP, Tool("head -c 5000 | gzip -c; cat >/dev/null"))
    for tight in (False, True):
        with pytest.raises(ImageFormatError):
            archive_it(large, tight=tight)
        assert large.read_bytes() == before
        assert os.listdir(large.parent) == [large.name]


def test_nothing_is_punched_out_before_it_has_read_back(large, monkeypatch, small_chunks):
    """A tool that loses data of the third chunk."""
    before = large.read_bytes()
    count = large.parent / "count"
    script = (
        f"echo >> {count}; if [ $(wc -l < {count}) = 3 ]; then head -c 5000; else cat; fi | gzip -c; cat >/dev/null"
    )
    monkeypatch.setitem(COMPRESSORS, ImageFormat.GZIP, Tool(script))
    with pytest.raises(ImageFormatError, match="does not read back"):
        archive_it(large, tight=True)
    with open_for_edit(str(large)) as image:
        undo_it(image)
    assert large.read_bytes() == before


def test_a_page_that_changed_is_another_image(large):
    copy = large.parent / "copy"
    subprocess.run(["cp", "--sparse=always", str(large), str(copy)], check=True)
    archive_it(large)
    copy.rename(large)
    with open_for_edit(str(large)) as image:
        assert is_same_image(image, ImageFormat.GZIP)
        end = image.size
        image.write(b"x", ranges_of(large)[-3][0])
        assert image.size == end
        assert not is_same_image(image, ImageFormat.GZIP)


# --- tools that fail, storage that is full ---


@pytest.mark.parametrize(
    ("script", "error", "said"),
    [
        ("exit 3", ImageFormatError, "exit code 3"),
        ("cat >/dev/null; echo bad luck >&2; exit 1", ImageFormatError, "bad luck"),
        ("cat >/dev/null; echo write error: No space left on device >&2; exit 1", ImageSpaceError, "No space left"),
        ("kill -9 $$", ImageError, "ended before its time|killed by signal 9"),
        ("exit 0", ImageError, "ended before its time|cut off|does not read back|unexpected end"),
    ],
)
def test_a_tool_that_fails(large, monkeypatch, script, error, said, small_chunks):
    before = large.read_bytes()
    monkeypatch.setitem(COMPRESSORS, ImageFormat.GZIP, Tool(script))
    for tight in (False, True):
        with pytest.raises(error, match=said):
            archive_it(large, tight=tight)
        assert large.read_bytes() == before
        assert os.listdir(large.parent) == [large.name]


def test_no_room_for_the_expanded_image(large, monkeypatch):
    archive_it(large)
    monkeypatch.setattr(expand_module, "free_bytes", lambda _directory: 50000)
    with pytest.raises(ImageSpaceError, match="has only 50000"):
        expand_it(large)
    assert os.listdir(large.parent) == [f"{large.name}.tar.gz"]


def test_a_save_that_came_meanwhile_is_not_replaced(large):
    archive_it(large)
    large.write_bytes(b"new")
    with pytest.raises(ConflictError):
        expand_it(large)
    assert large.read_bytes() == b"new"
    assert sorted(os.listdir(large.parent)) == [large.name, f"{large.name}.tar.gz"]


def test_a_file_system_without_punching(large, monkeypatch, small_chunks):
    def refuse(*_arguments):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(archive_module, "punch", refuse)
    with pytest.raises(RequestError, match="punch") as caught:
        archive_it(large, tight=True)
    assert "whole" in caught.value.cure
    assert os.listdir(large.parent) == [large.name]
    archive_it(large)


# --- tight ---


def test_tight_never_needs_more_than_a_chunk(builder, monkeypatch):
    """What both files take on disk, after each chunk; random pages do not compress."""
    chunk = 64 * PAGE
    monkeypatch.setattr(archive_module, "CHUNK_SIZE", chunk)
    builder.blocks = [(b"pc.ram", 640 * PAGE, set(range(640)))]
    path = builder.write()
    taken = []
    real = archive_module._compress

    def look(*arguments):
        result = real(*arguments)
        os.sync()
        taken.append(sum(entry.stat().st_blocks * 512 for entry in os.scandir(path.parent)))
        return result

    monkeypatch.setattr(archive_module, "_compress", look)
    before = path.stat().st_blocks * 512
    archive_it(path, tight=True)
    assert len(taken) == 11
    assert max(taken) < before + 2 * chunk
    builder.write()
    os.unlink(f"{path}.tar.gz")
    taken.clear()
    archive_it(path)
    assert max(taken) > 1.9 * before


def fail_after(monkeypatch, chunks):
    """The tool of the gzip format fails after so many chunks."""
    real = archive_module._compress
    count = 0

    def compress(*arguments):
        nonlocal count
        count += 1
        if count > chunks:
            raise ImageSpaceError("/x", "the storage is full", cure="Free space")
        return real(*arguments)

    monkeypatch.setattr(archive_module, "_compress", compress)


def test_an_error_in_the_middle_says_what_is_where(large, monkeypatch, small_chunks):
    before, ranges = large.read_bytes(), ranges_of(large)
    fail_after(monkeypatch, 3)
    with pytest.raises(ImageSpaceError) as caught:
        archive_it(large, tight=True)
    monkeypatch.undo()
    partial = str(large.parent / f".{large.name}.tar.gz.partial")
    situation = caught.value.situation
    assert situation
    assert str(large) in situation.sentence
    assert partial in situation.sentence
    assert (situation.guest, situation.image) == ("unknown", "partial")
    assert caught.value.cure.startswith("Free space; then run vmops.qemu.qemu_save_image with archive: gzip")
    info = image_info(str(large))
    assert info["state"] == "partial"
    assert "archive: gzip" in info["problems"][0]
    assert large.stat().st_blocks * 512 < sum(length for _offset, length in ranges)
    assert large.read_bytes() != before
    with open_for_edit(str(large)) as image:
        state = unfinished_archive(image)
        assert state
        assert state.chunks == 3
        undo_it(image)
    assert large.read_bytes() == before
    assert ranges_of(large) == ranges
    assert os.listdir(large.parent) == [large.name]


@pytest.mark.parametrize("where", ["archive", "record"])
def test_parts_that_were_spoilt_are_not_put_together(large, monkeypatch, small_chunks, where):
    fail_after(monkeypatch, 3)
    with pytest.raises(ImageSpaceError):
        archive_it(large, tight=True)
    monkeypatch.undo()
    if where == "archive":
        os.truncate(large.parent / f".{large.name}.tar.gz.partial", 1000)
    else:
        (large.parent / f".{large.name}.archiving").write_text("{}")
    with open_for_edit(str(large)) as image, pytest.raises(ImageFormatError):
        undo_it(image)
    assert image_info(str(large))["state"] == "partial"


def test_a_record_of_another_image_counts_for_nothing(large, monkeypatch, small_chunks):
    fail_after(monkeypatch, 3)
    with pytest.raises(ImageSpaceError):
        archive_it(large, tight=True)
    monkeypatch.undo()
    other = large.parent / "other"
    other.write_bytes(large.read_bytes())
    with open_for_edit(str(large)) as image:
        assert unfinished_archive(image)
        os.rename(other, large)
    with open_for_edit(str(large)) as image:
        assert unfinished_archive(image) is None


def test_reading_that_fails(large, monkeypatch, small_chunks):
    def fail(*_arguments):
        raise ImageAccessError("/x", "cannot read")

    monkeypatch.setattr(ImageFile, "read", fail)
    with pytest.raises(ImageAccessError):
        archive_it(large)
