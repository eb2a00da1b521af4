# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One run at a time over the VMs that have their images in one directory: a lock that ends with the run that holds it.

A save that lists the VMs while a restore is at work misses those that come back behind it, and whose images are gone
then; and what a save reports as saved, a restore beside it brings back, or another save that is rolled back. Which VMs
a run will touch is known only when it is at work, so runs that are asked for different VMs wait for each other, too.

They follow one another in the order in which their processes began: a restore that waits already would else bring back
what a later save has saved before it. That order is known from what they publish (``progress``); the lock is the
kernel's, and excludes also a run that could not publish itself. Who holds it waits for no other run of this kind, and
who waits holds nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import os
import time
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    BusyError,
    ConflictError,
    InterruptedOperationError,
)
from ansible_collections.vmops.qemu.plugins.module_utils._host.journal import Journal
from ansible_collections.vmops.qemu.plugins.module_utils._host.progress import HostRun, read_host_runs
from ansible_collections.vmops.qemu.plugins.module_utils._lock import named_lock
from ansible_collections.vmops.qemu.plugins.module_utils._proc import birth_of
from ansible_collections.vmops.qemu.plugins.module_utils._progress import read_progress

#: Seconds between two looks at the runs of others.
INTERVAL = 0.5

_DOES = {"save": "saves", "restore": "restores"}
_DONE = {"save": "saved", "restore": "restored"}

#: What is waited for: clauses, each with figures that change while it is seen to work.
Others = t.Dict[str, object]


class Patience:
    """How long others are waited for: their time begins anew whenever one of them has come further."""

    def __init__(self, timeout: float, journal: Journal) -> None:
        """:param timeout: seconds; 0 for no limit. :param journal: where it is told what is waited for."""
        self._timeout = timeout or math.inf
        self._journal = journal
        self._told: set[str] = set()
        self._seen: Others = {}
        self._deadline = 0.0

    def lasts(self, others: Others) -> bool:
        """Whether they are to be waited for still."""
        for other in sorted(others.keys() - self._told):
            self._journal.say(f"waiting, as {other}")
        self._told |= others.keys()
        if others != self._seen:
            self._seen, self._deadline = others, time.monotonic() + self._timeout
        return time.monotonic() < self._deadline


@contextlib.asynccontextmanager
async def host_run_lock(
    save_dir: str,
    timeout: float,
    journal: Journal,
    stopped_by: t.Callable[[], str] = lambda: "",
    besides: t.Callable[[], Others] = dict,
) -> t.AsyncIterator[None]:
    """Wait for the runs that are at work, and keep others from beginning.

    :param save_dir: the directory of the images.
    :param timeout: seconds for which they are waited for without any of them coming further; 0 for no limit.
    :param journal: where it is told what is waited for.
    :param stopped_by: what asks this run not to wait any more, as a noun; empty where nothing does.
    :param besides: what else is to be waited for.
    :raises BusyError: one is still at work.
    :raises InterruptedOperationError: this run was asked not to wait any more.
    :raises ConflictError: there is no place for the lock.
    """
    patience = Patience(timeout, journal)
    while True:
        others = {**_told(run for run in runs_at_work(save_dir) if _is_earlier(run)), **besides()}
        if not others:
            with _named_lock(save_dir) as holder:
                if holder is None:
                    yield
                    return
            others = _told(runs_at_work(save_dir)) or {f"another run works on VMs in {save_dir}{holder}": None}
        if stopped_by():
            raise InterruptedOperationError.of(f"the VMs in {save_dir}", stopped_by())
        if not patience.lasts(others):
            raise BusyError(
                f"This run has waited for others, none of which came further within {timeout:g} seconds:"
                f" {'; '.join(sorted(others))}",
                cure="Wait for their end (vmops.qemu.qemu_progress_info tells how far they are), or see why they hang;"
                " then run the task again",
            )
        await asyncio.sleep(INTERVAL)


def would_wait(save_dir: str, besides: Others) -> list[str]:
    """What check mode, which does not wait, has to tell of the runs for which it would.

    :param save_dir: the directory of the images.
    :param besides: what else would be waited for.
    """
    others = {**_told(runs_at_work(save_dir)), **besides}
    return [f"The plan may be another one soon, as {other}, whose end would be waited for" for other in sorted(others)]


def runs_at_work(save_dir: str) -> list[HostRun]:
    """The other runs over the VMs in this directory, those that wait among them."""
    return [run for run in read_host_runs() if run.pid != os.getpid() and _is_same(run.save_dir, save_dir)]


def restores_elsewhere(save_dir: str) -> Others:
    """The restores of VMs from other directories, after which more VMs run on this host."""
    return _told(
        run
        for run in read_host_runs()
        if run.operation == "restore" and not _is_same(run.save_dir, save_dir) and _is_earlier(run)
    )


def single_operations(operation: str, save_dir: str) -> Others:
    """The VMs that are saved, or restored, each by itself, with an image in this directory.

    :param operation: ``save`` or ``restore``.
    """
    of_runs = {os.getpid(), *(run.pid for run in read_host_runs())}
    return {
        f"{progress.vm} is being {_DONE[operation]} (pid {progress.pid})": (progress.phase, progress.bytes_done)
        for progress in read_progress()
        if progress.operation == operation
        and progress.pid not in of_runs
        and _is_same(os.path.dirname(progress.image), save_dir)
    }


def _told(runs: t.Iterable[HostRun]) -> Others:
    at_work = read_progress()
    return {
        f"a run {_DOES.get(run.operation, 'works on')} VMs in {run.save_dir} (pid {run.pid})": (
            len(run.lines),
            [(progress.vm, progress.phase, progress.bytes_done) for progress in at_work if progress.pid == run.pid],
        )
        for run in runs
    }


def _is_earlier(run: HostRun) -> bool:
    """Whether another run's process began before this one, or comes first of those that began at one moment."""
    return (run.birth, run.pid) < (birth_of(os.getpid()) or 0, os.getpid())


def _is_same(directory: str, other: str) -> bool:
    return os.path.realpath(directory) == os.path.realpath(other)


@contextlib.contextmanager
def _named_lock(save_dir: str) -> t.Iterator[str | None]:
    """Hold the lock of a directory of images.

    :returns: None where it is held; else who holds it, as a part of a sentence, which may be empty.
    :raises ConflictError: there is no place for it.
    """
    name = hashlib.sha256(os.fsencode(os.path.realpath(save_dir))).hexdigest()[:32]
    with contextlib.ExitStack() as stack:
        try:
            holder = stack.enter_context(named_lock(f"host-run-{name}", 0))
        except OSError as error:
            raise ConflictError(
                f"The VMs in {save_dir} cannot be kept from other runs: {error.filename or ''} {error.strerror}",
                cure="Give the directory to the user that runs the task, with the mode 0700",
            ) from error
        yield holder
