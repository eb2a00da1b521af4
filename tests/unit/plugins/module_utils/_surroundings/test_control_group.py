# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The limits of a control group that goes with its QEMU, as the kernel's files say them."""

from __future__ import annotations

import os

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings import control_group
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.control_group import control_group_problems

QEMU, STARTER = 4711, 4712


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """The kernel's files of some groups, and in which of them QEMU and who starts it are."""
    files = {
        "vms.slice": {"memory.max": "1000"},
        "vms.slice/run-1.scope": {"memory.max": "2000", "cpu.max": "150000 100000", "memory.high": "max", "io.max": ""},
        "vms.slice/run-1.scope/qemu": {"cpuset.cpus": "0-1", "cpu.max": "max 100000", "cpuset.mems": ""},
        "vms.slice/run-2.scope": {"memory.max": "max", "cpu.max": "max 100000"},
    }
    for group, limits in files.items():
        (tmp_path / group).mkdir(parents=True, exist_ok=True)
        for name, value in limits.items():
            (tmp_path / group / name).write_text(f"{value}\n")
    inside: dict[int, str] = {}
    monkeypatch.setattr(control_group, "_ROOTS", (str(tmp_path / "none"), str(tmp_path)))
    monkeypatch.setattr(control_group, "_path", lambda pid: inside.get(pid, ""))
    return inside


def test_limits_below_the_slice(groups):
    groups[QEMU] = "/vms.slice/run-1.scope/qemu"
    (problem,) = control_group_problems(QEMU, 1)
    assert not problem.blocks
    assert problem.what.endswith(": cpuset.cpus 0-1, memory.max 2000, cpu.max 150000 100000")


@pytest.mark.parametrize("place", ["", "/vms.slice", "/vms.slice/run-2.scope", "/gone.slice/gone.scope", "/user"])
def test_no_limits(groups, place):
    groups[QEMU] = place
    assert control_group_problems(QEMU, 1) == []


def test_of_a_daemon_that_stays_in_the_group_of_who_starts_it(groups):
    groups.update({QEMU: "/vms.slice/run-1.scope", STARTER: "/vms.slice/run-1.scope"})
    assert control_group_problems(QEMU, STARTER) == []
    groups[STARTER] = "/vms.slice/run-2.scope"
    assert control_group_problems(QEMU, STARTER)


def test_of_a_real_process():
    for starter in (1, os.getpid()):
        assert all(not problem.blocks for problem in control_group_problems(os.getpid(), starter))
