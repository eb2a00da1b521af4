# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a failed task says of guest and image in words, for each kind of end that the tests of faults do not make."""

from __future__ import annotations

import contextlib
import os

import pytest

from support import Monitor
from support.monitor_proxy import AFTER, BEFORE, Fault, MonitorProxy, Step
from support.observe import OTHER_VM, VM, Continuity, run_state, wait_until, words

#: Another user's QEMU that cannot be looked at keeps it from being known that a VM does not run.
NOT_RUNNING = ("ended", "unknown")


@pytest.mark.parametrize(
    ("there", "word"), [("", "absent"), ("LibvirtQemudPart", "partial"), ("no image at all", "unknown")]
)
@pytest.mark.parametrize("module", ["qemu_restore", "qemu_save"])
def test_nothing_runs_and_there_is_no_whole_image(save, guest, image, run_module, module, there, word):
    if there:
        save(name=VM, path=str(image))
        guest.wait_exit()
        with image.open("r+b") as handle:
            handle.write(there.encode())
    else:
        guest.end()
    result = run_module(module, name=VM, path=str(image))
    assert result["failed"]
    assert result["guest"] in NOT_RUNNING
    assert result["image"] == {"state": word}


def test_the_image_was_archived(save, guest, image, run_module):
    save(name=VM, path=str(image))
    guest.wait_exit()
    assert not run_module("qemu_save_image", path=str(image), archive="gzip").get("failed")
    result = run_module("qemu_restore", name=VM, path=str(image))
    assert result["error"] == "ImageNotFoundError"
    assert result["guest"] in NOT_RUNNING
    assert result["image"]["state"] == "archived"


def test_the_image_is_of_a_vm_that_went_on_and_ended(save, guest, image, run_module):
    save(name=VM, path=str(image), after_save="resume")
    guest.end()
    result = run_module("qemu_save", name=VM, path=str(image))
    assert result["error"] == "VmNotFoundError"
    assert result["guest"] in NOT_RUNNING
    assert result["image"]["state"] == "complete"


def test_the_image_is_of_another_vm(save, guest, image, run_module):
    save(name=VM, path=str(image))
    guest.wait_exit()
    result = run_module("qemu_save", name=OTHER_VM, path=str(image))
    assert result["guest"] in NOT_RUNNING
    assert result["image"]["state"] == "complete"
    result = run_module("qemu_restore", name=OTHER_VM, path=str(image))
    assert words(result) == ("unknown", "kept")


def test_the_vm_runs_beside_its_image(save, guest, image, run_module):
    save(name=VM, path=str(image))
    guest.wait_exit()
    guest.start()
    for module, word in (("qemu_save", "complete"), ("qemu_restore", "kept")):
        result = run_module(module, name=VM, path=str(image))
        assert result["error"] == "ConflictError"
        assert words(result) == ("running", word)


def test_another_vm_answers_at_the_socket(guest, image, run_module):
    """What that one does says nothing of the VM that is meant."""
    result = run_module("qemu_save", name=OTHER_VM, qmp_socket=str(guest.qmp_socket), path=str(image))
    assert result["error"] == "MismatchError"
    assert words(result) == ("unknown", "absent")


def test_a_monitor_that_another_client_holds(guest, image, run_module):
    with Monitor(guest.qmp_socket):
        result = run_module("qemu_save", qmp_socket=str(guest.qmp_socket), path=str(image))
    assert result["error"] == "MonitorBusyError"
    assert words(result) == ("unknown", "absent")


def test_a_paused_guest_stays_paused(make_guest, image, run_module):
    guest = make_guest(memory_mib=256, block_mib=128, observer=True)
    with Monitor(guest.observer_socket) as monitor:
        monitor.execute("stop")
    result = run_module("qemu_save", name=VM, path=str(image), bandwidth="2M", timeout=1.5)
    assert result["error"] == "OperationTimeoutError"
    assert words(result) == ("paused", "absent")
    assert run_state(guest) == "paused"


def test_the_qemu_of_an_adopted_save_ends(make_guest, image, start_module):
    guest = make_guest(memory_mib=512, block_mib=256, observer=True)
    options = {"name": VM, "path": str(image), "bandwidth": "16M"}
    first = start_module("qemu_save", **options)
    wait_until(lambda: is_saving(guest))
    first.process.kill()
    first.process.communicate()
    second = start_module("qemu_save", **options)
    wait_until(lambda: has_open_partial(second.process.pid))
    guest.end()
    result = second.result()
    assert result["error"] == "MonitorLostError"
    assert words(result) == ("ended", "absent")
    assert os.listdir(image.parent) == []


def has_open_partial(pid):
    place = f"/proc/{pid}/fd"
    with contextlib.suppress(FileNotFoundError):  # it opens and closes others meanwhile
        return any(os.readlink(f"{place}/{number}").endswith(".partial") for number in os.listdir(place))
    return False


def is_saving(guest):
    with Monitor(guest.observer_socket) as monitor:
        return monitor.execute("query-migrate").get("status") == "active"


def test_the_guest_runs_and_its_image_is_gone_when_qemu_is_lost(save, guest, image, run_module, tmp_path):
    """The restore's note cannot be taken out of QEMU any more; that is left to the next run."""
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    guest.wait_exit()
    guest.start(incoming=True)
    faults = [Fault(Step("remove-fd", 1), BEFORE, "cut for good")]
    with MonitorProxy(tmp_path / "proxy.sock", guest.qmp_socket, lambda: guest.pid, faults):
        result = run_module("qemu_restore", name=VM, path=str(image), qmp_socket=str(tmp_path / "proxy.sock"))
    assert result["failed"]
    assert words(result) == ("running", "removed")
    assert run_state(guest) == "running"
    continuity.check()


def test_the_end_of_qemu_counts_and_not_that_of_its_connection(save, guest, image, restore, tmp_path):
    """What stands between them keeps it open."""
    continuity = Continuity(guest)
    faults = [Fault(Step("quit", 1), AFTER, "hang")]
    with MonitorProxy(tmp_path / "proxy.sock", guest.qmp_socket, lambda: guest.pid, faults):
        saved = save(qmp_socket=str(tmp_path / "proxy.sock"), path=str(image))
    assert saved["vm"]["run_state"] == "ended"
    assert saved["duration"] < 30
    guest.wait_exit()
    restore(name=VM, path=str(image))
    continuity.check()


def test_the_qemu_of_a_save_that_has_touched_nothing_ends_unseen(guest, image, start_module, tmp_path):
    """What it last said of its guest is not what is told when the time is up."""
    fault = Fault(Step("query-migrate-parameters", 1), BEFORE, "hang")
    socket = tmp_path / "proxy.sock"
    with MonitorProxy(socket, guest.qmp_socket, lambda: guest.pid, [fault]) as proxy:
        run = start_module("qemu_save", qmp_socket=str(socket), path=str(image), timeout=5)
        wait_until(lambda: fault in proxy.done)
        guest.end()
        result = run.result()
    assert result["error"] == "OperationTimeoutError"
    assert words(result) == ("ended", "absent")


def test_modules_that_look_for_no_guest(save, guest, image, run_module):
    result = run_module("qemu_save_image", path=str(image), vm_state="paused")
    assert words(result) == ("unknown", "absent")
    save(name=VM, path=str(image))
    result = run_module("qemu_save_image", path=str(image), name=OTHER_VM, vm_state="paused")
    assert words(result) == ("unknown", "complete")
    result = run_module("qemu_save_image_info", path=str(image), name=OTHER_VM)
    assert words(result) == ("unknown", "complete")
