# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""An image in the making, and what a killed save has left."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    ConflictError,
    ImageAccessError,
    ImageFormatError,
    ImageNotFoundError,
    ImageSpaceError,
    RequestError,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.head import EDIT_ROOM, MAX_TEXT_SIZE
from ansible_collections.vmops.qemu.plugins.module_utils._image.header import (
    HEADER_SIZE,
    MAGIC_COMPLETE,
    MAGIC_PARTIAL,
    ImageFormat,
    SaveImageHeader,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_file import (
    read_image_head,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_lock import image_lock
from ansible_collections.vmops.qemu.plugins.module_utils._image.info import image_info
from ansible_collections.vmops.qemu.plugins.module_utils._image.names import new_partial_name
from ansible_collections.vmops.qemu.plugins.module_utils._image.partial import PartialImage, leftovers, remove_leftovers
from ansible_collections.vmops.qemu.plugins.module_utils._image.place import (
    exchange_names,
    flush_image,
    remove_image,
)

HEADER = SaveImageHeader(3, ImageFormat.SPARSE, True)
XML = "<domain><name>wéb1</name></domain>"


@pytest.fixture
def target(tmp_path) -> str:
    return str(tmp_path / "web1.save")


@pytest.fixture
def older(target) -> Path:
    """An image that is at the target already."""
    path = Path(target)
    path.write_text("older")
    return path


@pytest.fixture
def partial(target):
    image = PartialImage.create(target, HEADER, XML, "<cookie/>")
    yield image
    image.discard()


def test_a_new_image_is_partial_locked_and_beside_the_target(partial, target, tmp_path):
    assert os.path.dirname(partial.path) == str(tmp_path)
    assert os.path.basename(partial.path).startswith(".web1.save.")
    assert not os.path.exists(target)
    head = read_image_head(partial.path)
    assert head.header == partial.header
    assert (head.header.complete, head.header.format, head.header.was_running) == (False, ImageFormat.SPARSE, True)
    assert (head.xml, head.cookie, head.mode) == (XML, "<cookie/>", 0o600)
    assert head.size == partial.stream_offset
    assert partial.stream_offset % 65536 == 0
    text = HEADER_SIZE + len(XML.encode()) + 1 + len("<cookie/>") + 1
    with open(partial.path, "rb") as file:
        file.seek(text)
        room = file.read()
        assert len(room) >= EDIT_ROOM
        assert not any(room)
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_mode_and_owner(target):
    image = PartialImage.create(target, HEADER, XML, mode=0o640, uid=os.geteuid(), gid=os.getegid())
    assert stat.S_IMODE(os.stat(image.path).st_mode) == 0o640
    image.discard()


def test_finish(older, partial, target):
    descriptor = partial.open_for_qemu()
    os.pwrite(descriptor, b"QEVM", partial.stream_offset)
    os.close(descriptor)
    partial.flush()
    assert older.read_text() == "older"
    partial.finish()
    head = read_image_head(target)
    assert head.header.complete
    assert (head.xml, head.cookie) == (XML, "<cookie/>")
    assert os.listdir(os.path.dirname(target)) == ["web1.save"]
    with open(target, "rb") as file:
        assert file.read()[partial.stream_offset :] == b"QEVM"
    partial.discard()
    assert os.path.exists(target)


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("xml", [None, "<domain/>"])
def test_finish_of_a_guest_that_goes_on(partial, target, monkeypatch, checkpoint, xml):
    """The mark comes with the complete magic, in one write: before there is an image without it."""
    written = []
    real = os.pwrite

    def pwrite(descriptor, data, offset):
        written.append(bytes(data[:HEADER_SIZE]))
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    partial.finish(xml, checkpoint=checkpoint)
    complete = [SaveImageHeader.parse(data, target) for data in written if data.startswith(MAGIC_COMPLETE)]
    assert [header.checkpoint for header in complete] == [checkpoint]
    assert read_image_head(target).header.checkpoint is checkpoint


@pytest.mark.parametrize("xml", ["<domain/>", "<domain>" + "x" * 60000 + "</domain>"])
def test_finish_with_another_xml(partial, target, xml):
    stream_offset = partial.stream_offset
    partial.finish(xml)
    head = read_image_head(target)
    assert (head.xml, head.cookie) == (xml, "<cookie/>")
    assert head.header.stream_offset == stream_offset


def test_an_xml_beyond_its_room_leaves_the_target(partial, target):
    with pytest.raises(RequestError, match="need 2000"):
        partial.finish("x" * 200000)
    assert not os.path.exists(target)
    assert read_image_head(partial.path).xml == XML


def test_finish_flushes_before_the_magic_before_the_rename(partial, target, monkeypatch):
    steps = []

    def watch(name, describe):
        original = getattr(os, name)

        def watched(*arguments, **keywords):
            steps.append(describe(*arguments))
            return original(*arguments, **keywords)

        monkeypatch.setattr(os, name, watched)

    watch(
        "fsync", lambda descriptor: "flush " + ("directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
    )
    watch("pwrite", lambda _descriptor, data, offset: (bytes(data[:16]), offset))
    watch("rename", lambda *_arguments: "rename")
    partial.finish()
    assert steps == ["flush file", (MAGIC_COMPLETE, 0), "flush file", "rename", "flush directory"]


@pytest.mark.parametrize("failing_flush", [1, 2])
def test_a_failing_flush_leaves_the_target(older, partial, target, monkeypatch, failing_flush):
    count = 0

    def fsync(_descriptor):
        nonlocal count
        count += 1
        if count == failing_flush:
            raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(ImageSpaceError, match="cannot flush the image"):
        partial.finish()
    assert older.read_text() == "older"
    partial.discard()
    assert os.listdir(os.path.dirname(target)) == ["web1.save"]


def fail_directory_flush(monkeypatch, *also):
    """The rename is done, and then the directory is not flushed any more, nor does what is named here work."""
    real_fsync, broken = os.fsync, []

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            broken.append(True)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if broken and "fsync" in also:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real_fsync(descriptor)

    def refuse(real):
        def call(*arguments, **keywords):
            if broken:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))
            return real(*arguments, **keywords)

        return call

    monkeypatch.setattr(os, "fsync", fsync)
    if "names" in also:
        monkeypatch.setattr(os, "rename", refuse(os.rename))
        monkeypatch.setattr(os, "unlink", refuse(os.unlink))
        monkeypatch.setattr(f"{PartialImage.__module__}.exchange_names", refuse(exchange_names))
    if "write" in also:
        monkeypatch.setattr(os, "pwrite", refuse(os.pwrite))
        monkeypatch.setattr(os, "ftruncate", refuse(os.ftruncate))


def test_older_image_that_a_crash_has_left_under_the_name_of_a_partial_one_is_none(partial, target):
    """It has changed names with the image that replaced it, and was not removed yet."""
    partial.finish()
    partial.release()
    left = os.path.join(os.path.dirname(target), new_partial_name(target))
    os.rename(target, left)
    assert not read_image_head(left).header.complete
    assert image_info(left)["state"] == "partial"
    os.rename(left, target)
    assert read_image_head(target).header.complete


@pytest.mark.parametrize("is_older", [False, True])
def test_directory_that_is_not_flushed_has_the_older_image_back(partial, target, monkeypatch, is_older):
    """As far as the names go; and what was written is no image, should the storage have the new name only."""
    partial.discard()
    if is_older:
        Path(target).write_text("older")
    image = PartialImage.create(target, HEADER, XML)
    facts = os.stat(target) if is_older else None
    adoptable = os.stat(image.path)
    fail_directory_flush(monkeypatch)
    with pytest.raises(ImageAccessError, match="cannot flush the directory") as caught:
        image.finish()
    first, *more = caught.value.what.split("; ")
    assert first.endswith("Input/output error")
    assert [f"may be {image.path}" in each for each in more] == ([True] if is_older else [])
    assert not read_image_head(image.path).header.complete
    assert os.path.samestat(os.stat(image.path), adoptable)
    image.discard()
    assert os.listdir(os.path.dirname(target)) == (["web1.save"] if is_older else [])
    if facts:
        assert Path(target).read_text() == "older"
        assert os.path.samestat(os.stat(target), facts)


def test_image_that_was_replaced_without_an_exchange_is_said_to_be_lost(older, target, monkeypatch):
    """As on a file system that cannot exchange files."""
    monkeypatch.setattr(f"{PartialImage.__module__}.exchange_names", lambda *_arguments: False)
    fail_directory_flush(monkeypatch)
    image = PartialImage.create(target, HEADER, XML)
    with pytest.raises(ImageAccessError, match="the image that was there before is lost"):
        image.finish()
    image.discard()
    assert os.listdir(os.path.dirname(target)) == []


def test_image_that_cannot_be_removed_is_made_partial(older, target, monkeypatch):
    """Its header is still written, where the names in its directory cannot be changed."""
    fail_directory_flush(monkeypatch, "names")
    image = PartialImage.create(target, HEADER, XML)
    with pytest.raises(ImageAccessError, match="marked as partial, so that no restore takes it") as caught:
        image.finish(checkpoint=True)
    head = read_image_head(target)
    assert (head.header.complete, head.header.checkpoint, head.xml) == (False, False, XML)
    assert f"the image that was there before is {image.path}" in caught.value.what
    assert Path(image.path).read_text() == "older"
    with contextlib.suppress(ImageAccessError):
        image.discard()


@pytest.mark.parametrize("header", ["write", "fsync"])
def test_complete_image_that_stays_is_told(target, monkeypatch, header):
    """Neither its name nor its header: where ext4 has given up its journal."""
    fail_directory_flush(monkeypatch, "names", header)
    image = PartialImage.create(target, HEADER, XML)
    with pytest.raises(ImageAccessError, match="cannot flush the directory") as caught:
        image.finish()
    assert f"the image of this failed save stays at {target}, complete" in caught.value.what
    assert f"remove {target} before anyone restores it" in caught.value.cure
    with contextlib.suppress(ImageAccessError):
        image.discard()


def test_complete_image_that_may_be_back_after_a_crash_is_told(target, monkeypatch):
    """It lost its name, but nobody knows whether on the storage, and its header could not be changed."""
    fail_directory_flush(monkeypatch, "write")
    image = PartialImage.create(target, HEADER, XML)
    with pytest.raises(ImageAccessError, match="complete, after a crash of the host") as caught:
        image.finish()
    assert f"see that {target} is not there" in caught.value.cure
    assert not os.path.exists(target)
    image.discard()


def test_complete_leftover_is_told(partial, monkeypatch):
    """Also by its own name it would be restored: it is its magic that tells."""
    count = 0

    def fsync(_descriptor):
        nonlocal count
        count += 1
        if count > 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(ImageAccessError, match="complete, after a crash of the host") as caught:
        partial.finish()
    assert f"see that {partial.path} is not there" in caught.value.cure


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_leftover_of_a_save_that_failed_after_its_magic_is_partial(partial, target, monkeypatch, call):
    """Nobody may take it for an image by its own name, should it not be removed."""
    real, calls = getattr(os, call), 0

    def once(*arguments, **keywords):
        nonlocal calls
        calls += 1
        if calls == {"fsync": 2, "rename": 1}[call]:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(*arguments, **keywords)

    monkeypatch.setattr(os, call, once)
    with pytest.raises(ImageAccessError):
        partial.finish()
    assert not read_image_head(partial.path).header.complete


def test_write_back_goes_on_until_it_is_stopped(partial, monkeypatch):
    stop, advised = threading.Event(), []

    def advise(descriptor, *arguments):
        advised.append((os.path.samestat(os.fstat(descriptor), os.stat(partial.path)), *arguments))
        if len(advised) == 3:
            stop.set()

    monkeypatch.setattr(os, "posix_fadvise", advise)
    partial.write_back(stop)
    assert advised == [(True, 0, 0, os.POSIX_FADV_DONTNEED)] * 3


def test_write_back_has_data_reach_the_storage(partial):
    """Nobody flushes: what is written has its place on the disk, and leaves the page cache, by this alone."""
    descriptor = partial.open_for_qemu()
    os.pwrite(descriptor, os.urandom(8 << 20), partial.stream_offset)
    os.close(descriptor)
    stop = threading.Event()
    thread = threading.Thread(target=partial.write_back, args=(stop,))
    thread.start()
    try:
        deadline = time.monotonic() + 20
        while is_cached(partial.path, partial.stream_offset + (4 << 20)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        stop.set()
        thread.join()


def is_cached(path, offset):
    """Whether this part of a file is in the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return bool(os.preadv(descriptor, [bytearray(4096)], offset, os.RWF_NOWAIT))
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


def test_write_back_leaves_errors_to_the_flush(partial, monkeypatch):
    def advise(_descriptor, *_arguments):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "posix_fadvise", advise)
    before = len(os.listdir("/proc/self/fd"))
    partial.write_back(threading.Event())
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("there_before", [False, True])
def test_finish_leaves_an_image_that_another_run_put_there_meanwhile(target, there_before):
    if there_before:
        Path(target).write_text("older")
    partial = PartialImage.create(target, HEADER, XML)
    other = PartialImage.create(target, HEADER, "<domain>other</domain>")
    other.finish()
    other.release()
    with pytest.raises(ConflictError, match="Another image was put at"):
        partial.finish()
    partial.discard()
    assert read_image_head(target).xml == "<domain>other</domain>"


def test_the_lock_stays_after_finish_until_release(partial, target):
    partial.finish()
    with pytest.raises(ConflictError, match="by another run"), image_lock(target):
        pass
    partial.release()
    with image_lock(target), pytest.raises(ConflictError, match="by another run"), image_lock(target):
        pass
    with image_lock(target):
        pass


def test_discard_may_be_repeated_and_leaves_a_stranger(partial):
    os.rename(partial.path, partial.path + ".moved")
    with open(partial.path, "w") as file:
        file.write("a stranger")
    partial.discard()
    partial.discard()
    assert Path(partial.path).read_text() == "a stranger"


def test_finish_notices_that_its_file_was_replaced(partial, target):
    os.unlink(partial.path)
    with pytest.raises(ImageNotFoundError, match="rename"):
        partial.finish()
    assert not os.path.exists(target)


def test_descriptors_for_qemu_are_separate_and_write_only(partial):
    buffered, direct = partial.open_for_qemu(), partial.open_for_qemu(direct=True)
    try:
        flags = [fcntl.fcntl(descriptor, fcntl.F_GETFL) for descriptor in (buffered, direct)]
        assert [flag & os.O_ACCMODE for flag in flags] == [os.O_WRONLY] * 2
        assert [bool(flag & os.O_DIRECT) for flag in flags] == [False, True]
        os.lseek(buffered, 7, os.SEEK_SET)
        assert os.lseek(direct, 0, os.SEEK_CUR) == 0
    finally:
        os.close(buffered)
        os.close(direct)


def test_direct_io_is_probed_and_leaves_no_trace(partial):
    assert partial.direct_io_reason() is None
    assert os.stat(partial.path).st_size == partial.stream_offset


def test_a_file_system_without_direct_io(target, monkeypatch):
    original = os.open

    def refuse(path, flags, *arguments, **keywords):
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return original(path, flags, *arguments, **keywords)

    monkeypatch.setattr(os, "open", refuse)
    image = PartialImage.create(target, HEADER, XML)
    assert "does not take O_DIRECT: Invalid argument" in str(image.direct_io_reason())
    with pytest.raises(ImageAccessError, match="O_DIRECT"):
        image.open_for_qemu(direct=True)
    image.discard()


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink("/etc/passwd", path)])
def test_refuses_a_target_that_is_no_regular_file(target, tmp_path, make):
    make(target)
    with pytest.raises(RequestError, match="not a regular file"):
        PartialImage.create(target, HEADER, XML)
    assert os.listdir(tmp_path) == ["web1.save"]


@pytest.mark.parametrize("xml", ["a\0b", "\ud800", "x" * MAX_TEXT_SIZE])
def test_refuses_text_that_cannot_be_stored(target, tmp_path, xml):
    with pytest.raises(RequestError, match="domain XML"):
        PartialImage.create(target, HEADER, xml)
    assert not os.listdir(tmp_path)


def test_no_directory(tmp_path):
    with pytest.raises(ImageNotFoundError, match="open the directory"):
        PartialImage.create(str(tmp_path / "none" / "web1.save"), HEADER, XML)


def test_a_full_disk_leaves_no_file(target, tmp_path, monkeypatch):
    def full(*_arguments):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(ImageSpaceError):
        PartialImage.create(target, HEADER, XML)
    assert not os.listdir(tmp_path)


@pytest.fixture
def leftover(target) -> str:
    """What a save leaves that was killed."""
    script = (
        "import sys, os, signal\n"
        "from ansible_collections.vmops.qemu.plugins.module_utils._image.partial import PartialImage\n"
        "from ansible_collections.vmops.qemu.plugins.module_utils._image.header import ImageFormat, SaveImageHeader\n"
        "image = PartialImage.create(sys.argv[1], SaveImageHeader(3, ImageFormat.SPARSE, True), '<domain/>', 'c')\n"
        "print(image.path, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", script, target], env=environment, stdout=subprocess.PIPE, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL
    return done.stdout.strip()


def test_a_leftover_is_told_from_one_in_use_and_from_others(leftover, partial, target, tmp_path):
    other = tmp_path / ".web1.save.0123.partial"
    another = tmp_path / ".other.save.0123456789abcdef.partial"
    link = tmp_path / ".web1.save.0123456789abcdef.partial"
    for path in (other, another):
        path.write_bytes(MAGIC_PARTIAL)
    link.symlink_to(another)
    assert leftovers(target) == [leftover]
    assert remove_leftovers(target) == [leftover]
    assert not os.path.exists(leftover)
    for path in (partial.path, other, another, link):
        assert os.path.lexists(path)


def test_adopting_a_leftover_finishes_it(leftover, target):
    image = PartialImage.adopt(leftover)
    assert (image.target, image.path) == (target, leftover)
    assert leftovers(target) == []
    image.finish("<domain>new</domain>")
    image.release()
    head = read_image_head(target)
    assert (head.header.complete, head.xml, head.cookie) == (True, "<domain>new</domain>", "c")


def test_what_cannot_be_adopted(partial, tmp_path):
    with pytest.raises(ConflictError):
        PartialImage.adopt(partial.path)
    with pytest.raises(RequestError, match="not a partial image"):
        PartialImage.adopt(str(tmp_path / "web1.save"))
    with pytest.raises(ImageNotFoundError):
        PartialImage.adopt(str(tmp_path / ".web1.save.0123456789abcdef.partial"))


def finish_and_release(image):
    image.finish()
    image.release()


def test_no_descriptor_is_left_open(target, leftover):
    before = len(os.listdir("/proc/self/fd"))
    for work in (
        lambda: PartialImage.create(target, HEADER, XML).discard(),
        lambda: finish_and_release(PartialImage.create(target, HEADER, XML)),
        lambda: read_image_head(target),
        lambda: leftovers(target),
        lambda: flush_image(target),
        lambda: remove_leftovers(target),
        lambda: remove_image(target),
    ):
        work()
    with pytest.raises(ImageFormatError):
        read_image_head("/dev/null")
    assert len(os.listdir("/proc/self/fd")) == before
