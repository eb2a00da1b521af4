# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from typing import Any

from ansible_collections.vmops.qemu.plugins.module_utils._host.table import table


def test_columns_stand_below_each_other():
    vms: list[dict[str, Any]] = [
        {"name": "db1", "state": "saved", "msg": "done", "image": {"allocated": 3 * 2**20}, "duration": 1.25},
        {"name": "a\nlong name", "state": "failed", "msg": "x" * 200},
    ]
    assert table(vms) == [
        "VM            STATE   IMAGE   TIME",
        "db1           saved   3 MiB  1.2 s  done",
        f"a\\nlong name  failed      -      -  {'x' * 159}…",
    ]


def test_no_vms_make_no_table():
    assert table([]) == []
