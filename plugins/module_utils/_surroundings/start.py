# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether what started a VM could start it again: its words, its user, its program, and its unit's own command.

It is started as the user that it is now: its words are what it says of itself, and no proof that root started it.
"""

from __future__ import annotations

import os

from ansible_collections.vmops.qemu.plugins.module_utils._qemu import command_line, manager, systemd, unit_command
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.file_names import left_directory, relative_names
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.launch import startable_program
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import QemuProcess
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.unit import VmUnit, start_user
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.verdict import Problem
from ansible_collections.vmops.qemu.plugins.module_utils._user import user_name

_OTHER_START = "Restore it with launch: command and a command line that needs none of it, or with launch: attach"

_CURES = {
    "inherited_descriptor": "Have QEMU open it by its path, or start the VM by a unit that gives the descriptor",
    "temporary_disks": "Commit what was written (QMP block-commit, HMP commit) and start the VM without it",
    "preconfig": "Put that part of the configuration on the command line",
}


def started_by_unit(unit: VmUnit) -> bool:
    """Whether the unit starts QEMU itself, so that QEMU is given again what it had inherited."""
    return unit.starts_vm and not unit.starter


def start_problems(process: QemuProcess, unit: VmUnit) -> list[Problem]:
    """Why the recorded start would not start the VM again."""
    by_unit = started_by_unit(unit)
    problems = [
        Problem(kind, what, _CURES[kind], loses_data=kind == "temporary_disks")
        for kind, what in command_line.replay_obstacles(process.configuration.words, starter_gives_descriptors=by_unit)
    ]
    if not process.visible:
        if not by_unit:
            what = "it is another user's process, which only root may look at in full"
            problems.append(Problem("process_unknown", what, "Run the task as root (become)"))
        return problems
    problems += [] if by_unit else _left_directory(process)
    _program, reason = startable_program(process.argv, process.executable, process.uid)
    if reason:
        problems.append(Problem("program_unsafe", reason, _OTHER_START))
    if unit.starts_vm and unit.command is not None and unit.facts is not None:
        if by_unit:
            problems += _own_command_problems(process, unit.name, unit.facts, unit.command)
        else:
            problems += _starter_problems(process, unit.name, unit.facts, unit.command)
    elif process.rights is not None and not process.rights.one_user:
        problems.append(_several_users(process))
    return problems


def _left_directory(process: QemuProcess) -> list[Problem]:
    """A start in another directory would find other files, or none, by relative names."""
    words = process.configuration.words
    if not command_line.daemonizes(process.argv) or not left_directory(words) or process.cwd != "/":
        return []
    elsewhere = [name for name in relative_names(words) if not os.path.lexists(os.path.join("/", name))]
    if not elsewhere:
        return []
    return [
        Problem(
            "working_directory",
            f"its QEMU (pid {process.pid}) has left the directory in which it was started (-daemonize), and nothing"
            f" that it has open tells where {elsewhere[0]} is",
            "Start it with absolute paths, or without -daemonize",
        )
    ]


def _several_users(process: QemuProcess) -> Problem:
    return Problem(
        "user_unknown",
        f"its QEMU (pid {process.pid}) runs as several users or groups at once, as a set-user-ID program does, so it is"
        " not known as which user to start it again",
        "Start it as one user, without a set-user-ID program",
    )


def _own_command_problems(
    process: QemuProcess, name: str, facts: systemd.Unit, command: systemd.StartCommand
) -> list[Problem]:
    """A restore starts what the unit has for its QEMU now, which need not be what runs."""
    of_user = manager.split_unit(name)[0].uid is not None
    if command.words is None:
        return [
            Problem(
                "unit_command_unknown",
                f"the command of {name} (ExecStart=) cannot be read from systemd (busctl), and what the process says"
                " of itself is not run in its place",
                "Check that the command is UTF-8, and that D-Bus runs"
                + (" for this user (Debian: dbus-user-session)" if of_user else " on this host"),
            )
        ]
    variables: dict[str, str] = {}
    words = list(command.words)
    if command.expands:
        variables = unit_command.variables_of(process.pid, facts) if unit_command.has_variables(words) else {}
        words = unit_command.expanded(words, variables)
    difference = unit_command.first_difference(words, process.argv)
    if difference:
        return [
            Problem(
                "unit_changed",
                f"its QEMU (pid {process.pid}) has other words than {name} has now ({difference}), so a start by the"
                " unit would be of another machine",
                f"Restart the VM by {name}, or undo the unit's change ({manager.shown(name, 'cat')};"
                f" systemctl {'--user ' if of_user else ''}daemon-reload)",
            )
        ]
    daemonize = facts.service_type == "forking" and command_line.daemonizes(process.argv)
    hidden = unit_command.hidden_start_option(command.words, variables, daemonize) if command.expands else ""
    if hidden:
        return [
            Problem(
                "unit_command_unknown",
                f"{name} has {hidden} in a variable of its command, which a restore has to take out, and cannot",
                f"Write it into the command itself ({manager.shown(name, 'edit')})",
            )
        ]
    return []


def _starter_problems(
    process: QemuProcess, name: str, facts: systemd.Unit, command: systemd.StartCommand
) -> list[Problem]:
    """A restore executes QEMU by its own words in the place of the program that became it: with no more rights."""
    if process.rights is not None and not process.rights.one_user:
        return [_several_users(process)]
    uid = start_user(facts, command)
    if facts.dynamic_user or uid in (0, process.uid):
        return []
    return [
        Problem(
            "unit_user",
            f"{name} has the user {facts.user}, and its QEMU (pid {process.pid}) is {user_name(process.uid)}'s: a"
            " restore by the unit could not start it as that user",
            f"Give {name} that user (User=)",
        )
    ]
