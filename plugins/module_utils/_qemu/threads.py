# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A QEMU's threads by names that outlast it: those of its virtual CPUs and of its I/O threads."""

from __future__ import annotations

from ansible_collections.vmops.qemu.plugins.module_utils._cancellation import in_thread
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.launch import Launch
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.monitor import Monitor
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.resources import give_threads, not_given


async def named_threads(monitor: Monitor) -> dict[str, int]:
    """The threads by name (``cpu 0``, ``iothread io1``), as QEMU says: it may name any thread of the host.

    :raises MonitorError: QEMU cannot be asked.
    """
    found: dict[str, int] = {}
    for entry in await monitor.execute("query-cpus-fast"):
        index, thread = entry.get("cpu-index"), entry.get("thread-id")
        if isinstance(index, int) and isinstance(thread, int):
            found[f"cpu {index}"] = thread
    for entry in await monitor.execute_if_known("query-iothreads") or []:
        name, thread = entry.get("id"), entry.get("thread-id")
        if isinstance(name, str) and isinstance(thread, int):
            found[f"iothread {name[:200]}"] = thread
    return found


async def complete_resources(monitor: Monitor, how: Launch, pid: int | None) -> list[str]:
    """Give the threads of a QEMU that was started what only they had; what it has not got of all, as clauses.

    :param pid: its process; None where it is not known.
    :raises MonitorError: QEMU cannot be asked.
    """
    if pid is None:
        return []
    problems = await in_thread(not_given, how.resources, pid) if how.resources else []
    if how.threads:
        problems += await in_thread(give_threads, await named_threads(monitor), how.threads, pid)
    return problems
