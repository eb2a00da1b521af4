# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The file of a save image: its head on reading, and the careful making of a new one.

All calls block; nothing in here knows of a running QEMU or of an event loop.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import mmap
import os
import re
import secrets
import stat
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    BusyError,
    ConflictError,
    ImageAccessError,
    ImageError,
    ImageFormatError,
    ImageUnsafeError,
    LockHeldError,
    MismatchError,
    RequestError,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image import domain_xml
from ansible_collections.vmops.qemu.plugins.module_utils._image.header import HEADER_SIZE, SaveImageHeader
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_errors import image_errors
from ansible_collections.vmops.qemu.plugins.module_utils._lock import (
    LOCK_TIMEOUT,
    file_lock,
    lock,
    named_lock,
    unlock,
)
from ansible_collections.vmops.qemu.plugins.module_utils._safe_path import (
    why_replaceable,
    why_unsafe,
    why_unsafe_directory,
)

MAX_TEXT_SIZE = 4 * 1024 * 1024
"""Bytes of domain XML, and of cookie, that are read at most: what libvirt's own protocol carries (4 MiB)."""
EDIT_ROOM = 64 * 1024
"""Zeros after XML and cookie, in bytes, so that a longer XML still fits later; as many as libvirt leaves."""
STREAM_ALIGNMENT = 64 * 1024
"""The QEMU stream of a new image starts at a multiple of this many bytes."""

_DIRECT_IO_BLOCK = 4096
_DIRECT_IO_ALIGNMENT = 1024 * 1024
_DIRECTORY_LOCK_TIMEOUT = 10.0
"""Seconds for which the lock of a save directory is waited for; a run holds it for one rename."""
_SET_ASIDE = 64 * 1024 * 1024
"""Bytes that a file system may set aside behind the end of a file, however small that is."""


def image_path(path: str | None, save_dir: str, name: str | None) -> str:
    """The image's absolute path: as given, or C(<save_dir>/<name>.save).

    :raises RequestError: neither a path nor a name that can stand in a file name.
    """
    if path:
        return os.path.abspath(path)
    if not name:
        raise RequestError("Neither path nor name says which image is meant", cure="Give one of them")
    if "/" in name or "\0" in name or name in (".", ".."):
        raise RequestError(
            f"The VM's name {name!r} cannot stand in a file name", cure="Give the image's path in the path option"
        )
    return os.path.join(os.path.abspath(save_dir), f"{name}.save")


def require_image_of(path: str, found: str, name: str | None) -> None:
    """Check that an image holds the VM for which it is used, where both are said.

    :param found: the name of the VM that it holds.
    :raises MismatchError: it holds another one.
    """
    if name and found != name:
        raise MismatchError(f"{path} holds {found or 'a VM without a name'}, not {name}", cure="Correct name or path")


# --- reading ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ImageHead:
    """What a save image holds before the QEMU stream, and what the file system says of it.

    C(size) and C(allocated) are bytes (C(allocated) without holes), C(mtime) is seconds since the epoch, C(mode) the
    permission bits. C(cookie) is empty when the image has none. C(file_id) is the file's device and inode, by which it
    is known again: another user may turn a path in a directory of his to any file of root's.
    """

    path: str
    header: SaveImageHeader
    xml: str
    cookie: str
    size: int
    allocated: int
    mtime: float
    uid: int
    gid: int
    mode: int
    file_id: tuple[int, int]

    def domain(self) -> domain_xml.ParsedDomain:
        """What the domain XML says.

        Our record is left out of an image of libvirt's own, which has a cookie: there it is a copy from the image of
        ours that libvirt had restored the VM from, and says nothing about this one.

        :raises ImageFormatError: the XML makes no sense.
        """
        domain = domain_xml.parse(self.xml, self.path)
        return dataclasses.replace(domain, launch=None, save_facts=None, voucher="") if self.cookie else domain


def open_image(path: str, direct: bool = False) -> int:
    """Open an image for reading; the caller closes the descriptor.

    :param direct: open it with O_DIRECT.
    :raises ImageNotFoundError: there is no file.
    :raises ImageAccessError: it cannot be opened (with C(direct): also where the file system has no O_DIRECT).
    :raises ImageFormatError: it is a directory, FIFO, socket or device.
    """
    with image_errors(path, "open the image"):
        require_regular(os.stat(path), path)  # a device may act on being opened, so look before
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (os.O_DIRECT if direct else 0))
        try:
            require_regular(os.fstat(descriptor), path)
            os.set_blocking(descriptor, True)
        except BaseException:  # whatever it is, a signal, too: the descriptor is nobody's yet
            os.close(descriptor)
            raise
    return descriptor


def open_image_of(head: ImageHead, direct: bool = False) -> int:
    """Open the very image of which the head was read, for a QEMU, which may be another user's.

    The parameters and errors are those of C(open_image).

    :raises ConflictError: another file is at its path by now.
    """
    descriptor = open_image(head.path, direct)
    if file_id_of(descriptor) != head.file_id:
        os.close(descriptor)
        raise ConflictError(
            f"{head.path} was replaced by another file just now, which is not given to QEMU", cure="Run the task again"
        )
    return descriptor


def direct_read_reason(path: str) -> str | None:
    """Why the image cannot be read with O_DIRECT, or None when it can.

    :raises ImageError: it cannot be opened at all.
    """
    os.close(open_image(path))
    try:
        descriptor = open_image(path, direct=True)
    except ImageAccessError as error:
        return f"the file system does not take O_DIRECT: {error.problem}"
    try:
        with mmap.mmap(-1, _DIRECT_IO_BLOCK) as block:
            os.preadv(descriptor, [block], 0)
    except OSError as error:
        return f"the file system does not take an aligned O_DIRECT read: {error.strerror}"
    finally:
        os.close(descriptor)
    return None


def read_image_head(path: str, descriptor: int | None = None) -> ImageHead:
    """Read header, domain XML and cookie of an image, complete or partial.

    :param descriptor: an open descriptor of the image, where the caller holds one; it stays open.
    :raises ImageNotFoundError: there is no file.
    :raises ImageAccessError: it cannot be read.
    :raises ImageFormatError: it is no save image, or its lengths contradict each other or the file's size.
    :raises ImageUnsupportedError: a version, feature or format that is not known.
    """
    if descriptor is None:
        descriptor = open_image(path)
        try:
            return read_image_head(path, descriptor)
        finally:
            os.close(descriptor)
    facts = os.fstat(descriptor)
    header = SaveImageHeader.parse(read_at(descriptor, HEADER_SIZE, 0, path), path)
    if header.stream_offset > facts.st_size:
        raise ImageFormatError(
            path,
            f"the file ends at byte {facts.st_size}, before its QEMU stream would start (byte {header.stream_offset})",
        )
    xml_length = header.cookie_offset or header.data_length
    cookie_length = header.data_length - xml_length
    return ImageHead(
        path=path,
        header=header,
        xml=_read_text(descriptor, HEADER_SIZE, xml_length, path, "domain XML"),
        cookie=_read_text(descriptor, HEADER_SIZE + xml_length, cookie_length, path, "cookie"),
        size=facts.st_size,
        allocated=facts.st_blocks * 512,
        mtime=facts.st_mtime,
        uid=facts.st_uid,
        gid=facts.st_gid,
        mode=stat.S_IMODE(facts.st_mode),
        file_id=(facts.st_dev, facts.st_ino),
    )


def read_at(descriptor: int, length: int, offset: int, path: str) -> bytes:
    """Up to C(length) bytes at C(offset); fewer only where the file ends.

    :raises ImageAccessError: the read failed.
    """
    pieces = []
    with image_errors(path, "read the image"):
        while length > 0:
            piece = os.pread(descriptor, length, offset)
            if not piece:
                break
            pieces.append(piece)
            length -= len(piece)
            offset += len(piece)
    return b"".join(pieces)


def _read_text(descriptor: int, offset: int, length: int, path: str, what: str) -> str:
    """The NUL-terminated UTF-8 text in the C(length) bytes at C(offset); empty where C(length) is 0."""
    if length == 0:
        return ""
    text, terminator, _rest = read_at(descriptor, min(length, MAX_TEXT_SIZE + 1), offset, path).partition(b"\0")
    if not terminator:
        limit = f" within {MAX_TEXT_SIZE} bytes" if length > MAX_TEXT_SIZE else ""
        raise ImageFormatError(path, f"the {what} does not end{limit}")
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ImageFormatError(path, f"the {what} is not UTF-8 (byte {error.start})") from error


def file_id_of(descriptor: int) -> tuple[int, int]:
    """Device and inode of an open file; raises OSError."""
    facts = os.fstat(descriptor)
    return facts.st_dev, facts.st_ino


def file_identity(path: str) -> str:
    """What tells the file at a path from any other that was or will be there; empty where there is none.

    Its inode, which another file may get after it, and its time of change.
    """
    try:
        return _identity(os.stat(path))
    except OSError:
        return ""


def _identity(facts: os.stat_result) -> str:
    return f"{facts.st_dev}:{facts.st_ino}:{facts.st_mtime_ns}"


@contextlib.contextmanager
def image_lock(path: str) -> t.Iterator[None]:
    """Keep other runs from saving over, restoring, or changing an image; without effect where there is none.

    The lock ends with this process, however it ends.

    :raises BusyError: another run is at work on it.
    :raises LockHeldError: someone else has locked it.
    """
    try:
        descriptor = open_image(path)
    except ImageError:  # what is wrong with it is said by whoever reads it
        yield
        return
    try:
        with contextlib.ExitStack() as locks:
            hold_image(locks, descriptor, path)
            if file_identity(path) != _identity(os.fstat(descriptor)):
                raise BusyError(f"{path} was replaced or removed by another run just now", cure="Run the task again")
            yield
    finally:
        os.close(descriptor)


def hold_image(locks: contextlib.ExitStack, descriptor: int, path: str, whoever: bool = False) -> None:
    """Keep other runs from an open image as long as C(locks) lives.

    :param whoever: the file is of this user's own making, so a lock of another user's process on it (whose QEMU was
        handed a descriptor) means nothing.
    :raises BusyError: another run is at work on it.
    :raises LockHeldError: someone else has locked it.
    :raises ImageAccessError: it cannot be locked.
    """
    with image_errors(path, "lock the image"):
        held = locks.enter_context(file_lock(descriptor))
    if held is None or (whoever and held.uid is not None and not held.is_run):
        return
    if held.is_run:
        raise BusyError(
            f"{path} is being saved, restored or changed by another run{held.who}",
            cure="Wait for its end, then run the task again",
        )
    raise LockHeldError(
        f"{path} is locked by a process that is no run of this user's{held.who}",
        cure="End that process, then run the task again",
    )


def require_regular(facts: os.stat_result, path: str) -> None:
    """:raises ImageFormatError: what is at the path is not a regular file, and cannot be an image."""
    if not stat.S_ISREG(facts.st_mode):
        raise ImageFormatError(
            path, f"it is {_kind(facts)}, not a regular file", cure="Give the path of the image itself"
        )


def _kind(facts: os.stat_result) -> str:
    """What a file is that is not a regular one."""
    kinds = {
        stat.S_IFDIR: "a directory",
        stat.S_IFLNK: "a symbolic link",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a character device",
        stat.S_IFBLK: "a block device",
    }
    return kinds.get(stat.S_IFMT(facts.st_mode), "something unknown")


def require_replaceable(path: str) -> None:
    """Check, without a change, that an image may be put in the place of what is at a path, if there is anything.

    :raises RequestError: it is not a regular file.
    :raises ImageAccessError: it cannot be looked at.
    """
    with image_errors(path, "look at the target"), contextlib.suppress(FileNotFoundError, NotADirectoryError):
        _require_replaceable(os.lstat(path), path)


def _require_replaceable(facts: os.stat_result, path: str) -> None:
    if not stat.S_ISREG(facts.st_mode):
        raise RequestError(
            f"{path} is {_kind(facts)}, not a regular file, so it cannot be replaced by an image",
            cure="Give the path of a file, not of a symbolic link, directory or device",
        )


# --- making -----------------------------------------------------------------------------------------------------


class PartialImage:
    """A save image in the making: a locked temporary file beside the target, with the partial magic.

    Made by C(create) (or C(adopt)), written to by QEMU through C(open_for_qemu), ended by C(finish) or C(discard).
    The lock lies on a descriptor that is never given away, so it ends with this process and tells a file in use
    from a leftover.
    """

    def __init__(self, target: str, name: str, directory_descriptor: int) -> None:
        """Not for callers: use C(create) or C(adopt)."""
        self.target = target
        """The final path."""
        self.path = os.path.join(os.path.dirname(target), name)
        """The temporary file's path."""
        self._name = name
        self._directory = directory_descriptor
        self._descriptor = -1
        self._header: SaveImageHeader
        self._cookie = ""
        self._locks = contextlib.ExitStack()
        self._direct_io_reason: str | None = "not probed"
        self._replaced = ""

    @classmethod
    def create(
        cls,
        target_path: str,
        header: SaveImageHeader,
        xml: str,
        cookie: str = "",
        mode: int = 0o600,
        uid: int = -1,
        gid: int = -1,
    ) -> PartialImage:
        """Make the temporary file with header, XML, cookie and room for edits, and lock it.

        :param target_path: the final path; an existing regular file there stays as it is until C(finish).
        :param header: version, format, C(was_running) and byte order count; lengths and magic are set here.
        :param mode: permission bits, already in force while QEMU writes.
        :param uid: numeric owner, -1 for the caller.
        :param gid: numeric group, -1 for the caller's.
        :raises RequestError: the target is not a regular file, or the XML or cookie cannot be stored.
        :raises ImageNotFoundError: the directory does not exist.
        :raises ImageSpaceError: the file system is full.
        :raises ImageAccessError: the file cannot be created, owned as asked, or written.
        :raises ImageUnsafeError: whoever it shall belong to could have led its path to a directory of root's.
        """
        target = os.path.abspath(target_path)
        text, cookie_offset = _text_area(target, xml, cookie)
        image = cls(target, f".{os.path.basename(target)}.{secrets.token_hex(8)}.partial", _open_directory(target))
        try:
            image._replaced = image._require_replaceable_target()
            with image_errors(image.path, "create the image"):
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                image._descriptor = os.open(image._name, flags, 0o600, dir_fd=image._directory)
            image._lock()
            with image_errors(image.path, f"set owner {uid}:{gid} and mode {mode:#o}"):
                if (uid, gid) != (-1, -1):
                    give_file(image.path, image._descriptor, uid, gid)
                os.fchmod(image._descriptor, mode)
            stream_offset = -(-(HEADER_SIZE + len(text) + EDIT_ROOM) // STREAM_ALIGNMENT) * STREAM_ALIGNMENT
            image._cookie = cookie
            image._header = dataclasses.replace(
                header, complete=False, data_length=stream_offset - HEADER_SIZE, cookie_offset=cookie_offset
            )
            image._write_head(xml)
            image._direct_io_reason = image._probe_direct_io()
        except BaseException:  # whatever it is, a signal, too: nobody else knows of the file yet
            image.discard()
            raise
        return image

    @classmethod
    def adopt(cls, path: str) -> PartialImage:
        """Take over a leftover (see C(leftovers)) whose stream QEMU has completed, or still completes.

        :param path: the temporary file's path.
        :raises RequestError: the path is not that of a temporary file of ours.
        :raises ConflictError: another process holds it.
        :raises ImageError: it cannot be opened or read, or is no save image.
        """
        target = target_of_partial(path)
        image = cls(target, os.path.basename(path), _open_directory(target))
        try:
            with image_errors(path, "open the partial image"):
                image._descriptor = _open_owned(image._name, image._directory)
            if image._descriptor < 0:
                raise ConflictError(f"{path} belongs to another user", cure="Run the task as its owner")
            hold_image(image._locks, image._descriptor, path, whoever=True)
            image._replaced = image._require_replaceable_target()
            head = read_image_head(path, image._descriptor)
            image._header, image._cookie = dataclasses.replace(head.header, complete=False), head.cookie
        except BaseException:  # whatever it is, a signal, too: its lock must not be kept
            image._close()
            raise
        return image

    @property
    def header(self) -> SaveImageHeader:
        """The header as it stands in the file (partial)."""
        return self._header

    @property
    def stream_offset(self) -> int:
        """Where QEMU writes from, in bytes; all before it stays."""
        return self._header.stream_offset

    def head(self) -> ImageHead:
        """What stands in the file now, which its QEMU may have written since it was made.

        :raises ImageError: it cannot be read, or is no save image any more.
        """
        return read_image_head(self.path, self._descriptor)

    def open_for_qemu(self, direct: bool = False) -> int:
        """A new write-only descriptor of its own for QEMU; the caller closes it after handing it over.

        :param direct: with O_DIRECT.
        :raises ImageAccessError: it cannot be opened, or the temporary file was replaced.
        """
        with image_errors(self.path, "open the image for QEMU" + (" with O_DIRECT" if direct else "")):
            return self._open_again(os.O_WRONLY | (os.O_DIRECT if direct else 0))

    def direct_io_reason(self) -> str | None:
        """Why QEMU cannot write the image with O_DIRECT, or None when it can; probed on this file at its creation."""
        return self._direct_io_reason

    def flush(self) -> None:
        """Bring all that was written by whomever onto the storage (fsync); takes as long as that takes.

        :raises ImageSpaceError: a delayed allocation failed.
        :raises ImageAccessError: the storage failed; the image must not be trusted.
        """
        with image_errors(self.path, "flush the image"):
            os.fsync(self._descriptor)

    def finish(self, xml: str | None = None, checkpoint: bool = False) -> None:
        """Make it the image: flush, complete magic, flush, rename over the target, flush the directory.

        The lock stays until C(release).

        :param xml: a new domain XML that replaces the one given to C(create).
        :param checkpoint: whether the guest will go on: then there is never an image that does not say so.
        :raises RequestError: that XML does not fit into its room, or the target is no longer a regular file.
        :raises ConflictError: another image was put at the target since C(create).
        :raises ImageSpaceError: the storage is full.
        :raises ImageAccessError: a step failed. The target is untouched, or, where the directory could not be flushed,
            removed.
        """
        if xml is not None:
            self._write_head(xml)
        self.flush()
        complete = dataclasses.replace(self._header, complete=True, checkpoint=checkpoint)
        with image_errors(self.path, "write the complete magic"):
            write_at(self._descriptor, complete.pack(), 0)
        self.flush()
        with image_errors(self.path, f"rename the image to {self.target}"):
            self._require_still_ours()
            # Two saves of two VMs to one path would both find it free: under the lock, looking and renaming are one.
            with _locked_directory(self._directory):
                if self._require_replaceable_target() != self._replaced:
                    raise ConflictError(
                        f"Another image was put at {self.target} while this one was being written",
                        cure="Find out whose it is, and save to another path",
                    )
                basename = os.path.basename(self.target)
                os.rename(self._name, basename, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        try:
            _flush_directory(self._directory, self.target)
        except ImageError:
            # After a crash it might be there or not: it must not stand beside a guest that runs on.
            with contextlib.suppress(OSError):
                os.unlink(os.path.basename(self.target), dir_fd=self._directory)
            raise

    def release(self) -> None:
        """Let the file be as it is, and give up the lock."""
        self._close()

    def written(self) -> int:
        """Bytes that it takes on the storage, without what a file system has set aside behind its end by itself.

        XFS sets as much aside as there is in the file, and some. More than that has someone asked for (fallocate(2)),
        who writes without a trace in the file's size.
        """
        facts = os.fstat(self._descriptor)
        allocated = facts.st_blocks * 512
        return allocated if allocated > 2 * facts.st_size + _SET_ASIDE else min(facts.st_size, allocated)

    def empty(self) -> bool:
        """Give all its space back, whoever else has it open; False where it is not held any more.

        :raises ImageAccessError: it cannot be cut.
        """
        if self._descriptor < 0:
            return False
        with image_errors(self.path, "empty the partial image"):
            os.ftruncate(self._descriptor, 0)
        return True

    def discard(self) -> None:
        """Remove the temporary file if it is still there and ours; may be called again, and after C(finish).

        It is emptied before: its QEMU may have it open for as long as it likes.

        :raises ImageAccessError: it cannot be removed.
        """
        try:
            with image_errors(self.path, "remove the partial image"):
                if self._descriptor >= 0 and self._is_still_ours():
                    _empty_before_removal(self._descriptor)
                    os.unlink(self._name, dir_fd=self._directory)
        finally:
            self._close()

    def _write_head(self, xml: str) -> None:
        """Write the (partial) header and the text area, zeros up to the stream included."""
        self._header, data = pack_head(self.path, self._header, xml, self._cookie)
        with image_errors(self.path, "write the image's head"):
            write_at(self._descriptor, data, 0)

    def _lock(self) -> None:
        # Another run may have taken it for a leftover before it was locked.
        hold_image(self._locks, self._descriptor, self.path)
        with image_errors(self.path, "lock the image"):
            self._require_still_ours()

    def _probe_direct_io(self) -> str | None:
        """Write and read back one block where QEMU would write pages, then cut the file back to its head."""
        offset = -(-self.stream_offset // _DIRECT_IO_ALIGNMENT) * _DIRECT_IO_ALIGNMENT
        pattern = secrets.token_bytes(_DIRECT_IO_BLOCK)
        descriptors: list[int] = []
        try:
            with mmap.mmap(-1, _DIRECT_IO_BLOCK) as block:
                for access, transfer in ((os.O_WRONLY, os.pwritev), (os.O_RDONLY, os.preadv)):
                    descriptors.append(self._open_again(access | os.O_DIRECT))
                    block[:] = pattern if access == os.O_WRONLY else bytes(_DIRECT_IO_BLOCK)
                    if transfer(descriptors[-1], [block], offset) != _DIRECT_IO_BLOCK:
                        return "an O_DIRECT transfer was cut short"
                if block[:] != pattern:
                    return "an O_DIRECT write did not read back"
        except OSError as error:
            return f"the file system of {os.path.dirname(self.target)} does not take O_DIRECT: {error.strerror}"
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
            with image_errors(self.path, "cut the image back after the O_DIRECT probe"):
                os.ftruncate(self._descriptor, self.stream_offset)
        return None

    def _open_again(self, flags: int) -> int:
        """Open the temporary file once more, on an open file description of its own; raises OSError."""
        descriptor = os.open(self._name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._directory)
        if not os.path.samestat(os.fstat(descriptor), os.fstat(self._descriptor)):
            os.close(descriptor)
            raise FileNotFoundError(errno.ENOENT, "replaced by another file")
        return descriptor

    def _is_still_ours(self) -> bool:
        try:
            named = os.stat(self._name, dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(named, os.fstat(self._descriptor))

    def _require_still_ours(self) -> None:
        if not self._is_still_ours():
            raise FileNotFoundError(errno.ENOENT, "removed or replaced by another process")

    def _require_replaceable_target(self) -> str:
        """Which file is at the target (C(file_identity)); empty where there is none.

        :raises RequestError: it is not a regular file.
        """
        with image_errors(self.target, "look at the target"):
            try:
                facts = os.stat(os.path.basename(self.target), dir_fd=self._directory, follow_symlinks=False)
            except FileNotFoundError:
                return ""
        _require_replaceable(facts, self.target)
        return _identity(facts)

    def _close(self) -> None:
        self._locks.close()
        for descriptor in (self._descriptor, self._directory):
            if descriptor >= 0:
                os.close(descriptor)
        self._descriptor = self._directory = -1


def target_of_partial(path: str) -> str:
    """The final path of the image that is made in a temporary file.

    :raises RequestError: the path is not that of a temporary file of ours.
    """
    directory, name = os.path.split(os.path.abspath(path))
    match = re.fullmatch(r"\.(.+)\.[0-9a-f]{16}\.partial", name, re.DOTALL)
    if not match:
        raise RequestError(f"{path} is not a partial image of this collection")
    return os.path.join(directory, match.group(1))


def require_removable(path: str) -> None:
    """Check, without a change, that an image can be removed after its restore.

    :raises RequestError: it is a symbolic link.
    :raises ImageError: its directory cannot be written to.
    """
    if os.path.islink(path):
        raise RequestError(
            f"{path} is a symbolic link: removing it would leave the image behind, to be restored by mistake",
            cure="Give the path of the image itself, or set remove_image: false",
        )
    require_writable_directory(os.path.dirname(os.path.abspath(path)))


def leftovers(target_path: str) -> list[str]:
    """Paths of temporary files for this target that no process holds: what a killed save left.

    QEMU may still be writing to one (it holds no lock): ask it before C(remove_leftovers) or C(PartialImage.adopt).

    :raises ImageNotFoundError: the directory does not exist.
    :raises ImageAccessError: the directory cannot be read.
    """
    return [path for path, *_rest in _each_leftover(os.path.abspath(target_path))]


def remove_leftovers(target_path: str) -> list[str]:
    """Remove what C(leftovers) finds, and return those paths.

    :raises ImageNotFoundError: the directory does not exist.
    :raises ImageAccessError: the directory cannot be read or written.
    """
    removed = []
    for path, name, directory, descriptor in _each_leftover(os.path.abspath(target_path)):
        with image_errors(path, "remove the leftover"):
            _empty_before_removal(descriptor)
            os.unlink(name, dir_fd=directory)
        removed.append(path)
    return removed


def _empty_before_removal(descriptor: int) -> None:
    """Give the space of a file back now, which a QEMU may have open for as long as it likes.

    Not of one with another name, which may be a file of ours that someone wants to be emptied. Where it cannot be done
    (a quota that is met already, storage that has failed), the removal does what can be done.
    """
    with contextlib.suppress(OSError):
        if os.fstat(descriptor).st_nlink == 1:
            os.ftruncate(descriptor, 0)


def require_safe_image(path: str) -> None:
    """Check that nobody but root and the caller could have put the image there, so that what it says may be run.

    Only what is read after this check is covered by it. Who was handed a descriptor of it may have written to it all
    the same, which its voucher tells (:mod:`vouching`).

    :raises ImageUnsafeError: the file, a directory or a link on its way belongs to someone else, or may be written by
        others.
    :raises ImageError: one of them cannot be looked at.
    """
    _require_own_image(path, "could have written the image; the command that it records is not run")


def require_loadable_image(path: str, uid: int | None) -> None:
    """Check that nobody but root, the caller and QEMU's own user could have put the image there that QEMU will load.

    :param uid: the user as whom QEMU runs, where that is known.
    :raises ImageUnsafeError: another user could have.
    :raises ImageError: a part of its path cannot be looked at.
    """
    reason = _why_unsafe_image(path, (0, os.geteuid()) if uid is None else (0, os.geteuid(), uid))
    if reason:
        raise ImageUnsafeError(
            path,
            f"{reason}, so others could have written the image, and a QEMU"
            + ("" if uid is None else f" of the user {uid}")
            + " does not load it",
            cure="If it is the right one, copy it into a directory of root's, for root and with the mode 0600; or have"
            " QEMU run as the image's owner, and use launch: attach",
        )


def require_vouchable_image(path: str) -> None:
    """Check that nobody but root and the caller can put another image there than the one for which they vouch.

    :raises ImageUnsafeError: others can.
    :raises ImageError: a part of its path cannot be looked at.
    """
    _require_own_image(path, "can write the image, and it is not vouched for")


def _require_own_image(path: str, consequence: str) -> None:
    """As :func:`require_safe_image` and :func:`require_vouchable_image`.

    :param consequence: what others can do, and what is not done for that.
    """
    reason = _why_unsafe_image(path, (0, os.geteuid()))
    if reason:
        raise ImageUnsafeError(
            path,
            f"{reason}, so others {consequence}",
            cure="Copy it into a directory of root's, for root and with the mode 0600, and look at its launch there",
        )


def _why_unsafe_image(path: str, trusted: t.Collection[int]) -> str:
    with image_errors(path, "look at its owner"):
        return why_unsafe(path, trusted)


def give_file(path: str, descriptor: int, uid: int, gid: int) -> None:
    """Set owner and group of a file that was just made.

    Who can lead its path to another directory, such as one of programs that root runs, is not given a file there.

    :param uid: numeric owner, -1 for its own. :param gid: numeric group, -1 for its own.
    :raises ImageUnsafeError: the new owner, or another user, could have done that.
    :raises OSError: it cannot be set, or the file is not there any more.
    """
    directory = os.path.dirname(os.path.abspath(path))
    place = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        named = os.stat(os.path.basename(path), dir_fd=place, follow_symlinks=False)
        if not os.path.samestat(named, os.fstat(descriptor)):
            raise FileNotFoundError(errno.ENOENT, "removed or replaced by another process")
        if uid not in (-1, 0, os.geteuid(), os.fstat(place).st_uid):
            reason = why_replaceable(directory, (0, os.geteuid()))
            if reason:
                raise ImageUnsafeError(
                    path,
                    f"{reason}, so others could lead its path to any directory, and it is not given to the user {uid}",
                    cure="Give the path of a directory that only root can replace, or one of that user's own",
                )
        os.fchown(descriptor, uid, gid)
    finally:
        os.close(place)


def why_unsafe_place(path: str, uid: int, mode: int) -> str:
    """Why the command in an image that is yet to be made would not be run by C(require_safe_image), as a clause.

    :param path: the image's path; what of its directories is missing yet is made by the caller.
    :param uid: the owner that it shall have, -1 for the caller.
    :param mode: the permission bits that it shall have.
    :returns: the empty string where nothing forbids it.
    :raises ImageError: a directory cannot be looked at.
    """
    trusted = (0, os.geteuid())
    if uid not in (-1, *trusted):
        return f"the image shall belong to the user {uid}, who could write what a restore would run"
    if mode & 0o022:
        return f"the image shall have the mode {mode:04o}, with which others could write what a restore would run"
    directory = _nearest_existing(os.path.dirname(path))
    with image_errors(directory, "look at its owner"):
        reason = why_unsafe_directory(directory, trusted)
        return reason and f"{reason}, so others could put another image there, whose command a restore would run"


def remove_image(path: str, file_id: tuple[int, int] | None = None) -> None:
    """Remove an image and flush its directory.

    :param file_id: device and inode of the file that is meant, where the path may lead to another one by now.
    :raises ImageNotFoundError: there is none.
    :raises ImageFormatError: it is not a regular file.
    :raises ImageAccessError: it is another file, or cannot be removed, or the directory cannot be flushed.
    """
    path = os.path.abspath(path)
    directory, name = _open_directory(path), os.path.basename(path)
    try:
        with image_errors(path, "remove the image"):
            facts = os.stat(name, dir_fd=directory, follow_symlinks=False)
            require_regular(facts, path)
            if file_id not in (None, (facts.st_dev, facts.st_ino)):
                raise ImageAccessError(path, "another file is in its place by now, which is not removed")
            os.unlink(name, dir_fd=directory)
        _flush_directory(directory, path)
    finally:
        os.close(directory)


def make_save_directory(path: str) -> None:
    """Make the directory for save images where it is missing, its parents too; only its owner may look into it.

    :raises ImageError: it cannot be made.
    """
    with image_errors(path, "make the save directory"):
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
            # That it is there must outlast a crash, or the images in it do not.
            for place in (os.path.dirname(path), os.path.dirname(os.path.dirname(path))):
                descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)


def require_writable_directory(directory: str, may_be_made: bool = False) -> str:
    """Check, without a change, that files can be created in a directory.

    :param may_be_made: whether it may be missing, as long as it can be made.
    :returns: the directory, or the nearest one above it that exists.
    :raises ImageError: they cannot.
    """
    existing = _nearest_existing(directory) if may_be_made else directory
    with image_errors(existing, "look into the directory"):
        if not stat.S_ISDIR(os.stat(existing).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if os.statvfs(existing).f_flag & os.ST_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        if not os.access(existing, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return existing


def _nearest_existing(directory: str) -> str:
    """The directory, or the nearest one above it that exists."""
    while not os.path.lexists(directory) and directory != os.path.dirname(directory):
        directory = os.path.dirname(directory)
    return directory


def flush_image(path: str) -> None:
    """Bring an image and its name in the directory onto the storage (fsync of both).

    :raises ImageNotFoundError: there is none.
    :raises ImageFormatError: it is not a regular file.
    :raises ImageAccessError: it cannot be opened, or the storage failed.
    """
    path = os.path.abspath(path)
    descriptor = open_image(path)
    try:
        with image_errors(path, "flush the image"):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
    directory = _open_directory(path)
    try:
        _flush_directory(directory, path)
    finally:
        os.close(directory)


def free_bytes(directory: str) -> int | None:
    """Bytes that the caller may still write in the file system of this directory (quotas not counted).

    None where that cannot be told: a file system without a size of its own (ramfs, some of FUSE's) has no blocks.

    :raises ImageNotFoundError: there is no such directory.
    :raises ImageAccessError: the file system cannot be asked.
    """
    with image_errors(directory, "ask for free space"):
        facts = os.statvfs(directory)
    return facts.f_bavail * facts.f_frsize if facts.f_blocks else None


def file_system(directory: str) -> str:
    """The mount point of the file system in which a directory lies."""
    place = os.path.realpath(directory)
    while not os.path.ismount(place):
        place = os.path.dirname(place)
    return place


def write_at(descriptor: int, data: bytes, offset: int) -> None:
    """Write all of C(data) at C(offset); raises OSError."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def pack_head(path: str, header: SaveImageHeader, xml: str, cookie: str) -> tuple[SaveImageHeader, bytes]:
    """All that stands before the QEMU stream, whose place C(header) has fixed: header, XML, cookie, zeros.

    :param path: the image's path, for errors.
    :returns: the header, with the cookie's offset set, and C(header.stream_offset) bytes.
    :raises RequestError: XML and cookie cannot be stored, or do not fit into the room before the stream.
    """
    text, cookie_offset = _text_area(path, xml, cookie)
    if len(text) > header.data_length:
        raise RequestError(
            f"The domain XML and cookie need {len(text)} bytes,"
            f" but {path} has only {header.data_length} before its QEMU stream",
            cure="Shorten the domain XML: the stream cannot be moved",
        )
    header = dataclasses.replace(header, cookie_offset=cookie_offset)
    return header, header.pack() + text.ljust(header.data_length, b"\0")


def _text_area(path: str, xml: str, cookie: str) -> tuple[bytes, int]:
    """XML and cookie, each with its NUL, and the cookie's offset (0 without one)."""
    encoded = []
    for what, text in (("domain XML", xml), ("cookie", cookie)):
        try:
            piece = text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RequestError(f"{path}: the {what} cannot be written as UTF-8: {error.reason}") from error
        if b"\0" in piece or len(piece) >= MAX_TEXT_SIZE:
            raise RequestError(f"{path}: the {what} has a NUL, or more than {MAX_TEXT_SIZE} bytes")
        encoded.append(piece + b"\0")
    return (encoded[0] + encoded[1], len(encoded[0])) if cookie else (encoded[0], 0)


def _open_directory(target: str) -> int:
    directory = os.path.dirname(target)
    with image_errors(directory, "open the directory"):
        return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _flush_directory(descriptor: int, path: str) -> None:
    with image_errors(os.path.dirname(path), f"flush the directory after the change of {os.path.basename(path)}"):
        os.fsync(descriptor)


@contextlib.contextmanager
def _locked_directory(descriptor: int) -> t.Iterator[None]:
    """Hold the lock of a directory for a moment; raises OSError where another run holds it for long."""
    facts = os.fstat(descriptor)
    with named_lock(f"directory-{facts.st_dev:x}-{facts.st_ino}", _DIRECTORY_LOCK_TIMEOUT) as other:
        if other is not None:
            raise BlockingIOError(errno.EAGAIN, f"another run keeps the directory locked{other}")
        # For a run of another user or host. Whoever may read the directory can hold this one for ever, so no longer.
        locked = lock(descriptor, LOCK_TIMEOUT)
        try:
            yield
        finally:
            if locked:
                unlock(descriptor)


def _open_owned(name: str, directory: int) -> int:
    """Open a temporary file that belongs to the caller; -1 when it does not; raises OSError."""
    descriptor = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    facts = os.fstat(descriptor)
    if stat.S_ISREG(facts.st_mode) and (os.geteuid() == 0 or facts.st_uid == os.geteuid()):
        return descriptor
    os.close(descriptor)
    return -1


def _each_leftover(target: str) -> t.Iterator[tuple[str, str, int, int]]:
    """Path, name, directory and own descriptor of each unlocked temporary file of ours, locked while it is yielded."""
    pattern = re.compile(re.escape("." + os.path.basename(target)) + r"\.[0-9a-f]{16}\.partial")
    directory = _open_directory(target)
    try:
        with image_errors(os.path.dirname(target), "list the directory"):
            names = sorted(name for name in os.listdir(directory) if pattern.fullmatch(name))
        for name in names:
            try:
                descriptor = _open_owned(name, directory)
            except OSError:
                continue
            if descriptor >= 0:
                path = os.path.join(os.path.dirname(target), name)
                try:
                    with contextlib.ExitStack() as locks:
                        try:
                            hold_image(locks, descriptor, path, whoever=True)
                        except (ImageError, RequestError):
                            continue
                        yield path, name, directory, descriptor
                finally:
                    os.close(descriptor)
    finally:
        os.close(directory)
