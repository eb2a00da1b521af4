# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A save that fails leaves guest, QEMU and files as they were; nobody sees half an image. The order of its steps."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import threading
from pathlib import Path

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import monitor as monitor_module
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.fdset import DescriptorSet

from support.observe import VM, Continuity, migration_is_active, settings, wait_until, words

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can do this")


@pytest.fixture
def tmpfs(tmp_path):
    """A function that mounts a tmpfs of so many MiB."""
    mounted = []

    def mount(size_mib):
        place = tmp_path / "tmpfs"
        place.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_mib}m,mode=0700", "tmpfs", place], check=True)
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", place], check=True)


SYSCALL = re.compile(r"^\d+\s+(?P<name>\w+)\((?P<arguments>.*)$")


def test_data_header_and_directory_are_on_disk_before_quit(guest, image, start_module, tmp_path):
    trace = tmp_path / "trace"
    calls = "fsync,fdatasync,pwrite64,rename,renameat,renameat2,sendto,sendmsg,write"
    strace = ["strace", "-f", "-y", "-s", "300", "-e", f"trace={calls}", "-o", str(trace)]
    result = start_module("qemu_save", name=VM, path=str(image), prefix=strace).result()
    assert result["changed"], result["msg"]

    steps = []
    for line in trace.read_text().splitlines():
        match = SYSCALL.match(line)
        if not match:
            continue
        name, arguments = match.group("name", "arguments")
        partial = f"{image.parent}/.web1.save." in arguments
        if name in ("sendto", "sendmsg", "write") and '"quit\\"' in arguments:
            steps.append("quit")
        elif name in ("sendto", "sendmsg", "write") and '"migrate\\"' in arguments:
            steps.append("migrate")
        elif name == "pwrite64" and "LibvirtQemudSave" in arguments:
            steps.append("complete magic")
        elif name == "fsync" and partial:
            steps.append("flush image")
        elif name == "fsync" and f"<{image.parent}>" in arguments:
            steps.append("flush directory")
        elif name.startswith("rename"):
            steps.append("rename")
    assert "flush image" in steps[steps.index("migrate") : steps.index("complete magic")]
    assert steps[steps.index("complete magic") :] == [
        "complete magic",
        "flush image",
        "rename",
        "flush directory",
        "quit",
    ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("image_format", ["sparse", "raw", "zstd"])
def test_signal_puts_the_guest_back(big_guest, image, start_module, number, live, image_format):
    before = settings(big_guest)
    continuity = Continuity(big_guest)
    run = start_module("qemu_save", name=VM, path=str(image), bandwidth="16M", live=live, format=image_format)
    wait_until(lambda: migration_is_active(big_guest))
    run.process.send_signal(number)
    result = run.result()
    assert result["failed"]
    assert result["error"] == "InterruptedOperationError"
    assert number.name in result["msg"]
    assert words(result) == ("running", "absent")
    assert settings(big_guest) == before
    assert os.listdir(image.parent) == []
    continuity.check()


def test_timeout_puts_the_guest_back(big_guest, image, run_module):
    before = settings(big_guest)
    continuity = Continuity(big_guest)
    result = run_module("qemu_save", name=VM, path=str(image), bandwidth="8M", timeout=1.5)
    assert result["error"] == "OperationTimeoutError"
    assert "within 1.5 seconds" in result["msg"]
    assert words(result) == ("running", "absent")
    assert settings(big_guest) == before
    assert os.listdir(image.parent) == []
    continuity.check()


def test_compressor_that_dies_during_the_save(big_guest, image, start_module):
    before = settings(big_guest)
    continuity = Continuity(big_guest)
    run = start_module("qemu_save", name=VM, path=str(image), bandwidth="16M", format="gzip")
    wait_until(lambda: migration_is_active(big_guest))
    for pid in children(run.process.pid):
        os.kill(pid, signal.SIGKILL)
    result = run.result()
    assert result["failed"]
    assert "gzip was killed by signal 9" in result["msg"]
    assert words(result) == ("running", "absent")
    assert os.listdir(image.parent) == []
    assert settings(big_guest) == before
    continuity.check()


def children(pid):
    """The processes that a process has started."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(word) for task in tasks for word in (task / "children").read_text().split()]


@only_root
def test_leftover_does_not_count_against_the_space(make_guest, tmpfs, save):
    guest = make_guest(memory_mib=256, block_mib=64, observer=True)
    place = tmpfs(200)
    (place / ".web1.save.0123456789abcdef.partial").write_bytes(bytes(150 * 2**20))
    assert save(name=VM, path=str(place / "web1.save"))["changed"]
    guest.wait_exit()
    assert os.listdir(place) == ["web1.save"]


@pytest.mark.parametrize("live", [False, True])
def test_qemu_dies_during_the_save(big_guest, image, start_module, live):
    run = start_module("qemu_save", name=VM, path=str(image), bandwidth="16M", live=live)
    wait_until(lambda: migration_is_active(big_guest))
    pid = big_guest.pid
    big_guest.end()
    result = run.result()
    assert result["error"] == "MonitorLostError"
    assert f"QEMU (pid {pid}) has ended" in result["msg"]
    assert words(result) == ("ended", "absent")
    assert os.listdir(image.parent) == []


def test_failed_save_leaves_the_old_image_alone(big_guest, image, save, run_module):
    save(name=VM, path=str(image), after_save="resume")
    old = image.read_bytes()
    result = run_module("qemu_save", name=VM, path=str(image), force=True, bandwidth="16M", timeout=1.5)
    assert result["failed"]
    assert words(result) == ("running", "complete")
    assert image.read_bytes() == old
    assert os.listdir(image.parent) == ["web1.save"]


@only_root
def test_monitor_that_is_lost_does_not_cost_the_guest(big_guest, image, start_module):
    """The connection alone dies: the guest is reached over a new one."""
    continuity = Continuity(big_guest)
    before = settings(big_guest)
    run = start_module("qemu_save", qmp_socket=str(big_guest.qmp_socket), path=str(image), bandwidth="16M")
    wait_until(lambda: migration_is_active(big_guest))
    cut_connection(run.process.pid, big_guest.qmp_socket)
    result = run.result()
    assert result["error"] == "MonitorLostError"
    assert words(result) == ("running", "absent")
    assert settings(big_guest) == before
    assert os.listdir(image.parent) == []
    continuity.check()


def cut_connection(pid, path):
    """Shut down the process's UNIX sockets from outside: its QMP connection dies, QEMU lives."""
    code = (
        "import ctypes,os,socket,sys\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "watch = os.pidfd_open(int(sys.argv[1]))\n"
        "for name in os.listdir(f'/proc/{sys.argv[1]}/fd'):\n"
        "    if os.readlink(f'/proc/{sys.argv[1]}/fd/{name}').startswith('socket:'):\n"
        "        fd = libc.syscall(438, watch, int(name), 0)\n"
        "        try:\n"
        "            s = socket.socket(fileno=fd)\n"
        "            if s.family == socket.AF_UNIX and s.getpeername() == sys.argv[2]:\n"
        "                s.shutdown(socket.SHUT_RDWR)\n"
        "        except OSError:\n"
        "            pass\n"
    )
    subprocess.run(["python3", "-c", code, str(pid), str(path)], check=True)


def test_concurrent_reader_never_sees_a_half_image(big_guest, image, start_module):
    seen = set()
    stop = threading.Event()

    def look():
        while not stop.is_set():
            try:
                seen.add(image.read_bytes()[:16])
            except FileNotFoundError:
                seen.add(b"")

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        start_module("qemu_save", name=VM, path=str(image)).result()
    finally:
        stop.set()
        watcher.join()
    assert seen == {b"", b"LibvirtQemudSave"} or seen == {b""}


def test_descriptor_that_was_passed_but_not_answered_for_is_taken_back(guest, tmp_path):
    """A run that is cancelled between a descriptor and QEMU's answer does not know the number of its set."""

    async def cut_off():
        before = settings(guest)
        async with await monitor_module.Monitor.connect(str(guest.qmp_socket)) as monitor:
            descriptors = DescriptorSet(monitor, "a note of this test")
            adding = asyncio.ensure_future(descriptors.add(file.fileno()))
            await asyncio.sleep(0)  # it is sent, not answered
            adding.cancel()
            await asyncio.gather(adding, return_exceptions=True)
            assert descriptors.number is None
            assert settings(guest) != before
            await descriptors.remove()
        assert settings(guest) == before

    with (tmp_path / "file").open("wb") as file:
        asyncio.run(cut_off())
