# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Failing system calls on image files, as errors of the collection's tree."""

from __future__ import annotations

import contextlib
import errno
import os
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    ImageAccessError,
    ImageNotFoundError,
    ImageSpaceError,
)

_CURES = {
    errno.EROFS: "The file system is mounted read-only, perhaps since an error of its disk (see the kernel's log):"
    " remount it or choose another directory",
    errno.ELOOP: "Give the path of the file itself, not of a symbolic link",
    errno.ENAMETOOLONG: "Choose a shorter file name",
    errno.EFBIG: "Raise the file size limit of the process (ulimit -f), or choose another file system",
    errno.EIO: "The storage failed: look into the kernel's log before the image is trusted",
}
_CURE_RIGHTS = "Run as root or as the owner of the file and its directory (become), or correct their permissions"
#: Root may do all that the kernel of this host decides, but for what is marked as immutable.
_CURE_ROOT = (
    "Root may not do that there, as where a file server takes root for another user (root squash): choose a directory"
    " on a disk of this host, or have the server leave root as it is (no_root_squash); on a disk see lsattr"
)
_CURE_SPACE = "Free space (or quota) there, or choose another directory"


def cure_for(said: str) -> str:
    """What to do about a failed system call that a text names, as QEMU and other tools do; empty where it is none."""
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, *_CURES)
    return next((_cure(number) for number in numbers if os.strerror(number) in said), "")


def _cure(number: int) -> str:
    if number in (errno.ENOSPC, errno.EDQUOT):
        return _CURE_SPACE
    if number in (errno.EACCES, errno.EPERM):
        return _CURE_RIGHTS if os.geteuid() else _CURE_ROOT
    return _CURES.get(number, "")


@contextlib.contextmanager
def image_errors(path: str, action: str) -> t.Iterator[None]:
    """Turn an OSError of the body into an error of the tree.

    :param path: the file or directory concerned.
    :param action: what was attempted, so that "cannot ``action``" reads well.
    :raises ImageNotFoundError: ENOENT or ENOTDIR.
    :raises ImageSpaceError: ENOSPC or EDQUOT.
    :raises ImageAccessError: anything else.
    """
    try:
        yield
    except OSError as error:
        number = error.errno or 0
        what = f"cannot {action}: {os.strerror(number) if number else error}"
        if number in (errno.ENOSPC, errno.EDQUOT):
            raise ImageSpaceError(path, what, cure=_cure(number)) from error
        if number in (errno.ENOENT, errno.ENOTDIR):
            raise ImageNotFoundError(path, what) from error
        raise ImageAccessError(path, what, cure=_cure(number)) from error
