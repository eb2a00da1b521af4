# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The 92 bytes at the start of a save image, and the only place that knows them.

Format: libvirt's ``src/qemu/qemu_saveimage.h`` (``struct _virQEMUSaveHeader``), versions 2 and 3; version 3 with its
``features`` word is from Jim Fehlig's series "qemu: Support mapped-ram migration capability". All words are u32 in the
byte order of the host that saved:

    0 magic[16] | 16 version | 20 data_len | 24 was_running | 28 compressed | 32 cookieOffset | 36 features
    40 unused[12] | 88 checkpoint

``checkpoint`` is ours: the last of the words that libvirt has as ``unused``, which it neither looks at nor changes.
"""

from __future__ import annotations

import dataclasses
import enum
import struct
import sys

from ansible_collections.vmops.qemu.plugins.module_utils._errors import ImageFormatError, ImageUnsupportedError

MAGIC_SIZE = 16
MAGIC_COMPLETE = b"LibvirtQemudSave"
MAGIC_PARTIAL = b"LibvirtQemudPart"
HEADER_SIZE = 92
VERSIONS = (2, 3)
FEATURE_MAPPED_RAM = 1 << 0
NO_CHECKPOINT = 0
"""``checkpoint``: as far as the image knows, its guest has not run since."""
CHECKPOINT = 1
"""``checkpoint``: the guest went on after the image was complete, so its disks may have moved on."""

_CURE_UNSUPPORTED = "Restore it with the software that saved it, or update this collection"
_LAYOUT = "16s6I48xI"
_STRUCT_PREFIX = {"little": "<", "big": ">"}


class ImageFormat(enum.IntEnum):
    """How the QEMU stream lies in the image, with libvirt's numbers (``virQEMUSaveFormat``)."""

    RAW = 0
    GZIP = 1
    BZIP2 = 2
    XZ = 3
    LZOP = 4
    ZSTD = 5
    SPARSE = 6

    @property
    def label(self) -> str:
        """The name that libvirt's ``save_image_format`` and this collection's ``format`` option use."""
        return self.name.lower()

    @classmethod
    def from_label(cls, label: str) -> ImageFormat:
        """The format with this label; raises KeyError when there is none (module options have ``choices``)."""
        return cls[label.upper()]


@dataclasses.dataclass(frozen=True)
class SaveImageHeader:
    """A save image's header.

    ``format`` is the logical format: ``SPARSE`` also where version 3 says so by its feature bit, with ``compressed`` 0.
    ``data_length`` and ``cookie_offset`` are bytes, both counted from the end of the header; a ``cookie_offset`` of 0
    means that there is no cookie. ``byte_order`` is that of the header's words, ``little`` or ``big``. ``checkpoint``
    says that the guest went on after this image was complete: its memory is a past one, and its disks may have moved
    on.
    """

    version: int
    format: ImageFormat
    was_running: bool
    complete: bool = False
    data_length: int = 0
    cookie_offset: int = 0
    byte_order: str = sys.byteorder
    checkpoint: bool = False

    @property
    def mapped_ram(self) -> bool:
        """Whether the QEMU stream was written with the ``mapped-ram`` capability, and must be read with it."""
        return self.format is ImageFormat.SPARSE

    @property
    def features(self) -> int:
        """The ``features`` word: 0 in version 2, which has none."""
        return FEATURE_MAPPED_RAM if self.version >= 3 and self.mapped_ram else 0

    @property
    def stream_offset(self) -> int:
        """Where the QEMU stream starts, in bytes from the start of the file."""
        return HEADER_SIZE + self.data_length

    def pack(self) -> bytes:
        """The header's 92 bytes. Version 3 marks sparse as the RFC does: the feature bit, and ``compressed`` 0."""
        return struct.pack(
            _STRUCT_PREFIX[self.byte_order] + _LAYOUT,
            MAGIC_COMPLETE if self.complete else MAGIC_PARTIAL,
            self.version,
            self.data_length,
            int(self.was_running),
            ImageFormat.RAW if self.features & FEATURE_MAPPED_RAM else self.format,
            self.cookie_offset,
            self.features,
            CHECKPOINT if self.checkpoint else NO_CHECKPOINT,
        )

    @classmethod
    def parse(cls, data: bytes, path: str) -> SaveImageHeader:
        """Read a header; a partial image's too (``complete`` is then false, and it is for the caller to refuse it).

        :param data: the file's first bytes, at least 92 where the file has them.
        :param path: the file's path, for errors.
        :raises ImageFormatError: the magic is wrong, the file too short, or the lengths are impossible.
        :raises ImageUnsupportedError: a version, feature, format or kind of checkpoint that is not known here.
        """
        magic = data[:MAGIC_SIZE]
        if magic not in (MAGIC_COMPLETE, MAGIC_PARTIAL):
            raise ImageFormatError(path, "the image magic is incorrect: this is not a save image")
        if len(data) < HEADER_SIZE:
            raise ImageFormatError(path, f"only {len(data)} bytes long, shorter than a header of {HEADER_SIZE} bytes")
        byte_order, version = _recognise_byte_order(data, path)
        words = struct.unpack(_STRUCT_PREFIX[byte_order] + _LAYOUT, data[:HEADER_SIZE])
        data_length, was_running, compressed, cookie_offset, features, checkpoint = words[2:]
        if was_running > 1:
            raise ImageFormatError(path, f"the header's was_running is {was_running}, neither 0 nor 1")
        if data_length == 0:
            raise ImageFormatError(path, "invalid header data length: 0, so there is no domain XML")
        if cookie_offset >= data_length:
            raise ImageFormatError(
                path, f"the cookie offset {cookie_offset} lies outside the {data_length} bytes before the stream"
            )
        if checkpoint not in (NO_CHECKPOINT, CHECKPOINT):
            raise ImageUnsupportedError(
                path,
                f"the header's last word is {checkpoint:#x}, so it is not known whether the guest went on after the"
                " save",
                cure=_CURE_UNSUPPORTED,
            )
        return cls(
            version=version,
            format=_logical_format(path, version, compressed, features),
            was_running=bool(was_running),
            complete=magic == MAGIC_COMPLETE,
            data_length=data_length,
            cookie_offset=cookie_offset,
            byte_order=byte_order,
            checkpoint=checkpoint == CHECKPOINT,
        )


def _recognise_byte_order(data: bytes, path: str) -> tuple[str, int]:
    """The byte order in which the version makes sense, and the version; as libvirt recognises it."""
    versions = {}
    for byte_order, prefix in _STRUCT_PREFIX.items():
        (version,) = struct.unpack_from(prefix + "I", data, MAGIC_SIZE)
        if version in VERSIONS:
            return byte_order, version
        versions[byte_order] = version
    raise ImageUnsupportedError(
        path,
        f"save image version {min(versions.values())} is not supported, only {' and '.join(map(str, VERSIONS))}",
        cure=_CURE_UNSUPPORTED,
    )


def _logical_format(path: str, version: int, compressed: int, features: int) -> ImageFormat:
    """The logical format from the ``compressed`` word and, in version 3, the ``features`` word."""
    try:
        image_format = ImageFormat(compressed)
    except ValueError:
        raise ImageUnsupportedError(
            path, f"unsupported save image format: {compressed}", cure=_CURE_UNSUPPORTED
        ) from None
    if version < 3 or not features:
        return image_format
    if features != FEATURE_MAPPED_RAM:
        raise ImageUnsupportedError(
            path,
            f"the image has unsupported features: {features & ~FEATURE_MAPPED_RAM:#x}",
            cure=_CURE_UNSUPPORTED,
        )
    if image_format not in (ImageFormat.RAW, ImageFormat.SPARSE):
        raise ImageUnsupportedError(
            path, f"mapped-ram together with compression ({image_format.label})", cure=_CURE_UNSUPPORTED
        )
    return ImageFormat.SPARSE
