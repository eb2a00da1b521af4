# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a process says of itself in /proc is read with bounds, and no process keeps the others from being seen."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from support.attacker import ATTACKERS
from support.observe import VM

GIGABYTES = 6 * 1024**3


@pytest.fixture
def long_process(attacker):
    return attacker.start([attacker.compile("long_command_line.c", "qemu-system-x86_64"), str(GIGABYTES)])


def test_command_line_of_gigabytes(guest, long_process, run_bounded, image):
    result, seconds = run_bounded("qemu_vm_info")
    assert not result.get("failed"), result["msg"]
    assert [vm["monitor"] for vm in result["vms"] if vm["pid"] == guest.pid] == ["answers"]
    assert long_process.pid not in [vm["pid"] for vm in result["vms"]]
    assert f"pid {long_process.pid} of the user nobody" in str(result["warnings"])
    assert seconds < 20
    saved, _seconds = run_bounded("qemu_save", name=VM, path=str(image))
    assert not saved.get("failed"), saved["msg"]


def test_vm_that_is_looked_for_may_be_the_one_that_cannot_be_read(long_process, run_bounded):
    result, _seconds = run_bounded("qemu_save", name=VM, path="/nonexistent/web1.save")
    assert result["error"] == "VmNotFoundError"
    assert f"pid {long_process.pid}" in result["msg"]
    assert "nobody" in result["msg"]


def test_name_that_is_no_utf8(attacker, guest, run_module):
    """Ansible refuses a result with such a name in it, so that no VM of the host would be told of."""
    script = attacker.programs / "sleep_as.py"
    shutil.copyfile(ATTACKERS / "sleep_as.py", script)
    script.chmod(0o644)
    program = attacker.programs / "qemu-system-x86_64"
    shutil.copy(os.path.realpath("/usr/bin/python3"), program)
    odd = attacker.start([program, script, "-name", "x\udcff", "-qmp", "unix:\udcfe,server=on", "-m", "\udcfd"])
    result = run_module("qemu_vm_info")
    json.dumps(result, ensure_ascii=False).encode()
    shown = {vm["pid"]: vm for vm in result["vms"]}
    assert shown[guest.pid]["monitor"] == "answers"
    assert shown[odd.pid]["name"] == "x\\udcff"
