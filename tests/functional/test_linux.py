# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A Linux guest with a disk and a network card: its process, its open file and its file system go on."""

from __future__ import annotations

import pytest

from support import gaps
from support.observe import VM


@pytest.mark.parametrize(
    "options",
    [{}, {"live": True}, {"format": "raw", "image_version": 2}],
    ids=["sparse", "sparse-live", "raw"],
)
def test_linux_goes_on(linux, image, save, restore, options):
    linux.wait_for_counter(5)
    checksum = linux.checksum()
    for _time in range(2):
        save(name=f"linux-{VM}", path=str(image), **options)
        restore(name=f"linux-{VM}", path=str(image))
        linux.wait_restarted()
        linux.wait_for_counter(linux.counters()[-1] + 5)
    assert linux.boots() == 1
    assert gaps(linux.counters()) == []
    assert linux.checksum() == checksum
    assert linux.network()
    linux.power_off()
    linux.check_disk()
