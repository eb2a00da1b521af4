# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One process, whatever gets its number after it: whether it has ended, and a signal to it and no other.

A pidfd does that. Some builds of Python lack ``os.pidfd_open`` (conda's and uv's, made for old C libraries): there the
system call is made by its number. Kernels before 5.3, gVisor, and containers whose filter of system calls is older than
the call refuse it: there a process is told from a later one of its number by its time of start, which is looked at
again right before a signal is sent. Between that look and the signal there are some microseconds in which the process
could end, and its number come around to another one: the kernel gives numbers out in turn, so that would take a whole
round (``/proc/sys/kernel/pid_max``, 32768 at least) of new processes in that time.

Sources: pidfd_open(2), pidfd_send_signal(2), proc(5).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import select
import signal

from ansible_collections.vmops.qemu.plugins.module_utils._proc import birth_of, is_over

#: The numbers are the same on all architectures for which there is a QEMU with a guest worth saving.
_PIDFD_SEND_SIGNAL = 424
_PIDFD_OPEN = 434
_PIDFD_GETFD = 438

#: Seconds between two looks at a process that can be followed by looking alone; the first ones come sooner.
_SHORTEST_INTERVAL = 0.005
_LONGEST_INTERVAL = 0.1


def open_pidfd(pid: int) -> int:
    """A descriptor of a process.

    :raises ProcessLookupError: there is none of this number.
    :raises OSError: the kernel cannot, or may not, give one.
    """
    if hasattr(os, "pidfd_open"):
        return os.pidfd_open(pid)
    return _system_call(_PIDFD_OPEN, pid, 0)


def take_descriptor(process: int, number: int) -> int:
    """A copy of another process's descriptor, rather than what its number in /proc leads to at the next moment.

    :param process: of :func:`open_pidfd`.
    :raises OSError: there is none of this number, or it may not be had (pidfd_getfd(2): Yama, a container's filter).
    """
    return _system_call(_PIDFD_GETFD, process, number, 0)


def _send_signal(descriptor: int, number: int) -> None:
    if hasattr(signal, "pidfd_send_signal"):
        signal.pidfd_send_signal(descriptor, number)
    else:
        _system_call(_PIDFD_SEND_SIGNAL, descriptor, number, None, 0)


def _system_call(*arguments: int | None) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    result = int(libc.syscall(*arguments))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


class ProcessHandle:
    """A process that is there now; one that is not has ended."""

    def __init__(self, pid: int, birth: int | None = None) -> None:
        """:param birth: its time of start (``birth_of``), where it is known from before; None for who is there now."""
        self.pid = pid
        self._birth = birth_of(pid) if birth is None else birth
        self._descriptor: int | None = None
        self._gone = self._birth is None
        if not self._gone:
            try:
                self._descriptor = open_pidfd(pid)
            except ProcessLookupError:
                self._gone = True
            except OSError:
                pass  # it is looked at instead
            # The descriptor is that of whoever has the number: of this one, if it still has it now.
            if birth_of(pid) != self._birth:
                self.close()
                self._gone = True

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        if self._gone:
            return True
        if self._descriptor is None:
            self._gone = is_over(self.pid, self._birth)
            return self._gone
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        return bool(poll.poll(0))

    async def wait(self) -> None:
        """Wait for its end."""
        if self._descriptor is None:
            interval = _SHORTEST_INTERVAL
            while not self.ended:
                await asyncio.sleep(interval)
                interval = min(2 * interval, _LONGEST_INTERVAL)
            return
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(self._descriptor, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(self._descriptor)

    def kill(self) -> None:
        """End it at once, where it still runs.

        :raises PermissionError: it is another user's.
        """
        self._signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Ask it to end (SIGTERM), where it still runs.

        :raises PermissionError: it is another user's.
        """
        self._signal(signal.SIGTERM)

    def _signal(self, number: signal.Signals) -> None:
        if self.ended:
            return
        if self._descriptor is not None:
            with contextlib.suppress(OSError):  # a filter may know the one call and not the other
                _send_signal(self._descriptor, number)
                return
        if not is_over(self.pid, self._birth):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def close(self) -> None:
        """Give the descriptor back; it is of no use any more after that."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        self._gone = True
