# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A reboot would lose what was saved in memory: it is refused before a guest is touched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.guest import COLLECTIONS
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
    inventory = tmp_path / "inventory.json"
    host = {
        "ansible_user": "root",
        "ansible_ssh_common_args": f"-F {machine.ssh_config}",
        "ansible_python_interpreter": "/usr/bin/python3",
    }
    inventory.write_text(json.dumps({"all": {"hosts": {machine.name: host}}}))

    def run(*options, **variables):
        variables = {"host_maintenance_hosts": "all", "host_maintenance_reboot": True, **variables}
        command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(inventory), *options]
        done = subprocess.run(
            [*command, "vmops.qemu.host_maintenance", "-e", json.dumps(variables)],
            cwd=tmp_path,
            env={
                **os.environ,
                "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS),
                "ANSIBLE_LOCAL_TEMP": str(tmp_path / "ansible"),
                "ANSIBLE_SSH_CONTROL_PATH_DIR": f"/tmp/sd-{os.getpid()}",
                "ANSIBLE_NOCOLOR": "1",
            },
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
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
