# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A QEMU that somebody starts for a VM as soon as the one that was saved has quit: beside its image."""

from __future__ import annotations

import asyncio
import os
import time

from ansible_collections.vmops.qemu.plugins.module_utils._cancellation import in_thread
from ansible_collections.vmops.qemu.plugins.module_utils._proc import all_pids, birth_of, proc_path
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import command_line
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import QemuProcess, read_process

#: Seconds between two looks.
_INTERVAL = 0.05

#: Seconds within which one who waits for a process takes note of its end.
_REAPING_TIME = 0.1


def boot_time() -> float:
    """Seconds since the host's boot, by which the kernel tells when a process was started."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


async def was_reaped(pid: int) -> bool:
    """Whether whoever started a process has taken note of its end, which one does at once who waits for it.

    :param pid: of a process that has just ended.
    """
    deadline = time.monotonic() + _REAPING_TIME
    while os.path.exists(proc_path(pid)):
        if time.monotonic() >= deadline:
            return False
        await asyncio.sleep(0.01)
    return True


async def look_for_revival(
    name: str, uuid: str, process: QemuProcess, seconds: float, since: float = 0.0
) -> QemuProcess | None:
    """A QEMU of this VM that was started after ours, or None where none has come in that time.

    It is one of the VM by its name, or its UUID where both have one; that of a VM which has neither has the same
    command line. Another user's may call itself what it wants, and does not count: it is the same user's, or root's,
    who may be about to become that user.

    :param name: the VM's; may be empty.
    :param uuid: the VM's; may be empty.
    :param process: the QEMU that has quit.
    :param seconds: how long to look; 0 for one look.
    :param since: what :func:`boot_time` was before ours was told to quit: what ran then is another VM of that name.
    """
    deadline = time.monotonic() + seconds
    # The kernel counts hundredths of a second, and cuts them off.
    earliest = int(since * os.sysconf("SC_CLK_TCK"))
    older: set[int] = {process.pid}
    while True:
        found = await in_thread(_look, name, uuid, process, earliest, older)
        if found or time.monotonic() >= deadline:
            return found
        await asyncio.sleep(_INTERVAL)


def _look(name: str, uuid: str, process: QemuProcess, earliest: int, older: set[int]) -> QemuProcess | None:
    """One look, which adds to ``older`` the processes at which no other look needs to be taken."""
    for pid in all_pids():
        birth = None if pid in older else birth_of(pid)
        if birth is None:
            continue
        if birth < earliest:
            older.add(pid)
            continue
        candidate = read_process(pid)
        if candidate and candidate.uid in (process.uid, 0) and _is_of(candidate, name, uuid, process):
            return candidate
    return None


def _is_of(candidate: QemuProcess, name: str, uuid: str, process: QemuProcess) -> bool:
    """Whether it is a QEMU of the same VM."""
    if candidate.argv == process.argv:
        return True
    own = command_line.vm_uuid(candidate.argv)
    if uuid and own:
        return uuid.lower() == own
    return bool(name) and candidate.name == name
