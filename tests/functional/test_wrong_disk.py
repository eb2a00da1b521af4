# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A guest's memory is never put over a disk that is not the one of its save: through the modules."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from support import Monitor, find_qemu_pids
from support.changed_record import blank_element, change_record
from support.loops import loop_device, put_behind
from support.module_run import check_error
from support.observe import VM, Continuity, run_state, wait_until
from support.paused import make_disk


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """The guest's writable disk: a qcow2 image over a raw one."""
    base = make_disk(tmp_path / "base.img", size="4M")
    return make_disk(tmp_path / "disk.qcow2", "qcow2", "-F", "raw", "-b", str(base))


@pytest.fixture
def guest(make_guest, disk):
    """A guest with that disk, d0."""
    drive = f"if=none,id=d0,format=qcow2,file={disk}"
    return make_guest(observer=True, extra_args=["-drive", drive, "-device", "virtio-blk-pci,drive=d0,id=disk0"])


def write(guest, drive="d0", pattern="0x11"):
    """QEMU writes into a drive as its guest does."""
    with Monitor(guest.observer_socket) as monitor:
        line = f'qemu-io {drive} "write -P {pattern} 0 64k"'
        assert "rror" not in monitor.execute("human-monitor-command", {"command-line": line})


def check_refused(result, *said, image, kind="DiskMismatchError"):
    check_error(result, kind, *said)
    assert image.exists()
    assert find_qemu_pids(VM) == []


def test_disks_are_recorded(guest, image, save, run_module, disk, tmp_path):
    save(name=VM, path=str(image))
    info = run_module("qemu_save_image_info", path=str(image))["image"]
    assert info["restorable"] is True
    assert info["checkpoint"] is False
    # The tests themselves have started it, and wait for it.
    assert [problem["kind"] for problem in info["restore_problems"]] == ["supervisor_unknown"]
    boot, writable = sorted(info["disks"], key=lambda medium: medium["backend"])
    assert boot["read_only"] is True
    assert [file["path"] for file in writable["files"]] == [str(disk), str(tmp_path / "base.img")]
    assert [file["format"] for file in writable["files"]] == ["qcow2", "raw"]
    facts = disk.stat()
    file = writable["files"][0]
    assert (file["size"], file["mtime_ns"]) == (facts.st_size, facts.st_mtime_ns)
    assert (file["inode"], file["device_number"]) == (facts.st_ino, facts.st_dev)


def test_disks_that_are_as_they_were(guest, image, save, restore):
    write(guest)
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    assert "warnings" not in restore(name=VM, path=str(image))
    continuity.check()


@pytest.mark.parametrize("which", ["disk.qcow2", "base.img"])
def test_disk_that_was_written_to_since(guest, image, save, run_module, restore, tmp_path, which):
    """By whatever: the VM was started from its disks by hand, a tool wrote into them, or into what is below them."""
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    with (tmp_path / which).open("r+b") as handle:
        before = handle.read(512)
        handle.seek(0)
        handle.write(before)  # what it was: the time alone tells
    for check in (True, False):
        result = run_module("qemu_restore", name=VM, path=str(image), check=check)
        check_refused(result, which, "d0", image=image)
    assert result["problems"][0]["kind"] == "disk_written"
    restore(name=VM, path=str(image), disks="ignore")
    continuity.check()


@pytest.mark.parametrize(
    "words",
    ["id=x -device scsi-hd,drive=x,id=flash0", "id=pflash0 -device scsi-hd,drive=pflash0"],
    ids=["device", "drive"],
)
def test_disk_that_is_named_as_firmware_is(make_guest, image, save, run_module, tmp_path, words):
    """Of firmware that the guest only reads the size alone counts; of a disk, its time, too."""
    base = make_disk(tmp_path / "base.img", size="4M")
    drive = f"if=none,readonly=on,format=raw,file={base},{words}".split()
    make_guest(extra_args=["-device", "virtio-scsi-pci", "-drive", *drive])
    save(name=VM, path=str(image))
    base.write_bytes(b"\x11" * base.stat().st_size)
    result = run_module("qemu_restore", name=VM, path=str(image))
    check_refused(result, str(base), image=image, kind="DiskMismatchError")
    assert [problem["kind"] for problem in result["problems"]] == ["disk_written"]


def test_vm_that_was_started_from_its_disks_in_between(guest, image, save, run_module):
    save(name=VM, path=str(image))
    guest.start()
    # It runs beside its image: that is never plain ok.
    result = run_module("qemu_restore", name=VM, path=str(image))
    assert result["error"] == "ConflictError", result["msg"]
    assert "although" in result["msg"]
    assert run_state(guest) == "running"
    write(guest)
    guest.end()
    check_refused(run_module("qemu_restore", name=VM, path=str(image)), "disk.qcow2", image=image)


def test_guest_that_went_on_and_wrote(guest, image, save, run_module):
    save(name=VM, path=str(image), after_save="resume")
    assert run_module("qemu_save_image_info", path=str(image))["image"]["checkpoint"] is True
    # It runs as it should: the image is a checkpoint of it.
    assert not run_module("qemu_restore", name=VM, path=str(image)).get("failed")
    write(guest)
    guest.end()
    check_refused(run_module("qemu_restore", name=VM, path=str(image)), "went on", "disk.qcow2", image=image)
    # Nor is it what a save of the VM would have left.
    check_refused(run_module("qemu_save", name=VM, path=str(image)), "checkpoint", image=image, kind="VmNotFoundError")


def test_checkpoint_over_the_disks_of_its_moment(guest, image, save, restore, disk, tmp_path):
    continuity = Continuity(guest)
    save(name=VM, path=str(image), after_save="pause")
    shutil.copy2(disk, tmp_path / "copy")
    save(name=VM, path=str(image), after_save="resume")
    write(guest)
    guest.end()
    shutil.copy2(tmp_path / "copy", disk)
    restore(name=VM, path=str(image))
    guest.wait_restarted()
    assert guest.checksum() == continuity.checksum


def test_paused_guest_that_is_continued_later_makes_a_checkpoint(guest, image, save, run_module):
    save(name=VM, path=str(image), after_save="pause")
    assert run_module("qemu_save_image_info", path=str(image))["image"]["checkpoint"] is False
    save(name=VM, path=str(image), after_save="resume")
    assert run_module("qemu_save_image_info", path=str(image))["image"]["checkpoint"] is True
    assert run_state(guest) == "running"


def test_second_restore_of_an_image_that_was_kept(guest, image, save, restore, run_module):
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    restore(name=VM, path=str(image), remove_image=False)
    assert run_module("qemu_save_image_info", path=str(image))["image"]["checkpoint"] is True
    continuity.check()
    guest.end()
    # Nothing was written meanwhile: once more is once more the same.
    restore(name=VM, path=str(image), remove_image=False)
    guest.wait_restarted()
    write(guest)
    guest.end()
    check_refused(run_module("qemu_restore", name=VM, path=str(image)), "went on", "disk.qcow2", image=image)


def test_later_image_after_an_older_one_was_restored(make_guest, image, save, restore, run_module):
    """The disks, of which nothing can be known, were put back to the older one's moment, and the guest went on."""
    guest = make_guest(extra_args=["-drive", "if=virtio,driver=null-co,size=1M"])
    older = image.with_name("older.save")
    save(name=VM, path=str(older), after_save="resume")
    save(name=VM, path=str(image))
    restore(name=VM, path=str(older), disks="ignore")
    guest.wait_restarted()
    guest.wait_for_counter(1)
    guest.end()
    check_refused(run_module("qemu_restore", name=VM, path=str(image)), "went on", image=image)


def test_copy_that_keeps_its_time_passes(guest, image, save, restore, disk, tmp_path):
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    shutil.copy2(disk, tmp_path / "copy")
    os.replace(tmp_path / "copy", disk)
    restore(name=VM, path=str(image))
    continuity.check()


def test_disk_that_is_gone(guest, image, save, run_module, disk):
    save(name=VM, path=str(image))
    disk.unlink()
    result = run_module("qemu_restore", name=VM, path=str(image))
    check_refused(result, str(disk), image=image)
    assert result["problems"][0]["kind"] == "disk_gone"


@pytest.mark.parametrize("launch", ["attach", "command"])
def test_qemu_with_other_disks(guest, image, save, run_module, restore, disk, tmp_path, launch):
    """Found when QEMU has opened them, before it loads a byte; one that was started for it is ended."""
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    other = make_disk(tmp_path / "other.qcow2", "qcow2", size="4M")
    good = guest.argv()
    bad = [word.replace(str(disk), str(other)) for word in good]
    if launch == "command":
        result = run_module("qemu_restore", name=VM, path=str(image), launch="command", command=bad)
        check_refused(result, "other.qcow2", image=image)
        restore(name=VM, path=str(image), launch="command", command=good)
        continuity.check()
        return
    qemu = subprocess.Popen([*bad, "-S", "-incoming", "defer"], cwd=guest.workdir)
    try:
        deadline_socket = guest.qmp_socket
        for _attempt in range(200):
            result = run_module("qemu_restore", name=VM, path=str(image), launch="attach", attach_timeout=10)
            if "other.qcow2" in result["msg"]:
                break
        assert deadline_socket.exists()
        assert result["error"] == "DiskMismatchError", result["msg"]
        assert qemu.poll() is None, "it was there before, and still waits"
    finally:
        qemu.kill()
        qemu.wait()
    assert image.exists()


@pytest.fixture
def on_device(make_guest):
    """A guest with a device of the host's as its disk d0."""

    def make(device: str):
        drive = f"if=none,id=d0,format=raw,file={device}"
        return make_guest(observer=True, extra_args=["-drive", drive, "-device", "virtio-blk-pci,drive=d0,id=disk0"])

    return make


def test_loop_device_is_told_by_its_file(on_device, image, save, restore, run_module, tmp_path):
    """After a reboot its name may be another one's: a file of the same size, with another guest's file system."""
    mine, other = (make_disk(tmp_path / f"{name}.img", size="4M") for name in ("mine", "other"))
    with loop_device(mine) as device:
        guest = on_device(device)
        write(guest)
        continuity = Continuity(guest)
        save(name=VM, path=str(image))
        put_behind(device, other)
        for launch in ({}, {"launch": "command", "command": guest.argv()}):
            result = run_module("qemu_restore", name=VM, path=str(image), **launch)
            check_refused(result, str(mine), str(other), image=image)
            assert [problem["kind"] for problem in result["problems"]] == ["disk_replaced"]
        put_behind(device, mine)
        assert "warnings" not in restore(name=VM, path=str(image), remove_image=False)
        write(guest)
        continuity.check()
        guest.adopt_restarted()
        guest.end()
        check_refused(run_module("qemu_restore", name=VM, path=str(image)), "written to", device, image=image)


def test_device_that_is_another_one(on_device, image, save, restore, run_module, tmp_path):
    """Of which no time is known, but which one it is: a loop device over a device stands for all others."""
    mine, other = (make_disk(tmp_path / f"{name}.img", size="4M") for name in ("mine", "other"))
    with loop_device(mine) as below, loop_device(other) as below_other, loop_device(below) as device:
        guest = on_device(device)
        continuity = Continuity(guest)
        save(name=VM, path=str(image))
        put_behind(device, below_other)
        for launch in ({}, {"launch": "command", "command": guest.argv()}):
            result = run_module("qemu_restore", name=VM, path=str(image), **launch)
            check_refused(result, str(mine), str(other), image=image)
            assert [problem["kind"] for problem in result["problems"]] == ["disk_replaced"]
        put_behind(device, below)
        assert device in str(restore(name=VM, path=str(image))["warnings"])
        continuity.check()
        guest.adopt_restarted()
        guest.close()


def test_disk_that_cannot_be_checked(on_device, image, save, restore, run_module, tmp_path):
    """Said at the restore; of a guest that went on it is not enough that nothing can be said."""
    with loop_device(make_disk(tmp_path / "backing.img", size="4M")) as below, loop_device(below) as device:
        guest = on_device(device)
        continuity = Continuity(guest)
        save(name=VM, path=str(image))
        result = restore(name=VM, path=str(image), remove_image=False)
        assert device in str(result["warnings"])
        continuity.check()
        guest.adopt_restarted()
        guest.end()
        check_refused(run_module("qemu_restore", name=VM, path=str(image)), device, image=image)


def test_image_without_a_record_of_disks(guest, image, save, run_module, restore):
    """As one of libvirt's: restored, and said."""
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    change_record(image, run_module, lambda data: blank_element(data, b"vmops:surroundings"))
    result = restore(name=VM, path=str(image))
    assert "does not record" in str(result["warnings"])
    continuity.check()


def test_record_that_makes_no_sense(guest, image, save, run_module, restore):
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    change_record(image, run_module, lambda data: data.replace(b'{"version":1,"media"', b'{"version":7,"media"', 1))
    check_refused(run_module("qemu_restore", name=VM, path=str(image)), "record", image=image, kind="ImageFormatError")
    # What its QEMU needs is in the same record: who ignores the disks does not know that, either.
    refused = run_module("qemu_restore", name=VM, path=str(image), disks="ignore")
    check_refused(refused, "needs", image=image, kind="ImageFormatError")
    guest.start(incoming=True)
    restore(name=VM, path=str(image), disks="ignore", launch="attach")
    continuity.check()


def test_vm_that_is_started_again_at_once(make_guest, image, run_module):
    """A shell's loop, as a stand-in for any supervisor: refused; and where the operator insists, loud."""
    guest = make_guest(start=False)
    guest.prepare()
    words = " ".join(f"'{word}'" for word in guest.argv())
    loop = subprocess.Popen(["/bin/sh", "-c", f"while :; do {words}; done"], cwd=guest.workdir, start_new_session=True)
    try:
        wait_until(lambda: find_qemu_pids(VM) and guest.qmp_socket.exists())
        result = run_module("qemu_save", name=VM, path=str(image))
        assert result["error"] == "NotRestorableError", result["msg"]
        assert f"pid {loop.pid}" in result["msg"]
        first = find_qemu_pids(VM)
        result = run_module("qemu_save", name=VM, path=str(image), require_restorable=False)
        assert result["error"] == "ConflictError", result["msg"]
        assert "started again" in result["msg"]
        assert image.exists()
        assert find_qemu_pids(VM) != first
        result = run_module("qemu_restore", name=VM, path=str(image))
        assert result["error"] == "ConflictError", result["msg"]
    finally:
        os.kill(loop.pid, signal.SIGKILL)
        loop.wait()
        for pid in find_qemu_pids(VM):
            os.kill(pid, signal.SIGKILL)
