# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Saving a running VM into a save image: what there is to do, decided from the image at the path and the VM together.

======================================= ==================================== ==========================================
image at the path                       VM                                   what is done
======================================= ==================================== ==========================================
complete, of this VM                    not running                          nothing: already saved
complete, of this VM                    stopped since it was written         that save is finished
partial, QEMU writes it still           any                                  that save is taken over
partial, of a save that came to nothing running                              that save is undone, and the VM is saved
complete                                running                              refused without ``force``
of another VM                           any                                  refused without ``force``
none                                    running                              the VM is saved
none                                    not running                          refused: there is nothing to save
======================================= ==================================== ==========================================
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import time
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._cancellation import despite_cancellation, in_thread, looking
from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    ConflictError,
    GuestGoneError,
    ImageError,
    ImagePartialError,
    MismatchError,
    MonitorMissingError,
    RequestError,
    UnsupportedByQemuError,
    VmNotFoundError,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image import domain_xml
from ansible_collections.vmops.qemu.plugins.module_utils._image.compressor import COMPRESSORS
from ansible_collections.vmops.qemu.plugins.module_utils._image.edit import mark_checkpoint
from ansible_collections.vmops.qemu.plugins.module_utils._image.head import ImageHead
from ansible_collections.vmops.qemu.plugins.module_utils._image.header import ImageFormat
from ansible_collections.vmops.qemu.plugins.module_utils._image.identity import ImageIdentity
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_file import read_image_head
from ansible_collections.vmops.qemu.plugins.module_utils._image.info import image_result, image_state
from ansible_collections.vmops.qemu.plugins.module_utils._image.lookup import find_image
from ansible_collections.vmops.qemu.plugins.module_utils._image.names import image_path, target_of_partial
from ansible_collections.vmops.qemu.plugins.module_utils._image.partial import PartialImage
from ansible_collections.vmops.qemu.plugins.module_utils._image.place import flush_image, require_replaceable
from ansible_collections.vmops.qemu.plugins.module_utils._image.vouching import is_vouched
from ansible_collections.vmops.qemu.plugins.module_utils._launch import recorded_identity
from ansible_collections.vmops.qemu.plugins.module_utils._names import label_of_unit, means_unit
from ansible_collections.vmops.qemu.plugins.module_utils._operation import connect_to_vm, is_last_migration
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.identity import details
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.migration import read_support
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import (
    QemuProcess,
    doubtful_note,
    list_processes,
    running_note,
)
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.selection import (
    Selection,
    distinct_names,
    own_name,
)
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.session import VmSession
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.vm import LIVE_STATES, RunningVm
from ansible_collections.vmops.qemu.plugins.module_utils._restore.in_qemu import InterruptedRestore
from ansible_collections.vmops.qemu.plugins.module_utils._save.ending import end_save, guard, unit_of
from ansible_collections.vmops.qemu.plugins.module_utils._save.image_at import (
    existing_image,
    image_owner,
    is_image_of,
    recorded_surroundings,
    require_not_gone_on_elsewhere,
    saved_at,
)
from ansible_collections.vmops.qemu.plugins.module_utils._save.in_qemu import InterruptedSave
from ansible_collections.vmops.qemu.plugins.module_utils._save.plan import plan_save
from ansible_collections.vmops.qemu.plugins.module_utils._save.request import SaveRequest
from ansible_collections.vmops.qemu.plugins.module_utils._save.run import SaveRun
from ansible_collections.vmops.qemu.plugins.module_utils._save.transaction import SaveTransaction
from ansible_collections.vmops.qemu.plugins.module_utils._situation import Situation, guest_in
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.media_changes import settling_time

#: Run states in which a guest can be saved. The others mean that QEMU is busy with another migration or snapshot, or
#: that the guest is gone.
_SAVABLE_STATES = LIVE_STATES | {"paused", "prelaunch", "io-error", "watchdog"}
_GONE_STATES = frozenset(("shutdown", "guest-panicked", "internal-error"))

_RUN_STATE_CURES = {
    "inmigrate": "This QEMU waits for a saved state: restore into it (qemu_restore), or end it",
    "postmigrate": "An earlier migration stopped it, and no image at this path is of that one: if the guest runs"
    " nowhere else, let it run on (QMP cont) and save again",
    "finish-migrate": "Another migration is just ending: wait for it",
    "shutdown": "The guest has shut down: there is nothing to save",
    "guest-panicked": "The guest has crashed: reset it, or end it",
    "internal-error": "The guest has crashed in a way that QEMU or KVM cannot handle: reset it, or end it",
}


class SaveOperation(SaveRun):
    """One save, from the look at image and VM to the result."""

    def __init__(self, request: SaveRequest, known: t.Sequence[QemuProcess] | None = None) -> None:
        """:param known: the QEMUs that may be meant, where they are known already; None to look for them."""
        super().__init__(request)
        self._known = known
        #: The identity of an image from which the guest that runs was restored: worth nothing any more.
        self._used_image: ImageIdentity | None = None

    async def _run(self) -> dict[str, t.Any]:
        if self.path:
            await self.locks.take_image(self.path)
        several: ConflictError | None = None
        try:
            saved = self.path or await self._saved_path()
        except ConflictError as exc:
            saved, several = "", exc
        head = self._readable_image(saved)
        domain = head.domain() if head else None
        known = self._known
        monitor = await connect_to_vm(
            self.selection or Selection(domain.name if domain else ""),
            self.request.qmp_socket,
            self.locks,
            self.warnings,
            recorded=recorded_identity(domain),
            # A complete image stands for the VM: another user's QEMU of its name does not replace it.
            must_match=head is not None and head.header.complete and not head.header.checkpoint,
            find=None if known is None else lambda: known,
            for_image=True,
        )
        if monitor is None:
            if several:
                raise several
            if not self.path:
                await self._work_on(saved)
            return self._already_saved()
        session = await VmSession.open(monitor)
        try:
            return await self._run_with_vm(session)
        finally:
            await session.close()

    # --- which VM, and which image ---

    async def _saved_path(self) -> str:
        """Where the VM's image is, or where it would be if it had no other name; empty where only the VM can tell.

        :raises ConflictError: it has several, and none is the last one.
        """
        chosen = self.selection
        if not (chosen.uuid or chosen.unit):
            return ""
        found = await in_thread(
            functools.partial(find_image, vouched=True), self.request.save_dir, chosen.name, chosen.uuid, chosen.unit
        )
        return found or image_path(
            None, self.request.save_dir, chosen.name or chosen.uuid or label_of_unit(chosen.unit)
        )

    async def _work_on(self, path: str) -> None:
        """Take the path for the image's, where there is one."""
        self.path = path
        if path:
            await self.locks.take_image(path)
            self.before["image"] = image_state(path)

    async def _name_without_name(self, vm: RunningVm) -> str:
        """What a VM without a name is called in its image, which must call it something."""
        if self.request.domain_xml:
            return domain_xml.parse(self.request.domain_xml, "domain_xml").name
        return vm.uuid or label_of_unit(await unit_of(vm.process)) or "vm"

    async def _name_for_image(self, vm: RunningVm) -> str:
        """The name that the VM's image gets in the save directory, where the options do not say it.

        :raises RequestError: the VM has nothing by which it could be found again.
        """
        process, name = vm.process, vm.name or vm.uuid
        if process:
            others = [each for each in await in_thread(list_processes) if each.pid != process.pid]
            name = distinct_names([*others, process])[process.pid]
        if not name and not vm.name:
            name = label_of_unit(await unit_of(process))
        if not name:
            raise RequestError(
                f"{vm.label} has no {'uuid' if vm.name else 'name, uuid or unit of its own'} by which its image could"
                f" be told from {'that of another VM of its name' if vm.name else 'those of others'}",
                cure="Say where its image goes, in path; or start it with -uuid",
            )
        return name

    async def _begun_path(self, session: VmSession) -> str:
        """The image that an earlier run has begun under another name: when other VMs of the name ran, or none.

        It counts only as what that run would have called it in the save directory; else it is the empty string.
        """
        interrupted = await InterruptedSave.find(session)
        process = session.process
        if interrupted is None or process is None or self.request.path:
            return ""
        with contextlib.suppress(RequestError):
            target = target_of_partial(interrupted.record.partial)
            for name in filter(None, (session.vm.name, own_name(process))):
                if target == image_path(None, self.request.save_dir, name):
                    return target
        return ""

    async def _require_free_name(self, vm: RunningVm) -> None:
        """A VM without a name gets the one that is asked for, in its image: see that it is no other VM's.

        :raises MismatchError: it is.
        """
        name = self.selection.name
        if not name or vm.name:
            return
        pid = vm.process.pid if vm.process else None
        others = [each for each in await in_thread(Selection(name).find) if each.pid != pid]
        if others:
            raise MismatchError(
                f"The VM that is meant has no name, and {name} is another one ({others[0].who})",
                cure="Leave name out, or give this VM's image another one",
            )

    # --- deciding ---

    def _already_saved(self) -> dict[str, t.Any]:
        """The result for a VM that does not run: its image must be there."""
        self.situation = Situation(f"{self.subject} is not running", "unknown" if doubtful_note() else "ended")
        if self.selection == Selection(pid=self.selection.pid) and self.selection.pid:
            raise VmNotFoundError(
                f"No running QEMU has the pid {self.selection.pid}, and by that no image can be known{doubtful_note()}."
                f" {running_note(details)}",
                cure="Choose the VM by its name, uuid or unit, by which its image is known, too",
            )
        head = existing_image(self.path)
        if head is None:
            archived = image_result(self.path) if self.path else {}
            if archived.get("state") == "archived" and self._is_chosen(archived["name"], archived["uuid"] or ""):
                return self.result(f"{self.subject} is already saved, in the archive {archived['path']}", None)
            if self.request.qmp_socket:
                raise MonitorMissingError(
                    f"No QEMU answers at the QMP socket {self.request.qmp_socket}"
                    + (f", and there is no image at {self.path}" if self.path else "")
                    + ": there is nothing to save",
                    cure="Check that the VM runs and that its -qmp option names this path",
                )
            where = f", and there is no image at {self.path}" if self.path else ""
            by_name = self.selection.is_by_name
            raise VmNotFoundError(
                f"No running QEMU {self.selection.predicate()}{where}: there is nothing to save{doubtful_note()}."
                f" {running_note(None if by_name else details)}",
                cure=self.selection.cure()
                or f"Check {'the name' if by_name else 'by what it is chosen'}, or give the VM's qmp_socket",
            )
        if not head.header.complete:
            raise ImagePartialError(
                self.path,
                f"the image is partial, its save never finished, and {self.subject} is not running: nothing can be"
                " saved any more",
                cure="Start the VM from its disks, and remove the file",
            )
        if not self._holds_chosen(head):
            raise ConflictError(
                f"{self.subject} is not running, and {self.path} holds another VM ({image_owner(head)})",
                cure="Give the path of this VM's image, or start the VM",
            )
        if head.header.checkpoint:
            raise VmNotFoundError(
                f"{self.subject} is not running, and {self.path} is a checkpoint from which its guest went on: what it"
                " did since is in no image",
                cure="Start the VM from its disks, or restore the checkpoint if they are still those of its moment",
            )
        return self.result(f"{self.subject} is already saved in {self.path} and does not run", None)

    def _holds_chosen(self, head: ImageHead) -> bool:
        """Whether an image is known to hold the VM that is meant and does not run."""
        domain = head.domain()
        unit = domain.launch.unit if domain.launch and is_vouched(domain) else ""
        if self.selection.unit and not means_unit(self.selection.unit, unit):
            return False
        if self.selection.name or self.selection.uuid:
            return self._is_chosen(domain.name, domain.uuid)
        return bool(self.selection.unit) or is_image_of(head, None, "", self.request.qmp_socket)

    def _is_chosen(self, name: str | None, uuid: str) -> bool:
        """Whether a VM has the name and the UUID that are asked for, where they are."""
        chosen = self.selection
        return bool(chosen.name or chosen.uuid) and chosen.name in ("", name) and chosen.uuid in ("", uuid)

    def _readable_image(self, path: str) -> ImageHead | None:
        """The head of the image at the path, where there is one of the VM that is meant and that can be read."""
        with contextlib.suppress(ImageError):
            head = existing_image(path)
            chosen = self.selection
            if head and chosen.name in ("", head.domain().name) and chosen.uuid in ("", head.domain().uuid):
                return head
        return None

    async def _is_finished_save(self, session: VmSession) -> bool:
        """Whether the VM stands still since a save that is complete at the path."""
        with contextlib.suppress(ImageError):
            head = existing_image(self.path)
            if head and head.header.complete and session.vm.run_state == "postmigrate":
                return self.is_image_of(head, session.vm) and await is_last_migration(session.monitor, head)
        return False

    async def _require_savable(self, session: VmSession) -> None:
        """Refuse a run state.

        :raises GuestGoneError: there is no guest any more.
        :raises ConflictError: QEMU cannot save a guest in this state.
        :raises UnsupportedByQemuError: this QEMU cannot, and a newer one could.
        """
        vm = session.vm
        if vm.run_state == "suspended":
            support = await read_support(session.monitor)
            if not support.suspended:
                raise UnsupportedByQemuError(
                    f"{vm.label} sleeps (S3, QEMU's run state suspended), and QEMU {support.version} would wake it to"
                    " save it: it keeps a guest asleep from version 9.0 on",
                    cure="Wake the guest (QMP system_wakeup) and save it then",
                )
            image_format = ImageFormat.from_label(self.request.format) if self.request.format else None
            if self.request.after_save != "quit" or image_format in COMPRESSORS:
                wanted = f"after_save: {self.request.after_save}"
                raise UnsupportedByQemuError(
                    f"{vm.label} sleeps (S3), and QEMU cannot let it go on in the same process once it is saved, so it"
                    f" is not saved with {f'format: {image_format.label}' if image_format in COMPRESSORS else wanted}",
                    cure="Save it with after_save: quit and format: sparse or raw, or wake it first (QMP"
                    " system_wakeup)",
                )
        if vm.run_state not in _SAVABLE_STATES:
            kind = GuestGoneError if vm.run_state in _GONE_STATES else ConflictError
            raise kind(
                f"{vm.label} is in QEMU's run state {vm.run_state} and cannot be saved from there",
                cure=_RUN_STATE_CURES.get(vm.run_state, "Bring the guest into the state running or paused first"),
            )

    def _require_replaceable(self, vm: RunningVm) -> None:
        """Refuse to replace what is at the path, unless it may be.

        :raises ConflictError: it is an image, or something else, that only ``force`` replaces.
        :raises RequestError: it is no file at all.
        """
        require_replaceable(self.path)
        if self.request.force or (self._used_image and self._used_image.is_that_of(self.path)):
            return
        try:
            head = existing_image(self.path)
            if head is None:
                return
            ours = self.is_image_of(head, vm)
        except ImageError as exc:
            raise ConflictError(
                f"What is at the path is not a save image that can be read, so it is not replaced: {exc.what}",
                cure="Choose another path, remove the file, or use force",
            ) from exc
        if not ours:
            raise ConflictError(
                f"{self.path} holds another VM ({image_owner(head)}), not {vm.label}",
                cure="Choose another path; force replaces the other VM's image",
            )
        if head.header.complete:
            raise ConflictError(
                f"{vm.label} runs although {self.path} is a complete image of it, saved {saved_at(head)}",
                cure="Remove the image if it is stale, or use force to replace it",
            )

    async def _run_with_vm(self, session: VmSession) -> dict[str, t.Any]:
        self.session = session
        vm = session.vm
        self.subject = vm.label
        self.situation = Situation(f"{vm.label} was not touched (QEMU's run state is {vm.run_state})")
        self.selection.require(vm, session.monitor.shown_address)
        self.situation = dataclasses.replace(self.situation, guest=guest_in(vm.run_state))
        if vm.process:
            await self.locks.take_vm(vm.process)
        await self._require_free_name(vm)
        self.name_in_image = vm.name or self.selection.name or await self._name_without_name(vm)
        begun = await self._begun_path(session)
        if begun and begun != self.path:
            await self._work_on(begun)
        if not self.path:
            name = self.selection.name if not vm.name else ""
            await self._work_on(image_path(None, self.request.save_dir, name or await self._name_for_image(vm)))
        self.before = {"image": image_state(self.path), "vm": vm.run_state}
        await self._end_interrupted_restore(session)
        interrupted = await InterruptedSave.find(session)
        if interrupted:
            partial = interrupted.adopt_file()
            if partial and await interrupted.has_stream(partial) and partial.header.format not in COMPRESSORS:
                return await self._adopt(session, interrupted, partial)
            completed = None if partial else await interrupted.completed_image()
            if completed and completed != self.path:
                raise ConflictError(
                    f"{vm.label} was saved to {completed} by an earlier run that was cut off before its end",
                    cure=f"Run the task with path {completed}, which ends that save",
                )
            if not completed:
                await self._undo(session, interrupted, partial)
        if await self._is_finished_save(session):
            return await self._finish_earlier_save(session, interrupted)
        await self._require_savable(session)
        self._require_replaceable(session.vm)
        started = time.monotonic()
        plan = await plan_save(self, session)
        if self.request.check_mode:
            result = self.result(
                f"{vm.label} would be saved in {self.path} ({plan.format.label}, version"
                f" {self.request.image_version}), then {self.request.after_save}",
                session.vm,
                self.outcome(),
            )
            return {**result, **plan.as_result()}
        return await SaveTransaction.save(self, session, plan, started)

    # --- what an earlier run left ---

    async def _end_interrupted_restore(self, session: VmSession) -> None:
        """A restore was cut off after its guest ran on: put QEMU back, and know its image for a used one.

        :raises ConflictError: it was cut off before its guest ran.
        """
        restore = await InterruptedRestore.find(session)
        if restore is None:
            return
        if session.vm.run_state not in LIVE_STATES:
            raise ConflictError(
                f"{session.label} was being restored from {restore.record.image} by a run that was cut off",
                cure=f"Run qemu_restore with path {restore.record.image}, which ends that restore, then save",
            )
        if restore.is_of_image(self.path):
            self._used_image = restore.record.identity
        if not self.request.check_mode:
            await despite_cancellation(restore.transfer.clean())

    async def _adopt(self, session: VmSession, interrupted: InterruptedSave, partial: PartialImage) -> dict[str, t.Any]:
        """QEMU went on with a save whose run was killed: wait for it and finish it."""
        if partial.target != self.path:
            partial.release()
            raise ConflictError(
                f"{session.label} is being saved to {partial.target} by an earlier run that was cut off",
                cure=f"Run the task with path {partial.target}, which finishes that save",
            )
        try:
            self._require_replaceable(session.vm)
            if interrupted.record.run_state == "suspended" and self.request.after_save != "quit":
                raise ConflictError(
                    f"{session.label} sleeps (S3) and is being saved by an earlier run, and QEMU cannot let it go on"
                    " there",
                    cure="Run the task with after_save: quit, and restore the image then",
                )
        except ConflictError:
            partial.release()
            raise
        if self.request.check_mode:
            partial.release()
            msg = f"{session.label}: the save of an earlier run to {self.path} would be finished"
            return self.result(msg, session.vm, self.outcome())
        session.vm = dataclasses.replace(session.vm, run_state=interrupted.record.run_state)
        return await SaveTransaction.adopt(self, session, interrupted, partial)

    async def _undo(self, session: VmSession, interrupted: InterruptedSave, partial: PartialImage | None) -> None:
        """A save that was killed before QEMU began, whose file is gone, or whose compressor is: put everything back."""
        if not self.request.check_mode:
            await despite_cancellation(interrupted.undo(partial))
            run_state = await session.run_state()
        else:
            run_state = interrupted.record.run_state
            if partial:
                partial.release()
        session.vm = dataclasses.replace(session.vm, run_state=run_state)

    async def _finish_earlier_save(self, session: VmSession, interrupted: InterruptedSave | None) -> dict[str, t.Any]:
        vm = session.vm
        after_save = self.request.after_save
        reason = f"{vm.label} was saved in {self.path} by an earlier run and stands still since"
        head = read_image_head(self.path)
        if after_save == "quit" and head.header.checkpoint:
            # By a run that was cut off before it went on here, or by a restore into another QEMU: who knows.
            raise ConflictError(
                f"{reason}, but the image is marked as a checkpoint: its guest was to go on, here or in another QEMU",
                cure="If no other QEMU has run the VM since, run the task with after_save: resume, which compares its"
                " disks and lets it go on here, and save it anew with force",
            )
        if after_save == "pause":
            if interrupted and not self.request.check_mode:
                await despite_cancellation(interrupted.transfer.clean())
            return self.result(reason, vm)
        facts = head.domain().save_facts
        if after_save == "resume" and facts and facts.suspended:
            raise ConflictError(
                f"{reason}; it sleeps (S3), and QEMU cannot let it go on there",
                cure="Restore it (qemu_restore), which lets it sleep on in a new QEMU",
            )
        if after_save == "resume":
            await looking(require_not_gone_on_elsewhere, head, vm.label)
        if self.request.check_mode:
            return self.result(f"{reason}: would {after_save}", vm, self.outcome())
        # That run may have been cut short before its last flush.
        await in_thread(flush_image, self.path)
        if after_save == "resume":
            await asyncio.sleep(settling_time(recorded_surroundings(head.domain()).media))
            await in_thread(mark_checkpoint, self.path, head)
        await guard(self, await unit_of(vm.process))
        if interrupted and after_save != "quit":
            await despite_cancellation(interrupted.transfer.clean())
        await despite_cancellation(end_save(self, session, vm.run_state))
        done = "now QEMU has quit" if after_save == "quit" else "now the guest runs again"
        after = self.outcome()
        if after_save == "resume":
            after["vm"] = await session.run_state()
        result = self.result(f"{reason}; {done}", vm, after)
        return {**result, "vm": vm.as_result(after["vm"])}
