# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A save image in the making, and what a killed save has left of one."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import mmap
import os
import secrets
import stat
import threading
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._errors import ConflictError, ImageError, RequestError
from ansible_collections.vmops.qemu.plugins.module_utils._image.head import (
    EDIT_ROOM,
    STREAM_ALIGNMENT,
    ImageHead,
    pack_head,
    text_area,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.header import HEADER_SIZE, SaveImageHeader
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_errors import image_errors
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_file import (
    DIRECT_IO_BLOCK,
    ImageFile,
    identity_of,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_lock import hold_image
from ansible_collections.vmops.qemu.plugins.module_utils._image.names import (
    is_partial_name,
    new_partial_name,
    target_of_partial,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.place import (
    exchange_names,
    flush_change,
    locked_directory,
    open_directory,
    require_replaceable_file,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.trust import give_file, require_as_asked

_DIRECT_IO_ALIGNMENT = 1024 * 1024
_SET_ASIDE = 64 * 1024 * 1024
"""Bytes that a file system may set aside behind the end of a file, however small that is."""
_WRITE_BACK_INTERVAL = 0.1
"""Seconds in which QEMU may write before the storage is given it."""


class PartialImage:
    """A save image in the making: a locked temporary file beside the target, with the partial magic.

    Made by ``create`` (or ``adopt``), written to by QEMU through ``open_for_qemu``, ended by ``finish`` or ``discard``.
    The lock lies on a descriptor that is never given away, so it ends with this process and tells a file in use
    from a leftover.
    """

    def __init__(self, target: str, name: str, directory_descriptor: int) -> None:
        """Not for callers: use ``create`` or ``adopt``."""
        self.target = target
        """The final path."""
        self.path = os.path.join(os.path.dirname(target), name)
        """The temporary file's path."""
        self._name = name
        self._directory = directory_descriptor
        self._file = ImageFile(self.path, -1)
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

        :param target_path: the final path; an existing regular file there stays as it is until ``finish``.
        :param header: version, format, ``was_running`` and byte order count; lengths and magic are set here.
        :param mode: permission bits, already in force while QEMU writes.
        :param uid: numeric owner, -1 for the caller.
        :param gid: numeric group, -1 for the caller's.
        :raises RequestError: the target is not a regular file, or the XML or cookie cannot be stored.
        :raises ImageNotFoundError: the directory does not exist.
        :raises ImageSpaceError: the file system is full.
        :raises ImageAccessError: the file cannot be created, owned as asked, or written.
        :raises ImageUnsafeError: whoever it shall belong to could have led its path to a directory of root's, or the
            file system gives it to another user, or to all.
        """
        target = os.path.abspath(target_path)
        text, cookie_offset = text_area(target, xml, cookie)
        image = cls(target, new_partial_name(target), open_directory(target))
        try:
            image._replaced = image._require_replaceable_target()
            with image_errors(image.path, "create the image"):
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                image._file.descriptor = os.open(image._name, flags, 0o600, dir_fd=image._directory)
            image._lock()
            with image_errors(image.path, f"set owner {uid}:{gid} and mode {mode:#o}"):
                if (uid, gid) != (-1, -1):
                    give_file(image._file, uid, gid)
                os.fchmod(image._file.descriptor, mode)
                require_as_asked(image._file, uid, mode)
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
        """Take over a leftover whose stream QEMU has completed, or still completes.

        :param path: the temporary file's path.
        :raises RequestError: the path is not that of a temporary file of ours.
        :raises ConflictError: another process holds it.
        :raises ImageError: it cannot be opened or read, or is no save image.
        """
        target = target_of_partial(path)
        image = cls(target, os.path.basename(path), open_directory(target))
        try:
            with image_errors(path, "open the partial image"):
                image._file.descriptor = _open_owned(image._name, image._directory)
            if not image._file.is_open:
                raise ConflictError(f"{path} belongs to another user", cure="Run the task as its owner")
            hold_image(image._locks, image._file, whoever=True)
            image._replaced = image._require_replaceable_target()
            head = image.head()
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
        return self._file.head()

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
            self._file.flush()

    def write_back(self, stop: threading.Event) -> None:
        """Have what is written brought onto the storage at once, until another thread sets ``stop``, and not cached.

        Else a kernel with much memory begins only at the flush, and the storage has nothing to do before. It is a hint:
        whether the storage takes it, :meth:`flush` tells. fdatasync(2), which waits and writes the file system's
        journal each time, does not help where several places are written at once.
        """
        with contextlib.suppress(OSError):
            # On a descriptor of its own, as a caller that is cancelled may close the file meanwhile.
            descriptor = self._open_again(os.O_RDONLY)
            try:
                while not stop.wait(_WRITE_BACK_INTERVAL):
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)

    def describe(self, xml: str, checkpoint: bool = False) -> None:
        """Say what QEMU has written, while the image is still partial; not flushed, as no guest outlives its host.

        :param xml: a new domain XML that fits into the room of the one given to ``create``.
        :param checkpoint: whether the guest goes on from it now.
        :raises RequestError: it does not fit.
        :raises ImageSpaceError: the storage is full.
        :raises ImageAccessError: it cannot be written.
        """
        self._header = dataclasses.replace(self._header, checkpoint=checkpoint)
        self._write_head(xml)

    def finish(self, xml: str | None = None, checkpoint: bool = False) -> None:
        """Make it the image: flush, complete magic, flush, rename over the target, flush the directory.

        The lock stays until ``release``.

        :param xml: a new domain XML that replaces the one given to ``create``.
        :param checkpoint: whether the guest will go on: then there is never an image that does not say so.
        :raises RequestError: that XML does not fit into its room, or the target is no longer a regular file.
        :raises ConflictError: another image was put at the target since ``create``.
        :raises ImageSpaceError: the storage is full.
        :raises ImageAccessError: a step failed. What was at the target is there, as far as the storage still takes
            changes; else the error says what is there.
        """
        if xml is not None:
            self._write_head(xml)
        self.flush()
        complete = dataclasses.replace(self._header, complete=True, checkpoint=checkpoint)
        basename, renamed, exchanged = os.path.basename(self.target), False, False
        with image_errors(self.path, "write the complete magic"):
            self._file.write(complete.pack(), 0)
        try:
            self.flush()
            with image_errors(self.path, f"rename the image to {self.target}"):
                self._require_still_ours()
                # Two saves of two VMs to one path would both find it free: under the lock, both steps are one.
                with locked_directory(self._directory):
                    if self._require_replaceable_target() != self._replaced:
                        raise ConflictError(
                            f"Another image was put at {self.target} while this one was being written",
                            cure="Find out whose it is, and save to another path",
                        )
                    exchanged = bool(self._replaced) and exchange_names(self._directory, self._name, basename)
                    if not exchanged:
                        self._rename(self._name, basename)
                    renamed = True
            flush_change(self._directory, self.target)
        except BaseException as error:  # whatever it is, a signal, too: no image may stay of a save that failed
            self._take_back(renamed, exchanged, error)
            raise
        if exchanged:
            with contextlib.suppress(OSError):  # else a leftover, which the next save removes
                os.unlink(self._name, dir_fd=self._directory)

    def release(self) -> None:
        """Let the file be as it is, and give up the lock."""
        self._close()

    def written(self) -> int:
        """Bytes that it takes on the storage, without what a file system has set aside behind its end by itself.

        XFS sets as much aside as there is in the file, and some. More than that has someone asked for (fallocate(2)),
        who writes without a trace in the file's size.
        """
        facts = self._file.facts()
        allocated = facts.st_blocks * 512
        return allocated if allocated > 2 * facts.st_size + _SET_ASIDE else min(facts.st_size, allocated)

    def empty(self) -> bool:
        """Give all its space back, whoever else has it open; False where it is not held any more.

        :raises ImageAccessError: it cannot be cut.
        """
        if not self._file.is_open:
            return False
        with image_errors(self.path, "empty the partial image"):
            self._file.truncate(0)
        return True

    def discard(self) -> None:
        """Remove the temporary file if it is still there and ours; may be called again, and after ``finish``.

        It is emptied before: its QEMU may have it open for as long as it likes.

        :raises ImageAccessError: it cannot be removed.
        """
        try:
            with image_errors(self.path, "remove the partial image"):
                if self._file.is_open and self._is_still_ours():
                    _empty_before_removal(self._file)
                    os.unlink(self._name, dir_fd=self._directory)
        finally:
            self._close()

    def _take_back(self, renamed: bool, exchanged: bool, error: BaseException) -> None:
        """Undo what ``finish`` has begun: the guest may go on, and no image may stand beside it, also after a crash.

        Header and name each do: the storage may take one change and not the other.

        :param renamed: whether it has the target's name, where the file system does not tell any more.
        :param exchanged: whether what was at the target has its name since.
        :param error: is told what could not be undone.
        """
        partial = flushed = False
        with contextlib.suppress(OSError):
            self._file.write(self._header.pack(), 0)
            self._file.flush()
            partial = True
        named = renamed = self._is_at_target(renamed)
        if renamed:
            with contextlib.suppress(OSError):
                # It is for discard then, or for the run that adopts it.
                self._give_name_back(exchanged)
                named = False
                os.fsync(self._directory)
                flushed = True
        if not isinstance(error, ImageError):
            return
        _tell_what_stays(error, self.target if renamed and not flushed else self.path, partial, named)
        if exchanged and named:
            error.what += f"; the image that was there before is {self.path}, until the next save there removes it"
        elif exchanged and not flushed:
            error.what += f"; after a crash of the host, the image that was there before may be {self.path}"
        elif renamed and self._replaced and not exchanged:
            error.what += "; the image that was there before is lost, as this file system cannot exchange files"

    def _give_name_back(self, exchanged: bool) -> None:
        """Undo the rename; raises OSError."""
        basename = os.path.basename(self.target)
        if not exchanged:
            self._rename(basename, self._name)
        elif not exchange_names(self._directory, self._name, basename):
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    def _rename(self, old: str, new: str) -> None:
        os.rename(old, new, src_dir_fd=self._directory, dst_dir_fd=self._directory)

    def _is_at_target(self, unless_told: bool) -> bool:
        try:
            named = os.stat(os.path.basename(self.target), dir_fd=self._directory, follow_symlinks=False)
            return os.path.samestat(named, self._file.facts())
        except FileNotFoundError:
            return False
        except OSError:
            return unless_told

    def _write_head(self, xml: str) -> None:
        """Write the (partial) header and the text area, zeros up to the stream included."""
        self._header, data = pack_head(self.path, self._header, xml, self._cookie)
        with image_errors(self.path, "write the image's head"):
            self._file.write(data, 0)

    def _lock(self) -> None:
        # Another run may have taken it for a leftover before it was locked.
        hold_image(self._locks, self._file)
        with image_errors(self.path, "lock the image"):
            self._require_still_ours()

    def _probe_direct_io(self) -> str | None:
        """Write and read back one block where QEMU would write pages, then cut the file back to its head."""
        offset = -(-self.stream_offset // _DIRECT_IO_ALIGNMENT) * _DIRECT_IO_ALIGNMENT
        pattern = secrets.token_bytes(DIRECT_IO_BLOCK)
        descriptors: list[int] = []
        try:
            with mmap.mmap(-1, DIRECT_IO_BLOCK) as block:
                for access, transfer in ((os.O_WRONLY, os.pwritev), (os.O_RDONLY, os.preadv)):
                    descriptors.append(self._open_again(access | os.O_DIRECT))
                    block[:] = pattern if access == os.O_WRONLY else bytes(DIRECT_IO_BLOCK)
                    if transfer(descriptors[-1], [block], offset) != DIRECT_IO_BLOCK:
                        return "an O_DIRECT transfer was cut short"
                if block[:] != pattern:
                    return "an O_DIRECT write did not read back"
        except OSError as error:
            return f"the file system of {os.path.dirname(self.target)} does not take O_DIRECT: {error.strerror}"
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
            with image_errors(self.path, "cut the image back after the O_DIRECT probe"):
                self._file.truncate(self.stream_offset)
        return None

    def _open_again(self, flags: int) -> int:
        """Open the temporary file once more, on an open file description of its own; raises OSError."""
        descriptor = os.open(self._name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._directory)
        if not os.path.samestat(os.fstat(descriptor), self._file.facts()):
            os.close(descriptor)
            raise FileNotFoundError(errno.ENOENT, "replaced by another file")
        return descriptor

    def _is_still_ours(self) -> bool:
        try:
            named = os.stat(self._name, dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(named, self._file.facts())

    def _require_still_ours(self) -> None:
        if not self._is_still_ours():
            raise FileNotFoundError(errno.ENOENT, "removed or replaced by another process")

    def _require_replaceable_target(self) -> str:
        """Which file is at the target (``file_identity``); empty where there is none.

        :raises RequestError: it is not a regular file.
        """
        with image_errors(self.target, "look at the target"):
            try:
                facts = os.stat(os.path.basename(self.target), dir_fd=self._directory, follow_symlinks=False)
            except FileNotFoundError:
                return ""
        require_replaceable_file(facts, self.target)
        return identity_of(facts)

    def _close(self) -> None:
        self._locks.close()
        self._file.close()
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1


def _tell_what_stays(error: ImageError, path: str, partial: bool, named: bool) -> None:
    """Add to an error what of a save that failed is still there, or may be there again.

    :param path: where.
    :param partial: whether the file is no complete image any more, on the storage.
    :param named: whether it could not be taken away from its target.
    """
    if partial:
        if named:
            error.what += f"; what was written stays at {path}, marked as partial, so that no restore takes it"
        return
    if named:
        error.what += (
            f"; the image of this failed save stays at {path}, complete, at least on the storage: it could neither be"
            " removed nor be made partial"
        )
        todo = f"remove {path} before anyone restores it"
    else:
        error.what += f"; what was written may be at {path}, complete, after a crash of the host"
        todo = f"see that {path} is not there, also after the host's next start, before anyone restores it"
    error.cure = (
        f"If the guest goes on, {todo}, which would put an old memory beside newer disks: the storage failed (see the"
        " kernel's log), and may have to be repaired first"
    )


def leftovers(target_path: str) -> list[str]:
    """Paths of temporary files for this target that no process holds: what a killed save left.

    QEMU may still be writing to one (it holds no lock): ask it before ``remove_leftovers`` or ``PartialImage.adopt``.

    :raises ImageNotFoundError: the directory does not exist.
    :raises ImageAccessError: the directory cannot be read.
    """
    return [left.path for left, _directory in _each_leftover(os.path.abspath(target_path))]


def remove_leftovers(target_path: str) -> list[str]:
    """Remove what ``leftovers`` finds, and return those paths.

    :raises ImageNotFoundError: the directory does not exist.
    :raises ImageAccessError: the directory cannot be read or written.
    """
    removed = []
    for left, directory in _each_leftover(os.path.abspath(target_path)):
        with image_errors(left.path, "remove the leftover"):
            _empty_before_removal(left)
            os.unlink(os.path.basename(left.path), dir_fd=directory)
        removed.append(left.path)
    return removed


def _empty_before_removal(file: ImageFile) -> None:
    """Give the space of a file back now, which a QEMU may have open for as long as it likes.

    Not of one with another name, which may be a file of ours that someone wants to be emptied. Where it cannot be done
    (a quota that is met already, storage that has failed), the removal does what can be done.
    """
    with contextlib.suppress(OSError):
        if file.facts().st_nlink == 1:
            file.truncate(0)


def _open_owned(name: str, directory: int) -> int:
    """Open a temporary file that belongs to the caller; -1 when it does not; raises OSError."""
    descriptor = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    facts = os.fstat(descriptor)
    if stat.S_ISREG(facts.st_mode) and (os.geteuid() == 0 or facts.st_uid == os.geteuid()):
        return descriptor
    os.close(descriptor)
    return -1


def _each_leftover(target: str) -> t.Iterator[tuple[ImageFile, int]]:
    """Each unlocked temporary file of ours, locked while it is yielded, and a descriptor of its directory."""
    directory = open_directory(target)
    try:
        with image_errors(os.path.dirname(target), "list the directory"):
            names = sorted(name for name in os.listdir(directory) if is_partial_name(name, target))
        for name in names:
            try:
                descriptor = _open_owned(name, directory)
            except OSError:
                continue
            if descriptor >= 0:
                path = os.path.join(os.path.dirname(target), name)
                with ImageFile(path, descriptor) as left, contextlib.ExitStack() as locks:
                    try:
                        hold_image(locks, left, whoever=True)
                    except (ImageError, RequestError):
                        continue
                    yield left, directory
    finally:
        os.close(directory)
