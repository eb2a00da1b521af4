# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""VMs that were asked to shut down, and what is kept of them: who is started again from its disks, and who is not.

Only one whose end was seen, which has no later state in an image, and whose older image nobody restores instead. The
runs are those of this file's guests alone, and what is kept is in a directory of the test's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    BusyError,
    ConflictError,
    HostRunError,
    InterruptedOperationError,
    OperationTimeoutError,
)
from ansible_collections.vmops.qemu.plugins.module_utils._host.choice import HostRestoreRequest
from ansible_collections.vmops.qemu.plugins.module_utils._host.info import shut_down_problems
from ansible_collections.vmops.qemu.plugins.module_utils._host.restore import HostRestoreOperation
from ansible_collections.vmops.qemu.plugins.module_utils._host.turns import Turns
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_lock import image_lock
from ansible_collections.vmops.qemu.plugins.module_utils._image.info import directory_info
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.lock import vm_lock
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import find_processes, list_processes
from ansible_collections.vmops.qemu.plugins.module_utils._shutdown import record
from ansible_collections.vmops.qemu.plugins.module_utils._shutdown.operation import ShutdownOperation
from ansible_collections.vmops.qemu.plugins.module_utils._shutdown.record import read_all
from ansible_collections.vmops.qemu.plugins.module_utils._shutdown.start import StartOperation

from support import find_qemu_pids
from support.observe import VM, Continuity, wait_until


@pytest.fixture(autouse=True)
def nothing_kept(tmp_path, monkeypatch):
    """What is kept is kept in a directory of this test; the key that vouches for images is this user's."""
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    monkeypatch.setattr(record, "state_path", lambda name: str(state / name))


@pytest.fixture
def guest(make_guest):
    return make_guest(observer=True, block_mib=2)


@pytest.fixture
def deaf(guest):
    """It does not answer its power button."""
    guest.command(b"i", "^button=off counter=")
    return guest


def shut_down(name=VM, timeout=30.0):
    (process,) = find_processes(name)
    return asyncio.run(ShutdownOperation(process, timeout).run())


def shut_down_in_vain():
    with pytest.raises(OperationTimeoutError):
        shut_down(timeout=0.5)


def start(directory, check_mode=False):
    (kept,) = read_all()
    return asyncio.run(StartOperation(kept, str(directory), check_mode).run())


def pending():
    """The kinds of what the host's doctor tells of this test's VMs."""
    return [problem.kind for problem in shut_down_problems(list_processes(), [])]


class Quiet:
    """A journal that keeps what it is told."""

    def __init__(self):
        self.told = []

    def say(self, text):
        self.told.append(text)

    complain = say


def restore_all(directory, check_mode=False):
    """A run over all images of the directory, and all that is kept in this test; its result, and its error."""
    common = {"timeout": 60, "health_check": [], "health_check_timeout": 0}
    request = HostRestoreRequest(
        save_dir=str(directory), vms=[], include=["*"], exclude=[], images="all", order=[], parallel=2, common=common,
        by_vm={}, check_mode=check_mode,
    )  # fmt: skip
    try:
        return asyncio.run(HostRestoreOperation(request, Quiet()).run()), None
    except HostRunError as error:
        return error.result, error


# --- which QEMU was asked, and whether its end was seen ---------------------------------------------------------------


def test_one_whose_end_was_seen_is_started_again(guest, tmp_path):
    assert shut_down()["changed"]
    (kept,) = read_all()
    assert (kept.ended, kept.pid, bool(kept.birth), bool(kept.boot_id)) == (True, guest.pid, True, True)
    assert pending() == ["shut_down"]
    assert start(tmp_path / "none", check_mode=True)["changed"]
    assert start(tmp_path / "none")["changed"]
    assert (read_all(), pending()) == ([], [])
    guest.wait_restarted()
    wait_until(lambda: guest.boots() == 2)


def test_one_that_goes_off_when_the_run_is_over_is_named_and_not_started(deaf, tmp_path):
    """By then it may have been shut down for good, or run on another host: nothing here can tell."""
    shut_down_in_vain()
    assert not read_all()[0].ended
    result = start(tmp_path)
    assert not result["changed"]
    assert result["msg"] == f"{VM} was asked to shut down and still runs"
    assert read_all()[0].path in result["warnings"][0]
    assert pending() == ["shutdown_pending"]
    deaf.power_off()
    (kept,) = read_all()
    assert pending() == ["shut_down"]
    for check_mode in (True, False):
        with pytest.raises(ConflictError, match="has not seen its end") as raised:
            start(tmp_path, check_mode)
        assert kept.path in raised.value.cure
    assert not find_qemu_pids(VM)
    assert read_all() == [kept]
    result, error = restore_all(tmp_path)
    assert error
    assert result["failures"] == [VM]
    # Whoever starts it by hand has decided.
    deaf.start()
    assert start(tmp_path)["msg"] == f"{VM} runs already"
    assert read_all() == []


def test_one_that_goes_off_while_the_run_gives_up_is_started_again(deaf, tmp_path):
    (process,) = find_processes(VM)

    async def interrupt():
        turns, operation = Turns(1), ShutdownOperation(process, 60)
        run = asyncio.ensure_future(turns.take(lambda: operation, 60))
        while "was asked" not in operation.situation.sentence:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        deaf.end()
        turns.stop("a signal")
        with contextlib.suppress(InterruptedOperationError):  # or its end was seen first
            await run

    asyncio.run(interrupt())
    (kept,) = read_all()
    assert kept.ended
    assert start(tmp_path)["changed"]


def test_one_of_another_boot_is_not_the_same_qemu(deaf, tmp_path, monkeypatch):
    shut_down_in_vain()
    monkeypatch.setattr(record, "boot_id", lambda: "another")
    # After a reboot, another QEMU has the same pid, and was started as long after it.
    assert pending() == []
    assert start(tmp_path)["msg"] == f"{VM} runs already"
    assert read_all() == []


def test_qemu_that_another_run_works_on_is_waited_for(guest, make_guest, tmp_path):
    """It may wait for a state that cannot be loaded, and end with that."""
    shut_down()
    guest.start(incoming=True)
    (process,) = find_processes(VM)
    with vm_lock(process), pytest.raises(BusyError):
        start(tmp_path)
    assert len(read_all()) == 1


# --- the VM's name ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [f"cust/web1-{os.getpid()}", ".."])
def test_name_that_no_file_can_have(make_guest, tmp_path, name):
    guest = make_guest(extra_args=["-name", f"guest={name}"], observer=True, block_mib=2)
    (process,) = (process for process in find_processes(name) if process.pid == guest.pid)
    assert asyncio.run(ShutdownOperation(process, 30).run())["changed"]
    assert start(tmp_path)["changed"]
    guest.wait_restarted()
    wait_until(lambda: guest.boots() == 2)
    assert read_all() == []


# --- beside an image --------------------------------------------------------------------------------------------------


def test_older_image_is_left_alone(guest, image, save, restore):
    """On block devices nothing else tells that the VM ran on."""
    save(name=VM, path=str(image))
    older = image.parent.with_name("older")  # out of sight of the restore, which would mark it
    shutil.copyfile(image, older)
    restore(name=VM, path=str(image))
    guest.wait_restarted()
    shut_down()
    older.rename(image)
    image.chmod(0o600)
    result, error = restore_all(image.parent)
    assert error is None
    assert [(left["path"], left["why"][: len(VM) + 7]) for left in result["left_alone"]] == [
        (str(image), f"{VM} ran on")
    ]
    assert [vm["changed"] for vm in result["started"]] == [True]
    guest.wait_restarted()
    wait_until(lambda: guest.boots() == 2)
    assert image.exists()


@pytest.mark.parametrize("name", [None, "own"])
def test_later_image_is_restored_instead(guest, image, save, name):
    """Under whichever name it lies there."""
    shut_down()
    guest.start()
    guest.wait_for_counter(5)
    path = image.with_name(f"{name}.save") if name else image
    continuity = Continuity(guest)
    boots = guest.boots()
    save(name=VM, path=str(path))
    plan, error = restore_all(path.parent, check_mode=True)
    assert error is None
    assert (plan["started"], len(read_all())) == ([], 1)
    result, error = restore_all(path.parent)
    assert error is None
    assert [vm["state"] for vm in result["vms"]] == ["restored"]
    assert (result["started"], read_all()) == ([], [])
    guest.wait_restarted()
    assert guest.boots() == boots
    assert guest.checksum() == continuity.checksum


def as_it_is(path, _run_module):
    return path


def archived(path, run_module):
    path = path.rename(path.with_name(f"{VM}.save"))
    result = run_module("qemu_save_image", path=str(path), archive="gzip")
    assert not result.get("failed"), result["msg"]
    (archive,) = path.parent.iterdir()
    return archive


def with_two_names(path, _run_module):
    os.link(path, path.with_name("another.save"))
    return path.with_name("another.save")


def linked_to(path, _run_module):
    path.with_name(f"{VM}.save").symlink_to(path)
    return path


@pytest.mark.parametrize("change", [as_it_is, archived, with_two_names, linked_to])
def test_start_alone_sees_the_later_image_too(guest, image, save, run_module, change):
    shut_down()
    guest.start()
    guest.wait_for_counter(5)
    path = image.with_name("own.save")
    save(name=VM, path=str(path))
    path = change(path, run_module)
    assert not shut_down_problems([], directory_info(str(path.parent)))
    assert start(path.parent)["msg"] == f"{VM} was saved in {path} since"
    assert not find_qemu_pids(VM)
    assert read_all() == []


def no_image(path):
    path.write_bytes(b"of somebody else")


def cut_off(path):
    os.truncate(path, 200)


def partial(path):
    path.write_bytes(b"LibvirtQemudPart" + path.read_bytes()[16:])


def linked(path):
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")
    cut_off(path)


@pytest.mark.parametrize("spoil", [no_image, cut_off, partial, linked])
def test_image_of_which_nothing_is_known_keeps_it_from_its_disks(guest, image, save, spoil):
    shut_down()
    guest.start()
    guest.wait_for_counter(5)
    path = image.with_name(f"{VM}.save")
    save(name=VM, path=str(path))
    spoil(path)
    (kept,) = read_all()
    for check_mode in (True, False):
        with pytest.raises(ConflictError, match="may have a later state") as raised:
            start(path.parent, check_mode)
        assert str(path) in raised.value.what
        assert kept.path in raised.value.cure
    result, error = restore_all(path.parent)
    assert error
    assert VM in result["failures"]
    assert not find_qemu_pids(VM)
    assert read_all() == [kept]
    path.unlink()
    assert start(path.parent)["changed"]


def test_image_that_another_run_works_on_is_waited_for(guest, image, save, restore):
    save(name=VM, path=str(image), after_save="resume")
    shut_down()
    with image_lock(str(image)), pytest.raises(BusyError):
        start(image.parent)
    assert len(read_all()) == 1
