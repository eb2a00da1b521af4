# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The systemd unit of a VM: which it is, and what keeps it from starting a saved VM from its disks.

Two files change a unit. The guard lasts: it blocks every start of the unit while the image is there. The restore's own
file lasts until the host's reboot at most: it hides the guard and puts the saved command line, which waits for the
state, in the place of the unit's own for one start. A run that is killed may leave either; the next one removes it.
"""

from __future__ import annotations

import dataclasses
import os
import pwd
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._errors import LaunchError, UnitError
from ansible_collections.vmops.qemu.plugins.module_utils._file_system import mount_point
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import manager, systemd
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import QemuProcess
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.unit_restart import hold_path

_GUARD = "50-vmops-saved.conf"

#: The last one wins, so this comes after the "override.conf" of systemctl edit.
_RESTORE = "zzz-vmops-restore.conf"


@dataclasses.dataclass(frozen=True)
class VmUnit:
    """The unit in whose control group a QEMU runs."""

    #: Empty where there is none.
    name: str
    #: Why a start of the unit does not start this QEMU again; empty where it does.
    reason: str
    #: What the unit executes, where that is not QEMU itself but becomes it (a script, ``numactl``).
    starter: str = ""
    #: Whether it is a service that may start the VM, among other things, and so cannot be guarded.
    may_start_vm: bool = False
    #: Whether it is a service of another user's own systemd, which is not asked, and cannot be guarded.
    is_of_other_user: bool = False
    #: What systemd says of it; None where there is none.
    facts: systemd.Unit | None = None
    #: What it executes, where it starts the VM.
    command: systemd.StartCommand | None = None

    @property
    def starts_vm(self) -> bool:
        """Whether this unit is how the VM is started."""
        return bool(self.name) and not self.reason


async def read_vm_unit(process: QemuProcess, known: t.Mapping[str, systemd.Unit] | None = None) -> VmUnit:
    """The unit of a QEMU.

    :param known: units that were read already, by name.
    :raises UnitError: systemd cannot be asked.
    """
    name = systemd.unit_of_process(process.pid) if systemd.is_running() else ""
    if not name:
        return VmUnit("", "it runs in no systemd unit")
    if manager.is_of_other_user(name):
        reason = f"{name} is a unit of another user's own systemd"
        return VmUnit(name, reason, is_of_other_user=name.endswith(".service"))
    unit = (known or {}).get(name) or await systemd.read_unit(name)
    if not name.endswith(".service"):
        return VmUnit(name, f"{name} is not a service", facts=unit)
    if unit.transient or not unit.fragment:
        return VmUnit(name, f"{name} is a transient unit, which is gone after its end", facts=unit)
    if unit.main_pid != process.pid:
        return VmUnit(name, f"it is not the main process of {name}", may_start_vm=True, facts=unit)
    command = await systemd.read_start_command(name)
    starter = "" if executes(command, process.executable) else command.program
    return VmUnit(name, "", starter, facts=unit, command=command)


def executes(command: systemd.StartCommand, program: str) -> bool:
    """Whether a unit executes this QEMU itself, rather than what becomes it."""
    return os.path.realpath(command.program) == os.path.realpath(program) and not command.by_shell


def require_startable(unit: systemd.Unit) -> None:
    """:raises LaunchError: it is no unit that could be started, or it runs."""
    if unit.load_state != "loaded":
        raise LaunchError(
            f"The unit {unit.name}, which started the VM, is {unit.load_state}",
            cure=f"See {manager.shown(unit.name, 'status')}; or give the VM's command in launch: command",
        )
    if unit.main_pid and unit.active_state != "deactivating":
        raise LaunchError(
            f"The unit {unit.name}, which started the VM, runs already (pid {unit.main_pid})",
            cure="Find out what it runs; stop it if that is not this VM",
        )


def start_user(unit: systemd.Unit, command: systemd.StartCommand) -> int | None:
    """The user as whom a unit executes its command at first; None where it is not known.

    With a ``+`` or an exclamation mark before the command that is root, whatever ``User=`` says. A user's own systemd
    has no other user to start anything as.
    """
    uid = manager.split_unit(unit.name)[0].uid
    if uid is not None:
        return uid
    if command.prefix or not (unit.user or unit.dynamic_user):
        return 0
    try:
        return int(unit.user) if unit.user.isdecimal() else pwd.getpwnam(unit.user).pw_uid
    except (KeyError, OverflowError):
        return None


# --- the guard --------------------------------------------------------------------------------------------------


def require_guardable(name: str) -> None:
    """Check, without a change, that a unit can be guarded.

    :raises UnitError: it cannot.
    """
    manager.require_own(name, f"keep {name} from starting the saved VM from its disks")
    directory = os.path.dirname(os.path.dirname(guard_path(name)))
    while not os.path.lexists(directory):  # that of a user's units may be missing yet
        directory = os.path.dirname(directory)
    if not os.access(directory, os.W_OK | os.X_OK):
        raise UnitError(
            f"{directory} cannot be written to, so {name} cannot be kept from starting the saved VM",
            cure="Make it writable; or keep the unit from starting it yourself, and use cold_boot_guard: false",
        )


async def guard_unit(name: str, images: t.Sequence[str]) -> None:
    """Block each start of a unit while one of these files is there; in force, also after a reboot, on return.

    :param images: absolute paths.
    :raises UnitError: it could not be done; :func:`free_unit` removes what is left of it.
    """
    path = guard_path(name)
    text = guard_text(images)
    stale = remove_restore_files(name)
    if not stale and systemd.read_drop_in(path) == text and path in (await systemd.read_unit(name)).drop_ins:
        return
    systemd.write_drop_in(path, text)
    await systemd.reload(name)
    if path not in (await systemd.read_unit(name)).drop_ins:
        raise UnitError(f"systemd does not read {path}", cure=f"See {manager.shown(name, 'cat')}")
    if not (await systemd.control(name, "show", "--property=ExecCondition", "--value")).strip():
        raise UnitError(
            f"This host's systemd does not know ExecCondition, so {name} cannot be kept from starting the saved VM",
            cure="It needs systemd 243 or later",
        )


def guard_text(images: t.Sequence[str]) -> str:
    """The guard of these images.

    The conditions are looked at when the unit is started, and told by ``systemctl status``; they need the image's file
    system to be there. They are not looked at when systemd starts a service again by itself (``Restart=``), as it does
    when QEMU quits after the save: ``ExecCondition=`` is (systemd 243).
    """
    paths = [_real_path(image) for image in images]
    directory = os.path.dirname(paths[0])
    lines = [
        "# Made by vmops.qemu.qemu_save. The memory of this VM is in the save image below, beside which the VM must",
        "# not start from its disks. vmops.qemu.qemu_restore removes this file; without the image it has no effect.",
        "[Unit]",
    ]
    place = mount_point(directory)
    if place != "/":
        # Not RequiresMountsFor=, with which the VM would be stopped when its image's file system is unmounted. The
        # mount may be done by hand, too, without a unit to wait for.
        mount_unit = f"{systemd.escape_unit_name(place.strip('/'))}.mount"
        lines += [f"Wants={mount_unit}", f"After={mount_unit}"]
        if _fits_in_line(place):
            lines += [f"ConditionPathIsMountPoint={systemd.escape_specifiers(place)}"]
    lines += [f"ConditionPathExists=!{systemd.escape_specifiers(path)}" for path in paths if _fits_in_line(path)]
    # With all that systemd itself may do, since the directory may be closed to the VM's user, or hidden from the unit.
    command = ["/bin/sh", "-c", 'for image; do test ! -e "$image" || exit 1; done', "sh", *paths]
    return "\n".join([*lines, "[Service]", f"ExecCondition=+{systemd.quote_words(command)}", ""])


def _real_path(image: str) -> str:
    """The path without symbolic links in its directories, which are what systemd may have to wait for."""
    return os.path.join(os.path.realpath(os.path.dirname(image)), os.path.basename(image))


def _fits_in_line(path: str) -> bool:
    """Whether systemd reads a path that stands unquoted at the end of a line as it is."""
    return path.isprintable() and path == path.strip() and not path.endswith("\\")


async def free_unit(name: str, image: str | None = None, check_mode: bool = False) -> bool:
    """Remove a unit's guard, and what an interrupted restore left; whether there was anything.

    Also what a shutdown left, after which somebody has started the VM.

    :param image: remove no guard but that of this image; None for any.
    :param check_mode: only look.
    :raises UnitError: it could not be done.
    """
    if manager.is_of_other_user(name):
        return False  # nothing of ours is there, and what is there is that user's affair
    paths = [*restore_files(name), hold_path(name)]
    guard = guard_path(name)
    if image is None or systemd.quote_word(_real_path(image)) in (systemd.read_drop_in(guard) or ""):
        paths.append(guard)
    if check_mode:
        return any(os.path.lexists(path) for path in paths)
    removed = _remove(paths)
    if removed and systemd.is_running():
        await systemd.reload(name)
    return removed


async def forget_restore(unit: systemd.Unit, check_mode: bool = False) -> bool:
    """Remove what a restore that was killed left, which has the unit start a QEMU that waits; whether there was any.

    :param unit: one that does not run; one that is just starting is stopped, as it would go on with its own command.
    :param check_mode: only look.
    :raises UnitError: it could not be done.
    """
    found = any(os.path.lexists(path) for path in restore_files(unit.name))
    if found and not check_mode:
        if unit.active_state not in ("inactive", "failed"):
            await systemd.control(unit.name, "stop")
        remove_restore_files(unit.name)
        await systemd.reload(unit.name)
    return found


def is_guarded_for(name: str, image: str) -> bool:
    """Whether a unit is kept from starting while this image is there.

    False also where that is no unit's name, or one of another user's, who could write that.
    """
    if not manager.can_be_asked(name):
        return False
    try:
        guard = guard_path(name)
        return systemd.quote_word(_real_path(image)) in (systemd.read_drop_in(guard) or "")
    except UnitError:
        return False


def guard_path(name: str) -> str:
    """Where a unit's guard is, or would be.

    :raises UnitError: that is not the name of a unit.
    """
    return systemd.lasting_drop_in(name, _GUARD)


def restore_files(name: str) -> tuple[str, str]:
    """Where the file of the restore's own is, or would be, and the one that hides the guard."""
    return systemd.passing_drop_in(name, _RESTORE), systemd.passing_drop_in(name, _GUARD)


def remove_restore_files(name: str) -> bool:
    """Remove them; whether there was any."""
    return _remove(restore_files(name))


def _remove(paths: t.Sequence[str]) -> bool:
    """Whether any of them was there."""
    removed = [systemd.remove_drop_in(path) for path in paths]
    return any(removed)
