# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is to be done is decided by the image's header and the VM together; each row of the table is a test."""

from __future__ import annotations

import os

import pytest

from support import Monitor
from support.observe import OTHER_VM, VM, Continuity, migration_is_active, run_state, settings, wait_until


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


@pytest.mark.parametrize("remove_image", [True, False])
def test_restore_lets_a_paused_vm_go_on(guest, image, save, restore, remove_image):
    """Restored paused at first, and let go on by a second task when somebody has looked at it."""
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    restore(name=VM, path=str(image), state="paused", remove_image=remove_image)
    assert guest.adopt_restarted()
    for state in ("as_saved", "paused"):
        result = restore(name=VM, path=str(image), state=state)
        assert (result["changed"], result["vm"]["run_state"], "warnings" in result) == (False, "paused", False)
    found = contents(image)
    predicted = restore(name=VM, path=str(image), state="running", check=True, diff=True)
    assert run_state(guest) == "paused"
    result = restore(name=VM, path=str(image), state="running", diff=True)
    assert predicted["changed"]
    assert result["changed"]
    assert result["diff"] == predicted["diff"]
    assert result["diff"]["after"]["vm"] == result["vm"]["run_state"] == "running"
    assert contents(image) == found
    continuity.check()
    assert not restore(name=VM, path=str(image), state="running")["changed"]


def test_restore_pauses_no_vm_that_runs(guest, image, restore):
    result = restore(name=VM, path=str(image), state="paused")
    assert not result["changed"]
    assert "state is paused" in result["msg"]
    assert "stops no guest" in str(result["warnings"])
    assert run_state(guest) == "running"


def test_restore_leaves_alone_what_was_not_paused(start_paused, image, restore):
    """Started with -S: nobody has let it begin yet, and it would begin from its disks."""
    qemu = start_paused()
    result = restore(name="paused", qmp_socket=str(qemu.qmp_socket), path=str(image), state="running")
    assert not result["changed"]
    assert "state is running" in result["msg"]
    assert "not let go on" in str(result["warnings"])
    assert qemu.execute("query-status")["status"] == "prelaunch"


def test_restore_leaves_alone_what_somebody_else_is_saving(guest, image, restore):
    with Monitor(guest.observer_socket) as monitor:
        monitor.execute("stop")
        monitor.execute("migrate-set-parameters", {"max-bandwidth": 4096})
        monitor.execute("migrate", {"uri": f"exec:cat >{image.parent}/elsewhere"})
    wait_until(lambda: migration_is_active(guest))
    result = restore(name=VM, path=str(image), state="running")
    assert not result["changed"]
    assert "migration" in str(result["warnings"])
    assert run_state(guest) == "paused"
    with Monitor(guest.observer_socket) as monitor:
        monitor.execute("migrate_cancel")
        wait_until(lambda: monitor.execute("query-migrate")["status"] == "cancelled")
    assert restore(name=VM, path=str(image), state="running")["changed"]
    assert run_state(guest) == "running"


def test_check_mode_predicts_and_touches_nothing(guest, image, run_module):
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


def test_check_mode_of_a_play_whose_earlier_task_would_make_the_image(guest, image, run_module):
    """No task fails because the image is not there yet; that it is not is told by each, as the path may be misspelt."""
    pid = guest.pid
    place = {"name": VM, "path": str(image)}
    assert run_module("qemu_save", check=True, **place)["changed"]
    # By its path alone, the VM that runs is not known for the one that it is to restore.
    for module, options, changed in (
        ("qemu_restore", {"path": str(image)}, True),
        ("qemu_restore", {"path": str(image), "launch": "attach"}, True),
        ("qemu_restore", {"name": OTHER_VM, "path": str(image)}, True),
        ("qemu_save_image", {**place, "archive": "zstd"}, True),
        ("qemu_save_image", {**place, "vm_state": "paused"}, True),
        ("qemu_save_image", place, False),
    ):
        result = run_module(module, check=True, diff=True, **options)
        assert not result.get("failed"), result["msg"]
        assert result["changed"] == changed, result["msg"]
        warned = str(result["warnings"])
        assert str(image) in warned
        assert "unless a task before this one makes the image" in warned
        assert run_module(module, **options)["error"] in ("ImageNotFoundError", "VmNotFoundError")
    result = run_module("qemu_save_image_info", check=True, **place)
    assert (result.get("failed", False), result["image"]["state"]) == (False, "absent")
    assert os.listdir(image.parent) == []
    assert guest.pid == pid
    assert run_state(guest) == "running"


def test_check_mode_of_a_play_whose_earlier_task_would_expand_the_image(guest, image, save, run_module):
    save(name=VM, path=str(image))
    assert run_module("qemu_save_image", path=str(image), archive="zstd")["changed"]
    assert run_module("qemu_save_image", path=str(image), archive="none", check=True)["changed"]
    result = run_module("qemu_restore", name=VM, path=str(image), check=True)
    assert result["changed"], result["msg"]
    assert "only an archive" in str(result["warnings"])
    assert run_module("qemu_restore", name=VM, path=str(image))["error"] == "ImageNotFoundError"


def test_check_mode_of_a_play_whose_earlier_task_would_start_qemu(guest, image, save, run_module):
    save(name=VM, path=str(image))
    result = run_module("qemu_restore", name=VM, path=str(image), launch="attach", check=True)
    assert result["changed"], result["msg"]
    assert "unless a task before this one starts it" in str(result["warnings"])
    assert run_module("qemu_restore", name=VM, path=str(image), launch="attach")["error"] == "VmNotFoundError"


def test_check_mode_does_not_make_the_save_directory(guest, tmp_path, run_module):
    result = run_module("qemu_save", name=VM, save_dir=str(tmp_path / "new" / "save"), check=True)
    assert result["changed"]
    assert not (tmp_path / "new").exists()


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
