# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Restoring the saved VMs of a host, or some of them: each once, from its last save, in groups, some at a time.

VMs that :mod:`_host.save` has shut down are started again in the same groups.

Images that are not to be restored (an older save, a copy, a checkpoint, one that was saved for another reason) are
named and left alone. An image that cannot be restored (it is damaged, or its QEMU does not start) is named and kept,
and the others go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import time
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._cancellation import in_thread
from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    ConflictError,
    HostRunError,
    ImageNotFoundError,
    one_line,
)
from ansible_collections.vmops.qemu.plugins.module_utils._file_system import lasting
from ansible_collections.vmops.qemu.plugins.module_utils._host.choice import (
    Choice,
    HostRestoreRequest,
    RestoreTask,
    choose,
    image_names,
    names_of_shut_down,
)
from ansible_collections.vmops.qemu.plugins.module_utils._host.health_check import why_check_fails
from ansible_collections.vmops.qemu.plugins.module_utils._host.journal import Journal
from ansible_collections.vmops.qemu.plugins.module_utils._host.rates import keep_rate
from ansible_collections.vmops.qemu.plugins.module_utils._host.result import (
    Clock,
    count,
    host_result,
    is_not_done,
    state_of,
)
from ansible_collections.vmops.qemu.plugins.module_utils._host.run_lock import (
    INTERVAL,
    Patience,
    host_run_lock,
    single_operations,
    would_wait,
)
from ansible_collections.vmops.qemu.plugins.module_utils._host.turns import (
    Turns,
    have_threads_for,
    outcome_of,
    to_the_end,
)
from ansible_collections.vmops.qemu.plugins.module_utils._host_memory import MemoryLedger
from ansible_collections.vmops.qemu.plugins.module_utils._image.info import directory_info
from ansible_collections.vmops.qemu.plugins.module_utils._names import VmNames, label_of_unit
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import systemd
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import QemuProcess, has_open, list_processes
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.selection import own_name
from ansible_collections.vmops.qemu.plugins.module_utils._restore.operation import RestoreOperation
from ansible_collections.vmops.qemu.plugins.module_utils._shutdown.record import ShutDownVm, forget, read_all
from ansible_collections.vmops.qemu.plugins.module_utils._shutdown.start import START_TIMEOUT, StartOperation
from ansible_collections.vmops.qemu.plugins.module_utils._situation import Situation


class HostRestoreOperation:
    """All restores of one run; ``situation`` says at any time how the guests are."""

    def __init__(self, request: HostRestoreRequest, journal: Journal) -> None:
        self.request = request
        self.subject = "the saved VMs of this host"
        self.situation = Situation("No VM was touched")
        self._journal = journal
        self._turns: Turns | None = None
        self._vms: list[dict[str, t.Any]] = []
        #: What became of the VMs that were to be started again.
        self._started: list[dict[str, t.Any]] = []
        #: Why it is not known which those are, as a sentence.
        self._unknown = ""
        self._choice = Choice([], [], [])
        self._unhealthy: list[str] = []
        self._stopped_by = ""
        #: Of what else is at work, where this run does not wait for it.
        self._at_work: list[str] = []
        self._clock = Clock()
        self._memory = MemoryLedger()

    async def run(self) -> dict[str, t.Any]:
        """Do it.

        :returns: the module's return values.
        :raises HostRunError: not all are back; what became of each is in its result.
        :raises ImageAccessError: the directory cannot be read.
        :raises BusyError: another run over VMs is at work; nothing was touched.
        """
        return await to_the_end(self._run(), self.stop)

    def stop(self, by: str) -> None:
        """Give up what is at work, and begin no further restore.

        No QEMU with half a guest stays, and the images are kept.

        :param by: what asks for it, such as the name of a signal.
        """
        self._stopped_by = self._stopped_by or by
        if self._turns:
            self._turns.stop(by)

    async def _run(self) -> dict[str, t.Any]:
        have_threads_for(self.request.parallel)
        save_dir, timeout = self.request.save_dir, self.request.common["timeout"]
        async with contextlib.AsyncExitStack() as stack:
            if self.request.check_mode:
                self._at_work = would_wait(save_dir, single_operations("save", save_dir))
            else:
                lock = host_run_lock(save_dir, timeout, self._journal, lambda: self._stopped_by)
                await stack.enter_async_context(lock)
                await self._wait_for_saves()
            return await self._restore_all()

    async def _restore_all(self) -> dict[str, t.Any]:
        turns = self._turns = Turns(self.request.parallel)
        if self._stopped_by:
            turns.stop(self._stopped_by)
        self._choice = await in_thread(self._find)
        restoring = time.monotonic()
        for group in self._choice.groups:
            await asyncio.gather(
                *(
                    self._restore(turns, task) if isinstance(task, RestoreTask) else self._start(turns, task)
                    for task in group
                )
            )
        took = time.monotonic() - restoring
        result = self._result()
        if result["failures"] or self._choice.unusable or self._unhealthy or self._unknown:
            raise HostRunError(
                ". ".join(self._what_is_wrong()),
                cure="Remove the reason, then run the task again: it goes on with those that are left",
                situation=Situation(f"{count(self._restored())} {_is(self._restored())} back"),
                result=result,
            )
        changed = [vm for vm in self._vms if vm["changed"]]
        if changed and not self.request.check_mode and all(vm["changed"] for vm in self._vms):
            keep_rate("restore", sum(vm["image_bytes"] for vm in changed), took)
        return {**result, "msg": self._success(took)}

    # --- finding ---

    async def _wait_for_saves(self) -> None:
        """A save of one VM that is at work makes its image only at its end; it would be missed.

        One that hangs keeps the other VMs waiting no longer than its time.
        """
        patience = Patience(self.request.common["timeout"], self._journal)
        while not self._stopped_by:
            saves = single_operations("save", self.request.save_dir)
            if not saves or not patience.lasts(saves):
                return
            await asyncio.sleep(INTERVAL)

    def _find(self) -> Choice:
        """What is to be restored; what is not is named."""
        try:
            images = directory_info(self.request.save_dir)
        except ImageNotFoundError:
            self._journal.say(f"there is no directory {self.request.save_dir}: nothing to restore")
            images = []
        try:
            shut_down = read_all()
        except ConflictError as error:  # no reason to leave the others
            shut_down = []
            self._unknown = str(error)
            self._journal.complain(self._unknown)
        processes = list_processes()
        choice = choose(
            images,
            shut_down,
            self.request,
            functools.partial(_runs, processes),
            lambda image: any(has_open(process.pid, image["path"]) for process in processes),
        )
        self._forget_outdated(choice)
        for image in choice.left_alone:
            self._journal.say(f"{image['path']}: left alone, {image['why']}")
        for image in choice.unusable:
            problems = "; ".join(image["problems"])
            self._journal.complain(f"{image['path']}: not restored, {image['state']}: {problems}")
        return choice

    def _forget_outdated(self, choice: Choice) -> None:
        """So that it is not taken for the last thing that was done to a VM when its image is used up."""
        for vm, path in choice.outdated:
            self._journal.say(f"{vm.name}: not started from its disks, as it was saved in {path} since")
            try:
                if not self.request.check_mode:
                    forget(vm)
            except ConflictError as error:
                self._unknown = str(error)
                self._journal.complain(self._unknown)

    # --- restoring ---

    async def _restore(self, turns: Turns, task: RestoreTask) -> None:
        """One VM's restore, when its turn comes."""
        self.situation = Situation("Some of the VMs may have been restored")
        request = self.request.of(task)
        size = _allocated(task.path)
        tried: list[RestoreOperation] = []

        def make() -> RestoreOperation:
            tried.append(RestoreOperation(request, self._memory, sets_clock=False))
            return tried[-1]

        result = await outcome_of(
            turns.take(make, self.request.option(task.names, "timeout"), lambda: os.path.exists(task.path)),
            f"{task.path}: another run has restored it",
        )
        if tried and not result["failed"]:
            # Its turn is over: an agent that does not answer keeps no other VM waiting.
            result = await tried[-1].set_clock(result)
        state = state_of(result, "predicted" if self.request.check_mode else "restored")
        vm = {**result, "name": task.names.own, "path": task.path, "state": state, "image_bytes": size}
        self._vms.append(vm)
        if is_not_done(vm):
            self._journal.complain(f"{task.path}: {result['msg']}")
            return
        self._journal.say(result["msg"])
        for warning in result.get("warnings", ()):
            self._journal.complain(warning)
        await self._check_health(task.names, vm)

    async def _start(self, turns: Turns, vm: ShutDownVm) -> None:
        """One VM's start from its disks, when its turn comes."""
        self.situation = Situation("Some of the VMs may have been started")
        operation = functools.partial(StartOperation, vm, self.request.save_dir, self.request.check_mode)
        result = await outcome_of(turns.take(operation, START_TIMEOUT), "")
        state = state_of(result, "predicted" if self.request.check_mode else "started")
        started = {**result, "name": vm.name, "state": state}
        self._started.append(started)
        if is_not_done(started):
            self._journal.complain(result["msg"])
            return
        self._journal.say(result["msg"])
        await self._check_health(names_of_shut_down(vm), started)

    async def _check_health(self, names: VmNames, vm: dict[str, t.Any]) -> None:
        command = self.request.option(names, "health_check")
        if command and not self.request.check_mode:
            timeout = self.request.option(names, "health_check_timeout")
            reason = await why_check_fails(command, names.name or names.own, timeout)
            vm["health_check"] = reason or "passed"
            if reason:
                self._unhealthy.append(names.own)
                self._journal.complain(f"{names.own} is back, but its health check did not pass: {reason}")

    # --- the result ---

    def _restored(self) -> int:
        return sum(vm["state"] == "restored" for vm in self._vms)

    def _what_is_wrong(self) -> list[str]:
        told = [
            f"{vm['name']} was not restored, its image is kept: {vm['msg'].rstrip('.')}"
            for vm in self._vms
            if is_not_done(vm)
        ]
        told += [
            f"{vm['name']} was shut down and was not started again: {vm['msg'].rstrip('.')}"
            for vm in self._started
            if is_not_done(vm)
        ]
        if self._unknown:
            told.append(self._unknown.rstrip("."))
        told += [
            f"{image['path']} cannot be restored, it is kept: {'; '.join(image['problems'])}"
            for image in self._choice.unusable
        ]
        return told + [f"{name} runs, but its health check did not pass" for name in self._unhealthy]

    def _success(self, took: float) -> str:
        changed = [vm for vm in self._vms if vm["changed"]]
        if self.request.check_mode:
            what = f"{count(len(changed))} would be restored"
        elif changed:
            what = f"{count(len(changed))} {'was' if len(changed) == 1 else 'were'} restored in {took:.1f} s"
        else:
            what = "No VM is to be restored"
        started = sum(vm["changed"] for vm in self._started)
        if started:
            verb = "would be" if self.request.check_mode else "was" if started == 1 else "were"
            what += f"; {count(started)} {verb} started again"
        left = len(self._choice.left_alone)
        return one_line(f"{what}; {left} image{' is' if left == 1 else 's are'} left alone" if left else what)

    def _result(self) -> dict[str, t.Any]:
        place = lasting(self.request.save_dir)
        result = host_result(self._vms, self._clock, self._started)
        return {
            **result,
            "warnings": [*self._at_work, *result["warnings"]],
            "started": [{key: value for key, value in vm.items() if key != "warnings"} for vm in self._started],
            "unhealthy": self._unhealthy,
            "unusable": self._choice.unusable,
            "left_alone": self._choice.left_alone,
            "save_dir_volatile": place.place if place.is_refused else "",
            "running": [
                {
                    "name": process.name,
                    "own_name": own_name(process) or label_of_unit(systemd.unit_of_process(process.pid)),
                    "pid": process.pid,
                }
                for process in list_processes()
            ],
        }


def _runs(processes: t.Sequence[QemuProcess], image: t.Mapping[str, t.Any]) -> bool:
    """Whether there is a QEMU that may be that of an image's VM, or has the image open."""
    names = image_names(image)
    return any(
        process.name == names.name
        or (process.uuid and process.uuid == names.uuid)
        or (not process.name and has_open(process.pid, image["path"]))
        for process in processes
    )


def _allocated(path: str) -> int:
    """Bytes that a file takes; 0 where it is not there."""
    try:
        return os.stat(path).st_blocks * 512
    except OSError:
        return 0


def _is(number: int) -> str:
    return "is" if number == 1 else "are"
