# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The benchmark's statistics, table and chart."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import disk
from bench.chart import chart
from bench.figures import BEGIN, END, Figures, as_json, best, between_markers, from_json, table
from bench.fill import CHUNK_MIB, Fill

from support import CounterGuest

ROWS = [
    Figures("g <1>", "vmops default", {"save": [3.0, 1.0, 2.0], "restore": [4.0]}, peak_kib=40960),
    Figures("g <1>", "virsh raw", {"save": [8.0], "restore": [5.0]}),
    Figures("g <1>", "virsh sparse", {"save": [4.0]}),
    Figures("g <1>", "disk, 1 threads", {"save": [1.0], "restore": [2.0]}),
]


def test_medians_and_ratios_are_of_the_fastest_of_the_others():
    assert best(ROWS, "g <1>", "save", "virsh") == 4.0
    row = table(ROWS).splitlines()[4]
    expected = "vmops default | 2.00 (1.00 to 3.00) | 2.00 | 0.50 | 4.00 (4.00 to 4.00) | 2.00 | 0.80 |  |  | 40"
    assert row == f"| {expected} |"


def test_what_was_not_measured_is_empty_and_has_no_ratio():
    assert table(ROWS[2:3]).splitlines()[4] == "| virsh sparse | 4.00 (4.00 to 4.00) |  | 1.00 |  |  |  |  |  |  |"


def test_json_brings_the_same_rows_back():
    assert from_json(json.loads(json.dumps(as_json(ROWS)))) == ROWS


def test_the_chart_is_xml_with_a_bar_for_each_median():
    root = ElementTree.fromstring(chart(ROWS, "g <1>"))
    bars = [each for each in root.iter() if each.tag.endswith("rect") and each.get("height") == "12"]
    assert [float(each.get("width", 0)) for each in bars] == [115.0, 230.0, 460.0, 287.5, 230.0, 57.5, 115.0]


def test_only_what_is_between_the_markers_is_replaced():
    assert between_markers(f"a\n{BEGIN}old{END}\nb", "new") == f"a\n{BEGIN}\n\nnew\n\n{END}\nb"
    with pytest.raises(ValueError, match="no markers"):
        between_markers("a", "new")


def test_the_disk_is_written_whole_by_more_threads_than_it_divides_by(tmp_path):
    path = tmp_path / "file"
    assert disk.write(path, 5, 3) > 0
    assert path.stat().st_size == 5 << 20
    assert disk.read(path, 5, 3) > 0
    with pytest.raises(OSError, match="short transfer"):
        disk.read(path, 6, 3)


def test_memory_is_filled_from_outside_and_what_changes_it_is_seen(tmp_path):
    memory_mib = 3 * CHUNK_MIB
    with CounterGuest(tmp_path / "guest", "fill", memory_mib=memory_mib, block_mib=1) as guest:
        guest.start()
        pid = guest.pid or 0
        fill = Fill(memory_mib, CHUNK_MIB)
        with pytest.raises(RuntimeError, match="not what it was"):
            fill.require(pid)
        fill.write(pid)
        fill.require(pid)
        guest.wait_for_counter(guest.counters()[-1])
        Fill(memory_mib, 2 * CHUNK_MIB).write(pid)
        with pytest.raises(RuntimeError, match="not what it was"):
            fill.require(pid)
        with pytest.raises(RuntimeError, match="no mapping of 1000 MiB"):
            Fill(1000, 0).write(pid)
