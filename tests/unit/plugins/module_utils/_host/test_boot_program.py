# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._errors import VmopsError
from ansible_collections.vmops.qemu.plugins.module_utils._host.boot_program import main, request_of
from ansible_collections.vmops.qemu.plugins.module_utils._host.choice import RestoreTask
from ansible_collections.vmops.qemu.plugins.module_utils._host.service import StandardStreams, read_settings
from ansible_collections.vmops.qemu.plugins.module_utils._names import VmNames
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.selection import Selection

SETTINGS = {"save_dir": "/save", "order": [], "parallel": 2, "timeout": 60}


@pytest.fixture
def settings(tmp_path):
    """Write settings into a file that nobody else may write to; its path."""
    directory = tmp_path / "program"
    directory.mkdir(mode=0o755)
    path = directory / "settings.json"

    def write(text):
        path.write_text(text if isinstance(text, str) else json.dumps(text))
        path.chmod(0o644)
        return str(path)

    return write


def test_settings(settings):
    assert read_settings(settings(SETTINGS), request_of).save_dir == "/save"


@pytest.mark.parametrize(
    ("given", "asked"), [({}, "auto"), ({"sync_time": "false"}, "false"), ({"sync_time": True}, "true")]
)
def test_clocks(settings, given, asked):
    """Settings of an earlier version say nothing of them."""
    task = RestoreTask(Selection("web1"), "/save/web1.save", VmNames("web1", "web1"))
    assert read_settings(settings({**SETTINGS, **given}), request_of).of(task).sync_time == asked


@pytest.mark.parametrize(
    "text", ["", "{", "{}", "[]", {**SETTINGS, "timeout": "soon"}, {**SETTINGS, "sync_time": "perhaps"}]
)
def test_settings_that_cannot_be_read(settings, text):
    with pytest.raises(VmopsError, match="cannot be read"):
        read_settings(settings(text), request_of)


def test_settings_that_are_missing(tmp_path):
    with pytest.raises(VmopsError, match="cannot be read"):
        read_settings(str(tmp_path / "settings.json"), request_of)


def test_settings_that_others_could_have_written(settings, tmp_path):
    path = settings(SETTINGS)
    (tmp_path / "program").chmod(0o777)
    with pytest.raises(VmopsError, match="is not safe"):
        read_settings(path, request_of)


def test_lines_for_the_journal(capsys):
    journal = StandardStreams()
    journal.say("one\ntwo")
    journal.complain("three\x1b[0m")
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("one\\ntwo\n", "<3>three\\x1b[0m\n")


def test_exit_status(settings, tmp_path, capsys):
    assert main(settings({**SETTINGS, "save_dir": str(tmp_path / "none")})) == 0
    assert "nothing to restore" in capsys.readouterr().out
    assert main(settings("no settings")) == 1
    assert capsys.readouterr().err.startswith("<3>The settings ")
