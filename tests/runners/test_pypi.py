# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""VMs of runners that PyPI has: what comes back of them, and what is said where something is missing."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shlex
import socket

import pytest
from runners.programs import program, words_of

from support.guest import GuestError
from support.observe import VM, Continuity, wait_until
from support.paused import make_disk
from support.process import read_argv


@pytest.fixture
def prepared(make_guest):
    """A guest that a runner shall start."""
    guest = make_guest(start=False)
    guest.prepare()
    log = f"logfile={guest.serial_log},"
    guest._is_ours = lambda pid: any(log in word for word in read_argv(pid))
    guest.adopt_restarted = lambda: adopt_any(guest)
    return guest


def adopt_any(guest):
    """Whatever its name."""
    if guest.alive():
        return True
    for pid in (int(entry) for entry in os.listdir("/proc") if entry.isdigit()):
        words = read_argv(pid)
        if words and "qemu-system" in words[0] and guest._is_ours(pid):
            with contextlib.suppress(GuestError):
                guest.adopt(pid)
                return True
    return False


def adopt(guest):
    """The QEMU that somebody has started for this guest, whatever its monitor is."""
    wait_until(guest.adopt_restarted)
    guest.wait_for_counter()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# --- qsvm ---


def start_by_qsvm(guest, tmp_path, start_runner, name=True, monitor="qemu-mon"):
    """As its unit does (ExecStart=)."""
    place = tmp_path / "qsvm" / VM
    place.mkdir(parents=True)
    words = ["/usr/bin/qemu-system-x86_64", "-display", "none", "-machine", "pc", *words_of(guest, monitor=False)]
    words += ["-name", VM] if name else []
    (place / "config.yaml").write_text(
        f"exec: >\n    {shlex.join(words)}\nqemu_mon_path: {json.dumps(monitor)}\nqemu_guest_path: ''\n"
    )
    start_runner(program("qsvm"), "--config", tmp_path / "qsvm", "--is_svc", "direct-start-vm", VM)
    return place


def test_qsvm(prepared, tmp_path, start_runner, image, save, restore):
    start_by_qsvm(prepared, tmp_path, start_runner)
    adopt(prepared)
    continuity = Continuity(prepared)
    save(name=VM, path=str(image))
    restore(name=VM, path=str(image))
    adopt(prepared)
    continuity.check()


def test_qsvm_as_its_sample_is(prepared, tmp_path, start_runner, image, save, restore):
    """Without a name, it is one by its socket."""
    monitor = start_by_qsvm(prepared, tmp_path, start_runner, name=False) / "qemu-mon"
    adopt(prepared)
    continuity = Continuity(prepared)
    save(qmp_socket=str(monitor), path=str(image))
    restore(qmp_socket=str(monitor), path=str(image))
    adopt(prepared)
    continuity.check()


# --- qemu-tool ---


def start_by_qemu_tool(guest, tmp_path, environment, start_runner, *options):
    make_disk(tmp_path / f"{VM}.qcow2", "qcow2", size="8M")
    words = ["--vm-name", VM, "--images", tmp_path, "--no-kvm", "--vcpus", 1, "--vmem", 256, "--no-qemu-guest-agent"]
    tools = environment["PATH"].partition(":")[0]
    literal = shlex.join(words_of(guest, monitor=False))
    start_runner(
        program("qemu-tool"),
        "run-vm",
        *words,
        "--qemu-path",
        tools,
        f"--nvme={literal}",
        "--ssh-port",
        free_port(),
        *options,
    )


def test_qemu_tool(prepared, tmp_path, environment, start_runner, image, save, restore):
    start_by_qemu_tool(prepared, tmp_path, environment, start_runner, "--qmp-socket", tmp_path / "qmp.sock")
    adopt(prepared)
    continuity = Continuity(prepared)
    save(name=VM, path=str(image))
    restore(name=VM, path=str(image))
    adopt(prepared)
    continuity.check()


def test_qemu_tool_without_a_monitor(prepared, tmp_path, environment, start_runner, image, run_module):
    start_by_qemu_tool(prepared, tmp_path, environment, start_runner)
    adopt(prepared)
    result = run_module("qemu_save", name=VM, path=str(image))
    assert "Call qemu-tool run-vm with --qmp-socket" in result["cure"], result["msg"]


# --- qemu-compose ---


@pytest.fixture
def terminal():
    """As somebody has who looks on."""
    controller, end = pty.openpty()
    yield end
    os.close(end)
    os.close(controller)


def start_by_qemu_compose(guest, tmp_path, start_runner, terminal, monitor):
    words = words_of(guest, monitor)
    options = [{name[1:]: value} for name, value in zip(words[::2], words[1::2])]
    options += [{"accel": "tcg"}, {"m": "256M"}, {"smp": "1"}, {"cpu": "qemu64"}, {"display": "none"}]
    (tmp_path / "qemu-compose.yml").write_text(json.dumps({"name": VM, "network": "none", "qemu_args": options}))
    # It wants to talk to a person, and a number for the guest in the host's vsock, which is not everywhere.
    patched = (
        "import qemu_compose.instance.qemu_runner as runner, qemu_compose.main as main\n"
        "runner.get_available_guest_cid = lambda *_numbers: 1000\n"
        "main.main() if hasattr(main, 'main') else main.cli()\n"
    )
    command = [program("qemu-compose", "python"), "-c", patched, "-f", tmp_path / "qemu-compose.yml", "up"]
    start_runner(*command, stdin=terminal, stdout=terminal)


def test_qemu_compose(prepared, tmp_path, start_runner, terminal, image, run_module, save, restore):
    """Monitor and console are descriptors of its own: the VM comes back by a command without them."""
    start_by_qemu_compose(prepared, tmp_path, start_runner, terminal, monitor=True)
    adopt(prepared)
    continuity = Continuity(prepared)
    result = run_module("qemu_save", name=VM, path=str(image))
    assert result["error"] == "NotRestorableError", result["msg"]
    assert {problem["kind"] for problem in result["problems"] if problem["blocks"]} == {"inherited_descriptor"}
    words = read_argv(prepared.pid)
    save(name=VM, path=str(image), require_restorable=False)
    command = without_monitor_of_its_own([re.sub("^socket,id=console,.*", "null,id=console", word) for word in words])
    restore(name=VM, path=str(image), launch="command", command=command)
    adopt(prepared)
    continuity.check()


def test_qemu_compose_without_a_monitor(prepared, tmp_path, start_runner, terminal, image, run_module):
    start_by_qemu_compose(prepared, tmp_path, start_runner, terminal, monitor=False)
    adopt(prepared)
    result = run_module("qemu_save", name=VM, path=str(image))
    assert f'Add - qmp: "unix:/run/{VM}.qmp,server=on,wait=off" to the list qemu_args' in result["cure"], result["msg"]


def without_monitor_of_its_own(words):
    """A command line without the monitor through which its runner talked to it."""
    place = next(number for number, word in enumerate(words) if word.startswith("socket,id=mon,"))
    assert words[place + 1 : place + 3] == ["-mon", "chardev=mon,mode=control"]
    return words[: place - 1] + words[place + 3 :]


# --- maqet ---


def start_by_maqet(guest, tmp_path, run_runner, monitor):
    words = ["-machine", "pc", "-display", "none", *words_of(guest, monitor)]
    arguments = [{name[1:]: value} for name, value in zip(words[::2], words[1::2])]
    (tmp_path / "vm.yaml").write_text(
        json.dumps({"binary": "/usr/bin/qemu-system-x86_64", "arguments": [*arguments, {"name": VM}]})
    )
    run_runner(program("maqet"), "add", "--vm-config", tmp_path / "vm.yaml", "--name", VM)
    run_runner(program("maqet"), "start", VM)


def test_maqet(prepared, tmp_path, run_runner, image, save, restore):
    """Its QEMU is a client of a socket that it serves: the VM comes back by a command without that."""
    start_by_maqet(prepared, tmp_path, run_runner, monitor=True)
    adopt(prepared)
    continuity = Continuity(prepared)
    words = read_argv(prepared.pid)
    save(name=VM, path=str(image), require_restorable=False)
    wait_until(lambda: "stopped" in run_runner(program("maqet"), "ls"))
    restore(name=VM, path=str(image), launch="command", command=without_monitor_of_its_own(words))
    adopt(prepared)
    continuity.check()


def test_maqet_without_a_monitor(prepared, tmp_path, run_runner, image, run_module):
    start_by_maqet(prepared, tmp_path, run_runner, monitor=False)
    adopt(prepared)
    result = run_module("qemu_save", name=VM, path=str(image))
    assert f'Add - qmp: "unix:/run/{VM}.qmp,server=on,wait=off" and - name: {VM} to the list' in result["cure"]
