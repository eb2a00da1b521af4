# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How a maintenance grows with its hosts: the playbook, without a reboot, for some hosts in one batch.

    .venv/bin/python tests/bench/fleet.py [--hosts 1,4,16,64] [--vms N] [--forks N] [--directory DIR]

All hosts are this machine, by local connections, each with VMs and a save directory of its own; so what is measured is
the controller's share, on CPUs that the hosts' runs need, too. Printed are seconds for a playbook with one ping and for
the maintenance, their ratio, and what the runs on the hosts took: the sum of all, and the longest.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "tests"))

from support import CounterGuest  # noqa: E402


def run_playbook(playbook: str, inventory: Path, forks: int, variables: dict[str, Any]) -> float:
    """Seconds of the whole process, which must succeed."""
    started = time.monotonic()
    environment = {
        **os.environ,
        "ANSIBLE_COLLECTIONS_PATH": str(REPOSITORY / "build" / "collections"),
        "ANSIBLE_LOCALHOST_WARNING": "false",
    }
    command = ["ansible-playbook", "-i", str(inventory), "-f", str(forks), playbook, "-e", json.dumps(variables)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stdout[-8000:] + done.stderr[-8000:])
    return time.monotonic() - started


def measure(place: Path, hosts: int, vms: int, forks: int) -> str:
    """One row of the table."""
    names = {f"host{host}": [f"bench{host}-{vm}-{os.getpid()}" for vm in range(vms)] for host in range(hosts)}
    known = {
        host: {"managed_save_vms": of_host, "vmops_qemu_save_dir": str(place / host)} for host, of_host in names.items()
    }
    common = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    inventory = place / "inventory.json"
    inventory.write_text(json.dumps({"all": {"hosts": known, "vars": common}}))
    ping = place / "ping.yml"
    ping.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": [{"ansible.builtin.ping": {}}]}]))
    guests = [
        CounterGuest(place / name, name, memory_mib=16, block_mib=4, line_ms=1000)
        for of_host in names.values()
        for name in of_host
    ]
    variables = {
        "host_maintenance_hosts": "all",
        "host_maintenance_serial": "100%",
        "host_maintenance_reboot": False,
        "host_maintenance_unsaved": "ignore",
        "host_maintenance_report_dir": str(place / "reports"),
        "managed_save_interval": 0,
        "managed_restore_interval": 0,
    }
    try:
        for guest in guests:
            guest.start()
        base = run_playbook(str(ping), inventory, forks, {})
        took = run_playbook("vmops.qemu.host_maintenance", inventory, forks, variables)
    finally:
        for guest in guests:
            guest.adopt_restarted()
            guest.close()
    report = json.loads((place / "reports" / "host-maintenance.json").read_text())
    own = [host["saves_took"] + host["restores_took"] for host in report["hosts"]]
    assert {host["state"] for host in report["hosts"]} == {"done"}
    return (
        f"{hosts:5d} {vms:4d} {forks:6d} {base:8.1f} s {took:10.1f} s {took / base:7.1f} {sum(own):10.1f} s"
        f" {max(own):8.1f} s"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Maintain some hosts at a time.")
    parser.add_argument("--hosts", default="1,4,16,64")
    parser.add_argument("--vms", type=int, default=1, help="of each host")
    parser.add_argument("--forks", type=int, default=16)
    parser.add_argument("--directory", default="/var/tmp")
    options = parser.parse_args()
    print("hosts  VMs  forks       ping  maintenance   ratio   own, sum   longest")
    for number in map(int, options.hosts.split(",")):
        with tempfile.TemporaryDirectory(dir=options.directory) as directory:
            print(measure(Path(directory), number, options.vms, options.forks), flush=True)


if __name__ == "__main__":
    main()
