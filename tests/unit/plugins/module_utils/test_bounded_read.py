# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._bounded_read import TooLongError, read_bounded


def test_file_up_to_its_bound(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"x" * 200_000)
    assert read_bounded(str(file), 200_000) == b"x" * 200_000


def test_longer_file_says_how_it_begins(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"beginning" + bytes(200_000))
    with pytest.raises(TooLongError, match="more than 9 bytes") as caught:
        read_bounded(str(file), 9)
    assert caught.value.beginning == b"beginning"


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["fifo", "directory"])
def test_what_is_no_file_is_not_waited_for(tmp_path, make):
    make(tmp_path / "it")
    with pytest.raises(OSError, match="not a regular file"):
        read_bounded(str(tmp_path / "it"), 100)


def test_device_is_not_read():
    with pytest.raises(OSError, match="not a regular file"):
        read_bounded("/dev/zero", 100)
