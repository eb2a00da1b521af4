# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from typing import Any

from ansible_collections.vmops.qemu.plugins.module_utils._host.space import shortages

MIB = 2**20


def test_images_that_fit_alone_but_not_together():
    runs: list[dict[str, Any]] = [
        {"file_system": "/", "space_needed": 60 * MIB, "space_free": 100 * MIB},
        {"file_system": "/", "space_needed": 60 * MIB, "space_free": 100 * MIB},
        {"file_system": "/srv", "space_needed": 90 * MIB, "space_free": 100 * MIB},
        {"changed": False},
    ]
    (told,) = shortages(runs)
    assert told.startswith("/ has 100 MiB free, but the images of 2 VMs may take 120 MiB (20 MiB are missing)")
    assert shortages(runs[1:]) == []


def test_least_free_space_counts():
    runs = [
        {"file_system": "/", "space_needed": 60 * MIB, "space_free": 100 * MIB},
        {"file_system": "/", "space_needed": 30 * MIB, "space_free": 200 * MIB},
    ]
    assert shortages(runs) == []
    assert len(shortages([*runs, {"file_system": "/", "space_needed": 20 * MIB, "space_free": 200 * MIB}])) == 1
