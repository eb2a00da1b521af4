# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which file system a directory lies in."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._file_system import file_system, file_system_type, mount_point


def test_mount_points():
    for ask in (mount_point, file_system):
        assert ask("/") == "/"
        assert ask("/proc") == "/proc"
        assert ask("/proc/self") == "/proc"
        assert ask("/procedures") == "/"


def test_types():
    assert file_system_type("/proc/self") == "proc"
    assert file_system_type("/dev/shm/x") == "tmpfs"
    assert file_system_type("/sys") == "sysfs"


def test_links_on_the_way(tmp_path):
    (tmp_path / "link").symlink_to("/proc")
    assert mount_point(f"{tmp_path}/link/self") == "/proc"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_a_directory_that_is_mounted_at_two_places(tmp_path):
    """It has a mount point of its own, which a guard waits for, but no space of its own."""
    first, second = tmp_path / "first", tmp_path / "a second\\one"
    first.mkdir()
    second.mkdir()
    code = (
        "from ansible_collections.vmops.qemu.plugins.module_utils._file_system import file_system, mount_point\n"
        "import subprocess, sys\n"
        "subprocess.run(['mount', '-t', 'tmpfs', 'tmpfs', sys.argv[1]], check=True)\n"
        "subprocess.run(['mount', '--bind', sys.argv[1], sys.argv[2]], check=True)\n"
        "print(*(repr(ask(place)) for ask in (mount_point, file_system) for place in sys.argv[1:]))\n"
    )
    command = ["unshare", "--mount", "python3", "-c", code, str(first), str(second)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    said = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    expected = [str(first), str(second), str(first), str(first)]
    assert said.strip() == " ".join(repr(place) for place in expected)
