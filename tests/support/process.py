# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Processes named by more than a pid: a pid that was given to another process is never signalled."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Optional


def _stat(pid: int) -> Optional[tuple[str, int]]:
    """State letter and start time (clock ticks since the host's boot) of a process, None when there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text[text.rindex(")") + 2 :].split()  # the name in parentheses may hold spaces and parentheses
    return fields[0], int(fields[19])


class Process:
    """One process, told from any later one of the same pid by its start time."""

    def __init__(self, pid: int, start_time: Optional[int] = None) -> None:
        """Take hold of pid; start_time in clock ticks since the host's boot, as remembered from an earlier hold.

        Raises ProcessLookupError if there is no such process (without start_time).
        """
        if start_time is None:
            stat = _stat(pid)
            if stat is None:
                raise ProcessLookupError(f"no process {pid}")
            start_time = stat[1]
        self.pid = pid
        self.start_time = start_time

    def alive(self) -> bool:
        """Whether it still runs; a zombie does not."""
        stat = _stat(self.pid)
        return stat is not None and stat[1] == self.start_time and stat[0] not in "ZX"

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal, if it still runs."""
        try:
            fd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            # Looked at after the pidfd was opened, which pins the process: what is killed is what was looked at.
            if self.alive():
                signal.pidfd_send_signal(fd, number)
        except ProcessLookupError:
            pass
        finally:
            os.close(fd)

    def wait(self, timeout: float) -> bool:
        """Wait up to timeout seconds for its end; whether it ended."""
        deadline = time.monotonic() + timeout
        try:
            fd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return True
        try:
            while self.alive():
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                poll = select.poll()
                poll.register(fd, select.POLLIN)
                poll.poll(min(left, 1.0) * 1000)
        finally:
            os.close(fd)
        return True

    def reap(self) -> None:
        """Collect it after its end, if it is a child of ours; else its parent does."""
        stat = _stat(self.pid)
        if stat is not None and stat[1] == self.start_time:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, os.WNOHANG)


def read_argv(pid: int) -> list[str]:
    """The command line of a process; empty when it is gone, a zombie, or a kernel thread."""
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return []
    return [os.fsdecode(word) for word in raw.split(b"\0")[:-1]]


def rewrite_words(pid: int, old: Sequence[str], new: Sequence[str]) -> None:
    """Have a process say other words of itself; what is too long of the old ones becomes slashes of the last one."""
    start = int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[45])  # arg_start
    before, after = ("\0".join(words).encode() for words in (old, new))
    words = Path(f"/proc/{pid}/cmdline").read_bytes()
    assert words.count(before) == 1
    head, _nul, last = after.rpartition(b"\0")
    assert last.startswith(b"/") or len(before) == len(after)
    after = head + _nul + b"/" * (len(before) - len(after)) + last
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        memory.seek(start + words.index(before))
        memory.write(after)
    assert Path(f"/proc/{pid}/cmdline").read_bytes() == words.replace(before, after)


def _name_of(option: str) -> str:
    """The guest's name in the value of -name: "web1", "web1,debug-threads=on" or "debug-threads=on,guest=web1"."""
    parts = [part.replace("\0", ",") for part in option.replace(",,", "\0").split(",")]
    for part in parts:
        if part.startswith("guest="):
            return part[len("guest=") :]
    return parts[0] if "=" not in parts[0] else ""


def find_qemu_pids(name: str) -> list[int]:
    """The pids of the running QEMUs whose -name is this one, in ascending order; with an empty name, those of none."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        argv = read_argv(int(entry))
        if not argv or not os.path.basename(argv[0]).startswith(("qemu-system-", "qemu-kvm")):
            continue
        names = [_name_of(value) for option, value in zip(argv, argv[1:]) if option in ("-name", "--name")]
        if name in (names or [""]):
            found.append(int(entry))
    return sorted(found)
