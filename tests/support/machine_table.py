# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the tests found out about VM configurations: a JSON file for each row of docs/machines.md."""

from __future__ import annotations

import json
import os
import re
from typing import Any

from .guest import REPOSITORY, Guest

#: One file per row; scripts/machines_table.py renders them.
RESULTS = REPOSITORY / "build" / "machines"


def lasting(text: str, name: str) -> str:
    """What was said, without what is of one run only: the VM's name, the directories of paths, process ids."""
    text = " ".join(text.replace(name, "web1").split())
    text = re.sub(r"(?<![\w/])/(?:[^/\s:,()]+/)+(?=[^/\s])", "", text)
    return re.sub(r" \(pid \d+\)|(?<=vmops)-\d+-\w+", "", text)


def record(case: Any, result: str, why: str, guest: Guest) -> None:
    """Record a configuration, in place of what an earlier run found: call it after the assertions.

    result: "restored" or "refused"; why: what was said, of which what is of this run only is left out.
    """
    row = {
        "group": case.group,
        "text": case.text,
        "result": result,
        "kinds": list(case.kinds),
        "why": lasting(why, guest.name),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    name = re.sub("[^a-z0-9.]+", "-", case.id.lower())
    path = RESULTS / f"{name}.json"
    new = path.with_suffix(f".{os.getpid()}.new")
    new.write_text(json.dumps(row, indent=2) + "\n", encoding="utf-8")
    os.replace(new, path)
