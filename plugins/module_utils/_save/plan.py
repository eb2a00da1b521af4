# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a save will do: everything that is found out, and refused, before the guest is touched.

Check mode ends with the plan, and so walks the same path as a save.
"""

from __future__ import annotations

import dataclasses
import os
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._access import require_possible_access
from ansible_collections.vmops.qemu.plugins.module_utils._cancellation import in_thread
from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    ConflictError,
    ImageSpaceError,
    MismatchError,
    NotRestorableError,
    RequestError,
    UnsupportedByQemuError,
    VouchingKeyError,
)
from ansible_collections.vmops.qemu.plugins.module_utils._file_system import file_system, volatile_mount
from ansible_collections.vmops.qemu.plugins.module_utils._image import domain_xml
from ansible_collections.vmops.qemu.plugins.module_utils._image.compressor import require_tool
from ansible_collections.vmops.qemu.plugins.module_utils._image.header import ImageFormat, SaveImageHeader
from ansible_collections.vmops.qemu.plugins.module_utils._image.partial import PartialImage, remove_leftovers
from ansible_collections.vmops.qemu.plugins.module_utils._image.place import (
    free_bytes,
    make_save_directory,
    require_writable_directory,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.record import LaunchRecord, SaveFacts, now
from ansible_collections.vmops.qemu.plugins.module_utils._image.trust import why_unsafe_place
from ansible_collections.vmops.qemu.plugins.module_utils._image.verify import domain_problems
from ansible_collections.vmops.qemu.plugins.module_utils._image.vouching import vouch, why_not_vouched
from ansible_collections.vmops.qemu.plugins.module_utils._launch import launch_record, launch_result, starter_reason
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.cpu import read_cpu
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.migration import (
    IDLE_STATES,
    MigrationSupport,
    query_state,
    read_support,
)
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import resident_bytes
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.runner import how_to_add_a_monitor
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.selection import own_name
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.session import VmSession
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.unit import VmUnit, read_vm_unit, require_guardable
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.vm import LIVE_STATES, read_ram_blocks
from ansible_collections.vmops.qemu.plugins.module_utils._save.ending import unit_of
from ansible_collections.vmops.qemu.plugins.module_utils._save.image_at import recorded_surroundings
from ansible_collections.vmops.qemu.plugins.module_utils._save.run import SaveRun
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.record import Surroundings
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.survey import survey
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.verdict import Problem, blocking, warnings_of
from ansible_collections.vmops.qemu.plugins.module_utils._version import COLLECTION_VERSION
from ansible_collections.vmops.qemu.plugins.module_utils._vouching_key import make_key, read_key

#: Bytes that a save needs beside the guest's memory: header area, bitmaps, device state, alignment of each block.
_SPACE_MARGIN = 16 * 1024 * 1024

#: Problems that are the image's own.
_OF_THE_IMAGE = frozenset(("image_unsafe", "image_on_tmpfs", "image_unvouched"))


@dataclasses.dataclass(frozen=True)
class SavePlan:
    """How a VM will be saved."""

    support: MigrationSupport
    #: The header and the domain XML that the image starts with.
    header: SaveImageHeader
    xml: str
    #: What is recorded in that of this save, as far as it is known before it.
    facts: SaveFacts
    #: What surrounds the VM: its media, and what stands between it and its return.
    surroundings: Surroundings
    #: How it is started again, where that is known, and as the ``launch`` return value says it.
    launch_record: LaunchRecord | None
    launch: dict[str, t.Any]
    #: The unit that starts the VM, or the empty string.
    unit: str
    #: With which this run vouches for what it records; None where it does not.
    key: bytes | None
    #: Bytes that the save may need, and those that are free in the file system, where that is known.
    needed: int
    free: int | None
    file_system: str
    #: Why what was left open was chosen, by the option's name.
    reasons: dict[str, str]
    warnings: list[str]

    @property
    def format(self) -> ImageFormat:
        """The image's format."""
        return self.header.format

    def as_result(self) -> dict[str, t.Any]:
        """What it adds to the return values of a run in check mode."""
        return {
            "launch": self.launch,
            "problems": [problem.as_result() for problem in self.surroundings.problems],
            "space_needed": self.needed,
            "space_free": self.free,
            "file_system": self.file_system,
            "warnings": self.warnings,
        }

    def final_xml(self, path: str, **known: t.Any) -> str:
        """The XML with what is known only after QEMU has written.

        :param path: the image's, for errors.
        :param known: the fields of ``facts`` that are another now.
        """
        return _with_record(self.xml, dataclasses.replace(self.facts, **known), self.launch_record, self.key, path)


def _with_record(xml: str, facts: SaveFacts, record: LaunchRecord | None, key: bytes | None, path: str) -> str:
    """A domain XML with our record, made in this run's own memory, and vouched for where there is a key."""
    recorded = domain_xml.embed(xml, facts, record)
    return vouch(recorded, key, path) if key else recorded


async def plan_save(run: SaveRun, session: VmSession) -> SavePlan:
    """Find out how the VM can be saved.

    But for the save directory, which is made, and an earlier run's leftovers, which are removed (neither of them in
    check mode), nothing is changed.

    :raises VmopsError: it cannot be saved, or not as it is asked for.
    """
    return await _Planner(run, session).plan()


class _Planner:
    """Puts a plan together."""

    def __init__(self, run: SaveRun, session: VmSession) -> None:
        self.run = run
        self.session = session
        self.request = run.request
        self.warnings = list(run.warnings)
        self.reasons: dict[str, str] = {}
        self.surroundings = Surroundings((), ())
        self.launch_record: LaunchRecord | None = None
        self.launch: dict[str, t.Any] = {}
        self.key: bytes | None = None
        self.key_cure = ""

    async def plan(self) -> SavePlan:
        self._require_descriptors()
        support = await read_support(self.session.monitor)
        await self._check_migration()
        image_format = self._choose_format(support)
        unit = await read_vm_unit(self.session.process) if self.session.process else None
        self.surroundings = await survey(
            self.session.monitor,
            self.session.process,
            unit,
            sparse=image_format is ImageFormat.SPARSE,
            # A QEMU that goes on is not started anew by anyone.
            guards=self.request.cold_boot_guard or self.request.after_save == "resume",
        )
        unvouched = self._find_key()
        self._require_restorable(unvouched)
        self.launch_record = self._record_launch(unit, unvouched)
        header = self._compose_header(image_format)
        facts = SaveFacts(
            collection_version=COLLECTION_VERSION,
            qemu_version=support.version,
            saved_at=now(),
            surroundings=self._record_surroundings(),
            managed=self.request.managed,
            suspended=self.session.vm.run_state == "suspended",
            cpu=await self._read_cpu(),
        )
        xml = _with_record(self._compose_xml(facts), facts, self.launch_record, self.key, self.run.path)
        await self._require_own_xml()
        existing = await self._prepare_directory()
        needed = bytes_needed(self.session)
        free = self._check_space(existing, needed)
        return SavePlan(
            support=support,
            header=header,
            xml=xml,
            facts=facts,
            surroundings=self.surroundings,
            launch_record=self.launch_record,
            launch=self.launch,
            unit=self.launch_record.unit if self.launch_record else "",
            key=self.key,
            needed=needed,
            free=free,
            file_system=file_system(existing),
            reasons=self.reasons,
            warnings=self.warnings,
        )

    def _record_surroundings(self) -> str:
        """The record of what surrounds the VM.

        :raises NotRestorableError: no restore could read it.
        """
        recorded = self.surroundings.dump()
        try:
            Surroundings.parse(recorded)
        except ValueError as exc:
            raise NotRestorableError(
                f"{self.session.label} was not saved, as what surrounds it cannot be recorded: {exc}",
                cure="Give its disks and files other names",
            ) from exc
        return recorded

    def _require_descriptors(self) -> None:
        monitor, process = self.session.monitor, self.session.process
        if not monitor.passes_descriptors:
            raise RequestError(
                f"{self.session.label} cannot be saved through {monitor.shown_address}: QEMU is given its image as a"
                " descriptor, and only a UNIX socket carries descriptors",
                cure=how_to_add_a_monitor(process, otherwise="or name its QMP socket in qmp_socket")
                if process
                else "Give the VM a monitor on a UNIX socket (-qmp unix:PATH,server=on,wait=off)",
            )

    async def _check_migration(self) -> None:
        state = await query_state(self.session.monitor)
        if state["status"] not in IDLE_STATES:
            raise ConflictError(
                f"{self.session.label} is being migrated or saved by someone else (migration status {state['status']})",
                cure="Wait for it or cancel it, then save again",
            )
        blockers = state.get("blocked-reasons")
        if blockers:
            raise UnsupportedByQemuError(
                f"{self.session.label} cannot be saved: {'; '.join(blockers)}",
                cure="Remove the device or the setting that blocks the migration",
            )

    def _choose_format(self, support: MigrationSupport) -> ImageFormat:
        reasons = self.reasons
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
                self.warnings.append(
                    f"{self.session.label} is saved in the raw format: {reasons['format']} (9.1 is needed)"
                )
        chosen = ImageFormat.from_label(label)
        if chosen is ImageFormat.SPARSE and not support.mapped_ram:
            raise UnsupportedByQemuError(
                f"QEMU {support.version} of {self.session.label} cannot write the sparse format: it needs mapped-ram"
                " with direct-io, as in QEMU 9.1 and later",
                cure="Use format raw, or leave format out",
            )
        require_possible_access(chosen, self.request.parallel_channels, self.request.bypass_cache)
        require_tool(chosen)
        return chosen

    def _compose_header(self, image_format: ImageFormat) -> SaveImageHeader:
        running = {"as_is": self.session.vm.run_state in LIVE_STATES, "running": True, "paused": False}
        return SaveImageHeader(
            version=self.request.image_version,
            format=image_format,
            was_running=running[self.request.vm_state],
        )

    def _compose_xml(self, save_facts: SaveFacts) -> str:
        """The domain XML that is given, or else one of what QEMU says.

        :raises MismatchError: the given one is another VM's.
        """
        vm = self.session.vm
        if self.request.domain_xml is not None:
            given = domain_xml.parse(self.request.domain_xml, "domain_xml")
            if given.name != self.run.name_in_image:
                raise MismatchError(
                    f"The domain_xml describes {given.name}, not {vm.label}", cure="Give this VM's own XML"
                )
            return self.request.domain_xml
        facts = domain_xml.DomainFacts(
            name=self.run.name_in_image,
            uuid=vm.uuid,
            memory=vm.memory,
            vcpus=vm.vcpus,
            machine=vm.machine,
            emulator=vm.process.executable if vm.process else "/usr/bin/qemu-system-x86_64",
            arch=vm.architecture,
            accelerator=vm.accelerator,
        )
        return domain_xml.generate(facts, save_facts)

    async def _read_cpu(self) -> str:
        vm = self.session.vm
        return (await read_cpu(self.session.monitor, vm.architecture, vm.accelerator)).dump()

    async def _require_own_xml(self) -> None:
        """Refuse a given XML with which the image would be found damaged as soon as it is written.

        :raises MismatchError: it has another machine type, or more memory.
        """
        if self.request.domain_xml is None:
            return
        memory = sum(block.used for block in await read_ram_blocks(self.session.monitor))
        problems = domain_problems(domain_xml.parse(self.request.domain_xml), self.session.vm.machine, memory)
        if problems:
            raise MismatchError(
                f"The domain_xml is not of {self.session.label} as it runs: {problems[0]}",
                cure="Give this VM's own XML",
            )

    def _find_key(self) -> str:
        """The key with which this run vouches for what it records; why it cannot, as a clause, or the empty string."""
        try:
            self.key = read_key() if self.request.check_mode else make_key()
        except VouchingKeyError as exc:
            self.key_cure = exc.cure
            return exc.what[:1].lower() + exc.what[1:]
        return ""

    def _require_restorable(self, unvouched: str) -> None:
        """Refuse, in the words of the restore, what the restore would refuse.

        :raises NotRestorableError: there is something, and ``require_restorable`` does not say that it is known, or the
            save itself would fail, or lose what the guest has written.
        """
        label = self.session.label
        reason = why_unsafe_place(self.run.path, self.request.uid, self.request.mode)
        found = list(self.surroundings.problems)
        if reason:
            found.append(Problem("image_unsafe", reason, "Save into a directory of root's, for root"))
        mount = volatile_mount(self.run.path)
        if mount:
            what = f"{self.run.path} is on {mount}, a file system (tmpfs) that a reboot of the host empties"
            cure = "Save into a directory on a disk, if the host shall be rebooted before the restore"
            found.append(Problem("image_on_tmpfs", what, cure, blocks=False))
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
                f"{label} was not saved, as it could not be restored:"
                f" {'; '.join(dict.fromkeys(each.what for each in refused))}",
                cure=". ".join(cures),
                problems=[problem.as_result() for problem in problems],
            )
        self.warnings += [f"qemu_restore cannot start {label} from its image: {problem.what}" for problem in obstacles]
        self.warnings += warnings_of(problems, label)

    def _record_launch(self, unit: VmUnit | None, unvouched: str) -> LaunchRecord | None:
        """How to start this QEMU again; that it cannot be done is said now, while there still is one."""
        process = self.session.process
        if process is None or unit is None:
            self.launch = launch_result(None)
            return None
        # Where the image lies, and who vouches for it, is looked at by each restore: it may be moved, and vouched for.
        lasting = [problem for problem in self.surroundings.problems if problem.kind not in _OF_THE_IMAGE]
        record = launch_record(process, unit, lasting, self.surroundings.circumstances)
        self.launch = launch_result(record, unit, unvouched)
        if record.replayable and unit.starter:
            self.warnings.append(starter_reason(unit))
        if record.unit and self.request.guards:
            require_guardable(record.unit)
        if unit.may_start_vm and self.request.guards:
            self.warnings.append(
                f"{self.session.label} runs in {unit.name}, but not as its main process: if that unit starts it,"
                " nothing keeps it from doing so beside the image"
            )
        return record

    async def _prepare_directory(self) -> str:
        """See that the image can be written; the directory that is there already, of its own or above it."""
        directory = os.path.dirname(self.run.path)
        if not self.request.check_mode:
            if self.request.path is None:
                make_save_directory(directory)
            # Before the space is counted that they take.
            await in_thread(remove_leftovers, self.run.path)
            own = own_name(self.session.process) if self.session.process and self.request.path is None else ""
            if own and "/" not in own:  # of a run that was killed when there were others of its name
                await in_thread(remove_leftovers, os.path.join(directory, f"{own}.save"))
        return require_writable_directory(directory, may_be_made=self.request.path is None)

    def _check_space(self, directory: str, needed: int) -> int | None:
        """Refuse a save that cannot fit; the bytes that are free, where that is known.

        :param needed: bytes that it may need.
        """
        free = free_bytes(directory)
        if free is not None and free < needed:
            raise ImageSpaceError(
                directory,
                f"{needed // 2**20} MiB may be needed to save {self.session.label}, but the file system"
                f" {file_system(directory)} has only {free // 2**20} MiB free"
                f" ({(needed - free + 2**20 - 1) // 2**20} MiB are missing)",
                cure="Free space there, or save into another directory",
            )
        return free


def bytes_needed(session: VmSession) -> int:
    """What a save may write: bounded by the guest's memory and by what its process holds of it, in bytes."""
    held = resident_bytes(session.pid) if session.pid is not None else None
    return min(session.vm.memory, held or session.vm.memory) + _SPACE_MARGIN


async def adopted_plan(run: SaveRun, session: VmSession, partial: PartialImage) -> SavePlan:
    """The plan of a save that an earlier run began and that QEMU carried on alone, from its partial image.

    QEMU could write to that while no run watched: only what the first run has vouched for is believed.

    :raises MonitorError: QEMU cannot be asked.
    :raises UnitError: systemd cannot be asked for the VM's unit, where nobody vouches for what is recorded.
    """
    head = partial.head()
    domain = head.domain()
    warnings = list(run.warnings)
    unvouched = why_not_vouched(domain)
    if not unvouched and not run.is_image_of(head, session.vm):
        unvouched = f"it is of another VM, {domain.name}"
    if unvouched:
        warnings.append(
            f"{run.path}: nobody vouches for what it records, and it cannot be restored as it is recorded: {unvouched}"
        )
    recorded_unit = domain.launch.unit if domain.launch else ""
    support = await read_support(session.monitor)
    return SavePlan(
        support=support,
        header=partial.header,
        xml=head.xml,
        # There is none where another user has made of the partial image what he liked.
        facts=domain.save_facts or SaveFacts(COLLECTION_VERSION, support.version, now()),
        surroundings=recorded_surroundings(domain),
        launch_record=domain.launch,
        launch=launch_result(domain.launch, unvouched=unvouched),
        unit=await unit_of(session.process) if unvouched else recorded_unit,
        key=None if unvouched else read_key(),
        needed=bytes_needed(session),
        free=None,
        file_system="",
        reasons={},
        warnings=warnings,
    )
