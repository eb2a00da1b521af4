# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from typing import Any

from ansible_collections.vmops.qemu.plugins.module_utils._host.table import problem_table, table


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


def test_problems_with_long_texts():
    problems = [
        {
            "subject": "web1",
            "kind": "disk",
            "what": "it\x1b[2J " + "was gone " * 12,
            "cure": "Put it back",
            "blocks": True,
        },
        {"subject": "/srv/" + "x" * 40, "kind": "old", "what": "is left", "cure": "Take it " * 11, "blocks": False},
    ]
    gap = " " * 38
    assert problem_table(problems) == [
        "WHERE                         BLOCKS  WHAT",
        f"web1                          yes     disk: it\\x1b[2J {'was gone ' * 7}was",
        f"{gap}{('gone ' + 'was gone ' * 4).strip()}",
        f"{gap}-> Put it back",
        f"/srv/{'x' * 23}  no      old: is left",
        f"{'x' * 17}                     -> {('Take it ' * 10).strip()}",
        f"{gap}   Take it",
    ]
    assert problem_table([]) == []
