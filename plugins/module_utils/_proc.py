# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the kernel says of processes, and processes of themselves (proc(5)).

Some of it is a process's own memory, which any user makes gigabytes long: all is read with a bound. A process may end
at any moment, which all functions tell by OSError, unless they say otherwise.
"""

from __future__ import annotations

import errno
import os
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._bounded_read import read_bounded

_DELETED = " (deleted)"

#: Bytes of a file that the kernel writes by itself: a few lines.
_SMALL = 64 * 1024

#: Bytes of a status file; its longest line are the groups, of which the kernel allows 65536.
_MAX_STATUS = 1024 * 1024

#: Bytes of what a program was started with as its environment.
_MAX_ENVIRONMENT = 256 * 1024

Pid = t.Union[int, str]
"""A process's number; ``self`` for this one."""


class ProcessStat(t.NamedTuple):
    """Some of the kernel's figures of a process or thread; times are in ticks, the start's since the host's boot."""

    parent: int
    session: int
    terminal: int
    user_ticks: int
    system_ticks: int
    nice: int
    start_ticks: int


#: Where they stand, behind the program's name, which may itself hold blanks and parentheses.
_STAT_FIELDS = (1, 3, 4, 11, 12, 16, 19)


def all_pids() -> list[int]:
    """The processes that this one sees, by number."""
    return sorted(int(entry) for entry in os.listdir("/proc") if entry.isdigit())


def proc_path(pid: Pid, name: str = "") -> str:
    """The path of a process's file, directory or link, such as ``ns/net`` or ``root``."""
    return f"/proc/{pid}/{name}" if name else f"/proc/{pid}"


def read_proc(pid: Pid, name: str, limit: int = _SMALL) -> bytes:
    """All that is in a file of a process.

    :param limit: bytes that it may have at most.
    :raises TooLongError: it has more.
    """
    return read_bounded(proc_path(pid, name), limit)


def read_stat(pid: Pid, thread: int | None = None) -> ProcessStat:
    """The figures of a process, or of one of its threads."""
    fields = read_proc(pid, "stat" if thread is None else f"task/{thread}/stat").rpartition(b")")[2].split()
    try:
        return ProcessStat(*(int(fields[place]) for place in _STAT_FIELDS))
    except (IndexError, ValueError) as exc:
        raise ProcessLookupError(errno.ESRCH, "the kernel does not say all of it") from exc


def birth_of(pid: int) -> int | None:
    """When a process began, in ticks since the boot, which tells it from a later one of the same number.

    None where there is none, and never an error.
    """
    try:
        return read_stat(pid).start_ticks
    except OSError:
        return None


def boot_id() -> str:
    """What the kernel calls this boot of the host; empty where it does not say."""
    try:
        return read_bounded("/proc/sys/kernel/random/boot_id", _SMALL).decode("ascii", "replace").strip()
    except OSError:
        return ""


def is_over(pid: int, birth: int | None) -> bool:
    """Whether the process that began then has ended, reaped or not; never an error.

    A main thread that has ended before its others looks like a process that nobody has reaped yet.
    """
    try:
        state = read_proc(pid, "stat").rpartition(b")")[2].split()[:1]
        if birth_of(pid) != birth:
            return True
        return state in ([b"Z"], [b"X"], [b"x"]) and threads_of(pid) == [pid]
    except OSError:
        return birth_of(pid) != birth


def read_status(pid: Pid) -> dict[str, str]:
    """The keys and values of a process's status."""
    text = read_proc(pid, "status", _MAX_STATUS).decode("ascii", "replace")
    return {key: value.strip() for key, _colon, value in (line.partition(":") for line in text.split("\n"))}


def is_halted(pid: int) -> bool:
    """Whether a process was stopped by a signal or a debugger; False where that cannot be told."""
    try:
        return read_status(pid).get("State", "").startswith(("T", "t"))
    except OSError:
        return False


def read_io(pid: Pid) -> tuple[int, int]:
    """Bytes that a process has read and written since its start, from and to files and pipes."""
    words = read_proc(pid, "io").split()
    try:
        return int(words[1]), int(words[3])  # rchar, wchar
    except (IndexError, ValueError) as exc:
        raise ProcessLookupError(errno.ESRCH, "the kernel does not say all of it") from exc


def read_command_line(pid: Pid, limit: int) -> bytes:
    """The words of a process, each with a NUL; raises as :func:`read_proc`."""
    return read_proc(pid, "cmdline", limit)


def read_environment(pid: Pid) -> bytes:
    """The variables with which a process was started, each with a NUL; raises as :func:`read_proc`."""
    return read_proc(pid, "environ", _MAX_ENVIRONMENT)


def executable_of(pid: Pid) -> str:
    """The path of what a process executes, which may have been removed since, as by an upgrade."""
    return without_deleted(os.readlink(proc_path(pid, "exe")))


def without_deleted(place: str) -> str:
    """Where the kernel says that a file is, without its note that it is there no more."""
    return place[: -len(_DELETED)] if place.endswith(_DELETED) else place


def threads_of(pid: Pid) -> list[int]:
    """The threads of a process, in no order."""
    return [int(entry) for entry in os.listdir(proc_path(pid, "task"))]


def descriptors_of(pid: Pid) -> list[str]:
    """The paths of links to what a process has open; each may be gone by now."""
    directory = proc_path(pid, "fd")
    return [os.path.join(directory, number) for number in os.listdir(directory)]


def open_again(descriptor: int, flags: int) -> int:
    """Open the very file of one of our own descriptors once more, whatever has its name by now."""
    return os.open(proc_path("self", f"fd/{descriptor}"), flags | os.O_CLOEXEC)
