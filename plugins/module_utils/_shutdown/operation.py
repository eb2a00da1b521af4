# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Shutting a VM down by ACPI, as its power button would, so that it can be started again as it is now."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._cancellation import despite_cancellation, in_thread
from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    ConflictError,
    LaunchError,
    MonitorError,
    OperationTimeoutError,
    UnitError,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.record import LaunchRecord
from ansible_collections.vmops.qemu.plugins.module_utils._launch import launch_from_disks, launch_record
from ansible_collections.vmops.qemu.plugins.module_utils._operation import Run
from ansible_collections.vmops.qemu.plugins.module_utils._proc import boot_id
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import manager
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.identity import connect_by_process
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import QemuProcess
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process_watch import ProcessWatch, is_alive
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.session import VmSession
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.unit import VmUnit, read_vm_unit
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.unit_restart import hold_restart, release_restart
from ansible_collections.vmops.qemu.plugins.module_utils._shutdown.record import ShutDownVm, forget, keep
from ansible_collections.vmops.qemu.plugins.module_utils._situation import Situation, guest_in
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.supervisor import supervisor_problem
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.survey import look_at_process, look_at_start

#: Seconds between two looks whether the guest has shut down in a QEMU that does not end with it (``-no-shutdown``).
_LOOK_INTERVAL = 1.0

_BY_HAND = "Shut it down by hand; or leave it running (unsaved: ignore)"


class ShutdownOperation(Run):
    """One VM's shutdown; it is kept how the VM is started again (:mod:`_shutdown.record`)."""

    def __init__(self, process: QemuProcess, timeout: float, check_mode: bool = False) -> None:
        """:param timeout: seconds that the guest may take, 0 for no limit. :param check_mode: only see what can be."""
        super().__init__("", process.name)
        self._process = process
        self._timeout = timeout
        self._check_mode = check_mode

    async def _run(self) -> dict[str, t.Any]:
        started = time.monotonic()
        name, process = self.subject, self._process
        await self.locks.take_vm(process)
        unit = await read_vm_unit(process)
        self._require_ours(unit)
        try:
            monitor = await connect_by_process(process)
        except MonitorError:
            if is_alive(process):
                raise
            return {"changed": False, "msg": f"{name} has ended by itself"}
        self.session = await VmSession.open(monitor)
        try:
            run_state = self.session.vm.run_state
            self.situation = Situation("The guest was not touched", guest_in(run_state))
            if run_state != "running":
                raise ConflictError(
                    f"{name} is in QEMU's run state {run_state}, and only a guest that runs can shut down",
                    cure="Wake it (QMP system_wakeup)"
                    if run_state == "suspended"
                    else "Let the guest run (QMP cont), or end it by hand",
                )
            vm = await self._vm(self.session, unit)
            if self._check_mode:
                return {"changed": True, "msg": f"{name} would be shut down"}
            await self._shut_down(self.session, unit, vm)
        finally:
            await self.session.close()
        seconds = time.monotonic() - started
        return {"changed": True, "msg": f"{name} was shut down in {seconds:.1f} s", "duration": round(seconds, 3)}

    def _ended(self) -> Situation:
        return Situation(f"{self.subject} has ended, and is started again by qemu_managed_restore", "ended")

    def _require_ours(self, unit: VmUnit) -> None:
        """:raises LaunchError: somebody else stops and starts it, or may."""
        name, process = self.subject, self._process
        if process.is_of_libvirt:
            raise LaunchError(
                f"{name} is one of libvirt's, which shuts its VMs down and starts them by itself",
                cure="Use virsh shutdown, or libvirt-guests; here leave it running (unsaved: ignore)",
            )
        problem = supervisor_problem(process.pid)
        reason = problem.what if problem and problem.blocks else ""
        if not process.visible:
            reason = f"it is another user's ({process.who}), so it is not known how it was started"
        elif unit.is_of_other_user:
            reason = f"it runs in {unit.name}, a service of another user's own systemd, which that user alone starts"
        elif unit.may_start_vm:
            reason = f"it runs in {unit.name}, but not as its main process, so it is not known what starts it"
        self._require_startable(reason)

    async def _vm(self, session: VmSession, unit: VmUnit) -> ShutDownVm:
        """How it is started again.

        :raises LaunchError: it could not be, so that it is not to be shut down.
        :raises UnitError: only root can start its unit.
        """
        name, process = self.subject, self._process
        around = await look_at_start(session.monitor, process, unit)
        self._require_startable(next((problem.what for problem in around.problems if problem.blocks), ""))
        kept = dataclasses.replace(around, problems=()).dump()
        if unit.starts_vm:  # by its own words
            manager.require_own(unit.name, f"start {unit.name}, which is how {name} was started")
            return self._asked(launch_record(process, unit, ()), kept)
        problems, circumstances = await look_at_process(session.monitor, process, unit)
        record = launch_record(process, unit, problems, circumstances)
        reason = record.reason
        if not reason:
            try:
                launch_from_disks(record, name)
            except LaunchError as error:
                reason = error.what[:1].lower() + error.what[1:]
        self._require_startable(reason)
        return self._asked(record, kept)

    def _asked(self, launch: LaunchRecord, surroundings: str) -> ShutDownVm:
        process = self._process
        return ShutDownVm(
            self.subject, time.time(), launch, surroundings, pid=process.pid, birth=process.birth, boot_id=boot_id()
        )

    def _require_startable(self, reason: str) -> None:
        """:param reason: why it could not be started again, as a clause. :raises LaunchError: there is one."""
        if reason:
            raise LaunchError(f"{self.subject} could not be started again after a shutdown: {reason}", cure=_BY_HAND)

    async def _shut_down(self, session: VmSession, unit: VmUnit, vm: ShutDownVm) -> None:
        asked = False
        try:
            # First, as a run that is cut off after the guest was asked would leave a VM that nobody starts.
            await in_thread(keep, vm)
            if vm.launch.unit and unit.facts:
                await hold_restart(unit.facts)
            asked = True
            self.situation = Situation(f"{vm.name} was asked to shut down and may still do so", "running")
            await session.monitor.execute("system_powerdown")
            await self._wait_for_end(session)
            self.situation = Situation(f"{vm.name} has shut down", "ended")
            await despite_cancellation(in_thread(keep, dataclasses.replace(vm, ended=True)))
        except BaseException:
            await despite_cancellation(self._give_up(vm, asked))
            raise

    async def _give_up(self, vm: ShutDownVm, asked: bool) -> None:
        """Let the unit be as it was. Of a guest that may still shut down it is kept that it was asked to."""
        with contextlib.suppress(UnitError):
            if vm.launch.unit:
                await release_restart(vm.launch.unit)
        with contextlib.suppress(ConflictError):
            if not asked:
                await in_thread(forget, vm)
            elif not is_alive(self._process):
                await in_thread(keep, dataclasses.replace(vm, ended=True))

    async def _wait_for_end(self, session: VmSession) -> None:
        """:raises OperationTimeoutError: the guest has not shut down in time."""
        watch = ProcessWatch.of(self._process)
        deadline = time.monotonic() + (self._timeout or math.inf)
        try:
            while not watch.ended:
                if time.monotonic() > deadline:
                    raise OperationTimeoutError(
                        f"{self.subject} has not shut down within {self._timeout:g} seconds",
                        cure="See whether the guest answers the power button (ACPI); raise shutdown_timeout if it is"
                        " only slow; or shut it down in the guest",
                    )
                await watch.wait_at_most(_LOOK_INTERVAL)
                with contextlib.suppress(MonitorError):  # it is just ending
                    if not watch.ended and await session.run_state() == "shutdown":
                        await session.quit()
        finally:
            watch.close()
