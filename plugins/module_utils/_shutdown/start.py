# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Starting a VM again from its disks that was shut down before a maintenance."""

from __future__ import annotations

import contextlib
import time
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._cancellation import despite_cancellation, in_thread
from ansible_collections.vmops.qemu.plugins.module_utils._errors import BusyError, ImageError, LaunchError
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_file import read_image_head
from ansible_collections.vmops.qemu.plugins.module_utils._image.names import image_path
from ansible_collections.vmops.qemu.plugins.module_utils._launch import launch_from_disks
from ansible_collections.vmops.qemu.plugins.module_utils._lock import named_lock
from ansible_collections.vmops.qemu.plugins.module_utils._operation import Run
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import manager, systemd
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.command_line import start_command
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.greeting import doors_of, greeted
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.identity import RecordedIdentity, choose_process
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.launch import Launch, LaunchedQemu
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import find_processes
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.session import VmSession
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.threads import complete_resources
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.unit_launch import StartedService, choose_launch
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.unit_restart import release_restart
from ansible_collections.vmops.qemu.plugins.module_utils._shutdown.record import ShutDownVm, forget
from ansible_collections.vmops.qemu.plugins.module_utils._situation import Situation, guest_in
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.pid_files import update_pid_files
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.provision import Provision

#: Seconds for a start, with the wait for another run that does the same.
START_TIMEOUT = 180.0


class StartOperation(Run):
    """One VM's start: by its unit, or by the command with which it ran. When it runs, it is forgotten that it was shut
    down."""

    def __init__(self, vm: ShutDownVm, save_dir: str, check_mode: bool = False) -> None:
        """:param save_dir: where an image of it would be. :param check_mode: only see what is to be done."""
        super().__init__("", vm.name)
        self.situation = Situation(f"{vm.name} was shut down and does not run", "ended")
        self._vm = vm
        self._image = image_path(None, save_dir, vm.name)
        self._check_mode = check_mode
        #: What is seen to for it.
        self._provision: Provision | None = None

    async def _run(self) -> dict[str, t.Any]:
        started = time.monotonic()
        vm, name = self._vm, self.subject
        held = self.locks.enter_context(named_lock(f"start-{vm.key}", 0.0))
        if held is not None:
            raise BusyError(f"{name} is being started by another run{held}", cure="Wait for its end")
        record = vm.launch
        choice = await choose_process(name, find_processes(name), RecordedIdentity(record.uid, record.unit), True)
        self.warnings += choice.warnings(name)
        why_not = "runs already" if choice.process else f"was saved in {self._image} since" if self._is_saved() else ""
        if why_not:
            if not self._check_mode:
                await self._forget()
            return self._result(False, f"{name} {why_not}")
        needs = vm.read_surroundings().needs
        provision = Provision(name, needs, record.uid, by_unit=bool(record.unit))
        await in_thread(provision.check)
        if self._check_mode:
            return self._result(True, f"{name} would be started again")
        self._provision = provision
        await (self._start_unit() if record.unit else self._start_command())
        await despite_cancellation(self._forget())
        seconds = time.monotonic() - started
        return {**self._result(True, f"{name} was started again in {seconds:.1f} s"), "duration": round(seconds, 3)}

    def _result(self, changed: bool, msg: str) -> dict[str, t.Any]:
        return {"changed": changed, "msg": msg, "warnings": self.warnings}

    def _ended(self) -> Situation:
        return Situation(f"{self.subject} was started and has ended", "ended")

    def _is_saved(self) -> bool:
        """Whether an image has a later state of the guest: the VM was started meanwhile."""
        try:
            head = read_image_head(self._image)
            facts = head.domain().save_facts
        except ImageError:
            return False
        saved = facts.saved_seconds if facts else None
        return head.header.complete and saved is not None and saved > self._vm.at

    async def _forget(self) -> None:
        if self._vm.launch.unit:
            await release_restart(self._vm.launch.unit)
        await in_thread(forget, self._vm)

    async def _start_unit(self) -> None:
        """:raises LaunchError: its unit cannot be started. :raises UnitError: systemd cannot be told."""
        record = self._vm.launch
        await release_restart(record.unit)
        unit = await systemd.read_unit(record.unit)
        if unit.load_state != "loaded":
            raise LaunchError(
                f"The unit {unit.name}, which started {self.subject}, is {unit.load_state}",
                cure=f"See {manager.shown(unit.name, 'status')}; when the VM runs, run the"
                f" task again, or remove {self._vm.path}",
            )
        # What it executes is the unit's affair; the recorded words only tell where QEMU will answer.
        how = Launch(argv=tuple(start_command(record.argv)), cwd=record.cwd, unit=unit.name)
        await self._start(StartedService(how), how)

    async def _start_command(self) -> None:
        how = launch_from_disks(self._vm.launch, self.subject, self._image)
        await self._start(choose_launch(how, self.subject), how)

    async def _start(self, launched: LaunchedQemu, how: Launch) -> None:
        """A QEMU that does not answer is left as it is: its guest may have begun to boot."""
        known = doors_of(how, self.subject, for_image=False)
        with contextlib.ExitStack() as afterwards:
            afterwards.callback(launched.release)
            async with contextlib.AsyncExitStack() as way_back:
                await self._provide(way_back, afterwards)
                await launched.start()
                self.situation = Situation(f"{self.subject} was started", "unknown")
                try:
                    monitor = await self.await_long(
                        f"its QEMU to open its QMP server at {known[0].shown_address}",
                        greeted(launched, known, self.subject),
                    )
                except BaseException:
                    if not await despite_cancellation(launched.ended()):
                        way_back.pop_all()
                    raise
                way_back.pop_all()
            session = await VmSession.open(monitor)
            try:
                self.session = session
                self.situation = Situation(f"{self.subject} was started", guest_in(session.vm.run_state))
                await self._complete(session, how)
            finally:
                await session.close()

    async def _provide(self, way_back: contextlib.AsyncExitStack, afterwards: contextlib.ExitStack) -> None:
        """Make again what QEMU needs to be started: directories, and the server of its TPM, which ends if this fails.

        :raises LaunchError: that cannot be done.
        """
        provision = self._provision
        if provision is None:
            return

        def started(server: LaunchedQemu) -> None:
            way_back.push_async_callback(server.end)
            afterwards.callback(server.release)

        await provision.make_directories()
        await self.await_long("the server of its TPM", provision.start_servers(started))

    async def _complete(self, session: VmSession, how: Launch) -> None:
        """Give a QEMU that runs what its start could not."""
        missing = await complete_resources(session.monitor, how, session.pid)
        self.warnings += [f"{self.subject} has not got all that its QEMU had: {problem}" for problem in missing]
        if session.process and self._provision:
            self.warnings += await self._provision.connect_network(session.process)
            pid_files = self._vm.read_surroundings().pid_files
            self.warnings += await in_thread(update_pid_files, pid_files, session.process)
