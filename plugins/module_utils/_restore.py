# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Restoring a VM from a save image into a QEMU that waits for it, read from top to bottom.

Check the image; find or start the QEMU; check that the two fit, since QEMU itself takes some that do not (a VM with
more memory) and reports success; let QEMU load; let the guest run; only then remove the image. A QEMU that failed to
load cannot be used again, so it is ended; the image stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import sys
import time
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._cancellation import (
    despite_cancellation,
    in_stoppable_thread,
    in_thread,
    within,
)
from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    ConflictError,
    DiskMismatchError,
    ForeignQemuError,
    ImageError,
    ImageFormatError,
    ImageNotFoundError,
    ImagePartialError,
    ImageUnsupportedError,
    LaunchError,
    MigrationError,
    MismatchError,
    MonitorBusyError,
    MonitorError,
    MonitorLostError,
    MonitorMissingError,
    MonitorProtocolError,
    RequestError,
    UnsupportedByQemuError,
    VmNotFoundError,
    VmopsError,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image import domain_xml
from ansible_collections.vmops.qemu.plugins.module_utils._image.compression import (
    COMPRESSORS,
    Filter,
    make_pipe,
    read_compressed_head,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.digest import digest_problems
from ansible_collections.vmops.qemu.plugins.module_utils._image.edit import mark_checkpoint
from ansible_collections.vmops.qemu.plugins.module_utils._image.file import (
    ImageHead,
    direct_read_reason,
    image_path,
    open_image_of,
    read_image_head,
    remove_image,
    require_image_of,
    require_loadable_image,
    require_removable,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.header import ImageFormat
from ansible_collections.vmops.qemu.plugins.module_utils._image.identity import ImageIdentity
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_errors import cure_for
from ansible_collections.vmops.qemu.plugins.module_utils._image.last_save import mark_superseded, newer_image
from ansible_collections.vmops.qemu.plugins.module_utils._image.stream import StreamFacts, read_stream
from ansible_collections.vmops.qemu.plugins.module_utils._image.verify import structure_problems
from ansible_collections.vmops.qemu.plugins.module_utils._image.vouching import is_vouched
from ansible_collections.vmops.qemu.plugins.module_utils._interrupted_restore import (
    InterruptedRestore,
    RestoreRecord,
)
from ansible_collections.vmops.qemu.plugins.module_utils._interrupted_save import InterruptedSave
from ansible_collections.vmops.qemu.plugins.module_utils._launch import (
    free_units,
    freeable_unit,
    recorded_identity,
    recorded_launch,
    require_vouched,
)
from ansible_collections.vmops.qemu.plugins.module_utils._operation import (
    Locks,
    check_parallel_channels,
    connect_to_vm,
    default_parallel_channels,
    ended_vm,
    image_result,
    image_state,
    is_last_migration,
    put_guest_back,
    qemu_has_ended,
    twice,
)
from ansible_collections.vmops.qemu.plugins.module_utils._progress import Measure, Publisher
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import command_line
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.configuration import read_configuration
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.fdset import DescriptorSet
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.identity import (
    RecordedIdentity,
    process_behind,
    why_not_to_load,
)
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.migration import (
    Migration,
    MigrationSettings,
    MigrationSupport,
    query_state,
    read_support,
)
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.monitor import Monitor, event_seconds
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import (
    Launch,
    LaunchedQemu,
    ProcessWatch,
    QemuProcess,
    bytes_read,
)
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.systemd import unit_of_process
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.unit import choose_launch
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.vm import (
    RunningVm,
    read_ram_blocks,
    read_vm,
)
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.media_changes import changed_media, other_media
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.memory import empty_memory, memory_files
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.record import Surroundings
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.survey import read_all_media
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.verdict import Problem, blocking

#: Seconds that a QEMU may take from its start to its QMP greeting.
LAUNCH_TIMEOUT = 60.0

#: Seconds between two looks for the QMP socket of a QEMU that is just starting; nothing announces it.
_LAUNCH_INTERVAL = 0.02

#: Seconds that QEMU may take to see that the tool that expands its image has failed.
_EXPANDER_GRACE = 2.0

#: Seconds that a QEMU of no use may take to quit before it is killed.
_END_TIMEOUT = 5.0

#: Seconds between two looks for a QEMU that someone else starts.
_ATTACH_INTERVAL = 0.25


@dataclasses.dataclass(frozen=True)
class RestoreRequest:
    """The options of C(qemu_restore), as its documentation describes them; None leaves the choice to the operation."""

    name: str | None
    qmp_socket: str | None
    path: str | None
    save_dir: str
    state: str = "as_saved"
    parallel_channels: int | None = None
    bypass_cache: bool | None = None
    launch: str = "recorded"
    attach_timeout: float = 0.0
    command: list[str] | None = None
    verify: str = "structure"
    remove_image: bool = True
    disks: str = "check"
    check_mode: bool = False


class RestoreOperation:
    """One restore; C(guest_state) says at any time, in a sentence, how the guest is."""

    def __init__(self, request: RestoreRequest) -> None:
        self.request = request
        self.path = image_path(request.path, request.save_dir, request.name)
        self.subject = request.name or self.path
        self.guest_state = "The guest was not touched"
        self.reasons: dict[str, str] = {}
        self.locks = Locks()
        #: The VM's QEMU, where one was found, as soon as it is known.
        self.process: QemuProcess | None = None
        #: What is to be known of how QEMU is started, or the empty string.
        self.launch_warning = ""
        #: What surrounded the VM when it was saved, where the image records it and it is to be compared.
        self.surroundings: Surroundings | None = None
        #: What is to be known of how it went, and of what could not be compared.
        self.warnings: list[str] = []
        #: How image and VM were found, for diff mode.
        self.before = {"image": image_state(self.path), "vm": "ended"}

    async def run(self) -> dict[str, t.Any]:
        """Do it.

        :returns: the module's return values.
        :raises VmopsError: with C(guest_state) filled in.
        """
        try:
            with self.locks:
                return await self._run()
        except VmopsError as exc:
            lost = isinstance(exc, MonitorLostError)
            if not exc.guest_state and lost and await qemu_has_ended(self.process, lost):
                image = "kept" if os.path.lexists(self.path) else "removed already"
                exc.guest_state = f"{self.subject} is not running, as its QEMU has ended; its image was {image}"
            exc.guest_state = exc.guest_state or self.guest_state
            if isinstance(exc, ImageFormatError):
                exc.cure = exc.cure or "Restore an intact copy, or start the VM from its disks"
            raise

    async def _run(self) -> dict[str, t.Any]:
        started = time.monotonic()
        self.locks.take_image(self.path)
        head = self._read_head()
        domain = head.domain() if head else None
        name = self.request.name or (domain.name if domain else None)
        self.subject = name or self.subject
        if domain:
            require_image_of(self.path, domain.name, self.request.name)
        recorded = recorded_identity(domain)
        monitor = await self._find(name, recorded, must_match=head is not None)
        try:
            vm = await read_vm(monitor) if monitor else None
            if monitor and vm is not None:
                if head:
                    self._require_trusted(monitor, vm.process, recorded)
                self.process = vm.process
                self.before["vm"] = vm.run_state
                self.guest_state = f"{vm.label} was not touched (QEMU's run state is {vm.run_state})"
                self._require_same_vm(vm, domain)
                if vm.process:
                    self.locks.take_vm(vm.process)
            if monitor and vm:
                interrupted = await InterruptedRestore.find(monitor, vm.process)
                if interrupted:
                    result = await self._end_interrupted_restore(monitor, vm, head, interrupted)
                    if result:
                        return result
                    if monitor.lost:
                        monitor = vm = None
            if monitor and vm and vm.run_state != "inmigrate":
                return await self._with_running_vm(monitor, vm, head)
            if head is None or domain is None:
                archived = image_result(self.path)["state"] == "archived"
                raise ImageNotFoundError(
                    self.path,
                    f"there is no image to restore, and {self.subject} is not running",
                    cure="It was archived: expand it first (vmops.qemu.qemu_save_image with archive: none)"
                    if archived
                    else "Check name, path and save_dir (vmops.qemu.qemu_save_image_info lists a directory)",
                    guest_state=self.guest_state if vm else f"{self.subject} is not running",
                )
            if vm is None:
                self.guest_state = f"{self.subject} is not running, and its image is untouched"
                if self.request.launch == "recorded":
                    # Before the files are looked at that it names.
                    require_vouched(self.path, domain)
            if self.request.disks == "check":
                await in_thread(self._require_last_save, head)
                await in_thread(self._require_same_disks, head, domain, monitor is not None)
            self._require_loadable(vm)
            stream = await self._check_image(head)
            machine = stream.machine if stream and stream.machine else domain.machine
            qemu = monitor or await self._how_to_launch(domain, machine)
            if self.request.check_mode:
                if monitor and vm:
                    await _require_fit(monitor, vm, head, domain, stream)
                    await self.require_same_media(monitor, vm.process, head)
                after = self._outcome(self._wants_running(head))
                return self._result(f"{self.subject} would be restored from {self.path}", vm, after)
            return await _Transaction(self, head, domain, stream).run(qemu, started)
        finally:
            if monitor:
                # A cancellation comes too late here: the work is done, or undone.
                await despite_cancellation(monitor.close())

    # --- deciding ---

    def _read_head(self) -> ImageHead | None:
        try:
            head = read_image_head(self.path)
        except ImageNotFoundError:
            return None
        if not head.header.complete:
            problems = image_result(self.path)["problems"]
            raise ImagePartialError(
                self.path,
                problems[0] if problems else "the image is partial",
                cure="If the guest still runs, save it again; else start it from its disks and remove the file",
            )
        return head

    async def _find(self, name: str | None, recorded: RecordedIdentity | None, must_match: bool) -> Monitor | None:
        """A session with the VM's QEMU, if one runs already, or is started by someone else in time (C(attach)).

        The parameters are those of C(connect_to_vm).
        """
        waits = self.request.launch == "attach" and not self.request.check_mode
        deadline = time.monotonic() + (self.request.attach_timeout if waits else 0.0)
        while True:
            try:
                warnings: list[str] = []
                monitor = await connect_to_vm(name, self.request.qmp_socket, self.locks, warnings, recorded, must_match)
            except (MonitorMissingError, MonitorProtocolError):
                # One that is just starting has no socket yet, or has closed it again.
                monitor = None
                if time.monotonic() >= deadline:
                    raise
            if monitor or self.request.launch != "attach" or time.monotonic() >= deadline:
                break
            await asyncio.sleep(_ATTACH_INTERVAL)
        self.warnings += warnings
        if monitor is None and (waits or self.request.attach_timeout <= 0):
            self._require_launch()
        return monitor

    def _require_launch(self) -> None:
        """:raises VmNotFoundError: no QEMU runs, and none may be started."""
        if self.request.launch == "attach":
            waited = f" within {self.request.attach_timeout:g} seconds" if self.request.attach_timeout > 0 else ""
            raise VmNotFoundError(
                f"There is no QEMU of {self.subject} to attach to{waited}",
                cure="Start it with -incoming defer, or use launch: recorded",
                guest_state=f"{self.subject} is not running, and its image is untouched",
            )

    def _require_trusted(
        self, monitor: Monitor, process: QemuProcess | None, recorded: RecordedIdentity | None
    ) -> None:
        """:raises ForeignQemuError: this QEMU's user may not have the guest's memory, and is not to be believed."""
        reason = why_not_to_load(monitor, process, recorded)
        if reason:
            raise ForeignQemuError(
                f"{self.path} is not loaded into another user's QEMU: {reason}",
                cure="Start the QEMU as that user, as the caller, or as root, which may become another user (-run-with"
                " user=); or name another qmp_socket",
            )

    def _require_same_vm(self, vm: RunningVm, domain: domain_xml.ParsedDomain | None) -> None:
        expected = self.request.name or (domain.name if domain else "")
        if vm.name and expected and vm.name != expected:
            raise MismatchError(
                f"The QEMU at hand runs {vm.name}, but the restore is of {expected}", cure="Correct name or qmp_socket"
            )
        if domain and vm.uuid and domain.uuid and vm.uuid != domain.uuid:
            raise MismatchError(
                f"The QEMU at hand has the uuid {vm.uuid}, the image holds {domain.uuid}",
                cure="Start QEMU with the uuid of the saved VM (-uuid), or name the right image",
            )

    async def _end_interrupted_restore(
        self, monitor: Monitor, vm: RunningVm, head: ImageHead | None, interrupted: InterruptedRestore
    ) -> dict[str, t.Any] | None:
        """What a restore that was killed left in this QEMU.

        A guest that was loaded goes on as it should; a QEMU that is of no use is ended, and the monitor lost with it.

        :returns: the module's return values, or None where the image is still to be loaded.
        :raises ConflictError: it was from another image.
        """
        image = interrupted.record.image
        of_this = interrupted.is_of_image(self.path)
        if image != self.path and interrupted.is_of_image(image):
            raise ConflictError(
                f"{vm.label} was being restored from {image} by a run that was cut off",
                cure=f"Run the task with path {image}, which ends that restore",
            )
        wanted = self._wants_running(head) if head and of_this else vm.run_state == "running"
        if self.request.check_mode:
            after = self._outcome(wanted)
            return self._result(f"{vm.label}: the restore of an earlier run from {image} would be ended", vm, after)
        self.guest_state = f"{vm.label} is being loaded by its QEMU for an earlier run"
        left = await interrupted.wait(vm)
        if left == "waiting":
            await despite_cancellation(interrupted.clean_qemu())
            return None
        if left == "useless":
            await despite_cancellation(_end_qemu(monitor, vm))
            self.guest_state = f"{vm.label} is not running, and its image is untouched"
            await monitor.close()
            self._require_launch()
            return None
        run_state = "running" if wanted else "paused"

        async def finish() -> bool:
            used = head if of_this else None
            removed = await self.finish(used, vm.process, "", lambda: put_guest_back(monitor, run_state))
            # Last, as its note tells a later run that the image is used up.
            await interrupted.clean_qemu()
            return removed

        removed = await despite_cancellation(finish())
        self.guest_state = f"{vm.label} is {run_state}"
        after = {"image": "absent" if removed or not of_this else "complete", "vm": run_state}
        return self._result(f"{vm.label} was restored by an earlier run that was cut off: it is {run_state}", vm, after)

    async def _with_running_vm(self, monitor: Monitor, vm: RunningVm, head: ImageHead | None) -> dict[str, t.Any]:
        """A VM that is there is not restored over; a save that was cut short before its end is undone."""
        interrupted = await InterruptedSave.find(monitor, vm.process)
        if head and vm.run_state == "postmigrate" and await is_last_migration(monitor, head):
            return await self._continue_saved_vm(monitor, vm, head, interrupted)
        if interrupted:
            return await self._undo_save(vm, interrupted)
        if vm.run_state == "postmigrate":
            raise ConflictError(
                f"{vm.label} is stopped after a migration that is not the one which wrote {self.path}",
                cure="Find out where the guest's truth is now: in this QEMU (QMP cont), in the image, or elsewhere",
            )
        if head and not head.header.checkpoint:
            raise ConflictError(
                f"{vm.label} is {vm.run_state} although {self.path} is a complete image of it: it was not started from"
                " that, but from its disks",
                cure="If what runs is right, remove the image. If not, end it before it writes more, and restore with"
                " disks: check, which says whether the image still fits to the disks",
            )
        there = f"{vm.label} runs already" if vm.run_state == "running" else f"{vm.label} is there, {vm.run_state}"
        msg = (
            f"{there}, and there is no image at {self.path}"
            if head is None
            else (f"{there}; the image {self.path} was not used")
        )
        left, _problem = await free_units("", vm.process, self.path, self.request.check_mode)
        if left:
            return self._result(f"{msg}; what an interrupted run left in its systemd unit is removed", vm, self.before)
        return self._result(msg, vm)

    async def _undo_save(self, vm: RunningVm, interrupted: InterruptedSave) -> dict[str, t.Any]:
        """A save that was cut off before its end: its guest still stands in QEMU.

        :raises ConflictError: it was cut off so late that its image is complete, at another path.
        """
        completed = await interrupted.completed_image()
        if completed:
            raise ConflictError(
                f"{vm.label} was saved to {completed}, not to {self.path}, by a run that was cut off before its end",
                cure=f"Run the task with path {completed}: then the guest goes on, and that image is gone",
            )
        partial = interrupted.adopt_file()
        run_state = interrupted.record.run_state
        after = {"image": self.before["image"], "vm": run_state}
        if self.request.check_mode:
            if partial:
                partial.release()
            return self._result(f"{vm.label} was being saved by a run that was cut off: would put it back", vm, after)
        await despite_cancellation(interrupted.undo(partial))
        await despite_cancellation(free_units("", vm.process, self.path))
        return self._result(
            f"{vm.label} was being saved by a run that was cut off: it was put back and is {run_state}", vm, after
        )

    async def _continue_saved_vm(
        self, monitor: Monitor, vm: RunningVm, head: ImageHead, interrupted: InterruptedSave | None
    ) -> dict[str, t.Any]:
        """A VM that was saved, but whose QEMU has not ended: it goes on there, and the image is done with."""
        running = self._wants_running(head)
        after = self._outcome(running)
        reason = f"{vm.label} was saved, but its QEMU had not ended"
        if self.request.check_mode:
            return self._result(f"{reason}: would go on with it", vm, after)
        await despite_cancellation(self._go_on(monitor, vm, head, running, interrupted))
        self.guest_state = f"{vm.label} {'runs' if running else 'is paused'}"
        return self._result(f"{reason}: it {'goes on' if running else 'stands'} there", vm, after)

    async def _go_on(
        self,
        monitor: Monitor,
        vm: RunningVm,
        head: ImageHead,
        running: bool,
        interrupted: InterruptedSave | None,
    ) -> None:
        if interrupted:
            await interrupted.clean_qemu()
        await self.finish(head, vm.process, "", lambda: put_guest_back(monitor, "running" if running else "paused"))

    async def finish(
        self,
        head: ImageHead | None,
        process: QemuProcess | None,
        recorded_unit: str,
        go_on: t.Callable[[], t.Awaitable[object]],
    ) -> bool:
        """The one ending of a restore, however it was come to: the image's mark, the guest, the image, the VM's unit.

        :param head: that of the image, where it is there, and the one that was loaded.
        :param recorded_unit: the unit that the image names, where it may be believed.
        :param go_on: brings the guest to where it shall be.
        :returns: whether the image was removed.
        """
        if head:
            await self._mark_used(head)
        await go_on()
        removed = head is not None and await self._see_image_off(head)
        _changed, problem = await free_units(recorded_unit, process, self.path)
        if problem:
            self.warnings.append(f"Its unit may still be kept from starting {self.subject} from its disks: {problem}")
        return removed

    async def _mark_used(self, head: ImageHead) -> None:
        """Say in the image that its guest goes on, before it does: it may outlast a removal that fails, or a crash."""
        try:
            await in_thread(mark_checkpoint, self.path, head)
        except (ConflictError, ImageError) as exc:
            if not self.request.remove_image:
                self.warnings.append(
                    f"The image does not say that its guest went on, and must not be restored again: {exc.what}"
                )

    async def _see_image_off(self, head: ImageHead) -> bool:
        """With the guest where it should be: no older save must take the place of this one; whether it was removed."""
        try:
            self.warnings += await in_thread(mark_superseded, self.path, head)
        except ImageError as exc:
            self.warnings.append(f"Whether older images of {self.subject} lie beside it is not known: {exc.what}")
        if not self.request.remove_image:
            return False
        try:
            await in_thread(remove_image, self.path, head.file_id)
        except ImageError as exc:
            # The guest is where it should be: that is no failure of the restore, but a trap for the next one.
            self.warnings.append(f"Remove the image by hand, it must not be restored again: {exc.what}")
            return False
        return True

    def _wants_running(self, head: ImageHead) -> bool:
        return head.header.was_running if self.request.state == "as_saved" else self.request.state == "running"

    def _require_last_save(self, head: ImageHead) -> None:
        """:raises ConflictError: there is a newer image of the VM beside it, and its disks are that one's."""
        newer = newer_image(self.path, head)
        if newer:
            why = (
                f"{newer} is newer, and the VM's disks have moved on since"
                if is_vouched(head.domain())
                else f"{newer} is newer, or is vouched for, as this one is not"
            )
            raise ConflictError(
                f"{self.path} is not the last save of {self.subject}: {why}",
                cure=f"Restore {newer}; or, if the disks are those of the older one, use disks: ignore",
            )

    def _require_same_disks(self, head: ImageHead, domain: domain_xml.ParsedDomain, qemu_waits: bool) -> None:
        """Refuse, before anything is started, disks that have moved on since the save.

        What a QEMU has opened that waits already, or that is started with another command, is compared when it is
        there.

        :raises DiskMismatchError: they have, or that cannot be known of an image whose guest went on.
        :raises ImageFormatError: the record makes no sense.
        """
        text = domain.save_facts.surroundings if domain.save_facts else ""
        if not text:
            if head.header.checkpoint:
                self._refuse_disks(
                    [
                        Problem(
                            "disk_unchecked",
                            "its guest went on after it was saved, and the image does not record its disks",
                            "Start the VM from its disks",
                        )
                    ]
                )
            self.warnings.append(
                f"Whether the disks of {domain.name} are as they were when it was saved is not known: {self.path} does"
                " not record them"
            )
            return
        try:
            self.surroundings = Surroundings.parse(text)
        except ValueError as exc:
            raise ImageFormatError(
                self.path,
                f"its record of the VM's disks cannot be read: {exc}",
                cure="If you know that they are as they were at the save, use disks: ignore",
            ) from exc
        media = self.surroundings.media
        if self.request.launch == "command":
            words = self.request.command or []
            media = tuple(each for each in media if any(file.path in word for file in each.files for word in words))
        elif qemu_waits or self.request.launch == "attach":
            media = ()
        self._refuse_disks(changed_media(media), head.header.checkpoint)

    def _refuse_disks(self, problems: list[Problem], checkpoint: bool = True) -> None:
        """Refuse those problems that block; of an image whose guest went on, also what cannot be known.

        :raises DiskMismatchError: there are some.
        """
        refused = problems if checkpoint else blocking(problems)
        if refused:
            went_on = ", whose guest went on after it was saved," if checkpoint else ""
            raise DiskMismatchError(
                f"{self.subject} was not restored from {self.path}{went_on} as its disks are not those of its memory: "
                + "; ".join(problem.what for problem in refused),
                cure=refused[0].cure,
                problems=[problem.as_result() for problem in problems],
            )
        self.warnings += [
            problem.what for problem in problems if not problem.blocks and problem.what not in self.warnings
        ]

    async def require_same_media(self, monitor: Monitor, process: QemuProcess | None, head: ImageHead) -> None:
        """Compare what the QEMU that waits has opened with what the saved one had.

        :raises DiskMismatchError: it is something else.
        """
        if self.surroundings is not None:
            opened = await read_all_media(monitor, process)
            self._refuse_disks(other_media(self.surroundings.media, opened, self.subject), head.header.checkpoint)

    def _require_loadable(self, vm: RunningVm | None) -> None:
        """Refuse an image with which another user could act on the QEMU that loads it.

        :raises ImageUnsafeError: one could have put it there.
        """
        if vm is not None:
            require_loadable_image(self.path, vm.process.uid if vm.process else None)
        elif self.request.launch == "command":
            require_loadable_image(self.path, os.geteuid())
        # The recorded start asks for more, and of a QEMU that is yet to be started the user is not known.

    async def _check_image(self, head: ImageHead) -> StreamFacts | None:
        """Everything that the file alone can tell, before QEMU reads a byte."""
        if head.header.mapped_ram and head.header.byte_order != sys.byteorder:
            raise ImageUnsupportedError(
                self.path,
                f"the image was saved on a {head.header.byte_order}-endian host: QEMU would misread its bitmaps here",
                cure=f"Restore it on a {head.header.byte_order}-endian host",
            )
        check_parallel_channels(self.request.parallel_channels)
        if self.request.remove_image:
            require_removable(self.path)
        if not head.header.mapped_ram and self.request.parallel_channels is not None:
            raise RequestError(
                f"parallel_channels needs a sparse image; {self.path} is {head.header.format.label}",
                cure="Leave parallel_channels out",
            )
        recorded = self._recorded_digest(head) if self.request.verify == "full" else ""
        if self.request.verify != "none":
            problems = await in_thread(structure_problems, self.path)
            if recorded and not problems:
                # Past the page cache, unless QEMU will read through it: then the image comes from the storage once.
                bypass_cache = head.header.mapped_ram and self.request.bypass_cache is not False
                problems = await in_stoppable_thread(digest_problems, self.path, recorded, bypass_cache)
            if problems:
                raise ImageFormatError(
                    self.path,
                    f"the image is damaged: {'; '.join(problems[:3])}",
                    cure="Restore an intact copy, or start the VM from its disks",
                )
        if head.header.format in COMPRESSORS:
            return await in_thread(read_compressed_head, self.path, head.header)
        return await in_thread(read_stream, self.path, head.header)

    def _recorded_digest(self, head: ImageHead) -> str:
        """:raises RequestError: the image has none."""
        facts = head.domain().save_facts
        if facts is None or not facts.digest:
            raise RequestError(
                f"{self.path} has no checksum, which verify: full needs: it was not saved with checksum: true",
                cure="Restore it with verify: structure, which does not see a change in the guest's memory",
            )
        return facts.digest

    async def _how_to_launch(self, domain: domain_xml.ParsedDomain, machine: str) -> Launch:
        """How to start the QEMU that shall load the image."""
        if self.request.launch == "attach":
            return Launch(argv=())  # in check mode only: someone else will start it
        if self.request.launch == "command":
            return Launch(argv=tuple(command_line.restore_command(self.request.command or [], machine)), cwd="/")
        how, self.launch_warning = await recorded_launch(self.path, domain, machine, self.request.check_mode)
        return how

    def _outcome(self, running: bool) -> dict[str, str]:
        """How image and VM are after a restore, for diff mode."""
        return {
            "image": "absent" if self.request.remove_image else "complete",
            "vm": "running" if running else "paused",
        }

    def _result(self, msg: str, vm: RunningVm | None, after: dict[str, str] | None = None) -> dict[str, t.Any]:
        """The return values of a run that loaded nothing; with C(after), of one that changed, or would change."""
        image = image_result(self.path)
        done = self.before if after is None or self.request.check_mode else after
        return {
            "changed": after is not None,
            "msg": msg,
            "image": image,
            "vm": vm.as_result(done["vm"]) if vm else ended_vm(self.subject, image["uuid"]),
            "diff": {"before": self.before, "after": after or self.before},
            "warnings": self.warnings,
        }


async def _require_fit(
    monitor: Monitor,
    vm: RunningVm,
    head: ImageHead,
    domain: domain_xml.ParsedDomain,
    stream: StreamFacts | None,
) -> None:
    """Refuse an image that this QEMU must not load, although it might try.

    :raises MismatchError: the machine type or a RAM block differs.
    """
    cure = "Start QEMU with the saved VM's own command line (machine type, memory, devices)"
    machine = stream.machine if stream and stream.machine else domain.machine
    if machine and machine != vm.machine:
        raise MismatchError(f"{head.path} is of the machine type {machine}, but {vm.label} has {vm.machine}", cure=cure)
    cpus = sum(section.name == "cpu_common" for section in (stream.sections if stream else None) or ())
    if cpus and cpus != vm.vcpus:
        raise MismatchError(f"{head.path} holds {cpus} CPUs, but {vm.label} has {vm.vcpus}", cure=cure)
    blocks = {block.name: block for block in await read_ram_blocks(monitor)}
    if stream and stream.ram_blocks and blocks:
        for saved in stream.ram_blocks:
            block = blocks.get(saved.name)
            if block is None:
                raise MismatchError(
                    f"{head.path} has the RAM block {saved.name}, which {vm.label} lacks: a device is missing",
                    cure=cure,
                )
            # Some blocks of firmware tables may be resized on loading; all others must be the same.
            resizable = block.maximum > block.used
            if saved.used_length > block.maximum or (not resizable and saved.used_length != block.used):
                raise MismatchError(
                    f"{head.path} has {_size(saved.used_length)} in the RAM block {saved.name}, but {vm.label} has"
                    f" {_size(block.used)}: its memory differs",
                    cure=cure,
                )
        missing = [name for name in blocks if name not in {saved.name for saved in stream.ram_blocks}]
        if missing:
            raise MismatchError(
                f"{vm.label} has the RAM block {missing[0]}, which {head.path} lacks: there is a device too many",
                cure=cure,
            )
    elif domain.memory and domain.memory != vm.memory:
        raise MismatchError(
            f"{head.path} holds {_size(domain.memory)} of memory, but {vm.label} has {_size(vm.memory)}", cure=cure
        )


async def _end_qemu(monitor: Monitor, vm: RunningVm) -> None:
    """End a QEMU that holds half a guest, whoever started it.

    :raises MonitorError: it is not known which process it is, and it cannot be told to quit.
    """
    if vm.process is None:
        with contextlib.suppress(MonitorMissingError):
            await twice(monitor, None, lambda: monitor.execute("quit"))
        return
    watch = ProcessWatch.of(vm.process)
    try:
        if not monitor.lost:
            # It may end before it answers, or be gone already.
            with contextlib.suppress(MonitorError, asyncio.TimeoutError):
                await within(_END_TIMEOUT, monitor.execute("quit"))
                await watch.wait_at_most(_END_TIMEOUT)
        watch.kill()
        await watch.wait_at_most(30)
    finally:
        watch.close()


def _size(size: int) -> str:
    return f"{size / 2**20:g} MiB"


def _drain(descriptor: int) -> None:
    """Read a pipe to its end."""
    while os.read(descriptor, 65536):
        pass


class _Transaction:
    """The restore itself, from the QEMU's start to the image's end, with the way back."""

    def __init__(
        self,
        operation: RestoreOperation,
        head: ImageHead,
        domain: domain_xml.ParsedDomain,
        stream: StreamFacts | None,
    ) -> None:
        self.operation = operation
        self.request = operation.request
        self.head = head
        self.domain = domain
        self.stream = stream
        self.launched: LaunchedQemu | None = None
        self.monitor: Monitor
        self.vm: RunningVm
        self.settings: MigrationSettings | None = None
        self.descriptors: DescriptorSet | None = None
        self.migration: Migration | None = None
        self.parallel_channels: int | None = None
        self.bypass_cache = False
        #: The tool that expands a compressed image for QEMU, and a descriptor of what it writes.
        self.expander: Filter | None = None
        self.expanded = -1

    async def run(self, qemu: Monitor | Launch, started: float) -> dict[str, t.Any]:
        """Restore into a QEMU that waits already, or into one that is started for it."""
        try:
            if isinstance(qemu, Launch):
                await self._launch(qemu)
            else:
                self.monitor = qemu
            self.vm = await read_vm(self.monitor)
            self.operation.process = self.vm.process
            if self.vm.process:
                self.operation.locks.take_vm(self.vm.process)
            if self.vm.run_state != "inmigrate":
                raise ConflictError(
                    f"The QEMU of {self.vm.label} does not wait for a saved state (its run state is"
                    f" {self.vm.run_state})",
                    cure="Start it with -incoming defer",
                )
            self.operation._require_same_vm(self.vm, self.domain)
            if self.vm.process and not self.vm.process.waits_for_state:
                raise ConflictError(
                    f"The QEMU of {self.vm.label} waits for a migration from elsewhere, not for an image",
                    cure="Start it with -incoming defer",
                )
            await _require_fit(self.monitor, self.vm, self.head, self.domain, self.stream)
            await self.operation.require_same_media(self.monitor, self.vm.process, self.head)
            state = await self._load()
        except BaseException as exc:
            # Also a cancellation (timeout, signal): a QEMU that holds half a guest must not stay.
            await despite_cancellation(self._roll_back(exc))
            raise
        try:
            return await despite_cancellation(self._complete(state, started))
        finally:
            if self.launched:
                await despite_cancellation(self.monitor.close())
                self.launched.release()

    # --- the QEMU ---

    async def _launch(self, how: Launch) -> None:
        """Start the QEMU and wait for its QMP server.

        :raises LaunchError: it has none, or ended before it greeted.
        """
        label = self.domain.name
        addresses = command_line.qmp_addresses(read_configuration(how.argv, how.cwd).words, how.cwd)
        if self.request.qmp_socket:
            addresses.insert(0, self.request.qmp_socket)
        if not addresses:
            raise LaunchError(
                f"The command of {label} opens no QMP server", cure="Add -qmp unix:PATH,server=on,wait=off to it"
            )
        self.launched = choose_launch(how, f"{self.head.path}.log", label)
        self.operation.guest_state = f"The QEMU that was started for {label} is being ended"
        await self.launched.start()
        deadline = time.monotonic() + LAUNCH_TIMEOUT
        while True:
            if await self.launched.ended():
                said = await self._said(self.launched) or "it said nothing"
                raise LaunchError(
                    f"The QEMU that was started for {label} ended at once: {said}",
                    cure=f"Correct what it says and restore again; its log is {self.launched.log}",
                )
            try:
                self.monitor = await Monitor.connect(addresses[0])
                if self._is_launched(self.monitor, how):
                    return
                # Someone else listened there before; our QEMU has not come to it yet.
                await self.monitor.close()
                raise MonitorMissingError(f"Another process (pid {self.monitor.peer_pid}) listens at {addresses[0]}")
            except (MonitorMissingError, MonitorBusyError, MonitorProtocolError) as exc:
                # Protocol: it opened its server and ended before it greeted, which the next look at it tells.
                if time.monotonic() > deadline:
                    raise LaunchError(
                        f"The QEMU that was started for {label} opened no QMP server at {addresses[0]} within"
                        f" {LAUNCH_TIMEOUT:g} seconds ({exc.what})",
                        cure=f"See its log {self.launched.log}",
                    ) from exc
            await asyncio.sleep(_LAUNCH_INTERVAL)

    def _is_launched(self, monitor: Monitor, how: Launch) -> bool:
        """Whether the QEMU that was started here may answer on a monitor, or whoever listens for it."""
        process = process_behind(monitor)
        pid = process.pid if process else monitor.peer_pid
        if pid is not None:
            return self.launched is not None and self.launched.is_or_started(pid)
        # Behind a TCP port of a container, say; but not one that somebody else has taken.
        wanted = how.rights.uid if how.rights else os.geteuid()
        return monitor.peer_uid is None or monitor.peer_uid in (0, os.geteuid(), wanted)

    # --- loading ---

    async def _load(self) -> dict[str, t.Any]:
        support = await read_support(self.monitor)
        sparse = self.head.header.mapped_ram
        if sparse and not support.mapped_ram:
            raise UnsupportedByQemuError(
                f"QEMU {support.version} cannot read the sparse format of {self.head.path}: it needs mapped-ram with"
                " direct-io, as in QEMU 9.1 and later",
                cure="Use the QEMU that saved it, or a newer one",
            )
        self._choose_access(sparse)
        self.settings = MigrationSettings(self.monitor)
        await self.settings.plan(
            mapped_ram=sparse,
            parallel_channels=self.parallel_channels,
            direct_io=self.bypass_cache,
            bandwidth=None,
        )
        uri = await self._pass_descriptors(support, self.settings)
        if sparse:
            await self._empty_memory()
        await self.settings.apply()
        self.migration = Migration(self.monitor, self.vm.process.pid if self.vm.process else None)
        # Before a load, stop means "do not start the guest when it is loaded": whether and when it runs is decided
        # here, however QEMU was started.
        await self.monitor.execute("stop")
        self.operation.guest_state = f"{self.domain.name} is being loaded"
        reader = self.expander.pid if self.expander else self.vm.process.pid if self.vm.process else 0
        try:
            with Publisher(self.vm.label, "restore") as progress:
                async with progress.following(self._bytes_read(reader)):
                    await self.migration.start_incoming(uri, keep_alive=support.exit_on_error)
                    state = await self._wait_for_load(self.migration)
        except MigrationError as exc:
            failure = await self.expander.failure() if self.expander else ""
            if failure:
                exc.what += f" ({failure})"
            exc.what = f"{self.domain.name} could not be loaded from {self.head.path}: {exc.what}"
            exc.cure = exc.cure or cure_for(exc.what)
            if not self.launched:
                exc.cure = exc.cure or "See what QEMU says (its stderr, or the log of its unit), then restore again"
            raise
        except MonitorLostError as exc:
            # QEMU (10.0) dies without a word of a page that it cannot read.
            exc.what = f"{self.domain.name} could not be loaded from {self.head.path}: {exc.what}"
            exc.cure = "See why QEMU ended (the kernel's log tells of a crash, and of a disk that fails), restore again"
            raise
        await self._see_expander_off()
        return state

    async def _empty_memory(self) -> None:
        """A sparse image leaves zero pages alone: memory in a file that has outlived a QEMU must be empty.

        :raises MismatchError: it is not, and cannot be emptied.
        """
        files = await memory_files(self.monitor, self.vm.process)
        problems = await despite_cancellation(in_thread(empty_memory, files))
        if problems:
            raise MismatchError(
                f"{self.head.path} cannot be loaded into the memory of {self.vm.label}: {problems[0].what}",
                cure=problems[0].cure,
                problems=[problem.as_result() for problem in problems],
            )

    async def _wait_for_load(self, migration: Migration) -> dict[str, t.Any]:
        """Wait until QEMU has loaded the guest; returns its last C(query-migrate).

        :raises ImageError: the tool that expands the image failed, and QEMU does not tell.
        """
        if self.expander is None:
            return await migration.wait()
        loading = asyncio.ensure_future(migration.wait())
        expanding = asyncio.ensure_future(self.expander.wait(self.head.path))
        try:
            await asyncio.wait({loading, expanding}, return_when=asyncio.FIRST_COMPLETED)
            if not loading.done() and expanding.exception():
                # Of a stream that ends before its first byte QEMU (10.0) takes no notice, and waits for ever.
                await asyncio.wait({loading}, timeout=_EXPANDER_GRACE)
                if not loading.done():
                    expanding.result()
            return await loading
        finally:
            for task in (loading, expanding):
                task.cancel()
            await asyncio.gather(loading, expanding, return_exceptions=True)

    def _bytes_read(self, pid: int) -> Measure:
        """Measures how much of the image a process has read; QEMU itself says nothing of a load."""
        size = self.head.size if self.head.header.format is not ImageFormat.SPARSE else self.head.allocated
        try:
            before = bytes_read(pid)
        except OSError:
            before = 0

        async def measure() -> tuple[int, int]:
            return bytes_read(pid) - before, size

        return measure

    def _choose_access(self, sparse: bool) -> None:
        reasons = self.operation.reasons
        if not sparse:
            reasons["bypass_cache"] = (
                f"the {self.head.header.format.label} format is a stream, read through the page cache"
            )
            if self.request.bypass_cache:
                raise RequestError(
                    f"bypass_cache needs a sparse image; {self.head.path} is {self.head.header.format.label}",
                    cure="Leave bypass_cache out",
                )
            return
        if self.request.bypass_cache is not False:
            problem = direct_read_reason(self.head.path)
            if problem and self.request.bypass_cache:
                raise RequestError(
                    f"bypass_cache is not possible for {self.head.path}: {problem}", cure="Leave bypass_cache out"
                )
            self.bypass_cache = not problem
            reasons["bypass_cache"] = problem or "the file system takes O_DIRECT"
        self.parallel_channels = self.request.parallel_channels
        if self.parallel_channels is None:
            self.parallel_channels = default_parallel_channels()
            reasons["parallel_channels"] = f"two for each of {os.cpu_count()} CPUs, from 2 to 8"

    async def _pass_descriptors(self, support: MigrationSupport, settings: MigrationSettings) -> str:
        """Descriptors, with a note of this restore; the migration URI."""
        path, offset = self.head.path, self.head.header.stream_offset
        compressor = COMPRESSORS.get(self.head.header.format)
        record = RestoreRecord(
            image=self.operation.path,
            identity=ImageIdentity.of(path),
            expanded=compressor is not None,
            capabilities=settings.found_capabilities,
            parameters=settings.found_parameters,
        )
        self.descriptors = DescriptorSet(self.monitor, record.opaque())
        files = [open_image_of(self.head)]
        try:
            if self.bypass_cache:
                files.append(open_image_of(self.head, direct=True))
            # Also where QEMU reads from elsewhere: the note is kept with them.
            await self.descriptors.add(*files)
            if compressor is None and support.file_uri:
                return self.descriptors.uri(offset)
            # One stream from a descriptor: a pipe from the tool or, before QEMU 9.1, the file itself.
            os.lseek(files[0], offset, os.SEEK_SET)
            source = files[0]
            if compressor:
                self.expanded, write_end = make_pipe()
                source = self.expanded
                files.append(write_end)
                self.expander = await Filter.start(compressor.expand_command(), stdin=files[0], stdout=write_end)
            return await self.descriptors.pass_named(source)
        finally:
            for descriptor in files:
                os.close(descriptor)

    async def _see_expander_off(self) -> None:
        """See that the tool came to the end of the image, whose checksum it compares only there.

        QEMU stops to read where the guest's state ends; what follows is read here, so that the tool is not cut off.

        :raises ImageError: the tool failed: the guest that was loaded is not the one that was saved.
        """
        if self.expander is None:
            return
        os.set_blocking(self.expanded, True)
        await in_thread(_drain, self.expanded)
        await self.expander.wait(self.head.path)

    async def descriptors_and_settings_back(self) -> None:
        """Capabilities, parameters and descriptors of QEMU as they were found; the note of all this goes last."""
        if self.settings:
            await self.settings.restore()
        if self.descriptors:
            await self.descriptors.remove()

    async def _complete(self, state: dict[str, t.Any], started: float) -> dict[str, t.Any]:
        """Everything from the loaded guest on; runs to its end whatever happens."""
        label = self.domain.name
        running = self.operation._wants_running(self.head)
        image = image_result(self.head.path)
        self.operation.guest_state = (
            f"{label} is loaded and its image {self.head.path} was kept; whether it runs is not known"
        )
        warnings = self.operation.warnings
        warnings += [self.operation.launch_warning] if self.operation.launch_warning else []
        unit = freeable_unit(self.domain, self.head.path)
        kept = "kept"
        if await self.operation.finish(self.head, self.vm.process, unit, lambda: self._go_on(running)):
            kept, image = "removed", {**image, "exists": False, "state": "absent"}
        if self.descriptors:
            # Last, as the note in it tells a later run that the image is used up.
            await twice(self.monitor, self.vm.process, self.descriptors.remove)
        duration = time.monotonic() - started
        resume = self.monitor.find_event("RESUME")
        return {
            "changed": True,
            "msg": f"{label} was restored from {self.head.path} in {duration:.1f} s and"
            f" {'runs' if running else 'is paused'}; the image was {kept}",
            "image": image,
            "vm": self.vm.as_result(),
            "launched": self.launched is not None,
            "running_at": round(event_seconds(resume), 3) if resume else None,
            "unit": (unit_of_process(self.vm.process.pid) if self.vm.process else "") or None,
            "duration": round(duration, 3),
            "parallel_channels": self.parallel_channels,
            "bypass_cache": self.bypass_cache,
            "reasons": self.operation.reasons,
            "warnings": warnings,
            "diff": {"before": self.operation.before, "after": self.operation._outcome(running)},
        }

    async def _go_on(self, running: bool) -> None:
        """The guest as it shall be, also over a new connection.

        :raises MigrationError: it does not come to that.
        """
        label = self.domain.name
        run_state = await twice(self.monitor, self.vm.process, lambda: self._let_go_on(running))
        if (run_state == "running") != running:
            raise MigrationError(
                f"{label} was loaded, but is in QEMU's run state {run_state}",
                guest_state=f"{label} is loaded; its image {self.head.path} was kept",
                cure="Look at the guest; let it go on with QMP cont",
            )
        self.operation.guest_state = f"{label} {'runs' if running else 'is paused'}"
        self.vm = dataclasses.replace(self.vm, run_state=run_state)

    async def _let_go_on(self, running: bool) -> str:
        """QEMU's settings as they were found, and then the guest; its run state."""
        if self.settings:
            await self.settings.restore()
        return await put_guest_back(self.monitor, "running" if running else "paused")

    # --- the way back ---

    async def _roll_back(self, cause: BaseException) -> None:
        """End a QEMU that was started here or that has begun to load; leave one that only waits as it was found."""
        label = self.domain.name
        if self.expander:
            await self.expander.end()
        try:
            if self.launched:
                await self._explain(cause, self.launched)
                await self.launched.end()
                self.operation.guest_state = f"{label} is not running, and its image is untouched"
                if hasattr(self, "monitor"):
                    await self.monitor.close()
            elif await self._has_begun():
                await _end_qemu(self.monitor, self.vm)
                self.operation.guest_state = (
                    f"{label} is not running (a QEMU that failed to load cannot be used again and was ended), and its"
                    " image is untouched"
                )
            elif hasattr(self, "monitor"):  # else none was started
                await twice(self.monitor, self.operation.process, self.descriptors_and_settings_back)
                self.operation.guest_state = (
                    f"{label} is not running, as its QEMU has ended, and its image is untouched"
                    if await qemu_has_ended(self.operation.process, self.monitor.lost)
                    else f"{label}'s QEMU still waits for its state, and the image is untouched"
                )
        except MonitorError as exc:
            self.operation.guest_state = (
                f"{label} is not running, its image is untouched; the QEMU at {self.monitor.address} cannot be"
                f" reached any more ({exc.what})"
            )
        if isinstance(cause, VmopsError):
            cause.guest_state = self.operation.guest_state
            cause.cure = cause.cure or "Correct what QEMU says, then run the task again"

    async def _has_begun(self) -> bool:
        """Whether QEMU has begun to load; one that refused to, or was not told to, is as good as before."""
        if self.migration is None or not self.migration.started:
            return False
        try:
            state = await query_state(self.monitor)
        except MonitorError:
            return True
        return bool(state["status"] != "none")

    async def _explain(self, cause: BaseException, launched: LaunchedQemu) -> None:
        """Why a load failed is often only on QEMU's stderr."""
        if isinstance(cause, MonitorLostError):
            # A dying QEMU closes its socket a moment before it is gone.
            await launched.wait_end(2.0)
        if isinstance(cause, (MigrationError, MonitorLostError)):
            text = await self._said(launched)
            if text and text not in cause.what:
                cause.what += f" (QEMU said: {text})"
            cause.cure = cause.cure or "Correct what it says and restore again"
            cause.cure += f"; QEMU's log is {launched.log}"

    async def _said(self, launched: LaunchedQemu) -> str:
        """What the QEMU that was started wrote to stderr, where it repeats its words, but not the secrets in them."""
        text = await launched.stderr()
        for word in launched.how.argv:
            text = text.replace(word, domain_xml.redact_argument(word))
        return text
