# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a run over a host refuses before it asks a QEMU; saves are in the functional tests."""

from __future__ import annotations

import asyncio
import os

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._errors import HostRunError
from ansible_collections.vmops.qemu.plugins.module_utils._host import save
from ansible_collections.vmops.qemu.plugins.module_utils._host.save import HostSaveOperation, HostSaveRequest
from ansible_collections.vmops.qemu.plugins.module_utils._host.unsaved import Unsaved
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import QemuProcess


class Quiet:
    def say(self, text):
        pass

    def complain(self, text):
        pass


def run(monkeypatch, processes, doubtful=(), **options):
    """Check mode with these processes alone on the host."""
    monkeypatch.setattr(save, "list_processes", lambda: list(processes))
    monkeypatch.setattr(save, "list_doubtful", lambda: list(doubtful))
    monkeypatch.setattr(save, "restores_elsewhere", lambda _save_dir: {})
    known = {
        "vms": [],
        "include": ["*"],
        "exclude": [],
        "on_error": "rollback",
        "unsaved": "ignore",
        "shutdown_timeout": 1.0,
    }
    request = HostSaveRequest(
        **{**known, **options}, save_dir="/none", parallel=1, common={"timeout": 1.0}, by_vm={}, check_mode=True
    )

    async def work():
        return await HostSaveOperation(request, Quiet()).run()

    return asyncio.run(work())


def process(name, pid=7):
    return QemuProcess(pid, name, ("qemu-system-x86_64",), "/", "/usr/bin/qemu-system-x86_64", os.geteuid(), 0)


def test_vm_without_a_name_is_refused_where_all_are_to_be_saved(monkeypatch):
    with pytest.raises(
        HostRunError, match=r"A QEMU without a name or uuid \(pid 7\) runs here and would not be saved"
    ) as refused:
        run(monkeypatch, [process("")])
    assert refused.value.as_result()["unsaved"][0]["pid"] == 7
    assert "No VM was touched" in str(refused.value)
    assert run(monkeypatch, [process("")], include=["web*"])["unsaved"][0]["name"] == ""


def test_what_is_left_out_is_refused_when_asked_for(monkeypatch):
    result = run(monkeypatch, [process("build7")], exclude=["build*"])
    assert [(vm["name"], vm["pid"]) for vm in result["unsaved"]] == [("build7", 7)]
    assert result["msg"].startswith("0 VMs would be saved")
    with pytest.raises(HostRunError, match=r"build7 \(pid 7\) runs here and would not be saved: it is excluded"):
        run(monkeypatch, [process("build7")], exclude=["build*"], unsaved="fail")


def test_vm_that_may_not_be_listed_is_told_or_refused(monkeypatch):
    doubtful = ["pid 9 of the user eve"]
    result = run(monkeypatch, [], doubtful)
    assert result["warnings"] == ["Not every VM may be found: pid 9 of the user eve"]
    with pytest.raises(HostRunError, match="Not every VM may be found: pid 9"):
        run(monkeypatch, [], doubtful, unsaved="fail")


@pytest.mark.parametrize("what", ["fail", "shutdown", "ignore"])
def test_guest_that_is_gone_is_listed_and_no_reason_to_fail(what):
    unsaved = Unsaved(what, 1.0, "/none", Quiet())
    assert unsaved.add(process("web1"), "web1 has shut down.", "GuestGoneError")
    assert unsaved.problems() == []
    assert (unsaved.to_go, unsaved.touched) == (0, 0)
    assert [vm["fate"] for vm in unsaved.as_result()] == ["no guest"]
