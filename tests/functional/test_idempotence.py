# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is to be done is decided by the image's header and the VM together; each row of the table is a test."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._errors import MonitorLostError
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import monitor as monitor_module

from support import Monitor
from support.observe import OTHER_VM, VM, Continuity, run_state, settings, words


def as_partial(image):
    """Make the image look like one whose save is not finished: another tool's, that writes to the final path."""
    with image.open("r+b") as handle:
        handle.write(b"LibvirtQemudPart")


def contents(image):
    return {name: os.stat(image.parent / name).st_mtime_ns for name in os.listdir(image.parent)}


def test_complete_image_and_vm_not_running(guest, image, save):
    save(name=VM, path=str(image))
    before = contents(image)
    result = save(name=VM, path=str(image))
    assert not result["changed"]
    assert "already saved" in result["msg"]
    assert contents(image) == before


def test_the_same_by_socket(guest, image, save):
    save(qmp_socket=str(guest.qmp_socket), path=str(image))
    assert not save(qmp_socket=str(guest.qmp_socket), path=str(image))["changed"]


def test_complete_image_and_vm_stopped_by_that_save(guest, image, save):
    """A save that was cut off between the rename and the quit: only the quit is missing."""
    save(name=VM, path=str(image), after_save="pause")
    before = contents(image)
    assert not save(name=VM, path=str(image), after_save="pause")["changed"]
    result = save(name=VM, path=str(image))
    assert result["changed"]
    assert "earlier run" in result["msg"]
    assert contents(image) == before
    guest.wait_exit()


def test_vm_stopped_by_another_migration_is_not_taken_for_ours(guest, image, save, run_module):
    save(name=VM, path=str(image), after_save="resume")
    with Monitor(guest.qmp_socket) as monitor:
        monitor.execute("migrate-set-capabilities", {"capabilities": [{"capability": "events", "state": True}]})
        monitor.execute("migrate", {"uri": f"file:{image.parent}/elsewhere"})
        while monitor.wait_event("MIGRATION", 20)["data"]["status"] != "completed":
            pass
    result = run_module("qemu_save", name=VM, path=str(image))
    assert result["error"] == "ConflictError"
    assert run_state(guest) == "postmigrate"


def test_restore_goes_on_with_a_vm_whose_save_was_cut_off(guest, image, save, restore):
    continuity = Continuity(guest)
    save(name=VM, path=str(image), after_save="pause")
    pid = guest.pid
    result = restore(name=VM, path=str(image))
    assert result["changed"]
    assert guest.pid == pid
    assert not image.exists()
    continuity.check()


def test_restore_calls_off_a_live_save_that_goes_on_without_its_run(make_guest, image, start_module, restore):
    """Its guest runs, but would stand still as soon as QEMU has written everything."""
    guest = make_guest(memory_mib=256, block_mib=128, observer=True)
    continuity = Continuity(guest)
    before = settings(guest)
    run = start_module("qemu_save", name=VM, path=str(image), live=True, bandwidth="4M", parallel_channels=1)
    deadline = time.monotonic() + 20
    while not settings(guest)["fdsets"] or settings(guest)["capabilities"] == before["capabilities"]:
        assert time.monotonic() < deadline
    run.process.kill()
    run.process.communicate()
    assert run_state(guest) == "running"
    result = restore(name=VM, path=str(image))
    assert result["changed"]
    assert result["vm"]["run_state"] == "running"
    assert settings(guest) == before
    assert os.listdir(image.parent) == []
    continuity.check()


def test_partial_image_and_vm_running(guest, image, save):
    save(name=VM, path=str(image), after_save="resume")
    as_partial(image)
    result = save(name=VM, path=str(image))
    assert result["changed"]
    assert result["image"]["state"] == "complete"


def test_partial_image_and_vm_not_running(guest, image, save, run_module):
    save(name=VM, path=str(image))
    as_partial(image)
    for module in ("qemu_save", "qemu_restore"):
        result = run_module(module, name=VM, path=str(image))
        assert result["error"] == "ImagePartialError"
        assert image.exists()


def test_complete_image_and_vm_running(guest, image, save, run_module):
    continuity = Continuity(guest)
    save(name=VM, path=str(image), after_save="resume")
    before = contents(image)
    result = run_module("qemu_save", name=VM, path=str(image))
    assert result["error"] == "ConflictError"
    assert str(image) in result["msg"]
    assert "force" in result["cure"]
    assert contents(image) == before
    continuity.check()
    assert save(name=VM, path=str(image), force=True)["changed"]


@pytest.mark.parametrize("running", [True, False])
def test_complete_image_of_another_vm(make_guest, image, save, run_module, running):
    make_guest(VM)
    other = make_guest(OTHER_VM)
    save(name=VM, path=str(image))
    if not running:
        other.end()
    before = contents(image)
    result = run_module("qemu_save", name=OTHER_VM, path=str(image))
    assert result["error"] == "ConflictError"
    assert VM in result["msg"]
    assert contents(image) == before
    if running:
        assert save(name=OTHER_VM, path=str(image), force=True)["image"]["name"] == OTHER_VM


def test_uuid_decides_over_the_name(make_guest, image, save, run_module):
    first = make_guest(VM, uuid="11111111-2222-3333-4444-555555555555")
    save(name=VM, path=str(image))
    first.close()
    make_guest(VM, uuid="11111111-2222-3333-4444-666666666666")
    result = run_module("qemu_save", name=VM, path=str(image))
    assert result["error"] == "ConflictError"
    assert "another VM" in result["msg"]


def test_no_image_and_vm_not_running(image, run_module):
    for module in ("qemu_save", "qemu_restore"):
        result = run_module(module, name=VM, path=str(image))
        assert result["failed"]
        assert VM in result["msg"]


def test_what_is_no_image_is_not_replaced(guest, image, run_module, save):
    image.write_text("my notes")
    result = run_module("qemu_save", name=VM, path=str(image))
    assert result["error"] == "ConflictError"
    assert image.read_text() == "my notes"
    assert run_state(guest) == "running"
    assert save(name=VM, path=str(image), force=True)["changed"]


def test_restore_of_a_vm_that_runs(guest, image, save, restore):
    continuity = Continuity(guest)
    assert not restore(name=VM, path=str(image))["changed"]
    save(name=VM, path=str(image), after_save="resume")
    result = restore(name=VM, path=str(image))
    assert not result["changed"]
    assert "was not used" in result["msg"]
    assert image.exists()
    continuity.check()


def test_check_mode_predicts_and_touches_nothing(guest, image, save, restore, run_module):
    continuity = Continuity(guest)
    before = settings(guest)
    predicted = run_module("qemu_save", name=VM, path=str(image), check=True, diff=True)
    assert predicted["changed"]
    assert predicted["diff"] == {
        "before": {"image": "absent", "vm": "running"},
        "after": {"image": "complete", "vm": "ended"},
    }
    assert os.listdir(image.parent) == []
    assert settings(guest) == before
    assert run_state(guest) == "running"
    done = run_module("qemu_save", name=VM, path=str(image), diff=True)
    assert done["diff"] == predicted["diff"]

    predicted = run_module("qemu_restore", name=VM, path=str(image), check=True, diff=True)
    assert predicted["changed"]
    assert predicted["diff"] == {
        "before": {"image": "complete", "vm": "ended"},
        "after": {"image": "absent", "vm": "running"},
    }
    assert not guest.adopt_restarted()
    done = run_module("qemu_restore", name=VM, path=str(image), diff=True)
    assert done["diff"] == predicted["diff"]
    continuity.check()
    assert not run_module("qemu_restore", name=VM, path=str(image), check=True)["changed"]


def test_check_mode_refuses_what_the_run_would_refuse(guest, image, run_module, tmp_path):
    image.write_text("my notes")
    assert run_module("qemu_save", name=VM, path=str(image), check=True)["error"] == "ConflictError"
    missing = tmp_path / "missing" / "web1.save"
    assert run_module("qemu_save", name=VM, path=str(missing), check=True)["failed"]


def test_check_mode_does_not_make_the_save_directory(guest, tmp_path, run_module):
    result = run_module("qemu_save", name=VM, save_dir=str(tmp_path / "new" / "save"), check=True)
    assert result["changed"]
    assert not (tmp_path / "new").exists()


# --- a run that was killed ---


def killed_save(start_module, guest, image, moment, **options):
    """Start a save and SIGKILL it when C(moment) has come; its partial image and QEMU's note of it stay."""
    run = start_module("qemu_save", name=VM, path=str(image), **options)
    deadline = time.monotonic() + 30
    with Monitor(guest.observer_socket) as monitor:
        while not moment(monitor):
            assert time.monotonic() < deadline
            assert run.process.poll() is None, run.result()
            time.sleep(0.001)
    run.process.kill()
    run.process.communicate()


def writing(monitor):
    return monitor.execute("query-migrate").get("status") == "active"


def written(monitor):
    return monitor.execute("query-status")["status"] == "postmigrate"


def noted(monitor):
    return bool(monitor.execute("query-fdsets"))


@pytest.fixture
def big_guest(make_guest):
    """A guest whose save takes a while."""
    return make_guest(memory_mib=512, block_mib=200, observer=True)


@pytest.mark.parametrize("live", [False, True], ids=["stopped", "live"])
@pytest.mark.parametrize("image_format", ["sparse", "raw"])
def test_partial_image_that_qemu_still_writes_is_adopted(
    big_guest, image, start_module, save, restore, live, image_format
):
    continuity = Continuity(big_guest)
    killed_save(start_module, big_guest, image, writing, bandwidth="40M", format=image_format, live=live)
    assert os.listdir(image.parent) != [image.name]
    result = save(name=VM, path=str(image))
    assert result["changed"]
    assert "earlier run" in result["msg"]
    assert result["image"]["format"] == image_format
    assert os.listdir(image.parent) == [image.name]
    big_guest.wait_exit()
    restore(name=VM, path=str(image))
    continuity.check()


@pytest.mark.parametrize("after_save", ["pause", "resume"])
def test_adopted_save_leaves_qemu_as_the_killed_run_found_it(big_guest, image, start_module, save, after_save):
    continuity = Continuity(big_guest)
    before = settings(big_guest)
    killed_save(start_module, big_guest, image, writing, bandwidth="40M")
    assert settings(big_guest) != before
    save(name=VM, path=str(image), after_save=after_save)
    assert settings(big_guest) == before
    if after_save == "pause":
        with Monitor(big_guest.qmp_socket) as monitor:
            monitor.execute("cont")
    continuity.check()


def test_adopted_save_that_is_interrupted_puts_the_guest_back(big_guest, image, start_module, run_module):
    continuity = Continuity(big_guest)
    before = settings(big_guest)
    killed_save(start_module, big_guest, image, writing, bandwidth="8M")
    result = run_module("qemu_save", name=VM, path=str(image), timeout=1)
    assert result["error"] == "OperationTimeoutError"
    assert words(result) == ("running", "absent")
    assert settings(big_guest) == before
    assert os.listdir(image.parent) == []
    continuity.check()


def test_save_killed_before_qemu_began_is_undone_and_done_again(big_guest, image, start_module, save, restore):
    continuity = Continuity(big_guest)
    before = settings(big_guest)
    # Killed when QEMU holds the note; how far the run comes until the signal arrives differs.
    for _number in range(8):
        killed_save(start_module, big_guest, image, noted, bandwidth="40M")
        save(name=VM, path=str(image), after_save="resume")
        assert settings(big_guest) == before
        assert os.listdir(image.parent) == [image.name]
        image.unlink()
    continuity.check()


def test_restore_after_a_killed_save_lets_the_guest_go_on(big_guest, image, start_module, restore):
    continuity = Continuity(big_guest)
    before = settings(big_guest)
    killed_save(start_module, big_guest, image, writing, bandwidth="16M")
    result = restore(name=VM, path=str(image))
    assert result["changed"]
    assert run_state(big_guest) == "running"
    assert settings(big_guest) == before
    assert os.listdir(image.parent) == []
    continuity.check()


def test_adoption_under_another_path_is_refused(big_guest, image, start_module, run_module):
    killed_save(start_module, big_guest, image, writing, bandwidth="8M")
    result = run_module("qemu_save", name=VM, path=str(image.parent / "other.save"))
    assert result["error"] == "ConflictError"
    assert str(image) in result["msg"]
    predicted = run_module("qemu_save", name=VM, path=str(image), check=True)
    assert predicted["changed"]
    assert "earlier run" in predicted["msg"]
    assert len(os.listdir(image.parent)) == 1


def test_save_whose_partial_image_was_removed_is_begun_anew(big_guest, image, start_module, save, restore):
    continuity = Continuity(big_guest)
    killed_save(start_module, big_guest, image, writing, bandwidth="16M")
    (partial,) = image.parent.iterdir()
    partial.unlink()
    result = save(name=VM, path=str(image))
    assert "earlier run" not in result["msg"]
    restore(name=VM, path=str(image))
    continuity.check()


def test_socket_that_is_misspelt_does_not_make_a_running_vm_a_saved_one(guest, image, save, run_module):
    continuity = Continuity(guest)
    save(name=VM, path=str(image), after_save="resume")
    wrong = str(guest.qmp_socket) + "x"
    for module in ("qemu_save", "qemu_restore"):
        for more in ({}, {"name": VM}):
            result = run_module(module, qmp_socket=wrong, path=str(image), **more)
            assert result["error"] == "MonitorMissingError", result["msg"]
            assert str(guest.qmp_socket) in result["cure"]
    continuity.check()


def test_adopted_save_does_not_replace_another_vms_image(big_guest, make_guest, image, start_module, save, run_module):
    make_guest(OTHER_VM)
    killed_save(start_module, big_guest, image, writing, bandwidth="16M")
    save(name=OTHER_VM, path=str(image))
    before = image.read_bytes()
    result = run_module("qemu_save", name=VM, path=str(image))
    assert result["error"] == "ConflictError"
    assert OTHER_VM in result["msg"]
    assert image.read_bytes() == before


@pytest.mark.parametrize("moment", [writing, written], ids=["writing", "written"])
def test_killed_save_over_a_checkpoint_is_undone_by_a_restore(big_guest, image, start_module, save, restore, moment):
    """The guest in QEMU is the truth, the older image beside it is not."""
    continuity = Continuity(big_guest)
    before = settings(big_guest)
    save(name=VM, path=str(image), after_save="resume")
    old = image.read_bytes()
    bandwidth = {"bandwidth": "40M"} if moment is writing else {}
    killed_save(start_module, big_guest, image, moment, force=True, **bandwidth)
    assert restore(name=VM, path=str(image))["changed"]
    # Killed after the rename, it is the newer image that was done with.
    assert not image.exists() or image.read_bytes() == old
    assert run_state(big_guest) == "running"
    assert settings(big_guest) == before
    continuity.check()


def test_paused_guest_whose_save_was_killed_can_be_saved_again(big_guest, image, start_module, save, restore):
    continuity = Continuity(big_guest)
    with Monitor(big_guest.qmp_socket) as monitor:
        monitor.execute("stop")
    killed_save(start_module, big_guest, image, writing, bandwidth="40M")
    (partial,) = image.parent.iterdir()
    deadline = time.monotonic() + 20
    while run_state(big_guest) != "postmigrate":
        assert time.monotonic() < deadline
    partial.unlink()
    result = save(name=VM, path=str(image))
    assert result["image"]["vm_state"] == "paused"
    restore(name=VM, path=str(image), state="running")
    continuity.check()


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
