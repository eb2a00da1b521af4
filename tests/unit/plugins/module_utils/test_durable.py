# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Small files that outlast a crash."""

from __future__ import annotations

import os
import stat

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._durable import scratch_path, write_durably


@pytest.fixture
def umask():
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_what_is_there_is_replaced(tmp_path, umask, mode):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    os.mkfifo(scratch_path(str(path)))  # a run was cut off, or somebody waits for us
    write_durably(str(path), b"new", mode)
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert os.listdir(tmp_path) == ["file"]


def test_each_flush_comes_before_what_relies_on_it(tmp_path, monkeypatch):
    steps = []
    for name in ("pwrite", "fsync", "rename"):
        real = getattr(os, name)

        def note(*arguments, _name=name, _real=real):
            is_directory = _name == "fsync" and stat.S_ISDIR(os.fstat(arguments[0]).st_mode)
            steps.append(f"{_name} directory" if is_directory else _name)
            return _real(*arguments)

        monkeypatch.setattr(os, name, note)
    write_durably(str(tmp_path / "file"), b"new")
    assert steps == ["pwrite", "fsync", "rename", "fsync directory"]


@pytest.mark.parametrize("failing", ["pwrite", "fsync", "rename"])
def test_a_step_that_fails_leaves_the_old_one(tmp_path, monkeypatch, failing):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="No space"):
        write_durably(str(path), b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]
