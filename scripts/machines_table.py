# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Write what `make test-machines` recorded (build/machines/*.json) into the tables of docs/machines.md.

What was recorded replaces the row of the same configuration; a row of a configuration that this host could not try
stays, one that is not tried any more goes. With --check nothing is written: the end is 1 where the tables do not say
what was recorded, or where nothing was.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from machine_configurations.cases import CASES  # noqa: E402

RESULTS = ROOT / "build" / "machines"
DOCUMENT = ROOT / "docs" / "machines.md"
BEGIN, END = "<!-- begin of the tables -->\n", "<!-- end of the tables -->\n"
HEADINGS = ("Configuration", "Result", "Problems", "What is said")

Key = tuple[str, str]  # group, configuration
Row = tuple[str, str, str]  # result, kinds, what was said


def steady(why: str) -> str:
    """What was said, without what is another in each run: numbers of QEMU's nodes, free ports, names of taps."""
    why = re.sub(r"the network interface \S+|its network interface \S+", "its network interface tapN", why)
    why = re.sub(r"the host's port \d+/", "the host's port N/", re.sub(r"#block\d+", "#blockN", why))
    return re.sub(r"(127\.0\.0\.1|localhost):\d+", r"\1:N", why)


def recorded() -> dict[Key, Row]:
    """The rows that the tests found."""
    rows = {}
    for path in RESULTS.glob("*.json"):
        row = json.loads(path.read_text(encoding="utf-8"))
        rows[row["group"], row["text"]] = (
            row["result"],
            ", ".join(f"`{kind}`" for kind in row["kinds"]),
            steady(row["why"]),
        )
    return rows


def tabled(document: str) -> dict[Key, Row]:
    """The rows that the tables have."""
    rows = {}
    group = ""
    for line in document[document.index(BEGIN) : document.index(END)].splitlines():
        if line.startswith("## "):
            group = line[3:]
        elif line.startswith("| ") and not line.startswith(("| ---", f"| {HEADINGS[0]} |")):
            text, result, kinds, why = (cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1])
            rows[group, text.replace(r"\|", "|")] = result, kinds, why.replace(r"\|", "|")
    return rows


def render(rows: dict[Key, Row]) -> str:
    """The tables, in the order of the cases."""
    text = ""
    group = ""
    for case in CASES:
        row = rows.get((case.group, case.text))
        if row is None:
            continue
        if case.group != group:
            group = case.group
            text += f"\n## {group}\n\n| {' | '.join(HEADINGS)} |\n|{' --- |' * len(HEADINGS)}\n"
        cells = (case.text, *row)
        text += (
            "|"
            + "".join(f" {cell} |" if cell else " |" for cell in (each.replace("|", r"\|") for each in cells))
            + "\n"
        )
    return text + "\n"


def main() -> int:
    """Write, or check, and say what was done."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the tables are not up to date")
    check = parser.parse_args().check
    shown = DOCUMENT.relative_to(ROOT)
    found = recorded()
    if not found:
        print(f"nothing is recorded in {RESULTS.relative_to(ROOT)}: run make test-machines", file=sys.stderr)
        return 1
    old = DOCUMENT.read_text(encoding="utf-8")
    new = old[: old.index(BEGIN) + len(BEGIN)] + render({**tabled(old), **found}) + old[old.index(END) :]
    if new == old:
        print(f"{shown} says what the tests found of {len(found)} configurations")
        return 0
    if check:
        print(f"{shown} does not say what the tests found: run python scripts/machines_table.py", file=sys.stderr)
        return 1
    DOCUMENT.write_text(new, encoding="utf-8")
    print(f"{shown} is written, with {len(found)} configurations of this host: commit it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
