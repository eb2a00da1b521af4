# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Following one process to its end."""

from __future__ import annotations

import asyncio
import contextlib

from ansible_collections.vmops.qemu.plugins.module_utils._process_handle import ProcessHandle
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import QemuProcess


class ProcessWatch(ProcessHandle):
    """Follows one process to its end; a reused process id is never taken for it."""

    @classmethod
    def of(cls, process: QemuProcess) -> ProcessWatch:
        """Of a process that was looked at before: where another one has its number by now, it has ended."""
        return cls(process.pid, process.birth)

    async def wait_at_most(self, timeout: float) -> None:
        """Wait for the process's end, for so many seconds at most."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.wait(), timeout)


def is_alive(process: QemuProcess) -> bool:
    """Whether this very process still runs, whatever it says of itself by now."""
    watch = ProcessWatch.of(process)
    try:
        return not watch.ended
    finally:
        watch.close()
