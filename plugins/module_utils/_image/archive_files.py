# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The files in which an archive, or an image from one, is made; and what interrupted runs have left of them."""

from __future__ import annotations

import contextlib
import os
import stat
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._durable import scratch_path
from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    ConflictError,
    ImageFormatError,
    ImageNotFoundError,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_errors import image_errors
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_file import ImageFile
from ansible_collections.vmops.qemu.plugins.module_utils._image.names import (
    SUFFIXES,
    archive_partial_path,
    archive_record_path,
    expanding_path,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.trust import give_file
from ansible_collections.vmops.qemu.plugins.module_utils._lock import lock

#: Seconds for which the tool of a run that was killed is waited for.
_ORPHAN_TIMEOUT = 30.0


@contextlib.contextmanager
def new_file(path: str) -> t.Iterator[ImageFile]:
    """A new file, locked, in place of a leftover."""
    with image_errors(path, "create the file"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        file = ImageFile(path, os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    with file:
        with image_errors(path, "lock the file"):
            lock(file.descriptor)
        yield file


@contextlib.contextmanager
def left_file(path: str, length: int) -> t.Iterator[ImageFile]:
    """An archive that an earlier run began, cut back to what is known of it; its tool may still be writing."""
    with image_errors(path, "open the archive"):
        archive = ImageFile.open_regular(path, os.O_RDWR | os.O_NOFOLLOW)
    with archive:
        # The tool of a run that was killed has the lock, too, on the descriptor that it writes to.
        with image_errors(path, "lock the archive"):
            locked = lock(archive.descriptor, _ORPHAN_TIMEOUT)
        if not locked:
            raise ConflictError(f"{path} is still being written by the tool of an earlier run", cure="Wait for its end")
        if archive.size < length:
            raise ImageFormatError(path, f"it is shorter than the {length} bytes that were written to it")
        with image_errors(path, "cut the archive back"):
            archive.truncate(length)
        yield archive


def copy_access(facts: os.stat_result, file: ImageFile) -> None:
    """Owner and permission bits of another file; raises OSError, and ImageUnsafeError as ``give_file``."""
    mine = file.facts()
    if (mine.st_uid, mine.st_gid) != (facts.st_uid, facts.st_gid):
        give_file(file, facts.st_uid, facts.st_gid)
    os.fchmod(file.descriptor, stat.S_IMODE(facts.st_mode) & 0o777)


def remove_archive_leftovers(path: str) -> None:
    """Remove what interrupted runs have left beside an image that is whole, archived or absent.

    :raises ImageAccessError: one cannot be removed.
    """
    record = archive_record_path(path)
    partial = [archive_partial_path(path, image_format) for image_format in SUFFIXES]
    for left in (record, scratch_path(record), expanding_path(path), *partial):
        with contextlib.suppress(ImageNotFoundError), image_errors(left, "remove the leftover"):
            os.unlink(left)
