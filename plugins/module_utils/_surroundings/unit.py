# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the unit of a VM does beside running QEMU that would make a restore wrong: starts it again beside its image, or
changes a disk when QEMU has quit, or before QEMU is started for its saved state."""

from __future__ import annotations

import os
import re
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._bounded_read import read_bounded
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import manager, systemd
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import QemuProcess
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.unit import VmUnit
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.helpers import DiskFiles, Effect, judge_command
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.media import Medium, MediumFile
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.supervisor import ends_with
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.verdict import Problem
from ansible_collections.vmops.qemu.plugins.module_utils._user import user_name

#: The settings whose commands run when a service has ended; the others run when it is started.
_AT_THE_END = frozenset(("ExecStop", "ExecStopPost"))

#: What Restart= says of a service that has ended well, as QEMU does when it quits.
_RESTARTS_AFTER_SUCCESS = frozenset(("always", "on-success"))

_MAX_SHOWN = 120  # characters of a command
_MAX_ENVIRONMENT = 64 * 1024  # bytes of a file


def unit_problems(
    unit: VmUnit, process: QemuProcess, guarded: bool, media: t.Sequence[Medium] | None = None
) -> list[Problem]:
    """What of the VM's unit would make a restore wrong.

    It reads the scripts that the unit runs, and looks up file names: a call that blocks. Never raises.

    :param unit: the unit in which QEMU runs, as :func:`read_vm_unit` has found it.
    :param guarded: whether the unit will be kept from starting the VM beside its image.
    :param media: the VM's disks; None where they are not known, so that only of restarts something is said.
    """
    facts = unit.facts
    if facts is None or not facts.name.endswith(".service"):
        return []
    problems = _restart_problems(facts, process, guarded)
    ends = facts.main_pid in (0, process.pid) or ends_with(process.pid, facts.main_pid)
    if media is None or not (ends or unit.starts_vm):
        return problems
    disks = DiskFiles(media)
    if disks.files:
        problems += _directory_problems(facts, media)
        problems += _helper_problems(facts, disks, with_start=unit.starts_vm)
    problems += [
        Problem(
            "unit_helper_unknown",
            f"{facts.name} starts {other} when QEMU has quit (OnSuccess=); what that does to the disks is not known",
            "See that it leaves the VM's disks as they are",
            blocks=False,
        )
        for other in facts.on_success
    ]
    return problems


def user_unit_problems(unit: VmUnit, guards: bool) -> list[Problem]:
    """What stands against a save of a VM that a user's own systemd has started.

    :param guards: whether the save is to keep the VM's unit from starting the VM beside its image.
    """
    if not unit.name:
        return []
    whose, name = manager.split_unit(unit.name)
    if whose.uid is None:
        return []
    user = user_name(whose.uid)
    if unit.is_of_other_user:
        return [
            Problem(
                "unit_of_user",
                f"it runs in {name} of {user}'s own systemd (systemctl --user), which nobody else can keep from"
                " starting the VM from its disks, beside its image",
                f"Run the task as {user} (become_user: {user}); or keep {name} from starting it yourself, and use"
                " cold_boot_guard: false",
                blocks=guards,
            )
        ]
    if unit.starts_vm and not manager.lingers(whose.uid):
        return [
            Problem(
                "no_lingering",
                f"{name} ends with {user}'s last session, and is not started at boot",
                f"Have {user}'s systemd run from the host's boot on (loginctl enable-linger {user})",
                blocks=False,
            )
        ]
    return []


def _restart_problems(facts: systemd.Unit, process: QemuProcess, guarded: bool) -> list[Problem]:
    """Whether systemd starts the unit, and so the VM, again when QEMU has quit."""
    if guarded or facts.restart in ("", "no"):
        return []
    blocks = True
    if facts.main_pid == process.pid:
        if facts.restart not in _RESTARTS_AFTER_SUCCESS:
            return []
        how = "it is started again when QEMU has quit"
    elif facts.main_pid == 0:
        how = "it is started again when what runs in it has ended"
    else:
        ends = ends_with(process.pid, facts.main_pid)
        if ends is None:
            return []  # its main process does not wait for this QEMU
        blocks = ends
        how = "it is started again when its main process has ended, which waits for QEMU"
    return [
        Problem(
            "unit_restarts",
            f"{facts.name} has Restart={facts.restart}: {how}, beside the VM's image",
            "Leave cold_boot_guard on, with QEMU as the unit's main process (by exec in a script); or set Restart=no",
            blocks,
        )
    ]


def _directory_problems(facts: systemd.Unit, media: t.Sequence[Medium]) -> list[Problem]:
    """Disks that are removed with what the unit makes for its processes."""
    problems = []
    place = manager.split_unit(facts.name)[0].run_directory
    for medium in media:
        for file in medium.files:
            setting = next(
                (
                    f"RuntimeDirectory={directory[len(place) + 1 :]}"
                    for directory in facts.volatile_directories
                    if os.path.realpath(file.path).startswith(f"{directory}/")
                ),
                "",
            )
            if not setting and facts.private_tmp and _is_in_private_tmp(file):
                setting = "PrivateTmp="
            if setting:
                problems.append(
                    Problem(
                        "unit_helper",
                        f"{facts.name} removes {file.path} ({medium.label}) when QEMU has quit ({setting})",
                        "Move the disk to a directory that lasts",
                    )
                )
    return problems


def _is_in_private_tmp(file: MediumFile) -> bool:
    if "/systemd-private-" in file.path:
        return True
    if not file.path.startswith(("/tmp/", "/var/tmp/")):
        return False
    try:
        facts = os.stat(file.path)
    except OSError:
        return True
    return file.inode != 0 and (facts.st_dev, facts.st_ino) != (file.device_number, file.inode)


def _with_environment(text: str, facts: systemd.Unit) -> str:
    """A command with the unit's variables in place (``$NAME``, ``${NAME}``), as far as they are known."""
    known = dict(facts.environment)
    for path in facts.environment_files:
        try:
            lines = read_bounded(path, _MAX_ENVIRONMENT).decode("utf-8", "replace").splitlines()
        except OSError:
            continue
        known.update(re.findall(r"^\s*(\w+)=[\"']?([^\"'\n]*)", "\n".join(lines), re.MULTILINE))
    # Two dollar signs stand for one, which the shell then reads.
    return re.sub(
        r"(?<!\$)\$(?:\{(\w+)\}|(\w+))",
        lambda match: known.get(match.group(1) or match.group(2), match.group()),
        text,
    )


def _usual_directory(facts: systemd.Unit) -> str:
    """Where a unit's processes are started that says nothing else: those of a user's own systemd in his home."""
    uid = manager.split_unit(facts.name)[0].uid
    return "/" if uid is None else os.path.expanduser("~")


def _helper_problems(facts: systemd.Unit, disks: DiskFiles, with_start: bool) -> list[Problem]:
    problems = []
    for helper in facts.helpers:
        if helper.setting not in _AT_THE_END and not with_start:
            continue
        # Its first word may be another name than the program's.
        text = _with_environment(" ".join([helper.program, *helper.text.split(" ", 1)[1:]]), facts)
        judged = judge_command(text, disks, facts.working_directory or _usual_directory(facts))
        shown = text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"
        shown = " ".join(shown.split())
        if helper.setting in _AT_THE_END:
            when = "when QEMU has quit"
        elif helper.setting == "ExecStartPost":
            when = "while its state is loaded"
        else:
            when = "before a restore starts QEMU"
        if judged.effect is Effect.TOUCHES:
            problems.append(
                Problem(
                    "unit_helper",
                    f"{facts.name} runs {shown!r} ({helper.setting}=) {when}, which changes {judged.file}",
                    f"Take it out of {facts.name} ({manager.shown(facts.name, 'edit')}), or let it change the disk"
                    " only where there is none",
                    blocks=judged.writable,
                )
            )
        elif judged.effect is Effect.UNKNOWN:
            problems.append(
                Problem(
                    "unit_helper_unknown",
                    f"{facts.name} runs {shown!r} ({helper.setting}=) {when}; what it does to the disks is not known",
                    "See that it leaves the VM's disks as they are",
                    blocks=False,
                )
            )
    return problems
