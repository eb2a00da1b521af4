# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the tests found out about who reads whose images: a JSON file for each cell of docs/compatibility.md."""

from __future__ import annotations

import json
import os
import re

from .guest import REPOSITORY

#: One file per cell; scripts/compatibility_table.py renders them.
RESULTS = REPOSITORY / "build" / "compatibility"


def record(*, writer: str, reader: str, format: str, version: int, result: str) -> None:  # noqa: A002
    """Record a cell, in place of what an earlier run found: call it after the assertions that show the result.

    writer and reader: who saves and who restores, with versions ("vmops.qemu with QEMU 10.0.2", "libvirt 11.3.0");
    format: the save format; version: of the image's header; result: "restored", or "refused: " and the reader's words.
    Of those the first sentence is kept, without what is of this run only: the directories of paths.
    """
    result = re.sub(r"(?<!\S)/\S*/(?=[^/\s]+)", "", re.split(r"\.\s", result)[0])
    if result != "restored" and not re.match("refused: .", result):
        raise ValueError(f"neither restored nor refused: {result!r}")
    cell = {
        "writer": writer,
        "reader": reader,
        "format": format,
        "version": version,
        "result": result,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    name = re.sub("[^a-z0-9.]+", "-", f"{writer} {reader} {format} {version}".lower())
    path = RESULTS / f"{name}.json"
    new = path.with_suffix(f".{os.getpid()}.new")
    new.write_text(json.dumps(cell, indent=2) + "\n", encoding="utf-8")
    os.replace(new, path)
