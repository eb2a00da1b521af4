# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A reboot would lose what was saved in memory: it is refused before a guest is touched."""

from __future__ import annotations

import pytest

from support.machine_run import run_playbook
from support.machine_tool import UNAVAILABLE

pytestmark = pytest.mark.skipif(bool(UNAVAILABLE), reason=UNAVAILABLE)

RUN_STATE = """
import json, socket
with socket.socket(socket.AF_UNIX) as monitor:
    monitor.connect("/run/web1.qmp")
    lines = monitor.makefile("rw")
    for command in "qmp_capabilities", "query-status":
        print(json.dumps({"execute": command}), file=lines, flush=True)
    while True:
        said = json.loads(lines.readline()).get("return")
        if said:
            print(said["status"])
            break
"""


@pytest.fixture
def maintain(machine, tmp_path):
    """Run the playbook on a machine with a VM; what it said. It fails."""
    monitor = "unix:/run/web1.qmp,server=on,wait=off"
    machine.run(f"qemu-system-x86_64 -name web1 -m 64 -display none -qmp {monitor} -daemonize")

    def run(*options, **variables):
        variables = {"host_maintenance_hosts": "all", "host_maintenance_reboot": True, **variables}
        done = run_playbook(machine, tmp_path, "root", *options, "vmops.qemu.host_maintenance", **variables)
        assert done.returncode != 0, done.stdout + done.stderr
        assert machine.run("python3 -", stdin=RUN_STATE.encode()).strip() == "running"
        return done.stdout

    return run


@pytest.mark.parametrize("options", [(), ("--check",)], ids=["done", "predicted"])
def test_reboot_is_refused(maintain, machine, options):
    booted = machine.run("cat /proc/sys/kernel/random/boot_id")
    said = maintain(*options, vmops_qemu_save_dir="/run/saved")
    assert "hv1 is to be rebooted, and the images would be gone with it" in said
    assert "/run" in said
    assert machine.run("cat /proc/sys/kernel/random/boot_id") == booted
