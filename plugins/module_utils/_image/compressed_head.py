# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the head of a compressed QEMU stream tells, without expanding the rest."""

from __future__ import annotations

import os
import subprocess

from ansible_collections.vmops.qemu.plugins.module_utils._anonymous_file import anonymous_file
from ansible_collections.vmops.qemu.plugins.module_utils._errors import ImageFormatError
from ansible_collections.vmops.qemu.plugins.module_utils._image.compressor import (
    COMPRESSORS,
    how_it_ended,
    started_tool,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.header import SaveImageHeader
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_file import ImageFile
from ansible_collections.vmops.qemu.plugins.module_utils._image.stream import StreamFacts, read_plain_head

#: Bytes of the expanded stream that hold its machine type and RAM blocks.
_HEAD_SIZE = 256 * 1024

#: Bytes that are read once more where a tool has failed: more than any of them reads at once.
_READ_SIZE = 1024 * 1024


def read_compressed_head(path: str, header: SaveImageHeader) -> StreamFacts | None:
    """What the head of a compressed stream tells (machine type, RAM blocks), by expanding that much of it.

    :returns: None for an image that is not compressed.
    :raises RequestError: the tool is missing.
    :raises ImageAccessError: the image cannot be read.
    :raises ImageFormatError: the tool cannot expand it, or what it expands to is no QEMU stream.
    """
    compressor = COMPRESSORS.get(header.format)
    if compressor is None:
        return None
    command = compressor.expand_command()
    with ImageFile.open(path) as image:
        os.lseek(image.descriptor, header.stream_offset, os.SEEK_SET)
        data, code = _expand_head(command, image)
        if len(data) < _HEAD_SIZE and code != 0:
            # The tool says only that it failed. It has read by this descriptor, so where it ended is known: what cannot
            # be read there is the storage's fault, and no damaged image.
            image.read(_READ_SIZE, os.lseek(image.descriptor, 0, os.SEEK_CUR))
            raise ImageFormatError(
                path, f"{compressor.program} cannot expand the stream: {how_it_ended(code)} after {len(data)} bytes"
            )
    with ImageFile(path, anonymous_file("vmops-stream-head")) as head:
        head.write(data, 0)
        return read_plain_head(head)


def _expand_head(command: list[str], image: ImageFile) -> tuple[bytes, int]:
    """The first bytes of what a tool makes of an image from its position on, and the tool's exit code.

    :raises RequestError: it cannot be started.
    """
    with started_tool(command, image.descriptor, subprocess.PIPE, subprocess.DEVNULL) as process:
        data = process.stdout.read(_HEAD_SIZE) if process.stdout else b""
        if len(data) < _HEAD_SIZE:  # it comes to an end of its own
            process.wait()
    return data, process.returncode
