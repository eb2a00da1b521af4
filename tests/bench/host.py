# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Compare the roles' save and restore of a host's VMs with a playbook that only pings the host.

    .venv/bin/python tests/bench/host.py [--vms N] [--memory MIB] [--rounds N] [--directory DIR]

Each round pings, saves all VMs and restores them, through Ansible with a local connection. Printed are the medians of
whole processes in seconds, their ratio to the ping, and what the runs on the host took of it (``duration``).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "tests"))

from support import CounterGuest  # noqa: E402


def write_playbook(place: Path, name: str, tasks: list[dict[str, Any]], variables: dict[str, Any]) -> Path:
    """A playbook for localhost."""
    path = place / f"{name}.yml"
    path.write_text(json.dumps([{"hosts": "localhost", "gather_facts": False, "vars": variables, "tasks": tasks}]))
    return path


def run_playbook(path: Path) -> tuple[float, float | None]:
    """Run it; seconds of the whole process, and those of the run on the host."""
    started = time.monotonic()
    environment = {
        **os.environ,
        "ANSIBLE_COLLECTIONS_PATH": str(REPOSITORY / "build" / "collections"),
        "ANSIBLE_LOCALHOST_WARNING": "false",
    }
    command = ["ansible-playbook", "-i", "localhost,", "-c", "local", str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    took = time.monotonic() - started
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    told = re.search(r'"duration ([\d.]+)"', done.stdout)
    return took, float(told.group(1)) if told else None


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Compare the roles with a ping.")
    parser.add_argument("--vms", type=int, default=16)
    parser.add_argument("--memory", type=int, default=64, help="MiB of each")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", default="/var/tmp")
    options = parser.parse_args()
    names = [f"bench{number}-{os.getpid()}" for number in range(options.vms)]
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        place = Path(directory)
        variables = {
            "ansible_python_interpreter": sys.executable,
            "vmops_qemu_save_dir": str(place / "save"),
            "managed_save_vms": names,
            "managed_save_interval": 0,
            "managed_restore_interval": 0,
        }
        playbooks = {"ping": write_playbook(place, "ping", [{"ansible.builtin.ping": {}}], variables)}
        for kind in ("save", "restore"):
            tasks: list[dict[str, Any]] = [
                {"ansible.builtin.include_role": {"name": f"vmops.qemu.managed_{kind}"}},
                {
                    # Not a module, which would take as long as a ping.
                    "ansible.builtin.debug": {"msg": f"duration {{{{ managed_{kind}_result.duration }}}}"},
                },
            ]
            playbooks[kind] = write_playbook(place, kind, tasks, variables)
        guests = [
            CounterGuest(place / name, name, memory_mib=options.memory, block_mib=options.memory // 2, line_ms=1000)
            for name in names
        ]
        try:
            for guest in guests:
                guest.start()
            times: dict[str, list[tuple[float, float | None]]] = {kind: [] for kind in playbooks}
            for _round in range(options.rounds):
                for kind, path in playbooks.items():
                    times[kind].append(run_playbook(path))
                for guest in guests:
                    guest.adopt_restarted()
        finally:
            for guest in guests:
                guest.adopt_restarted()
                guest.close()
        base = statistics.median(took for took, _own in times["ping"])
        print(f"{options.vms} VMs of {options.memory} MiB, medians of {options.rounds} rounds")
        for kind, measured in times.items():
            took = statistics.median(took for took, _own in measured)
            own = [own for _took, own in measured if own is not None]
            print(
                f"  {kind:8} {took:6.2f} s  {took / base:5.2f} x ping"
                + (f"  (on the host {statistics.median(own):.2f} s)" if own else "")
            )


if __name__ == "__main__":
    main()
