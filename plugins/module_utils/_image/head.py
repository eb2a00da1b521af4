# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What stands in a save image before the QEMU stream: the header, the domain XML, the cookie, and room for edits."""

from __future__ import annotations

import dataclasses
import stat
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._errors import ImageFormatError, RequestError
from ansible_collections.vmops.qemu.plugins.module_utils._image import domain_xml
from ansible_collections.vmops.qemu.plugins.module_utils._image.header import HEADER_SIZE, SaveImageHeader

if t.TYPE_CHECKING:
    from ansible_collections.vmops.qemu.plugins.module_utils._image.image_file import ImageFile

MAX_TEXT_SIZE = 4 * 1024 * 1024
"""Bytes of domain XML, and of cookie, that are read at most: what libvirt's own protocol carries (4 MiB)."""
EDIT_ROOM = 64 * 1024
"""Zeros after XML and cookie, in bytes, so that a longer XML still fits later; as many as libvirt leaves."""
STREAM_ALIGNMENT = 64 * 1024
"""The QEMU stream of a new image starts at a multiple of this many bytes."""


@dataclasses.dataclass(frozen=True)
class ImageHead:
    """What a save image holds before the QEMU stream, and what the file system says of it.

    ``size`` and ``allocated`` are bytes (``allocated`` without holes), ``mtime`` is seconds since the epoch, ``mode``
    the permission bits. ``cookie`` is empty when the image has none. ``file_id`` is the file's device and inode, by
    which it is known again: another user may turn a path in a directory of his to any file of root's.
    """

    path: str
    header: SaveImageHeader
    xml: str
    cookie: str
    size: int
    allocated: int
    mtime: float
    uid: int
    gid: int
    mode: int
    file_id: tuple[int, int]

    def domain(self) -> domain_xml.ParsedDomain:
        """What the domain XML says.

        Our record is left out of an image of libvirt's own, which has a cookie: there it is a copy from the image of
        ours that libvirt had restored the VM from, and says nothing about this one.

        :raises ImageFormatError: the XML makes no sense.
        """
        return self._own(domain_xml.parse(self.xml, self.path))

    def domain_and_shown_xml(self) -> tuple[domain_xml.ParsedDomain, str]:
        """As :meth:`domain`, and the domain XML with its secrets hidden.

        :raises ImageFormatError: the XML makes no sense; nothing of it may be shown.
        """
        domain, shown = domain_xml.parse_and_redact(self.xml, self.path)
        return self._own(domain), shown

    def _own(self, domain: domain_xml.ParsedDomain) -> domain_xml.ParsedDomain:
        return dataclasses.replace(domain, launch=None, save_facts=None, voucher="") if self.cookie else domain


def read_head(image: ImageFile) -> ImageHead:
    """Read header, domain XML and cookie of an open image, complete or partial.

    :raises ImageAccessError: it cannot be read.
    :raises ImageFormatError: it is no save image, or its lengths contradict each other or the file's size.
    :raises ImageUnsupportedError: a version, feature or format that is not known.
    """
    facts = image.facts()
    header = SaveImageHeader.parse(image.read(HEADER_SIZE, 0), image.path)
    if header.stream_offset > facts.st_size:
        raise ImageFormatError(
            image.path,
            f"the file ends at byte {facts.st_size}, before its QEMU stream would start (byte {header.stream_offset})",
        )
    xml_length = header.cookie_offset or header.data_length
    cookie_length = header.data_length - xml_length
    return ImageHead(
        path=image.path,
        header=header,
        xml=_read_text(image, HEADER_SIZE, xml_length, "domain XML"),
        cookie=_read_text(image, HEADER_SIZE + xml_length, cookie_length, "cookie"),
        size=facts.st_size,
        allocated=facts.st_blocks * 512,
        mtime=facts.st_mtime,
        uid=facts.st_uid,
        gid=facts.st_gid,
        mode=stat.S_IMODE(facts.st_mode),
        file_id=(facts.st_dev, facts.st_ino),
    )


def _read_text(image: ImageFile, offset: int, length: int, what: str) -> str:
    """The NUL-terminated UTF-8 text in the ``length`` bytes at ``offset``; empty where ``length`` is 0."""
    if length == 0:
        return ""
    text, terminator, _rest = image.read(min(length, MAX_TEXT_SIZE + 1), offset).partition(b"\0")
    if not terminator:
        limit = f" within {MAX_TEXT_SIZE} bytes" if length > MAX_TEXT_SIZE else ""
        raise ImageFormatError(image.path, f"the {what} does not end{limit}")
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ImageFormatError(image.path, f"the {what} is not UTF-8 (byte {error.start})") from error


def pack_head(path: str, header: SaveImageHeader, xml: str, cookie: str) -> tuple[SaveImageHeader, bytes]:
    """All that stands before the QEMU stream, whose place ``header`` has fixed: header, XML, cookie, zeros.

    :param path: the image's path, for errors.
    :returns: the header, with the cookie's offset set, and ``header.stream_offset`` bytes.
    :raises RequestError: XML and cookie cannot be stored, or do not fit into the room before the stream.
    """
    text, cookie_offset = text_area(path, xml, cookie)
    if len(text) > header.data_length:
        raise RequestError(
            f"The domain XML and cookie need {len(text)} bytes,"
            f" but {path} has only {header.data_length} before its QEMU stream",
            cure="Shorten the domain XML: the stream cannot be moved",
        )
    header = dataclasses.replace(header, cookie_offset=cookie_offset)
    return header, header.pack() + text.ljust(header.data_length, b"\0")


def text_area(path: str, xml: str, cookie: str) -> tuple[bytes, int]:
    """XML and cookie, each with its NUL, and the cookie's offset (0 without one)."""
    encoded = []
    for what, text in (("domain XML", xml), ("cookie", cookie)):
        try:
            piece = text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RequestError(
                f"{path}: the {what} cannot be written as UTF-8: {error.reason}", cure=f"Correct the {what}"
            ) from error
        if b"\0" in piece or len(piece) >= MAX_TEXT_SIZE:
            raise RequestError(
                f"{path}: the {what} has a NUL, or more than {MAX_TEXT_SIZE} bytes", cure=f"Correct the {what}"
            )
        encoded.append(piece + b"\0")
    return (encoded[0] + encoded[1], len(encoded[0])) if cookie else (encoded[0], 0)
