# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether a save image's file holds what its header, its stream and its bitmaps promise."""

from __future__ import annotations

import re

from ansible_collections.vmops.qemu.plugins.module_utils._errors import ImageFormatError, ImageUnsupportedError
from ansible_collections.vmops.qemu.plugins.module_utils._image import domain_xml
from ansible_collections.vmops.qemu.plugins.module_utils._image.head import ImageHead
from ansible_collections.vmops.qemu.plugins.module_utils._image.header import HEADER_SIZE
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_file import ImageFile
from ansible_collections.vmops.qemu.plugins.module_utils._image.stream import (
    MappedRamBlock,
    StreamFacts,
    read_stream_of,
)


def structure_problems(path: str) -> list[str]:
    """What is wrong with the image at a path, as :func:`structure_problems_of`.

    :raises ImageNotFoundError: there is no file.
    :raises ImageAccessError: it cannot be read.
    """
    try:
        image = ImageFile.open(path)
    except ImageFormatError as error:
        return [error.problem]
    with image:
        return structure_problems_of(image)


def structure_problems_of(image: ImageFile) -> list[str]:
    """What is wrong with an open image, as sentences without the path; empty when nothing is.

    Read are the head, the bitmaps and the stream's end, never a page; of the pages it is known from the file's map of
    data and holes whether they were written. An image in the making is judged as a complete one: that the magic says
    partial is no problem here.

    :raises ImageAccessError: it cannot be read.
    """
    try:
        head = image.head()
    except (ImageFormatError, ImageUnsupportedError) as error:
        return [error.problem]
    problems = head_problems(image, head)
    domain = None
    try:
        domain = domain_xml.parse(head.xml, image.path)
    except ImageFormatError as error:
        problems.append(error.problem)
    try:
        stream = read_stream_of(image, head.header)
    except ImageFormatError as error:
        return [*problems, error.problem]
    if stream and domain:
        problems += domain_problems(domain, stream.machine, stream.memory)
    return problems + (stream_problems(image, stream) if stream else [])


def head_problems(image: ImageFile, head: ImageHead) -> list[str]:
    """What in the text area is not where every writer puts it, as sentences.

    Of an image with a cookie our record is not trusted, so that an image has one, or none, must be beyond doubt.

    :raises ImageAccessError: the file cannot be read.
    """
    after_xml = len(head.xml.encode()) + 1
    cookie_offset = head.header.cookie_offset
    if cookie_offset not in (0, after_xml):
        return [
            f"the cookie does not follow the domain XML (it is said to start at byte {cookie_offset}, not {after_xml})"
        ]
    unused = after_xml < head.header.data_length and not cookie_offset
    if unused and image.read(1, HEADER_SIZE + after_xml) != b"\0":
        return ["there is something after the domain XML that the header does not tell of"]
    return []


def domain_problems(domain: domain_xml.ParsedDomain, machine: str, memory: int) -> list[str]:
    """Where the domain XML contradicts the VM's state, as sentences.

    :param machine: the machine type in the state.
    :param memory: all RAM blocks in the state, in bytes: the guest's memory, and some of devices and firmware; 0 where
        they are not known.
    """
    problems = []
    # An XML from elsewhere may have an alias, such as pc.
    if re.search(r"-[0-9]+\.[0-9]+$", domain.machine) and machine and domain.machine != machine:
        problems.append(f"the domain XML has the machine type {domain.machine[:80]}, the VM's state is of {machine}")
    if memory and domain.memory > memory:
        problems.append(f"the domain XML has {domain.memory} bytes of memory, the VM's state only {memory}")
    return problems


def stream_problems(image: ImageFile, stream: StreamFacts) -> list[str]:
    """What the file lacks of a stream whose facts were read from it, as sentences.

    :raises ImageAccessError: the file cannot be read.
    """
    problems = []
    for block in stream.ram_blocks:
        lost = _lost_pages(image, block) if isinstance(block, MappedRamBlock) else 0
        if lost:
            problems.append(
                f"pages of RAM block {block.name!r} were never written ({lost}): they lie in holes of the file"
            )
    if stream.end is not None and image.size < stream.end:
        problems.append("the file was cut off while it was read")
    if stream.sections is None:
        problems.append("the stream does not end where the file ends: it was cut off, or something follows it")
    return problems


def _lost_pages(image: ImageFile, block: MappedRamBlock) -> int:
    """Pages that the bitmap promises and that lie wholly in a hole.

    QEMU leaves zero pages out, so a page that it wrote has data. (With zero-page-detection none it writes zero pages
    too; they have data as well until a sparse copy makes holes of them.) A file system that knows no holes shows all
    as data, and then nothing is found here.
    """
    if not block.present_pages:
        return 0
    return sum(
        block.count_present(
            image,
            -(-(start - block.pages_offset) // block.page_size),
            (start + length - block.pages_offset) // block.page_size,
        )
        for start, length in image.holes(block.pages_offset, block.end)
    )
