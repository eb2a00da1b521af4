# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A save image as a compressed archive, and back: the same bytes, the same holes.

Format: a tar file with one member in the sparse format 1.0 of pax headers (GNU tar's manual, "Storing Sparse Files"),
compressed with the tool of a stream format. It is C(<image>.tar.zst) and so on, so nobody takes it for an image, and
C(tar --sparse -xf) expands it. Holes are not in it, only a map of them. That makes mapped-ram and compression two steps
instead of one format, in which pages would have lost their fixed places.

The image is compressed in chunks: for each the tool runs once, and since these formats may be concatenated (but not
lzop's, whose archive is one chunk), the result is one archive. With C(tight) each chunk is flushed, expanded and
compared with the image, and then punched out of it: both files together never need more than the image and one chunk.
How far that went is in C(.<image name>.archiving), so an interruption at any point loses nothing: the image says
partial (so nobody loads it), and is archived to the end (C(continue_archive)) or filled again (C(undo_archive)).
Without C(tight) the image stays whole until the archive is flushed, compared with it and renamed; what an interruption
leaves is overwritten.

Expanding always keeps the archive until the image is whole.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import json
import os
import signal
import stat
import subprocess
import sys
import tarfile
import tempfile
import typing as t
import zlib

from ansible_collections.vmops.qemu.plugins.module_utils._bounded_read import read_bounded
from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    ConflictError,
    ImageAccessError,
    ImageError,
    ImageFormatError,
    ImageNotFoundError,
    ImageSpaceError,
    RequestError,
    VmopsError,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.compression import COMPRESSORS
from ansible_collections.vmops.qemu.plugins.module_utils._image.file import (
    MAX_TEXT_SIZE,
    ImageHead,
    file_id_of,
    flush_image,
    free_bytes,
    give_file,
    open_image,
    read_at,
    read_image_head,
    remove_image,
    require_regular,
    write_at,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.header import (
    HEADER_SIZE,
    MAGIC_COMPLETE,
    MAGIC_PARTIAL,
    MAGIC_SIZE,
    ImageFormat,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_errors import image_errors
from ansible_collections.vmops.qemu.plugins.module_utils._image.verify import structure_problems
from ansible_collections.vmops.qemu.plugins.module_utils._lock import lock
from ansible_collections.vmops.qemu.plugins.module_utils._situation import Situation

SUFFIXES = {
    ImageFormat.GZIP: ".tar.gz",
    ImageFormat.BZIP2: ".tar.bz2",
    ImageFormat.XZ: ".tar.xz",
    ImageFormat.LZOP: ".tar.lzo",
    ImageFormat.ZSTD: ".tar.zst",
}
CHUNK_SIZE = 256 * 1024 * 1024
"""Bytes of data that are compressed at a time, and punched out of the image then (C(tight))."""

_NOT_CONCATENATED = (ImageFormat.LZOP,)  # "warning: this is a multipart archive", and exit code 2
_PIECE = 1024 * 1024
_BLOCK = tarfile.BLOCKSIZE
_MAX_PAX_HEADER = 1024 * 1024
_MAX_RANGES = 1 << 26
#: As many are kept of a map for a look at the head alone, which stands in the first one or two of them.
_HEAD_RANGES = 4096
#: Bytes of two numbers in the map at most.
_MAX_ENTRY = 64
_ORPHAN_TIMEOUT = 30.0
_PUNCH_HOLE = 0x02 | 0x01  # FALLOC_FL_PUNCH_HOLE, which needs FALLOC_FL_KEEP_SIZE (linux/falloc.h)

Ranges = list[tuple[int, int]]
"""Where a file has data: offset and length of each range, in bytes, in order."""


# --- names ------------------------------------------------------------------------------------------------------


def archive_path(path: str, image_format: ImageFormat) -> str:
    """The archive of an image, with the suffix of the compressed format."""
    return path + SUFFIXES[image_format]


def all_forms(path: str) -> list[str]:
    """Where an image's memory may be: at its own path, and in each archive of it."""
    return [path, *(archive_path(path, image_format) for image_format in SUFFIXES)]


def find_archives(path: str) -> list[ImageFormat]:
    """The formats in which there are archives of this image (beside it, by name)."""
    return [image_format for image_format in SUFFIXES if os.path.isfile(archive_path(path, image_format))]


def split_archive_path(path: str) -> tuple[str, ImageFormat | None]:
    """The image's path and the archive's format, from either's path; the format is None for an image's own path."""
    for image_format, suffix in SUFFIXES.items():
        if path.endswith(suffix) and os.path.basename(path) != suffix:
            return path[: -len(suffix)], image_format
    return path, None


# --- looking ----------------------------------------------------------------------------------------------------


def read_archive_head(path: str) -> ImageHead:
    """The head of the image in an archive, by expanding no more than that.

    C(path), C(allocated), C(mtime), owner and mode are the archive file's, C(size) is the image's, holes included.

    :raises RequestError: the tool that expands it is missing.
    :raises ImageNotFoundError: there is no file.
    :raises ImageAccessError: it cannot be read.
    :raises ImageFormatError: it is no archive of a save image.
    """
    _image, image_format = split_archive_path(path)
    if image_format is None:
        raise ImageFormatError(path, "not the name of an archive of this collection")
    descriptor = open_image(path)
    head = os.memfd_create("vmops-image-head", os.MFD_CLOEXEC)
    try:
        facts = os.fstat(descriptor)
        with _expanding(path, descriptor, image_format, partly=True, head=True) as reader:
            for offset, data in reader.pieces(64 * 1024):
                write_at(head, data, offset)
                if offset > 2 * MAX_TEXT_SIZE or _has_head(head, path):
                    break
            os.ftruncate(head, reader.size)
        return dataclasses.replace(
            read_image_head(path, head),
            allocated=facts.st_blocks * 512,
            mtime=facts.st_mtime,
            uid=facts.st_uid,
            gid=facts.st_gid,
            mode=stat.S_IMODE(facts.st_mode),
            file_id=(facts.st_dev, facts.st_ino),
        )
    finally:
        os.close(head)
        os.close(descriptor)


def is_same_image(path: str, descriptor: int, image_format: ImageFormat) -> bool:
    """Whether the archive beside an image holds exactly this image; reads both."""
    archive = archive_path(path, image_format)
    source = open_image(archive)
    try:
        _check(archive, source, image_format, path, descriptor, _data_ranges(path, descriptor))
    except ImageFormatError:
        return False
    finally:
        os.close(source)
    return True


@dataclasses.dataclass(frozen=True)
class Unfinished:
    """How far archiving with C(tight) went; C(chunks) of C(chunk_size) bytes of data are in the archive.

    The archive's first C(length) bytes are on the storage; C(checksum) is the CRC-32 of the data in them. C(inode) is
    the image's.
    """

    inode: int
    format: str
    chunk_size: int
    chunks: int
    length: int
    checksum: int

    @property
    def image_format(self) -> ImageFormat:
        """The format that the archive is compressed in."""
        return ImageFormat.from_label(self.format)


def unfinished_archive(path: str, descriptor: int) -> Unfinished | None:
    """What an interrupted archiving with C(tight) has left of this image; None where the image was not touched by one.

    :raises ImageAccessError: its record cannot be read.
    :raises ImageFormatError: its record makes no sense.
    """
    if _magic(path, descriptor) != MAGIC_PARTIAL:
        return None
    record = _record_path(path)
    with image_errors(record, "read the record of an interrupted archiving"):
        try:
            text = read_bounded(record, 4096)
        except FileNotFoundError:
            return None
    try:
        found = Unfinished(**json.loads(text))
        known = found.format in [image_format.label for image_format in SUFFIXES] and found.chunk_size > 0
    except (ValueError, TypeError) as error:
        raise ImageFormatError(record, f"not the record of an interrupted archiving: {error}") from error
    if not known:
        raise ImageFormatError(record, "not the record of an interrupted archiving")
    return found if found.inode == os.fstat(descriptor).st_ino else None


# --- archiving --------------------------------------------------------------------------------------------------


def create_archive(path: str, descriptor: int, image_format: ImageFormat, tight: bool = False) -> str:
    """Replace a complete image by an archive of it.

    An archive that is there already is overwritten.

    :param descriptor: the image, open and locked (C(open_for_edit)).
    :param tight: punch what was compressed out of the image; else it is whole until the archive is.
    :returns: the archive's path.
    :raises RequestError: the tool is missing; with C(tight) also where the file system cannot punch holes.
    :raises ImageSpaceError: the storage is full.
    :raises ImageError: a step failed. The image is whole, or ``situation`` says what is where.
    """
    remove_archive_leftovers(path)
    if tight and image_format in _NOT_CONCATENATED:
        raise RequestError(
            f"The format {image_format.label} cannot be continued, so it is of no use with space: tight",
            cure="Choose another format, such as zstd, or space: whole",
        )
    partial = _partial_path(path, image_format)
    chunk_size = CHUNK_SIZE if image_format not in _NOT_CONCATENATED else sys.maxsize
    state = Unfinished(os.fstat(descriptor).st_ino, image_format.label, chunk_size, 0, 0, 0)
    try:
        with _new_file(partial) as archive:
            if tight:
                _require_punching(partial, archive)
            _archive(path, descriptor, archive, state, _data_ranges(path, descriptor), tight)
    except BaseException:  # whatever it is, a signal, too: beside a whole image nothing of an archive stays
        if _magic(path, descriptor) == MAGIC_COMPLETE:
            remove_archive_leftovers(path)
        raise
    return _replace_by_archive(path, descriptor, image_format)


def continue_archive(path: str, descriptor: int, state: Unfinished) -> str:
    """Go on with what C(unfinished_archive) found; as C(create_archive) with C(tight)."""
    partial = _partial_path(path, state.image_format)
    if not os.path.lexists(partial) and state.image_format in find_archives(path):
        return _replace_by_archive(path, descriptor, state.image_format, renamed=True)
    with _left_file(partial, state.length) as archive:
        with _expanding(partial, archive, state.image_format, partly=True) as reader:
            ranges = reader.ranges
        os.lseek(archive, 0, os.SEEK_END)
        _archive(path, descriptor, archive, state, ranges, True)
    return _replace_by_archive(path, descriptor, state.image_format)


def undo_archive(path: str, descriptor: int, state: Unfinished) -> None:
    """Fill the image again with what C(unfinished_archive) found, and make it complete.

    :raises ImageSpaceError: the storage is full; may be tried again.
    :raises ImageError: a step failed; may be tried again.
    """
    partial = _partial_path(path, state.image_format)
    source = partial if os.path.lexists(partial) else archive_path(path, state.image_format)
    length = state.length if source == partial else os.stat(source).st_size
    with _left_file(source, length) as archive, _expanding(source, archive, state.image_format, partly=True) as reader:
        ranges = [each for chunk in _chunks(reader.ranges, state)[: state.chunks] for each in chunk]
        checksum = 0
        for offset, data in reader.pieces(_PIECE, ranges):
            checksum = zlib.crc32(data, checksum)
            with image_errors(path, "fill the image again"):
                write_at(descriptor, data if offset else MAGIC_PARTIAL + data[MAGIC_SIZE:], offset)
        if checksum != state.checksum:
            raise ImageFormatError(source, "its content is not what was taken out of the image")
    with image_errors(path, "make the image complete"):
        os.fsync(descriptor)
        write_at(descriptor, MAGIC_COMPLETE, 0)
        os.fsync(descriptor)
    if source != partial:
        remove_image(source)
    remove_archive_leftovers(path)


def remove_archive_leftovers(path: str) -> None:
    """Remove what interrupted runs have left beside an image that is whole, archived or absent.

    :raises ImageAccessError: one cannot be removed.
    """
    record = _record_path(path)
    partial = [_partial_path(path, image_format) for image_format in SUFFIXES]
    for left in (record, f"{record}.new", _expanding_path(path), *partial):
        with contextlib.suppress(ImageNotFoundError), image_errors(left, "remove the leftover"):
            os.unlink(left)


# --- expanding --------------------------------------------------------------------------------------------------


def expand_archive(path: str, archive: int, image_format: ImageFormat) -> None:
    """Replace an archive by its image; the archive stays until the image is whole, checked and flushed.

    :param path: the image's path, where nothing may be.
    :param archive: the archive, open and locked.
    :raises ConflictError: there is something at the path.
    :raises RequestError: the tool is missing.
    :raises ImageSpaceError: the storage is full, or would be.
    :raises ImageFormatError: the archive, or the image in it, is damaged.
    :raises ImageAccessError: a step failed.
    """
    source, temporary = archive_path(path, image_format), _expanding_path(path)
    facts = os.fstat(archive)
    try:
        with _new_file(temporary) as target:
            with _expanding(source, archive, image_format) as reader:
                _require_space(path, sum(length for _offset, length in reader.ranges))
                for offset, data in reader.pieces(_PIECE):
                    if offset == 0:  # not an image before it is whole
                        if data[:MAGIC_SIZE] != MAGIC_COMPLETE:
                            raise ImageFormatError(source, "what is in it is no complete save image")
                        data = MAGIC_PARTIAL + data[MAGIC_SIZE:]
                    with image_errors(temporary, "write the image"):
                        write_at(target, data, offset)
                with image_errors(temporary, "set the image's size"):
                    os.ftruncate(target, reader.size)
            with image_errors(temporary, "make the image complete"):
                _copy_access(facts, temporary, target)
                os.fsync(target)
                problems = structure_problems(source, target)
                if problems:
                    raise ImageFormatError(source, f"the image in it is damaged: {'; '.join(problems)}")
                write_at(target, MAGIC_COMPLETE, 0)
                os.utime(target, (reader.mtime, reader.mtime))
                os.fsync(target)
            _rename_to_free_name(temporary, path)
    except BaseException:  # whatever it is, a signal, too: nobody else knows of the file
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    flush_image(path)
    remove_image(source, file_id_of(archive))
    remove_archive_leftovers(path)


# --- the way of an image into its archive -----------------------------------------------------------------------


def _archive(path: str, descriptor: int, archive: int, state: Unfinished, ranges: Ranges, tight: bool) -> None:
    """Compress what C(state) says is missing, into an archive that stands at its end; flush and check it."""
    partial = _partial_path(path, state.image_format)
    punched = state.chunks > 0
    chunks = _chunks(ranges, state)
    try:
        start = read_image_head(path, descriptor).header.stream_offset
        facts = os.fstat(descriptor)
        for index in range(state.chunks, len(chunks)):
            before = b"" if index else _member_head(os.path.basename(path), facts, ranges)
            after = b"" if index < len(chunks) - 1 else _member_end(ranges)
            checksum = _compress(path, descriptor, archive, state, before, chunks[index], after)
            if not tight:
                continue
            with image_errors(partial, "flush the archive"):
                os.fsync(archive)
                length = os.fstat(archive).st_size
            _check_chunk(path, descriptor, archive, state, before, chunks[index], after)
            state = dataclasses.replace(state, chunks=index + 1, length=length, checksum=checksum)
            if index < len(chunks) - 1:  # after the last one, the image goes as a whole
                _write_record(path, state)
                with image_errors(path, "mark the image as partial"):
                    if not punched:
                        write_at(descriptor, MAGIC_PARTIAL, 0)
                        os.fsync(descriptor)
                        punched = True
                    offset, size = chunks[index][-1]
                    _punch(descriptor, start, offset + size)
        with image_errors(partial, "flush the archive"):
            _copy_access(facts, partial, archive)
            os.fsync(archive)
        if not tight:
            _check(partial, archive, state.image_format, path, descriptor, ranges)
    except VmopsError as error:
        if _magic(path, descriptor) == MAGIC_PARTIAL:
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


def _replace_by_archive(path: str, descriptor: int, image_format: ImageFormat, renamed: bool = False) -> str:
    """Give a complete and checked archive its name, then remove the image."""
    target = archive_path(path, image_format)
    if not renamed:
        with image_errors(target, "rename the archive"):
            os.rename(_partial_path(path, image_format), target)
    flush_image(target)
    remove_image(path, file_id_of(descriptor))
    remove_archive_leftovers(path)
    return target


def _compress(
    path: str, descriptor: int, archive: int, state: Unfinished, before: bytes, ranges: Ranges, after: bytes
) -> int:
    """Append one chunk to the archive; returns the checksum with its data."""
    checksum = state.checksum
    command = COMPRESSORS[state.image_format].compress_command()
    with _tool(command, _partial_path(path, state.image_format), subprocess.PIPE, archive) as process:
        stream = t.cast(t.IO[bytes], process.stdin)
        stream.write(before)
        for _offset, data in _pieces(path, descriptor, ranges):
            checksum = zlib.crc32(data, checksum)
            stream.write(data)
        stream.write(after)
    return checksum


def _check(
    archive_name: str, archive: int, image_format: ImageFormat, path: str, descriptor: int, ranges: Ranges
) -> None:
    """Expand an archive and compare it with its image; raises ImageFormatError."""
    with _expanding(archive_name, archive, image_format) as reader:
        if (reader.size, reader.ranges) != (os.fstat(descriptor).st_size, ranges):
            raise ImageFormatError(archive_name, f"it does not hold the holes of {path}")
        for offset, data in reader.pieces(_PIECE):
            if data != read_at(descriptor, len(data), offset, path):
                raise ImageFormatError(archive_name, f"it differs from {path} near byte {offset}")


def _check_chunk(
    path: str, descriptor: int, archive: int, state: Unfinished, before: bytes, ranges: Ranges, after: bytes
) -> None:
    """Expand the archive's last chunk, which begins at C(state.length), and compare it with the image.

    :raises ImageFormatError: they differ; both files are as they were.
    """
    partial = _partial_path(path, state.image_format)
    with image_errors(partial, "read the archive"):
        os.lseek(archive, state.length, os.SEEK_SET)
    with _tool(COMPRESSORS[state.image_format].expand_command(), partial, archive, subprocess.PIPE) as process:
        stream = t.cast(t.IO[bytes], process.stdout)
        same = stream.read(len(before)) == before
        for _offset, data in _pieces(path, descriptor, ranges):
            same = same and stream.read(len(data)) == data
        if not same or stream.read(len(after) + 1) != after:
            raise ImageFormatError(partial, f"what was written of {path} does not read back")
    with image_errors(partial, "read the archive"):
        os.lseek(archive, 0, os.SEEK_END)


def _pieces(path: str, descriptor: int, ranges: Ranges) -> t.Iterator[tuple[int, bytes]]:
    """The image's data in these ranges: offset and bytes."""
    for offset, length in ranges:
        while length > 0:
            data = read_at(descriptor, min(length, _PIECE), offset, path)
            if not data:
                raise ImageAccessError(path, f"the file became shorter than {offset} bytes while it was read")
            yield offset, data
            offset, length = offset + len(data), length - len(data)


def _chunks(ranges: Ranges, state: Unfinished) -> list[Ranges]:
    """The ranges, cut into chunks of C(chunk_size) bytes of data; at least one."""
    chunks: list[Ranges] = [[]]
    room = state.chunk_size
    for offset, length in ranges:
        while length > 0:
            if room == 0:
                chunks.append([])
                room = state.chunk_size
            size = min(length, room)
            chunks[-1].append((offset, size))
            offset, length, room = offset + size, length - size, room - size
    return chunks


def _data_ranges(path: str, descriptor: int) -> Ranges:
    """Where the file has data."""
    ranges: Ranges = []
    with image_errors(path, "look for holes"):
        end = os.fstat(descriptor).st_size
        position = 0
        while position < end:
            try:
                start = os.lseek(descriptor, position, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:  # no data up to the end of the file
                    raise
                break
            position = min(os.lseek(descriptor, start, os.SEEK_HOLE), end)
            ranges.append((start, position - start))
    return ranges


def _punch(descriptor: int, start: int, end: int) -> None:
    """Give a range's blocks back to the file system; raises OSError."""
    library = ctypes.CDLL(None, use_errno=True)
    fallocate = getattr(library, "fallocate64", None) or library.fallocate
    fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    if end > start and fallocate(descriptor, _PUNCH_HOLE, start, end - start) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _require_punching(path: str, descriptor: int) -> None:
    """Try it on a new, empty file; raises RequestError where the file system cannot."""
    with image_errors(path, "prepare the archive"):
        write_at(descriptor, bytes(_BLOCK), 0)
        try:
            _punch(descriptor, 0, _BLOCK)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            raise RequestError(
                f"The file system of {os.path.dirname(path)} cannot punch holes into files",
                cure="Use space: whole",
            ) from error
        finally:
            os.ftruncate(descriptor, 0)


# --- tar --------------------------------------------------------------------------------------------------------


def _member_head(name: str, facts: os.stat_result, ranges: Ranges) -> bytes:
    """All that stands before the data: the headers and the map of data ranges."""
    numbers = [len(ranges), *(number for each in ranges for number in each)]
    sparse_map = "".join(f"{number}\n" for number in numbers).encode()
    sparse_map += bytes(-len(sparse_map) % _BLOCK)
    member = tarfile.TarInfo(f"GNUSparseFile.0/{name}")
    member.size = len(sparse_map) + sum(length for _offset, length in ranges)
    member.mode = stat.S_IMODE(facts.st_mode)
    member.uid, member.gid = facts.st_uid, facts.st_gid
    member.mtime = facts.st_mtime
    member.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": name,
        "GNU.sparse.realsize": str(facts.st_size),
    }
    return member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape") + sparse_map


def _member_end(ranges: Ranges) -> bytes:
    """All that stands behind the data: the rest of its last block, and the end of the archive."""
    return bytes(-sum(length for _offset, length in ranges) % _BLOCK + 2 * _BLOCK)


class _Reader:
    """Reads an expanded archive from its start; C(size) is the image's, C(mtime) in seconds since the epoch."""

    def __init__(self, path: str, stream: t.IO[bytes], head: bool = False) -> None:
        """:param head: keep no more of the map than the image's head needs."""
        self._path = path
        self._stream = stream
        try:
            records = self._pax_records()
            tarfile.TarInfo.frombuf(self._take(_BLOCK), "utf-8", "surrogateescape")
            if (records.get("GNU.sparse.major"), records.get("GNU.sparse.minor")) != ("1", "0"):
                raise ValueError("no sparse member")
            self.size = int(records["GNU.sparse.realsize"])
            self.mtime = float(records.get("mtime", 0))
            self.ranges = self._map(_HEAD_RANGES if head else _MAX_RANGES)
        except (ValueError, KeyError, OverflowError, tarfile.TarError) as error:
            raise ImageFormatError(path, f"this is no archive of a save image ({error})") from error

    def pieces(self, most: int, ranges: Ranges | None = None) -> t.Iterator[tuple[int, bytes]]:
        """The image's data: offset and bytes, at most C(most) at a time; raises ImageFormatError.

        :param ranges: the first of the image's ranges, or parts of them; all when it is not given.
        """
        for offset, length in self.ranges if ranges is None else ranges:
            while length > 0:
                data = self._take(min(length, most))
                yield offset, data
                offset, length = offset + len(data), length - len(data)

    def finish(self) -> None:
        """Read what follows the data, up to the end, so that the tool checks its own checksums."""
        while True:
            data = self._stream.read(_PIECE)
            if data.strip(b"\0"):
                raise ImageFormatError(self._path, "something follows the image in it")
            if not data:
                return

    def _take(self, length: int) -> bytes:
        data = self._stream.read(length)
        if len(data) < length:
            raise ImageFormatError(self._path, "the archive is cut off, or this is none")
        return data

    def _pax_records(self) -> dict[str, str]:
        header = tarfile.TarInfo.frombuf(self._take(_BLOCK), "utf-8", "surrogateescape")
        if header.type != tarfile.XHDTYPE or not 0 < header.size <= _MAX_PAX_HEADER:
            raise ValueError("no pax header")
        data = self._take(header.size)
        self._take(-header.size % _BLOCK)
        records = {}
        while data:
            length = int(data.partition(b" ")[0])
            key, _equals, value = data[:length].partition(b" ")[2].rstrip(b"\n").partition(b"=")
            records[key.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
            if length < 1:
                raise ValueError("broken pax header")
            data = data[length:]
        return records

    def _map(self, most: int) -> Ranges:
        """The map, of which so many ranges are kept."""
        consumed = 0

        def number() -> int:
            nonlocal consumed
            line = self._stream.readline(32)
            consumed += len(line)
            if not line.endswith(b"\n") or not line[:-1].isdigit():
                raise ValueError("broken map of holes")
            return int(line)

        count = number()
        if count > _MAX_RANGES:
            raise ValueError("too many holes")
        ranges = []
        position = 0
        for _index in range(min(count, most)):
            offset, length = number(), number()
            if offset < position or offset + length > self.size:
                raise ValueError("ranges that overlap or are beyond the image's end")
            position = offset + length
            if length:  # GNU tar marks the end with an empty one
                ranges.append((offset, length))
        if count > most:
            self._skip_numbers(2 * (count - most), consumed)
        else:
            self._take(-consumed % _BLOCK)
        return ranges

    def _skip_numbers(self, lines: int, consumed: int) -> None:
        """Read on behind the rest of the map, block by block, without a look at its numbers."""
        most = lines * _MAX_ENTRY
        part = self._take(-consumed % _BLOCK)
        while True:
            lines -= part.count(b"\n")
            if lines <= 0:
                return
            most -= len(part)
            if most < 0:
                raise ValueError("broken map of holes")
            part = self._take(_BLOCK)


# --- tools and files --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _expanding(
    path: str, archive: int, image_format: ImageFormat, partly: bool = False, head: bool = False
) -> t.Iterator[_Reader]:
    """Read an archive through its tool, from the start.

    :param partly: the rest is of no interest, and may be missing.
    :param head: nor is all but the image's head.
    """
    with image_errors(path, "read the archive"):
        os.lseek(archive, 0, os.SEEK_SET)
    command = COMPRESSORS[image_format].expand_command()
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(_tool(command, path, archive, subprocess.PIPE, partly))
        reader = _Reader(path, t.cast(t.IO[bytes], process.stdout), head)
        yield reader
        if not partly:
            reader.finish()


@contextlib.contextmanager
def _tool(
    command: list[str], path: str, stdin: int, stdout: int, partly: bool = False
) -> t.Iterator[subprocess.Popen[bytes]]:
    """Run a tool beside the body; it has ended afterwards, whatever happens.

    :param partly: it is of no interest how it ends.
    :raises ImageFormatError: it failed, and says why.
    """
    with tempfile.TemporaryFile() as said:
        # A signal whose handler raises while the tool is being started would leave it to itself. The tool takes over
        # that these are blocked: they end this process, which then ends the tool by SIGKILL.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGHUP, signal.SIGINT, signal.SIGTERM))
        try:
            # A session of its own: a signal for this process's group must not end it on its own.
            process = subprocess.Popen(
                command,
                stdin=stdin,
                stdout=stdout,
                stderr=said,
                start_new_session=True,
                env={**os.environ, "LC_ALL": "C"},
            )
        except BaseException as error:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            if isinstance(error, OSError):
                raise RequestError(f"{command[0]} cannot be started: {error.strerror}") from error
            raise
        failure: ImageError | None = None
        try:
            try:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
                yield process
                if process.stdin:
                    process.stdin.close()
            except BrokenPipeError as error:
                failure = ImageAccessError(path, f"{command[0]} ended before its time")
                failure.__cause__ = error
            except ImageFormatError as error:
                # A stream that ends too early may mean that the tool found it damaged: it knows better.
                failure = error
                if process.stdout:
                    process.stdout.close()
            if not partly:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(2 if failure else None)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    if stream:
                        stream.close()
        said.seek(0)
        text = said.read(4096).decode(errors="replace").strip()
    if process.returncode > 0 and not partly:
        program = os.path.basename(command[0])
        if "No space left" in text or "quota exceeded" in text:
            raise ImageSpaceError(path, f"{program} failed: {text}", cure="Free space (or quota) there") from failure
        raise ImageFormatError(
            path, f"{program} failed with exit code {process.returncode}: {text or 'it said nothing'}"
        ) from failure
    if failure:
        raise failure
    if process.returncode < 0 and not partly:
        raise ImageAccessError(path, f"{os.path.basename(command[0])} was killed by signal {-process.returncode}")


@contextlib.contextmanager
def _new_file(path: str) -> t.Iterator[int]:
    """A new file, locked, in place of a leftover."""
    with image_errors(path, "create the file"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with image_errors(path, "lock the file"):
            lock(descriptor)
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _left_file(path: str, length: int) -> t.Iterator[int]:
    """An archive that an earlier run began, cut back to what is known of it; its tool may still be writing."""
    with image_errors(path, "open the archive"):
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        require_regular(os.fstat(descriptor), path)
        # The tool of a run that was killed has the lock, too, on the descriptor that it writes to.
        with image_errors(path, "lock the archive"):
            locked = lock(descriptor, _ORPHAN_TIMEOUT)
        if not locked:
            raise ConflictError(f"{path} is still being written by the tool of an earlier run", cure="Wait for its end")
        if os.fstat(descriptor).st_size < length:
            raise ImageFormatError(path, f"it is shorter than the {length} bytes that were written to it")
        with image_errors(path, "cut the archive back"):
            os.ftruncate(descriptor, length)
        yield descriptor
    finally:
        os.close(descriptor)


def _write_record(path: str, state: Unfinished) -> None:
    record = _record_path(path)
    with image_errors(record, "record how far archiving went"):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with contextlib.suppress(FileNotFoundError):  # also a FIFO, which would be waited for
            os.unlink(f"{record}.new")
        descriptor = os.open(f"{record}.new", flags, 0o600)
        try:
            write_at(descriptor, json.dumps(dataclasses.asdict(state)).encode(), 0)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(f"{record}.new", record)
    flush_image(record)


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


def _copy_access(facts: os.stat_result, path: str, descriptor: int) -> None:
    """Owner and permission bits of another file; raises OSError, and ImageUnsafeError as C(give_file)."""
    mine = os.fstat(descriptor)
    if (mine.st_uid, mine.st_gid) != (facts.st_uid, facts.st_gid):
        give_file(path, descriptor, facts.st_uid, facts.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(facts.st_mode) & 0o777)


def _require_space(path: str, needed: int) -> None:
    directory = os.path.dirname(path)
    free = free_bytes(directory)
    if free is not None and free < needed:
        raise ImageSpaceError(
            path,
            f"the image needs {needed} bytes beside its archive, but {directory} has only {free}",
            cure="Free space there, or move the archive to where there is more",
        )


def _has_head(head: int, path: str) -> bool:
    """Whether header, XML and cookie are there; true also where the header is not one, as then no more is needed."""
    try:
        found = read_image_head(path, head)
    except ImageFormatError:
        return os.fstat(head).st_size >= HEADER_SIZE and _magic(path, head) not in (MAGIC_COMPLETE, MAGIC_PARTIAL)
    except ImageError:
        return True
    return os.fstat(head).st_size >= found.header.stream_offset


def _magic(path: str, descriptor: int) -> bytes:
    return read_at(descriptor, MAGIC_SIZE, 0, path)


def _record_path(path: str) -> str:
    directory, name = os.path.split(path)
    return os.path.join(directory, f".{name}.archiving")


def _partial_path(path: str, image_format: ImageFormat) -> str:
    directory, name = os.path.split(path)
    return os.path.join(directory, f".{archive_path(name, image_format)}.partial")


def _expanding_path(path: str) -> str:
    directory, name = os.path.split(path)
    return os.path.join(directory, f".{name}.expanding")
