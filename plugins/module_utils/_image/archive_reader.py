# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Reading the archive of an image: its head alone, or all of it, to compare it with the image."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import stat
import subprocess
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._anonymous_file import anonymous_file
from ansible_collections.vmops.qemu.plugins.module_utils._errors import ImageError, ImageFormatError
from ansible_collections.vmops.qemu.plugins.module_utils._image.compressor import COMPRESSORS, running_tool
from ansible_collections.vmops.qemu.plugins.module_utils._image.head import MAX_TEXT_SIZE, ImageHead
from ansible_collections.vmops.qemu.plugins.module_utils._image.header import (
    HEADER_SIZE,
    MAGIC_COMPLETE,
    MAGIC_PARTIAL,
    ImageFormat,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_errors import image_errors
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_file import ImageFile
from ansible_collections.vmops.qemu.plugins.module_utils._image.names import archive_path, image_of_archive
from ansible_collections.vmops.qemu.plugins.module_utils._image.sparse_tar import PIECE, Ranges, SparseTarReader


def read_archive_head(path: str) -> ImageHead:
    """The head of the image in an archive, by expanding no more than that.

    ``path``, ``allocated``, ``mtime``, owner and mode are the archive file's, ``size`` is the image's, holes included.

    :raises RequestError: the tool that expands it is missing.
    :raises ImageNotFoundError: there is no file.
    :raises ImageAccessError: it cannot be read.
    :raises ImageFormatError: it is no archive of a save image.
    """
    _image, image_format = image_of_archive(path)
    with ImageFile.open(path) as archive, ImageFile(path, anonymous_file("vmops-image-head")) as head:
        facts = archive.facts()
        with expanding(archive, image_format, partly=True, head=True) as reader:
            for offset, data in reader.pieces(64 * 1024):
                head.write(data, offset)
                if offset > 2 * MAX_TEXT_SIZE or _has_head(head):
                    break
            head.truncate(reader.size)
        return dataclasses.replace(
            head.head(),
            allocated=facts.st_blocks * 512,
            mtime=facts.st_mtime,
            uid=facts.st_uid,
            gid=facts.st_gid,
            mode=stat.S_IMODE(facts.st_mode),
            file_id=(facts.st_dev, facts.st_ino),
        )


def is_same_image(image: ImageFile, image_format: ImageFormat) -> bool:
    """Whether the archive beside an image holds exactly this image; reads both."""
    with ImageFile.open(archive_path(image.path, image_format)) as archive:
        try:
            require_same(archive, image_format, image, image.data_ranges())
        except ImageFormatError:
            return False
    return True


def require_same(archive: ImageFile, image_format: ImageFormat, image: ImageFile, ranges: Ranges) -> None:
    """Expand an archive and compare it with its image; raises ImageFormatError."""
    with expanding(archive, image_format) as reader:
        if (reader.size, reader.ranges) != (image.size, ranges):
            raise ImageFormatError(archive.path, f"it does not hold the holes of {image.path}")
        for offset, data in reader.pieces(PIECE):
            if data != image.read(len(data), offset):
                raise ImageFormatError(archive.path, f"it differs from {image.path} near byte {offset}")


@contextlib.contextmanager
def expanding(
    archive: ImageFile, image_format: ImageFormat, partly: bool = False, head: bool = False
) -> t.Iterator[SparseTarReader]:
    """Read an archive through its tool, from the start.

    :param partly: the rest is of no interest, and may be missing.
    :param head: nor is all but the image's head.
    """
    with image_errors(archive.path, "read the archive"):
        os.lseek(archive.descriptor, 0, os.SEEK_SET)
    command = COMPRESSORS[image_format].expand_command()
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(running_tool(command, archive.path, archive.descriptor, subprocess.PIPE, partly))
        reader = SparseTarReader(archive.path, t.cast(t.IO[bytes], process.stdout), head)
        yield reader
        if not partly:
            reader.finish()


def _has_head(head: ImageFile) -> bool:
    """Whether header, XML and cookie are there; true also where the header is not one, as then no more is needed."""
    try:
        found = head.head()
    except ImageFormatError:
        return head.size >= HEADER_SIZE and head.magic() not in (MAGIC_COMPLETE, MAGIC_PARTIAL)
    except ImageError:
        return True
    return head.size >= found.header.stream_offset
