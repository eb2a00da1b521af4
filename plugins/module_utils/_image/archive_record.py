# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How far archiving went that punches holes into the image, beside the image, until all of it is done or undone."""

from __future__ import annotations

import dataclasses
import json

from ansible_collections.vmops.qemu.plugins.module_utils._bounded_read import read_bounded
from ansible_collections.vmops.qemu.plugins.module_utils._durable import write_durably
from ansible_collections.vmops.qemu.plugins.module_utils._errors import ImageFormatError
from ansible_collections.vmops.qemu.plugins.module_utils._image.header import MAGIC_PARTIAL, ImageFormat
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_errors import image_errors
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_file import ImageFile
from ansible_collections.vmops.qemu.plugins.module_utils._image.names import SUFFIXES, archive_record_path


@dataclasses.dataclass(frozen=True)
class Unfinished:
    """How far archiving with ``tight`` went; ``chunks`` of ``chunk_size`` bytes of data are in the archive.

    The archive's first ``length`` bytes are on the storage; ``checksum`` is the CRC-32 of the data in them. ``inode``
    is the image's.
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


def unfinished_archive(image: ImageFile) -> Unfinished | None:
    """What an interrupted archiving with ``tight`` has left of this image; None where the image was not touched by one.

    :raises ImageAccessError: its record cannot be read.
    :raises ImageFormatError: its record makes no sense.
    """
    if image.magic() != MAGIC_PARTIAL:
        return None
    record = archive_record_path(image.path)
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
    return found if found.inode == image.facts().st_ino else None


def write_record(path: str, state: Unfinished) -> None:
    """Keep on the storage how far archiving of the image at this path went; raises ImageError."""
    record = archive_record_path(path)
    with image_errors(record, "record how far archiving went"):
        write_durably(record, json.dumps(dataclasses.asdict(state)).encode())
