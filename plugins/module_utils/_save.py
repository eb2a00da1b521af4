# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Saving a running VM into a save image: one transaction, read from top to bottom.

Check all that can be checked; create the partial image beside the target; stop the guest (or leave it running while
its memory is written); let QEMU write; flush; check the file against what it promises; complete and rename it; only
then let QEMU quit. Whatever goes wrong before the rename puts the guest back as it was and leaves the target alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime
import os
import time
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._cancellation import (
    despite_cancellation,
    in_stoppable_thread,
    in_thread,
)
from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    ConflictError,
    ImageError,
    ImageFormatError,
    ImagePartialError,
    ImageSpaceError,
    MigrationError,
    MismatchError,
    MonitorError,
    MonitorLostError,
    MonitorMissingError,
    NotRestorableError,
    RequestError,
    UnsupportedByQemuError,
    VmNotFoundError,
    VmopsError,
    VouchingKeyError,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image import domain_xml
from ansible_collections.vmops.qemu.plugins.module_utils._image.archive import all_forms
from ansible_collections.vmops.qemu.plugins.module_utils._image.compression import (
    COMPRESSORS,
    Filter,
    make_pipe,
    require_tool,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.digest import stream_digest
from ansible_collections.vmops.qemu.plugins.module_utils._image.edit import mark_checkpoint
from ansible_collections.vmops.qemu.plugins.module_utils._image.file import (
    ImageHead,
    PartialImage,
    file_system,
    flush_image,
    free_bytes,
    image_path,
    make_save_directory,
    read_image_head,
    remove_leftovers,
    require_replaceable,
    require_writable_directory,
    why_unsafe_place,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.header import ImageFormat, SaveImageHeader
from ansible_collections.vmops.qemu.plugins.module_utils._image.identity import ImageIdentity
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_errors import cure_for
from ansible_collections.vmops.qemu.plugins.module_utils._image.verify import domain_problems, structure_problems
from ansible_collections.vmops.qemu.plugins.module_utils._image.vouching import is_vouched, vouch, why_not_vouched
from ansible_collections.vmops.qemu.plugins.module_utils._interrupted_restore import InterruptedRestore
from ansible_collections.vmops.qemu.plugins.module_utils._interrupted_save import InterruptedSave, SaveRecord
from ansible_collections.vmops.qemu.plugins.module_utils._launch import (
    free_units,
    launch_record,
    launch_result,
    recorded_identity,
    starter_reason,
)
from ansible_collections.vmops.qemu.plugins.module_utils._operation import (
    Locks,
    call_off_save,
    check_parallel_channels,
    connect_to_vm,
    default_parallel_channels,
    ended_vm,
    image_result,
    image_state,
    is_last_migration,
    migration_fingerprint,
    put_guest_back,
    qemu_has_ended,
    twice,
)
from ansible_collections.vmops.qemu.plugins.module_utils._progress import Publisher
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import command_line
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.configuration import read_configuration
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.fdset import DescriptorSet
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.migration import (
    IDLE_STATES,
    Migration,
    MigrationSettings,
    MigrationSupport,
    query_state,
    read_support,
)
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.monitor import Monitor, event_seconds
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import (
    ProcessWatch,
    QemuProcess,
    doubtful_note,
    resident_bytes,
)
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.revival import boot_time, look_for_revival, was_reaped
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.unit import (
    VmUnit,
    guard_unit,
    read_vm_unit,
    require_guardable,
)
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.vm import (
    RunningVm,
    query_run_state,
    read_ram_blocks,
    read_vm,
)
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.media_changes import settling_time
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.record import Surroundings
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.supervisor import waits_for
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.survey import read_all_media, survey
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.verdict import (
    Problem,
    blocking,
    warnings_of,
)
from ansible_collections.vmops.qemu.plugins.module_utils._version import COLLECTION_VERSION
from ansible_collections.vmops.qemu.plugins.module_utils._vouching_key import make_key, read_key
from ansible_collections.vmops.qemu.plugins.module_utils._written_bound import WrittenBound

#: Seconds that a QEMU that was told to quit may take to end.
QUIT_TIMEOUT = 60.0

#: Seconds for which a QEMU is looked for that somebody starts again who has seen the end of ours.
_REVIVAL_TIME = 1.5

#: Bytes that a save needs beside the guest's memory: header area, bitmaps, device state, alignment of each block.
_SPACE_MARGIN = 16 * 1024 * 1024

#: Run states in which a guest can be saved. The others mean that QEMU is busy with another migration or snapshot, or
#: that the guest is gone (shutdown, guest-panicked, internal-error).
_SAVABLE_STATES = frozenset(("running", "paused", "prelaunch", "io-error", "watchdog"))

#: Problems that are the image's own.
_OF_THE_IMAGE = frozenset(("image_unsafe", "image_unvouched"))


@dataclasses.dataclass(frozen=True)
class SaveRequest:
    """The options of C(qemu_save), as its documentation describes them; None leaves the choice to the operation."""

    name: str | None
    qmp_socket: str | None
    path: str | None
    save_dir: str
    image_version: int = 3
    format: str | None = None
    parallel_channels: int | None = None
    bypass_cache: bool | None = None
    live: bool = False
    live_timeout: float = 60.0
    vm_state: str = "as_is"
    domain_xml: str | None = None
    after_save: str = "quit"
    cold_boot_guard: bool = True
    require_restorable: bool = True
    force: bool = False
    bandwidth: int | None = None
    checksum: bool = False
    mode: int = 0o600
    uid: int = -1
    gid: int = -1
    check_mode: bool = False


class SaveOperation:
    """One save; C(guest_state) says at any time, in a sentence, how the guest is."""

    def __init__(self, request: SaveRequest) -> None:
        self.request = request
        self.guest_state = "The guest was not touched"
        self.subject = request.name or request.qmp_socket or "the VM"
        self.path = image_path(request.path, request.save_dir, request.name) if request.path or request.name else ""
        self.locks = Locks()
        #: What is to be known of other QEMUs that have the VM's name.
        self.warnings: list[str] = []
        #: The VM's QEMU, as soon as it is known.
        self.process: QemuProcess | None = None
        #: Whether the image is complete.
        self.written = False
        #: The identity of an image from which the guest that runs was restored: worth nothing any more.
        self._used_image: ImageIdentity | None = None
        #: How image and VM were found, for diff mode.
        self.before = {"image": image_state(self.path) if self.path else "absent", "vm": "ended"}

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
                image = f" and the image {self.path} is complete" if self.written else ""
                exc.guest_state = f"{self.subject} has ended{image}"
            exc.guest_state = exc.guest_state or self.guest_state
            raise

    async def _run(self) -> dict[str, t.Any]:
        if self.path:
            self.locks.take_image(self.path)
        head = self._readable_image()
        domain = head.domain() if head else None
        monitor = await connect_to_vm(
            self.request.name or (domain.name if domain else None),
            self.request.qmp_socket,
            self.locks,
            self.warnings,
            recorded=recorded_identity(domain),
            # A complete image stands for the VM: another user's QEMU of its name does not replace it.
            must_match=head is not None and head.header.complete and not head.header.checkpoint,
        )
        if monitor is None:
            return self._already_saved()
        async with monitor:
            return await self._run_with_vm(monitor)

    # --- deciding ---

    def _already_saved(self) -> dict[str, t.Any]:
        """The result for a VM that does not run: its image must be there."""
        self.guest_state = f"{self.subject} is not running"
        head = self._existing_image()
        if head is None:
            archived = image_result(self.path) if self.path and self.request.name else {}
            if archived.get("state") == "archived" and archived["name"] == self.request.name:
                return self.result(f"{self.subject} is already saved, in the archive {archived['path']}", None)
            if self.request.qmp_socket:
                raise MonitorMissingError(
                    f"No QEMU answers at the QMP socket {self.request.qmp_socket}"
                    + (f", and there is no image at {self.path}" if self.path else "")
                    + ": there is nothing to save",
                    cure="Check that the VM runs and that its -qmp option names this path",
                )
            raise VmNotFoundError(
                f"No running QEMU is named {self.request.name}, and there is no image at {self.path}:"
                " there is nothing to save" + doubtful_note(),
                cure="Check the name (ps -C qemu-system-x86_64 -o args), or give the VM's qmp_socket",
            )
        if not head.header.complete:
            raise ImagePartialError(
                self.path,
                f"the image is partial, its save never finished, and {self.subject} is not running: nothing can be"
                " saved any more",
                cure="Start the VM from its disks, and remove the file",
            )
        if not self._is_image_of(head, self.request.name, "", self.request.qmp_socket):
            raise ConflictError(
                f"{self.subject} is not running, and {self.path} holds another VM ({_image_owner(head)})",
                cure="Give the path of this VM's image, or start the VM",
            )
        if head.header.checkpoint:
            raise VmNotFoundError(
                f"{self.subject} is not running, and {self.path} is a checkpoint from which its guest went on: what it"
                " did since is in no image",
                cure="Start the VM from its disks, or restore the checkpoint if they are still those of its moment",
            )
        return self.result(f"{self.subject} is already saved in {self.path} and does not run", None)

    def _readable_image(self) -> ImageHead | None:
        """The head of the image at the path, where there is one of this VM that can be read."""
        with contextlib.suppress(ImageError):
            head = self._existing_image()
            if head and self.request.name in (None, head.domain().name):
                return head
        return None

    def _existing_image(self) -> ImageHead | None:
        if not self.path or not os.path.lexists(self.path):
            return None
        return read_image_head(self.path)

    @staticmethod
    def _is_image_of(head: ImageHead, name: str | None, uuid: str, qmp_socket: str | None) -> bool:
        """Whether the image holds the VM: by uuid where both have one, else by name, else by its recorded socket."""
        domain = head.domain()
        if uuid and domain.uuid:
            return uuid == domain.uuid
        if name:
            return name == domain.name
        launch = domain.launch
        if not qmp_socket or not launch:
            return False
        # Only what is vouched for names files that are read.
        words = read_configuration(launch.argv, launch.cwd).words if is_vouched(domain) else launch.argv
        return os.path.abspath(qmp_socket) in command_line.qmp_addresses(words, launch.cwd)

    async def _is_finished_save(self, monitor: Monitor, vm: RunningVm) -> bool:
        """Whether the VM stands still since a save that is complete at the path."""
        with contextlib.suppress(ImageError):
            head = self._existing_image()
            if head and head.header.complete and vm.run_state == "postmigrate":
                return self._is_image_of(head, vm.name, vm.uuid, None) and await is_last_migration(monitor, head)
        return False

    def _require_savable(self, vm: RunningVm) -> None:
        """:raises ConflictError: QEMU cannot save a guest in this state."""
        if vm.run_state not in _SAVABLE_STATES:
            raise ConflictError(
                f"{vm.label} is in QEMU's run state {vm.run_state} and cannot be saved from there",
                cure=_RUN_STATE_CURES.get(vm.run_state, "Bring the guest into the state running or paused first"),
            )

    def _require_replaceable(self, vm: RunningVm) -> None:
        """Refuse to replace what is at the path, unless it may be.

        :raises ConflictError: it is an image, or something else, that only C(force) replaces.
        :raises RequestError: it is no file at all.
        """
        require_replaceable(self.path)
        if self.request.force or (self._used_image and self._used_image.is_that_of(self.path)):
            return
        try:
            head = self._existing_image()
            if head is None:
                return
            ours = self._is_image_of(head, vm.name, vm.uuid, None)
        except ImageError as exc:
            raise ConflictError(
                f"What is at the path is not a save image that can be read, so it is not replaced: {exc.what}",
                cure="Choose another path, remove the file, or use force",
            ) from exc
        if not ours:
            raise ConflictError(
                f"{self.path} holds another VM ({_image_owner(head)}), not {vm.label}",
                cure="Choose another path; force replaces the other VM's image",
            )
        if head.header.complete:
            raise ConflictError(
                f"{vm.label} runs although {self.path} is a complete image of it, saved {_saved_at(head)}",
                cure="Remove the image if it is stale, or use force to replace it",
            )

    async def _run_with_vm(self, monitor: Monitor) -> dict[str, t.Any]:
        vm = await read_vm(monitor)
        self.process = vm.process
        self.subject = vm.label
        self.guest_state = f"{vm.label} was not touched (QEMU's run state is {vm.run_state})"
        if self.request.name and vm.name and vm.name != self.request.name:
            raise MismatchError(
                f"The QEMU at {monitor.address} runs {vm.name}, not {self.request.name}",
                cure="Correct name or qmp_socket",
            )
        if vm.process:
            self.locks.take_vm(vm.process)
        if not self.path:
            self.path = image_path(None, self.request.save_dir, vm.name)
            self.locks.take_image(self.path)
        self.before = {"image": image_state(self.path), "vm": vm.run_state}
        await self._end_interrupted_restore(monitor, vm)
        interrupted = await InterruptedSave.find(monitor, vm.process)
        if interrupted:
            partial = interrupted.adopt_file()
            if partial and interrupted.has_stream(vm.run_state) and partial.header.format not in COMPRESSORS:
                return await self._adopt(monitor, vm, interrupted, partial)
            completed = None if partial else await interrupted.completed_image()
            if completed and completed != self.path:
                raise ConflictError(
                    f"{vm.label} was saved to {completed} by an earlier run that was cut off before its end",
                    cure=f"Run the task with path {completed}, which ends that save",
                )
            if not completed:
                vm = await self._undo(vm, interrupted, partial)
        if await self._is_finished_save(monitor, vm):
            return await self._finish_earlier_save(monitor, vm, interrupted)
        self._require_savable(vm)
        self._require_replaceable(vm)
        return await _Transaction(self, monitor, vm).run()

    # --- what an earlier run left ---

    async def _end_interrupted_restore(self, monitor: Monitor, vm: RunningVm) -> None:
        """A restore was cut off after its guest ran on: put QEMU back, and know its image for a used one.

        :raises ConflictError: it was cut off before its guest ran.
        """
        restore = await InterruptedRestore.find(monitor, vm.process)
        if restore is None:
            return
        if vm.run_state != "running":
            raise ConflictError(
                f"{vm.label} was being restored from {restore.record.image} by a run that was cut off",
                cure=f"Run qemu_restore with path {restore.record.image}, which ends that restore, then save",
            )
        if restore.is_of_image(self.path):
            self._used_image = restore.record.identity
        if not self.request.check_mode:
            await despite_cancellation(restore.clean_qemu())

    async def _adopt(
        self, monitor: Monitor, vm: RunningVm, interrupted: InterruptedSave, partial: PartialImage
    ) -> dict[str, t.Any]:
        """QEMU went on with a save whose run was killed: wait for it and finish it."""
        if partial.target != self.path:
            partial.release()
            raise ConflictError(
                f"{vm.label} is being saved to {partial.target} by an earlier run that was cut off",
                cure=f"Run the task with path {partial.target}, which finishes that save",
            )
        try:
            self._require_replaceable(vm)
        except ConflictError:
            partial.release()
            raise
        if self.request.check_mode:
            partial.release()
            after = self.outcome()
            return self.result(f"{vm.label}: the save of an earlier run to {self.path} would be finished", vm, after)
        found = dataclasses.replace(vm, run_state=interrupted.record.run_state)
        return await _Transaction(self, monitor, found).adopt(interrupted, partial)

    async def _undo(self, vm: RunningVm, interrupted: InterruptedSave, partial: PartialImage | None) -> RunningVm:
        """A save that was killed before QEMU began, whose file is gone, or whose compressor is: put everything back."""
        if self.request.check_mode:
            if partial:
                partial.release()
        else:
            await despite_cancellation(interrupted.undo(partial))
        return dataclasses.replace(vm, run_state=interrupted.record.run_state)

    async def _finish_earlier_save(
        self, monitor: Monitor, vm: RunningVm, interrupted: InterruptedSave | None
    ) -> dict[str, t.Any]:
        after_save = self.request.after_save
        reason = f"{vm.label} was saved in {self.path} by an earlier run and stands still since"
        if after_save == "pause":
            if interrupted and not self.request.check_mode:
                await despite_cancellation(interrupted.clean_qemu())
            return self.result(reason, vm)
        if self.request.check_mode:
            return self.result(f"{reason}: would {after_save}", vm, self.outcome())
        # That run may have been cut short before its last flush.
        await in_thread(flush_image, self.path)
        if after_save == "resume":
            await asyncio.sleep(settling_time(_recorded_surroundings(read_image_head(self.path).domain()).media))
            await in_thread(mark_checkpoint, self.path, read_image_head(self.path))
        await self.guard(await _unit_of(vm.process))
        if interrupted and after_save != "quit":
            await despite_cancellation(interrupted.clean_qemu())
        await despite_cancellation(self.after_save(monitor, vm))
        done = "now QEMU has quit" if after_save == "quit" else "now the guest runs again"
        result = self.result(f"{reason}; {done}", vm, self.outcome())
        return {**result, "vm": vm.as_result(self.outcome()["vm"])}

    @property
    def guards(self) -> bool:
        """Whether a unit of the VM's must not start it beside the image."""
        return self.request.cold_boot_guard and self.request.after_save != "resume"

    async def guard(self, unit: str) -> None:
        """Keep the VM's unit, where it has one, from starting the VM from its disks while the image is there.

        :raises UnitError: it could not be done.
        """
        if self.guards and unit:
            await guard_unit(unit, all_forms(self.path))

    async def after_save(self, monitor: Monitor, vm: RunningVm) -> None:
        """Do with the stopped VM what was asked for; the image is complete and on disk."""
        image_is_safe = f"the image {self.path} is complete"
        if self.request.after_save == "pause":
            self.guest_state = f"{vm.label} is paused (QEMU's run state postmigrate; cont continues it)"
        elif self.request.after_save == "resume" and vm.run_state not in ("running", "postmigrate"):
            self.guest_state = f"{vm.label} is stopped as before the save"
        elif self.request.after_save == "resume":
            self.guest_state = f"The image {self.path} is complete; whether {vm.label} runs is not known"
            await twice(monitor, vm.process, lambda: put_guest_back(monitor, "running"))
            self.guest_state = f"{vm.label} runs, and {image_is_safe}"
        else:
            self.guest_state = f"{vm.label} is stopped and {image_is_safe}"
            watch = ProcessWatch.of(vm.process) if vm.process else None
            quit_at, waited_for = boot_time(), vm.process is not None and waits_for(vm.process.pid)
            # The connection may end before the answer comes; what it answers does not count, but that it ends.
            with contextlib.suppress(MonitorError):
                await twice(monitor, vm.process, lambda: monitor.execute("quit"))
            try:
                await asyncio.wait_for(monitor.wait_for_end(), QUIT_TIMEOUT)
                if watch:
                    await asyncio.wait_for(watch.wait(), QUIT_TIMEOUT)
            except asyncio.TimeoutError:
                raise MonitorError(
                    f"{vm.label} was told to quit, but its QEMU still runs after {QUIT_TIMEOUT:g} seconds",
                    cure="The image can be trusted; end the process by hand before you restore",
                ) from None
            finally:
                if watch:
                    watch.close()
            self.guest_state = f"{vm.label} has ended and {image_is_safe}"
            if vm.process:
                await self._require_no_revival(vm, vm.process, quit_at, waited_for)
        if self.request.after_save == "resume":
            # The image is not the guest's truth any more, but an earlier save may have guarded it. What cannot be
            # removed now is removed by the VM's next save or restore.
            await free_units("", vm.process, self.path)

    async def _require_no_revival(self, vm: RunningVm, process: QemuProcess, quit_at: float, waited_for: bool) -> None:
        """See that nobody has started the VM again, from its disks, as soon as its QEMU had ended.

        :param quit_at: when that was told to quit, in seconds since the host's boot.
        :param waited_for: whether somebody may wait for its end.
        :raises ConflictError: somebody has: the VM runs beside its image.
        """
        attentive = waited_for and await was_reaped(process.pid)
        revived = await look_for_revival(vm.name, vm.uuid, process, _REVIVAL_TIME if attentive else 0.0, since=quit_at)
        if revived is None:
            return
        self.guest_state = (
            f"{vm.label} was saved, {self.path} is complete, and it was started again from its disks"
            f" (pid {revived.pid})"
        )
        raise ConflictError(
            f"{vm.label} was started again, from its disks, as soon as its QEMU had ended: it runs beside its image",
            cure=f"End it (pid {revived.pid}) before it writes more, keep what started it from doing so, and restore"
            " the image, which says whether it still fits to the disks. If what runs shall go on, remove the image",
        )

    def outcome(self) -> dict[str, str]:
        """How image and VM are after a save, for diff mode."""
        run_states = {"quit": "ended", "pause": "postmigrate", "resume": "running"}
        return {"image": "complete", "vm": run_states[self.request.after_save]}

    def result(self, msg: str, vm: RunningVm | None, after: dict[str, str] | None = None) -> dict[str, t.Any]:
        """The return values of a run that wrote nothing; with C(after), of one that changed, or would change."""
        image = image_result(self.path)
        warnings = list(self.warnings)
        if self.request.checksum and not self.request.check_mode and image["checksum"] is None:
            warnings.append(f"{image['path']} has no checksum: the run that saved it was not asked for one")
        return {
            "changed": after is not None,
            "msg": msg,
            "image": image,
            "vm": vm.as_result() if vm else ended_vm(image["name"], image["uuid"]),
            "diff": {"before": self.before, "after": after or self.before},
            "warnings": warnings,
        }


async def _unit_of(process: QemuProcess | None) -> str:
    """The unit that starts a VM, as systemd knows it of its process; the empty string where none does.

    :raises UnitError: systemd cannot be asked.
    """
    unit = await read_vm_unit(process) if process else None
    return unit.name if unit and unit.starts_vm else ""


def _recorded_surroundings(domain: domain_xml.ParsedDomain) -> Surroundings:
    """What an earlier run of this save had found."""
    with contextlib.suppress(ValueError):
        if domain.save_facts:
            return Surroundings.parse(domain.save_facts.surroundings)
    return Surroundings((), ())


_RUN_STATE_CURES = {
    "inmigrate": "This QEMU waits for a saved state: restore into it (qemu_restore), or end it",
    "postmigrate": "An earlier migration stopped it, and no image at this path is of that one: if the guest runs"
    " nowhere else, let it run on (QMP cont) and save again",
    "finish-migrate": "Another migration is just ending: wait for it",
    "suspended": "The guest sleeps (S3), a state that QEMU does not restore: wake it (QMP system_wakeup)",
    "shutdown": "The guest has shut down: there is nothing to save",
    "guest-panicked": "The guest has crashed: reset it, or end it",
}


def _image_owner(head: ImageHead) -> str:
    domain = head.domain()
    return f"{domain.name}, {domain.uuid}" if domain.uuid else domain.name


def _saved_at(head: ImageHead) -> str:
    facts = head.domain().save_facts
    if facts and facts.saved_at:
        return facts.saved_at
    return datetime.datetime.fromtimestamp(head.mtime, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclasses.dataclass(frozen=True)
class _Choice:
    """How to save, chosen from the request, QEMU and the file system; the reasons go into the result."""

    format: ImageFormat
    parallel_channels: int | None
    bypass_cache: bool
    reasons: dict[str, str]
    warnings: list[str]


class _Transaction:
    """The save itself, from the first check to QEMU's end, with the way back."""

    def __init__(self, operation: SaveOperation, monitor: Monitor, vm: RunningVm) -> None:
        self.operation = operation
        self.request = operation.request
        self.monitor = monitor
        self.vm = vm
        self.path = operation.path
        self.partial: PartialImage
        #: How much QEMU may write into it.
        self.bound: WrittenBound
        self.settings = MigrationSettings(monitor)
        self.migration = Migration(monitor, vm.process.pid if vm.process else None)
        self.descriptors = DescriptorSet(monitor)
        self.since = monitor.mark()
        self.qemu_version = ""
        #: What surrounds the VM: its media, and what stands between it and its return.
        self.surroundings = Surroundings((), ())
        self.launch_record: domain_xml.LaunchRecord | None = None
        #: The unit that starts the VM, or the empty string.
        self.unit = ""
        #: With which this run vouches for what it records, None where it does not; and what to do then.
        self.key: bytes | None = None
        self.key_cure = ""
        #: The C(launch) return value.
        self.launch: dict[str, t.Any] = {}
        #: Whether the VM's unit may have been kept from starting the VM beside the image.
        self.guarded = False
        #: The tool that QEMU writes to, for a compressed format.
        self.compressor: Filter | None = None
        #: Whether anything was done to the guest that has to be undone.
        self.touched = False
        #: The sentence for the guest that was put back, as soon as it was.
        self.put_back = ""
        #: Whether an earlier run began this save.
        self.adopted = False
        #: Whether the image is complete: from then on there is no way back.
        self.completed = False
        #: How long the checksum took, in milliseconds.
        self.checksum_ms: int | None = None

    async def run(self) -> dict[str, t.Any]:
        started = time.monotonic()
        support = await read_support(self.monitor)
        self.qemu_version = support.version
        await self._check_migration()
        image_format, reasons, warnings = self._choose_format(support)
        unit = await read_vm_unit(self.vm.process) if self.vm.process else None
        self.surroundings = await survey(
            self.monitor,
            self.vm.process,
            unit,
            sparse=image_format is ImageFormat.SPARSE,
            # A QEMU that goes on is not started anew by anyone.
            guards=self.request.cold_boot_guard or self.request.after_save == "resume",
        )
        unvouched = self._find_key()
        self._require_restorable(warnings, unvouched)
        self.launch_record = self._record_launch(unit, warnings, unvouched)
        self.unit = self.launch_record.unit if self.launch_record else ""
        header, xml = self._compose(image_format)
        await self._require_own_xml()
        directory = os.path.dirname(self.path)
        if self.request.path is None and not self.request.check_mode:
            make_save_directory(directory)
        if not self.request.check_mode:
            # Before the space is counted that they take.
            await in_thread(remove_leftovers, self.path)
        existing = require_writable_directory(directory, may_be_made=self.request.path is None)
        needed, free = self._check_space(existing)
        if self.request.check_mode:
            result = self.operation.result(
                f"{self.vm.label} would be saved in {self.path} ({image_format.label}, version"
                f" {self.request.image_version}), then {self.request.after_save}",
                self.vm,
                self.operation.outcome(),
            )
            return {
                **result,
                "launch": self.launch,
                "problems": [problem.as_result() for problem in self.surroundings.problems],
                "space_needed": needed,
                "space_free": free,
                "file_system": file_system(existing),
                "warnings": warnings,
            }
        self.partial = PartialImage.create(
            self.path, header, xml, mode=self.request.mode, uid=self.request.uid, gid=self.request.gid
        )
        try:
            choice = self._choose_access(image_format, support, reasons, warnings)
            uri = await self._prepare(choice, support)
            write_started = time.monotonic()
            await self._start(uri)
            return await self._finish(xml, choice, started, write_started)
        except BaseException as exc:
            # Also a cancellation (timeout, signal): whatever happens, the guest goes back first.
            await despite_cancellation(self._roll_back(exc))
            raise

    async def adopt(self, interrupted: InterruptedSave, partial: PartialImage) -> dict[str, t.Any]:
        """Go on with a save that an earlier run began and that QEMU carried on alone."""
        started = time.monotonic()
        self.partial, self.settings, self.descriptors = partial, interrupted.settings, interrupted.descriptors
        self.adopted = self.touched = self.migration.started = True
        record = interrupted.record
        choice = _Choice(
            partial.header.format, record.parallel_channels, record.bypass_cache, {}, list(self.operation.warnings)
        )
        try:
            self.qemu_version = (await read_support(self.monitor)).version
            head = partial.head()
            domain = head.domain()
            self.launch_record = domain.launch
            self.surroundings = _recorded_surroundings(domain)
            # QEMU could write to it while no run watched: only what the first run has vouched for is believed.
            unvouched = why_not_vouched(domain)
            if not unvouched and not self.operation._is_image_of(head, self.vm.name, self.vm.uuid, None):
                unvouched = f"it is of another VM, {domain.name}"
            self.launch = launch_result(self.launch_record, unvouched=unvouched)
            if unvouched:
                choice.warnings.append(
                    f"{self.path}: nobody vouches for what it records, and it cannot be restored as"
                    f" it is recorded: {unvouched}"
                )
                self.unit = await _unit_of(self.vm.process)
            else:
                self.key = read_key()
                self.unit = domain.launch.unit if domain.launch else ""
            self.operation.guest_state = f"{self.vm.label} is being saved"
            return await self._finish(head.xml, choice, started, started)
        except BaseException as exc:
            await despite_cancellation(self._roll_back(exc))
            raise

    async def _finish(self, xml: str, choice: _Choice, started: float, write_started: float) -> dict[str, t.Any]:
        """From the migration that runs to the end."""
        with Publisher(self.vm.label, "save") as progress:
            async with progress.following(self.migration.memory_done):
                self.bound = WrittenBound(self.partial, self.vm.label, self._needed(), self.vm.memory)
                state = await self.bound.guard(self._follow(), self._stop_if_running)
            progress.phase("flush")
            if self.compressor:
                await self.compressor.wait(self.partial.path)
            await in_thread(self.partial.flush)
            write_seconds = time.monotonic() - write_started
            progress.phase("check")
            await self._check_file()
            progress.phase("checksum")
            digest = await self._digest(choice) if self.request.checksum else ""
            await self._record_media()
            xml = self._final_xml(xml, choice, state, digest)
            # Before there is an image for it to look at, so that there never is one without it.
            self.bound.check()
            self.guarded = bool(self.unit) and self.operation.guards
            await self.operation.guard(self.unit)
            return await despite_cancellation(self._complete(xml, choice, state, started, write_seconds))

    # --- before the guest is touched ---

    async def _check_migration(self) -> None:
        state = await query_state(self.monitor)
        if state["status"] not in IDLE_STATES:
            raise ConflictError(
                f"{self.vm.label} is being migrated or saved by someone else (migration status {state['status']})",
                cure="Wait for it or cancel it, then save again",
            )
        blockers = state.get("blocked-reasons")
        if blockers:
            raise UnsupportedByQemuError(
                f"{self.vm.label} cannot be saved: {'; '.join(blockers)}",
                cure="Remove the device or the setting that blocks the migration",
            )

    def _choose_format(self, support: MigrationSupport) -> tuple[ImageFormat, dict[str, str], list[str]]:
        reasons: dict[str, str] = {}
        warnings = list(self.operation.warnings)
        label = self.request.format
        if label is None:
            if self.request.image_version == 2:
                label = "raw"
                reasons["format"] = "raw is what image version 2 defaults to, as in libvirt"
            elif support.mapped_ram:
                label = "sparse"
                reasons["format"] = f"QEMU {support.version} has mapped-ram"
            else:
                label = "raw"
                reasons["format"] = f"QEMU {support.version} has no mapped-ram that keeps the image's header"
                warnings.append(f"{self.vm.label} is saved in the raw format: {reasons['format']} (9.1 is needed)")
        check_parallel_channels(self.request.parallel_channels)
        chosen = ImageFormat.from_label(label)
        if chosen is ImageFormat.SPARSE and not support.mapped_ram:
            raise UnsupportedByQemuError(
                f"QEMU {support.version} of {self.vm.label} cannot write the sparse format: it needs mapped-ram with"
                " direct-io, as in QEMU 9.1 and later",
                cure="Use format raw, or leave format out",
            )
        if chosen is not ImageFormat.SPARSE and self.request.parallel_channels is not None:
            raise RequestError(
                f"parallel_channels needs the sparse format: the {label} format is one stream",
                cure="Leave parallel_channels out, or use format sparse",
            )
        if chosen is not ImageFormat.SPARSE and self.request.bypass_cache:
            raise RequestError(
                f"bypass_cache needs the sparse format: the {label} format is a stream, written through the page cache",
                cure="Leave bypass_cache out, or use format sparse",
            )
        require_tool(chosen)
        return chosen, reasons, warnings

    def _compose(self, image_format: ImageFormat) -> tuple[SaveImageHeader, str]:
        """The header and the domain XML that the image starts with."""
        running = {"as_is": self.vm.run_state == "running", "running": True, "paused": False}
        header = SaveImageHeader(
            version=self.request.image_version,
            format=image_format,
            was_running=running[self.request.vm_state],
        )
        if self.request.domain_xml is not None:
            given = domain_xml.parse(self.request.domain_xml, "domain_xml")
            if self.vm.name and given.name != self.vm.name:
                raise MismatchError(
                    f"The domain_xml describes {given.name}, not {self.vm.label}", cure="Give this VM's own XML"
                )
            xml = domain_xml.embed(self.request.domain_xml, self._save_facts(), self.launch_record)
            return header, self._vouched(xml)
        facts = domain_xml.DomainFacts(
            name=self.vm.name or "vm",
            uuid=self.vm.uuid,
            memory=self.vm.memory,
            vcpus=self.vm.vcpus,
            machine=self.vm.machine,
            emulator=self.vm.process.executable if self.vm.process else "/usr/bin/qemu-system-x86_64",
            arch=self.vm.architecture,
            accelerator=self.vm.accelerator,
        )
        return header, self._vouched(domain_xml.generate(facts, self._save_facts(), self.launch_record))

    async def _require_own_xml(self) -> None:
        """Refuse a given XML with which the image would be found damaged as soon as it is written.

        :raises MismatchError: it has another machine type, or more memory.
        """
        if self.request.domain_xml is None:
            return
        memory = sum(block.used for block in await read_ram_blocks(self.monitor))
        problems = domain_problems(domain_xml.parse(self.request.domain_xml), self.vm.machine, memory)
        if problems:
            raise MismatchError(
                f"The domain_xml is not of {self.vm.label} as it runs: {problems[0]}", cure="Give this VM's own XML"
            )

    def _save_facts(self) -> domain_xml.SaveFacts:
        return domain_xml.SaveFacts(
            collection_version=COLLECTION_VERSION,
            qemu_version=self.qemu_version,
            saved_at=domain_xml.now(),
            surroundings=self.surroundings.dump(),
        )

    def _find_key(self) -> str:
        """The key with which this run vouches for what it records; why it cannot, as a clause, or the empty string."""
        try:
            self.key = read_key() if self.request.check_mode else make_key()
        except VouchingKeyError as exc:
            self.key_cure = exc.cure
            return exc.what[:1].lower() + exc.what[1:]
        return ""

    def _vouched(self, xml: str) -> str:
        """With a voucher for the record in it, which this run has made in its own memory."""
        return vouch(xml, self.key, self.path) if self.key else xml

    def _require_restorable(self, warnings: list[str], unvouched: str) -> None:
        """Refuse, in the words of the restore, what the restore would refuse.

        :raises NotRestorableError: there is something, and C(require_restorable) does not say that it is known, or the
            save itself would fail, or lose what the guest has written.
        """
        label = self.vm.label
        reason = why_unsafe_place(self.path, self.request.uid, self.request.mode)
        found = list(self.surroundings.problems)
        if reason:
            found.append(Problem("image_unsafe", reason, "Save into a directory of root's, for root"))
        if unvouched:
            what = f"nothing would vouch for what its image records: {unvouched}"
            found.append(Problem("image_unvouched", what, self.key_cure))
        self.surroundings = dataclasses.replace(self.surroundings, problems=tuple(found))
        problems = self.surroundings.problems
        obstacles = blocking(problems)
        quits = self.request.after_save == "quit"
        final = [problem for problem in obstacles if problem.fails_save or (problem.loses_data and quits)]
        refused = obstacles if self.request.require_restorable else final
        if refused:
            cures = list(dict.fromkeys(problem.cure for problem in refused))
            if not final:
                cures.append("Or save it with require_restorable: false, if you know how it comes back")
            raise NotRestorableError(
                f"{label} was not saved, as it could not be restored: {'; '.join(each.what for each in refused)}",
                cure=". ".join(cures),
                problems=[problem.as_result() for problem in problems],
            )
        warnings += [f"qemu_restore cannot start {label} from its image: {problem.what}" for problem in obstacles]
        warnings += warnings_of(problems, label)

    def _record_launch(
        self, unit: VmUnit | None, warnings: list[str], unvouched: str
    ) -> domain_xml.LaunchRecord | None:
        """How to start this QEMU again; that it cannot be done is said now, while there still is one."""
        process = self.vm.process
        if process is None or unit is None:
            self.launch = launch_result(None)
            return None
        # Where the image lies, and who vouches for it, is looked at by each restore: it may be moved, and vouched for.
        lasting = [problem for problem in self.surroundings.problems if problem.kind not in _OF_THE_IMAGE]
        record = launch_record(process, unit, lasting)
        self.launch = launch_result(record, unit, unvouched)
        if record.replayable and unit.starter:
            warnings.append(starter_reason(unit))
        if record.unit and self.operation.guards:
            require_guardable(record.unit)
        if unit.may_start_vm and self.operation.guards:
            warnings.append(
                f"{self.vm.label} runs in {unit.name}, but not as its main process: if that unit starts it, nothing"
                " keeps it from doing so beside the image"
            )
        return record

    def _needed(self) -> int:
        held = resident_bytes(self.vm.process.pid) if self.vm.process else None
        return min(self.vm.memory, held or self.vm.memory) + _SPACE_MARGIN

    def _check_space(self, directory: str) -> tuple[int, int | None]:
        """Refuse a save that cannot fit; the bytes that it may need, and those that are free, where that is known.

        What the save writes is bounded by the guest's memory and by what its process holds of it.
        """
        needed = self._needed()
        free = free_bytes(directory)
        if free is not None and free < needed:
            raise ImageSpaceError(
                directory,
                f"{needed // 2**20} MiB may be needed to save {self.vm.label}, but the file system"
                f" {file_system(directory)} has only {free // 2**20} MiB free"
                f" ({(needed - free + 2**20 - 1) // 2**20} MiB are missing)",
                cure="Free space there, or save into another directory",
            )
        return needed, free

    def _choose_access(
        self, image_format: ImageFormat, support: MigrationSupport, reasons: dict[str, str], warnings: list[str]
    ) -> _Choice:
        if image_format is not ImageFormat.SPARSE:
            reasons["bypass_cache"] = f"the {image_format.label} format is a stream, written through the page cache"
            return _Choice(image_format, None, False, reasons, warnings)
        bypass_cache = self.request.bypass_cache is not False
        if bypass_cache:
            problem = self.partial.direct_io_reason()
            if problem and self.request.bypass_cache:
                raise RequestError(
                    f"bypass_cache is not possible for {self.path}: {problem}",
                    cure="Leave bypass_cache out, or choose a file system that takes O_DIRECT",
                )
            bypass_cache = not problem
            reasons["bypass_cache"] = problem or "the file system takes O_DIRECT"
        channels = self.request.parallel_channels
        if channels is None:
            channels = default_parallel_channels()
            reasons["parallel_channels"] = f"two for each of {os.cpu_count()} CPUs, from 2 to 8"
        return _Choice(image_format, channels, bypass_cache, reasons, warnings)

    async def _prepare(self, choice: _Choice, support: MigrationSupport) -> str:
        """Descriptors, with a note of this save, and settings; the migration URI."""
        await self.settings.plan(
            mapped_ram=choice.format is ImageFormat.SPARSE,
            parallel_channels=choice.parallel_channels,
            direct_io=choice.bypass_cache,
            bandwidth=self.request.bandwidth,
        )
        record = SaveRecord(
            partial=self.partial.path,
            run_state=self.vm.run_state,
            capabilities=self.settings.found_capabilities,
            parameters=self.settings.found_parameters,
            parallel_channels=choice.parallel_channels,
            bypass_cache=choice.bypass_cache,
        )
        self.descriptors = DescriptorSet(self.monitor, record.opaque())
        files = [self.partial.open_for_qemu(direct=False)]
        try:
            if choice.bypass_cache:
                files.append(self.partial.open_for_qemu(direct=True))
            await self.descriptors.add(*files)
            await self.settings.apply()
            if choice.format not in COMPRESSORS and support.file_uri:
                return self.descriptors.uri(self.partial.stream_offset)
            # One stream into a descriptor: a pipe to the compressor or, before QEMU 9.1, the file itself.
            os.lseek(files[0], self.partial.stream_offset, os.SEEK_SET)
            if choice.format in COMPRESSORS:
                files += make_pipe()
                command = COMPRESSORS[choice.format].compress_command()
                self.compressor = await Filter.start(command, stdin=files[-2], stdout=files[0])
            return await self.descriptors.pass_named(files[-1])
        finally:
            for descriptor in files:
                os.close(descriptor)

    # --- with the guest ---

    async def _start(self, uri: str) -> None:
        """Stop the guest, unless the save is live, and let QEMU begin to write."""
        label = self.vm.label
        self.since = self.monitor.mark()
        self.touched = True
        if self.vm.run_state == "running" and not self.request.live:
            self.operation.guest_state = f"{label} is being stopped"
            await self.monitor.execute("stop")
        self.operation.guest_state = f"{label} is being saved"
        await self.migration.start_outgoing(uri)

    async def _follow(self) -> dict[str, t.Any]:
        """Wait until QEMU has written everything; returns its last C(query-migrate)."""
        waiting = asyncio.ensure_future(self.migration.wait())
        try:
            if await query_run_state(self.monitor) == "running":
                done, _pending = await asyncio.wait({waiting}, timeout=self.request.live_timeout)
                if not done:
                    # It dirties its memory faster than the disk takes it: stopped, it cannot.
                    await self.monitor.execute("stop")
            return await waiting
        except MigrationError as exc:
            # QEMU knows only that nobody reads any more.
            failure = await self.compressor.failure() if self.compressor else ""
            if failure:
                exc.what += f" ({failure})"
            exc.what = f"{self.vm.label} could not be saved in {self.path}: {exc.what}"
            exc.cure = exc.cure or cure_for(exc.what) or "See what QEMU says, then save again"
            raise
        finally:
            waiting.cancel()

    async def _stop_if_running(self) -> bool:
        """Stop a guest that is saved live; whether it ran."""
        if await query_run_state(self.monitor) != "running":
            return False
        await self.monitor.execute("stop")
        return True

    async def _check_file(self) -> None:
        """Check that the file holds what its bitmaps promise: QEMU before 11.1 takes a short write for a success."""
        problems = await in_thread(structure_problems, self.partial.path)
        if problems:
            raise ImageFormatError(
                self.path,
                f"QEMU reported success, but the file is not whole: {'; '.join(problems[:3])}",
                cure="Check the file system and the disk below it (dmesg), then save again",
            )

    async def _digest(self, choice: _Choice) -> str:
        """The digest of what QEMU has written; what went through the page cache is still there, and is read from it."""
        started = time.monotonic()
        digest = await in_stoppable_thread(stream_digest, self.partial.path, choice.bypass_cache)
        self.checksum_ms = round((time.monotonic() - started) * 1000)
        return digest

    async def _record_media(self) -> None:
        """The guest's media as they are now: QEMU has made them inactive, and nothing writes to them any more."""
        media = tuple(await read_all_media(self.monitor, self.vm.process))
        self.surroundings = dataclasses.replace(self.surroundings, media=media)
        if self.request.after_save == "resume":
            # A write of the guest that goes on must show in the time of its file's last change.
            await asyncio.sleep(settling_time(media))

    def _final_xml(self, xml: str, choice: _Choice, state: dict[str, t.Any], digest: str) -> str:
        """The XML with what is known only after QEMU has written."""
        facts = dataclasses.replace(
            domain_xml.parse(xml, self.path).save_facts or self._save_facts(),
            parallel_channels=choice.parallel_channels or 0,
            migration=migration_fingerprint(state),
            digest=digest,
            surroundings=self.surroundings.dump(),
        )
        return self._vouched(domain_xml.embed(xml, facts, self.launch_record))

    async def _complete(
        self, xml: str, choice: _Choice, state: dict[str, t.Any], started: float, write_seconds: float
    ) -> dict[str, t.Any]:
        """Everything from the complete magic on; runs to its end whatever happens."""
        await in_thread(self.partial.finish, xml, self.request.after_save == "resume")
        self.completed = self.operation.written = True
        self.operation.locks.callback(self.partial.release)
        self.operation.guest_state = f"{self.vm.label} is stopped and the image {self.path} is complete"
        if self.request.after_save != "quit":
            await twice(self.monitor, self.vm.process, self._clean_qemu)
        await self.operation.after_save(self.monitor, self.vm)
        bytes_written = int(state.get("ram", {}).get("transferred", 0))
        outcome = self.operation.outcome()
        if self.request.after_save != "quit":
            outcome["vm"] = await twice(self.monitor, self.vm.process, lambda: query_run_state(self.monitor))
        past = {"quit": "QEMU has quit", "pause": "the guest is paused", "resume": "the guest goes on"}
        image = image_result(self.path)
        return {
            "changed": True,
            "msg": f"{self.vm.label} was saved in {self.path}, {image['allocated'] / 2**20:.0f} MiB on disk, in"
            f" {time.monotonic() - started:.1f} s{', taking over from an earlier run' if self.adopted else ''};"
            f" {past[self.request.after_save]}",
            "image": image,
            "vm": self.vm.as_result(outcome["vm"]),
            "diff": {"before": self.operation.before, "after": outcome},
            "duration": round(time.monotonic() - started, 3),
            "pause_ms": self._pause_ms(),
            "stopped_at": self._stopped_at(),
            "checksum_ms": self.checksum_ms,
            "bytes_written": bytes_written,
            "throughput": int(bytes_written / write_seconds) if write_seconds > 0 else None,
            "parallel_channels": choice.parallel_channels,
            "bypass_cache": choice.bypass_cache,
            "launch": self.launch,
            "problems": [problem.as_result() for problem in self.surroundings.problems],
            "reasons": choice.reasons,
            "warnings": choice.warnings,
        }

    def _pause_ms(self) -> int | None:
        """How long the guest stood still, by QEMU's own clock: from STOP to RESUME, or to SHUTDOWN.

        0 where it was paused before; None where it was stopped under an earlier run's eyes.
        """
        stop = self.monitor.find_event("STOP", since=self.since)
        if stop is None:
            return None if self.adopted and self.vm.run_state == "running" else 0
        end = self.monitor.find_event("RESUME", "SHUTDOWN", since=self.since)
        finished = event_seconds(end) if end else time.time()
        return max(0, round((finished - event_seconds(stop)) * 1000))  # the clock may have been set between them

    def _stopped_at(self) -> float | None:
        """When QEMU stopped the guest for this run, in seconds since the epoch."""
        stop = self.monitor.find_event("STOP", since=self.since)
        return round(event_seconds(stop), 3) if stop else None

    # --- the way back ---

    async def _clean_qemu(self) -> None:
        """Capabilities, parameters and descriptors as they were found; the note of all this goes last."""
        if self.migration.started:
            await self.migration.settle()
        await self.settings.restore()
        await self.descriptors.remove()

    async def _roll_back(self, cause: BaseException) -> None:
        """The guest as it was, QEMU as it was, no file left; then C(guest_state) says what was reached."""
        if self.completed:
            # Too late: the image is complete, and the guest must not run beside it.
            return
        try:
            await twice(self.monitor, self.vm.process, self._put_back)
        except MonitorError as exc:
            # What cannot be put back now is noted in QEMU for the next run.
            known = self.put_back or f"What {self.vm.label} does now is not known"
            self.operation.guest_state = f"{known}, and QEMU may not be set as before ({exc.what})"
        finally:
            if self.compressor:
                await self.compressor.end()
            # What cannot be removed now is a leftover that the next save removes.
            with contextlib.suppress(ImageError):
                self.partial.discard()
            if self.guarded:
                # What is left of it looks for an image, and the VM's next save or restore removes it.
                await free_units(self.unit, self.vm.process, self.path)
        if self.vm.process and await qemu_has_ended(self.vm.process, self.monitor.lost):
            ended = f"QEMU (pid {self.vm.process.pid}) has ended"
            self.operation.guest_state = f"{ended}, so {self.vm.label} does not run any more"
        if isinstance(cause, VmopsError):
            cause.guest_state = self.operation.guest_state
            cause.cure = cause.cure or "Correct what QEMU says, then run the task again"

    async def _put_back(self) -> None:
        """Guest and QEMU as they were found, and the sentence that says so; may be done twice.

        :raises MonitorError: it could not be done.
        """
        label = self.vm.label
        if self.touched:
            run_state = await call_off_save(self.monitor, self.migration, self.vm.run_state)
            self.put_back = (
                f"{label} runs again"
                if run_state == "running"
                else f"{label} is stopped as before (QEMU's run state is {run_state})"
            )
            self.operation.guest_state = self.put_back
        await self._clean_qemu()
