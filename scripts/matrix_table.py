# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Print what tests/matrix recorded (build/matrix/*.json) as a table, and write it into docs/compatibility.md."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "build" / "matrix"
DOCUMENT = ROOT / "docs" / "compatibility.md"
BEGIN, END = "<!-- begin of the matrix -->\n", "<!-- end of the matrix -->\n"


def numbers(text: str) -> tuple[int, ...]:
    """For sorting: 3.9 before 3.10."""
    return tuple(map(int, re.findall(r"\d+", text)))


def render(cells: dict[tuple[str, str], str]) -> str:
    """A row for each ansible-core (or what else was run), a column for each Python of a host."""
    rows = sorted({row for row, _column in cells}, key=lambda row: (not row[0].isdigit(), numbers(row)))
    columns = sorted({column for _row, column in cells if column[0].isdigit()}, key=numbers)
    columns += sorted({column for _row, column in cells if not column[0].isdigit()})
    lines = [["ansible-core", *columns], ["---"] * (len(columns) + 1)]
    lines += [[row, *(cells.get((row, column), "") for column in columns)] for row in rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def main() -> int:
    """Print and write; 1 where nothing was recorded."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in RESULTS.glob("*.json")]
    if not found:
        print("nothing is recorded in build/matrix: run make test-matrix", file=sys.stderr)
        return 1
    table = render({(cell["row"], cell["column"]): cell["result"] for cell in found})
    print(table, end="")
    old = DOCUMENT.read_text(encoding="utf-8")
    new = old[: old.index(BEGIN) + len(BEGIN)] + "\n" + table + "\n" + old[old.index(END) :]
    if new != old:
        DOCUMENT.write_text(new, encoding="utf-8")
        print(f"{DOCUMENT.relative_to(ROOT)} is written: commit it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
