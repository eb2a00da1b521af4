# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Steps that a cancellation must not cut, and such as it must not wait for.

A timeout or a signal cancels an operation's task, wherever it is just then.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import types
import typing as t

_Result = t.TypeVar("_Result")


async def despite_cancellation(work: t.Coroutine[t.Any, t.Any, _Result]) -> _Result:
    """Run ``work`` to its end although this task may be cancelled meanwhile, and return its result.

    For the steps that must not be left half done: putting the guest back, and what follows the rename of a complete
    image. A cancellation that arrives meanwhile has come too late and is dropped.
    """
    task = asyncio.ensure_future(work)
    await _ended(task)
    return task.result()


async def to_its_end(work: t.Coroutine[t.Any, t.Any, _Result]) -> _Result:
    """Run ``work`` to its end as :func:`despite_cancellation` does, for a step after which one may still be cancelled.

    A cancellation that arrived meanwhile is raised when the work is done.
    """
    task = asyncio.ensure_future(work)
    cancelled = await _ended(task)
    result = task.result()
    if cancelled:
        raise cancelled
    return result


async def _ended(task: asyncio.Future[t.Any]) -> asyncio.CancelledError | None:
    """Wait until it is done; the last cancellation that arrived meanwhile."""
    cancelled = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    return cancelled


class WayBack(contextlib.AsyncExitStack):
    """What a transaction undoes where it fails, each undo beside its do; ``pop_all()`` is the point of no return.

    The undoing runs to its end, although a timeout or a signal that began it may be followed by another.
    """

    async def __aexit__(
        self, kind: type[BaseException] | None, cause: BaseException | None, trace: types.TracebackType | None
    ) -> t.Literal[False]:
        """Undo; no undo makes a failure a success."""
        await despite_cancellation(super().__aexit__(kind, cause, trace))
        return False


async def in_thread(function: t.Callable[..., _Result], *arguments: t.Any) -> _Result:
    """Run a blocking call (a flush, a look into a large file) beside the event loop.

    A cancellation is answered at once, since a guest may be waiting to run again; the call itself goes on to its end,
    so it must work on descriptors of its own.
    """
    return await asyncio.get_running_loop().run_in_executor(None, function, *arguments)


async def looking(function: t.Callable[..., _Result], *arguments: t.Any) -> _Result:
    """As :func:`in_thread`, for a call that only looks, and may hang: a file system that does not answer.

    Such a call is left behind, also by the end of the process, which waits for those of :func:`in_thread`.
    """
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[_Result] = loop.create_future()

    def tell(result: _Result | None, error: BaseException | None) -> None:
        if outcome.done():  # nobody waits for it any more
            return
        if error is None:
            outcome.set_result(t.cast("_Result", result))
        else:
            outcome.set_exception(error)

    def work() -> None:
        result, error = None, None
        try:
            result = function(*arguments)
        except BaseException as exc:  # whatever it is, it is raised where it is waited for
            error = exc
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(tell, result, error)

    threading.Thread(target=work, daemon=True).start()
    return await outcome


async def in_stoppable_thread(function: t.Callable[..., _Result], *arguments: t.Any) -> _Result:
    """As :func:`looking`, for long work: ``function`` gets a threading.Event as its last argument.

    A cancellation sets it, and the work must then be given up.
    """
    stop = threading.Event()
    try:
        return await looking(function, *arguments, stop)
    finally:
        stop.set()


async def within(
    timeout: float, work: t.Awaitable[_Result], activity: t.Callable[[], object] = lambda: None
) -> _Result:
    """The result of ``work``, which may take so many seconds; else asyncio.TimeoutError.

    Not asyncio.wait_for: before Python 3.12 it drops a cancellation that arrives when the work is just done, and with
    it the signal that should have put the guest back.

    :param activity: gives a figure; the time begins anew as long as it is another one at its end.
    """
    task = asyncio.ensure_future(work)
    try:
        figure = activity()
        while not (await asyncio.wait({task}, timeout=timeout))[0]:
            before, figure = figure, activity()
            if figure == before:
                raise asyncio.TimeoutError
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            # It may have something to close.
            await asyncio.gather(task, return_exceptions=True)
