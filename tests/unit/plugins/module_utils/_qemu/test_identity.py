# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which of the QEMUs of a name is the VM; which process is behind a monitor needs one, and is tested with one."""

from __future__ import annotations

import asyncio
import os

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._errors import VmAmbiguousError
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import identity, systemd
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.identity import RecordedIdentity, choose_process
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import QemuProcess

ME = os.geteuid()
#: Users that are neither root nor the caller.
VMS, OTHERS, NOBODY = 100107, 100108, 165534
RECORDED = RecordedIdentity(VMS)
IN_UNIT = RecordedIdentity(VMS, "vm@web1.service")


def qemu(pid: int, uid: int) -> QemuProcess:
    return QemuProcess(pid, "web1", ("qemu",), "/", "/usr/bin/qemu", uid, uid)


def chosen(uids: list[int], recorded: RecordedIdentity | None, must_match: bool) -> int | None:
    """The user of the one that is the VM."""
    found = [qemu(pid, uid) for pid, uid in enumerate(uids)]
    choice = asyncio.run(choose_process("web1", found, recorded, must_match))
    strangers = [process for process in found if process is not choice.process]
    assert choice.strangers == strangers
    assert len(choice.warnings("web1")) == bool(strangers)
    return choice.process.uid if choice.process else None


@pytest.mark.parametrize(
    ("uids", "recorded", "must_match", "expected"),
    [
        ([], None, False, None),
        ([ME], None, False, ME),
        ([0], None, True, 0),
        ([NOBODY], None, False, NOBODY),
        ([NOBODY], None, True, None),
        ([NOBODY], RECORDED, True, None),
        ([NOBODY], RECORDED, False, NOBODY),
        ([NOBODY, VMS, OTHERS], RECORDED, True, VMS),
        ([NOBODY, VMS, OTHERS], RECORDED, False, VMS),
        ([NOBODY, ME, OTHERS], None, False, ME),
        ([NOBODY, OTHERS], RECORDED, True, None),
    ],
)
def test_one_is_the_vm(uids, recorded, must_match, expected):
    assert chosen(uids, recorded, must_match) == expected


@pytest.mark.parametrize(
    ("uids", "recorded", "must_match"),
    [
        ([NOBODY, OTHERS], None, False),
        ([NOBODY, OTHERS], RECORDED, False),
        ([NOBODY, NOBODY], None, False),
        ([ME, ME], None, False),
        ([ME, VMS], RECORDED, True),
        ([VMS, VMS, NOBODY], RECORDED, True),
    ],
)
def test_several_may_be_the_vm(uids, recorded, must_match):
    with pytest.raises(VmAmbiguousError, match="pid 0 of the user"):
        chosen(uids, recorded, must_match)


@pytest.fixture
def units(monkeypatch):
    """The unit of each process, by its number; the recorded one is on this host."""
    known: dict[int, str] = {}

    async def is_on_this_host(unit: str) -> bool:
        return unit in known.values() or known.get(-1) == unit

    monkeypatch.setattr(identity, "_is_on_this_host", is_on_this_host)
    monkeypatch.setattr(systemd, "unit_of_process", lambda pid: known.get(pid, ""))
    return known


def test_unit_tells_vms_of_one_user_apart(units):
    units[1] = IN_UNIT.unit
    found = [qemu(0, VMS), qemu(1, VMS)]
    assert asyncio.run(choose_process("web1", found, IN_UNIT, True)).process == found[1]


def test_outside_of_the_recorded_unit_it_is_not_known(units):
    units[-1] = IN_UNIT.unit
    with pytest.raises(VmAmbiguousError, match="outside of that unit"):
        chosen([VMS], IN_UNIT, True)
    assert chosen([VMS], IN_UNIT, False) == VMS
    # Nobody else can start one of root's, or of the caller's.
    assert chosen([ME], IN_UNIT, True) == ME


@pytest.mark.usefixtures("units")
def test_unit_that_is_not_on_this_host():
    assert chosen([VMS], IN_UNIT, True) == VMS


def test_strangers_are_counted():
    found = [qemu(pid, NOBODY) for pid in range(100)]
    (warning,) = asyncio.run(choose_process("web1", found, RECORDED, True)).warnings("web1")
    assert "and 97 more" in warning
