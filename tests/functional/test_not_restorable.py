# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a restore would refuse, the save refuses before the guest is touched, in the same words: through the modules."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from support import Monitor, find_qemu_pids
from support.observe import VM, Continuity, run_state, wait_until, words
from support.paused import make_disk

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can do this")


@pytest.fixture
def guest(make_guest, tmp_path):
    """A guest with a writable disk d0 (node n0 below it), whose device disk0 can be unplugged."""
    disk = make_disk(tmp_path / "disk.qcow2", "qcow2", size="8M")
    drive = f"driver=qcow2,node-name=n0,file.driver=file,file.filename={disk}"
    return make_guest(
        observer=True, extra_args=["-blockdev", drive, "-device", "virtio-blk-pci,drive=n0,id=disk0,share-rw=on"]
    )


def execute(guest, command, **arguments):
    with Monitor(guest.observer_socket) as monitor:
        return monitor.execute(command, {name.replace("_", "-"): value for name, value in arguments.items()})


def refused(run_module, image, kind, **options):
    """The save is refused, in check mode and without it, and leaves nothing; what it says."""
    for check in (True, False):
        result = run_module("qemu_save", name=VM, path=str(image), check=check, **options)
        assert result.get("failed"), result["msg"]
        assert result["error"] == "NotRestorableError", result["msg"]
    (problem,) = [problem for problem in result["problems"] if problem["blocks"]]
    assert problem["kind"] == kind
    assert problem["what"] in result["msg"]
    assert problem["cure"] in result["cure"]
    assert words(result) == ("running", "absent")
    assert os.listdir(image.parent) == []
    (vm,) = run_module("qemu_vm_info", name=[VM])["vms"]
    if kind != "image_unsafe":
        assert problem in vm["problems"]
        assert vm["launch"]["how"] == "none"
    return problem["what"]


def check_same_words(run_module, save, image, what):
    """The operator knows better; the restore then refuses in the words of the save, and the image says them, too."""
    saved = save(name=VM, path=str(image), require_restorable=False)
    assert what in str(saved["warnings"])
    info = run_module("qemu_save_image_info", path=str(image))["image"]
    assert info["restorable"] is False
    assert what in [problem["what"] for problem in info["restore_problems"]]
    result = run_module("qemu_restore", name=VM, path=str(image))
    assert result["error"] == "LaunchError", result["msg"]
    assert what in result["msg"]
    assert image.exists()
    assert find_qemu_pids(VM) == []


def plug_without_id(guest):
    execute(guest, "device_add", driver="virtio-rng-pci")


def unplug(guest):
    """As far as QEMU is concerned: a guest without a driver for its bus never lets go of a device by itself."""
    execute(guest, "device_del", id="usb0")


def relative_snapshot(guest):
    execute(
        guest,
        "blockdev-snapshot-sync",
        node_name="n0",
        snapshot_file="overlay.qcow2",
        snapshot_node_name="n1",
        format="qcow2",
    )


def snapshot_that_qemu_names_json(guest):
    overlay = make_disk(guest.workdir.parent / "json.qcow2", "qcow2", size="8M")
    file = {"driver": "file", "filename": str(overlay)}
    execute(guest, "blockdev-add", driver="qcow2", node_name="n1", file=file, backing=None)
    execute(guest, "blockdev-snapshot", node="n0", overlay="n1")


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (plug_without_id, "device_plugged"),
        (relative_snapshot, "disk_replaced"),
        (snapshot_that_qemu_names_json, "disk_replaced"),
    ],
)
def test_machine_that_is_not_what_was_started(guest, image, run_module, save, change, kind):
    change(guest)
    what = refused(run_module, image, kind)
    assert run_state(guest) == "running"
    check_same_words(run_module, save, image, what)


def test_device_that_was_unplugged(make_guest, image, run_module, save):
    guest = make_guest(observer=True, extra_args=["-usb", "-device", "usb-tablet,id=usb0"])
    unplug(guest)
    what = refused(run_module, image, "device_unplugged")
    assert "usb0" in what
    check_same_words(run_module, save, image, what)


def backup(guest):
    target = make_disk(guest.workdir.parent / "target.qcow2", "qcow2", size="8M")
    file = {"driver": "file", "filename": str(target)}
    execute(guest, "blockdev-add", driver="qcow2", node_name="t0", file=file)
    execute(guest, "blockdev-backup", job_id="nightly", device="n0", target="t0", sync="full", speed=1)


def mirror(guest):
    target = make_disk(guest.workdir.parent / "target.qcow2", "qcow2", size="8M")
    file = {"driver": "file", "filename": str(target)}
    execute(guest, "blockdev-add", driver="qcow2", node_name="t0", file=file)
    execute(guest, "blockdev-mirror", job_id="move", device="n0", target="t0", sync="full", speed=1)


def export(guest):
    address = {"type": "unix", "data": {"path": str(guest.workdir.parent / "nbd.sock")}}
    execute(guest, "nbd-server-start", addr=address)
    execute(guest, "block-export-add", type="nbd", id="out", node_name="n0", writable=False)


@pytest.fixture
def full_disk(guest):
    """Something for a job to do: 4 MiB of data, which at a byte a second take long."""
    execute(guest, "human-monitor-command", command_line='qemu-io n0 "write -P 7 0 4M"')
    return guest


@pytest.mark.parametrize(
    ("begin", "kind", "named"),
    [
        (backup, "block_job_fatal", "nightly"),
        (mirror, "block_job", "move"),
        (export, "export", "out"),
    ],
)
def test_somebody_works_with_its_disks(full_disk, image, run_module, begin, kind, named):
    begin(full_disk)
    assert named in refused(run_module, image, kind)
    assert run_state(full_disk) == "running"
    if kind == "block_job_fatal":
        # The save would fail when all is written: no word of the operator's makes it come right.
        refused(run_module, image, kind, require_restorable=False)


def test_dirty_bitmap_that_ends_with_qemu_is_said(guest, image, save):
    execute(guest, "block-dirty-bitmap-add", node="n0", name="since-sunday")
    saved = save(name=VM, path=str(image))
    assert "since-sunday" in str(saved["warnings"])


def test_so_many_dirty_bitmaps_that_their_names_are_longer_than_a_record(guest, image, save, restore, run_module):
    for number in range(220):
        execute(guest, "block-dirty-bitmap-add", node="n0", name=f"backup-of-the-night-{number:020}")
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    (recorded,) = run_module("qemu_save_image_info", path=str(image))["images"]
    assert "dirty_bitmap" in [problem["kind"] for problem in recorded["restore_problems"]]
    restore(name=VM, path=str(image))
    continuity.check()


@only_root
def test_qemu_in_another_mount_namespace(make_guest, image, run_module, save):
    """Where the disk's path is another file: what a restore would open on the host."""
    guest = make_guest(start=False, observer=True)
    guest.prepare()
    log = guest.workdir / "unshared.log"
    with log.open("wb") as output:
        qemu = subprocess.Popen(["unshare", "-m", *guest.argv()], cwd=guest.workdir, stdout=output, stderr=output)
    try:
        wait_until(guest.observer_socket.exists)
        what = refused(run_module, image, "mount_namespace")
        check_same_words(run_module, save, image, what)
    finally:
        qemu.kill()
        qemu.wait()


# --- the place of the image ---


def test_directory_in_which_others_may_put_files(guest, image, run_module, restore, save):
    """As /tmp itself is: its sticky bit keeps nobody from putting another image there."""
    image.parent.chmod(0o1777)
    refused(run_module, image, "image_unsafe")
    save(name=VM, path=str(image), require_restorable=False)
    result = run_module("qemu_restore", name=VM, path=str(image))
    assert result["error"] == "ImageUnsafeError", result["msg"]
    image.parent.chmod(0o700)
    restore(name=VM, path=str(image))


@only_root
@pytest.mark.parametrize("options", [{"owner": "nobody"}, {"mode": "0660"}], ids=["owner", "mode"])
def test_image_that_others_could_write_to(guest, image, run_module, options):
    refused(run_module, image, "image_unsafe", **options)


@only_root
def test_directory_of_another_user(guest, run_module, tmp_path: Path):
    theirs = tmp_path / "theirs"
    theirs.mkdir(mode=0o700)
    os.chown(theirs, 65534, 65534)
    refused(run_module, theirs / "web1.save", "image_unsafe")
