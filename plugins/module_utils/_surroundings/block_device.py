# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the kernel says of a block device without its being opened, which may do something to some devices."""

from __future__ import annotations

import os


def block_device_size(number: int) -> int:
    """Bytes of the block device with this number (``st_rdev``), 0 where unknown."""
    try:
        with open(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/size", encoding="ascii") as handle:
            return int(handle.read()) * 512
    except (OSError, ValueError):
        return 0
