# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Images whose record says something else, and is vouched for all the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from support.module_run import Result

_CHECKSUM = b' checksum="crc32:00000000"'


def change_record(image: Path, run_module: Callable[..., Result], change: Callable[[bytes], bytes]) -> None:
    """Have it changed, to the same length, without the record's checksum, and vouch for it."""
    data = change(image.read_bytes())
    start = data.index(_CHECKSUM[:11])
    image.write_bytes(data[:start] + b" " * len(_CHECKSUM) + data[start + len(_CHECKSUM) :])
    assert run_module("qemu_save_image", path=str(image), vouch=True)["changed"]


def blank_element(data: bytes, name: bytes) -> bytes:
    """An image with blanks in the place of an element."""
    start, end = data.index(b"<%b>" % name), data.index(b"</%b>" % name) + len(b"</%b>" % name)
    return data[:start] + b" " * (end - start) + data[end:]
