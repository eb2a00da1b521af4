# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where a QEMU runs: what of its namespaces, its place on the CPUs, and its limits its recorded command does not give.

The VM's own unit gives all of it again. Else QEMU is started by systemd in a transient unit, where systemd runs the
host and the caller is root, or by the module itself: with those it is compared, as they are what it would get.

Sources: proc(5), namespaces(7), sched(7), setrlimit(2), set_mempolicy(2).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._bounded_read import read_up_to
from ansible_collections.vmops.qemu.plugins.module_utils._proc import (
    proc_path,
    read_proc,
    read_stat,
    read_status,
    threads_of,
)
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import command_line, systemd
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.file_names import own_jail, relative_names
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import QemuProcess
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.unit import VmUnit
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.supervisor import supervisor_problem
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.verdict import Problem
from ansible_collections.vmops.qemu.plugins.module_utils._user import user_name

#: Threads that are looked at: each virtual CPU may have been put on a CPU of its own.
_MAX_THREADS = 1024

#: Programs by which somebody starts QEMU in other namespaces than their own.
_MAKES_NAMESPACES = frozenset(("unshare", "nsenter", "ip", "bwrap", "firejail", "chroot", "systemd-nspawn", "runc"))

#: The lines of /proc/PID/limits that somebody sets for a VM, and which of its two values counts: QEMU raises its
#: descriptors to the hard limit by itself. How many processes, signals and locks a user may have differs between
#: sessions and services, and no QEMU comes near it.
_LIMITS = {
    "Max cpu time": 0,
    "Max file size": 0,
    "Max data size": 0,
    "Max core file size": 0,
    "Max resident set": 0,
    "Max open files": 1,
    "Max locked memory": 0,
    "Max address space": 0,
    "Max nice priority": 0,
    "Max realtime priority": 0,
}

_BY_UNIT = "Run the VM as the main process of a systemd unit that sets it, which a restore then starts"

#: Options, and parts of others' arguments, by which a VM has to do with the network beside its network cards.
_NETWORK_DISK = re.compile(
    r"(?:^|[=:,\"'])(?:nbd|iscsi|https?|ftps?|ssh|sftp|rbd|gluster|nfs|ceph)(?:\+\w+)?(?::|\"|$|,)"
)
_NETWORK_SERVER = re.compile(r"(?:^|[,:])(?:tcp|telnet|websocket|tn3270|udp):|(?:^|[,.])(?:host|port|tls-port)=")


def process_problems(process: QemuProcess, by_unit: bool, unit: VmUnit | None = None) -> list[Problem]:
    """What a restore of this VM would not give again of where its QEMU runs, and who would start it beside its image.

    It reads a few small files in /proc, and the script of a shell that started QEMU. Never raises.

    :param by_unit: whether the VM's own unit starts QEMU itself, so that a restore starts it there again.
    :param unit: the VM's unit, where it starts another program that becomes QEMU (``VmUnit.starter``): a restore starts
        QEMU in that program's place, so that what the unit makes is made again, and what the program makes is not.
    """
    if by_unit:
        # Nobody else can be its parent, and whatever differs from the host's is the unit's doing.
        return []
    # systemd and its children have the namespaces of the host; a module may run in those of its session.
    starter = 1 if systemd.is_running() and os.geteuid() == 0 else os.getpid()
    supervisor = supervisor_problem(process.pid)
    problems = [*_namespace_problems(process, starter), *_what_is_lost(process.pid, starter)]
    if unit and unit.starts_vm:
        problems = _without_the_units_own(problems, unit)
    return [
        *problems,
        *([supervisor] if supervisor else []),
        *_log_problems(process),
    ]


# --- namespaces -------------------------------------------------------------------------------------------------


def _namespace_problems(process: QemuProcess, starter: int) -> list[Problem]:
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
    if found["mnt"]:
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
    if found["net"]:
        problems += _network_problems(process)
    if found["mnt"] or found["user"]:
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
    """A network namespace of its own: for a VM without network it is one of the ways to be sure of that."""
    where = f"its QEMU (pid {process.pid}) runs in a network namespace of its own{_network_namespace_name(process.pid)}"
    cure = "Run it as the main process of a systemd unit with NetworkNamespacePath=, or in the host's network namespace"
    if _has_network(process.configuration.words):
        return [
            Problem(
                "network_namespace",
                f"{where}; a restore starts it in that of the host, where its network is another one",
                cure,
            )
        ]
    if any(_is_on_network(option) for option in command_line.options(process.configuration.words)):
        return [
            Problem(
                "network_namespace",
                f"{where}; a restore starts it in that of the host, where what it serves or connects to over TCP is"
                " reached by others",
                cure,
                blocks=False,
            )
        ]
    return []


def _is_on_network(option: command_line.CommandOption) -> bool:
    """Whether an option is for a server on the network, or for a client of one."""
    argument = option.argument or ""
    if option.name == "vnc":
        return ":" in argument and not argument.startswith("unix:")
    return option.name not in ("name", "append") and _NETWORK_SERVER.search(argument) is not None


def _network_namespace_name(pid: int) -> str:
    """The name that ``ip netns`` has for it, as a clause; or the empty string."""
    with contextlib.suppress(OSError):
        own = os.stat(proc_path(pid, "ns/net"))
        for name in os.listdir("/run/netns")[:_MAX_THREADS]:
            with contextlib.suppress(OSError):
                if os.path.samestat(own, os.stat(f"/run/netns/{name}")):
                    return f" ({name})"
    return ""


def _has_network(argv: t.Sequence[str]) -> bool:
    """Whether the guest, or a disk of its, reaches a network: also by the card that QEMU gives it by itself."""
    default = True
    for option in command_line.options(argv):
        argument = option.argument or ""
        if option.name in ("nic", "net"):
            default = False
            kind = command_line.parse_option_string(argument, "type").get("type", "")
            # A card of -net is on no network before another -net says of which.
            if kind != "none" and (option.name, kind) != ("net", "nic"):
                return True
        elif option.name == "netdev":
            return True
        elif option.name == "nodefaults":
            default = False
        elif option.name == "readconfig":
            return True  # what is in that file is not known
        elif _NETWORK_DISK.search(argument) and option.name in ("drive", "blockdev", "cdrom", "hda", "hdb"):
            return True
    return default


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


def _what_is_lost(pid: int, starter: int) -> list[Problem]:
    """What somebody gave this QEMU that one which is started by its command does not get."""
    threads = _threads(pid)
    found = (
        ("cpu_affinity", _affinity(threads, starter)),
        ("priority", _priority(threads, starter)),
        ("resource_limits", _limits(pid)),
        ("oom_score", _oom_score(pid, starter)),
        ("memory_policy", _memory_policy(pid, starter)),
    )
    return [
        Problem(kind, f"{what} of its QEMU (pid {pid}) would be lost at a restore", _BY_UNIT, blocks=False)
        for kind, what in found
        if what
    ]


def _threads(pid: int) -> list[int]:
    """The process first, and its threads."""
    try:
        return [pid, *(thread for thread in threads_of(pid)[:_MAX_THREADS] if thread != pid)]
    except OSError:
        return []


def _affinity(threads: t.Sequence[int], starter: int) -> str:
    with contextlib.suppress(OSError):
        usual = os.sched_getaffinity(starter)
        for thread in threads:
            own: set[int] = set()
            with contextlib.suppress(ProcessLookupError):  # a thread that has just ended
                own = os.sched_getaffinity(thread)
            if own and own != usual:
                which = "" if thread == threads[0] else f" of the thread {thread}"
                return f"the CPUs {_ranges(own)}{which}"
    return ""


def _ranges(numbers: t.Collection[int]) -> str:
    """Numbers as the kernel lists CPUs: ``0-3,8``."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and parts[-1][-1] == number - 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, part)) for part in parts)


def _priority(threads: t.Sequence[int], starter: int) -> str:
    usual: int | None = None
    with contextlib.suppress(OSError):
        # systemd's own, where it runs in a container say, is what its services have, too.
        usual = read_stat(starter).nice
    for thread in threads:
        with contextlib.suppress(OSError):
            which = "" if thread == threads[0] else f" of the thread {thread}"
            policy = os.sched_getscheduler(thread)
            if policy != os.SCHED_OTHER and thread == threads[0]:
                return f"the scheduling policy {_POLICIES.get(policy, str(policy))}"
            nice = read_stat(thread).nice
            if usual is not None and nice != usual:
                return f"the nice value {nice}{which}"
    return ""


_POLICIES = {os.SCHED_FIFO: "FIFO", os.SCHED_RR: "RR", os.SCHED_BATCH: "batch", os.SCHED_IDLE: "idle", 6: "deadline"}


def _limits(pid: int) -> str:
    """The limits that neither this process has nor one of those that led to it, of which one is a service."""
    changed = _read_limits(pid)
    # Those above are read one by one: mostly nothing was changed, and the first of them says so.
    for other in _with_ancestors(os.getpid()):
        limits = _read_limits(other)
        changed = {name: limit for name, limit in changed.items() if not limits or limits.get(name, limit) != limit}
        if not changed:
            return ""
    shown = (f"{name[len('Max ') :]} {changed[name]}" for name in _LIMITS if name in changed)
    return f"the limits ({', '.join(shown)})" if changed else ""


def _with_ancestors(pid: int) -> t.Iterator[int]:
    """A process, and those that led to it, the nearest first."""
    yield pid
    with contextlib.suppress(OSError):
        for _step in range(_MAX_THREADS):
            pid = read_stat(pid).parent
            if pid < 1:
                return
            yield pid


def _read_limits(pid: int) -> dict[str, str]:
    """The limits that count, by the kernel's names; empty where they cannot be read."""
    found = {}
    with contextlib.suppress(OSError):
        for line in read_proc(pid, "limits").decode("ascii", "replace").splitlines():
            row = re.match(r"(Max .*?)\s{2,}(\w+)\s+(\w+)", line)
            if row and row.group(1) in _LIMITS:
                found[row.group(1)] = row.group(2 + _LIMITS[row.group(1)])
    return found


def _oom_score(pid: int, starter: int) -> str:
    own, usual = (_read_small(number, "oom_score_adj") for number in (pid, starter))
    return f"the OOM score adjustment {own.decode()}" if own and usual and own != usual else ""


def _memory_policy(pid: int, starter: int) -> str:
    """The NUMA policy, or the nodes to which the process is confined."""
    # Only its first mapping is asked for, as the kernel walks the page tables of each: one without a policy of its own
    # shows that of the process.
    with contextlib.suppress(OSError):
        descriptor = os.open(proc_path(pid, "numa_maps"), os.O_RDONLY | os.O_CLOEXEC)
        try:
            words = read_up_to(descriptor, 64).split()
        finally:
            os.close(descriptor)
        if len(words) > 1 and words[1] != b"default" and not words[1].startswith(b"default"):
            return f"the NUMA memory policy {words[1].decode('ascii', 'replace')}"
    own, usual = (_allowed_nodes(number) for number in (pid, starter))
    return f"the NUMA nodes {own}" if own and usual and own != usual else ""


def _allowed_nodes(pid: int) -> str:
    with contextlib.suppress(OSError):
        return read_status(pid).get("Mems_allowed_list", "")
    return ""


def _read_small(pid: int, name: str) -> bytes:
    with contextlib.suppress(OSError):
        return read_proc(pid, name).strip()
    return b""


# --- files that are begun anew ----------------------------------------------------------------------------------


def _log_problems(process: QemuProcess) -> list[Problem]:
    """Files that QEMU truncates at its start, and that nothing makes it append to."""
    found = []
    for option in command_line.options(process.configuration.words):
        keys = command_line.parse_option_string(option.argument or "", "implied")
        if option.name == "D" and option.argument:
            found.append((option.argument, "QEMU's own log"))
        elif option.name == "trace" and keys.get("file"):
            found.append((keys["file"], "QEMU's own log"))
        elif option.name == "object" and keys.get("implied", keys.get("qom-type")) == "filter-dump":
            found.append((keys.get("file", "a file"), "the guest's network packets"))
    return [
        Problem(
            "log_begun_anew",
            f"{path} ({what}) is begun anew when QEMU is started again",
            "Copy it before the restore where it is wanted",
            blocks=False,
        )
        for path, what in found
    ]
