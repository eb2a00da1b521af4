# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where a QEMU runs, with what, and where its output goes: what a start by its recorded command gives it again.

Its user and what it may do are with its process (``Rights``). What cannot be given again is a problem
(:mod:`_surroundings.process`).
"""

from __future__ import annotations

import dataclasses
import os

from ansible_collections.vmops.qemu.plugins.module_utils._cancellation import looking
from ansible_collections.vmops.qemu.plugins.module_utils._proc import proc_path
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import systemd
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.launch_log import output_file
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.manager import starter_pid
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.monitor import Monitor
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.network_namespace import FRESH, has_mounts_of_ip, name_of
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import QemuProcess
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.resources import (
    Resources,
    Scheduling,
    odd_threads,
    read_resources,
)
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.threads import named_threads
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.unit import VmUnit, start_user
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.network_use import has_network, serves_network


@dataclasses.dataclass(frozen=True)
class Circumstances:
    """What is recorded of a QEMU's process, beside its words and its user."""

    resources: Resources | None = None
    #: Threads that are treated apart, and that no later QEMU has by a name.
    odd_threads: tuple[tuple[int, Scheduling], ...] = ()
    #: Where its network namespace is mounted, where that is not the usual one; and whether it has ip's mounts there.
    network_namespace: str = ""
    network_mounts: bool = False
    #: The files to which it writes its stdout and stderr; empty for anything else.
    stdout: str = ""
    stderr: str = ""
    #: The slice of its control group, where that is not where its starter would put it.
    slice: str = ""


def starter_of_vms() -> int:
    """The process of which a QEMU that is started again has its namespaces, and what nobody sets."""
    # systemd and its children have the namespaces of the host; a module may run in those of its session.
    return starter_pid()


def read_circumstances(process: QemuProcess, unit: VmUnit | None = None) -> Circumstances:
    """Look at a process in /proc; never raises.

    :param unit: its unit, in which a restore may start it.
    """
    pid, starter = process.pid, starter_of_vms()
    resources = read_resources(pid)
    words = process.configuration.words
    same_network, same_mounts = (_same_namespace(pid, starter, kind) for kind in ("net", "mnt"))
    namespace = "" if same_network else name_of(pid, starter)
    if _starts_as_user(unit):
        same_network, namespace = True, ""  # which only root enters, or makes
    if not (namespace or same_network or has_network(words) or serves_network(words)):
        namespace = FRESH  # which is one of the ways to be sure that a VM reaches nothing
    odd = odd_threads(pid, resources.scheduling)
    return Circumstances(
        resources=resources,
        odd_threads=tuple(odd.items()),
        network_namespace=namespace,
        network_mounts=bool(namespace) and not same_mounts and has_mounts_of_ip(pid, starter, namespace, words),
        stdout=output_file(pid, 1),
        stderr=output_file(pid, 2),
        slice=systemd.slice_of_process(pid),
    )


def _same_namespace(pid: int, starter: int, kind: str) -> bool:
    try:
        return os.path.samestat(os.stat(proc_path(pid, f"ns/{kind}")), os.stat(proc_path(starter, f"ns/{kind}")))
    except OSError:
        return True  # it has ended, or may not be looked at, which is told elsewhere


def _starts_as_user(unit: VmUnit | None) -> bool:
    """Whether a restore executes QEMU in a unit that is another user's than root's."""
    if unit is None or not (unit.starts_vm and unit.facts and unit.command):
        return False
    return start_user(unit.facts, unit.command) != 0


async def ask_circumstances(monitor: Monitor, process: QemuProcess, unit: VmUnit) -> Circumstances:
    """As :func:`read_circumstances`, with the names that QEMU has for its threads.

    :raises MonitorError: QEMU cannot be asked.
    """
    found = await looking(read_circumstances, process, unit)
    if not found.odd_threads or found.resources is None:
        return found
    names = {thread: name for name, thread in (await named_threads(monitor)).items()}
    named = tuple((names[thread], each) for thread, each in found.odd_threads if thread in names)
    return dataclasses.replace(
        found,
        resources=dataclasses.replace(found.resources, threads=named),
        odd_threads=tuple((thread, each) for thread, each in found.odd_threads if thread not in names),
    )
