# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import asyncio
import os
import time

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils import _state_directory
from ansible_collections.vmops.qemu.plugins.module_utils._errors import RequestError
from ansible_collections.vmops.qemu.plugins.module_utils._last_run import note_run, read_runs
from ansible_collections.vmops.qemu.plugins.module_utils._save.request import SaveRequest
from ansible_collections.vmops.qemu.plugins.module_utils._save.run import SaveRun


@pytest.fixture
def place(own_key):
    """Where it is kept."""
    return own_key.parent


def test_last_of_each_is_known(place):
    assert read_runs() == {}
    before = time.time() - 1
    note_run("save", True)
    note_run("restore", False)
    runs = read_runs()
    assert set(runs) == {("save", "success"), ("restore", "failure")}
    assert all(before <= moment <= time.time() + 1 for moment in runs.values())
    os.utime(place / "last-save.success", (0, 0))
    note_run("save", True)
    assert read_runs()["save", "success"] >= before
    assert (place / "last-save.success").stat().st_mode & 0o777 == 0o600


def test_place_that_cannot_be_written_to(place, monkeypatch):
    monkeypatch.setattr(_state_directory, "ROOT_DIRECTORY", "/proc/none")
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/none")
    note_run("save", True)
    assert read_runs() == {}


def test_what_is_there_is_neither_followed_nor_waited_for(place, tmp_path):
    note_run("save", True)
    (place / "last-save.failure").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(place / "last-restore.success")
    note_run("save", False)
    note_run("restore", True)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    ("outcome", "check_mode", "noted"),
    [
        ({"changed": True}, False, {("save", "success")}),
        ({"changed": False}, False, set()),
        (RequestError("no"), False, {("save", "failure")}),
        (KeyboardInterrupt(), False, {("save", "failure")}),
        ({"changed": True}, True, set()),
        (RequestError("no"), True, set()),
    ],
)
def test_a_run_is_noted_and_a_plan_is_not(place, tmp_path, outcome, check_mode, noted):
    class Run(SaveRun):
        async def _run(self):
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

    run = Run(SaveRequest(name="web1", qmp_socket=None, path=None, save_dir=str(tmp_path), check_mode=check_mode))
    if isinstance(outcome, dict):
        assert asyncio.run(run.run()) == outcome
    else:
        with pytest.raises(type(outcome)):
            asyncio.run(run.run())
    assert set(read_runs()) == noted
