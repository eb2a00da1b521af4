# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A save image into a compressed archive: the same bytes, the same holes (back: ``expand``).

Format: a sparse tar file (``sparse_tar``), compressed with the tool of a stream format. It is ``<image>.tar.zst`` and
so on, so nobody takes it for an image, and ``tar --sparse -xf`` expands it. Holes are not in it, only a map of them.
That makes mapped-ram and compression two steps instead of one format, in which pages would have lost their fixed
places.

The image is compressed in chunks: for each the tool runs once, and since these formats may be concatenated (but not
lzop's, whose archive is one chunk), the result is one archive. With ``tight`` each chunk is flushed, expanded and
compared with the image, and then punched out of it: both files together never need more than the image and one chunk.
How far that went is in ``.<image name>.archiving``, so an interruption at any point loses nothing: the image says
partial (so nobody loads it), and is archived to the end (``continue_archive``) or filled again (``undo_archive``).
Without ``tight`` the image stays whole until the archive is flushed, compared with it and renamed; what an interruption
leaves is overwritten.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import subprocess
import sys
import typing as t
import zlib

from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    ImageAccessError,
    ImageFormatError,
    RequestError,
    VmopsError,
)
from ansible_collections.vmops.qemu.plugins.module_utils._holes import punch
from ansible_collections.vmops.qemu.plugins.module_utils._image.archive_files import (
    copy_access,
    left_file,
    new_file,
    remove_archive_leftovers,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.archive_reader import expanding, require_same
from ansible_collections.vmops.qemu.plugins.module_utils._image.archive_record import Unfinished, write_record
from ansible_collections.vmops.qemu.plugins.module_utils._image.compressor import COMPRESSORS, running_tool
from ansible_collections.vmops.qemu.plugins.module_utils._image.header import MAGIC_COMPLETE, MAGIC_PARTIAL, ImageFormat
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_errors import image_errors
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_file import ImageFile
from ansible_collections.vmops.qemu.plugins.module_utils._image.names import (
    archive_partial_path,
    archive_path,
    find_archives,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.place import flush_image, remove_image
from ansible_collections.vmops.qemu.plugins.module_utils._image.sparse_tar import (
    BLOCK,
    PIECE,
    Ranges,
    chunks_of,
    member_end,
    member_head,
)
from ansible_collections.vmops.qemu.plugins.module_utils._situation import Situation

CHUNK_SIZE = 256 * 1024 * 1024
"""Bytes of data that are compressed at a time, and punched out of the image then (``tight``)."""

_NOT_CONCATENATED = (ImageFormat.LZOP,)  # "warning: this is a multipart archive", and exit code 2


def create_archive(image: ImageFile, image_format: ImageFormat, tight: bool = False) -> str:
    """Replace a complete image by an archive of it.

    An archive that is there already is overwritten.

    :param image: open and locked (``open_for_edit``).
    :param tight: punch what was compressed out of the image; else it is whole until the archive is.
    :returns: the archive's path.
    :raises RequestError: the tool is missing; with ``tight`` also where the file system cannot punch holes.
    :raises ImageSpaceError: the storage is full.
    :raises ImageError: a step failed. The image is whole, or ``situation`` says what is where.
    """
    path = image.path
    remove_archive_leftovers(path)
    if tight and image_format in _NOT_CONCATENATED:
        raise RequestError(
            f"The format {image_format.label} cannot be continued, so it is of no use with space: tight",
            cure="Choose another format, such as zstd, or space: whole",
        )
    partial = archive_partial_path(path, image_format)
    chunk_size = CHUNK_SIZE if image_format not in _NOT_CONCATENATED else sys.maxsize
    state = Unfinished(image.facts().st_ino, image_format.label, chunk_size, 0, 0, 0)
    try:
        with new_file(partial) as archive:
            if tight:
                _require_punching(archive)
            _archive(image, archive, state, image.data_ranges(), tight)
    except BaseException:  # whatever it is, a signal, too: beside a whole image nothing of an archive stays
        if image.magic() == MAGIC_COMPLETE:
            remove_archive_leftovers(path)
        raise
    return _replace_by_archive(image, image_format)


def continue_archive(image: ImageFile, state: Unfinished) -> str:
    """Go on with what ``unfinished_archive`` found; as ``create_archive`` with ``tight``."""
    partial = archive_partial_path(image.path, state.image_format)
    if not os.path.lexists(partial) and state.image_format in find_archives(image.path):
        return _replace_by_archive(image, state.image_format, renamed=True)
    with left_file(partial, state.length) as archive:
        with expanding(archive, state.image_format, partly=True) as reader:
            ranges = reader.ranges
        os.lseek(archive.descriptor, 0, os.SEEK_END)
        _archive(image, archive, state, ranges, True)
    return _replace_by_archive(image, state.image_format)


# --- the way of an image into its archive -----------------------------------------------------------------------


def _archive(image: ImageFile, archive: ImageFile, state: Unfinished, ranges: Ranges, tight: bool) -> None:
    """Compress what ``state`` says is missing, into an archive that stands at its end; flush and check it."""
    path, partial = image.path, archive.path
    punched = state.chunks > 0
    chunks = chunks_of(ranges, state.chunk_size)
    try:
        start = image.head().header.stream_offset
        facts = image.facts()
        for index in range(state.chunks, len(chunks)):
            before = b"" if index else member_head(os.path.basename(path), facts, ranges)
            after = b"" if index < len(chunks) - 1 else member_end(ranges)
            checksum = _compress(image, archive, state, before, chunks[index], after)
            if not tight:
                continue
            with image_errors(partial, "flush the archive"):
                archive.flush()
                length = archive.size
            _check_chunk(image, archive, state, before, chunks[index], after)
            state = dataclasses.replace(state, chunks=index + 1, length=length, checksum=checksum)
            if index < len(chunks) - 1:  # after the last one, the image goes as a whole
                write_record(path, state)
                with image_errors(path, "mark the image as partial"):
                    if not punched:
                        image.write(MAGIC_PARTIAL, 0)
                        image.flush()
                        punched = True
                    offset, size = chunks[index][-1]
                    punch(image.descriptor, start, offset + size)
        with image_errors(partial, "flush the archive"):
            copy_access(facts, archive)
            archive.flush()
        if not tight:
            require_same(archive, state.image_format, image, ranges)
    except VmopsError as error:
        if image.magic() == MAGIC_PARTIAL:
            error.situation = Situation(
                f"One part of the image is in {path}, which is marked as partial, and the other in {partial}; nothing"
                " is lost as long as both stay",
                image="partial",
            )
            error.cure = (
                f"{error.cure + '; then run' if error.cure else 'Run'} vmops.qemu.qemu_save_image with"
                f" archive: {state.format} to finish the archive, or with archive: none to make the image whole again"
            )
        raise


def _replace_by_archive(image: ImageFile, image_format: ImageFormat, renamed: bool = False) -> str:
    """Give a complete and checked archive its name, then remove the image."""
    path = image.path
    target = archive_path(path, image_format)
    if not renamed:
        with image_errors(target, "rename the archive"):
            os.rename(archive_partial_path(path, image_format), target)
    flush_image(target)
    remove_image(path, image.file_id)
    remove_archive_leftovers(path)
    return target


def _compress(
    image: ImageFile, archive: ImageFile, state: Unfinished, before: bytes, ranges: Ranges, after: bytes
) -> int:
    """Append one chunk to the archive; returns the checksum with its data."""
    checksum = state.checksum
    command = COMPRESSORS[state.image_format].compress_command()
    with running_tool(command, archive.path, subprocess.PIPE, archive.descriptor) as process:
        stream = t.cast(t.IO[bytes], process.stdin)
        stream.write(before)
        for _offset, data in _pieces(image, ranges):
            checksum = zlib.crc32(data, checksum)
            stream.write(data)
        stream.write(after)
    return checksum


def _check_chunk(
    image: ImageFile, archive: ImageFile, state: Unfinished, before: bytes, ranges: Ranges, after: bytes
) -> None:
    """Expand the archive's last chunk, which begins at ``state.length``, and compare it with the image.

    :raises ImageFormatError: they differ; both files are as they were.
    """
    with image_errors(archive.path, "read the archive"):
        os.lseek(archive.descriptor, state.length, os.SEEK_SET)
    command = COMPRESSORS[state.image_format].expand_command()
    with running_tool(command, archive.path, archive.descriptor, subprocess.PIPE) as process:
        stream = t.cast(t.IO[bytes], process.stdout)
        same = stream.read(len(before)) == before
        for _offset, data in _pieces(image, ranges):
            same = same and stream.read(len(data)) == data
        if not same or stream.read(len(after) + 1) != after:
            raise ImageFormatError(archive.path, f"what was written of {image.path} does not read back")
    with image_errors(archive.path, "read the archive"):
        os.lseek(archive.descriptor, 0, os.SEEK_END)


def _pieces(image: ImageFile, ranges: Ranges) -> t.Iterator[tuple[int, bytes]]:
    """The image's data in these ranges: offset and bytes."""
    for offset, length in ranges:
        while length > 0:
            data = image.read(min(length, PIECE), offset)
            if not data:
                raise ImageAccessError(image.path, f"the file became shorter than {offset} bytes while it was read")
            yield offset, data
            offset, length = offset + len(data), length - len(data)


def _require_punching(file: ImageFile) -> None:
    """Try it on a new, empty file; raises RequestError where the file system cannot."""
    with image_errors(file.path, "prepare the archive"):
        file.write(bytes(BLOCK), 0)
        try:
            punch(file.descriptor, 0, BLOCK)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            raise RequestError(
                f"The file system of {os.path.dirname(file.path)} cannot punch holes into files",
                cure="Use space: whole",
            ) from error
        finally:
            file.truncate(0)
