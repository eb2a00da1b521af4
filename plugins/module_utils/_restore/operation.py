# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Restoring a VM from a save image: what there is to do, decided from the image and the VM together.

========================= ================================================ =============================================
image at the path         VM                                               what is done
========================= ================================================ =============================================
complete                  not running                                      a QEMU is started, and loads it
complete                  its QEMU waits for a state (``inmigrate``)       that loads it
complete                  loaded by an earlier run that was cut off        that restore is ended
complete                  stopped since the image was written              it goes on; the image is done with
complete                  runs                                             refused: it was started from its disks
a checkpoint, or none     runs                                             nothing
a checkpoint, or none     is paused, and ``state`` is running              it goes on
any                       being saved by an earlier run that was cut off   that save is undone
partial                   not running                                      refused
none                      not running                                      refused
========================= ================================================ =============================================
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import os
import time
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._cancellation import despite_cancellation, in_thread, looking
from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    ConflictError,
    DiskMismatchError,
    ImageFormatError,
    ImageNotFoundError,
    MismatchError,
    MonitorMissingError,
    MonitorProtocolError,
    VmNotFoundError,
)
from ansible_collections.vmops.qemu.plugins.module_utils._host_memory import MemoryLedger
from ansible_collections.vmops.qemu.plugins.module_utils._image import domain_xml
from ansible_collections.vmops.qemu.plugins.module_utils._image.head import ImageHead
from ansible_collections.vmops.qemu.plugins.module_utils._image.info import image_result, image_state
from ansible_collections.vmops.qemu.plugins.module_utils._image.lookup import find_image
from ansible_collections.vmops.qemu.plugins.module_utils._image.names import image_path, require_image_of
from ansible_collections.vmops.qemu.plugins.module_utils._image.stream import StreamFacts
from ansible_collections.vmops.qemu.plugins.module_utils._image.vouching import is_vouched
from ansible_collections.vmops.qemu.plugins.module_utils._launch import (
    earlier_launch,
    free_units,
    recorded_identity,
    recorded_launch,
    require_vouched,
)
from ansible_collections.vmops.qemu.plugins.module_utils._names import label_of_unit, means_unit
from ansible_collections.vmops.qemu.plugins.module_utils._operation import connect_to_vm, is_last_migration
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import command_line
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.greeting import doors_of
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.identity import RecordedIdentity, details, is_trusted
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.launch import Launch
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.migration import IDLE_STATES, query_state
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.monitor import Monitor
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import (
    QemuProcess,
    doubtful_note,
    list_processes,
    resident_bytes,
    running_note,
)
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.selection import Selection
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.session import VmSession
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.transfer import Transfer
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.vm import LIVE_STATES, RunningVm
from ansible_collections.vmops.qemu.plugins.module_utils._restore.disks import (
    require_last_save,
    require_same_disks,
    require_same_media,
)
from ansible_collections.vmops.qemu.plugins.module_utils._restore.finish import finish_restore, mark_used
from ansible_collections.vmops.qemu.plugins.module_utils._restore.fit import (
    require_fit,
    require_same_vm,
    require_trusted,
)
from ansible_collections.vmops.qemu.plugins.module_utils._restore.guest_clock import DONE
from ansible_collections.vmops.qemu.plugins.module_utils._restore.image import (
    check_image,
    read_complete_head,
    require_loadable,
)
from ansible_collections.vmops.qemu.plugins.module_utils._restore.in_qemu import InterruptedRestore
from ansible_collections.vmops.qemu.plugins.module_utils._restore.load_note import LoadNote
from ansible_collections.vmops.qemu.plugins.module_utils._restore.memory_need import (
    MemoryNeed,
    memory_need,
    require_within_limits,
)
from ansible_collections.vmops.qemu.plugins.module_utils._restore.request import RestoreRequest
from ansible_collections.vmops.qemu.plugins.module_utils._restore.run import RestoreRun
from ansible_collections.vmops.qemu.plugins.module_utils._restore.same_cpu import require_same_cpu
from ansible_collections.vmops.qemu.plugins.module_utils._restore.same_vm import may_be_vm
from ansible_collections.vmops.qemu.plugins.module_utils._restore.transaction import RestoreTransaction
from ansible_collections.vmops.qemu.plugins.module_utils._save.image_at import require_not_gone_on_elsewhere
from ansible_collections.vmops.qemu.plugins.module_utils._save.in_qemu import InterruptedSave
from ansible_collections.vmops.qemu.plugins.module_utils._situation import Situation, guest_in
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.needs import Needs
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.provision import Provision
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.record import Surroundings

#: Seconds between two looks for a QEMU that someone else starts.
_ATTACH_INTERVAL = 0.25


class RestoreOperation(RestoreRun):
    """One restore, from the look at image and VM to the result."""

    def __init__(self, request: RestoreRequest, memory: MemoryLedger | None = None, sets_clock: bool = True) -> None:
        """:param memory: as for RestoreRun.

        :param sets_clock: whether :meth:`run` calls :meth:`set_clock`; else whoever calls it does.
        """
        super().__init__(request, memory)
        self._sets_clock = sets_clock

    async def run(self) -> dict[str, t.Any]:
        """Do it; as :meth:`Run.run`."""
        try:
            result = await super().run()
        except ImageFormatError as exc:
            exc.cure = exc.cure or "Restore an intact copy, or start the VM from its disks"
            raise
        # The guest runs: what interrupts the run now, or ends its time, comes too late.
        return await despite_cancellation(self.set_clock(result)) if self._sets_clock else result

    async def set_clock(self, result: dict[str, t.Any]) -> dict[str, t.Any]:
        """The result of :meth:`run`, with what became of the guest's clock; it takes some seconds at most."""
        if self.clock is None:  # nothing runs that did not before
            return result
        outcome = await self.clock.set()
        warnings = result["warnings"]
        if self.request.sync_time == "true" and outcome != DONE:
            warnings = [*warnings, f"{self.subject} runs, but its clock was not set: {outcome}"]
        return {**result, "time_sync": outcome, "warnings": warnings}

    async def _run(self) -> dict[str, t.Any]:
        started = time.monotonic()
        if not self.path:
            self.path = await self._choose_image()
            self.before["image"] = image_state(self.path)
        await self.locks.take_image(self.path)
        head = read_complete_head(self.path)
        domain = head.domain() if head else None
        self.load_note = await in_thread(LoadNote.of, head) if head else None
        if domain:
            self.subject = domain.name
            self._require_chosen(domain)
        recorded = recorded_identity(domain)
        monitor = await self._find(domain, recorded, head)
        if monitor is None:
            return await self._without_vm(head, domain, started)
        session = await VmSession.open(monitor)
        try:
            return await self._with_vm(session, head, domain, recorded, started)
        finally:
            await session.close()

    async def _choose_image(self) -> str:
        """The path of the VM's image, or where it would be if it had no other name.

        :raises ConflictError: there are several, and none is the last one.
        """
        chosen = self.selection
        found = await in_thread(find_image, self.request.save_dir, chosen.name, chosen.uuid, chosen.unit)
        return found or image_path(
            None, self.request.save_dir, chosen.name or chosen.uuid or label_of_unit(chosen.unit)
        )

    def _require_chosen(self, domain: domain_xml.ParsedDomain) -> None:
        """:raises MismatchError: the image at the path holds another VM than the one that is asked for."""
        chosen = self.selection
        require_image_of(self.path, domain.name, chosen.name)
        if chosen.uuid and domain.uuid != chosen.uuid:
            raise MismatchError(
                f"{self.path} holds a VM with {f'the uuid {domain.uuid}' if domain.uuid else 'no uuid'}, not"
                f" {chosen.uuid}",
                cure="Correct uuid or path",
            )
        unit = domain.launch.unit if domain.launch and is_vouched(domain) else ""
        if chosen.unit and not means_unit(chosen.unit, unit):
            raise MismatchError(
                f"{self.path} holds a VM that was started by {unit or 'no unit that is known'}, not {chosen.unit}",
                cure="Correct unit or path",
            )

    async def _with_vm(
        self,
        session: VmSession,
        head: ImageHead | None,
        domain: domain_xml.ParsedDomain | None,
        recorded: RecordedIdentity | None,
        started: float,
    ) -> dict[str, t.Any]:
        """There is a QEMU: it may wait for the image, or its guest is there."""
        vm = session.vm
        if head:
            require_trusted(self.path, session, recorded)
        self.session = session
        self.before["vm"] = vm.run_state
        self.situation = Situation(f"{vm.label} was not touched (QEMU's run state is {vm.run_state})")
        require_same_vm(vm, self.request.name, domain)
        expected = dataclasses.replace(self.at_hand, uuid="" if head else self.selection.uuid)
        expected.require(vm, session.monitor.shown_address)
        before_load = self.word_for(head) if head else "unknown"
        self.situation = dataclasses.replace(self.situation, guest=guest_in(vm.run_state, before_load))
        if vm.process:
            await self.locks.take_vm(vm.process)
        interrupted = await InterruptedRestore.find(session)
        if interrupted:
            result = await self._end_interrupted_restore(session, head, interrupted)
            if result:
                return result
            if session.monitor.lost:
                return await self._without_vm(head, domain, started)
        if vm.run_state != "inmigrate":
            return await self._with_running_vm(session, head)
        if head is None or domain is None:
            return self._without_image(vm)
        stream = await self._check(head, domain, vm)
        held = resident_bytes(session.pid) if session.pid is not None else None
        async with self._memory_for(memory_need(head, domain.memory, stream), held=held or 0):
            if self.request.check_mode:
                await require_fit(session, head, domain, stream)
                await require_same_cpu(self, session, domain)
                await require_same_media(self, session, head)
                return self._would_restore(head, vm)
            how = await self._earlier_launch(domain)
            return await RestoreTransaction(self, head, domain, stream, started).attach(session, how)

    async def _without_vm(
        self,
        head: ImageHead | None,
        domain: domain_xml.ParsedDomain | None,
        started: float,
        former: VmSession | None = None,
    ) -> dict[str, t.Any]:
        """There is no QEMU, or none any more: one is started for the image.

        :param former: with a QEMU that has the guest, but cannot let it go on: it is ended when all else is in order.
        """
        if former is None:
            self.session = None
            self._tell_absence(head)
        if head is None or domain is None:
            return self._without_image(None)
        if self.request.launch == "recorded":
            # Before the files are looked at that it names.
            require_vouched(self.path, domain)
        stream = await self._check(head, domain, None)
        pid = former.pid if former else None
        how = await self._how_to_launch(domain, stream.machine if stream and stream.machine else domain.machine, pid)
        need = memory_need(head, domain.memory, stream, how)
        if former and how.argv:
            doors_of(how, domain.name, self.request.qmp_socket)
        if pid is not None:
            # It gives back what it has.
            need = dataclasses.replace(need, ordinary=max(0, need.ordinary - (resident_bytes(pid) or 0)), huge={})
        async with self._memory_for(need, how):
            if self.request.check_mode:
                return self._would_restore(head, former.vm if former else None)
            if former:
                await former.quit()
                await former.close()
                self.session = None
                self._tell_absence(head)
            return await RestoreTransaction(self, head, domain, stream, started).launch(how)

    @contextlib.asynccontextmanager
    async def _memory_for(self, need: MemoryNeed, how: Launch | None = None, held: int = 0) -> t.AsyncIterator[None]:
        """The host has the memory that the restore takes, and for the body no other restore of this run gets it.

        :param how: how the QEMU is started; None where it is there.
        :param held: bytes that it has already.
        :raises HostMemoryError: the host has not so much.
        """
        if self.request.memory == "ignore":
            yield
            return
        subject = f"The restore of {self.subject}"
        if how and how.argv:
            await require_within_limits(need, how, subject)
        wanted = max(0, need.ordinary - held)
        if self.request.check_mode:
            # For the whole run: the others have to do with what is left.
            self.memory.claim(wanted, subject)
            yield
            return
        with self.memory.claimed(wanted, subject):
            yield

    async def _check(
        self, head: ImageHead, domain: domain_xml.ParsedDomain, vm: RunningVm | None
    ) -> StreamFacts | None:
        """See that the image may be restored, as far as can be known without QEMU's help; what its stream says."""
        if self.request.disks == "check":
            await in_thread(require_last_save, self, head)
            await looking(require_same_disks, self, head, domain, vm is not None)
        require_loadable(self, vm)
        return await check_image(self, head)

    def _would_restore(self, head: ImageHead, vm: RunningVm | None) -> dict[str, t.Any]:
        after = self.outcome(self.wants_running(head), self.was_suspended(head))
        return self.result(f"{self.subject} would be restored from {self.path}", vm, after)

    def _without_image(self, vm: RunningVm | None) -> dict[str, t.Any]:
        """No guest, and no image. In check mode an earlier task may only have said that it would make it.

        :raises ImageNotFoundError: not in check mode.
        """
        archived = image_result(self.path)["state"] == "archived"
        subject = "the VM" if self.subject == self.path else self.subject
        guest = f"{vm.label} waits for one" if vm else f"{subject} is not running"
        if self.request.check_mode:
            self.warnings.append(
                f"There is {'only an archive of the' if archived else 'no'} image {self.path}, and {guest}: nothing"
                " of it could be checked. Without check mode this fails, unless a task before this one makes the image"
            )
            runs = {"as_saved": "as saved"}.get(self.request.state, self.request.state)
            image = "absent" if self.request.remove_image else "complete"
            msg = f"{vm.label if vm else subject} would be restored from {self.path}, if that is there by then"
            return self.result(msg, vm, {"image": image, "vm": runs})
        raise ImageNotFoundError(
            self.path,
            f"there is no image to restore, and {guest}",
            cure="It was archived: expand it first (vmops.qemu.qemu_save_image with archive: none)"
            if archived
            else self.selection.cure()
            or "Check name, path and save_dir (vmops.qemu.qemu_save_image_info lists a directory)",
        )

    # --- deciding ---

    async def _find(
        self, domain: domain_xml.ParsedDomain | None, recorded: RecordedIdentity | None, head: ImageHead | None
    ) -> Monitor | None:
        """A session with the VM's QEMU, if one runs already, or is started by someone else in time (``attach``).

        :param domain: and ``head``: those of the image, where it is there.
        :param recorded: as for ``connect_to_vm``.
        """
        selection, find = self.selection, None
        if self.at_hand:
            selection = self.at_hand
        elif domain:
            selection, find = Selection(domain.name), functools.partial(self._candidates, domain, recorded)
        waits = self.request.launch == "attach" and not self.request.check_mode
        deadline = time.monotonic() + (self.request.attach_timeout if waits else 0.0)
        while True:
            try:
                warnings: list[str] = []
                monitor = await connect_to_vm(
                    selection, self.request.qmp_socket, self.locks, warnings, recorded, head is not None, find
                )
            except (MonitorMissingError, MonitorProtocolError):
                # One that is just starting has no socket yet, or has closed it again.
                monitor = None
                if time.monotonic() >= deadline:
                    raise
            if monitor or self.request.launch != "attach" or time.monotonic() >= deadline:
                break
            await asyncio.sleep(_ATTACH_INTERVAL)
        self.warnings += warnings
        if monitor is None and self.at_hand:
            self._tell_absence(head)
            raise VmNotFoundError(
                f"No running QEMU {self.at_hand.predicate()}{doubtful_note()}. {running_note(details)}",
                cure="Give the pid of the QEMU that waits, or leave it out",
            )
        if monitor is None and (waits or self.request.attach_timeout <= 0):
            self._tell_absence(head)
            self._require_launch()
        return monitor

    def _candidates(self, domain: domain_xml.ParsedDomain, recorded: RecordedIdentity | None) -> list[QemuProcess]:
        """The QEMUs that may have the image's VM, and those of other users that say so by its name."""
        as_recorded = self.request.launch == "recorded"
        return [
            process
            for process in list_processes()
            if may_be_vm(process, domain, as_recorded)
            or (process.name == domain.name and not is_trusted(process.uid, recorded))
        ]

    def _tell_absence(self, head: ImageHead | None) -> None:
        """No QEMU has the guest."""
        if head:
            sentence = f"{self.subject} is not running, and {self.untouched}"
            self.situation = Situation(sentence, self.word_for(head))
        else:
            self.situation = Situation(f"{self.subject} is not running", "unknown" if doubtful_note() else "ended")

    def _require_launch(self) -> None:
        """None runs; in check mode an earlier task may only have said that it would start one.

        :raises VmNotFoundError: none may be started; not in check mode.
        """
        if self.request.launch != "attach":
            return
        waited = f" within {self.request.attach_timeout:g} seconds" if self.request.attach_timeout > 0 else ""
        what = f"There is no QEMU of {self.subject} to attach to"
        if self.request.check_mode:
            self.warnings.append(f"{what} yet. Without check mode this fails, unless a task before this one starts it")
            return
        raise VmNotFoundError(f"{what}{waited}", cure="Start it with -incoming defer, or use launch: recorded")

    async def _how_to_launch(self, domain: domain_xml.ParsedDomain, machine: str, former: int | None = None) -> Launch:
        """How to start the QEMU that shall load the image.

        :param former: the process id of one that is ended before.
        """
        if self.request.launch == "attach":
            return Launch(argv=())  # in check mode only: someone else will start it
        if self.request.launch == "command":
            return Launch(argv=tuple(command_line.restore_command(self.request.command or [], machine)), cwd="/")
        how, warning = await recorded_launch(self.path, domain, machine, self.request.check_mode, former)
        self.warnings += [warning] if warning else []
        uid = domain.launch.uid if domain.launch else os.geteuid()
        needs = self._recorded_needs(domain)
        self.provision = await looking(Provision, domain.name, needs, uid, bool(how.unit and how.unit_argv))
        await self.provision.require(goes_on=True)
        return how

    async def _earlier_launch(self, domain: domain_xml.ParsedDomain) -> Launch | None:
        """How an earlier run may have started the QEMU that waits, and was killed before it was done with that."""
        how = earlier_launch(domain) if self.request.launch == "recorded" else None
        if how and domain.launch:
            needs, by_unit = self._recorded_needs(domain), bool(domain.launch.unit_argv)
            self.provision = await looking(Provision, domain.name, needs, domain.launch.uid, by_unit)
        return how

    def _recorded_needs(self, domain: domain_xml.ParsedDomain) -> Needs:
        """What the QEMU needs to be started; nothing of an image that does not record it.

        :raises ImageFormatError: that makes no sense: it may need anything.
        """
        text = domain.save_facts.surroundings if domain.save_facts else ""
        try:
            return Surroundings.parse(text).needs if text else Needs()
        except ValueError as exc:
            raise ImageFormatError(
                self.path,
                f"its record of what its QEMU needs cannot be read: {exc}",
                cure="Restore it with launch: command or launch: attach",
            ) from exc

    # --- what an earlier run left, and a VM that is there ---

    async def _end_interrupted_restore(
        self, session: VmSession, head: ImageHead | None, interrupted: InterruptedRestore
    ) -> dict[str, t.Any] | None:
        """What a restore that was killed left in this QEMU.

        A guest that was loaded goes on as it should; a QEMU that is of no use is ended, and the monitor lost with it.

        :returns: the module's return values, or None where the image is still to be loaded.
        :raises ConflictError: it was from another image.
        """
        vm = session.vm
        image = interrupted.record.image
        of_this = interrupted.is_of_image(self.path)
        if image != self.path and interrupted.is_of_image(image):
            raise ConflictError(
                f"{vm.label} was being restored from {image} by a run that was cut off",
                cure=f"Run the task with path {image}, which ends that restore",
            )
        used = head if of_this else None
        wanted = self.wants_running(used) if used else self._goes_on(vm)
        if self.request.check_mode:
            if used and vm.run_state == "paused":
                await self._require_disks_of_loaded(session, used, interrupted)
            after = self.outcome(wanted)
            return self.result(f"{vm.label}: the restore of an earlier run from {image} would be ended", vm, after)
        self.situation = Situation(f"{vm.label} is being loaded by its QEMU for an earlier run")
        left = await interrupted.wait(self.path if of_this else image)
        if left == "waiting":
            await despite_cancellation(interrupted.transfer.clean())
            return None
        if left == "useless":
            await self._require_image_of_useless(session, used, image)
            await despite_cancellation(session.end())
            self._tell_absence(used)
            await session.close()
            self._require_launch()
            return None
        if used:
            await self._require_disks_of_loaded(session, used, interrupted)
        finish = self._finish_adopted(session, used, wanted, interrupted.transfer)
        removed = await despite_cancellation(finish)
        run_state = session.vm.run_state
        after = {"image": "absent" if removed or not of_this else "complete", "vm": run_state}
        return self.result(f"{vm.label} was restored by an earlier run that was cut off: it is {run_state}", vm, after)

    async def _finish_adopted(
        self, session: VmSession, head: ImageHead | None, running: bool, transfer: Transfer | None = None
    ) -> bool:
        """As :func:`finish_restore`, of a guest that this run has not loaded."""
        if head:
            await mark_used(self, head, adopted=True)
        return await finish_restore(self, session, head, running, transfer=transfer)

    async def _require_disks_of_loaded(
        self, session: VmSession, head: ImageHead, interrupted: InterruptedRestore
    ) -> None:
        """Until a guest that was loaded goes on, nothing keeps another QEMU from its disks.

        :raises ConflictError: there is a newer image of the VM.
        :raises DiskMismatchError: its disks are not those of its memory.
        """
        vm, run_state = session.vm, await session.run_state()
        if self.request.disks != "check" or run_state in LIVE_STATES:
            return
        self.situation = Situation(f"{vm.label} stands still in its QEMU, and its image was kept", guest_in(run_state))
        # The mark may be of that restore itself.
        header = dataclasses.replace(head.header, checkpoint=interrupted.record.identity.marked)
        head = dataclasses.replace(head, header=header)
        self.load_note = await in_thread(LoadNote.of, head)
        try:
            await in_thread(require_last_save, self, head)
            await looking(require_same_disks, self, head, head.domain(), True)
            await require_same_media(self, session, head)
        except (ConflictError, DiskMismatchError) as exc:
            exc.cure = (
                f"If {vm.label} has run elsewhere since, end this QEMU; if it surely has not, let it go on with QMP"
                " cont and run the task again"
            )
            raise

    async def _require_image_of_useless(self, session: VmSession, head: ImageHead | None, image: str) -> None:
        """See that a guest is not lost with a QEMU that may hold but a part of it, or has one that went on since.

        :param head: that of the image from which it was being restored, where that is at the run's path.
        :param image: where the image was.
        :raises ConflictError: the image is not there any more.
        :raises DiskMismatchError: the guest may have gone on from it.
        """
        vm = session.vm
        run_state = await session.run_state()
        self.situation = Situation(f"{vm.label} was not touched (QEMU's run state is {run_state})", guest_in(run_state))
        if head is None:
            raise ConflictError(
                f"{vm.label} was being restored from {image} by a run that was cut off, and whether all of it was"
                " loaded is not known; that image is not there any more",
                cure="Put the image back and run the task again; or end this QEMU, if the guest's truth is elsewhere",
            )
        if head.header.checkpoint and self.request.disks == "check":
            await in_thread(require_same_disks, self, head, head.domain(), False)

    async def _with_running_vm(self, session: VmSession, head: ImageHead | None) -> dict[str, t.Any]:
        """A VM that is there is not restored over; a save that was cut short before its end is undone."""
        vm = session.vm
        interrupted = await InterruptedSave.find(session)
        if head and vm.run_state == "postmigrate" and await is_last_migration(session.monitor, head):
            return await self._continue_saved_vm(session, head, interrupted)
        if interrupted:
            return await self._undo_save(session, interrupted)
        if vm.run_state == "postmigrate":
            raise ConflictError(
                f"{vm.label} is stopped after a migration that is not the one which wrote {self.path}",
                cure="Find out where the guest's truth is now: in this QEMU (QMP cont), in the image, or elsewhere",
            )
        if head and self.load_note and self.load_note.stands:
            raise ConflictError(
                f"{vm.label} is {vm.run_state} although a restore of {self.path} was cut off: it was started from its"
                f" disks, one of which the image alone holds{self.load_note.warning}",
                cure="End it before it writes more, and restore",
            )
        if head and not head.header.checkpoint:
            raise ConflictError(
                f"{vm.label} is {vm.run_state} although {self.path} is a complete image of it: it was not started from"
                " that, but from its disks",
                cure="If what runs is right, remove the image. If not, end it before it writes more, and restore with"
                " disks: check, which says whether the image still fits the disks",
            )
        no_use = f"there is no image at {self.path}" if head is None else f"the image {self.path} was not used"
        if vm.run_state == "paused" and self._goes_on(vm) and await self._is_left_alone(session):
            return await self._let_go_on(session, no_use)
        there = f"{vm.label} runs already" if vm.run_state == "running" else f"{vm.label} is there, {vm.run_state}"
        msg = f"{there}, and {no_use}" if head is None else f"{there}; {no_use}"
        if self.request.state != "as_saved" and (vm.run_state in LIVE_STATES) != (self.request.state == "running"):
            if vm.run_state in LIVE_STATES:
                as_it_is = "It was not paused: a restore stops no guest that runs"
            elif vm.run_state == "paused":
                as_it_is = "It was not let go on, as QEMU is still at a migration of somebody else's"
            else:
                as_it_is = "It was not let go on, as it does not stand still because somebody has paused it"
            self.warnings.append(f"{there}, although state is {self.request.state}. {as_it_is}")
            msg = f"{msg}; it is left as it is, although state is {self.request.state}"
        left, _problem = await free_units("", vm.process, self.path, self.request.check_mode)
        if left:
            return self.result(f"{msg}; what an interrupted run left in its systemd unit is removed", vm, self.before)
        return self.result(msg, vm)

    def _goes_on(self, vm: RunningVm) -> bool:
        """Whether the guest of a QEMU that loads nothing runs after it: one that runs, or is paused and shall run."""
        return vm.run_state in LIVE_STATES or (vm.run_state == "paused" and self.request.state == "running")

    async def _is_left_alone(self, session: VmSession) -> bool:
        """Whether nobody else saves or moves the guest just now: it may have been paused for that."""
        return (await query_state(session.monitor))["status"] in IDLE_STATES

    async def _let_go_on(self, session: VmSession, no_use: str) -> dict[str, t.Any]:
        """A guest that was paused, and shall run.

        :param no_use: that nothing is loaded, as a clause.
        """
        vm = session.vm
        after = {"image": self.before["image"], "vm": "running"}
        if self.request.check_mode:
            return self.result(f"{vm.label} is paused, and would go on; {no_use}", vm, after)
        await despite_cancellation(finish_restore(self, session, None, running=True))
        return self.result(f"{vm.label} was paused, and goes on; {no_use}", vm, after)

    async def _undo_save(self, session: VmSession, interrupted: InterruptedSave) -> dict[str, t.Any]:
        """A save that was cut off before its end: its guest still stands in QEMU.

        :raises ConflictError: it was cut off so late that its image is complete, at another path.
        """
        vm = session.vm
        completed = await interrupted.completed_image()
        if completed:
            raise ConflictError(
                f"{vm.label} was saved to {completed}, not to {self.path}, by a run that was cut off before its end",
                cure=f"Run the task with path {completed}: then the guest goes on, and that image is gone",
            )
        partial = interrupted.adopt_file()
        run_state = interrupted.record.run_state
        goes_on = run_state == "paused" and self.request.state == "running"
        after = {"image": self.before["image"], "vm": "running" if goes_on else run_state}
        if self.request.check_mode:
            if partial:
                await interrupted.require_not_gone_on_elsewhere(partial)
                partial.release()
            return self.result(f"{vm.label} was being saved by a run that was cut off: would put it back", vm, after)
        await despite_cancellation(interrupted.undo(partial))
        now = await session.run_state()
        if now == "postmigrate" or (await query_state(session.monitor))["status"] not in IDLE_STATES:
            raise ConflictError(
                f"{vm.label} went on after a save that was cut off, and somebody else has migrated it, or does so",
                cure="See where it runs when that is done; end this QEMU if that is elsewhere",
            )
        goes_on = now == "paused" and self.request.state == "running"
        after["vm"] = "running" if goes_on else now
        if goes_on:
            await despite_cancellation(finish_restore(self, session, None, running=True))
        else:
            await despite_cancellation(free_units("", vm.process, self.path))
        return self.result(
            f"{vm.label} was being saved by a run that was cut off: it was put back and is {after['vm']}", vm, after
        )

    async def _continue_saved_vm(
        self, session: VmSession, head: ImageHead, interrupted: InterruptedSave | None
    ) -> dict[str, t.Any]:
        """A VM that was saved, but whose QEMU has not ended: it goes on there, and the image is done with.

        One that sleeps cannot go on there, but in a new QEMU.
        """
        vm = session.vm
        if self.was_suspended(head):
            self._require_launch()
            return await self._without_vm(head, head.domain(), time.monotonic(), session)
        if self.request.disks == "check":
            await in_thread(require_last_save, self, head)
            await looking(require_not_gone_on_elsewhere, head, vm.label)
        running = self.wants_running(head)
        after = self.outcome(running, self.was_suspended(head))
        reason = f"{vm.label} was saved, but its QEMU had not ended"
        if self.request.check_mode:
            return self.result(f"{reason}: would go on with it", vm, after)
        if interrupted:
            # With its note gone, this QEMU is still known for the one that wrote the image.
            await despite_cancellation(interrupted.transfer.clean())
        await despite_cancellation(self._finish_adopted(session, head, running))
        return self.result(f"{reason}: it {'goes on' if running else 'stays paused'} there", vm, after)
