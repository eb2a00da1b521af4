# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Directories that a reboot takes: which are made again, and which must not be."""

from __future__ import annotations

import os

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._errors import LaunchError
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.directories import (
    Directory,
    directory_problems,
    make_directories,
    missing_directories,
    why_taken,
)

OWN = (os.geteuid(), os.getegid())


@pytest.fixture
def recorded(tmp_path):
    return [Directory(str(tmp_path / "vm"), *OWN, 0o750), Directory(str(tmp_path / "vm" / "sockets"), *OWN, 0o700)]


def test_those_above_come_first(recorded, tmp_path):
    assert make_directories(recorded) == [str(tmp_path / "vm"), str(tmp_path / "vm" / "sockets")]
    assert (tmp_path / "vm").stat().st_mode & 0o7777 == 0o750
    assert missing_directories(recorded) == []
    assert make_directories(recorded) == []


def test_what_is_there_is_not_changed(recorded, tmp_path):
    (tmp_path / "vm").mkdir(mode=0o711)
    assert make_directories(recorded) == [str(tmp_path / "vm" / "sockets")]
    assert (tmp_path / "vm").stat().st_mode & 0o7777 == 0o711


def test_link_on_the_way_is_not_followed(recorded, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "vm").symlink_to("elsewhere")
    with pytest.raises(LaunchError, match="sockets"):
        make_directories(recorded)
    assert os.listdir(tmp_path / "elsewhere") == []


def test_directory_above_that_others_can_write_to(recorded, tmp_path):
    """They could turn the new one to another place."""
    tmp_path.chmod(0o777)
    with pytest.raises(LaunchError, match="meanwhile"):
        make_directories(recorded)
    assert os.listdir(tmp_path) == []
    tmp_path.chmod(0o1777)  # there they cannot
    assert make_directories(recorded)


def test_no_directory_above(tmp_path):
    with pytest.raises(LaunchError, match=r"tmpfiles\.d|cannot be made"):
        make_directories([Directory(str(tmp_path / "a" / "b"), *OWN, 0o700)])


def test_whose_it_may_be(recorded, tmp_path):
    assert why_taken(recorded, set()) == ""
    (tmp_path / "vm").touch()
    assert "is none now" in why_taken(recorded, set())
    other = Directory(str(tmp_path), OWN[0] + 1, 0, 0o700)
    assert str(tmp_path) in why_taken([other], set())
    assert why_taken([other], {OWN[0]}) == ""


def test_directory_of_a_session():
    (problem,) = directory_problems([Directory("/run/user/4294967/vm", 4294967, 0, 0o700)], by_unit=False)
    assert problem.kind == "session_directory"
    assert not problem.blocks
    assert directory_problems([Directory("/run/user/4294967/vm", 4294967, 0, 0o700)], by_unit=True) == []
    assert directory_problems([Directory("/run/vm", 0, 0, 0o700)], by_unit=False) == []
