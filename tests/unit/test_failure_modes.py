# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Every row of docs/failure-modes.md names a test that there is."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = ["fault", "what the operator sees", "the guest", "the image", "what to do", "test"]
TEST = re.compile(r"`([\w/.]+\.(?:py|yml))(?:::(\w+))?`")


def rows() -> list[list[str]]:
    text = (ROOT / "docs" / "failure-modes.md").read_text(encoding="utf-8")
    cells = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    return [row for row in cells if row != COLUMNS and not set("".join(row)) <= set("-: ")]


def test_there_are_rows_and_all_have_all_columns():
    assert len(rows()) > 40
    assert [row for row in rows() if len(row) != len(COLUMNS) or not all(row)] == []


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0][:60])
def test_its_test_exists(row):
    named = TEST.findall(row[-1])
    assert named, f"no test is named: {row[-1]}"
    for file, function in named:
        path = next((path for path in (ROOT / "tests" / file, ROOT / "extensions" / file) if path.is_file()), None)
        assert path is not None, f"there is no {file}"
        if function:
            functions = {
                node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)
            }
            assert function in functions, f"{file} has no {function}"
