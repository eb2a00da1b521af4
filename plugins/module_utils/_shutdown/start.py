# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Starting a VM again from its disks that was shut down before a maintenance."""

from __future__ import annotations

import contextlib
import time
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._cancellation import despite_cancellation, in_thread, looking
from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    BusyError,
    ConflictError,
    ImageNotFoundError,
    LaunchError,
    RequestError,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_file import file_identity
from ansible_collections.vmops.qemu.plugins.module_utils._image.info import directory_info, image_info
from ansible_collections.vmops.qemu.plugins.module_utils._image.names import image_path
from ansible_collections.vmops.qemu.plugins.module_utils._launch import launch_from_disks
from ansible_collections.vmops.qemu.plugins.module_utils._lock import named_lock
from ansible_collections.vmops.qemu.plugins.module_utils._operation import Run
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import manager, systemd
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.command_line import start_command
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.greeting import doors_of, greeted
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.identity import RecordedIdentity, choose_process
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.launch import Launch, LaunchedQemu
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import QemuProcess, find_processes
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.session import VmSession
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.threads import complete_resources
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.unit_launch import StartedService, choose_launch
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.unit_restart import release_restart
from ansible_collections.vmops.qemu.plugins.module_utils._shutdown.record import ShutDownVm, forget, read_again
from ansible_collections.vmops.qemu.plugins.module_utils._shutdown.relation import (
    Image,
    doubtful_image,
    later_image,
    relation,
)
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
        self.situation = self._off = Situation(f"{vm.name} was shut down and does not run", "ended")
        self._vm = vm
        self._save_dir = save_dir
        #: Where its image would be; empty where its name can stand in no file's.
        self._image = ""
        with contextlib.suppress(RequestError):
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
        images = await self._lock_images()
        process = await self._find_process()
        kept = await in_thread(read_again, vm)
        if kept is None:
            return self._result(False, f"{name} was seen to by another run")
        self._vm = vm = kept
        if process and vm.was_asked(process):  # what is kept of it is all that tells of it if it shuts down yet
            self.warnings.append(
                f"{name} was asked to shut down ({vm.when}) and still runs (pid {process.pid}). If it shuts down yet,"
                f" no run starts it again: do it by hand then. If it is to go on, remove {vm.path}"
            )
            return self._result(False, f"{name} was asked to shut down and still runs")
        later = later_image(vm, images)
        why_not = "runs already" if process else f"was saved in {later} since" if later else ""
        if why_not:
            if not self._check_mode:
                await self._forget()
            return self._result(False, f"{name} {why_not}")
        self._require_known(images)
        record, needs = vm.launch, vm.read_surroundings().needs
        provision = await looking(Provision, name, needs, record.uid, bool(record.unit))
        await provision.require(goes_on=False)
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

    async def _lock_images(self) -> list[Image]:
        """The images of the VM, which no other run restores or changes meanwhile.

        :raises ImageAccessError: they cannot be listed.
        :raises ConflictError: another run works on one.
        """
        paths = await in_thread(self._image_paths)
        # A file may have several names, and its lock is taken once.
        for path in {file_identity(path): path for path in paths}.values():
            await self.locks.take_image(path)
        # As they are now that nobody else is at work on them.
        return [image for image in [await in_thread(image_info, path) for path in paths] if image["exists"]]

    def _image_paths(self) -> list[str]:
        try:
            images = directory_info(self._save_dir)
        except ImageNotFoundError:
            images = []
        if self._image and all(image["path"] != self._image for image in images):  # a link is not listed
            images.append(image_info(self._image))
        found = [image["path"] for image in images if image["exists"] and relation(self._vm, image)]
        return list(dict.fromkeys(found))

    async def _find_process(self) -> QemuProcess | None:
        """The VM's QEMU. One that waits for the state of an image ends with that restore, where it fails.

        :raises ConflictError: another run works on it.
        """
        name, record = self.subject, self._vm.launch
        process = None
        for _time in range(2):
            choice = await choose_process(name, find_processes(name), RecordedIdentity(record.uid, record.unit), True)
            process = choice.process
            self.situation = self._off if process is None else Situation(f"{name} has a QEMU (pid {process.pid})")
            if process is None:
                break
            await self.locks.take_vm(process)
        self.warnings += choice.warnings(name)
        return process

    def _require_known(self, images: t.Sequence[Image]) -> None:
        """:raises ConflictError: it is not known that the VM is as it was when it was shut down."""
        vm = self._vm
        image = doubtful_image(vm, images)
        if image:
            problems = "; ".join(image["problems"]) or "when it was saved is not known, or nobody vouches for it"
            raise ConflictError(
                f"{image['path']} may have a later state of {vm.name} than its disks: {problems}",
                cure=f"If it has none, move it elsewhere, and run the task again; if it has, restore it, and remove"
                f" {vm.path}",
            )
        if not vm.ended:
            raise ConflictError(
                f"{vm.name} was asked to shut down ({vm.when}) and does not run, but the run that asked has not seen"
                " its end: it may since have been shut down for good, or run on another host",
                cure=f"If it is to run here, start it by hand; if not, remove {vm.path}",
            )

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
