# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    ConflictError,
    ImageAccessError,
    ImageFormatError,
    ImageNotFoundError,
    ImageSpaceError,
    ImageUnsafeError,
    RequestError,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image import file as file_module
from ansible_collections.vmops.qemu.plugins.module_utils._image.file import (
    EDIT_ROOM,
    MAX_TEXT_SIZE,
    PartialImage,
    direct_read_reason,
    file_identity,
    flush_image,
    free_bytes,
    image_lock,
    image_path,
    leftovers,
    make_save_directory,
    open_image,
    read_image_head,
    remove_image,
    remove_leftovers,
    require_safe_image,
    require_writable_directory,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.header import (
    HEADER_SIZE,
    MAGIC_COMPLETE,
    MAGIC_PARTIAL,
    ImageFormat,
    SaveImageHeader,
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


def raw_image(path, data: bytes, data_length: int, cookie_offset: int = 0) -> str:
    header = SaveImageHeader(2, ImageFormat.RAW, True, True, data_length, cookie_offset)
    path.write_bytes(header.pack() + data)
    return str(path)


# --- reading ---


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


def test_refuses_what_is_no_regular_file_without_blocking(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (fifo, tmp_path, "/dev/null"):
        with pytest.raises(ImageFormatError, match="not a regular file"):
            read_image_head(str(path))


def test_a_missing_image(tmp_path):
    with pytest.raises(ImageNotFoundError, match="No such file"):
        read_image_head(str(tmp_path / "none"))


def test_a_descriptor_of_the_caller_stays_open(golden):
    path = str(golden / "raw.save")
    descriptor = open_image(path)
    assert os.get_blocking(descriptor)
    assert read_image_head(path, descriptor) == read_image_head(path)
    os.close(descriptor)


def test_direct_read(golden, monkeypatch):
    path = str(golden / "raw.save")
    assert direct_read_reason(path) is None

    def refuse(*_arguments):
        raise OSError(errno.EINVAL, "odd")

    monkeypatch.setattr(os, "preadv", refuse)
    assert "O_DIRECT" in str(direct_read_reason(path))


def test_image_path():
    assert image_path("/a/../b.save", "/d", "n") == "/b.save"
    assert image_path(None, "/d/", "web1") == "/d/web1.save"
    for name in (None, "", "a/b", "..", "a\0"):
        with pytest.raises(RequestError):
            image_path(None, "/d", name)


# --- making ---


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


def test_identity_tells_one_file_from_another(target):
    assert file_identity(target) == ""
    Path(target).write_text("one")
    one = file_identity(target)
    Path(target + ".other").write_text("one")
    os.rename(target + ".other", target)
    assert file_identity(target) not in (one, "")


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


# --- leftovers ---


@pytest.fixture
def leftover(target) -> str:
    """What a save leaves that was killed."""
    script = (
        "import sys, os, signal\n"
        "from ansible_collections.vmops.qemu.plugins.module_utils._image.file import PartialImage\n"
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


# --- the rest ---


def test_remove_image(tmp_path):
    path = tmp_path / "i"
    path.write_bytes(b"")
    remove_image(str(path))
    with pytest.raises(ImageNotFoundError):
        remove_image(str(path))
    with pytest.raises(ImageFormatError):
        remove_image(str(tmp_path))


def test_flush_image(golden, tmp_path):
    flush_image(str(golden / "raw.save"))
    with pytest.raises(ImageNotFoundError):
        flush_image(str(tmp_path / "none"))


def test_free_bytes(tmp_path):
    assert (free_bytes(str(tmp_path)) or 0) > 0
    with pytest.raises(ImageNotFoundError):
        free_bytes(str(tmp_path / "none"))


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


def test_only_the_header_module_knows_the_magic():
    assert struct.calcsize("<16s6I52x") == HEADER_SIZE
    assert "Libvirt" not in Path(file_module.__file__).read_text()


# --- whom to trust ---


def test_a_directory_that_can_be_written(tmp_path):
    assert require_writable_directory(str(tmp_path)) == str(tmp_path)
    assert require_writable_directory(str(tmp_path / "a" / "b"), may_be_made=True) == str(tmp_path)
    with pytest.raises(ImageNotFoundError, match="No such file"):
        require_writable_directory(str(tmp_path / "a" / "b"))
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "b"):
        for may_be_made in (False, True):
            with pytest.raises(ImageNotFoundError, match="Not a directory"):
                require_writable_directory(str(path), may_be_made)


def test_the_save_directory_is_private(tmp_path):
    path = tmp_path / "a" / "save"
    for _again in range(2):
        make_save_directory(str(path))
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    path.chmod(0o750)
    make_save_directory(str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o750
    (tmp_path / "file").write_text("")
    with pytest.raises(ImageAccessError):
        make_save_directory(str(tmp_path / "file" / "save"))


@pytest.fixture
def private(tmp_path):
    """A directory below which only modes decide whether an image is safe."""
    if tmp_path.stat().st_uid not in (0, os.geteuid()):
        pytest.fail("the temporary directory belongs to another user")
    directory = tmp_path / "private"
    directory.mkdir(0o700)
    image = directory / "web1.save"
    image.write_bytes(b"")
    image.chmod(0o600)
    return image


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_an_image_that_others_may_write_is_not_safe(private, mode):
    require_safe_image(str(private))
    private.chmod(mode)
    with pytest.raises(ImageUnsafeError, match=r"web1\.save belongs to"):
        require_safe_image(str(private))


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o1777])
def test_an_image_in_a_directory_that_others_may_write_is_not_safe(private, mode):
    private.parent.chmod(mode)
    with pytest.raises(ImageUnsafeError, match="private belongs to"):
        require_safe_image(str(private))


def test_directories_above_may_be_shared_if_sticky(private):
    above = private.parent.parent
    above.chmod(0o1777)
    require_safe_image(str(private))
    above.chmod(0o777)
    with pytest.raises(ImageUnsafeError):
        require_safe_image(str(private))
    above.chmod(0o700)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_an_image_of_another_user_is_not_safe(private):
    os.chown(private, 12345, -1)
    with pytest.raises(ImageUnsafeError, match="user 12345"):
        require_safe_image(str(private))


def test_a_link_to_an_unsafe_image_is_not_safe(private, tmp_path):
    private.chmod(0o666)
    link = tmp_path / "link"
    link.symlink_to(private)
    with pytest.raises(ImageUnsafeError):
        require_safe_image(str(link))
