# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import asyncio

from ansible_collections.vmops.qemu.plugins.module_utils import _vm_info
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import QemuProcess


def test_what_nobody_has_thought_of_is_that_vms_alone(monkeypatch, tmp_path):
    words = ("/usr/bin/qemu-system-x86_64",)
    found = [QemuProcess(pid, name, words, "/", words[0], 65534, 65534) for pid, name in ((1, "odd"), (2, "web1"))]
    monkeypatch.setattr(_vm_info, "list_processes", lambda: found)
    monkeypatch.setattr(_vm_info, "list_doubtful", list)

    async def ask(vm):
        if vm.process.name == "odd":
            raise KeyError("what")
        vm.result["monitor"] = "answers"

    monkeypatch.setattr(_vm_info._Vm, "ask", ask)
    request = _vm_info.VmInfoRequest(None, str(tmp_path))
    result = asyncio.run(_vm_info.VmInfoOperation(request).run())
    assert {vm["name"]: vm["monitor"] for vm in result["vms"]} == {"odd": "invalid", "web1": "answers"}
    assert "KeyError: 'what'" in result["vms"][0]["reason"]
