# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A process is followed and ended by itself, not by its number, also where Python or the kernel has no pidfd."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils import _process_handle
from ansible_collections.vmops.qemu.plugins.module_utils._proc import birth_of, read_proc
from ansible_collections.vmops.qemu.plugins.module_utils._process_handle import ProcessHandle, open_pidfd

#: Its main thread ends, and the other one goes on until its stdin ends.
WITHOUT_MAIN_THREAD = """
import ctypes, sys, threading
threading.Thread(target=sys.stdin.read).start()
print(flush=True)
ctypes.CDLL(None).pthread_exit(None)
"""


def refuse(number):
    def refused(*_arguments):
        raise OSError(number, os.strerror(number))

    return refused


@pytest.fixture(params=["python", "by-number", "old-kernel", "filtered", "signal-filtered"])
def way(request, monkeypatch):
    """How processes are followed here."""
    if request.param == "by-number":
        monkeypatch.delattr(os, "pidfd_open")
        monkeypatch.delattr(signal, "pidfd_send_signal")
    elif request.param == "signal-filtered":
        monkeypatch.setattr(signal, "pidfd_send_signal", refuse(errno.EPERM))
    elif request.param != "python":
        refused = refuse(errno.ENOSYS if request.param == "old-kernel" else errno.EPERM)
        monkeypatch.setattr(_process_handle, "open_pidfd", refused)
    return request.param


@pytest.fixture
def sleeper():
    with subprocess.Popen(["/bin/sleep", "600"]) as process:
        yield process
        process.kill()


def test_pidfd_by_its_number_is_the_same(way, sleeper):
    if way != "by-number":
        pytest.skip("that is Python's own")
    descriptor = open_pidfd(sleeper.pid)
    assert os.readlink(f"/proc/self/fd/{descriptor}") == "anon_inode:[pidfd]"
    os.close(descriptor)
    with pytest.raises(OSError, match="Invalid argument"):
        open_pidfd(-1)


def test_killed_and_seen_to_end(way, sleeper):
    handle = ProcessHandle(sleeper.pid)
    states = [handle.ended]

    async def end():
        waiting = asyncio.ensure_future(handle.wait())
        await asyncio.sleep(0)
        handle.kill()
        await asyncio.wait_for(waiting, 20)

    asyncio.run(end())
    # Nobody has reaped it yet.
    states.append(handle.ended)
    assert sleeper.wait() == -signal.SIGKILL
    assert [*states, handle.ended] == [False, True, True]
    handle.kill()
    handle.close()


def test_asked_to_end(way, sleeper):
    handle = ProcessHandle(sleeper.pid)
    handle.terminate()
    assert sleeper.wait() == -signal.SIGTERM
    handle.terminate()
    handle.close()


def test_end_that_nobody_waited_for(way, sleeper):
    handle = ProcessHandle(sleeper.pid)
    sleeper.kill()
    sleeper.wait()
    assert handle.ended
    asyncio.run(asyncio.wait_for(handle.wait(), 20))
    handle.kill()


def test_another_of_its_number_is_not_killed(way, sleeper):
    handle = ProcessHandle(sleeper.pid, (birth_of(sleeper.pid) or 0) + 1)
    assert handle.ended
    handle.kill()
    with pytest.raises(subprocess.TimeoutExpired):
        sleeper.wait(0.2)


def test_number_that_came_around_is_not_killed(way, sleeper, monkeypatch):
    """It has another owner since the handle was made."""
    if way not in ("old-kernel", "filtered"):
        pytest.skip("a pidfd is of one process for ever")
    handle = ProcessHandle(sleeper.pid)
    handle._birth = 1
    handle.kill()
    assert handle.ended
    with pytest.raises(subprocess.TimeoutExpired):
        sleeper.wait(0.2)


def test_no_such_process(way, sleeper):
    sleeper.kill()
    sleeper.wait()
    handle = ProcessHandle(sleeper.pid)
    assert handle.ended
    handle.kill()
    handle.close()


def test_one_whose_main_thread_has_ended_lives(way):
    command = [sys.executable, "-c", WITHOUT_MAIN_THREAD]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        process.stdout.readline()
        handle = ProcessHandle(process.pid)
        while b") Z " not in read_proc(process.pid, "stat"):
            pass
        assert not handle.ended
        process.stdin.close()
        asyncio.run(asyncio.wait_for(handle.wait(), 20))
        handle.close()
