# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""All that surrounds a running VM, looked at once: its media, and the problems that stand between it and its return."""

from __future__ import annotations

import asyncio

from ansible_collections.vmops.qemu.plugins.module_utils._cancellation import in_stoppable_thread, looking
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.monitor import Monitor
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import QemuProcess
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.unit import VmUnit
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.block_graph import ask_block
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.circumstances import (
    Circumstances,
    ask_circumstances,
)
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.confinement import confinement_problems
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.disk_names import look_at_disk_names
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.disks import read_media
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.jobs import job_problems
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.losses import runtime_losses
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.machine import machine_problems
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.media import Medium
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.memory import (
    memory_disk_media,
    memory_files,
    memory_media,
    memory_problems,
    shared_memory_problems,
)
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.needs import find_needs
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.pid_files import find_pid_files
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.process import process_problems
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.record import Surroundings
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.replaced_disks import replaced_media
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.start import (
    start_problems,
    started_by_unit,
)
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.unit import (
    unit_problems,
    user_unit_problems,
)
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.verdict import Problem

#: A job has nodes of its own between drive and file, and so have temporary disks: that they are other ones than the
#: configuration's is no news then.
_PASSING = frozenset(("block_job", "block_job_fatal", "temporary_disks"))

_NO_PROCESS = Problem(
    "process_unknown",
    "its QEMU's process is not known here, so neither is how it was started",
    "Run the task on the host of the QEMU; restore it with launch: command or launch: attach",
)


async def survey(
    monitor: Monitor, process: QemuProcess | None, unit: VmUnit | None, sparse: bool, guards: bool = True
) -> Surroundings:
    """Look at everything, and touch nothing.

    :param process: the VM's QEMU, where it is known.
    :param unit: its unit, where the process is known.
    :param sparse: whether the image is, or would be, a sparse one.
    :param guards: whether the save keeps the VM's unit, if it can, from starting the VM beside its image.
    :raises MonitorError: QEMU cannot be asked.
    """
    # What the kernel tells is read while QEMU looks at its disks.
    block, files, (of_process, circumstances) = await asyncio.gather(
        ask_block(monitor), memory_files(monitor, process), look_at_process(monitor, process, unit)
    )
    jobs, media = await asyncio.gather(job_problems(monitor, block), read_media(monitor, process, block))
    media += await looking(memory_media, files)
    problems = [*jobs, *await in_stoppable_thread(memory_problems, files, sparse), *of_process]
    problems += await in_stoppable_thread(shared_memory_problems, files)
    if process is None or unit is None:
        return Surroundings(tuple(media), tuple(problems), circumstances=circumstances)
    of_machine, losses, (needs, missing) = await asyncio.gather(
        machine_problems(monitor, process.configuration, block.devices),
        runtime_losses(monitor, process.configuration, block),
        find_needs(monitor, process, unit, block.devices, media),
    )
    problems += await look_at_disk_names(block.graph, process)
    problems += [*of_machine, *losses, *missing]
    if not any(problem.kind in _PASSING for problem in problems):
        problems += await replaced_media(media, block.devices, process.configuration, process)
    problems += user_unit_problems(unit, guards)
    problems += await looking(unit_problems, unit, process, guards and unit.starts_vm, media)
    pid_files, stale = await in_stoppable_thread(find_pid_files, process)
    return Surroundings(tuple(media), (*problems, *stale), needs, pid_files, circumstances)


async def look_at_start(monitor: Monitor, process: QemuProcess, unit: VmUnit) -> Surroundings:
    """What a start from its disks needs beside them, and what stands between the VM and that start; touches nothing.

    :raises MonitorError: QEMU cannot be asked.
    """
    block = await ask_block(monitor)
    media = await read_media(monitor, process, block)
    needs, problems = await find_needs(monitor, process, unit, block.devices, media)
    pid_files, stale = await in_stoppable_thread(find_pid_files, process)
    # A server that keeps a part of the guest's state is of no matter: the guest begins anew.
    problems = [problem for problem in [*problems, *stale] if problem.kind != "server_state"]
    return Surroundings((), tuple(problems), needs, pid_files)


async def look_at_process(
    monitor: Monitor, process: QemuProcess | None, unit: VmUnit | None
) -> tuple[list[Problem], Circumstances | None]:
    """What of the process alone, and of who started it, stands between the VM and a start by its recorded words.

    And where it runs, with what, as far as that start gives it again.

    :raises MonitorError: QEMU cannot be asked.
    """
    if process is None or unit is None:
        return [_NO_PROCESS], None
    circumstances = await ask_circumstances(monitor, process, unit)
    return [
        *await looking(start_problems, process, unit),
        *await looking(process_problems, process, started_by_unit(unit), unit, circumstances),
        *await looking(confinement_problems, process, unit, monitor.peer_pid, monitor.peer_uid),
    ], circumstances


async def read_all_media(monitor: Monitor, process: QemuProcess | None) -> list[Medium]:
    """What QEMU has open for each drive now, and the files that are the guest's disks as much as its memory.

    :raises MonitorError: QEMU cannot be asked.
    """
    media, of_memory = await asyncio.gather(read_media(monitor, process), memory_disk_media(monitor, process))
    return media + of_memory
