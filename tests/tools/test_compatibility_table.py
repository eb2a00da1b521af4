# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The table in docs/compatibility.md: written by what the tests record, and by nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support import compatibility

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "compatibility_table.py"
DOCUMENT = "before\n<!-- begin of the table -->\n{}<!-- end of the table -->\nafter\n"
HEAD = "| Saved by | Restored by | Version | Formats | Result |\n| --- | --- | --- | --- | --- |\n"


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A tree with the script, a document with an empty table, and where the recorder writes to."""
    for directory in ("scripts", "docs"):
        (tmp_path / directory).mkdir()
    (tmp_path / "scripts" / SCRIPT.name).write_bytes(SCRIPT.read_bytes())
    (tmp_path / "docs" / "compatibility.md").write_text(DOCUMENT.format("\n" + HEAD + "\n"))
    monkeypatch.setattr(compatibility, "RESULTS", tmp_path / "build" / "compatibility")
    return tmp_path


def run(tree, *arguments):
    script = tree / "scripts" / SCRIPT.name
    return subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, check=False)


def record(writer, reader, image_format, version, result="restored"):
    compatibility.record(writer=writer, reader=reader, format=image_format, version=version, result=result)


def table(tree):
    return (tree / "docs" / "compatibility.md").read_text()


def test_nothing_recorded(tree):
    assert run(tree).returncode == 1
    assert run(tree, "--check").returncode == 1


def test_rows(tree):
    for image_format in ("sparse", "raw"):
        record("us 10.0", "libvirt 9", image_format, 2)
    record("us 9.1", "libvirt 9", "raw", 2)
    record("us 10.0", "libvirt 9", "raw", 3, "refused: a|b\n  is not supported")
    assert run(tree, "--check").returncode == 1
    assert run(tree).returncode == 0
    assert table(tree) == DOCUMENT.format(
        "\n"
        + HEAD
        + "| us 9.1 | libvirt 9 | 2 | raw | restored |\n"
        + "| us 10.0 | libvirt 9 | 2 | raw, sparse | restored |\n"
        + "| us 10.0 | libvirt 9 | 3 | raw | refused: a\\|b is not supported |\n\n"
    )
    assert run(tree, "--check").returncode == 0
    written = table(tree)
    assert run(tree).returncode == 0
    assert table(tree) == written


def test_rows_of_other_hosts_stay_and_new_results_replace_old_ones(tree):
    record("us", "libvirt 9", "raw", 2)
    record("us", "libvirt 9", "sparse", 2)
    run(tree)
    for path in compatibility.RESULTS.iterdir():
        path.unlink()
    record("us", "libvirt 9", "sparse", 2, "refused: unknown format")
    record("us", "libvirt 11", "sparse", 2)
    run(tree)
    assert table(tree).splitlines()[5:8] == [
        "| us | libvirt 9 | 2 | raw | restored |",
        "| us | libvirt 9 | 2 | sparse | refused: unknown format |",
        "| us | libvirt 11 | 2 | sparse | restored |",
    ]


def test_a_result_is_restored_or_refused(tree):
    for result in ("failed", "refused: ", ""):
        with pytest.raises(ValueError, match="neither restored nor refused"):
            record("us", "libvirt 9", "raw", 2, result)


def test_words_keep_nothing_of_the_run(tree):
    record("us", "us", "raw", 2, "refused: QEMU 7.2.22 cannot read /tmp/run-7/save/web1.save: no. /tmp/run-7 is kept.")
    (path,) = compatibility.RESULTS.iterdir()
    assert json.loads(path.read_text())["result"] == "refused: QEMU 7.2.22 cannot read web1.save: no"
