# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A VM that has a human monitor alone is saved, told of and restored by QEMU 11.1 and later, and nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import re
import socket
import subprocess
import time

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._cancellation import within
from ansible_collections.vmops.qemu.plugins.module_utils._errors import MonitorHumanError
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import human
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.greeting import doors_of, greeted
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.identity import IMPATIENCE, connect_by_process
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.launch import Launch, LaunchedProcess
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import read_process
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.session import VmSession

from support.boot_program import said
from support.human import HumanGuest, HumanMonitor, free_port
from support.observe import VM, Continuity, wait_until
from support.versions import find_qemus

QEMU = find_qemus()[-1].path

UNIX = {
    "monitor": ["-monitor", "unix:{},server=on,wait=off"],
    "monitor-nowait": ["-monitor", "unix:{},server,nowait"],
    "monitor-of-a-chardev": ["-monitor", "chardev:c0", "-chardev", "socket,id=c0,path={},server=on,wait=off"],
    "mon": ["-chardev", "socket,id=c0,path={},server=on,wait=off", "-mon", "c0"],
    "mon-readline": ["-mon", "mode=readline,chardev=c0", "-chardev", "socket,server,nowait,path={},id=c0"],
    "object": ["-object", "monitor-hmp,id=m0,chardev=c0", "-chardev", "socket,id=c0,path={},server=on,wait=off"],
    "object-json": [
        *("-chardev", "socket,id=c0,path={},server=on,wait=off"),
        *("-object", '{{"qom-type": "monitor-hmp", "id": "m0", "chardev": "c0"}}'),
    ],
    "object-single-quotes": [
        *("-chardev", "socket,id=c0,path={},server=on,wait=off"),
        *("-object", "{{'chardev':'c0','id':'m0','qom-type':'monitor-hmp'}}"),
    ],
    "telnet": ["-chardev", "socket,id=c0,path={},server=on,wait=off,telnet=on", "-mon", "c0"],
}
TCP = {
    "tcp": "tcp:127.0.0.1:{port},server=on,wait=off",
    "tcp-any": "tcp::{port},server=on,wait=off",
    "telnet": "telnet:127.0.0.1:{port},server,nowait",
}


@pytest.fixture
def make_human(make_guest):
    return functools.partial(make_guest, kind=HumanGuest, qemu=QEMU)


@pytest.fixture
def read_vm(run_module):
    """What qemu_vm_info says of the VM."""

    def read(name=VM):
        (vm,) = run_module("qemu_vm_info", name=[name])["vms"]
        return vm

    return read


def at_tcp(make_human, words):
    port = free_port()
    return make_human(monitor=["-monitor", words.format(port=port)], port=port)


def nothing_is_left(guest):
    wait_until(lambda: guest.opened() == [])


def there_and_back(guest, image, save, restore, read_vm):
    """Told of, saved and restored: twice, as the VM that comes back is reached in the same way."""
    vm = read_vm()
    assert (vm["monitor"], vm["qmp_socket"], vm["run_state"]) == ("human", None, "running")
    assert "human monitor" in vm["reason"]
    assert vm["save_support"]["formats"][0] == "sparse"
    nothing_is_left(guest)
    continuity = Continuity(guest)
    for _round in range(2):
        saved = save(name=VM, path=str(image))
        assert saved["image"]["format"] == "sparse"
        assert not guest.alive()
        restored = restore(name=VM, path=str(image))
        assert restored["vm"]["run_state"] == "running"
        continuity.check()
        nothing_is_left(guest)
    assert not image.exists()


@pytest.mark.parametrize("words", UNIX.values(), ids=UNIX)
def test_there_and_back(words, make_human, image, save, restore, read_vm):
    there_and_back(make_human(monitor=words), image, save, restore, read_vm)


@pytest.mark.parametrize("words", TCP.values(), ids=TCP)
def test_there_and_back_over_tcp(words, make_human, image, save, restore, read_vm):
    there_and_back(at_tcp(make_human, words), image, save, restore, read_vm)


def test_there_and_back_beside_a_qmp_server_at_a_port(make_human, image, save, restore, read_vm):
    """No image can be passed to that."""
    qmp = ["-qmp", f"tcp:127.0.0.1:{free_port()},server=on,wait=off"]
    there_and_back(make_human(monitor=[*qmp, *UNIX["monitor"]]), image, save, restore, read_vm)


def fill(path):
    """Have so many clients wait for a socket that there is room for no other."""
    waiting = []
    while True:
        client = socket.socket(socket.AF_UNIX)
        waiting.append(client)
        client.setblocking(False)
        try:
            client.connect(str(path))
        except BlockingIOError:
            return waiting


def test_restore_of_one_that_starts_slowly_beside_a_qmp_server_at_a_port(
    make_human, image, tmp_path, agent, save, start_module
):
    """That one would greet first, and no image can be passed to it; the guest would not come back."""
    port, peer = free_port(), tmp_path / "peer.sock"
    first = agent(peer)
    guest = make_human(
        monitor=["-qmp", f"tcp:127.0.0.1:{port},server=on,wait=off", *UNIX["monitor"]],
        extra_args=[
            *("-chardev", f"socket,id=waiting,path={peer},server=on,wait=on"),
            *("-device", "pci-serial,chardev=waiting"),
        ],
    )
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    first.close()
    assert not peer.exists()
    run = start_module("qemu_restore", name=VM, path=str(image))
    wait_until(lambda: peer.exists() or run.process.poll() is not None)
    assert run.process.poll() is None, run.result()
    clients = fill(guest.human_socket)
    # Whatever it began before is given up by then: only the port is left, where it would be told at once.
    time.sleep(IMPATIENCE + 1)
    for client in clients:
        client.close()
    agent(peer)
    result = run.result()
    assert not result.get("failed"), result["msg"]
    continuity.check()
    nothing_is_left(guest)


@pytest.mark.parametrize("image_format", ["raw", "zstd"])
def test_formats_that_need_a_pipe(image_format, make_human, image, save, restore):
    guest = make_human()
    continuity = Continuity(guest)
    save(name=VM, path=str(image), format=image_format)
    restore(name=VM, path=str(image))
    continuity.check()
    nothing_is_left(guest)


def test_check_mode_leaves_nothing(make_human, image, run_module):
    guest = make_human()
    continuity = Continuity(guest)
    result = run_module("qemu_save", name=VM, check=True, path=str(image))
    assert result["changed"]
    assert os.listdir(image.parent) == []
    nothing_is_left(guest)
    continuity.check()


def test_live_save_that_goes_on(make_human, image, save):
    guest = make_human()
    continuity = Continuity(guest)
    before = guest.human("info migrate_capabilities")
    save(name=VM, path=str(image), live=True, after_save="resume")
    continuity.check()
    nothing_is_left(guest)
    assert guest.human("info migrate_capabilities") == before


def test_its_socket_is_named(make_human, image, save, restore):
    """A path of a human monitor is as good as one of a QMP socket, also without a name."""
    guest = make_human()
    continuity = Continuity(guest)
    save(qmp_socket=str(guest.human_socket), path=str(image))
    assert not save(qmp_socket=str(guest.human_socket), path=str(image))["changed"]
    restore(qmp_socket=str(guest.human_socket), path=str(image))
    continuity.check()
    nothing_is_left(guest)


def test_restore_into_one_that_waits(make_human, image, save, restore):
    guest = make_human()
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    guest.start(incoming=True)
    restore(name=VM, path=str(image), launch="attach")
    continuity.check()
    nothing_is_left(guest)


def test_boot_restore(make_human, image, save, run_program):
    guest = make_human()
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    assert f"{VM} was restored from {image}" in said(run_program(), 0)
    continuity.check()
    nothing_is_left(guest)


def test_host_run(make_human, image, run_module):
    guest = make_human()
    continuity = Continuity(guest)
    options = {"save_dir": str(image.parent), "vms": [VM]}
    assert not run_module("qemu_managed_save", **options).get("failed")
    assert not guest.alive()
    assert not run_module("qemu_managed_restore", save_dir=str(image.parent), include=[VM]).get("failed")
    continuity.check()
    nothing_is_left(guest)


# --- runs that do not come to their end ---


def is_in_state(told, state):
    return re.search(rf"[Ss]tatus:\s+{state}\b", told) is not None


def killed_while(guest, run, state):
    """SIGKILL the run as soon as QEMU's migration is in this state."""
    deadline = time.monotonic() + 30
    while not is_in_state(guest.human("info migrate"), state):
        assert time.monotonic() < deadline
        assert run.process.poll() is None, run.result()
        time.sleep(0.1)  # the run needs the monitor, too
    run.process.kill()
    run.process.communicate()


def test_save_that_is_killed_is_taken_over(make_human, image, start_module, save, restore):
    guest = make_human(memory_mib=512, block_mib=256)
    continuity = Continuity(guest)
    killed_while(guest, start_module("qemu_save", name=VM, path=str(image), bandwidth="40M"), "active")
    nothing_is_left(guest)
    assert "earlier run" in save(name=VM, path=str(image))["msg"]
    guest.wait_exit()
    restore(name=VM, path=str(image))
    continuity.check()
    nothing_is_left(guest)


def test_save_that_fails_leaves_the_guest(make_human, image, run_module):
    guest = make_human(memory_mib=512, block_mib=256)
    continuity = Continuity(guest)
    result = run_module("qemu_save", name=VM, path=str(image), bandwidth="8M", timeout=3)
    assert result["error"] == "OperationTimeoutError"
    assert result["guest"] == "running"
    continuity.check()
    nothing_is_left(guest)


def test_next_run_removes_what_a_killed_one_left(make_human, read_vm):
    """Between the two commands that open a monitor, QEMU has a character device that nobody uses."""
    guest = make_human()
    namespace = os.stat("/proc/self/ns/pid").st_ino
    with subprocess.Popen(["true"]) as process:
        process.wait()
        ours = f"vmops-{namespace:x}-{process.pid}-1-0"
    others = f"vmops-{namespace + 1:x}-{process.pid}-1-0"
    for name in (ours, others):
        assert guest.human(f"chardev-add null,id={name}") == ""
    assert guest.human(f"object_add monitor-qmp,id={ours},chardev={ours}") == ""
    assert read_vm()["monitor"] == "human"
    wait_until(lambda: not any(ours in line for line in guest.opened()))
    assert any(others in line for line in guest.opened())


def test_connection_that_is_cut_is_opened_anew(make_human):
    guest = make_human()

    async def ask():
        process = read_process(guest.pid)
        assert process
        session = await VmSession.open(await connect_by_process(process))
        try:
            (name,) = {line.partition(":")[0] for line in guest.opened() if ": filename=" in line}
            for command in (f"object_del {name}", f"chardev-remove {name}"):
                assert guest.human(command) == ""
            await session.monitor.wait_for_end()
            await session.twice(session.read)
            return session.vm.name
        finally:
            await session.close()

    assert asyncio.run(ask()) == VM
    nothing_is_left(guest)


def test_two_runs_at_once(make_human, image, start_module, read_vm, restore):
    """One looks at the VM while another one saves it, each through a monitor of its own."""
    guest = make_human(memory_mib=512, block_mib=256)
    continuity = Continuity(guest)
    run = start_module("qemu_save", name=VM, path=str(image), bandwidth="100M")
    wait_until(lambda: is_in_state(guest.human("info migrate"), "active"))
    assert read_vm()["monitor"] == "human"
    assert run.result()["changed"]
    restore(name=VM, path=str(image))
    continuity.check()


@pytest.mark.parametrize("has_port", [False, True])
def test_one_whose_human_monitor_is_held(make_human, image, run_module, has_port):
    """Nor is it told that it has none, where it has a QMP server at a port, too."""
    port = ["-qmp", f"tcp:127.0.0.1:{free_port()},server=on,wait=off"] if has_port else []
    guest = make_human(monitor=[*port, *UNIX["monitor"]])
    continuity = Continuity(guest)
    with HumanMonitor(guest.place):
        began = time.monotonic()
        result = run_module("qemu_save", name=VM, path=str(image))
        assert time.monotonic() - began < 15
    assert result["error"] == "MonitorBusyError"
    assert "human monitor" in result["msg"]
    continuity.check()


def test_human_monitor_serves_where_an_agent_holds_the_qmp_one(make_guest, image, agent, save, restore, tmp_path):
    place = tmp_path / "human.sock"
    guest = make_guest(qemu=QEMU, extra_args=["-monitor", f"unix:{place},server=on,wait=off"])
    assert agent(guest.qmp_socket).connected.wait(10)
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    restore(name=VM, path=str(image))
    continuity.check()


# --- a root directory of its own ---


@pytest.fixture
def root(tmp_path):
    """A root directory with all that QEMU needs, in which the directory ``run`` is another one."""
    path, run = tmp_path / "root", tmp_path / "run"
    path.mkdir()
    run.mkdir()
    subprocess.run(["mount", "--rbind", "--make-rslave", "/", str(path)], check=True)
    try:
        subprocess.run(["mount", "-t", "tmpfs", "tests", f"{path}{run}"], check=True)
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change the root directory")
@pytest.mark.parametrize("qemu", [QEMU, find_qemus()[0].path], ids=["opens", "opens-none"])
def test_one_that_is_started_below_another_root(qemu, root, tmp_path, agent):
    """Its socket is not where its words say, but below that root; one that is too old is not waited for."""
    place = tmp_path / "run" / "human.sock"
    machine = ["-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg", "-S", "-m", "16"]
    held = place.with_name("held.sock")
    monitor = [word for each in (place, held) for word in ("-monitor", f"unix:{each},server=on,wait=off")]
    agent(f"{root}{held}")
    how = Launch(("chroot", str(root), str(qemu), "-name", VM, *machine, *monitor))

    async def start():
        launched = LaunchedProcess(how, VM)
        try:
            await launched.start()
            async with await within(20, greeted(launched, doors_of(how, VM), VM)) as found:
                return await found.execute("query-name")
        finally:
            await launched.end()

    if qemu == QEMU:
        assert asyncio.run(start()) == {"name": VM}
    else:
        with pytest.raises(MonitorHumanError):
            asyncio.run(start())
    assert not place.exists()


# --- other spellings of QMP monitors ---


@pytest.mark.parametrize(
    "text",
    [
        "monitor-qmp,id=m0,chardev=c0,close-action=none",
        json.dumps({"qom-type": "monitor-qmp", "id": "m0", "chardev": "c0", "pretty": True}),
        "{'qom-type':'monitor-qmp','id':'m0','chardev':'c0'}",
    ],
    ids=["string", "json", "single-quotes"],
)
def test_monitor_object(text, make_human, image, save, restore, run_module):
    words = ["-object", text.replace("{", "{{").replace("}", "}}")]
    guest = make_human(
        monitor=[
            *("-monitor", "unix:{},server=on,wait=off"),
            *words,
            *("-chardev", "socket,id=c0,path={}.qmp,server=on,wait=off"),
        ]
    )
    (vm,) = run_module("qemu_vm_info", name=[VM])["vms"]
    assert (vm["monitor"], vm["qmp_socket"]) == ("answers", f"{guest.human_socket}.qmp")
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    restore(name=VM, path=str(image))
    continuity.check()


# --- what others do meanwhile ---


def test_stranger_that_connects_first(make_human, monkeypatch):
    """Anyone may connect to the socket at which a run waits for a QEMU whose human monitor is at a TCP port."""
    guest = at_tcp(make_human, TCP["tcp"])
    strangers = []
    tell = human.HumanMonitor.tell

    async def tell_after_strangers(self, command, descriptor=None):
        for name in 3 * re.findall(r"path=([^,]+),abstract=on", command):
            strangers.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            strangers[-1].connect(f"\0{name}")
            strangers[-1].sendall(b'{"QMP": {"version": {}, "capabilities": []}}\n')
        return await tell(self, command, descriptor)

    monkeypatch.setattr(human.HumanMonitor, "tell", tell_after_strangers)

    async def ask():
        process = read_process(guest.pid)
        assert process
        async with await connect_by_process(process) as monitor:
            return await monitor.execute("query-name")

    assert asyncio.run(ask()) == {"name": VM}
    assert len(strangers) == 3
    for stranger in strangers:
        stranger.settimeout(10)
        with stranger, contextlib.suppress(ConnectionError):
            assert stranger.recv(1) == b""
    nothing_is_left(guest)
