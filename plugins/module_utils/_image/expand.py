# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""An image from its archive: anew, or filled again where it was archived in part.

The archive always stays until the image is whole.
"""

from __future__ import annotations

import contextlib
import errno
import os
import zlib

from ansible_collections.vmops.qemu.plugins.module_utils._errors import ConflictError, ImageFormatError, ImageSpaceError
from ansible_collections.vmops.qemu.plugins.module_utils._image.archive_files import (
    copy_access,
    left_file,
    new_file,
    remove_archive_leftovers,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.archive_reader import expanding
from ansible_collections.vmops.qemu.plugins.module_utils._image.archive_record import Unfinished
from ansible_collections.vmops.qemu.plugins.module_utils._image.header import MAGIC_COMPLETE, MAGIC_PARTIAL, MAGIC_SIZE
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_errors import image_errors
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_file import ImageFile
from ansible_collections.vmops.qemu.plugins.module_utils._image.names import (
    archive_partial_path,
    archive_path,
    expanding_path,
    image_of_archive,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.place import flush_image, free_bytes, remove_image
from ansible_collections.vmops.qemu.plugins.module_utils._image.sparse_tar import PIECE, chunks_of
from ansible_collections.vmops.qemu.plugins.module_utils._image.verify import structure_problems_of


def expand_archive(archive: ImageFile) -> None:
    """Replace an archive by its image; the archive stays until the image is whole, checked and flushed.

    :param archive: open and locked; nothing may be at the path of its image.
    :raises ConflictError: something is there.
    :raises RequestError: the tool is missing.
    :raises ImageSpaceError: the storage is full, or would be.
    :raises ImageFormatError: the archive, or the image in it, is damaged.
    :raises ImageAccessError: a step failed.
    """
    source = archive.path
    path, image_format = image_of_archive(source)
    temporary = expanding_path(path)
    facts = archive.facts()
    try:
        with new_file(temporary) as target:
            with expanding(archive, image_format) as reader:
                _require_space(path, sum(length for _offset, length in reader.ranges))
                for offset, data in reader.pieces(PIECE):
                    if offset == 0:  # not an image before it is whole
                        if data[:MAGIC_SIZE] != MAGIC_COMPLETE:
                            raise ImageFormatError(source, "what is in it is not a complete save image")
                        data = MAGIC_PARTIAL + data[MAGIC_SIZE:]
                    with image_errors(temporary, "write the image"):
                        target.write(data, offset)
                with image_errors(temporary, "set the image's size"):
                    target.truncate(reader.size)
            with image_errors(temporary, "make the image complete"):
                copy_access(facts, target)
                target.flush()
                problems = structure_problems_of(target)
                if problems:
                    raise ImageFormatError(source, f"the image in it is damaged: {'; '.join(problems)}")
                target.write(MAGIC_COMPLETE, 0)
                os.utime(target.descriptor, (reader.mtime, reader.mtime))
                target.flush()
            _rename_to_free_name(temporary, path)
    except BaseException:  # whatever it is, a signal, too: nobody else knows of the file
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    flush_image(path)
    remove_image(source, archive.file_id)
    remove_archive_leftovers(path)


def undo_archive(image: ImageFile, state: Unfinished) -> None:
    """Fill the image again with what ``unfinished_archive`` found, and make it complete.

    :raises ImageSpaceError: the storage is full; may be tried again.
    :raises ImageError: a step failed; may be tried again.
    """
    path = image.path
    partial = archive_partial_path(path, state.image_format)
    source = partial if os.path.lexists(partial) else archive_path(path, state.image_format)
    length = state.length if source == partial else os.stat(source).st_size
    with left_file(source, length) as archive, expanding(archive, state.image_format, partly=True) as reader:
        ranges = [each for chunk in chunks_of(reader.ranges, state.chunk_size)[: state.chunks] for each in chunk]
        checksum = 0
        for offset, data in reader.pieces(PIECE, ranges):
            checksum = zlib.crc32(data, checksum)
            with image_errors(path, "fill the image again"):
                image.write(data if offset else MAGIC_PARTIAL + data[MAGIC_SIZE:], offset)
        if checksum != state.checksum:
            raise ImageFormatError(source, "its content is not what was taken out of the image")
    with image_errors(path, "make the image complete"):
        image.flush()
        image.write(MAGIC_COMPLETE, 0)
        image.flush()
    if source != partial:
        remove_image(source)
    remove_archive_leftovers(path)


def _rename_to_free_name(temporary: str, path: str) -> None:
    """Without ever replacing what came there meanwhile, such as a new save."""
    with image_errors(path, "give the image its name"):
        try:
            os.link(temporary, path, follow_symlinks=False)
            os.unlink(temporary)
        except FileExistsError as error:
            raise ConflictError(
                f"There is a file at {path}, so the archive is not expanded to it", cure="Move one of them away"
            ) from error
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            if os.path.lexists(path):
                raise ConflictError(f"There is a file at {path}", cure="Move one of them away") from error
            os.rename(temporary, path)


def _require_space(path: str, needed: int) -> None:
    directory = os.path.dirname(path)
    free = free_bytes(directory)
    if free is not None and free < needed:
        raise ImageSpaceError(
            path,
            f"the image needs {needed} bytes beside its archive, but {directory} has only {free}",
            cure="Free space there, or move the archive to where there is more",
        )
