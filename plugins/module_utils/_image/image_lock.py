# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Keeping other runs from an image."""

from __future__ import annotations

import contextlib
import os
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._errors import BusyError, ImageError, LockHeldError
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_errors import image_errors
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_file import ImageFile, file_identity
from ansible_collections.vmops.qemu.plugins.module_utils._lock import LOCK_TIMEOUT, file_lock


@contextlib.contextmanager
def image_lock(path: str, timeout: float = LOCK_TIMEOUT) -> t.Iterator[None]:
    """Keep other runs from saving over, restoring, or changing an image; without effect where there is none.

    The lock ends with this process, however it ends.

    :param timeout: seconds for which it may be waited for.
    :raises BusyError: another run is at work on it.
    :raises LockHeldError: someone else has locked it.
    """
    try:
        image = _open_for_lock(path)
    except ImageError:  # what is wrong with it is said by whoever reads it
        yield
        return
    with image, contextlib.ExitStack() as locks:
        hold_image(locks, image, timeout=timeout)
        if file_identity(path) != image.identity:
            raise BusyError(f"{path} was replaced or removed by another run just now", cure="Run the task again")
        yield


def _open_for_lock(path: str) -> ImageFile:
    """Open it for writing where that may be: NFS locks exclusively only what is open so. Raises ImageError."""
    with contextlib.suppress(OSError):
        return ImageFile.open_regular(path, os.O_RDWR)
    return ImageFile.open(path)


def hold_image(
    locks: contextlib.ExitStack, image: ImageFile, whoever: bool = False, timeout: float = LOCK_TIMEOUT
) -> None:
    """Keep other runs from an open image as long as ``locks`` lives.

    :param whoever: the file is of this user's own making, so a lock of another user's process on it (whose QEMU was
        handed a descriptor) means nothing.
    :param timeout: seconds for which the lock may be waited for.
    :raises BusyError: another run is at work on it.
    :raises LockHeldError: someone else has locked it.
    :raises ImageAccessError: it cannot be locked.
    """
    with image_errors(image.path, "lock the image"):
        held = locks.enter_context(file_lock(image.descriptor, timeout))
    if held is None or (whoever and held.uid is not None and not held.is_run):
        return
    if held.is_run:
        raise BusyError(
            f"{image.path} is being saved, restored or changed by another run{held.who}",
            cure="Wait for its end, then run the task again",
        )
    raise LockHeldError(
        f"{image.path} is locked by a process that is no run of this user's{held.who}",
        cure="End that process, then run the task again",
    )
