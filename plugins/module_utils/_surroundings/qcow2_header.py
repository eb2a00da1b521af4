# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the header of a qcow2 file says of other files: its backing file and its data file (docs/interop/qcow2.rst)."""

from __future__ import annotations

import dataclasses
import errno
import os
import stat
import struct

_MAGIC = b"QFI\xfb"
#: Bytes that are read of a file's beginning: its header and the extensions, which are some hundred bytes.
_BEGINNING = 65536
#: Bytes of a backing file's name, as QEMU takes them.
_MAX_NAME = 1023

_BACKING_FORMAT = 0xE2792ACA
_DATA_FILE = 0x44415441


@dataclasses.dataclass(frozen=True)
class Qcow2Header:
    """Names as they are written there; empty for none."""

    backing: str = ""
    backing_format: str = ""
    data_file: str = ""


def read_qcow2_header(path: str) -> Qcow2Header | None:
    """The header of a qcow2 file, or None where it is another file.

    :raises OSError: it cannot be read, or is neither a regular file nor a block device.
    :raises ValueError: it is damaged; the message is a clause.
    """
    # Looked at first, as opening some files does something; and again, as what is there may be another one then.
    _require_storage(path, os.stat(path))
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        _require_storage(path, os.fstat(descriptor))
        beginning = os.pread(descriptor, _BEGINNING, 0)
        if beginning[:4] != _MAGIC:
            return None
        if len(beginning) < 72:
            raise ValueError("its qcow2 header is cut off")
        version, offset, length = struct.unpack_from(">IQI", beginning, 4)
        if length > _MAX_NAME or offset > 2**62:
            raise ValueError("its qcow2 header has no valid name of a backing file")
        backing = os.pread(descriptor, length, offset) if offset else b""
    finally:
        os.close(descriptor)
    extensions = _extensions(beginning, struct.unpack_from(">I", beginning, 100)[0] if version > 2 else 72)
    return Qcow2Header(
        backing=os.fsdecode(backing),
        backing_format=os.fsdecode(extensions.get(_BACKING_FORMAT, b"")),
        data_file=os.fsdecode(extensions.get(_DATA_FILE, b"")),
    )


def _require_storage(path: str, facts: os.stat_result) -> None:
    if not stat.S_ISREG(facts.st_mode) and not stat.S_ISBLK(facts.st_mode):
        raise OSError(errno.EINVAL, "it is neither a file nor a block device", path)


def _extensions(beginning: bytes, position: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while position + 8 <= len(beginning):
        kind, length = struct.unpack_from(">II", beginning, position)
        if kind == 0:
            break
        found[kind] = beginning[position + 8 : position + 8 + length]
        position += 8 + (length + 7) // 8 * 8
    return found
