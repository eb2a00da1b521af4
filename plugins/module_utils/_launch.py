# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How a saved VM is started again: what a save records of it, how results tell it, and what a restore makes of it."""

from __future__ import annotations

import contextlib
import pwd
import re
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._errors import ConflictError, LaunchError, UnitError
from ansible_collections.vmops.qemu.plugins.module_utils._image.domain_xml import LaunchRecord, ParsedDomain
from ansible_collections.vmops.qemu.plugins.module_utils._image.file import read_image_head, require_safe_image
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import command_line, systemd
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.configuration import read_configuration
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.identity import RecordedIdentity
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.monitor import Monitor
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import (
    DEFAULT_UMASK,
    Launch,
    QemuProcess,
    startable_program,
)
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.unit import VmUnit, free_unit
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.start import start_identity
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.verdict import Problem, blocking

_CURE = "Start it with -incoming defer and use launch: attach, or give its command"


def launch_record(
    process: QemuProcess, unit: VmUnit, problems: t.Sequence[Problem], monitor: Monitor | None
) -> LaunchRecord:
    """How a running QEMU is started again.

    :param unit: its unit.
    :param problems: what was found to stand between the VM and its return.
    :param monitor: a session with it, where there is one.
    """
    uid, gid, _problems = start_identity(process, unit, monitor)
    obstacles = blocking(problems)
    return LaunchRecord(
        argv=list(process.argv),
        cwd=process.cwd,
        executable=process.executable,
        uid=uid,
        gid=gid,
        umask=f"{process.umask:04o}",
        unit=unit.name if unit.starts_vm else "",
        replayable=not obstacles,
        reason=obstacles[0].what if obstacles else "",
    )


def recorded_identity(record: LaunchRecord | None) -> RecordedIdentity | None:
    """Who ran the saved VM; None where the image does not record it."""
    if record is None or not record.argv:
        return None
    uids = {record.uid}
    # Started as root, it may have become another user.
    user = command_line.target_user(record.argv) if record.uid == 0 else ""
    if user:
        number = user.partition(":")[0]
        with contextlib.suppress(KeyError, ValueError):
            uids.add(
                int(number) if ":" in user and number.isascii() and number.isdigit() else pwd.getpwnam(user).pw_uid
            )
    return RecordedIdentity(frozenset(uids), record.unit)


def launch_result(record: LaunchRecord | None, unit: VmUnit | None = None) -> dict[str, t.Any]:
    """The C(launch) return value: how a restore will start the VM, with C(launch: recorded)."""
    if record is None or not record.replayable:
        reason = record.reason if record else "its process is not known here"
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


async def recorded_launch(path: str, domain: ParsedDomain, machine: str) -> tuple[Launch, str]:
    """What the image at the path records, as a QEMU that waits for its state; and a warning, or the empty string.

    :param machine: the saved machine type.
    :raises LaunchError: it records nothing that can be used.
    :raises ImageUnsafeError: others could have written it.
    :raises ConflictError: it is not the image any more from which C(domain) was read.
    :raises UnitError: it records a unit, and systemd cannot be asked, or only by root.
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
    program, reason = startable_program(record.argv, record.executable, record.uid)
    if reason:
        raise LaunchError(f"The recorded command of {domain.name} cannot be used again: {reason}", cure=_CURE)
    argv = [program, *record.argv[1:]]
    warning = ""
    if record.unit:
        unit = await _find_unit(record.unit)
        if unit:
            systemd.require_root(f"start {unit.name}, which is how {domain.name} was started")
            # Such a unit counts as started when QEMU goes into the background.
            daemonize = unit.service_type == "forking" and command_line.daemonizes(argv)
            command = command_line.restore_command(argv, machine, daemonize)
            return Launch(argv=tuple(command), cwd=record.cwd, unit=unit.name), ""
        reason = command_line.why_not_replayable(read_configuration(argv, record.cwd).words)
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
    # Whatever it says of itself: a record may be older than this check, or forged.
    reason = command_line.why_not_replayable(read_configuration(argv, record.cwd).words)
    if reason:
        raise LaunchError(f"The recorded command of {domain.name} cannot be used again: {reason}", cure=_CURE)
    command = command_line.restore_command(argv, machine)
    umask = int(record.umask, 8) if re.fullmatch("0?[0-7]{3}", record.umask) else DEFAULT_UMASK
    return Launch(argv=tuple(command), cwd=record.cwd, uid=record.uid, gid=record.gid, umask=umask), warning


async def free_units(
    record: LaunchRecord | None, process: QemuProcess | None, image: str, check_mode: bool = False
) -> tuple[bool, str]:
    """Let the VM's unit start it from its disks again: the guest is where it should be, or there is no image.

    The unit of the running QEMU is freed of any guard; the recorded one, which is only what a file says, of that of
    this image alone.

    :param check_mode: only look.
    :returns: whether there was anything to do, and what of it could not be done, or the empty string.
    """
    own = systemd.unit_of_process(process.pid) if process else ""
    units: dict[str, str | None] = {record.unit: image} if record and record.unit else {}
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
    if not systemd.is_running() or not systemd.is_unit_name(name) or not name.endswith(".service"):
        return None
    unit = await systemd.read_unit(name)
    return None if unit.load_state == "not-found" else unit
