# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the kernel says of processes, and they of themselves."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._bounded_read import TooLongError
from ansible_collections.vmops.qemu.plugins.module_utils._proc import (
    all_pids,
    birth_of,
    descriptors_of,
    executable_of,
    open_again,
    read_command_line,
    read_environment,
    read_io,
    read_proc,
    read_stat,
    read_status,
    threads_of,
    without_deleted,
)


@pytest.fixture
def sleeper(tmp_path):
    """A process whose program has a name that could pass for the fields after it."""
    program = tmp_path / "a) S 1 (b"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([str(program), "600"], env={"SOME": "thing"}, start_new_session=True) as process:
        yield process
        process.kill()


def test_what_the_kernel_says(sleeper):
    figures = read_stat(sleeper.pid)
    assert (figures.parent, figures.session, figures.terminal) == (os.getpid(), sleeper.pid, 0)
    assert figures.nice == os.getpriority(os.PRIO_PROCESS, sleeper.pid)
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - figures.start_ticks / os.sysconf("SC_CLK_TCK")
    assert -1 < age < 60
    assert birth_of(sleeper.pid) == figures.start_ticks
    assert sleeper.pid in all_pids()
    assert read_status(sleeper.pid)["PPid"] == str(os.getpid())
    assert threads_of(sleeper.pid) == [sleeper.pid]


def test_what_a_process_says(sleeper):
    assert read_command_line(sleeper.pid, 4096).endswith(b"a) S 1 (b" + bytes(1) + b"600" + bytes(1))
    with pytest.raises(TooLongError) as caught:
        read_command_line(sleeper.pid, 4)
    assert len(caught.value.beginning) == 4
    assert read_environment(sleeper.pid) == b"SOME=thing\0"
    assert executable_of(sleeper.pid) == os.path.realpath("/bin/sleep")
    assert read_proc(sleeper.pid, "comm").rstrip() == b"a) S 1 (b"


def test_a_process_that_has_ended():
    with subprocess.Popen(["/bin/true"]) as process:
        pass
    assert birth_of(process.pid) is None
    for ask in (read_stat, read_status, read_io, read_environment, threads_of, descriptors_of, executable_of):
        with pytest.raises(OSError, match="No such"):
            ask(process.pid)


def test_a_thread_has_figures_of_its_own():
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        assert thread.native_id in threads_of("self")
        assert read_stat(os.getpid(), thread.native_id).start_ticks >= read_stat("self").start_ticks
    finally:
        stop.set()
        thread.join()


def test_bytes_that_were_read_and_written(tmp_path):
    before = read_io("self")
    (tmp_path / "file").write_bytes(bytes(100_000))
    (tmp_path / "file").read_bytes()
    read, written = (now - earlier for now, earlier in zip(read_io("self"), before))
    assert read >= 100_000
    assert written >= 100_000


def test_the_same_file_whatever_has_its_name(tmp_path):
    path = tmp_path / "file"
    path.write_text("one")
    with path.open() as file:
        path.unlink()
        path.write_text("another")
        assert f"/proc/self/fd/{file.fileno()}" in descriptors_of("self")
        assert without_deleted(os.readlink(f"/proc/self/fd/{file.fileno()}")) == str(path)
        again = open_again(file.fileno(), os.O_RDONLY)
        with open(again) as same:
            assert same.read() == "one"
            assert not os.get_inheritable(again)
    assert executable_of("self") == os.path.realpath(sys.executable)
