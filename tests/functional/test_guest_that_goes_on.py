# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What becomes of a save whose guest goes on before the image is complete, or as it failed, if something happens then?

What QEMU has written is then of the past: it must never become the image of the guest as it is now.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._image.edit import mark_checkpoint
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_file import read_image_head

from support import Monitor
from support.monitor_proxy import BEFORE, INSTEAD, Fault, MonitorProxy, Step
from support.observe import VM, Continuity, migration_is_active, run_state, settings, wait_until, words
from support.paused import PausedQemu, make_disk

GOES_ON = Step("cont", 1)
NOTE_REMOVED = Step("remove-fd", 1)


#: A save whose flush fails, when QEMU has written everything.
BROKEN = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync,fdatasync"]
BROKEN += ["-e", "inject=fsync,fdatasync:error=EIO"]


@pytest.fixture
def disk(tmp_path):
    return make_disk(tmp_path / "disk.img")


@pytest.fixture
def guest(make_guest, disk):
    """One with a disk."""
    return make_guest(observer=True, extra_args=["-drive", f"if=virtio,format=raw,file={disk}"])


@pytest.fixture
def cut_off(guest, image, start_module, tmp_path):
    """Start a save, and SIGKILL it before QEMU gets this command."""

    def run(step, **options):
        fault = Fault(step, BEFORE, "hang")
        socket = tmp_path / "proxy.sock"
        with MonitorProxy(socket, guest.qmp_socket, lambda: guest.pid, [fault]) as proxy:
            started = start_module("qemu_save", name=VM, path=str(image), qmp_socket=str(socket), **options)
            wait_until(lambda: fault in proxy.done)
            process = started.process.pid
            if "prefix" in options:
                (process,) = map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split())
            os.kill(process, signal.SIGKILL)
            started.process.communicate()

    return run


@pytest.mark.parametrize("after_save", ["quit", "resume"])
def test_killed_before_the_guest_goes_on(guest, image, cut_off, save, restore, after_save):
    continuity = Continuity(guest)
    before = settings(guest)
    cut_off(GOES_ON, after_save="resume")
    assert run_state(guest) == "postmigrate"
    result = save(name=VM, path=str(image), after_save=after_save)
    assert result["image"]["checkpoint"] == (after_save == "resume")
    assert os.listdir(image.parent) == [image.name]
    if after_save == "quit":
        restore(name=VM, path=str(image))
    assert settings(guest) == before
    continuity.check()


def test_killed_after_the_guest_went_on(guest, image, cut_off, save):
    continuity = Continuity(guest)
    before = settings(guest)
    cut_off(NOTE_REMOVED, after_save="resume")
    assert run_state(guest) == "running"
    result = save(name=VM, path=str(image), after_save="resume")
    assert "earlier run" not in result["msg"]
    assert os.listdir(image.parent) == [image.name]
    assert settings(guest) == before
    continuity.check()


def test_guest_that_someone_has_stopped_since_stays_so(guest, image, cut_off, save):
    cut_off(NOTE_REMOVED, after_save="resume")
    with Monitor(guest.qmp_socket) as monitor:
        monitor.execute("stop")
    result = save(name=VM, path=str(image), after_save="resume")
    assert result["image"]["vm_state"] == "paused"
    assert run_state(guest) == "paused"


@pytest.mark.parametrize("options", [{"after_save": "resume"}, {"prefix": BROKEN}], ids=["resume", "failed"])
@pytest.mark.parametrize("module", ["qemu_save", "qemu_restore"])
def test_migration_of_others_is_not_taken_for_the_save(guest, image, cut_off, run_module, module, options):
    """The guest may run elsewhere by now: it must neither go on here nor be in an image."""
    cut_off(NOTE_REMOVED, **options)
    assert run_state(guest) == "running"
    with Monitor(guest.qmp_socket) as monitor:
        capabilities = [{"capability": name, "state": False} for name in ("mapped-ram", "multifd")]
        monitor.execute("migrate-set-capabilities", {"capabilities": capabilities})
        monitor.execute("migrate-set-parameters", {"direct-io": False})
        monitor.execute("migrate", {"uri": "exec:cat > /dev/null"})
    wait_until(lambda: run_state(guest) == "postmigrate")
    result = run_module(module, name=VM, path=str(image))
    assert result.get("error") == "ConflictError", result["msg"]
    assert run_state(guest) == "postmigrate"
    assert not image.exists()


def test_migration_of_others_that_is_under_way_is_not_called_off(guest, image, cut_off, run_module):
    cut_off(NOTE_REMOVED, after_save="resume")
    with Monitor(guest.qmp_socket) as monitor:
        capabilities = [{"capability": name, "state": False} for name in ("mapped-ram", "multifd")]
        monitor.execute("migrate-set-capabilities", {"capabilities": capabilities})
        monitor.execute("migrate-set-parameters", {"direct-io": False, "max-bandwidth": 4096})
        monitor.execute("migrate", {"uri": "exec:cat > /dev/null"})
    wait_until(lambda: migration_is_active(guest))
    result = run_module("qemu_save", name=VM, path=str(image))
    assert result["error"] == "ConflictError", result["msg"]
    assert migration_is_active(guest)
    assert not image.exists()


@pytest.mark.parametrize("check", [False, True])
def test_guest_that_stands_beside_its_checkpoint_is_not_ended(guest, image, cut_off, save, run_module, check):
    """It may have gone on in another QEMU, or nowhere: with its own QEMU what it was would be gone."""
    continuity = Continuity(guest)
    save(name=VM, path=str(image), after_save="pause")
    cut_off(GOES_ON, after_save="resume")
    assert run_state(guest) == "postmigrate"
    result = run_module("qemu_save", name=VM, path=str(image), after_save="quit", check=check)
    assert result.get("error") == "ConflictError", result["msg"]
    assert "after_save: resume" in result["cure"]
    assert run_state(guest) == "postmigrate"
    save(name=VM, path=str(image), after_save="resume")
    save(name=VM, path=str(image), after_save="resume", force=True)
    continuity.check()


def write_elsewhere(disk):
    """Another QEMU runs from the disk, which the guest's has let go."""
    with PausedQemu(disk.parent, "-drive", f"if=virtio,format=raw,file={disk}", name="elsewhere") as other:
        other.write("virtio0")
        other.quit()


@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("module", ["qemu_save", "qemu_restore"])
def test_guest_that_may_have_gone_on_in_another_qemu_stays_where_it_is(
    guest, disk, image, save, run_module, module, marked
):
    """It ran from its disks, or (marked) its image was loaded elsewhere meanwhile, and kept: its disks tell."""
    save(name=VM, path=str(image), after_save="pause")
    if marked:
        mark_checkpoint(str(image), read_image_head(str(image)))
    write_elsewhere(disk)
    options = {"after_save": "resume"} if module == "qemu_save" else {}
    for check in (True, False):
        result = run_module(module, name=VM, path=str(image), check=check, **options)
        assert result.get("error") == "DiskMismatchError", result["msg"]
        assert str(disk) in result["msg"]
    assert run_state(guest) == "postmigrate"


def test_guest_goes_on_over_other_disks_where_that_is_asked_for(guest, disk, image, save, restore):
    continuity = Continuity(guest)
    save(name=VM, path=str(image), after_save="pause")
    write_elsewhere(disk)
    restore(name=VM, path=str(image), disks="ignore")
    continuity.check()


@pytest.mark.parametrize("step", [GOES_ON, Step("quit", 1)], ids=["partial", "complete"])
def test_killed_save_is_not_undone_over_other_disks(guest, disk, image, cut_off, run_module, step):
    cut_off(step, after_save="resume" if step is GOES_ON else "quit")
    write_elsewhere(disk)
    there = sorted(os.listdir(image.parent))
    for check in (True, False):
        result = run_module("qemu_restore", name=VM, path=str(image), check=check)
        assert result.get("error") == "DiskMismatchError", result["msg"]
        assert result["guest"] == "paused"
    assert run_state(guest) == "postmigrate"
    assert sorted(os.listdir(image.parent)) == there


def test_paused_guest_that_stays_can_be_saved_for_good(guest, image, save, restore):
    continuity = Continuity(guest)
    with Monitor(guest.qmp_socket) as monitor:
        monitor.execute("stop")
    save(name=VM, path=str(image), after_save="resume")
    assert run_state(guest) == "paused"
    assert not save(name=VM, path=str(image), force=True)["image"]["checkpoint"]
    restore(name=VM, path=str(image), state="running")
    continuity.check()


def test_migration_of_others_after_an_image_was_completed(guest, image, cut_off, run_module):
    """The save was killed when its image had its name; whoever let the guest go on has migrated it since."""
    cut_off(Step("quit", 1))
    assert image.exists()
    with Monitor(guest.qmp_socket) as monitor:
        monitor.execute("cont")
        capabilities = [{"capability": name, "state": False} for name in ("mapped-ram", "multifd")]
        monitor.execute("migrate-set-capabilities", {"capabilities": capabilities})
        monitor.execute("migrate-set-parameters", {"direct-io": False})
        monitor.execute("migrate", {"uri": "exec:cat > /dev/null"})
    wait_until(lambda: run_state(guest) == "postmigrate")
    result = run_module("qemu_save", name=VM, path=str(image))
    assert result.get("error") == "ConflictError", result["msg"]
    assert run_state(guest) == "postmigrate"


def test_whether_it_runs_is_not_known(guest, image, run_module, tmp_path):
    """QEMU was told to let it go on, and is lost before it answers."""
    continuity = Continuity(guest)
    fault = Fault(GOES_ON, INSTEAD, "cut for good")
    socket = tmp_path / "proxy.sock"
    with MonitorProxy(socket, guest.qmp_socket, lambda: guest.pid, [fault]):
        result = run_module("qemu_save", name=VM, path=str(image), qmp_socket=str(socket), after_save="resume")
    assert result["failed"]
    assert words(result)[0] == "unknown", result["msg"]
    assert "not known" in result["msg"]
    assert run_state(guest) == "running"
    continuity.check()
