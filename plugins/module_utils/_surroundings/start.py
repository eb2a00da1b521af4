# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether what started a VM could start it again: its words, its user, and its program."""

from __future__ import annotations

from ansible_collections.vmops.qemu.plugins.module_utils._qemu import command_line
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.monitor import Monitor
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import QemuProcess, startable_program
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.unit import VmUnit
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.verdict import Problem

_OTHER_START = "Restore it with launch: command and a command line that needs none of it, or with launch: attach"

_CURES = {
    "inherited_descriptor": "Have QEMU open it by its path, or start the VM by a unit that gives the descriptor",
    "temporary_disks": "Commit what was written (QMP block-commit, HMP commit) and start the VM without it",
    "preconfig": "Put that part of the configuration on the command line",
}


def started_by_unit(unit: VmUnit) -> bool:
    """Whether the unit starts QEMU itself, so that QEMU is given again what it had inherited."""
    return unit.starts_vm and not unit.starter


def start_identity(process: QemuProcess, unit: VmUnit, monitor: Monitor | None) -> tuple[int, int, list[Problem]]:
    """The user and group as whom a QEMU is started again, and what of that cannot be known.

    A QEMU that changes its user by itself is started again as who started it, and its own words are no proof of who
    that was.

    :param monitor: a session with it, where there is one.
    """
    uid, gid = process.uid, process.gid
    if not command_line.changes_user(process.configuration.words) or unit.starts_vm or uid == 0:
        return uid, gid, []
    if monitor is None or (monitor.peer_pid, monitor.peer_uid) == (process.pid, 0):
        return 0, 0, []
    what = "it changes its user, and its QMP server does not show that root started it"
    return uid, gid, [Problem("user_unknown", what, "Start it as that user (systemd's User=) in the first place")]


def start_problems(process: QemuProcess, unit: VmUnit, uid: int) -> list[Problem]:
    """Why the recorded start would not start the VM again.

    :param uid: of :func:`start_identity`.
    """
    by_unit = started_by_unit(unit)
    problems = [
        Problem(kind, what, _CURES[kind], can_be_overridden=kind != "temporary_disks")
        for kind, what in command_line.replay_obstacles(process.configuration.words, starter_gives_descriptors=by_unit)
    ]
    if not process.visible:
        if not by_unit:
            what = "it is another user's process, of which only root may know all"
            problems.append(Problem("process_unknown", what, "Run the task as root (become)"))
        return problems
    _program, reason = startable_program(process.argv, process.executable, uid)
    if reason:
        problems.append(Problem("program_unsafe", reason, _OTHER_START))
    return problems
