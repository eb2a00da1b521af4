# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What of its host a process may use: its CPUs, priorities, limits, OOM score; read of one, and given to another.

All of it is what the kernel tells of the process, which cannot give itself more than it was given. A new process has it
from its start, by the tools of util-linux, so that its threads inherit it; threads that were treated apart (a virtual
CPU on a host CPU of its own) get theirs when they are there. None of it is worth a guest: what cannot be given is left
as it is, and told.

Sources: sched(7), getpriority(2), ioprio_set(2), getrlimit(2), proc_pid_limits(5), proc_pid_oom_score_adj(5),
set_mempolicy(2), prlimit(1), taskset(1), chrt(1), renice(1), ionice(1), numactl(8).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import subprocess
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._bounded_read import read_bounded, read_up_to
from ansible_collections.vmops.qemu.plugins.module_utils._proc import Pid, proc_path, read_proc, threads_of
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.rights import Rights

#: Threads that are looked at: each virtual CPU may have been put on a CPU of its own.
MAX_THREADS = 1024

_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"

#: Seconds that a tool may take which asks the kernel one thing.
_TOOL_TIMEOUT = 5.0

#: The limits that are given again: the kernel's names in /proc/PID/limits, and those of prlimit's options. How many
#: processes, signals and locks a user may have is left out: it counts all of that user's, and no QEMU comes near it.
_LIMITS = {
    "Max cpu time": "cpu",
    "Max file size": "fsize",
    "Max data size": "data",
    "Max stack size": "stack",
    "Max core file size": "core",
    "Max resident set": "rss",
    "Max open files": "nofile",
    "Max locked memory": "memlock",
    "Max address space": "as",
    "Max nice priority": "nice",
    "Max realtime priority": "rtprio",
    "Max realtime timeout": "rttime",
}
_LIMIT_NAMES = {option: name[len("Max ") :] for name, option in _LIMITS.items()}

_POLICIES = {
    os.SCHED_OTHER: "other",
    os.SCHED_FIFO: "fifo",
    os.SCHED_RR: "rr",
    os.SCHED_BATCH: "batch",
    os.SCHED_IDLE: "idle",
    6: "deadline",  # which has times of its own, and is not given again
}
_POLICY_NUMBERS = {name: number for number, name in _POLICIES.items()}
_REAL_TIME = ("fifo", "rr")
_RESET_ON_FORK = 0x40000000

_IO_CLASSES = {"realtime": 1, "best-effort": 2, "idle": 3}

#: The kernel's words for the policies of NUMA memory, as /proc/PID/numa_maps has them, and numactl's.
_MEMORY_OPTIONS = {
    "interleave": "--interleave",
    "bind": "--membind",
    "prefer": "--preferred",
    "prefer (many)": "--preferred-many",
    "local": "--localalloc",
}

_CAP_SYS_NICE = 1 << 23
_CAP_SYS_RESOURCE = 1 << 24

_CPU_LIST = re.compile(r"[0-9]{1,5}(?:-[0-9]{1,5})?(?:,[0-9]{1,5}(?:-[0-9]{1,5})?){0,1023}")
_MAX_CPU = 65535
_MEMORY = re.compile(r"(interleave|bind|prefer|prefer \(many\)|local)(?::([0-9]{1,4}(?:[-,][0-9]{1,4}){0,255}))?")
_IO = re.compile("[123]:[0-7]")
_LIMIT = re.compile("unlimited|[0-9]{1,20}")

#: What the kernel has for a process of which nobody has said anything.
_NO_IO = ""


@dataclasses.dataclass(frozen=True)
class Scheduling:
    """On which CPUs a thread runs, and when."""

    #: As the kernel lists them (``0-3,8``); empty for all that are online.
    cpus: str = ""
    #: ``other``, ``fifo``, ``rr``, ``batch``, ``idle``, ``deadline``.
    policy: str = "other"
    #: Of a real-time policy.
    priority: int = 0
    nice: int = 0


@dataclasses.dataclass(frozen=True)
class Resources:
    """What a process may use of its host."""

    scheduling: Scheduling = Scheduling()
    #: The class and the level of its input and output (``2:4``); empty where nobody has said anything.
    io: str = _NO_IO
    oom_score: int = 0
    #: By prlimit's names, each with the soft and the hard one: a number or ``unlimited``.
    limits: tuple[tuple[str, str, str], ...] = ()
    #: The NUMA policy in the kernel's words (``interleave:0-1``); empty for the default one.
    memory: str = ""
    #: The threads that are treated apart, by names that a later QEMU has, too (``cpu 0``, ``iothread io1``).
    threads: tuple[tuple[str, Scheduling], ...] = ()

    def dump(self) -> str:
        """As :func:`parse_resources` reads it."""
        value = dataclasses.asdict(self)
        value["threads"] = {name: dataclasses.asdict(scheduling) for name, scheduling in self.threads}
        return json.dumps(value, separators=(",", ":"))


def parse_resources(text: str) -> Resources | None:
    """What ``dump`` has made; None where it has not."""
    try:
        value = json.loads(text)
        found = Resources(
            _parse_scheduling(value["scheduling"]),
            value["io"],
            value["oom_score"],
            tuple((name, soft, hard) for name, soft, hard in value["limits"]),
            value["memory"],
            tuple((name, _parse_scheduling(each)) for name, each in value["threads"].items()),
        )
        sound = (
            (found.io == _NO_IO or _IO.fullmatch(found.io))
            and _is_number(found.oom_score, -1000, 1000)
            and all(
                name in _LIMIT_NAMES and _LIMIT.fullmatch(soft) and _LIMIT.fullmatch(hard)
                for name, soft, hard in found.limits
            )
            and (found.memory == "" or _MEMORY.fullmatch(found.memory))
            and len(found.threads) <= MAX_THREADS
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return found if sound else None


def _parse_scheduling(value: t.Any) -> Scheduling:
    """:raises ValueError: it is none."""
    found = Scheduling(value["cpus"], value["policy"], value["priority"], value["nice"])
    if (
        not (found.cpus == "" or (_CPU_LIST.fullmatch(found.cpus) and _numbers(found.cpus)))
        or found.policy not in _POLICY_NUMBERS
        or not _is_number(found.priority, 0, 99)
        or not _is_number(found.nice, -20, 19)
    ):
        raise ValueError("that is not how a thread runs")
    return found


def _is_number(value: object, lowest: int, highest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and lowest <= value <= highest


def ranges(numbers: t.Collection[int]) -> str:
    """Numbers as the kernel lists CPUs: ``0-3,8``."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and parts[-1][-1] == number - 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, part)) for part in parts)


def _numbers(text: str) -> set[int]:
    """The CPUs that are listed; none beyond what a kernel has."""
    found: set[int] = set()
    for part in text.split(","):
        first, _dash, last = part.partition("-")
        found.update(range(int(first), min(int(last or first), _MAX_CPU) + 1))
    return found


# --- reading ----------------------------------------------------------------------------------------------------


def read_resources(pid: int) -> Resources:
    """What a process may use, without its threads; what cannot be told is as nobody has said anything."""
    oom_score = 0
    with contextlib.suppress(OSError, ValueError):
        oom_score = int(read_proc(pid, "oom_score_adj"))
    return Resources(read_scheduling(pid), _read_io(pid), oom_score, read_limits(pid), _read_memory(pid))


def read_scheduling(thread: int) -> Scheduling:
    """How a thread runs; as one of which nobody has said anything where that cannot be told."""
    found = Scheduling()
    with contextlib.suppress(OSError):
        cpus = os.sched_getaffinity(thread)
        policy = os.sched_getscheduler(thread) & ~_RESET_ON_FORK
        found = Scheduling(
            "" if cpus >= _online() else ranges(cpus),
            _POLICIES.get(policy, "deadline"),
            os.sched_getparam(thread).sched_priority,
            os.getpriority(os.PRIO_PROCESS, thread),
        )
    return found


def _online() -> set[int]:
    try:
        return _numbers(read_bounded("/sys/devices/system/cpu/online", 4096).decode("ascii").strip())
    except (OSError, ValueError):
        return set(range(_MAX_CPU))


def _read_io(pid: int) -> str:
    """The kernel has no file for it."""
    tool = find_tool("ionice")
    if not tool:
        return _NO_IO
    try:
        done = subprocess.run(
            [tool, "-p", str(pid)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PATH": _PATH, "LC_ALL": "C"},
            timeout=_TOOL_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return _NO_IO
    said = re.fullmatch(r"(\S+?)(?:: prio ([0-7]))?", done.stdout.decode("ascii", "replace").strip())
    if not said or said.group(1) not in _IO_CLASSES:
        return _NO_IO
    return f"{_IO_CLASSES[said.group(1)]}:{said.group(2) or 0}"


def read_limits(pid: Pid) -> tuple[tuple[str, str, str], ...]:
    """The limits of a process as ``Resources`` has them; none where they cannot be read."""
    found = []
    with contextlib.suppress(OSError):
        for line in read_proc(pid, "limits").decode("ascii", "replace").splitlines():
            row = re.match(r"(Max .*?)\s{2,}(\w+)\s+(\w+)", line)
            if row and row.group(1) in _LIMITS and all(_LIMIT.fullmatch(word) for word in row.group(2, 3)):
                found.append((_LIMITS[row.group(1)], row.group(2), row.group(3)))
    return tuple(found)


def _read_memory(pid: int) -> str:
    # Only its first mapping is asked for, as the kernel walks the page tables of each: one without a policy of its own
    # shows that of the process.
    with contextlib.suppress(OSError):
        descriptor = os.open(proc_path(pid, "numa_maps"), os.O_RDONLY | os.O_CLOEXEC)
        try:
            line = read_up_to(descriptor, 128).decode("ascii", "replace").partition("\n")[0]
        finally:
            os.close(descriptor)
        said = re.match(r"\S+ ((?:prefer \(many\)|\S+?)(?:[:=]\S*)?)(?: |$)", line)
        if said and not said.group(1).startswith("default"):
            return said.group(1)
    return ""


def odd_threads(pid: int, usual: Scheduling) -> dict[int, Scheduling]:
    """The threads of a process that run otherwise than its first one, by number."""
    found = {}
    with contextlib.suppress(OSError):
        for thread in sorted(threads_of(pid))[:MAX_THREADS]:
            own = read_scheduling(thread)
            # One that has just ended runs as nothing else.
            if own != usual and os.path.exists(proc_path(pid, f"task/{thread}")):
                found[thread] = own
    return found


# --- giving -----------------------------------------------------------------------------------------------------


def find_tool(name: str) -> str:
    """Where a tool of the host's is, or the empty string."""
    return shutil.which(name, path=_PATH) or ""


def resource_words(wanted: Resources | None, starter: Resources) -> list[str]:
    """The words before a program with which it is executed with these resources; none where it has them so already.

    What is refused is told on stderr, and the program is executed all the same.

    :param starter: what whoever executes these words has; without limits where those are not known.
    """
    if wanted is None:
        return []
    lines = _commands(wanted, starter)
    memory = _memory_option(wanted.memory) if wanted.memory != starter.memory else ""
    if memory:
        lines += [f'if numactl {memory} true; then exec numactl {memory} "$@"; fi']
    if not lines:
        return []
    return ["/bin/sh", "-c", "\n".join([*lines, 'exec "$@"']), "sh"]


def _commands(wanted: Resources, starter: Resources) -> list[str]:
    """The commands of a shell that have it use no more and no less; all that stands in them are checked numbers."""
    own, usual = wanted.scheduling, starter.scheduling
    lines = []
    if wanted.oom_score != starter.oom_score:
        lines.append(f"echo {wanted.oom_score} >/proc/$$/oom_score_adj")
    if own.cpus != usual.cpus:
        lines.append(f"taskset -c -p {own.cpus or ranges(_online())} $$ >/dev/null")
    if (own.policy, own.priority) != (usual.policy, usual.priority) and own.policy != "deadline":
        lines.append(f"chrt --{own.policy} -p {own.priority} $$")
    if own.nice != usual.nice:
        lines.append(f"renice -n {own.nice} -p $$ >/dev/null")
    if wanted.io != starter.io and wanted.io:
        kind, level = wanted.io.split(":")
        lines.append(f"ionice -c {kind}{'' if kind == '3' else f' -n {level}'} -p $$")
    options = [
        f"--{name}={soft}:{hard}" for name, soft, hard in wanted.limits if (name, soft, hard) not in starter.limits
    ]
    if options:
        # Where one is refused, the others are given.
        each = "; ".join(f"prlimit --pid $$ {option}" for option in options)
        lines.append(f"prlimit --pid $$ {' '.join(options)} 2>/dev/null || {{ {each}; }}")
    return lines


def _memory_option(policy: str) -> str:
    found = _MEMORY.fullmatch(policy)
    if not found:
        return ""
    option, nodes = _MEMORY_OPTIONS[found.group(1)], found.group(2)
    return f"{option}={nodes}" if nodes else option if found.group(1) == "local" else ""


def refused(wanted: Resources, starter: Resources, rights: Rights | None) -> t.Iterator[tuple[str, str]]:
    """What of these could not be given: a word for the kind, and what it is, as a clause.

    :param starter: what whoever would give it has himself.
    :param rights: what that one may do.
    """
    permitted = rights.capabilities.permitted if rights and rights.capabilities else 0
    own, usual = wanted.scheduling, starter.scheduling
    limits = {name: (soft, hard) for name, soft, hard in starter.limits}
    if own.cpus != usual.cpus and not find_tool("taskset"):
        yield "cpu_affinity", f"the CPUs {own.cpus}"
    if (own.policy, own.priority) != (usual.policy, usual.priority):
        allowed = permitted & _CAP_SYS_NICE or own.priority <= _amount(limits.get("rtprio", ("0", "0"))[0])
        if not find_tool("chrt") or own.policy == "deadline" or (own.policy in _REAL_TIME and not allowed):
            yield "priority", f"the scheduling policy {own.policy}"
    if own.nice != usual.nice:
        lowest = 20 - _amount(limits.get("nice", ("0", "0"))[0])
        if not find_tool("renice") or (own.nice < min(usual.nice, lowest) and not permitted & _CAP_SYS_NICE):
            yield "priority", f"the nice value {own.nice}"
    if wanted.io not in (starter.io, _NO_IO) and wanted.io.startswith("1:") and not permitted & _CAP_SYS_NICE:
        yield "priority", f"the priority of its input and output ({wanted.io})"
    if wanted.oom_score < starter.oom_score and not permitted & _CAP_SYS_RESOURCE:
        yield "oom_score", f"the OOM score adjustment {wanted.oom_score}"
    for name, soft, hard in wanted.limits:
        if (soft, hard) == limits.get(name, (soft, hard)):
            continue
        raised = _amount(hard) > _amount(limits[name][1])
        if not find_tool("prlimit") or (raised and not permitted & _CAP_SYS_RESOURCE):
            yield "resource_limits", f"the limit {_LIMIT_NAMES[name]} {soft} ({hard} at most)"
    if wanted.memory != starter.memory and not (find_tool("numactl") and _memory_option(wanted.memory)):
        yield "memory_policy", f"the NUMA memory policy {wanted.memory}"


def _amount(limit: str) -> int:
    return 1 << 64 if limit == "unlimited" else int(limit)


def not_given(wanted: Resources, pid: int) -> list[str]:
    """What of these a process that was started with them has not got, as clauses."""
    found = read_resources(pid)
    own, real = wanted.scheduling, found.scheduling
    pairs = [
        ("the CPUs", own.cpus or "all", real.cpus or "all"),
        ("the scheduling policy", own.policy, real.policy),
        ("the real-time priority", own.priority, real.priority),
        ("the nice value", own.nice, real.nice),
        ("the OOM score adjustment", wanted.oom_score, found.oom_score),
    ]
    if wanted.io:
        pairs.append(("the priority of its input and output", wanted.io, found.io or "none"))
    if wanted.memory:
        pairs.append(("the NUMA memory policy", wanted.memory, found.memory or "default"))
    limits = {name: (soft, hard) for name, soft, hard in found.limits}
    for name, soft, hard in wanted.limits:
        # QEMU raises the soft limit of its open files to the hard one by itself.
        real_soft, real_hard = limits.get(name, (soft, hard))
        counts = (hard, real_hard) if name == "nofile" else (f"{soft}:{hard}", f"{real_soft}:{real_hard}")
        pairs.append((f"the limit {_LIMIT_NAMES[name]}", *counts))
    return [f"{what} {had} (it has {has})" for what, had, has in pairs if had != has]


def give_threads(threads: t.Mapping[str, int], wanted: t.Iterable[tuple[str, Scheduling]], pid: int) -> list[str]:
    """Have a QEMU's threads run as they did; what could not be given, as clauses.

    :param threads: their numbers by their names.
    """
    problems = []
    ours = set()
    with contextlib.suppress(OSError):
        ours = set(threads_of(pid))
    for name, scheduling in wanted:
        thread = threads.get(name)
        if thread is None or thread not in ours:
            problems.append(f"the thread of {name}, which it has not got")
            continue
        try:
            _give(thread, scheduling)
        except OSError as exc:
            problems.append(f"how the thread of {name} ran ({exc.strerror})")
    return problems


def _give(thread: int, wanted: Scheduling) -> None:
    now = read_scheduling(thread)
    if now.cpus != wanted.cpus:
        os.sched_setaffinity(thread, _numbers(wanted.cpus) if wanted.cpus else _online())
    if (now.policy, now.priority) != (wanted.policy, wanted.priority) and wanted.policy != "deadline":
        os.sched_setscheduler(thread, _POLICY_NUMBERS[wanted.policy], os.sched_param(wanted.priority))
    if now.nice != wanted.nice:
        os.setpriority(os.PRIO_PROCESS, thread, wanted.nice)
