# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How a saved VM is started again: what a save records of it, how results tell it, and what a restore makes of it."""

from __future__ import annotations

import dataclasses
import re
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    ConflictError,
    LaunchError,
    NotVouchedError,
    UnitError,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.domain_xml import ParsedDomain
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_file import read_image_head
from ansible_collections.vmops.qemu.plugins.module_utils._image.names import launch_log_path
from ansible_collections.vmops.qemu.plugins.module_utils._image.record import LaunchRecord
from ansible_collections.vmops.qemu.plugins.module_utils._image.trust import require_safe_image
from ansible_collections.vmops.qemu.plugins.module_utils._image.vouching import is_vouched, why_not_vouched
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import command_line, manager, systemd, unit_command
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.configuration import (
    appending_settings,
    read_configuration,
)
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.identity import RecordedIdentity
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.launch import Launch, startable_program
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.launch_log import is_usable
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.network_namespace import namespace_words
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import DEFAULT_UMASK, QemuProcess
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.resources import parse_resources
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.rights import Rights, parse_capabilities, parse_groups
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.unit import (
    VmUnit,
    executes,
    forget_restore,
    free_unit,
    is_guarded_for,
    require_startable,
    start_user,
)
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.circumstances import Circumstances
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.start import started_by_unit
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.verdict import Problem, blocking
from ansible_collections.vmops.qemu.plugins.module_utils._user import user_name

_CURE = "Start it with -incoming defer and use launch: attach, or give its command"

_VOUCH_CURE = (
    "Look at its launch (vmops.qemu.qemu_save_image_info); if those are the words with which it shall be started,"
    " vouch for them (vmops.qemu.qemu_save_image with vouch: true); or use launch: command or launch: attach"
)


def launch_record(
    process: QemuProcess,
    unit: VmUnit,
    problems: t.Sequence[Problem],
    circumstances: Circumstances | None = None,
) -> LaunchRecord:
    """How a running QEMU is started again: as the user that it is now, and with what it may do now.

    :param unit: its unit.
    :param problems: what was found to stand between the VM and its return.
    :param circumstances: where it runs and with what, where that was looked at.
    """
    obstacles = blocking(problems)
    rights = process.rights
    by_unit = started_by_unit(unit) and unit.command is not None
    around = circumstances or Circumstances()
    resources = around.resources
    if started_by_unit(unit):
        # All else is the unit's affair, but no unit can say on which CPU one thread of QEMU runs.
        around = Circumstances()
    namespace = "" if unit.starts_vm and unit.facts and unit.facts.private_network else around.network_namespace
    return LaunchRecord(
        argv=list(process.argv),
        cwd=process.cwd,
        executable=process.executable,
        uid=process.uid,
        gid=process.gid,
        umask=f"{process.umask:04o}",
        unit=unit.name if unit.starts_vm else "",
        replayable=not obstacles,
        reason=obstacles[0].what if obstacles else "",
        groups=rights.named_groups if rights else "",
        no_new_privileges=bool(rights and rights.no_new_privileges),
        capabilities=str(rights.capabilities) if rights else "",
        unit_argv=list(unit.command.words or ()) if by_unit and unit.command else [],
        resources=resources.dump() if resources and (around.resources or resources.threads) else "",
        network_namespace=namespace,
        network_mounts=bool(namespace) and around.network_mounts,
        stdout=around.stdout,
        stderr=around.stderr,
        slice=around.slice,
    )


def recorded_identity(domain: ParsedDomain | None) -> RecordedIdentity | None:
    """Who ran the saved VM; None where no image records it, or nobody vouches for its record."""
    record = domain.launch if domain else None
    if domain is None or record is None or not record.argv or not is_vouched(domain):
        return None
    return RecordedIdentity(record.uid, record.unit)


def launch_result(record: LaunchRecord | None, unit: VmUnit | None = None, unvouched: str = "") -> dict[str, t.Any]:
    """The ``launch`` return value: how a restore will start the VM, with ``launch: recorded``.

    :param unvouched: why nobody vouches for the record, as a clause, or the empty string.
    """
    if record is None or not record.replayable or unvouched:
        reason = "its process is not known here"
        if record:
            reason = record.reason if not record.replayable else f"nobody vouches for its record: {unvouched}"
        return {"how": "none", "unit": record.unit or None if record else None, "reason": reason}
    if record.unit:
        return {"how": "unit", "unit": record.unit, "reason": starter_reason(unit)}
    return {"how": "command", "unit": None, "reason": unit.reason if unit else ""}


def starter_reason(unit: VmUnit | None) -> str:
    """What a restore by the unit leaves out, or the empty string."""
    if unit is None or not unit.starter:
        return ""
    return (
        f"{unit.name} executes {unit.starter}, which becomes QEMU; a restore executes QEMU in its place, so what it"
        " prepares must be there"
    )


def require_vouched(path: str, domain: ParsedDomain) -> None:
    """Refuse what an image records, where it does, if it may not be what a save of this user's has recorded.

    :raises NotVouchedError: nobody vouches for it.
    """
    reason = why_not_vouched(domain) if domain.launch else ""
    if reason:
        raise NotVouchedError(
            path,
            f"nobody vouches for what it records of how {domain.name} was started, and it is not run: {reason}",
            cure=_VOUCH_CURE,
        )


async def recorded_launch(
    path: str, domain: ParsedDomain, machine: str, check_mode: bool = False, former: int | None = None
) -> tuple[Launch, str]:
    """What the image at the path records, as a QEMU that waits for its state; and a warning, or the empty string.

    :param machine: the saved machine type.
    :param check_mode: change nothing.
    :param former: the process id of a QEMU that is ended before.
    :raises LaunchError: it records nothing that can be used.
    :raises ImageUnsafeError: others could have put it there.
    :raises NotVouchedError: it may not be what a save of this user's has recorded.
    :raises ConflictError: it is not the image any more from which ``domain`` was read.
    :raises UnitError: it records a unit, and systemd cannot be asked, or only by another user.
    """
    record = domain.launch
    if record is None or not record.argv:
        raise LaunchError(f"{path} does not record how {domain.name} was started", cure=_CURE)
    if not record.replayable:
        raise LaunchError(f"The recorded command of {domain.name} cannot be used again: {record.reason}", cure=_CURE)
    require_safe_image(path)
    # What was read before this may have come from another file, to which someone had turned a link on the way.
    if read_image_head(path).domain() != domain:
        raise ConflictError(f"{path} was replaced by another image just now", cure="Run the task again")
    require_vouched(path, domain)
    warning = ""
    if record.unit:
        if manager.is_of_other_user(record.unit):
            manager.require_own(record.unit, f"start {record.unit}, which is how {domain.name} was started")
        unit = await _find_unit(record.unit)
        if unit:
            manager.require_own(unit.name, f"start {unit.name}, which is how {domain.name} was started")
            if former is not None and unit.main_pid == former:
                unit = dataclasses.replace(unit, main_pid=0)
            return await _launch_by_unit(unit, record, domain.name, machine, check_mode), ""
        reason = command_line.why_not_replayable(read_configuration(record.argv, record.cwd).words)
        if reason:
            raise LaunchError(
                f"{record.unit}, which started {domain.name}, is not on this host, and without it the recorded command"
                f" cannot be used again: {reason}",
                cure=f"Install the unit; or: {_CURE[0].lower()}{_CURE[1:]}",
            )
        warning = (
            f"{record.unit}, which started {domain.name}, is not on this host: it was started without it, and will not"
            " be there after the host's next reboot"
        )
    argv, rights = _recorded_words(record, domain.name)
    command = _waiting(argv, record.cwd, machine)
    return _launch_of(record, command, rights, own_log=launch_log_path(path)), warning


def earlier_launch(domain: ParsedDomain) -> Launch | None:
    """What a QEMU that waits was to get after its start, if an earlier run has started it by the record, without words.

    :returns: None where nothing is recorded, or nobody vouches for it.
    """
    record = domain.launch
    if record is None or not record.argv or not is_vouched(domain):
        return None
    resources = parse_resources(record.resources) if record.resources else None
    # What a unit starts itself has what the unit gives it.
    own = None if record.unit_argv else resources
    return Launch(argv=(), unit=record.unit, resources=own, threads=resources.threads if resources else ())


def launch_from_disks(record: LaunchRecord, name: str, image: str = "") -> Launch:
    """The recorded command, as a VM that starts from its disks.

    :param name: the VM's.
    :param image: the path of its image, were there one.
    :raises LaunchError: it cannot be used again.
    """
    argv, rights = _recorded_words(record, name)
    return _launch_of(
        record,
        command_line.start_command([*argv, *appending_settings(argv, record.cwd)]),
        rights,
        own_log=launch_log_path(image),
    )


def _waiting(argv: t.Sequence[str], cwd: str, machine: str, daemonize: bool = False) -> list[str]:
    """A command line that waits for its state, and appends to what it would begin anew; raises LaunchError."""
    return command_line.restore_command([*argv, *appending_settings(argv, cwd)], machine, daemonize)


def _launch_of(
    record: LaunchRecord, command: t.Sequence[str], rights: Rights, unit: str = "", own_log: str = ""
) -> Launch:
    """:param own_log: where earlier versions of this collection had its output; it is not to grow there.

    :raises LaunchError: where it ran is not there any more.
    """
    umask = int(record.umask, 8) if re.fullmatch("0?[0-7]{3}", record.umask) else DEFAULT_UMASK
    resources = parse_resources(record.resources) if record.resources else None
    # Before anything is started.
    namespace_words(record.network_namespace, record.network_mounts)
    files = [path if path and path != own_log and is_usable(path) else "" for path in (record.stdout, record.stderr)]
    return Launch(
        argv=tuple(command),
        cwd=record.cwd,
        rights=rights,
        umask=umask,
        resources=resources,
        threads=resources.threads if resources else (),
        network_namespace=record.network_namespace,
        network_mounts=record.network_mounts,
        stdout=files[0],
        stderr=files[1],
        slice=record.slice,
        unit=unit,
    )


def _recorded_words(record: LaunchRecord, name: str, by_unit: bool = False) -> tuple[list[str], Rights]:
    """The words of the process, with which it may be started again, and with what.

    :param name: the VM's.
    :param by_unit: whether its unit gives it its descriptors.
    :raises LaunchError: they cannot be used again.
    """
    program, reason = startable_program(record.argv, record.executable, record.uid)
    argv = [program, *record.argv[1:]]
    if not reason and not by_unit:
        # Whatever it says of itself: a record may be older than this check, or forged.
        reason = command_line.why_not_replayable(read_configuration(argv, record.cwd).words)
    groups, capabilities = parse_groups(record.groups), parse_capabilities(record.capabilities)
    if not reason and (groups is None or (capabilities is None and record.capabilities)):
        reason = "its groups or capabilities make no sense"
    if record.uid != 0:
        argv = command_line.without_change_of_user(argv)
    elif not reason and not record.capabilities and command_line.changes_user(argv):
        # Older versions of this collection took a VM of another user's for root's by such words.
        reason = "it changes its user by itself, and whether root started it was not recorded"
    if reason:
        raise LaunchError(f"The recorded command of {name} cannot be used again: {reason}", cure=_CURE)
    rights = Rights(
        record.uid,
        record.gid,
        groups if capabilities else None,
        no_new_privileges=record.no_new_privileges,
        capabilities=capabilities,
    )
    return argv, rights


async def _launch_by_unit(
    unit: systemd.Unit, record: LaunchRecord, name: str, machine: str, check_mode: bool
) -> Launch:
    """A start by the VM's unit: with the unit's own words, or, where it executes what becomes QEMU, the recorded ones.

    :param name: the VM's.
    :raises LaunchError: it cannot be used for that.
    :raises UnitError: systemd cannot be asked.
    """
    require_startable(unit)
    if await forget_restore(unit, check_mode):
        if check_mode:
            return Launch(argv=tuple(command_line.restore_command(record.argv, machine)), unit=unit.name)
        unit = await systemd.read_unit(unit.name)
    own = await systemd.read_start_command(unit.name)
    # Such a unit counts as started when QEMU goes into the background.
    forks = unit.service_type == "forking"
    if record.unit_argv or executes(own, record.executable) or executes(own, record.argv[0]):
        # A restore that was killed may have left its own words in the unit when the VM was saved.
        changed = unit_command.first_difference(own.words or (), record.unit_argv) if record.unit_argv else ""
        if own.words is None or changed:
            raise LaunchError(
                f"{unit.name} has another command now (ExecStart=) than the one by which {name} was started"
                f"{f' ({changed})' if changed else ''}, so it would start another machine than the one that was saved",
                cure=f"Undo the change ({manager.shown(unit.name, 'cat')}); or: {_CURE[0].lower()}{_CURE[1:]}",
            )
        daemonize = forks and command_line.daemonizes(record.argv)
        # By the recorded words it is known where its monitor is.
        known = _waiting(record.argv, record.cwd, machine, daemonize)
        words = _waiting(own.words, record.cwd, machine, daemonize)
        resources = parse_resources(record.resources)
        threads = resources.threads if resources else ()
        return Launch(argv=tuple(known), cwd=record.cwd, threads=threads, unit=unit.name, unit_argv=tuple(words))
    argv, rights = _recorded_words(record, name, by_unit=True)
    uid = start_user(unit, own)
    if uid not in (0, record.uid) and not unit.dynamic_user:
        raise LaunchError(
            f"{unit.name} has the user {unit.user}, and {name} was another one's ({user_name(record.uid)}) when it was"
            " saved",
            cure=f"Give {unit.name} that user (User=); or: {_CURE[0].lower()}{_CURE[1:]}",
        )
    command = _waiting(argv, record.cwd, machine, forks and command_line.daemonizes(argv))
    return _launch_of(record, command, rights, unit=unit.name)


def freeable_unit(domain: ParsedDomain, image: str) -> str:
    """The recorded unit where it may be freed (:func:`free_units`); else the empty string.

    A record for which nobody vouches could name any VM's unit: it is believed only where that unit is guarded for this
    image, which root has written.
    """
    name = domain.launch.unit if domain.launch else ""
    return name if name and (is_vouched(domain) or is_guarded_for(name, image)) else ""


async def free_units(
    recorded: str, process: QemuProcess | None, image: str, check_mode: bool = False
) -> tuple[bool, str]:
    """Let the VM's unit start it from its disks again: the guest is where it should be, or there is no image.

    The unit of the running QEMU is freed of any guard; the recorded one of that of this image alone.

    :param recorded: the unit that is known to be the VM's by a record, or the empty string.
    :param check_mode: only look.
    :returns: whether there was anything to do, and what of it could not be done, or the empty string.
    """
    own = systemd.unit_of_process(process.pid) if process else ""
    units: dict[str, str | None] = {recorded: image} if recorded else {}
    if own:
        units[own] = None
    changed = False
    problems = []
    for name, only in units.items():
        try:
            changed = await free_unit(name, only, check_mode) or changed
        except UnitError as exc:
            problems.append(exc.what)
    return changed, "; ".join(problems)


async def _find_unit(name: str) -> systemd.Unit | None:
    """The recorded unit, if it is one of this host's; one that is masked or broken is, too."""
    if not systemd.is_running() or not manager.can_be_asked(name) or not name.endswith(".service"):
        return None
    unit = await systemd.read_unit(name)
    return None if unit.load_state == "not-found" else unit
