# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Our record in an image's domain XML, for tests that change it."""

from __future__ import annotations

import re

_CHECKSUM = re.compile(rb'checksum="(crc32:[0-9a-f]{8})"')


def without_record_checksum(data: bytes) -> bytes:
    """An image, or its head, whose record may be changed: without the record's checksum, and as long as before."""
    changed, count = _CHECKSUM.subn(lambda match: b'checksum=""' + b" " * len(match[1]), data, 1)
    assert count == 1
    return changed
