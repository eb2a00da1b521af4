# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""All that surrounds a running VM, looked at once: its media, and the problems that stand between it and its return."""

from __future__ import annotations

from ansible_collections.vmops.qemu.plugins.module_utils._qemu.monitor import Monitor
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import QemuProcess
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.unit import VmUnit
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.vm import runtime_changes
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.disks import read_media
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.record import Surroundings
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.start import start_identity, start_problems
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.verdict import Problem

_NO_PROCESS = Problem(
    "process_unknown",
    "its QEMU's process is not known here, so neither is how it was started",
    "Run the task on the host of the QEMU; restore it with launch: command or launch: attach",
)


async def survey(monitor: Monitor, process: QemuProcess | None, unit: VmUnit | None) -> Surroundings:
    """Look at everything, and touch nothing.

    :param process: the VM's QEMU, where it is known.
    :param unit: its unit, where the process is known.
    :raises MonitorError: QEMU cannot be asked.
    """
    if process is None or unit is None:
        return Surroundings((), (_NO_PROCESS,))
    uid, _gid, problems = start_identity(process, unit, monitor)
    problems += start_problems(process, unit, uid)
    media = await read_media(monitor, process)
    changed = await runtime_changes(monitor, process)
    if changed:
        problems.append(Problem("device_plugged", changed, "Restart it so that its command line says what it has"))
    return Surroundings(tuple(media), tuple(problems))
