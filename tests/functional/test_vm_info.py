# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""qemu_vm_info: every VM of the host, those that cannot be asked with the reason."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest

from support import Monitor
from support.observe import OTHER_VM, VM, Continuity

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can do this")

UUID = "0e1c5f0a-7a3c-4f0e-9b4d-2f6d8a1b2c3d"

#: As a user who may read all files, so that Python finds its own, but has no rights to root's sockets.
AS_NOBODY = [
    *("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"),
    *("--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"),
]

#: Root, where there is one, that may not look into other processes, and so reaches no socket without a name.
WITHOUT_RIGHTS = ["setpriv", "--bounding-set=-sys_ptrace,-net_admin", "--inh-caps=-sys_ptrace,-net_admin"]

KEYS = {
    *("name", "uuid", "pid", "user", "run_state", "memory", "resident", "vcpus", "machine", "qemu_version"),
    *("qmp_socket", "monitor", "reason", "unit", "launch", "save_support", "blockers", "problems", "image"),
}


@pytest.fixture
def info(run_module, image):
    """Run qemu_vm_info for the tests' own VMs; the VMs by pid."""

    def run(*names, **options):
        options.setdefault("save_dir", str(image.parent))
        result = run_module("qemu_vm_info", name=list(names or (VM, OTHER_VM)), **options)
        assert not result.get("failed"), result["msg"]
        assert result["changed"] is False
        for vm in result["vms"]:
            assert set(vm) == KEYS
            assert bool(vm["reason"]) == (vm["monitor"] != "answers")
        return result

    return run


@pytest.fixture
def one(info):
    """Run it and return its only VM."""

    def run(*names, **options):
        (vm,) = info(*names, **options)["vms"]
        return vm

    return run


def test_vm_that_answers(make_guest, one):
    guest = make_guest(uuid=UUID, extra_args=["-smp", "2"], machine="q35")
    continuity = Continuity(guest)
    vm = one()
    assert vm["resident"] > 8 * 2**20
    with Monitor(guest.qmp_socket) as monitor:
        version = monitor.execute("query-version")["qemu"]
    assert vm["machine"].startswith("pc-q35-")
    assert "raw" in vm["save_support"]["formats"]
    assert ("sparse" in vm["save_support"]["formats"]) == vm["save_support"]["mapped_ram"]
    expected = {
        "name": VM,
        "uuid": UUID,
        "pid": guest.pid,
        "user": "root" if os.geteuid() == 0 else vm["user"],
        "run_state": "running",
        "memory": 64 * 2**20,
        "vcpus": 2,
        "qemu_version": f"{version['major']}.{version['minor']}.{version['micro']}",
        "qmp_socket": str(guest.qmp_socket),
        "monitor": "answers",
        "reason": "",
        "blockers": [],
        "image": None,
    }
    # The tests themselves have started it, and wait for it.
    assert [problem["kind"] for problem in vm["problems"]] == ["supervisor_unknown"]
    assert {key: vm[key] for key in expected} == expected
    assert vm["launch"]["how"] == "command"
    continuity.check()


def test_all_vms_of_the_host(make_guest, run_module, info):
    """Without a name, others' VMs are listed, too; they stay out of what is compared here."""
    first, second = make_guest(), make_guest(OTHER_VM)
    found = run_module("qemu_vm_info")
    assert {first.pid, second.pid} <= {vm["pid"] for vm in found["vms"]}
    assert [vm["name"] for vm in found["vms"]] == sorted(vm["name"] for vm in found["vms"])
    named = info(OTHER_VM)
    assert [vm["pid"] for vm in named["vms"]] == [second.pid]
    assert named["msg"] == f"1 VM: {OTHER_VM} running"
    assert info("no-such-vm")["vms"] == []
    told = info("no-such-vm")["msg"]
    assert told.startswith("0 VMs. Those that run: ")
    # Of a host with many only some are told.
    assert f"{OTHER_VM} (pid {second.pid}, " in told or told.endswith(" more")


def test_busy_monitors_are_waited_for_once(make_guest, info):
    """Several at the same time, for a few seconds together."""
    guests = [make_guest(memory_mib=32, block_mib=1) for _number in range(4)]
    free = make_guest(OTHER_VM)
    held = [Monitor(guest.qmp_socket) for guest in guests]
    try:
        started = time.monotonic()
        result = info()
        assert time.monotonic() - started < 3 + 8, "not three seconds for each"
    finally:
        for monitor in held:
            monitor.close()
    states = {vm["pid"]: (vm["monitor"], vm["run_state"], vm["memory"]) for vm in result["vms"]}
    assert states.pop(free.pid) == ("answers", "running", 64 * 2**20)
    # What a command line says is told of those, too.
    assert states == {guest.pid: ("busy", None, 32 * 2**20) for guest in guests}
    for vm in result["vms"]:
        assert vm["monitor"] == "answers" or "another client" in vm["reason"]
        assert vm["launch"]["how"] == "command"


def test_second_monitor_is_tried(make_guest, one):
    guest = make_guest(observer=True)
    with Monitor(guest.qmp_socket):
        vm = one()
    assert (vm["monitor"], vm["qmp_socket"]) == ("answers", str(guest.observer_socket))


def test_vm_whose_qemu_hangs(make_guest, info):
    guest, other = make_guest(), make_guest(OTHER_VM)
    os.kill(guest.pid, signal.SIGSTOP)
    try:
        result = info()
    finally:
        os.kill(guest.pid, signal.SIGCONT)
    assert {vm["pid"]: vm["monitor"] for vm in result["vms"]} == {guest.pid: "busy", other.pid: "answers"}
    assert f"{VM} cannot be asked (busy)" in result["msg"]


def test_time_is_up(make_guest, one):
    """However long a monitor would be waited for."""
    guest = make_guest(uuid=UUID)
    os.kill(guest.pid, signal.SIGSTOP)
    try:
        vm = one(timeout=0.5)
    finally:
        os.kill(guest.pid, signal.SIGCONT)
    assert vm["monitor"] == "busy"
    assert "within 0.5 seconds" in vm["reason"]
    assert vm["uuid"] == UUID
    assert vm["launch"]["how"] == "command"


def test_vm_without_qmp(make_guest, one, tmp_path):
    guest = make_guest(start=False)
    guest.prepare()
    argv = guest.argv()
    place = argv.index("-qmp")
    process = subprocess.Popen([*argv[:place], *argv[place + 2 :], "-smp", "sockets=1,cores=3"], cwd=tmp_path)
    try:
        deadline = time.monotonic() + 20
        while not guest.boots():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        vm = one()
        assert (vm["monitor"], vm["qmp_socket"], vm["run_state"]) == ("none", None, None)
        assert (vm["memory"], vm["vcpus"], vm["machine"]) == (64 * 2**20, 3, "pc")
        assert vm["pid"] == process.pid
    finally:
        process.kill()
        process.wait()


@only_root
def test_vm_whose_socket_was_removed(make_guest, one):
    """Root reaches it all the same."""
    guest = make_guest()
    guest.qmp_socket.unlink()
    vm = one(prefix=WITHOUT_RIGHTS)
    assert (vm["monitor"], vm["qmp_socket"]) == ("missing", str(guest.qmp_socket))
    assert "only root may look for it" in vm["reason"]
    if os.geteuid() == 0:
        assert one()["monitor"] == "answers"


@only_root
def test_socket_that_does_not_speak_qmp(make_guest, one, tmp_path):
    """A command line that is out of date: the chardev is a monitor for people."""
    guest = make_guest(start=False)
    guest.prepare()
    path = guest.qmp_socket
    argv = [word.replace(str(path), f"{path}.real") for word in guest.argv()]
    argv += [
        "-chardev",
        f"socket,id=m0,path={path},server=on,wait=off",
        "-qmp",
        f"unix:{path}.other,server=on,wait=off",
    ]
    process = subprocess.Popen([*argv, "-mon", "chardev=m0,mode=readline"], cwd=tmp_path)
    try:
        deadline = time.monotonic() + 20
        while not guest.boots():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        for real in f"{path}.real", f"{path}.other":
            os.unlink(real)
        os.link(path, f"{path}.real")
        assert one(prefix=WITHOUT_RIGHTS)["monitor"] == "invalid"
    finally:
        process.kill()
        process.wait()


def test_vm_of_another_user(make_guest, one):
    if os.geteuid() != 0:
        pytest.skip("only root may become another user")
    guest = make_guest(start=False)
    guest.prepare()
    for place in guest.workdir, *guest.workdir.parents[:3]:
        place.chmod(0o755)
    for place in guest.workdir, guest.qmp_socket.parent:
        os.chown(place, 65534, 65534)
    process = subprocess.Popen([*AS_NOBODY[:6], *guest.argv()], cwd=guest.workdir, stdin=subprocess.DEVNULL)
    try:
        guest.wait_restarted()
        guest.wait_for_counter()
        vm = one()
        assert (vm["user"], vm["monitor"], vm["launch"]["how"]) == ("nobody", "answers", "command")
    finally:
        guest.end()
        process.wait()


def test_as_another_user(guest, one, image):
    """Root's VM, asked for by someone else: what everybody may see, and why not more."""
    if os.geteuid() != 0:
        pytest.skip("only root may become another user")
    vm = one(prefix=AS_NOBODY)
    assert (vm["user"], vm["monitor"], vm["pid"]) == ("root", "denied", guest.pid)
    assert "may not use the QMP socket" in vm["reason"]
    assert vm["launch"]["how"] == "none"
    assert vm["memory"] == 64 * 2**20


def test_vm_that_cannot_be_saved(make_guest, one, image, run_module):
    """A device that QEMU cannot migrate: its own words, which qemu_save says, too."""
    blocked = make_guest(extra_args=["-device", "nvme,serial=x,id=nvme0"])
    vm = one()
    assert vm["monitor"] == "answers"
    assert len(vm["blockers"]) == 1
    assert "nvme" in vm["blockers"][0]
    result = run_module("qemu_save", name=VM, path=str(image))
    assert result["error"] == "UnsupportedByQemuError"
    assert vm["blockers"][0] in result["msg"]
    assert blocked.alive()


def test_vm_that_cannot_be_started_again(make_guest, one):
    make_guest(extra_args=["-snapshot"])
    vm = one()
    assert vm["launch"]["how"] == "none"
    assert "snapshot" in vm["launch"]["reason"]
    assert [problem["kind"] for problem in vm["problems"] if problem["blocks"]] == ["temporary_disks"]


def test_what_was_plugged_in_later(guest, one):
    with Monitor(guest.qmp_socket) as monitor:
        monitor.execute("device_add", {"driver": "virtio-rng-pci", "id": "late0"})
    vm = one()
    assert vm["launch"]["how"] == "none"
    assert "late0" in vm["launch"]["reason"]


def test_run_states(guest, one):
    with Monitor(guest.observer_socket) as monitor:
        monitor.execute("stop")
    assert one()["run_state"] == "paused"
    guest.end()
    guest.start(incoming=True)
    assert one()["run_state"] == "inmigrate"


def test_images(make_guest, save, one, image):
    guest = make_guest(uuid=UUID)
    assert one()["image"] is None
    other = image.parent / "older.save"
    save(name=VM, path=str(other), after_save="resume")
    assert one()["image"]["path"] == str(other)
    saved = save(name=VM, save_dir=str(image.parent), after_save="resume")["image"]
    assert one()["image"] == {
        "path": saved["path"],
        "state": "complete",
        "saved_at": saved["saved_at"],
        "checkpoint": saved["checkpoint"],
    }
    os.utime(other)
    assert one()["image"]["path"] == f"{image.parent}/{VM}.save", "the one that a restore by name would use"
    # Known by its UUID, where it has one: not by a name that another VM has had.
    guest.end()
    make_guest(uuid=UUID.replace("0e1c", "ffff"), workdir="second")
    assert one()["image"] is None


def test_directory_that_cannot_be_read(guest, info, tmp_path):
    assert info(save_dir=str(tmp_path / "none"))["vms"][0]["monitor"] == "answers"
    (tmp_path / "loop").symlink_to("loop")
    result = info(save_dir=str(tmp_path / "loop"))
    assert "save images are not known" in str(result["warnings"])
    assert result["vms"][0]["monitor"] == "answers"


def test_while_vms_come_and_go(make_guest, info):
    """Nothing of that is a failure."""
    guest = make_guest()
    for _time in range(5):
        other = make_guest(OTHER_VM, workdir=f"other-{_time}")
        os.kill(other.pid, signal.SIGKILL)
        result = info()
        assert guest.pid in {vm["pid"] for vm in result["vms"]}
