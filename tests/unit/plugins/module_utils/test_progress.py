# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What operations publish of themselves: gone at their end, and not believed when they were killed."""

from __future__ import annotations

import asyncio
import json
import os

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils import _progress, _run_directory
from ansible_collections.vmops.qemu.plugins.module_utils._progress import Publisher, read_progress


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch):
    path = tmp_path / "vmops.qemu"
    monkeypatch.setattr(_run_directory, "base_directory", lambda: str(path))
    monkeypatch.setattr(_progress, "INTERVAL", 0.01)
    return path


def test_it_is_there_while_the_operation_is(directory):
    assert read_progress() == []
    with Publisher("web1", "save", "/save/web1.save") as publisher:
        publisher.phase("flush")
        (progress,) = read_progress()
        assert (progress.vm, progress.operation, progress.phase, progress.pid) == ("web1", "save", "flush", os.getpid())
        assert "birth" not in progress.as_result()
        (path,) = directory.iterdir()
        assert path.stat().st_mode & 0o777 == 0o600
        assert directory.stat().st_mode & 0o777 == 0o700
    assert list(directory.iterdir()) == []


def test_percent_rate_and_time_left():
    async def follow():
        steps = iter(range(1, 1000))

        async def measure():
            return 10 * next(steps), 10000

        with Publisher("web1", "save", "/save/web1.save") as publisher:
            async with publisher.following(measure):
                await asyncio.sleep(0.3)
            return read_progress()

    (progress,) = asyncio.run(follow())
    result = progress.as_result()
    assert result["bytes_total"] == 10000
    assert result["percent"] == result["bytes_done"] // 100
    assert result["rate"] > 0
    assert result["seconds_left"] == (10000 - result["bytes_done"]) // result["rate"]


@pytest.mark.parametrize("change", [{"pid": 2**22 + 1}, {"pid": 1}, {"birth": 1}, {"birth": 0}])
def test_what_a_killed_one_left_is_not_believed_and_goes(directory, change):
    with Publisher("web1", "save", "/save/web1.save"):
        (path,) = directory.iterdir()
        left = json.loads(path.read_text())
    path.write_text(json.dumps({**left, **change}))
    assert read_progress() == []
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"vm": 1}'])
def test_what_cannot_be_read_is_left_out(directory, text):
    directory.mkdir(mode=0o700)
    (directory / "web1.progress").write_text(text)
    assert read_progress() == []


def test_a_name_is_no_path(directory):
    with Publisher("../../etc/x", "save", "/save/x.save"):
        assert [path.parent for path in directory.iterdir()] == [directory]
        assert read_progress()[0].vm == "../../etc/x"
