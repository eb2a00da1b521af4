# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""qemu_managed_save: all VMs of a host are saved, or none, and each goes on where it was."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from support import Monitor
from support.observe import Continuity, run_state, wait_until

from .conftest import NAMES, files, states

SLOW = {"bandwidth": "2M", "parallel_channels": 1}


@pytest.fixture
def small_disk(tmp_path):
    """A file system in which the image of one guest finds room, and not those of three."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=120m,mode=0700", "tmpfs", place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


def images_of(*names):
    return sorted(f"{name}.save" for name in names)


def test_all_are_saved_and_restored(guests, save_dir, managed_save, managed_restore):
    continuities = [Continuity(guest) for guest in guests.values()]
    result = managed_save()
    assert not result.get("failed"), result["msg"]
    assert states(result) == dict.fromkeys(NAMES, "saved")
    assert result["msg"].startswith("3 VMs were saved in ")
    assert result["failures"] == []
    assert all(vm["image"]["managed"] and vm["changed"] for vm in result["vms"])
    assert files(save_dir) == images_of(*NAMES)
    assert len(result["table"]) == 4
    assert result["table"][1].startswith(NAMES[0])
    again = managed_save()
    assert (again["changed"], again.get("failed", False)) == (False, False)
    assert again["msg"] == "3 VMs were saved already"
    back = managed_restore()
    assert not back.get("failed"), back["msg"]
    assert states(back) == dict.fromkeys(NAMES, "restored")
    assert back["msg"].startswith("3 VMs were restored in ")
    for continuity in continuities:
        continuity.check()
    assert files(save_dir) == []
    assert managed_restore()["msg"] == "No VM is to be restored"


def test_check_mode_plans_all_and_touches_none(guests, save_dir, managed_save):
    result = managed_save(check=True, diff=True)
    assert result["changed"]
    assert states(result) == dict.fromkeys(NAMES, "predicted")
    assert result["msg"].startswith("3 VMs would be saved, ")
    assert result["predicted"]["bytes"] == sum(vm["space_needed"] for vm in result["vms"])
    assert result["diff"]["before"][NAMES[0]] == {"image": "absent", "vm": "running"}
    assert result["diff"]["after"][NAMES[0]] == {"image": "complete", "vm": "ended"}
    assert files(save_dir) == []
    assert [run_state(guest) for guest in guests.values()] == ["running"] * 3


def test_seconds_are_predicted_from_the_last_run(guests, managed_save, managed_restore):
    managed_save()
    managed_restore()
    predicted = managed_save(check=True)["predicted"]
    assert predicted["save_seconds"] > 0
    assert predicted["restore_seconds"] > 0


def test_one_that_cannot_be_saved_keeps_all_from_being_touched(guests, save_dir, managed_save):
    path = save_dir / f"{NAMES[1]}.save"
    path.write_bytes(b"of somebody else")
    result = managed_save()
    assert result["failed"]
    assert result["msg"].startswith(f"{NAMES[1]}: ")
    assert "No VM was touched" in result["msg"]
    assert result["error"] == "HostRunError"
    assert states(result)[NAMES[1]] == "failed"
    assert path.read_bytes() == b"of somebody else"
    assert files(save_dir) == [path.name]
    assert [run_state(guest) for guest in guests.values()] == ["running"] * 3


def test_continue_saves_the_others_and_names_what_runs_on(guests, save_dir, managed_save):
    (save_dir / f"{NAMES[1]}.save").write_bytes(b"of somebody else")
    result = managed_save(on_error="continue")
    assert not result.get("failed"), result["msg"]
    assert states(result) == {NAMES[0]: "saved", NAMES[1]: "failed", NAMES[2]: "saved"}
    assert result["msg"].endswith("; 1 VM could not be saved")
    assert [vm["name"] for vm in result["unsaved"] if vm["name"] in NAMES] == [NAMES[1]]
    assert run_state(guests[NAMES[1]]) == "running"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_images_that_fit_alone_must_fit_together(guests, small_disk, managed_save):
    result = managed_save(save_dir=str(small_disk))
    assert result["failed"]
    assert "the images of 3 VMs may take" in result["msg"]
    assert "MiB are missing" in result["msg"]
    assert os.listdir(small_disk) == []
    assert [run_state(guest) for guest in guests.values()] == ["running"] * 3


@pytest.mark.parametrize("on_error", ["rollback", "stop", "continue"])
def test_a_save_that_fails_in_the_middle(make_guest, save_dir, start_module, on_error):
    """One VM is saved at once, another is killed while it is saved, a third has to wait for its turn."""
    guests = {name: make_guest(name, memory_mib=256, block_mib=128) for name in NAMES}
    continuities = {name: Continuity(guests[name]) for name in (NAMES[0], NAMES[2])}
    run = start_module(
        "qemu_managed_save",
        vms=NAMES,
        save_dir=str(save_dir),
        parallel=1,
        on_error=on_error,
        by_vm={NAMES[1]: SLOW},
    )
    wait_until(lambda: any(name.startswith(f".{NAMES[1]}") for name in os.listdir(save_dir)), timeout=60)
    os.kill(guests[NAMES[1]].pid, signal.SIGKILL)
    result = run.result()
    assert result["failed"]
    assert NAMES[1] in result["msg"]
    third = "saved" if on_error == "continue" else "skipped"
    first = "restored" if on_error == "rollback" else "saved"
    assert states(result) == {NAMES[0]: first, NAMES[1]: "failed", NAMES[2]: third}
    if on_error == "rollback":
        assert f"The 1 VM that was saved before was put back. {NAMES[1]} itself has ended" in result["msg"]
        assert "as it was" not in result["msg"]
        assert files(save_dir) == []
        for continuity in continuities.values():
            continuity.check()
    else:
        saved = [name for name, state in states(result).items() if state == "saved"]
        assert files(save_dir) == images_of(*saved)


def test_host_is_as_it_was_where_the_guest_of_the_failed_save_goes_on(make_guest, save_dir, managed_save):
    guests = [make_guest(name, memory_mib=256, block_mib=128) for name in NAMES[:2]]
    continuities = [Continuity(guest) for guest in guests]
    slow = {**SLOW, "timeout": 10}
    result = managed_save(vms=NAMES[:2], parallel=1, by_vm={NAMES[1]: slow})
    assert result["failed"]
    assert states(result) == {NAMES[0]: "restored", NAMES[1]: "failed"}
    assert "The 1 VM that was saved before was put back, the host is as it was" in result["msg"]
    assert files(save_dir) == []
    for continuity in continuities:
        continuity.check()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_interrupted_run_puts_all_back(make_guest, save_dir, start_module, number):
    guests = {name: make_guest(name, memory_mib=256, block_mib=128) for name in NAMES}
    continuities = [Continuity(guest) for guest in guests.values()]
    run = start_module(
        "qemu_managed_save", vms=NAMES, save_dir=str(save_dir), parallel=2, by_vm=dict.fromkeys(NAMES[1:], SLOW)
    )
    first = save_dir / f"{NAMES[0]}.save"
    wait_until(lambda: first.exists() and any(name.startswith(".") for name in os.listdir(save_dir)), timeout=60)
    run.process.send_signal(number)
    run.process.send_signal(number)
    result = run.result()
    assert result["failed"]
    assert states(result) == {NAMES[0]: "restored", NAMES[1]: "failed", NAMES[2]: states(result)[NAMES[2]]}
    assert "was interrupted by a signal" in result["msg"]
    assert files(save_dir) == []
    for continuity in continuities:
        continuity.check()


def test_run_that_is_killed_is_gone_on_with(make_guest, save_dir, start_module, managed_save, managed_restore):
    guests = {name: make_guest(name, memory_mib=256, block_mib=128) for name in NAMES}
    continuities = [Continuity(guest) for guest in guests.values()]
    run = start_module("qemu_managed_save", vms=NAMES, save_dir=str(save_dir), parallel=2, by_vm={NAMES[1]: SLOW})
    wait_until((save_dir / f"{NAMES[0]}.save").exists, timeout=60)
    run.process.kill()
    run.process.communicate()
    result = managed_save()
    assert not result.get("failed"), result["msg"]
    assert set(states(result).values()) == {"saved"}
    assert files(save_dir) == images_of(*NAMES)
    assert set(states(managed_restore()).values()) == {"restored"}
    for continuity in continuities:
        continuity.check()


def test_vm_that_is_started_anew_before_its_turn_is_saved(make_guest, save_dir, start_module, managed_restore):
    """What was found at the begin has ended by then, and runs again as another process."""
    guests = {name: make_guest(name, memory_mib=256, block_mib=128) for name in NAMES}
    run = start_module("qemu_managed_save", vms=NAMES, save_dir=str(save_dir), parallel=1, by_vm={NAMES[0]: SLOW})
    wait_until(lambda: any(name.startswith(f".{NAMES[0]}") for name in os.listdir(save_dir)), timeout=60)
    last = guests[NAMES[2]]
    before = last.pid
    last.end()
    last.start()
    assert before != last.pid
    result = run.result()
    assert not result.get("failed"), result["msg"]
    assert states(result) == dict.fromkeys(NAMES, "saved")
    assert set(states(managed_restore()).values()) == {"restored"}
    last.wait_restarted()
    assert last.boots() == 2, "it goes on with the second"


def test_guest_that_is_gone_is_named_and_keeps_none_from_being_saved(make_guest, save_dir, run_module):
    """Its QEMU is still there, as it was asked for (-no-shutdown)."""
    gone = make_guest(NAMES[0], block_mib=2, observer=True, extra_args=["-no-shutdown"])
    guest = make_guest(NAMES[1], block_mib=2, observer=True)
    with Monitor(gone.observer_socket) as monitor:
        monitor.execute("system_powerdown")
    wait_until(lambda: run_state(gone) == "shutdown")
    for check in (True, False):
        # Others' guests, which run beside these, are left alone.
        result = run_module("qemu_managed_save", check=check, save_dir=str(save_dir), include=[f"*-{os.getpid()}"])
        assert not result.get("failed"), result["msg"]
        assert set(states(result)) == {guest.name}
        (unsaved_vm,) = (vm for vm in result["unsaved"] if vm["pid"] == gone.pid)
        assert unsaved_vm["fate"] == "no guest"
        assert "there is nothing to save" in unsaved_vm["reason"]
    assert files(save_dir) == images_of(guest.name)
    assert run_state(gone) == "shutdown"
    asked = run_module("qemu_managed_save", vms=[gone.name], save_dir=str(save_dir))
    assert asked["failed"], "it was asked for by its name"


def test_what_is_left_out_is_named_or_refused(guests, save_dir, managed_save):
    result = managed_save(exclude=["web*"], check=True)
    assert states(result) == {NAMES[0]: "predicted"}
    ours = {vm["name"]: vm for vm in result["unsaved"] if vm["name"] in NAMES}
    assert sorted(ours) == sorted(NAMES[1:])
    assert ours[NAMES[1]]["pid"] == guests[NAMES[1]].pid
    refused = managed_save(exclude=["web*"], unsaved="fail")
    assert refused["failed"]
    assert f"{NAMES[1]} (pid {guests[NAMES[1]].pid}) runs here and would not be saved" in refused["msg"]
    assert run_state(guests[NAMES[0]]) == "running"
    saved = managed_save(vms=NAMES[:1])
    assert not saved.get("failed"), saved["msg"]
    assert {vm["fate"] for vm in saved["unsaved"] if vm["name"] in NAMES} == {"ignored"}
    assert [run_state(guests[name]) for name in NAMES[1:]] == ["running"] * 2
    assert saved["msg"].startswith("1 VM was saved in ")
    assert "shut down" not in saved["msg"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"by_vm": {"web1": {"timout": 5}}}, "timout"),
        ({"by_vm": {"web1": {"live": "perhaps"}}}, "live"),
        ({"by_vm": {"web1": "live"}}, "no dictionary of options for web1"),
        ({"by_vm": {"web1": {"mode": "0644"}}}, "mode 0o644 would let every user"),
        ({"parallel": 0}, "parallel is 0"),
        ({"after_save": "explode"}, "after_save"),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_name(managed_save, options, words):
    result = managed_save(vms=["no-such-vm"], **options)
    assert result["failed"]
    assert words in result["msg"]


def test_name_that_does_not_run(managed_save):
    result = managed_save(vms=[f"none-{os.getpid()}"])
    assert result["failed"]
    assert f"No running QEMU is named none-{os.getpid()}" in result["msg"]
