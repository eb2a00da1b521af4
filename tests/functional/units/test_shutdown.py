# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""VMs that a run over their host does not save are shut down, and are started again as they were started before.

All VMs of the host are looked at, so this is for a machine that has no others than those of the tests.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._state_directory import state_path

from support import Monitor, find_qemu_pids, network
from support.observe import VM, Continuity, run_state, wait_until
from support.tpm import Swtpm
from support.units import ALWAYS, BY_USER, UNAVAILABLE, of_root, systemctl

pytestmark = pytest.mark.skipif(bool(UNAVAILABLE), reason=UNAVAILABLE)

OTHER = f"test1-{os.getpid()}"
THIRD = f"test2-{os.getpid()}"


@pytest.fixture
def save_dir(tmp_path):
    directory = tmp_path / "save"
    directory.mkdir(mode=0o700)
    return directory


@pytest.fixture
def managed_save(run_module, save_dir):
    """Save one VM, and shut the others down."""

    def run(**options):
        return run_module(
            "qemu_managed_save", **{"vms": [VM], "unsaved": "shutdown", "save_dir": str(save_dir), **options}
        )

    return run


@pytest.fixture
def managed_restore(run_module, save_dir):
    def run(**options):
        return run_module("qemu_managed_restore", **{"save_dir": str(save_dir), **options})

    return run


@pytest.fixture(autouse=True)
def nothing_kept():
    """No test leaves a VM that is to be started again."""
    yield
    left = kept()
    for path in left:
        path.unlink()
    assert left == []


def kept():
    directory = Path(state_path("shut-down"))
    return sorted(directory.glob("*.json")) if directory.is_dir() else []


def fates(result):
    return {vm["name"]: vm["fate"] for vm in result["unsaved"]}


def started(result):
    return {vm["name"]: vm["state"] for vm in result["started"]}


def wait_for_boots(guest, number):
    guest.wait_restarted()
    wait_until(lambda: guest.boots() == number)


def test_shut_down_and_started_again(make_guest, make_service, save_dir, managed_save, managed_restore):
    """One by its unit, which starts again what has ended; one that somebody has started by hand."""
    guest = make_guest(observer=True)
    service = make_service(service=ALWAYS, guest={"name": OTHER})
    by_hand = make_guest(THIRD, observer=True)
    continuity = Continuity(guest)
    plan = managed_save(check=True)
    assert not plan.get("failed"), plan["msg"]
    assert "; 2 VMs would be shut down" in plan["msg"]
    assert fates(plan) == {OTHER: "", THIRD: ""}
    assert kept() == []
    saved = managed_save()
    assert not saved.get("failed"), saved["msg"]
    assert "1 VM was saved in " in saved["msg"]
    assert saved["msg"].endswith("; 2 VMs were shut down")
    assert fates(saved) == {OTHER: "shut down", THIRD: "shut down"}
    assert [path.stat().st_mode & 0o777 for path in kept()] == [0o600, 0o600]
    time.sleep(0.5)
    assert not any(find_qemu_pids(name) for name in (VM, OTHER, THIRD)), "systemd has started it again"
    plan = managed_restore(check=True)
    assert plan["msg"] == "1 VM would be restored; 2 VMs would be started again"
    assert started(plan) == {OTHER: "predicted", THIRD: "predicted"}
    back = managed_restore()
    assert not back.get("failed"), back["msg"]
    assert started(back) == {OTHER: "started", THIRD: "started"}
    assert "; 2 VMs were started again" in back["msg"]
    assert len(back["table"]) == 4
    continuity.check()
    wait_for_boots(service.guest, 2)
    wait_for_boots(by_hand, 2)
    assert service.get("Restart") == "always"
    assert service.changes() == []
    assert int(service.get("MainPID")) == service.guest.pid
    again = managed_restore()
    assert (again["changed"], again["msg"]) == (False, "No VM is to be restored")


def test_order_and_health_checks_hold_for_all(make_guest, managed_save, managed_restore, tmp_path):
    make_guest(observer=True)
    make_guest(OTHER)
    assert not managed_save().get("failed")
    order = tmp_path / "order"
    check = [sys.executable, "-c", "import sys; open(sys.argv[1], 'a').write(sys.argv[2] + ' ')", str(order), "{name}"]
    back = managed_restore(order=[["test*"], ["web*"]], health_check=check)
    assert not back.get("failed"), back["msg"]
    assert order.read_text().split() == [OTHER, VM]
    assert back["started"][0]["health_check"] == "passed"


def test_one_that_does_not_shut_down_calls_all_off(make_guest, managed_save):
    """What was saved is put back, and what had shut down is started again."""
    guest, deaf, other = make_guest(observer=True), make_guest(OTHER, observer=True), make_guest(THIRD)
    deaf.command(b"i", "^button=off counter=")
    continuity, untouched = Continuity(guest), Continuity(deaf)
    result = managed_save(shutdown_timeout=3)
    assert result["failed"]
    assert result["error"] == "HostRunError"
    assert f"1 VM could not be shut down: {OTHER} has not shut down within 3 seconds" in result["msg"]
    assert "The 1 VM that was saved before was put back" in result["msg"]
    assert "The 1 VM that had shut down: started again" in result["msg"]
    assert fates(result) == {OTHER: "", THIRD: "started again"}
    continuity.check()
    untouched.check()
    wait_for_boots(other, 2)
    # It was asked to, and may do so later.
    [path] = kept()
    assert json.loads(path.read_text())["name"] == OTHER
    path.unlink()


def test_run_that_is_ended_meanwhile(make_guest, start_module, save_dir):
    guest, deaf = make_guest(observer=True), make_guest(OTHER, observer=True)
    deaf.command(b"i", "^button=off counter=")
    continuity, untouched = Continuity(guest), Continuity(deaf)
    run = start_module("qemu_managed_save", vms=[VM], unsaved="shutdown", save_dir=str(save_dir))
    wait_until(kept)
    run.process.send_signal(signal.SIGTERM)
    result = run.result()
    assert result["failed"]
    assert "interrupted" in result["msg"]
    continuity.check()
    untouched.check()
    for path in kept():  # where the guest was asked already, and may do it later
        path.unlink()


def test_guest_that_shuts_down_later_is_named_and_not_started(make_guest, managed_save, managed_restore):
    deaf = make_guest(OTHER, observer=True)
    deaf.command(b"i", "^button=off counter=")
    assert managed_save(vms=[], include=["none"], shutdown_timeout=1)["failed"]
    back = managed_restore()
    assert (back["started"][0]["msg"], len(kept())) == (f"{OTHER} was asked to shut down and still runs", 1)
    deaf.power_off()
    back = managed_restore()
    assert started(back) == {OTHER: "failed"}
    assert "has not seen its end" in back["msg"]
    kept()[0].unlink()


def test_qemu_that_stays_when_its_guest_has_shut_down(make_guest, managed_save, managed_restore):
    make_guest(observer=True)
    other = make_guest(OTHER, extra_args=["-no-shutdown"])
    result = managed_save()
    assert not result.get("failed"), result["msg"]
    other.wait_exit()
    assert started(managed_restore()) == {OTHER: "started"}


def test_one_that_was_started_meanwhile_is_left_as_it_is(make_guest, managed_save, managed_restore):
    make_guest(observer=True)
    other = make_guest(OTHER, observer=True)
    managed_save()
    other.start()
    back = managed_restore()
    assert not back.get("failed"), back["msg"]
    assert (back["started"][0]["state"], back["started"][0]["changed"]) == ("started", False)
    assert back["started"][0]["msg"] == f"{OTHER} runs already"
    assert kept() == []


def test_one_that_was_started_meanwhile_is_saved_and_restored(
    make_guest, make_service, managed_save, save, restore, save_dir
):
    """What keeps its unit from starting it again is in nobody's way, and is gone afterwards."""
    make_guest(observer=True)
    service = make_service(service=ALWAYS, guest={"name": OTHER})
    managed_save()
    systemctl("start", service.name)
    wait_for_boots(service.guest, 2)
    assert service.get("Restart") == "no"
    service.guest.wait_for_counter()
    save(name=OTHER, save_dir=str(save_dir))
    restored = restore(name=OTHER, save_dir=str(save_dir))
    assert restored["unit"] == service.known_as
    assert service.get("Restart") == "always"
    wait_until(lambda: service.guest.adopt_restarted() is not None)
    assert service.guest.boots() == 2
    for path in kept():
        path.unlink()


@pytest.mark.skipif(shutil.which("swtpm") is None, reason="no swtpm")
def test_what_it_needs_is_there_again(make_guest, managed_save, managed_restore, tmp_path):
    """As at a restore: directories that a reboot has emptied, its TPM's server, pid files that others keep."""
    make_guest(observer=True)
    run = Path(f"/run/user/{os.geteuid()}" if BY_USER else "/run", f"vmops-test-{os.getpid()}-{os.urandom(4).hex()}")
    run.mkdir(mode=0o750)
    tpm = Swtpm(tmp_path)
    tpm.start()
    try:
        second = ["-qmp", f"unix:{run}/qmp.sock,server=on,wait=off"]
        other = make_guest(OTHER, observer=True, extra_args=[*tpm.qemu_args(), *second])
        pid_file = other.workdir / "vm.pid"
        pid_file.write_text(f"{other.pid}\n")
        saved = managed_save()
        assert fates(saved) == {OTHER: "shut down"}, saved["msg"]
        wait_until(lambda: not tpm.pids())
        shutil.rmtree(run)
        back = managed_restore()
        assert started(back) == {OTHER: "started"}, back["msg"]
        wait_for_boots(other, 2)
        assert run.stat().st_mode & 0o777 == 0o750
        assert (run / "qmp.sock").is_socket()
        assert len(tpm.pids()) == 1
        assert pid_file.read_text() == f"{other.pid}\n"
    finally:
        tpm.kill()
        shutil.rmtree(run, ignore_errors=True)


@of_root
@pytest.mark.skipif(not os.path.exists("/dev/net/tun"), reason="no /dev/net/tun")
@pytest.mark.parametrize("is_there", [True, False], ids=["bridge", "no-bridge"])
def test_tap_is_in_its_bridge_again(make_guest, make_service, managed_save, managed_restore, is_there):
    """As at a restore; after a reboot the host makes the bridge, and QEMU its tap."""
    make_guest(observer=True)
    taps = {OTHER: network.new_name("vmt"), THIRD: network.new_name("vmt")}
    with network.new_bridge() as bridge:
        if bridge is None:
            pytest.skip("no bridge can be made here")
        service = make_service(service=ALWAYS, guest={"name": OTHER, "extra_args": network.tap_words(taps[OTHER])})
        by_hand = make_guest(THIRD, extra_args=network.tap_words(taps[THIRD]))
        for tap in taps.values():
            network.put(tap, bridge)
        saved = managed_save()
        assert fates(saved) == {OTHER: "shut down", THIRD: "shut down"}, saved["msg"]
        assert not any(network.exists(tap) for tap in taps.values())
        network.delete(bridge)
        if is_there:
            network.make_bridge(bridge)
        back = managed_restore()
        assert started(back) == {OTHER: "started", THIRD: "started"}, back["msg"]
        masters = {name: network.master_of(tap) for name, tap in taps.items()}
        assert masters == dict.fromkeys(taps, bridge if is_there else "")
        for name, tap in taps.items():
            said = f"{tap} was in the bridge {bridge} when the VM ran before, and is not now"
            assert (said in str(back.get("warnings"))) == (not is_there), name
        wait_for_boots(service.guest, 2)
        wait_for_boots(by_hand, 2)


def test_server_of_its_tpm_ends_with_a_start_that_fails(make_guest, managed_save, managed_restore, tmp_path):
    make_guest(observer=True)
    tpm = Swtpm(tmp_path)
    tpm.start()
    try:
        script = tmp_path / "qemu-system-x86_64"
        make_guest(OTHER, observer=True, extra_args=tpm.qemu_args())
        assert fates(managed_save()) == {OTHER: "shut down"}
        wait_until(lambda: not tpm.pids())
        (path,) = kept()
        record = json.loads(path.read_text())
        script.write_text("#!/bin/sh\nexit 3\n")
        script.chmod(0o755)
        record["launch"]["executable"] = record["launch"]["argv"][0] = str(script)
        path.write_text(json.dumps(record))
        back = managed_restore()
        assert back["failed"]
        assert tpm.pids() == []
    finally:
        tpm.kill()
        for left in kept():
            left.unlink()


def test_one_whose_save_is_refused_is_shut_down(make_guest, managed_save, managed_restore):
    guest = make_guest(observer=True)
    other = make_guest(OTHER, observer=True, extra_args=["-usb", "-device", "usb-tablet,id=usb0"])
    with Monitor(other.observer_socket) as monitor:
        monitor.execute("device_del", {"id": "usb0"})
    continuity = Continuity(guest)
    refused = managed_save(vms=[VM, OTHER], unsaved="ignore")
    assert refused["failed"]
    assert "could not be restored" in refused["msg"]
    result = managed_save(vms=[VM, OTHER])
    assert not result.get("failed"), result["msg"]
    assert fates(result) == {OTHER: "shut down"}
    assert [vm["name"] for vm in result["vms"]] == [VM]
    assert "could not be restored" in result["unsaved"][0]["reason"]
    back = managed_restore()
    assert started(back) == {OTHER: "started"}
    continuity.check()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"extra_args": ["-S"]}, "is in QEMU's run state prelaunch"),
        ({"extra_args": ["-chardev", "null,id=charmonitor"]}, "is one of libvirt's"),
        ({"extra_args": ["-chardev", "socket,id=c,fd=0"]}, "could not be started again"),
        ({"extra_args": ["-fw_cfg", "name=opt/own,file=gone.bin"]}, "gone.bin"),
        pytest.param(
            {"prefix": ["setpriv", "--no-new-privs", "unshare", "--mount"]}, "could not be started again", marks=of_root
        ),
    ],
    ids=["paused", "libvirt", "descriptor", "file", "namespace"],
)
def test_one_that_cannot_be_shut_down_is_named_before_anything(make_guest, save_dir, managed_save, options, said):
    options = dict(options)
    prefix = options.pop("prefix", [])
    guest = make_guest(observer=True)
    other = make_guest(OTHER, start=False, **options)
    other.prepare()
    passing = other.workdir / "gone.bin"
    passing.write_bytes(b"read once")
    ours, theirs = socket.socketpair()
    command = [*prefix, *other.argv()]
    with ours, theirs, subprocess.Popen(command, cwd=other.workdir, stdin=theirs.fileno()) as process:
        wait_until(lambda: find_qemu_pids(OTHER))
        wait_until(other.qmp_socket.exists)
        with Monitor(other.qmp_socket):  # which greets when QEMU has read its files
            passing.unlink()
        result = managed_save()
        process.terminate()
    assert result["failed"]
    assert f"{OTHER} (pid {process.pid}) runs here and would not be saved" in result["msg"]
    assert said in result["msg"]
    assert "No VM was touched" in result["msg"]
    assert run_state(guest) == "running"
    assert kept() == []
    assert list(save_dir.iterdir()) == []


def test_two_of_one_name_are_not_shut_down(make_guest, managed_save):
    guests = [make_guest(observer=True), make_guest(OTHER, observer=True), make_guest(OTHER, observer=True)]
    result = managed_save()
    assert result["failed"]
    assert "another QEMU has its name, too" in result["msg"]
    assert [run_state(guest) for guest in guests] == ["running"] * 3
    assert kept() == []


def test_one_whose_name_a_saved_one_has_is_not_shut_down(make_guest, managed_save):
    """What is kept of it would be taken for the other one, when that is back."""
    guests = [make_guest(VM, uuid=str(uuid.uuid4()), observer=True) for _number in range(2)]
    result = managed_save(vms=[guests[0].uuid])
    assert result["failed"]
    assert "another QEMU has its name, too" in result["msg"]
    assert [run_state(guest) for guest in guests] == ["running"] * 2
    assert kept() == []


def test_one_that_starts_no_more_is_named_and_kept(make_guest, make_service, managed_save, managed_restore):
    guest = make_guest(observer=True)
    service = make_service(guest={"name": OTHER})
    continuity = Continuity(guest)
    managed_save()
    service.fragment.write_text(service.fragment.read_text().replace("ExecStart=", "ExecStart=/bin/false "))
    systemctl("daemon-reload")
    back = managed_restore()
    assert back["failed"]
    assert f"{OTHER} was shut down and was not started again" in back["msg"]
    assert service.name in back["msg"]
    assert back["failures"] == [OTHER]
    continuity.check()
    service.fragment.write_text(service.fragment.read_text().replace("ExecStart=/bin/false ", "ExecStart="))
    systemctl("daemon-reload")
    assert started(managed_restore()) == {OTHER: "started"}
    wait_for_boots(service.guest, 2)


def test_what_is_kept_and_makes_no_sense_is_told_and_keeps_nobody_waiting(make_guest, managed_save, managed_restore):
    guest = make_guest(observer=True)
    continuity = Continuity(guest)
    managed_save()
    directory = Path(state_path("shut-down"))
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = directory / f"{'0' * 32}.json"
    path.write_text("{}")
    back = managed_restore()
    path.unlink()
    assert back["failed"]
    assert "A VM was shut down, and how it is started again cannot be read" in back["msg"]
    continuity.check()
