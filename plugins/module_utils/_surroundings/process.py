# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where a QEMU runs: what of its namespaces, its place on the CPUs, and its limits a restore would not give it again.

The VM's own unit gives all of it again. Else QEMU is started by systemd in a transient unit, where systemd runs the
host and the caller is root, or by the module itself, and what it had is given to it (:mod:`circumstances`) as far as
that is possible.

Sources: proc(5), namespaces(7), sched(7), getrlimit(2), set_mempolicy(2).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._proc import (
    proc_path,
    read_stat,
    read_status,
)
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.file_names import own_jail, relative_names
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import QemuProcess
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.resources import (
    Scheduling,
    read_limits,
    read_resources,
    refused,
)
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.rights import read_rights
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.unit import VmUnit
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.circumstances import (
    Circumstances,
    read_circumstances,
    starter_of_vms,
)
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.control_group import control_group_problems
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.network_use import has_network, serves_network
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.supervisor import supervisor_problem
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.verdict import Problem
from ansible_collections.vmops.qemu.plugins.module_utils._user import user_name

#: Processes that are looked at above this one.
_MAX_ANCESTORS = 1024

#: Programs by which somebody starts QEMU in other namespaces than their own.
_MAKES_NAMESPACES = frozenset(("unshare", "nsenter", "ip", "bwrap", "firejail", "chroot", "systemd-nspawn", "runc"))

_BY_UNIT = "Run the VM as the main process of a systemd unit that sets it, which a restore then starts"


def process_problems(
    process: QemuProcess, by_unit: bool, unit: VmUnit | None = None, circumstances: Circumstances | None = None
) -> list[Problem]:
    """What a restore of this VM would not give again of where its QEMU runs, and who would start it beside its image.

    It reads a few small files in /proc, and the script of a shell that started QEMU. Never raises.

    :param by_unit: whether the VM's own unit starts QEMU itself, so that a restore starts it there again.
    :param unit: the VM's unit, where it starts another program that becomes QEMU (``VmUnit.starter``): a restore starts
        QEMU in that program's place, so that what the unit makes is made again, and what the program makes is not.
    :param circumstances: what is recorded of it, where that was looked at.
    """
    around = circumstances or read_circumstances(process, unit)
    if by_unit:
        # Nobody else can be its parent, and whatever differs from the host's is the unit's doing.
        return _thread_problems(process.pid, around)
    starter = starter_of_vms()
    supervisor = supervisor_problem(process.pid)
    problems = [
        *_namespace_problems(process, starter, around),
        *_what_is_lost(process.pid, starter, around),
        *_thread_problems(process.pid, around),
        *(() if unit and unit.starts_vm else control_group_problems(process.pid, starter)),
    ]
    if unit and unit.starts_vm:
        problems = _without_the_units_own(problems, unit)
    return [
        *problems,
        *([supervisor] if supervisor else []),
        *_log_problems(process),
    ]


# --- namespaces -------------------------------------------------------------------------------------------------


def _namespace_problems(process: QemuProcess, starter: int, around: Circumstances) -> list[Problem]:
    found = {kind: _foreign_namespace(process.pid, starter, kind) for kind in ("mnt", "net", "user")}
    if any(foreign is None for foreign in found.values()):
        return [
            Problem(
                "process_unknown",
                f"whether its QEMU (pid {process.pid}) runs in namespaces of its own cannot be told, as only root may"
                " look at it",
                "Run the task as root (become)",
            )
        ]
    problems = []
    if found["mnt"] and not around.network_mounts:
        problems.append(
            Problem(
                "mount_namespace",
                f"its QEMU (pid {process.pid}) runs in a mount namespace of its own, where the same paths may be other"
                " files; a restore starts it in that of the host",
                "Start it in the host's mount namespace, or as the main process of a systemd unit that makes its own",
            )
        )
    if found["user"]:
        problems.append(
            Problem(
                "user_namespace",
                f"its QEMU (pid {process.pid}) runs in a user namespace of its own (a container, rootless), where its"
                " user is another one; a restore starts it in that of the host",
                "Save it from within the container, or start it on the host",
            )
        )
    if found["net"] and (found["user"] or not around.network_namespace):
        problems += _network_problems(process)
    if (found["mnt"] and not around.network_mounts) or found["user"]:
        return problems  # which have all of its names for files and processes
    own = [kind for kind in ("pid", "ipc") if _foreign_namespace(process.pid, starter, kind)]
    if own:
        problems.append(
            Problem(
                "process_namespace",
                f"its QEMU (pid {process.pid}) runs in a namespace of its own ({', '.join(own)}), beyond which it sees"
                " no processes; a restore starts it in that of the host",
                "Start it in the host's, or as the main process of a systemd unit that makes its own",
            )
        )
    return problems + _root_problems(process, starter)


def _without_the_units_own(problems: list[Problem], unit: VmUnit) -> list[Problem]:
    """The problems that remain where the unit is started, with QEMU in the place of the program that became it."""
    remaining = []
    by_starter = os.path.basename(unit.starter) in _MAKES_NAMESPACES
    for problem in problems:
        if problem.kind == "network_namespace" and unit.facts and unit.facts.private_network:
            continue
        kinds = ("mount_namespace", "user_namespace", "process_namespace", "root_directory")
        if problem.kind in kinds and by_starter:
            remaining.append(problem)
            continue
        if problem.kind not in ("network_namespace", "process_unknown"):
            # Many of a unit's settings make one of these (PrivateTmp=, ProtectSystem=, Nice= …).
            what = f"{problem.what}, unless {unit.name} sets it, rather than {unit.starter}"
            problem = dataclasses.replace(problem, what=what, blocks=False)
        remaining.append(problem)
    return remaining


def _foreign_namespace(pid: int, starter: int, kind: str) -> bool | None:
    """Whether a process has another namespace than what would start it again; None where it cannot be told."""
    try:
        return os.readlink(proc_path(pid, f"ns/{kind}")) != os.readlink(proc_path(starter, f"ns/{kind}"))
    except FileNotFoundError:
        # The kernel has no such namespaces, or the process has ended: then nothing is to be said of it.
        return False
    except OSError:
        return None


def _network_problems(process: QemuProcess) -> list[Problem]:
    """A network namespace that goes with QEMU."""
    where = f"its QEMU (pid {process.pid}) runs in a network namespace that goes with it"
    cure = (
        f"Give that a name, by which a restore enters it again (ip netns attach NAME {process.pid}); or run the VM as"
        " the main process of a systemd unit with NetworkNamespacePath=, or in the host's network namespace"
    )
    if has_network(process.configuration.words):
        return [
            Problem(
                "network_namespace",
                f"{where}; a restore starts it in that of the host, where its network is another one",
                cure,
            )
        ]
    if not serves_network(process.configuration.words):
        return []
    return [
        Problem(
            "network_namespace",
            f"{where}; a restore starts it in that of the host, where what it serves or connects to over TCP is reached"
            " by others",
            cure,
            blocks=False,
        )
    ]


# --- the root directory -----------------------------------------------------------------------------------------


def _root_problems(process: QemuProcess, starter: int) -> list[Problem]:
    """A root directory of its own, which is either QEMU's own doing, and done again, or that of who started it."""
    try:
        own, usual = proc_path(process.pid, "root"), proc_path(starter, "root")
        root = os.readlink(own)
        foreign = root != os.readlink(usual) or not os.path.samestat(os.stat(own), os.stat(usual))
    except OSError:
        return []  # it has ended: what cannot be looked at was found above
    if not foreign:
        return []
    jail = own_jail(process.configuration.words)
    if not jail:
        return [
            Problem(
                "root_directory",
                f"its QEMU (pid {process.pid}) runs with the root directory {root}, where the same paths are other"
                " files; a restore starts it with that of the host",
                "Start it without chroot, with -run-with chroot=DIR, or as the main process of a systemd unit with"
                " RootDirectory=",
            )
        ]
    if process.uid != 0:
        return [
            Problem(
                "root_directory",
                f"its QEMU (pid {process.pid}) went into {root} by itself (chroot) before it gave root up, and a"
                f" restore starts it as {user_name(process.uid)}, who may not",
                "Start the VM by a systemd unit with User= and RootDirectory=",
            )
        ]
    relative = relative_names(process.configuration.words)
    if not relative or process.cwd != root:
        return []  # it was found out where that was
    return [
        Problem(
            "root_directory",
            f"its QEMU went into {root} by itself (chroot), so in which directory it was started is not known, and"
            f" where {relative[0]} is cannot be told; a restore starts it in {process.cwd}",
            "Start it with absolute paths",
        )
    ]


# --- what is lost -----------------------------------------------------------------------------------------------


def _what_is_lost(pid: int, starter: int, around: Circumstances) -> list[Problem]:
    """What somebody gave this QEMU that one which is started by its recorded command cannot get again."""
    found: dict[str, list[str]] = {}
    if around.resources:
        wanted = dataclasses.replace(around.resources, limits=_own_limits(around.resources.limits))
        for kind, what in refused(wanted, read_resources(starter), read_rights(starter)):
            found.setdefault(kind, []).append(what)
    nodes = _nodes(pid, starter)
    if nodes:
        found.setdefault("memory_policy", []).append(nodes)
    return [
        Problem(kind, f"{', '.join(parts)} of its QEMU (pid {pid}) would be lost at a restore", _BY_UNIT, blocks=False)
        for kind, parts in found.items()
    ]


def _thread_problems(pid: int, around: Circumstances) -> list[Problem]:
    """Threads that run otherwise than the others, and that no later QEMU has by a name."""
    for thread, own in around.odd_threads:
        usual = around.resources.scheduling if around.resources else Scheduling()
        pinned = own.cpus != usual.cpus
        what = (
            f"the CPUs {own.cpus or 'of all its host'}" if pinned else f"the priority ({own.policy}, nice {own.nice})"
        )
        return [
            Problem(
                "cpu_affinity" if pinned else "priority",
                f"{what} of the thread {thread} of its QEMU (pid {pid}) would be lost at a restore",
                "Set it again afterwards; that of virtual CPUs and I/O threads (-object iothread) is given again",
                blocks=False,
            )
        ]
    return []


def _own_limits(limits: tuple[tuple[str, str, str], ...]) -> tuple[tuple[str, str, str], ...]:
    """The limits that neither this process has nor one of those that led to it, of which one is a service."""
    # Those above are read one by one: mostly nothing was changed, and the first of them says so.
    for other in _with_ancestors(os.getpid()):
        usual = read_limits(other)
        limits = tuple(limit for limit in limits if limit not in usual) if usual else limits
        if not limits:
            break
    return limits


def _with_ancestors(pid: int) -> t.Iterator[int]:
    """A process, and those that led to it, the nearest first."""
    yield pid
    with contextlib.suppress(OSError):
        for _step in range(_MAX_ANCESTORS):
            pid = read_stat(pid).parent
            if pid < 1:
                return
            yield pid


def _nodes(pid: int, starter: int) -> str:
    """The NUMA nodes to which a control group confines the process."""
    own, usual = (_allowed_nodes(number) for number in (pid, starter))
    return f"the NUMA nodes {own}" if own and usual and own != usual else ""


def _allowed_nodes(pid: int) -> str:
    with contextlib.suppress(OSError):
        return read_status(pid).get("Mems_allowed_list", "")
    return ""


# --- files that are begun anew ----------------------------------------------------------------------------------


def _log_problems(process: QemuProcess) -> list[Problem]:
    """Files that QEMU truncates at its start, and that nothing makes it append to."""
    found = []
    for setting in process.configuration.settings:
        keys, name = setting.keys, setting.option
        if name == "D" and "%d" not in setting.argument:  # which is the number of the process
            found.append((setting.argument, "QEMU's own log"))
        elif name == "trace" and keys.get("file"):
            found.append((keys["file"], "QEMU's own log"))
        elif name == "object" and keys.get("qom-type") == "filter-dump":
            found.append((keys.get("file", "a file"), "the guest's network packets"))
        elif name in ("audiodev", "audio") and keys.get("driver") == "wav":
            found.append((keys.get("path", "qemu.wav"), "the guest's sound"))
        elif name == "icount" and keys.get("rr") == "record":
            found.append((keys.get("rrfile", "a file"), "the record of the guest's execution"))
    return [
        Problem(
            "log_begun_anew",
            f"{path} ({what}) is begun anew when QEMU is started again",
            "Copy it before the restore where it is wanted",
            blocks=False,
        )
        for path, what in found
    ]
