# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a user meets when something is wrong: each error says what happened, to what, the guest's state and the cure."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._errors import MonitorLostError
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import monitor as monitor_module

from support import Monitor
from support.module_run import check_error
from support.observe import OTHER_VM, VM, Continuity, run_state, settings
from support.versions import OLD_QEMU

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can do this")

# --- the monitor ---


def test_socket_missing(image, run_module):
    result = run_module("qemu_save", qmp_socket="/nonexistent/qmp.sock", path=str(image))
    check_error(result, "MonitorMissingError", "/nonexistent/qmp.sock")


def test_socket_of_a_qemu_that_has_ended(guest, image, run_module):
    guest.end()
    result = run_module("qemu_save", qmp_socket=str(guest.qmp_socket), path=str(image))
    check_error(result, "MonitorMissingError", str(guest.qmp_socket))


@contextlib.contextmanager
def server(path, answer):
    """A server on a UNIX socket that sends its answer to each client and then only listens."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    clients = []

    def serve():
        with contextlib.suppress(OSError):
            while True:
                client, _address = listener.accept()
                clients.append(client)
                if answer is None:
                    client.close()
                else:
                    client.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
        for client in clients:
            client.close()


@pytest.mark.parametrize(
    "answer",
    [b"QEMU 10.0.2 monitor - type 'help' for more information\r\n(qemu) ", b'{"hello": 1}\n', None],
    ids=["human-monitor", "other-json", "hangs-up"],
)
def test_not_a_qmp_server(tmp_path, image, run_module, answer):
    with server(tmp_path / "other.sock", answer):
        result = run_module("qemu_save", qmp_socket=str(tmp_path / "other.sock"), path=str(image))
    check_error(result, "MonitorProtocolError", "other.sock", "not a QMP server")


def test_not_a_socket(tmp_path, image, run_module):
    (tmp_path / "file").write_text("")
    result = run_module("qemu_save", qmp_socket=str(tmp_path / "file"), path=str(image))
    assert result["failed"]
    assert str(tmp_path / "file") in result["msg"]


def test_server_that_says_nothing(tmp_path, image, run_module):
    started = time.monotonic()
    with server(tmp_path / "silent.sock", b""):
        result = run_module("qemu_save", qmp_socket=str(tmp_path / "silent.sock"), path=str(image))
    check_error(result, "MonitorBusyError", "silent.sock")
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("waiting", [0, 1, 2])
def test_busy_monitor_answers_within_ten_seconds(guest, image, run_module, waiting):
    """QEMU serves one client; the kernel queues a few more, and then refuses with an error that says nothing."""
    with Monitor(guest.qmp_socket), contextlib.ExitStack() as stack:
        for _number in range(waiting):
            queued = stack.enter_context(socket.socket(socket.AF_UNIX))
            queued.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                queued.connect(str(guest.qmp_socket))
        started = time.monotonic()
        result = run_module("qemu_save", qmp_socket=str(guest.qmp_socket), path=str(image))
        assert time.monotonic() - started < 10
    check_error(result, "MonitorBusyError", str(guest.qmp_socket), "another client")
    assert run_state(guest) == "running"


def test_qemu_that_hangs_gives_an_answer(big_guest):
    """Its monitor is open, but its main loop waits for something that does not come."""

    async def ask():
        monitor = await monitor_module.Monitor.connect(str(big_guest.qmp_socket))
        try:
            os.kill(big_guest.pid, signal.SIGSTOP)
            with pytest.raises(MonitorLostError, match="did not answer query-status"):
                await monitor.execute("query-status")
            assert monitor.lost
        finally:
            os.kill(big_guest.pid, signal.SIGCONT)
            await monitor.close()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(monitor_module, "COMMAND_TIMEOUT", 1.0)
        asyncio.run(ask())


def test_second_monitor_is_taken_where_the_first_is_busy(guest, image, save):
    with Monitor(guest.qmp_socket):
        assert save(name=VM, path=str(image))["changed"]


def test_unknown_name(guest, image, run_module):
    result = run_module("qemu_save", name="no-such-vm", path=str(image))
    check_error(result, "VmNotFoundError", "no-such-vm", "Those that run: ", VM)


def test_two_vms_of_one_name(make_guest, image, run_module):
    first, second = make_guest(f"twin-{VM}"), make_guest(f"twin-{VM}")
    result = run_module("qemu_save", name=f"twin-{VM}", path=str(image))
    check_error(result, "VmAmbiguousError", f"twin-{VM}", str(first.pid), str(second.pid))


def test_vm_without_a_qmp_server(image, run_module):
    process = subprocess.Popen(
        ["qemu-system-x86_64", "-name", f"mute-{VM}", "-S", "-display", "none", "-nodefaults", "-m", "16"],
        stdin=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 10
        while b"mute-" not in Path(f"/proc/{process.pid}/cmdline").read_bytes():
            assert time.monotonic() < deadline
        result = run_module("qemu_save", name=f"mute-{VM}", path=str(image))
    finally:
        process.kill()
        process.wait()
    check_error(result, "VmNotFoundError", f"mute-{VM}", "QMP")


def test_name_and_socket_of_different_vms(make_guest, image, run_module):
    make_guest(VM)
    other = make_guest(OTHER_VM, observer=True)
    result = run_module("qemu_save", name=VM, qmp_socket=str(other.qmp_socket), path=str(image))
    check_error(result, "MismatchError", OTHER_VM, VM)
    assert run_state(other) == "running"


@pytest.mark.parametrize("check", [True, False])
def test_descriptors_cannot_be_passed_over_tcp(make_guest, image, run_module, check):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    guest = make_guest(observer=True, extra_args=["-qmp", f"tcp:127.0.0.1:{port},server=on,wait=off"])
    continuity = Continuity(guest)
    before = settings(guest)
    result = run_module("qemu_save", qmp_socket=f"127.0.0.1:{port}", check=check, path=str(image))
    check_error(result, "RequestError", "UNIX socket")
    assert "-qmp unix:" in result["cure"]
    assert settings(guest) == before
    assert os.listdir(image.parent) == []
    continuity.check()


@only_root
def test_other_users_socket(guest, image, start_module):
    """A user who may not use the socket is told so."""
    guest.qmp_socket.chmod(0o600)
    for place in (image.parent, *image.parents[1:4], guest.qmp_socket.parent):
        place.chmod(0o755)
    # It becomes nobody when it has read its code and its arguments, which are root's.
    code = (
        "import importlib, os, sys\n"
        "from ansible.module_utils import basic\n"
        "module = importlib.import_module(sys.argv[3])\n"
        "basic._ANSIBLE_ARGS, basic._ANSIBLE_PROFILE = open(sys.argv[4], 'rb').read(), 'legacy'\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "module.main()\n"
    )
    locks = image.parent / "run"
    locks.mkdir(mode=0o700)
    os.chown(locks, 65534, 65534)
    prefix = ["env", f"XDG_RUNTIME_DIR={locks}", sys.executable, "-c", code]
    run = start_module("qemu_save", qmp_socket=str(guest.qmp_socket), path=str(image), prefix=prefix)
    check_error(run.result(), "MonitorError", str(guest.qmp_socket), "This user may not use")


# --- QEMU ---


@pytest.fixture
def old_guest(make_guest):
    """A guest on QEMU 7.2, which has no mapped-ram."""
    return make_guest(qemu=str(OLD_QEMU), observer=True)


def test_old_qemu_cannot_write_sparse(old_guest, image, run_module):
    continuity = Continuity(old_guest)
    result = run_module("qemu_save", name=VM, path=str(image), format="sparse")
    check_error(result, "UnsupportedByQemuError", "QEMU 7.2", "mapped-ram", "9.1")
    assert os.listdir(image.parent) == []
    continuity.check()


def test_old_qemu_saves_raw_with_a_warning_and_restores(old_guest, image, save, restore):
    continuity = Continuity(old_guest)
    result = save(name=VM, path=str(image))
    assert result["image"]["format"] == "raw"
    assert "7.2" in str(result["warnings"])
    restore(path=str(image), launch="command", command=old_guest.argv())
    continuity.check()


def test_old_qemu_cannot_read_sparse(make_guest, image, save, run_module):
    guest = make_guest(machine="pc-i440fx-7.2")
    save(name=VM, path=str(image))
    old = [str(OLD_QEMU), *guest.argv()[1:]]
    result = run_module("qemu_restore", path=str(image), launch="command", command=old)
    check_error(result, "UnsupportedByQemuError", "QEMU 7.2", "mapped-ram")
    assert image.exists()


def test_old_save_restores_in_the_new_qemu(make_guest, image, save, restore):
    """The machine type is the saved one, the emulator a newer one."""
    guest = make_guest(qemu=str(OLD_QEMU), machine="pc-i440fx-7.2")
    continuity = Continuity(guest)
    save(name=VM, path=str(image), bypass_cache=False)
    guest.wait_exit()
    command = ["/usr/bin/qemu-system-x86_64", *guest.argv()[1:]]
    restore(path=str(image), launch="command", command=command)
    continuity.check()


def test_migration_blocker_is_named(make_guest, image, run_module):
    guest = make_guest(
        observer=True,
        extra_args=[
            "-device",
            "ivshmem-plain,memdev=shared,master=off",
            "-object",
            "memory-backend-ram,id=shared,size=1M,share=on",
        ],
    )
    result = run_module("qemu_save", name=VM, path=str(image))
    check_error(result, "UnsupportedByQemuError", "ivshmem")
    assert run_state(guest) == "running"


def test_vm_whose_disks_end_with_its_qemu(make_guest, image, run_module, save):
    guest = make_guest(observer=True, extra_args=["-snapshot"])
    continuity = Continuity(guest)
    result = run_module("qemu_save", name=VM, path=str(image))
    check_error(result, "NotRestorableError", "-snapshot")
    assert [problem["kind"] for problem in result["problems"] if problem["blocks"]] == ["temporary_disks"]
    # They would be lost, whatever the operator says.
    result = run_module("qemu_save", name=VM, path=str(image), require_restorable=False)
    check_error(result, "NotRestorableError", "-snapshot")
    assert os.listdir(image.parent) == []
    save(name=VM, path=str(image), after_save="resume", require_restorable=False)
    continuity.check()


def test_vm_that_waits_for_its_state_cannot_be_saved(make_guest, image, run_module):
    guest = make_guest(start=False)
    guest.start(incoming=True)
    result = run_module("qemu_save", name=VM, path=str(image))
    check_error(result, "ConflictError", "inmigrate")


# --- the file ---


def header(magic=b"LibvirtQemudSave", version=3, data_length=65444, compressed=0, cookie=0, features=1):
    return struct.pack("=16s6I52x", magic, version, data_length, 1, compressed, cookie, features)


XML = f"<domain type='qemu'><name>{VM}</name></domain>\0".encode()


@pytest.mark.parametrize(
    ("head", "kind", "said"),
    [
        (header(magic=b"LibvirtQemudPart"), "ImagePartialError", "partial"),
        (header(magic=b"SomethingElse..."), "ImageFormatError", "magic"),
        (header(version=4), "ImageUnsupportedError", "version 4"),
        (header(features=3), "ImageUnsupportedError", "features"),
        (header(compressed=7, features=0), "ImageUnsupportedError", "7"),
        (header(data_length=0), "ImageFormatError", "length"),
        (header(data_length=2**31), "ImageFormatError", "ends"),
        (header(cookie=2**31), "ImageFormatError", "cookie"),
        (b"", "ImageFormatError", ""),
        (header()[:50], "ImageFormatError", ""),
    ],
    ids=["partial", "magic", "version", "features", "format", "no-length", "length", "cookie", "empty", "short"],
)
def test_image_that_cannot_be_restored(image, run_module, head, kind, said):
    image.write_bytes(head + XML.ljust(65444, b"\0") if len(head) == 92 else head)
    result = run_module("qemu_restore", name=VM, path=str(image))
    assert result["error"] == kind, result["msg"]
    assert said in result["msg"]
    assert str(image) in result["msg"]
    assert image.exists()
    info = run_module("qemu_save_image_info", path=str(image))
    assert not info.get("failed")
    assert info["image"]["problems"]


def test_image_gone(image, run_module):
    result = run_module("qemu_restore", name=VM, path=str(image))
    check_error(result, "ImageNotFoundError", str(image), "no image")


def test_image_of_another_vm(guest, image, save, run_module):
    save(name=VM, path=str(image))
    result = run_module("qemu_restore", name=OTHER_VM, path=str(image))
    check_error(result, "MismatchError", VM, OTHER_VM)


@pytest.mark.parametrize("place", ["missing/web1.save", "file/web1.save"])
def test_directory_that_is_none(guest, tmp_path, run_module, place):
    (tmp_path / "file").write_text("")
    result = run_module("qemu_save", name=VM, path=str(tmp_path / place))
    assert result["failed"]
    assert str(tmp_path / place).rsplit("/", 1)[0] in result["msg"]
    assert result["guest"] == "running"
    assert run_state(guest) == "running"


# --- options ---


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"format": "raw", "parallel_channels": 2}, "parallel_channels"),
        ({"format": "raw", "bypass_cache": True}, "bypass_cache"),
        ({"format": "zstd", "parallel_channels": 2}, "parallel_channels"),
        ({"format": "gzip", "bypass_cache": True}, "bypass_cache"),
        ({"bandwidth": "fast"}, "bandwidth"),
        ({"bandwidth": "10K"}, "bandwidth"),
        ({"mode": "rw"}, "mode"),
        ({"owner": "no-such-user"}, "no-such-user"),
        ({"parallel_channels": 0}, "parallel_channels"),
        ({"parallel_channels": 256}, "parallel_channels"),
        ({"domain_xml": "<domain>"}, "XML"),
    ],
)
def test_options_that_cannot_be(guest, image, run_module, options, said):
    result = run_module("qemu_save", name=VM, path=str(image), **options)
    assert result["failed"]
    assert said in result["msg"]
    assert os.listdir(image.parent) == []
    assert run_state(guest) == "running"


@pytest.mark.parametrize("image_format", ["gzip", "bzip2", "xz", "lzop", "zstd"])
def test_compressor_that_is_missing(guest, image, start_module, image_format):
    # The module looks for tools on a path on which there is nothing.
    code = (
        "import importlib, os, sys\n"
        "from ansible.module_utils import basic\n"
        "from ansible_collections.vmops.qemu.plugins.module_utils._image import compressor\n"
        "compressor._SEARCH_PATH = os.environ['PATH'] = '/nonexistent'\n"
        "module = importlib.import_module(sys.argv[3])\n"
        "basic._ANSIBLE_ARGS, basic._ANSIBLE_PROFILE = open(sys.argv[4], 'rb').read(), 'legacy'\n"
        "module.main()\n"
    )
    prefix = [sys.executable, "-c", code]
    result = start_module("qemu_save", name=VM, path=str(image), format=image_format, prefix=prefix).result()
    check_error(result, "RequestError", image_format, "not installed")
    assert run_state(guest) == "running"


def test_name_that_cannot_be_a_file_name(run_module):
    result = run_module("qemu_save", name="../../etc/passwd")
    assert result["error"] == "RequestError"
