# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The runs on a host's VMs, each of one VM, some at a time; and what each has come to."""

from __future__ import annotations

import asyncio
import concurrent.futures
import math
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._cancellation import despite_cancellation
from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    BusyError,
    InterruptedOperationError,
    NotBegunError,
    OperationTimeoutError,
    VmopsError,
    one_line,
)
from ansible_collections.vmops.qemu.plugins.module_utils._operation import Run
from ansible_collections.vmops.qemu.plugins.module_utils._situation import Situation

#: Seconds between two tries where another run (a controller's, a service's) works on the same VM or image.
BUSY_INTERVAL = 2.0

_Result = t.TypeVar("_Result")


class Turns:
    """Lets runs have their turn. It must be made inside the event loop (a semaphore of Python 3.9 belongs to one)."""

    def __init__(self, parallel: int) -> None:
        """:param parallel: how many runs are at work at a time."""
        self._free = asyncio.Semaphore(parallel)
        self._working: set[asyncio.Task[dict[str, t.Any]]] = set()
        #: Why no further run begins, as a clause; empty while they do.
        self.closed = ""
        #: What stops the runs that are at work, as a noun; empty where nothing does.
        self._stopped_by = ""

    def close(self, why: str) -> None:
        """Let no further run begin.

        :param why: as a clause, such as ``db1 could not be saved``.
        """
        self.closed = self.closed or why

    def stop(self, by: str) -> None:
        """Give up the runs that are at work, each of which puts its guest back, and let no further one begin.

        A second call does nothing: it must not cut the way back short.

        :param by: what asks for it, such as the name of a signal.
        """
        if not self._stopped_by:
            self._stopped_by = by
            self.close(f"{by} came before")
            for task in self._working:
                task.cancel()

    def reopen(self) -> None:
        """Let runs begin again: those that put back what others have done."""
        self.closed = self._stopped_by = ""

    async def take(
        self, make: t.Callable[[], Run], timeout: float, is_left: t.Callable[[], bool] = lambda: True
    ) -> dict[str, t.Any] | None:
        """Run what ``make`` makes when its turn comes, and after another run that works on the same VM or image.

        :param make: makes the run, each time that it is tried.
        :param timeout: seconds that it may take from its turn on, with the time for which it waits for others; 0 for no
            limit.
        :param is_left: whether there is still something to do, after another run was at work.
        :returns: the run's return values; None where nothing was left to do.
        :raises NotBegunError: its turn did not come any more.
        :raises VmopsError: it failed, or was given up; the guest is then as the error says.
        """
        deadline = 0.0
        while True:
            async with self._free:
                if self.closed:
                    raise NotBegunError(f"Not begun, since {self.closed}")
                deadline = deadline or _now() + (timeout or math.inf)
                try:
                    return await self._run(make(), deadline, timeout)
                except BusyError:
                    if _now() + BUSY_INTERVAL > deadline:
                        raise
            await asyncio.sleep(BUSY_INTERVAL)
            if not is_left():
                return None

    async def _run(self, run: Run, deadline: float, timeout: float) -> dict[str, t.Any]:
        """One run to its end, to its deadline (of the event loop's clock), or to :meth:`stop`."""
        task = asyncio.ensure_future(run.run())
        self._working.add(task)
        try:
            left = None if math.isinf(deadline) else max(0.0, deadline - _now())
            done, _pending = await asyncio.wait({task}, timeout=left)
            if not done:
                task.cancel()
            return await task
        except asyncio.CancelledError:
            if self._stopped_by:
                raise InterruptedOperationError.of(run.subject, self._stopped_by, run.situation) from None
            raise OperationTimeoutError.of(run.subject, timeout, run.situation, run.awaited) from None
        finally:
            self._working.discard(task)


def have_threads_for(parallel: int) -> None:
    """Give this event loop enough threads: a flush of one image must not keep another guest's way back waiting.

    :param parallel: how many runs are at work at a time.
    """
    executor = concurrent.futures.ThreadPoolExecutor(max_workers=4 * parallel + 4)
    asyncio.get_running_loop().set_default_executor(executor)


async def to_the_end(work: t.Coroutine[t.Any, t.Any, _Result], stop: t.Callable[[str], None]) -> _Result:
    """The result of work on several VMs; a cancellation of this task stops it, and is answered by its result.

    So what became of each VM is told also when the work was interrupted.

    :param stop: asks the work to come to its end.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if not task.done():
            stop("a signal")
        return await despite_cancellation(_result_of(task))


async def _result_of(task: asyncio.Task[_Result]) -> _Result:
    return await task


async def outcome_of(work: t.Awaitable[dict[str, t.Any] | None], nothing_left: str) -> dict[str, t.Any]:
    """What a run has come to, as the element of ``vms`` has it: its return values, or those of its failure.

    :param nothing_left: what there is to be said where it found nothing left to do.
    """
    try:
        result = await work
    except NotBegunError as error:
        return {"changed": False, "failed": False, "skipped": True, "msg": one_line(error.what)}
    except VmopsError as error:
        return {"changed": False, "failed": True, **error.as_result()}
    except Exception as error:  # a bug of ours with one VM is no reason to leave the others
        words = f"unexpected error, please report it: {type(error).__name__}: {str(error)[:300]}"
        return {"changed": False, "failed": True, "msg": one_line(words), **Situation().words()}
    if result is None:
        return {"changed": False, "failed": False, "msg": one_line(nothing_left)}
    return {**result, "failed": False, "msg": one_line(result["msg"])}


def _now() -> float:
    return asyncio.get_running_loop().time()
