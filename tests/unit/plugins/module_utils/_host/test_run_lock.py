# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The lock that keeps runs over several VMs apart; what it is for is in the functional tests."""

from __future__ import annotations

import asyncio
import os

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._errors import BusyError, InterruptedOperationError
from ansible_collections.vmops.qemu.plugins.module_utils._host import run_lock
from ansible_collections.vmops.qemu.plugins.module_utils._host.progress import HostProgress, read_host_runs
from ansible_collections.vmops.qemu.plugins.module_utils._host.run_lock import Patience, host_run_lock


class Lines:
    def __init__(self):
        self.told = []

    def say(self, text):
        self.told.append(text)

    def complain(self, text):
        raise AssertionError(text)


@pytest.fixture
def clock(monkeypatch):
    """What its clock shows, in the first element."""
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def test_time_begins_anew_when_one_comes_further(clock):
    lines = Lines()
    patience = Patience(10, lines)
    assert patience.lasts({"a": 1, "b": 1})
    clock[0] += 9
    assert patience.lasts({"a": 2, "b": 1})
    clock[0] += 9
    assert patience.lasts({"a": 2, "b": 1})
    clock[0] += 2
    assert not patience.lasts({"a": 2, "b": 1})
    assert lines.told == ["waiting, as a", "waiting, as b"]


def test_no_limit(clock):
    patience = Patience(0, Lines())
    for _look in range(3):
        clock[0] += 1e9
        assert patience.lasts({"a": 1})


def test_one_directory_by_other_names(tmp_path, monkeypatch):
    """Also one that is not there yet; others do not wait."""
    monkeypatch.setattr(run_lock, "INTERVAL", 0.01)
    (tmp_path / "link").symlink_to(tmp_path)

    async def hold(one, other, stopped_by=lambda: ""):
        first = host_run_lock(f"{tmp_path}/{one}", 0.05, Lines())
        async with first, host_run_lock(f"{tmp_path}/{other}", 0.05, Lines(), stopped_by):
            return True

    for other in ("save", "save/", "link/save"):
        with pytest.raises(BusyError, match="another run works on VMs in"):
            asyncio.run(hold("save", other))
    with pytest.raises(InterruptedOperationError, match="was interrupted by SIGTERM"):
        asyncio.run(hold("save", "save", lambda: "SIGTERM"))
    assert asyncio.run(hold("save", "other"))


def test_a_plan_is_waited_for_by_nobody(tmp_path):
    def published():
        return [run.save_dir for run in read_host_runs() if run.pid == os.getpid()]

    with HostProgress("save", str(tmp_path)):
        assert published() == [str(tmp_path)]
    with HostProgress("save", str(tmp_path), plans_only=True) as journal:
        journal.say("a line")
        assert published() == []
