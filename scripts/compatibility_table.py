# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Write what the tests recorded (build/compatibility/*.json) into the table in docs/compatibility.md.

What was recorded replaces what the table says of the same writer, reader, version and format; the rest of the table
stays, as it may come from another host with other versions. With --check nothing is written: the end is 1 where the
table does not say what was recorded, or where nothing was.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "build" / "compatibility"
DOCUMENT = ROOT / "docs" / "compatibility.md"
BEGIN, END = "<!-- begin of the table -->\n", "<!-- end of the table -->\n"
HEADINGS = ("Saved by", "Restored by", "Version", "Formats", "Result")
FORMATS = ("raw", "gzip", "bzip2", "xz", "lzop", "zstd", "sparse")

Key = tuple[str, str, int, str]  # writer, reader, version, format


def recorded() -> dict[Key, str]:
    """The cells that the tests found."""
    cells = {}
    for path in RESULTS.glob("*.json"):
        cell = json.loads(path.read_text(encoding="utf-8"))
        cells[cell["writer"], cell["reader"], cell["version"], cell["format"]] = " ".join(cell["result"].split())
    return cells


def tabled(document: str) -> dict[Key, str]:
    """The cells that the table has."""
    cells = {}
    table = document[document.index(BEGIN) + len(BEGIN) : document.index(END)]
    for line in table.strip().splitlines()[2:]:
        columns = [column.strip().replace(r"\|", "|") for column in re.split(r"(?<!\\)\|", line)[1:-1]]
        writer, reader, version, formats, result = columns
        for image_format in formats.split(", "):
            cells[writer, reader, int(version), image_format] = result
    return cells


def natural(text: str) -> list[tuple[int, str]]:
    """For sorting: numbers by their value."""
    return [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in re.split(r"(\d+)", text)]


def render(cells: dict[Key, str]) -> str:
    """The table: a row for all formats that have the same result."""
    rows: dict[tuple[str, str, int, str], list[str]] = {}
    for (writer, reader, version, image_format), result in cells.items():
        rows.setdefault((writer, reader, version, result), []).append(image_format)

    def place(row: tuple[str, str, int, str]) -> tuple[list[tuple[int, str]], list[tuple[int, str]], int, int]:
        return natural(row[0]), natural(row[1]), row[2], min(map(FORMATS.index, rows[row]))

    lines = [HEADINGS, tuple("---" for _heading in HEADINGS)]
    for row in sorted(rows, key=place):
        writer, reader, version, result = row
        lines.append((writer, reader, str(version), ", ".join(sorted(rows[row], key=FORMATS.index)), result))
    return "".join("| " + " | ".join(text.replace("|", r"\|") for text in line) + " |\n" for line in lines)


def main() -> int:
    """Write, or check, and say what was done."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the table is not up to date")
    check = parser.parse_args().check
    shown = DOCUMENT.relative_to(ROOT)
    found = recorded()
    if not found:
        print(f"nothing is recorded in {RESULTS.relative_to(ROOT)}: run make test-interop", file=sys.stderr)
        return 1
    old = DOCUMENT.read_text(encoding="utf-8")
    table = render({**tabled(old), **found})
    new = old[: old.index(BEGIN) + len(BEGIN)] + "\n" + table + "\n" + old[old.index(END) :]
    if new == old:
        print(f"{shown} says what the tests found in {len(found)} cells")
        return 0
    if check:
        print(f"{shown} does not say what the tests found: run python scripts/compatibility_table.py", file=sys.stderr)
        return 1
    DOCUMENT.write_text(new, encoding="utf-8")
    print(f"{shown} is written, with {len(found)} cells of this host: commit it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
