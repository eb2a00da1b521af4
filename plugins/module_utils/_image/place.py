# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The directory in which an image lies or shall lie: what may be put there and taken away, and that it lasts."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._durable import flush_directory
from ansible_collections.vmops.qemu.plugins.module_utils._errors import ImageAccessError, RequestError
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_errors import image_errors
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_file import ImageFile, kind_of, require_regular
from ansible_collections.vmops.qemu.plugins.module_utils._lock import LOCK_TIMEOUT, lock, named_lock, unlock

_RENAME_EXCHANGE = 2
_DIRECTORY_LOCK_TIMEOUT = 10.0
"""Seconds for which the lock of a save directory is waited for; a run holds it for one rename."""


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
                flush_directory(place)


def require_writable_directory(directory: str, may_be_made: bool = False) -> str:
    """Check, without a change, that files can be created in a directory.

    :param may_be_made: whether it may be missing, as long as it can be made.
    :returns: the directory, or the nearest one above it that exists.
    :raises ImageError: they cannot.
    """
    existing = nearest_existing(directory) if may_be_made else directory
    with image_errors(existing, "look into the directory"):
        if not stat.S_ISDIR(os.stat(existing).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if os.statvfs(existing).f_flag & os.ST_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        if not os.access(existing, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return existing


def nearest_existing(directory: str) -> str:
    """The directory, or the nearest one above it that exists."""
    while not os.path.lexists(directory) and directory != os.path.dirname(directory):
        directory = os.path.dirname(directory)
    return directory


def require_replaceable(path: str) -> None:
    """Check, without a change, that an image may be put in the place of what is at a path, if there is anything.

    :raises RequestError: it is not a regular file.
    :raises ImageAccessError: it cannot be looked at.
    """
    with image_errors(path, "look at the target"), contextlib.suppress(FileNotFoundError, NotADirectoryError):
        require_replaceable_file(os.lstat(path), path)


def require_replaceable_file(facts: os.stat_result, path: str) -> None:
    """:raises RequestError: what is at the path is not a regular file, and is not replaced by an image."""
    if not stat.S_ISREG(facts.st_mode):
        raise RequestError(
            f"{path} is {kind_of(facts)}, not a regular file, so it cannot be replaced by an image",
            cure="Give the path of a file, not of a symbolic link, directory or device",
        )


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


def remove_image(path: str, file_id: tuple[int, int] | None = None) -> None:
    """Remove an image and flush its directory.

    :param file_id: device and inode of the file that is meant, where the path may lead to another one by now.
    :raises ImageNotFoundError: there is none.
    :raises ImageFormatError: it is not a regular file.
    :raises ImageAccessError: it is another file, or cannot be removed, or the directory cannot be flushed.
    """
    path = os.path.abspath(path)
    directory, name = open_directory(path), os.path.basename(path)
    try:
        with image_errors(path, "remove the image"):
            facts = os.stat(name, dir_fd=directory, follow_symlinks=False)
            require_regular(facts, path)
            if file_id not in (None, (facts.st_dev, facts.st_ino)):
                raise ImageAccessError(path, "another file is in its place by now, which is not removed")
            os.unlink(name, dir_fd=directory)
        flush_change(directory, path)
    finally:
        os.close(directory)


def flush_image(path: str) -> None:
    """Bring an image and its name in the directory onto the storage (fsync of both).

    :raises ImageNotFoundError: there is none.
    :raises ImageFormatError: it is not a regular file.
    :raises ImageAccessError: it cannot be opened, or the storage failed.
    """
    path = os.path.abspath(path)
    with ImageFile.open(path) as image, image_errors(path, "flush the image"):
        image.flush()
    with image_errors(os.path.dirname(path), f"flush the directory after the change of {os.path.basename(path)}"):
        flush_directory(os.path.dirname(path))


def free_bytes(directory: str) -> int | None:
    """Bytes that the caller may still write in the file system of this directory (quotas not counted).

    None where that cannot be told: a file system without a size of its own (ramfs, some of FUSE's) has no blocks.

    :raises ImageNotFoundError: there is no such directory.
    :raises ImageAccessError: the file system cannot be asked.
    """
    with image_errors(directory, "ask for free space"):
        facts = os.statvfs(directory)
    return facts.f_bavail * facts.f_frsize if facts.f_blocks else None


def open_directory(target: str) -> int:
    """Open the directory of a file; the caller closes the descriptor.

    :raises ImageError: it cannot be opened.
    """
    directory = os.path.dirname(target)
    with image_errors(directory, "open the directory"):
        return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def exchange_names(descriptor: int, one: str, other: str) -> bool:
    """Let two files of an open directory change their names, at once (renameat2(2)); raises OSError.

    :returns: False where the C library, the kernel or the file system (NFS) cannot do it.
    """
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    renameat2.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    if renameat2(descriptor, os.fsencode(one), descriptor, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EXDEV):  # the last: another project's quota
        return False
    raise OSError(number, os.strerror(number))


def flush_change(descriptor: int, path: str) -> None:
    """Bring a change of the names in an open directory onto the storage.

    :param path: the file whose name was changed in it, for errors.
    :raises ImageError: the storage failed.
    """
    with image_errors(os.path.dirname(path), f"flush the directory after the change of {os.path.basename(path)}"):
        os.fsync(descriptor)


@contextlib.contextmanager
def locked_directory(descriptor: int) -> t.Iterator[None]:
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
