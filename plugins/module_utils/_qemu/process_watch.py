# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Following one process to its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal

from ansible_collections.vmops.qemu.plugins.module_utils._proc import (
    birth_of,
)
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import QemuProcess


class ProcessWatch:
    """Follows one process to its end through a pidfd, so that a reused process id is never taken for it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        try:
            self._descriptor: int | None = os.pidfd_open(pid)
        except (ProcessLookupError, PermissionError):
            self._descriptor = None

    @classmethod
    def of(cls, process: QemuProcess) -> ProcessWatch:
        """Of a process that was looked at before: where another one has its number by now, it has ended."""
        watch = cls(process.pid)
        if birth_of(process.pid) != process.birth:
            watch.close()
        return watch

    @property
    def ended(self) -> bool:
        """Whether the process has ended."""
        if self._descriptor is None:
            return True
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        return bool(poll.poll(0))

    @property
    def follows(self) -> bool:
        """Whether its end is seen; else it has ended already, or may not be followed."""
        return self._descriptor is not None

    async def wait(self) -> None:
        """Wait for the process's end."""
        if self._descriptor is None:
            return
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(self._descriptor, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(self._descriptor)

    async def wait_at_most(self, timeout: float) -> None:
        """Wait for the process's end, for so many seconds at most."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.wait(), timeout)

    def kill(self) -> None:
        """End the process at once, where it still runs."""
        if self._descriptor is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)

    def close(self) -> None:
        """Give the pidfd back."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def is_alive(process: QemuProcess) -> bool:
    """Whether this very process still runs, whatever it says of itself by now."""
    watch = ProcessWatch.of(process)
    try:
        return not watch.ended
    finally:
        watch.close()
