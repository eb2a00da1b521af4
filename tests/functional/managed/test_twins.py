# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""VMs of one name, and VMs without one, in a run over a host: each is one, and comes back as what it was."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from support import CounterGuest
from support.counter import NamelessGuest
from support.observe import Continuity, run_state, wait_until

from .conftest import files, states

NAME = f"twin-{os.getpid()}"
OTHER = f"single-{os.getpid()}"
UUIDS = [str(uuid.uuid4()) for _number in range(3)]


@pytest.fixture
def make_twins(make_guest: Callable[..., CounterGuest]) -> Callable[..., list[CounterGuest]]:
    """Make two VMs of one name, which have a uuid or not."""

    def make(with_uuid: bool = True, **options: Any) -> list[CounterGuest]:
        options = {"block_mib": 2, "observer": True, **options}
        return [make_guest(NAME, uuid=UUIDS[number] if with_uuid else None, **options) for number in range(2)]

    return make


def own_names(result: Any) -> list[str]:
    return sorted(vm["name"] for vm in result["vms"])


@pytest.mark.parametrize("with_uuid", [True, False], ids=["uuid", "no uuid"])
def test_both_are_saved_and_restored(make_twins, save_dir, managed_save, managed_restore, with_uuid):
    continuities = [Continuity(guest) for guest in make_twins(with_uuid)]
    result = managed_save(vms=[NAME])
    assert not result.get("failed"), result["msg"]
    assert set(states(result).values()) == {"saved"}
    names = own_names(result)
    assert len(names) == 2
    assert all(name.startswith(f"{NAME}-") for name in names)
    if with_uuid:
        assert names == sorted(f"{NAME}-{each}" for each in UUIDS[:2])
    assert files(save_dir) == [f"{name}.save" for name in names]
    back = managed_restore()
    assert not back.get("failed"), back["msg"]
    assert own_names(back) == names
    # By these it is known that all that were saved run again.
    assert set(names) <= {vm["own_name"] for vm in back["running"]}
    for continuity in continuities:
        continuity.check()
    assert files(save_dir) == []


@pytest.mark.parametrize("word", ["uuid", "UUID", "own name"])
def test_one_of_them_is_chosen_by_what_it_is_called(make_twins, save_dir, managed_save, managed_restore, word):
    one, other = make_twins()
    called = {"uuid": one.uuid, "UUID": one.uuid.upper(), "own name": f"{NAME}-{one.uuid}"}[word]
    result = managed_save(vms=[called], by_vm={called: {"checksum": True}, UUIDS[2]: {"format": "raw"}})
    assert states(result) == {f"{NAME}-{one.uuid}": "saved"}
    assert result["vms"][0]["image"]["checksum"]
    assert run_state(other) == "running"
    assert [vm["pid"] for vm in result["unsaved"] if vm["name"] == NAME] == [other.pid]
    again = managed_save(vms=[one.uuid])
    assert (again["changed"], states(again)) == (False, {one.uuid: "saved"})
    assert managed_restore(vms=[other.uuid], check=True).get("msg") != "1 VM would be restored"
    assert states(managed_restore(vms=[called])) == {f"{NAME}-{one.uuid}": "restored"}


def test_one_of_them_is_left_out(make_twins, save_dir, run_module, managed_save):
    one, other = make_twins()
    result = managed_save(vms=[NAME], exclude=[one.uuid], check=True)
    assert own_names(result) == [f"{NAME}-{other.uuid}"]
    # A UUID is no pattern.
    assert len(managed_save(vms=[NAME], exclude=[f"{one.uuid[:8]}*"], check=True)["vms"]) == 2


def test_save_that_fails_puts_the_twin_back(make_twins, make_guest, save_dir, start_module):
    guests = make_twins(memory_mib=256, block_mib=128)
    ended = make_guest(OTHER, memory_mib=256, block_mib=128)
    continuities = [Continuity(guest) for guest in guests]
    run = start_module(
        "qemu_managed_save",
        vms=[NAME, OTHER],
        save_dir=str(save_dir),
        parallel=1,
        by_vm={OTHER: {"bandwidth": "2M", "parallel_channels": 1}},
    )
    wait_until(lambda: any(name.startswith(f".{OTHER}") for name in os.listdir(save_dir)), timeout=60)
    os.kill(ended.pid, signal.SIGKILL)
    result = run.result()
    assert result["failed"]
    assert [states(result)[f"{NAME}-{guest.uuid}"] for guest in guests] == ["restored"] * 2, result["msg"]
    for continuity in continuities:
        continuity.check()


def test_run_that_is_killed_is_gone_on_with(make_twins, save_dir, start_module, managed_save, managed_restore):
    """One of them is saved by then: the other has no twin any more, and goes on as what it was begun."""
    guests = make_twins(memory_mib=256, block_mib=128)
    continuities = [Continuity(guest) for guest in guests]
    names = [f"{NAME}-{guest.uuid}" for guest in guests]
    slow = {guests[1].uuid: {"bandwidth": "2M", "parallel_channels": 1}}
    run = start_module("qemu_managed_save", vms=[NAME], save_dir=str(save_dir), parallel=2, by_vm=slow)
    guests[0].wait_exit(60)
    wait_until(lambda: any(name.startswith(f".{names[1]}") for name in os.listdir(save_dir)), timeout=60)
    run.process.kill()
    run.process.communicate()
    result = managed_save(vms=[NAME])
    assert states(result) == {NAME: "saved"}, result["msg"]
    assert files(save_dir) == sorted(f"{name}.save" for name in names)
    assert states(managed_restore()) == dict.fromkeys(names, "restored")
    for continuity in continuities:
        continuity.check()


def test_vms_that_nothing_tells_apart_are_an_error(make_guest, save_dir, managed_save):
    guests = [make_guest(NAME, uuid=UUIDS[0], block_mib=2, observer=True) for _number in range(2)]
    result = managed_save(vms=[NAME])
    assert result["failed"]
    assert f"2 running QEMUs are named {NAME}" in result["msg"]
    assert all(f"pid {guest.pid} of the user" in result["msg"] for guest in guests)
    assert files(save_dir) == []
    assert [run_state(guest) for guest in guests] == ["running"] * 2


def test_vm_without_a_name(tmp_path, save_dir, managed_save, managed_restore, vouching_key):
    guest = NamelessGuest(tmp_path / "nameless", NAME, uuid=UUIDS[0], block_mib=2, observer=True)
    guest.start()
    try:
        continuity = Continuity(guest)
        result = managed_save(vms=[UUIDS[0]], by_vm={UUIDS[0]: {"checksum": True}})
        assert states(result) == {UUIDS[0]: "saved"}, result["msg"]
        assert result["vms"][0]["image"]["checksum"]
        assert files(save_dir) == [f"{UUIDS[0]}.save"]
        back = managed_restore()
        assert states(back) == {UUIDS[0]: "restored"}, back["msg"]
        assert UUIDS[0] in {vm["own_name"] for vm in back["running"]}
        continuity.check()
    finally:
        guest.adopt_restarted()
        guest.close()
