# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The file of a save image, open: its path, for errors and for what lies beside it, and its descriptor, in one."""

from __future__ import annotations

import dataclasses
import mmap
import os
import stat
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._durable import write_all
from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    ConflictError,
    ImageAccessError,
    ImageFormatError,
)
from ansible_collections.vmops.qemu.plugins.module_utils._holes import data_ranges, holes, next_data
from ansible_collections.vmops.qemu.plugins.module_utils._image.head import ImageHead, read_head
from ansible_collections.vmops.qemu.plugins.module_utils._image.header import MAGIC_SIZE
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_errors import image_errors
from ansible_collections.vmops.qemu.plugins.module_utils._image.names import has_partial_name

DIRECT_IO_BLOCK = 4096
"""Bytes whose multiples O_DIRECT takes as offset, length and address."""


class ImageFile:
    """An open file that is, or shall be, a save image, an archive of one, or what is kept beside one.

    Of its methods those that read raise errors of the tree. Those that change it raise OSError: what was being done is
    for the caller to say (``image_errors``).
    """

    def __init__(self, path: str, descriptor: int) -> None:
        """:param path: by which it is named. :param descriptor: which belongs to this object from now on."""
        self.path = path
        self.descriptor = descriptor
        """-1 where it is closed."""

    @classmethod
    def open(cls, path: str, direct: bool = False) -> ImageFile:
        """Open an image for reading.

        :param direct: open it with O_DIRECT.
        :raises ImageNotFoundError: there is no file.
        :raises ImageAccessError: it cannot be opened (with ``direct``: also where the file system has no O_DIRECT).
        :raises ImageFormatError: it is a directory, FIFO, socket or device.
        """
        with image_errors(path, "open the image"):
            return cls.open_regular(path, os.O_RDONLY | (os.O_DIRECT if direct else 0))

    @classmethod
    def open_regular(cls, path: str, flags: int) -> ImageFile:
        """Open a regular file; what else is at the path is neither opened nor waited for.

        :param flags: of open(2). With O_NOFOLLOW the path may not be a link.
        :raises ImageFormatError: it is a directory, FIFO, socket or device.
        :raises OSError: it cannot be opened.
        """
        # A device may act on being opened, so look before.
        require_regular(os.lstat(path) if flags & os.O_NOFOLLOW else os.stat(path), path)
        image = cls(path, os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC))
        try:
            require_regular(image.facts(), path)
            os.set_blocking(image.descriptor, True)
        except BaseException:  # whatever it is, a signal, too: the descriptor is nobody's yet
            image.close()
            raise
        return image

    def close(self) -> None:
        """Close it; may be called again."""
        if self.is_open:
            os.close(self.descriptor)
            self.descriptor = -1

    def __enter__(self) -> ImageFile:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.close()

    @property
    def is_open(self) -> bool:
        """Whether it was opened, and not closed."""
        return self.descriptor >= 0

    def facts(self) -> os.stat_result:
        """What the file system says of it; raises OSError."""
        return os.fstat(self.descriptor)

    @property
    def size(self) -> int:
        """Its length in bytes, holes included; raises OSError."""
        return self.facts().st_size

    @property
    def file_id(self) -> tuple[int, int]:
        """Device and inode; raises OSError."""
        facts = self.facts()
        return facts.st_dev, facts.st_ino

    @property
    def identity(self) -> str:
        """As :func:`file_identity`; raises OSError."""
        return identity_of(self.facts())

    def is_at_its_path(self) -> bool:
        """Whether its path still leads to this very file; raises OSError where there is nothing."""
        return os.path.samestat(os.lstat(self.path), self.facts())

    def read(self, length: int, offset: int) -> bytes:
        """Up to ``length`` bytes at ``offset``; fewer only where the file ends.

        :raises ImageAccessError: the read failed.
        """
        pieces = []
        with image_errors(self.path, "read the image"):
            while length > 0:
                piece = os.pread(self.descriptor, length, offset)
                if not piece:
                    break
                pieces.append(piece)
                length -= len(piece)
                offset += len(piece)
        return b"".join(pieces)

    def magic(self) -> bytes:
        """The bytes by which an image is known; fewer where the file has no more. Raises as :meth:`read`."""
        return self.read(MAGIC_SIZE, 0)

    def head(self) -> ImageHead:
        """All that stands before the QEMU stream; raises as :func:`read_head`.

        Partial is also what only has the name of an image in the making: one that was replaced, and has changed names
        with the new one, is not to be taken for the last save when a crash has kept it from being removed.
        """
        head = read_head(self)
        if not has_partial_name(self.path):
            return head
        return dataclasses.replace(head, header=dataclasses.replace(head.header, complete=False))

    def data_ranges(self) -> list[tuple[int, int]]:
        """Where it has data, in order: offset and length of each range, in bytes.

        :raises ImageAccessError: the file system cannot tell.
        """
        with image_errors(self.path, "look for holes"):
            return list(data_ranges(self.descriptor, 0, self.size))

    def holes(self, start: int, end: int) -> t.Iterator[tuple[int, int]]:
        """The holes between two offsets, in order: offset and length, in bytes.

        :raises ImageAccessError: the file system cannot tell.
        """
        with image_errors(self.path, "look for holes"):
            yield from holes(self.descriptor, start, end)

    def next_data(self, position: int) -> int | None:
        """The first byte from a position on that is not in a hole; None where there is none up to the end.

        :raises ImageAccessError: the file system cannot tell.
        """
        with image_errors(self.path, "look for holes"):
            return next_data(self.descriptor, position)

    def write(self, data: bytes, offset: int) -> None:
        """Write all of ``data`` at ``offset``; raises OSError."""
        write_all(self.descriptor, data, offset)

    def flush(self) -> None:
        """Bring all that was written by whomever onto the storage (fsync); raises OSError."""
        os.fsync(self.descriptor)

    def truncate(self, size: int) -> None:
        """Set its length in bytes; raises OSError."""
        os.ftruncate(self.descriptor, size)


def read_image_head(path: str) -> ImageHead:
    """Read header, domain XML and cookie of an image, complete or partial.

    :raises ImageNotFoundError: there is no file.
    :raises ImageAccessError: it cannot be read.
    :raises ImageFormatError: it is no save image, or its lengths contradict each other or the file's size.
    :raises ImageUnsupportedError: a version, feature or format that is not known.
    """
    with ImageFile.open(path) as image:
        return image.head()


def open_image_of(head: ImageHead, direct: bool = False) -> int:
    """Open the very image of which the head was read, for a QEMU, which may be another user's.

    The parameters and errors are those of :meth:`ImageFile.open`.

    :returns: a descriptor, which the caller closes.
    :raises ConflictError: another file is at its path by now.
    """
    image = ImageFile.open(head.path, direct)
    if image.file_id != head.file_id:
        image.close()
        raise ConflictError(
            f"{head.path} was replaced by another file just now, which is not given to QEMU", cure="Run the task again"
        )
    return image.descriptor


def direct_read_reason(path: str) -> str | None:
    """Why the image cannot be read with O_DIRECT, or None when it can.

    :raises ImageError: it cannot be opened at all.
    """
    ImageFile.open(path).close()
    try:
        image = ImageFile.open(path, direct=True)
    except ImageAccessError as error:
        return f"the file system does not take O_DIRECT: {error.problem}"
    with image:
        try:
            with mmap.mmap(-1, DIRECT_IO_BLOCK) as block:
                os.preadv(image.descriptor, [block], 0)
        except OSError as error:
            return f"the file system does not take an aligned O_DIRECT read: {error.strerror}"
    return None


def file_identity(path: str) -> str:
    """What tells the file at a path from any other that was or will be there; empty where there is none.

    Its inode, which another file may get after it, and its time of change.
    """
    try:
        return identity_of(os.stat(path))
    except OSError:
        return ""


def identity_of(facts: os.stat_result) -> str:
    """As :func:`file_identity`, of what the file system says of a file."""
    return f"{facts.st_dev}:{facts.st_ino}:{facts.st_mtime_ns}"


def require_regular(facts: os.stat_result, path: str) -> None:
    """:raises ImageFormatError: what is at the path is not a regular file, and cannot be an image."""
    if not stat.S_ISREG(facts.st_mode):
        raise ImageFormatError(
            path, f"it is {kind_of(facts)}, not a regular file", cure="Give the path of the image itself"
        )


def kind_of(facts: os.stat_result) -> str:
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
