# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which VM is meant: chosen by name, uuid, unit, pid or socket, with a name, without one, or beside one of its name."""

from __future__ import annotations

import os
import re
import subprocess
import uuid as uuids
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support import CounterGuest
from support.counter import NamelessGuest
from support.module_run import Result, check_error
from support.observe import OTHER_VM, VM, Continuity, run_state, wait_until

Run = Callable[..., Result]

SLOW = {"bandwidth": "2M", "parallel_channels": 1}


@pytest.fixture
def make_nameless(tmp_path: Path, vouching_key: None) -> Iterator[Callable[..., NamelessGuest]]:
    guests: list[NamelessGuest] = []

    def make(**options: Any) -> NamelessGuest:
        guests.append(NamelessGuest(tmp_path / f"nameless-{len(guests)}", VM, block_mib=8, observer=True, **options))
        guests[-1].start()
        return guests[-1]

    yield make
    for guest in guests:
        guest.adopt_restarted()
        guest.close()


@pytest.fixture
def twins(make_guest: Callable[..., CounterGuest]) -> list[CounterGuest]:
    """Two VMs of one name, each with a uuid."""
    return [make_guest(f"twin-{VM}", uuid=new_uuid(), observer=True) for _number in range(2)]


def new_uuid() -> str:
    return str(uuids.uuid4())


def check_listed(msg: str, *said: str) -> None:
    """The VMs that run are told, these among them; of a host with many, which others' tests make of it, only some."""
    assert "Those that run: " in msg
    assert all(text in msg for text in said) or re.search(r" and \d+ more\b", msg), msg


# --- by all that there is ---


@pytest.mark.parametrize("way", ["name", "uuid", "UUID", "pid", "socket", "name and uuid", "all"])
def test_vm_is_saved_whatever_it_is_chosen_by(make_guest, image, save, restore, way):
    uuid = new_uuid()
    guest = make_guest(uuid=uuid, observer=True)
    continuity = Continuity(guest)
    options: dict[str, Any] = {
        "name": {"name": VM},
        "uuid": {"uuid": uuid},
        "UUID": {"uuid": uuid.replace("-", "").upper()},
        "pid": {"pid": guest.pid},
        "socket": {"qmp_socket": str(guest.qmp_socket)},
        "name and uuid": {"name": VM, "uuid": uuid},
        "all": {"name": VM, "uuid": uuid, "pid": guest.pid, "qmp_socket": str(guest.observer_socket)},
    }[way]
    saved = save(save_dir=str(image.parent), **options)
    # The only one of its name has it in its image's.
    assert saved["image"]["path"] == str(image.parent / f"{VM}.save")
    assert saved["vm"]["uuid"] == uuid
    guest.wait_exit()
    restored = restore(uuid=uuid, save_dir=str(image.parent))
    assert restored["changed"]
    continuity.check()
    again = restore(uuid=uuid, save_dir=str(image.parent))
    assert (again["changed"], "runs already" in again["msg"]) == (False, True)


def test_second_save_by_uuid_is_unchanged(make_guest, image, save, run_module):
    uuid = new_uuid()
    guest = make_guest(uuid=uuid)
    pid = guest.pid
    path = save(uuid=uuid, path=str(image.parent / "elsewhere.save"))["image"]["path"]
    guest.wait_exit()
    for options in ({"uuid": uuid.upper()}, {"name": VM, "uuid": uuid}, {"uuid": uuid, "path": path}):
        again = save(save_dir=str(image.parent), **options)
        assert (again["changed"], again["image"]["path"]) == (False, path)
    # By what an image does not tell it cannot be known.
    result = run_module("qemu_save", pid=pid, path=path)
    check_error(result, "VmNotFoundError", f"No running QEMU has the pid {pid}", "by which its image is known")
    other = run_module("qemu_save", uuid=new_uuid(), path=path)
    check_error(other, "ConflictError", "holds another VM")


def test_check_mode(make_guest, image, run_module):
    uuid = new_uuid()
    guest = make_guest(uuid=uuid, observer=True)
    result = run_module("qemu_save", uuid=uuid, save_dir=str(image.parent), check=True)
    assert result["changed"], result["msg"]
    assert f"{VM} would be saved in {image.parent / VM}.save" in result["msg"]
    assert run_state(guest) == "running"


# --- what is refused, and what is told then ---


@pytest.mark.parametrize("module", ["qemu_save", "qemu_restore"])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"uuid": "00000000-0000-0000-0000-000000000000"}, "is not the uuid of a VM"),
        ({"uuid": "web1"}, "is not the uuid of a VM"),
        ({"unit": "a/b"}, "is not the name of a systemd unit"),
        ({"pid": 0, "name": VM}, "is not the id of a process"),
    ],
)
def test_what_can_be_no_vm(image, run_module, module, options, said):
    result = run_module(module, save_dir=str(image.parent), **options)
    assert result["error"] == "RequestError", result["msg"]
    assert said in result["msg"]


def test_what_does_not_run_is_told_with_what_does(make_guest, image, run_module):
    guest = make_guest(uuid=new_uuid(), observer=True)
    sleeper = subprocess.Popen(["sleep", "60"])
    gone = subprocess.Popen(["true"])
    gone.wait()
    there = f"{VM} (pid {guest.pid}, uuid {guest.uuid}, "
    try:
        for options in (
            {"uuid": new_uuid()},
            {"unit": f"none-{VM}"},
            {"pid": sleeper.pid},
            {"pid": gone.pid},
            {"name": VM, "uuid": new_uuid()},
            {"name": OTHER_VM, "pid": guest.pid},
        ):
            result = run_module("qemu_save", save_dir=str(image.parent), **options)
            check_error(result, "VmNotFoundError", "No running QEMU ")
            check_listed(result["msg"], there, f"QMP socket {guest.qmp_socket}")
        result = run_module("qemu_restore", name=VM, pid=sleeper.pid, save_dir=str(image.parent))
        check_error(result, "VmNotFoundError", f"No running QEMU has the pid {sleeper.pid}")
        check_listed(result["msg"], there)
    finally:
        sleeper.kill()
        sleeper.wait()
    assert run_state(guest) == "running"


@pytest.mark.parametrize("key", ["uuid", "pid", "unit", "name"])
def test_vm_at_a_socket_must_be_the_one_that_is_meant(make_guest, image, run_module, key):
    guest = make_guest(uuid=new_uuid(), observer=True)
    wrong = {"uuid": new_uuid(), "pid": os.getpid(), "unit": f"none-{VM}.service", "name": OTHER_VM}[key]
    result = run_module("qemu_save", qmp_socket=str(guest.qmp_socket), path=str(image), **{key: wrong})
    check_error(result, "MismatchError", f"not {wrong}", f"Correct {key} or qmp_socket")
    assert run_state(guest) == "running"
    assert not image.exists()


def test_twins_are_told_with_all_by_which_one_is_chosen(twins, image, run_module):
    for module in ("qemu_save", "qemu_restore"):
        result = run_module(module, name=twins[0].name, save_dir=str(image.parent))
        check_error(result, "VmAmbiguousError", f"2 running QEMUs are named {twins[0].name}", "uuid, unit, pid or qmp")
        for guest in twins:
            assert f"pid {guest.pid} of the user" in result["msg"]
            assert f"uuid {guest.uuid}, " in result["msg"]
            assert f"QMP socket {guest.qmp_socket}" in result["msg"]


# --- two of one name ---


@pytest.mark.parametrize("way", ["uuid", "pid", "qmp_socket"])
def test_twins_are_two(twins, image, save, restore, way):
    continuities = [Continuity(guest) for guest in twins]
    paths = []
    for guest in twins:
        chosen = {"uuid": guest.uuid, "pid": guest.pid, "qmp_socket": str(guest.qmp_socket)}[way]
        saved = save(save_dir=str(image.parent), **{way: chosen})
        paths.append(saved["image"]["path"])
        guest.wait_exit()
        assert not save(save_dir=str(image.parent), uuid=guest.uuid)["changed"]
    # The other one is not there any more.
    assert paths == [str(image.parent / f"{twins[0].name}{end}.save") for end in (f"-{twins[0].uuid}", "")]
    for guest in twins:
        assert restore(save_dir=str(image.parent), uuid=guest.uuid)["changed"]
    for continuity in continuities:
        continuity.check()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_twins_without_a_uuid_are_two_by_their_sockets(make_guest, image, save, restore, order):
    """Saved by socket to two paths, and restored by them."""
    guests = [make_guest(f"twin-{VM}", observer=True) for _number in range(2)]
    continuities = [Continuity(guest) for guest in guests]
    paths = [str(image.with_name(f"{number}.save")) for number in range(2)]
    for guest, path in zip(guests, paths):
        save(qmp_socket=str(guest.qmp_socket), path=path)
        guest.wait_exit()
    for number in order:
        assert restore(path=paths[number])["changed"]
    for continuity in continuities:
        continuity.check()


def test_vm_that_runs_beside_its_image_is_no_twin(make_guest, image, save, run_module):
    """Its command has another monitor now, but its disk is the same."""
    disk = image.parent.parent / "disk.raw"
    disk.write_bytes(bytes(1 << 20))
    drive = ["-drive", f"if=none,id=d1,format=raw,file={disk}", "-device", "virtio-blk-pci,drive=d1"]
    guest = make_guest(extra_args=drive, workdir="first")
    save(name=VM, path=str(image))
    guest.wait_exit()
    make_guest(extra_args=drive, workdir="second")
    result = run_module("qemu_restore", path=str(image))
    check_error(result, "ConflictError", "although", "it was not started from")
    assert image.exists()


def test_image_of_one_twin_is_not_replaced_by_the_other(twins, image, save, run_module):
    save(uuid=twins[0].uuid, path=str(image))
    twins[0].wait_exit()
    result = run_module("qemu_save", uuid=twins[1].uuid, path=str(image))
    check_error(result, "ConflictError", "holds another VM", guest="running")
    result = run_module("qemu_restore", uuid=twins[1].uuid, path=str(image))
    check_error(result, "MismatchError", f"holds a VM with the uuid {twins[0].uuid}, not {twins[1].uuid}")


def test_interrupted_save_is_finished_when_the_twin_is_gone(make_guest, image, start_module, save):
    """Its image has the name that it got while there were two."""
    one = make_guest(f"twin-{VM}", uuid=new_uuid(), memory_mib=512, block_mib=256, observer=True)
    other = make_guest(f"twin-{VM}", uuid=new_uuid())
    path = image.parent / f"{one.name}-{one.uuid}.save"
    first = start_module("qemu_save", uuid=one.uuid, save_dir=str(image.parent), **SLOW)
    wait_until(lambda: run_state(one) != "running")
    first.process.kill()
    first.process.communicate()
    other.end()
    saved = save(uuid=one.uuid, save_dir=str(image.parent))
    assert (saved["changed"], saved["image"]["path"]) == (True, str(path))
    assert os.listdir(image.parent) == [path.name]


def test_leftover_of_a_save_that_did_not_come_to_qemu_goes_with_the_next_one(make_guest, image, save):
    """Its run was killed as soon as it had made the file, while there was another VM of the name."""
    guest = make_guest(uuid=new_uuid())
    leftover = image.parent / f".{VM}-{guest.uuid}.save.0123456789abcdef.partial"
    leftover.write_bytes(b"LibvirtQemudPart")
    leftover.chmod(0o600)
    assert save(uuid=guest.uuid, save_dir=str(image.parent))["changed"]
    assert os.listdir(image.parent) == [f"{VM}.save"]


# --- without a name ---


def test_vm_without_a_name_by_its_uuid(make_nameless, image, save, restore, run_module):
    uuid = new_uuid()
    guest = make_nameless(uuid=uuid)
    continuity = Continuity(guest)
    saved = save(uuid=uuid, save_dir=str(image.parent))
    assert saved["image"]["path"] == str(image.parent / f"{uuid}.save")
    assert saved["image"]["name"] == uuid
    guest.wait_exit()
    assert not save(uuid=uuid, save_dir=str(image.parent))["changed"]
    assert restore(uuid=uuid, save_dir=str(image.parent), remove_image=False)["changed"]
    continuity.check()
    again = restore(uuid=uuid, save_dir=str(image.parent))
    assert (again["changed"], "runs already" in again["msg"]) == (False, True)


@pytest.mark.parametrize("way", ["uuid", "pid", "qmp_socket"])
def test_name_that_is_given_names_the_image(make_nameless, image, save, restore, run_module, way):
    guest = make_nameless(**({"uuid": new_uuid()} if way == "uuid" else {}))
    continuity = Continuity(guest)
    name = f"given-{VM}"
    chosen = {"uuid": guest.uuid, "pid": guest.pid, "qmp_socket": str(guest.qmp_socket)}[way]
    saved = save(name=name, save_dir=str(image.parent), **{way: chosen})
    assert (saved["image"]["path"], saved["image"]["name"]) == (str(image.parent / f"{name}.save"), name)
    guest.wait_exit()
    assert not save(name=name, save_dir=str(image.parent))["changed"]
    assert restore(name=name, save_dir=str(image.parent), remove_image=False)["changed"]
    continuity.check()
    # It is known again, though QEMU does not know its name.
    assert not restore(name=name, save_dir=str(image.parent))["changed"]


def test_name_of_another_vm_is_not_given(make_nameless, make_guest, image, run_module):
    guest, other = make_nameless(), make_guest(OTHER_VM)
    result = run_module("qemu_save", name=OTHER_VM, qmp_socket=str(guest.qmp_socket), save_dir=str(image.parent))
    check_error(result, "MismatchError", f"has no name, and {OTHER_VM} is another one (pid {other.pid}")
    assert os.listdir(image.parent) == []
    assert run_state(guest) == "running"


@pytest.mark.skipif(bool(os.path.isdir("/run/systemd/system")), reason="a unit may name it here")
def test_vm_that_nothing_names_needs_a_path(make_nameless, image, save, run_module):
    guest = make_nameless()
    for options in ({"pid": guest.pid}, {"qmp_socket": str(guest.qmp_socket)}):
        result = run_module("qemu_save", save_dir=str(image.parent), **options)
        check_error(result, "RequestError", "no name, uuid or unit of its own", "in path", guest="running")
    assert save(pid=guest.pid, path=str(image), after_save="pause")["changed"]
    # The second run knows the image for its own.
    assert save(qmp_socket=str(guest.qmp_socket), path=str(image))["changed"]
    guest.wait_exit()


def test_vms_without_a_name_are_two_by_their_sockets(make_nameless, image, save, restore):
    guests = [make_nameless() for _number in range(2)]
    continuities = [Continuity(guest) for guest in guests]
    paths = [str(image.with_name(f"{number}.save")) for number in range(2)]
    for guest, path in zip(guests, paths):
        save(qmp_socket=str(guest.qmp_socket), path=path)
        guest.wait_exit()
    for path in paths:
        assert restore(path=path)["changed"]
    for continuity in continuities:
        continuity.check()


# --- a QEMU that waits ---


def test_pid_of_the_qemu_that_waits(make_guest, image, save, restore, run_module):
    guest = make_guest(observer=True)
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    guest.wait_exit()
    guest.start(incoming=True)
    other = make_guest(OTHER_VM)
    result = run_module("qemu_restore", path=str(image), pid=other.pid, launch="attach")
    check_error(result, "MismatchError", f"runs {OTHER_VM}")
    assert restore(path=str(image), pid=guest.pid, launch="attach")["changed"]
    continuity.check()


# --- two runs at once ---


@pytest.mark.parametrize("ways", [("name", "uuid"), ("uuid", "pid"), ("pid", "name"), ("qmp_socket", "uuid")])
def test_runs_on_one_vm_exclude_each_other_however_it_is_chosen(make_guest, image, start_module, ways):
    guest = make_guest(uuid=new_uuid(), memory_mib=512, block_mib=256, observer=True)
    continuity = Continuity(guest)
    by = {"name": VM, "uuid": guest.uuid, "pid": guest.pid, "qmp_socket": str(guest.qmp_socket)}
    places = {"save_dir": str(image.parent)}, {"path": str(image.with_name("other.save"))}
    first = start_module("qemu_save", **{ways[0]: by[ways[0]]}, **places[0], **SLOW)
    wait_until(lambda: run_state(guest) != "running")
    for place in places:
        second = start_module("qemu_save", **{ways[1]: by[ways[1]]}, **place).result()
        assert second["error"] == "BusyError", second["msg"]
        assert f"by another run (pid {first.process.pid})" in second["msg"]
    first.process.terminate()
    assert first.result()["error"] == "InterruptedOperationError"
    assert os.listdir(image.parent) == []
    continuity.check()


# --- what is listed ---


def test_list_is_filtered_by_all_that_there_is(twins, make_guest, run_module):
    other = make_guest(OTHER_VM)
    one, two = twins

    def listed(**options: Any) -> list[int]:
        result = run_module("qemu_vm_info", **options)
        assert not result.get("failed"), result["msg"]
        return sorted(vm["pid"] for vm in result["vms"])

    assert listed(name=[one.name]) == sorted([one.pid, two.pid])
    assert listed(uuid=[one.uuid.upper()]) == [one.pid]
    assert listed(uuid=[one.uuid, two.uuid], pid=[two.pid, other.pid]) == [two.pid]
    assert listed(pid=[two.pid, other.pid]) == sorted([two.pid, other.pid])
    assert listed(qmp_socket=[str(one.qmp_socket), str(other.qmp_socket)], name=[one.name]) == [one.pid]
    result = run_module("qemu_vm_info", uuid=[new_uuid()])
    assert result["vms"] == []
    check_listed(result["msg"], f"{other.name} (pid {other.pid}, ")
    check_error(run_module("qemu_vm_info", unit=["a/b"]), "RequestError", "is not the name of a systemd unit")
