# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A VM that one can talk to: its monitor, what QEMU says of it, and its process on this host."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._cancellation import despite_cancellation, within
from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    CommandError,
    MonitorBusyError,
    MonitorError,
    MonitorLostError,
    MonitorMissingError,
)
from ansible_collections.vmops.qemu.plugins.module_utils._proc import is_halted
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.identity import is_behind
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.monitor import Monitor
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import QemuProcess
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process_watch import ProcessWatch, is_alive
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.vm import (
    LIVE_STATES,
    RunningVm,
    query_run_state,
    read_vm,
)

#: Seconds that a QEMU that was told to quit may take to end.
QUIT_TIMEOUT = 60.0

#: Seconds for which QEMU's disks are waited for: on the way to a save the run's own limit bounds that.
DISK_TIMEOUT = math.inf
WAY_BACK_TIMEOUT = 600.0

#: Seconds that a QEMU of no use may take to quit before it is killed, and to be gone after that.
_END_TIMEOUT = 5.0
_KILL_TIMEOUT = 30.0

#: Seconds for which QEMU may refuse to let a guest go on: because it is finishing a migration, or for another reason,
#: such as a program that looks into its disk and has it locked meanwhile.
_FINALIZE_TIMEOUT = 30.0
_REFUSAL_TIMEOUT = 3.0

#: Seconds within which a QEMU whose connection has ended is gone, if it is dying.
_DYING_TIME = 1.0

_Result = t.TypeVar("_Result")


class VmSession:
    """A connection to one VM. ``vm`` is what QEMU said of it when it was asked last (:meth:`read`)."""

    def __init__(self, monitor: Monitor, vm: RunningVm) -> None:
        self.monitor = monitor
        self.vm = vm
        #: Until when QEMU may be silent, one for each who is patient (time.monotonic).
        self._silent_until: list[float] = []
        # Behind a proxy an answer may have been lost.
        self._is_direct = self.pid is not None and (monitor.peer_pid == self.pid or monitor.end.is_held_by(self.pid))
        self._silences = 0
        monitor.activity = self._count_silence

    @classmethod
    async def open(cls, monitor: Monitor) -> VmSession:
        """Ask who is there.

        :raises MonitorError: it could not be asked; the connection is closed then.
        """
        try:
            return cls(monitor, await read_vm(monitor))
        except BaseException:
            await despite_cancellation(monitor.close())
            raise

    @property
    def label(self) -> str:
        """The VM as messages name it."""
        return self.vm.label

    @property
    def process(self) -> QemuProcess | None:
        """Its QEMU on this host, where it is known."""
        return self.vm.process

    @property
    def pid(self) -> int | None:
        """The process id of that."""
        return self.process.pid if self.process else None

    async def close(self) -> None:
        """End the connection; the VM stays as it is. Too late for a cancellation: the work is done, or undone."""
        await despite_cancellation(self.monitor.close())

    async def read(self) -> None:
        """Ask again who is there; raises as :meth:`Monitor.execute`."""
        self.vm = await read_vm(self.monitor)

    async def run_state(self) -> str:
        """QEMU's run state now; raises as :meth:`Monitor.execute`."""
        return await query_run_state(self.monitor)

    @property
    def sleeps(self) -> bool:
        """Whether the guest sleeps (S3), also while it is stopped: as it was read, or as it has told since."""
        event = self.monitor.last_event("SUSPEND", "WAKEUP")
        return self.vm.run_state == "suspended" if event is None else bool(event["event"] == "SUSPEND")

    async def has_ended(self, lost: bool = False) -> bool:
        """Whether the VM's QEMU, where it is known, is gone.

        :param lost: whether a connection of it is known to have ended, besides what this one knows.
        """
        if self.process is None:
            return False
        if lost or self.monitor.lost:
            # A dying QEMU closes its connection a moment before it is gone.
            watch = ProcessWatch.of(self.process)
            await watch.wait_at_most(_DYING_TIME)
            watch.close()
        return not is_alive(self.process)

    async def twice(self, work: t.Callable[[], t.Awaitable[_Result]]) -> _Result:
        """Do it and, where it failed, once more over a new connection: that one was lost need not cost the guest.

        :param work: what may be done twice, as its first outcome is not known.
        :raises MonitorError: it failed again, or there is no QEMU any more.
        """
        try:
            return await work()
        except MonitorError:
            if await self.has_ended():
                raise
            await self._connect_again()
            if self.process is not None and not is_behind(self.monitor, self.process):
                await self.monitor.close()
                raise MonitorLostError(
                    f"QEMU's connection at {self.monitor.shown_address} ended, and it is not known to answer there any"
                    " more",
                    cure="Run the task again",
                ) from None
            return await work()

    async def _connect_again(self) -> None:
        """Begin a new session; one that may be silent greets nobody, either. Raises as Monitor.connect_again."""
        while True:
            try:
                return await self.monitor.connect_again()
            except MonitorBusyError:
                if not self._may_be_silent() or await self.has_ended():
                    raise

    def _count_silence(self) -> int:
        """As Monitor.activity: it stands still as soon as QEMU need answer in time."""
        self._silences += self._may_be_silent()
        return self._silences

    def _may_be_silent(self) -> bool:
        """Whether QEMU need not answer now."""
        if not self._is_direct or time.monotonic() >= max(self._silent_until, default=0.0):
            return False
        return self.pid is not None and not is_halted(self.pid)

    @contextlib.contextmanager
    def patience(self, way_back: bool = False) -> t.Iterator[None]:
        """Within it QEMU may be silent for as long as its disks take.

        ``stop`` flushes them, for minutes where they are slow, as does a live migration's last step. QEMU's main loop
        does nothing else meanwhile: it answers no command, and greets nobody. A QEMU that is dead cannot be told from
        that, but for one that is halted.

        :param way_back: whether the guest is being put back, which nothing else bounds.
        """
        deadline = time.monotonic() + (WAY_BACK_TIMEOUT if way_back else DISK_TIMEOUT)
        self._silent_until.append(deadline)
        try:
            yield
        finally:
            self._silent_until.remove(deadline)

    async def stop(self) -> None:
        """Stop the guest, however long QEMU takes to flush its disks; raises as :meth:`Monitor.execute`."""
        with self.patience():
            await self.monitor.execute("stop")

    async def put_guest_back(self, run_state: str) -> str:
        """Bring the guest into a run state in which it was, as far as QEMU allows; the run state then.

        A sleeping guest whose migration is over cannot be let go on (``LIVE_STATES``), and stays in ``postmigrate``.

        :param run_state: QEMU's run state before a save, or ``paused`` after a load.
        :raises MonitorError: QEMU refused, or was lost.
        """
        started = time.monotonic()
        if run_state == "suspended" and await self.run_state() == "postmigrate":
            return "postmigrate"
        while run_state in LIVE_STATES:
            try:
                await self.monitor.execute("cont")
                break
            except CommandError:
                # Refused at a migration's very end, also for a moment after its last event.
                is_finishing = await self.run_state() == "finish-migrate"
                if time.monotonic() - started > (_FINALIZE_TIMEOUT if is_finishing else _REFUSAL_TIMEOUT):
                    raise
                await asyncio.sleep(0.05)
        now = await self.run_state()
        if run_state not in LIVE_STATES and now == "postmigrate":
            # Only a guest that goes on leaves this state, in which it could not be saved again. Both commands are sent
            # at once, so that it runs for no longer than QEMU takes from the one to the other.
            await asyncio.gather(self.monitor.execute("cont"), self.monitor.execute("stop"))
            now = await self.run_state()
        return now

    async def stop_if_running(self) -> bool:
        """Stop the guest; whether it ran. Raises as :meth:`Monitor.execute`."""
        if await self.run_state() not in LIVE_STATES:
            return False
        await self.stop()
        return True

    async def quit(self) -> None:
        """Tell QEMU to quit, and wait until it has ended.

        :raises MonitorError: it runs after :data:`QUIT_TIMEOUT` seconds.
        """
        watch = ProcessWatch.of(self.process) if self.process else None
        # The connection may end before the answer comes; what it answers does not count, but that it ends.
        with contextlib.suppress(MonitorError):
            await self.twice(lambda: self.monitor.execute("quit"))
        try:
            # Its end is what counts: the connection may lead through another process, which keeps it open.
            ended = watch.wait() if watch else self.monitor.wait_for_end()
            await asyncio.wait_for(ended, QUIT_TIMEOUT)
        except asyncio.TimeoutError:
            raise MonitorError(
                f"{self.label} was told to quit, but its QEMU still runs after {QUIT_TIMEOUT:g} seconds",
                cure="The image can be trusted; end the process by hand before you restore",
            ) from None
        finally:
            if watch:
                watch.close()

    async def end(self) -> None:
        """End a QEMU that holds half a guest, whoever started it.

        :raises MonitorError: it is not known which process it is, and it cannot be told to quit.
        """
        if self.process is None:
            with contextlib.suppress(MonitorMissingError):
                await self.twice(lambda: self.monitor.execute("quit"))
            return
        watch = ProcessWatch.of(self.process)
        try:
            if not self.monitor.lost:
                # It may end before it answers, or be gone already.
                with contextlib.suppress(MonitorError, asyncio.TimeoutError):
                    await within(_END_TIMEOUT, self.monitor.execute("quit"))
                    await watch.wait_at_most(_END_TIMEOUT)
            watch.kill()
            await watch.wait_at_most(_KILL_TIMEOUT)
        finally:
            watch.close()
