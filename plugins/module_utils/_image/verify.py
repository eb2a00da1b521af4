# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether a save image's file holds what its header, its stream and its bitmaps promise."""

from __future__ import annotations

import errno
import os
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._errors import ImageFormatError, ImageUnsupportedError
from ansible_collections.vmops.qemu.plugins.module_utils._image import domain_xml
from ansible_collections.vmops.qemu.plugins.module_utils._image.file import open_image, read_image_head
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_errors import image_errors
from ansible_collections.vmops.qemu.plugins.module_utils._image.stream import MappedRamBlock, StreamFacts, read_stream


def structure_problems(path: str, descriptor: int | None = None) -> list[str]:
    """What is wrong with an image, as sentences without the path; empty when nothing is.

    Read are the head, the bitmaps and the stream's end, never a page; of the pages it is known from the file's map of
    data and holes whether they were written. An image in the making is judged as a complete one: that the magic says
    partial is no problem here.

    :param descriptor: an open descriptor of the image, where the caller holds one; it stays open.
    :raises ImageNotFoundError: there is no file.
    :raises ImageAccessError: it cannot be read.
    """
    if descriptor is None:
        try:
            descriptor = open_image(path)
        except ImageFormatError as error:
            return [error.problem]
        try:
            return structure_problems(path, descriptor)
        finally:
            os.close(descriptor)
    problems: list[str] = []
    try:
        head = read_image_head(path, descriptor)
    except (ImageFormatError, ImageUnsupportedError) as error:
        return [error.problem]
    try:
        domain_xml.parse(head.xml, path)
    except ImageFormatError as error:
        problems.append(error.problem)
    try:
        stream = read_stream(path, head.header, descriptor)
    except ImageFormatError as error:
        return [*problems, error.problem]
    return problems + (stream_problems(path, descriptor, stream) if stream else [])


def stream_problems(path: str, descriptor: int, stream: StreamFacts) -> list[str]:
    """What the file lacks of a stream whose facts were read from it, as sentences.

    :raises ImageAccessError: the file cannot be read.
    """
    problems = []
    for block in stream.ram_blocks:
        lost = _lost_pages(path, descriptor, block) if isinstance(block, MappedRamBlock) else 0
        if lost:
            problems.append(
                f"{lost} pages of RAM block {block.name!r} were never written: they lie in holes of the file"
            )
    if stream.sections is None:
        problems.append("the stream does not end where the file ends: it was cut off, or something follows it")
    return problems


def _lost_pages(path: str, descriptor: int, block: MappedRamBlock) -> int:
    """Pages that the bitmap promises and that lie wholly in a hole.

    QEMU leaves zero pages out, so a page that it wrote has data. (With zero-page-detection none it writes zero pages
    too; they have data as well until a sparse copy makes holes of them.) A file system that knows no holes shows all
    as data, and then nothing is found here.
    """
    if not block.present_pages:
        return 0
    return sum(
        block.count_present(
            descriptor,
            -(-(start - block.pages_offset) // block.page_size),
            (end - block.pages_offset) // block.page_size,
            path,
        )
        for start, end in _holes(path, descriptor, block.pages_offset, block.end)
    )


def _holes(path: str, descriptor: int, start: int, end: int) -> t.Iterator[tuple[int, int]]:
    """The holes between two offsets, in order."""
    with image_errors(path, "look for holes"):
        while start < end:
            hole = os.lseek(descriptor, start, os.SEEK_HOLE)
            if hole >= end:
                return
            try:
                start = os.lseek(descriptor, hole, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:  # no data up to the end of the file
                    raise
                start = end
            yield hole, min(start, end)
