# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Media that are others than a start by the same command line would give: on a real QEMU, drive by drive."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.configuration import read_configuration
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.monitor import Monitor
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import read_process
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.devices import read_devices
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.disks import read_media
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.replaced_disks import replaced_media
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.verdict import Problem

from support import Monitor as ClientMonitor
from support.observe import wait_until
from support.paused import PausedQemu, make_disk
from support.versions import OLD_QEMU


@pytest.fixture
def disks(tmp_path: Path) -> Path:
    """Raw disks a to d, and a chain of three: top.qcow2, mid.qcow2 and base.qcow2."""
    for name in ("a.img", "b.img", "c.img", "d.img"):
        make_disk(tmp_path / name)
    make_disk(tmp_path / "base.qcow2", "qcow2")
    make_disk(tmp_path / "mid.qcow2", "qcow2", "-b", "base.qcow2", "-F", "qcow2")
    make_disk(tmp_path / "top.qcow2", "qcow2", "-b", "mid.qcow2", "-F", "qcow2")
    return tmp_path


def problems_of(qemu: PausedQemu) -> list[Problem]:
    async def look() -> list[Problem]:
        process = read_process(qemu.pid)
        assert process is not None
        configuration = read_configuration(process.argv, process.cwd, process.pid, process.uid)
        async with await Monitor.connect(str(qemu.qmp_socket)) as monitor:
            devices = await read_devices(monitor)
            return await replaced_media(await read_media(monitor, process), devices, configuration, process)

    return asyncio.run(look())


def check_kinds(qemu: PausedQemu, *kinds: str) -> list[Problem]:
    problems = problems_of(qemu)
    assert [problem.kind for problem in problems] == list(kinds), problems
    for problem in problems:
        assert problem.blocks
        assert problem.cure
    return problems


def finish_jobs(qemu: PausedQemu) -> None:
    """Let the block jobs complete, and dismiss none: they leave by themselves."""
    with ClientMonitor(qemu.qmp_socket) as monitor:

        def jobs() -> Any:
            found = monitor.execute("query-block-jobs")
            for job in found:
                if job["ready"] and job["status"] == "ready":
                    monitor.execute("block-job-complete", {"device": job["device"]})
            return found

        wait_until(lambda: not jobs())


def unplug(qemu: PausedQemu, device: str) -> None:
    with ClientMonitor(qemu.qmp_socket) as monitor:
        monitor.execute("device_del", {"id": device})
        monitor.wait_event("DEVICE_DELETED", 10)


# --- no false alarms ---

ORDINARY = {
    "if-virtio": "-drive if=virtio,format=raw,file=a.img -drive if=virtio,format=qcow2,file=top.qcow2",
    "index": "-drive if=virtio,index=3,format=raw,file=a.img -drive if=virtio,format=raw,file=b.img",
    "ids": "-drive if=none,id=d0,format=raw,file=a.img -device virtio-blk-pci,drive=d0",
    "absolute": "-drive if=virtio,format=qcow2,file={place}/top.qcow2",
    "probed": "-drive if=virtio,file=top.qcow2 -drive if=virtio,file=a.img",
    "names": "-hda a.img -hdb b.img -cdrom c.img",
    "hdd-positional": "a.img -hdd d.img",
    "ide": "-drive format=raw,file=a.img -drive format=raw,file=b.img -drive media=cdrom,file=c.img",
    "none": "-drive if=none,format=raw,file=a.img -drive if=none,format=raw,file=b.img",
    "empty": "-drive if=none,id=cd,media=cdrom -device ide-cd,drive=cd -device ide-cd,id=x,bus=ide.1",
    "file-prefix": "-drive if=virtio,format=raw,file=file:a.img",
    "json": '-drive if=virtio,file=json:{{"driver":"raw",,"file":{{"driver":"file",,"filename":"b.img"}}}}',
    "driver": "-drive if=virtio,driver=raw,file.driver=file,file.filename=a.img",
    "blockdev": "-blockdev file,node-name=f,filename=top.qcow2 -blockdev qcow2,node-name=q,file=f"
    " -device virtio-blk-pci,drive=q",
    "blockdev-json": '-blockdev {{"driver":"qcow2","node-name":"q","file":{{"driver":"file","filename":"top.qcow2"}}}}'
    ' -device {{"driver":"virtio-blk-pci","drive":"q"}}',
    "libvirt": '-blockdev {{"driver":"file","filename":"{place}/mid.qcow2","node-name":"libvirt-2-storage"}}'
    ' -blockdev {{"node-name":"libvirt-2-format","driver":"qcow2","file":"libvirt-2-storage"}}'
    ' -blockdev {{"driver":"file","filename":"{place}/top.qcow2","node-name":"libvirt-1-storage"}}'
    ' -blockdev {{"node-name":"libvirt-1-format","driver":"qcow2","file":"libvirt-1-storage",'
    '"backing":"libvirt-2-format"}}'
    ' -device {{"driver":"virtio-blk-pci","drive":"libvirt-1-format","id":"virtio-disk0"}}',
    "backing": "-blockdev qcow2,node-name=q,file.driver=file,file.filename=top.qcow2,"
    "backing.driver=qcow2,backing.file.driver=file,backing.file.filename=base.qcow2 -device ide-hd,drive=q",
    "backing-driver": "-drive if=virtio,format=qcow2,file=top.qcow2,backing.driver=qcow2",
    "backing-null": '-blockdev {{"driver":"qcow2","node-name":"q","backing":null,'
    '"file":{{"driver":"file","filename":"top.qcow2"}}}} -device ide-hd,drive=q',
    "filters": "-object throttle-group,id=g,x-iops-total=100"
    " -blockdev throttle,node-name=t,throttle-group=g,file.driver=copy-on-read,file.file.driver=raw,"
    "file.file.file.driver=file,file.file.file.filename=a.img -device virtio-blk-pci,drive=t",
    "quorum": "-blockdev quorum,node-name=q,vote-threshold=1,children.0.driver=raw,children.0.file.driver=file,"
    "children.0.file.filename=a.img,children.1.driver=raw,children.1.file.driver=file,"
    "children.1.file.filename=b.img -device virtio-blk-pci,drive=q",
    "offset": "-drive if=virtio,format=raw,offset=4096,size=8192,file=a.img",
    "devices": "-device virtio-scsi-pci,id=s -device qemu-xhci -drive if=none,id=x,format=raw,file=a.img"
    " -device scsi-hd,drive=x -blockdev file,node-name=b,filename=b.img -device usb-storage,drive=b"
    " -drive if=virtio,format=raw,file=c.img -blockdev file,node-name=d,filename=d.img"
    ' -device {{"driver":"nvme","serial":"x","drive":"d"}}',
    "usb-with-an-id": "-device qemu-xhci -blockdev file,node-name=b,filename=b.img -device usb-storage,id=u,drive=b",
    "floppy": "-drive if=floppy,format=raw,file=floppy.img",
    "scsi-cd": "-device virtio-scsi-pci -blockdev file,node-name=b,filename=b.img,read-only=on"
    " -device scsi-cd,id=cd,drive=b",
    "throttled": "-drive if=virtio,format=raw,file=a.img,throttling.iops-total=100,cache=none,aio=native,discard=unmap",
    "copy-on-read": "-drive if=virtio,format=qcow2,file=top.qcow2,copy-on-read=on",
    "null": "-drive if=none,id=n,format=raw,file=null-co://",
    "data-file": "-drive if=virtio,format=qcow2,file=data.qcow2",
    "link": "-drive if=virtio,format=raw,file=link",
    "readconfig": "-readconfig vm.conf",
}


@pytest.mark.parametrize("qemu", ["own", "7.2"])
@pytest.mark.parametrize("words", ORDINARY.values(), ids=ORDINARY)
@pytest.mark.parametrize("machine", ["pc", "q35"])
def test_media_as_they_were_started_with(start_paused, disks, words, qemu, machine):
    if qemu == "7.2" and (machine == "pc" or not OLD_QEMU.exists()):
        pytest.skip("no QEMU 7.2 in .cache, or not with this machine")
    if machine == "q35" and ("-hdb" in words or "floppy" in words):
        pytest.skip("q35 has no such drive")
    make_disk(disks / "floppy.img", size="64k")
    make_disk(disks / "data.qcow2", "qcow2", "-o", "data_file=data.raw")
    (disks / "link").symlink_to("a.img")
    (disks / "vm.conf").write_text(
        '[drive "d0"]\n  if = "none"\n  file = "top.qcow2"\n  format = "qcow2"\n'
        '[device "v0"]\n  driver = "virtio-blk-pci"\n  drive = "d0"\n'
        '[drive]\n  if = "virtio"\n  file = "a.img"\n  format = "raw"\n'
    )
    options = {"qemu": str(OLD_QEMU)} if qemu == "7.2" else {}
    vm = start_paused(*words.format(place=disks).split(), machine=machine, **options)
    check_kinds(vm)


def test_flash(start_paused, disks):
    make_disk(disks / "flash.img", size="256k")
    with start_paused("-drive", "if=pflash,format=raw,readonly=on,file=flash.img", machine="pc") as vm:
        check_kinds(vm)
    node = "file,node-name=flash,filename=flash.img,read-only=on"
    with start_paused("-blockdev", node, machine="q35,pflash0=flash") as vm:
        check_kinds(vm)


def test_drives_that_qemu_adds_by_itself(start_paused, disks):
    # With QEMU's defaults, an empty CD drive and an empty floppy drive.
    vm = start_paused("-hda", "a.img", machine="pc", defaults=True)
    check_kinds(vm)


def test_names_that_need_care(start_paused, disks):
    for name in ("x,y=z.img", "a b'.img", "ü%s.img"):
        make_disk(disks / "new.img").rename(disks / name)
    vm = start_paused(
        *("-drive", "if=virtio,format=raw,file=x,,y=z.img", "-drive", "if=virtio,format=raw,file=a b'.img"),
        *("-drive", f"if=virtio,format=raw,file={disks}/ü%s.img"),
    )
    check_kinds(vm)


def test_relative_names_after_daemonize(start_paused, disks):
    pid_file = disks / "pid"
    (disks / "sub").mkdir()
    make_disk(disks / "sub" / "e.img")
    vm = start_paused(
        *("-drive", "if=virtio,format=raw,file=a.img", "-drive", "if=virtio,format=raw,file=sub/e.img"),
        *("-drive", "if=none,id=cd,media=cdrom,file=b.img", "-device", "ide-cd,drive=cd"),
        *("-daemonize", "-pidfile", str(pid_file)),
    )
    vm.daemon(pid_file)
    check_kinds(vm)
    medium = {"device": "cd", "filename": f"{disks}/c.img", "format": "raw"}
    vm.execute("blockdev-change-medium", medium)
    check_kinds(vm, "disk_replaced")


def test_network_disk(start_paused, disks):
    place = disks / "nbd.sock"
    server = subprocess.Popen(
        ["qemu-nbd", "-t", "-e", "9", "-f", "raw", "-x", "one", "-k", str(place), "a.img"], cwd=disks
    )
    try:
        wait_until(place.exists)
        for words in (
            f"-drive if=virtio,format=raw,file=nbd+unix:///one?socket={place}",
            f"-drive if=virtio,format=raw,file=nbd:unix:{place}:exportname=one",
            f"-blockdev raw,node-name=n,file.driver=nbd,file.server.type=unix,file.server.path={place},file.export=one"
            " -device virtio-blk-pci,drive=n",
            f"-drive if=virtio,driver=nbd,server.type=unix,server.path={place},export=one",
        ):
            with start_paused(*words.split()) as vm:
                check_kinds(vm)
                device = vm.execute("query-block")[0]
                node = device["inserted"]["node-name"]
                overlay = {"node-name": node, "snapshot-file": "over.qcow2", "snapshot-node-name": "over"}
                vm.execute("blockdev-snapshot-sync", overlay)
                check_kinds(vm, "disk_replaced")
    finally:
        server.kill()
        server.wait()


@pytest.mark.parametrize(
    "words",
    [
        "-drive if=virtio,format=raw,file=null-co://,file.size=1M",
        "-blockdev null-aio,node-name=n,size=1048576,read-zeroes=on -device virtio-blk-pci,drive=n",
        "-drive if=floppy,format=raw,readonly=on,file=fat:floppy:share",
        "-drive if=virtio,format=raw,readonly=on,file=fat:share",
        "-drive if=virtio,readonly=on,file=fat:16:share",
        "-blockdev vvfat,read-only=on,node-name=n,dir={place}/share,label=x -device virtio-blk-pci,drive=n",
    ],
)
def test_media_that_qemu_calls_by_their_options(start_paused, disks, words):
    (disks / "share").mkdir()
    check_kinds(start_paused(*words.format(place=disks).split()))


def test_directory_that_was_changed(start_paused, disks):
    for name in ("share", "other"):
        (disks / name).mkdir()
    vm = start_paused("-drive", "if=none,id=cd0,media=cdrom,file=fat:share", "-device", "ide-cd,drive=cd0")
    check_kinds(vm)
    vm.execute("blockdev-change-medium", {"device": "cd0", "filename": "fat:other", "format": "raw"})
    check_kinds(vm, "disk_replaced")


# --- parts of files ---

FILE = ("-blockdev", "file,node-name=f,filename=a.img,read-only=on")


@pytest.mark.parametrize(
    "words",
    [
        "-blockdev raw,node-name=n,offset=512,size=65536,file=f -device virtio-blk-pci,drive=n",
        "-blockdev raw,node-name=i,offset=512,file=f -blockdev raw,node-name=n,size=65536,file=i"
        " -device virtio-blk-pci,drive=n",
        "-drive if=virtio,format=raw,offset=1k,size=64K,file=b.img",
        "-drive if=virtio,offset=1024,file=b.img",
        "-drive if=virtio,format=raw,offset=0,file=b.img",
    ],
)
def test_part_of_a_file(start_paused, disks, words):
    check_kinds(start_paused(*FILE, *(word.replace("raw,node", "raw,read-only=on,node") for word in words.split())))


def test_other_part_of_the_same_file(start_paused, disks):
    part = "raw,read-only=on,node-name=n,offset=512,size=65536,file=f"
    vm = start_paused(*FILE, "-blockdev", part, "-device", "virtio-scsi-pci", "-device", "scsi-cd,drive=n,id=cd")
    check_kinds(vm)
    other = {"driver": "raw", "read-only": True, "size": 65536, "file": "f"}
    vm.execute("blockdev-reopen", {"options": [{**other, "node-name": "n", "offset": 131072}]})
    (problem,) = check_kinds(vm, "disk_chain")
    assert "65536 bytes from 131072" in problem.what
    vm.execute("blockdev-reopen", {"options": [{**other, "node-name": "n", "offset": 512}]})
    check_kinds(vm)
    vm.execute("blockdev-add", {**other, "node-name": "m", "offset": 131072})
    vm.execute("blockdev-open-tray", {"id": "cd"})
    vm.execute("blockdev-remove-medium", {"id": "cd"})
    vm.execute("blockdev-insert-medium", {"id": "cd", "node-name": "m"})
    check_kinds(vm, "disk_chain")


# --- snapshots ---

NAMED = ["-drive", "if=virtio,format=raw,file=a.img", "-drive", "if=virtio,format=raw,file=b.img"]
NODES = ["-blockdev", "raw,node-name=n0,file.driver=file,file.filename=a.img", "-device", "virtio-blk-pci,drive=n0"]


@pytest.mark.parametrize("name", ["over.qcow2", "{place}/over.qcow2", "json", "a.img.over", "b.img-2"])
def test_snapshot(start_paused, disks, name):
    vm = start_paused(*NAMED)
    make_disk(disks / "over.qcow2", "qcow2")
    if name == "json":
        name = json.dumps({"driver": "qcow2", "file": {"driver": "file", "filename": "over.qcow2"}})
        snapshot = {"device": "virtio0", "snapshot-file": f"json:{name}", "mode": "existing", "format": "qcow2"}
    else:
        snapshot = {"device": "virtio0", "snapshot-file": name.format(place=disks)}
    vm.execute("blockdev-snapshot-sync", snapshot)
    (problem,) = check_kinds(vm, "disk_replaced")
    assert "virtio0" in problem.what
    assert str(disks / "a.img") in problem.what


@pytest.mark.parametrize("backing", [True, False], ids=["header-names-it", "header-does-not"])
@pytest.mark.parametrize("qemu", ["own", "7.2"])
def test_overlay_that_was_added_as_a_node(start_paused, disks, backing, qemu):
    if qemu == "7.2" and not OLD_QEMU.exists():
        pytest.skip("no QEMU 7.2 in .cache")
    make_disk(disks / "over.qcow2", "qcow2", *(("-b", "a.img", "-F", "raw") if backing else ()))
    vm = start_paused(*NODES, **({"qemu": str(OLD_QEMU)} if qemu == "7.2" else {}))
    file = {"driver": "file", "filename": "over.qcow2"}
    vm.execute("blockdev-add", {"driver": "qcow2", "node-name": "over", "backing": None, "file": file})
    vm.execute("blockdev-snapshot", {"node": "n0", "overlay": "over"})
    check_kinds(vm, "disk_replaced")


def test_overlay_over_an_overlay_whose_header_says_otherwise(start_paused, disks):
    vm = start_paused("-drive", "if=virtio,format=qcow2,file=top.qcow2")
    node = vm.execute("query-block")[0]["inserted"]["node-name"]
    change = {"device": "virtio0", "image-node-name": node, "backing-file": "base.qcow2"}
    vm.execute("change-backing-file", change)
    (problem,) = check_kinds(vm, "disk_chain")
    assert "mid.qcow2" in problem.what


def test_snapshot_after_readconfig(start_paused, disks):
    (disks / "vm.conf").write_text('[drive]\n  if = "virtio"\n  file = "a.img"\n  format = "raw"\n')
    vm = start_paused("-readconfig", "vm.conf")
    check_kinds(vm)
    vm.execute("blockdev-snapshot-sync", {"device": "virtio0", "snapshot-file": "over.qcow2"})
    check_kinds(vm, "disk_replaced")


def test_temporary_disk(start_paused, disks):
    check_kinds(start_paused("-drive", "if=virtio,format=raw,file=a.img,snapshot=on"), "disk_replaced")
    check_kinds(start_paused("-drive", "if=virtio,format=raw,file=b.img", "-snapshot"), "disk_replaced")


# --- block jobs ---


@pytest.mark.parametrize("target", ["copy.img", "a.img.copy", "a.im", "{place}/b.img2"])
def test_mirror(start_paused, disks, target):
    vm = start_paused(*NAMED)
    mirror = {"device": "virtio0", "target": target.format(place=disks), "sync": "full", "format": "raw"}
    vm.execute("drive-mirror", mirror)
    finish_jobs(vm)
    check_kinds(vm, "disk_replaced")


def test_mirror_to_a_node(start_paused, disks):
    vm = start_paused(*NODES)
    vm.execute("blockdev-add", {"driver": "raw", "node-name": "t", "file": {"driver": "file", "filename": "b.img"}})
    vm.execute("blockdev-mirror", {"device": "n0", "target": "t", "sync": "full", "job-id": "m"})
    finish_jobs(vm)
    check_kinds(vm, "disk_replaced")


def test_mirror_onto_the_file_that_another_drive_has(start_paused, disks):
    """What the command line names, but for another drive."""
    vm = start_paused(*NAMED[:2], "-drive", "if=none,id=spare,format=raw,file=b.img")
    vm.execute("human-monitor-command", {"command-line": "drive_del spare"})
    vm.execute(
        "drive-mirror", {"device": "virtio0", "target": "b.img", "sync": "full", "format": "raw", "mode": "existing"}
    )
    finish_jobs(vm)
    check_kinds(vm, "disk_replaced", "disk_missing")


def test_commit_of_the_active_layer(start_paused, disks):
    vm = start_paused("-drive", "if=virtio,format=qcow2,file=top.qcow2")
    vm.execute("block-commit", {"device": "virtio0"})
    finish_jobs(vm)
    check_kinds(vm, "disk_replaced")


def test_commit_and_stream_that_the_header_knows_of(start_paused, disks):
    """A start by the same command line gives the new chain."""
    vm = start_paused("-drive", "if=virtio,format=qcow2,file=top.qcow2")
    vm.execute("block-commit", {"device": "virtio0", "top": "mid.qcow2", "base": "base.qcow2"})
    finish_jobs(vm)
    check_kinds(vm)
    vm.execute("block-stream", {"device": "virtio0"})
    finish_jobs(vm)
    check_kinds(vm)


def test_commit_of_a_layer_that_the_command_line_names(start_paused, disks):
    vm = start_paused(
        *("-blockdev", "qcow2,node-name=base,file.driver=file,file.filename=base.qcow2"),
        *("-blockdev", "qcow2,node-name=mid,file.driver=file,file.filename=mid.qcow2,backing=base"),
        *("-blockdev", "qcow2,node-name=top,file.driver=file,file.filename=top.qcow2,backing=mid"),
        *("-device", "virtio-blk-pci,drive=top"),
    )
    check_kinds(vm)
    vm.execute("block-commit", {"job-id": "c", "device": "top", "top-node": "mid", "base-node": "base"})
    finish_jobs(vm)
    check_kinds(vm, "disk_chain")


# --- media ---

CDS = ["-drive", "if=none,id=cd0,media=cdrom,file=a.img", "-device", "ide-cd,drive=cd0,bus=ide.0"]
CDS += ["-drive", "if=none,id=cd1,media=cdrom,file=b.img", "-device", "ide-cd,drive=cd1,bus=ide.1"]


def test_media_that_were_changed(start_paused, disks):
    vm = start_paused(*CDS, "-device", "ide-cd,id=cd2,bus=ide.2")
    check_kinds(vm)
    vm.execute("blockdev-change-medium", {"device": "cd0", "filename": "c.img", "format": "raw"})
    check_kinds(vm, "disk_replaced")
    vm.execute("blockdev-change-medium", {"device": "cd0", "filename": "a.img", "format": "raw"})
    check_kinds(vm)
    vm.execute("eject", {"device": "cd1", "force": True})
    (problem,) = check_kinds(vm, "disk_replaced")
    assert "empty now" in problem.what
    vm.execute("blockdev-change-medium", {"id": "cd2", "filename": "b.img", "format": "raw"})
    check_kinds(vm, "disk_replaced", "disk_replaced")


def test_media_that_were_swapped(start_paused, disks):
    vm = start_paused(*CDS)
    for device, name in (("cd0", "b.img"), ("cd1", "a.img")):
        vm.execute("blockdev-change-medium", {"device": device, "filename": name, "format": "raw"})
    check_kinds(vm, "disk_replaced", "disk_replaced")


def test_medium_that_was_ejected_and_deleted(start_paused, disks):
    vm = start_paused(*CDS)
    vm.execute("eject", {"device": "cd1", "force": True})
    (disks / "b.img").unlink()
    (problem,) = check_kinds(vm, "disk_unknown")
    assert f"{disks}/b.img cannot be read: No such file" in problem.what


@pytest.mark.parametrize("change", ["deleted", "replaced", "moved", "link"])
def test_file_that_the_command_line_does_not_lead_to_any_more(start_paused, disks, change):
    (disks / "link").symlink_to("a.img")
    vm = start_paused("-drive", f"if=virtio,format=raw,file={'link' if change == 'link' else 'a.img'}")
    if change == "deleted":
        (disks / "a.img").unlink()
    elif change == "replaced":
        os.rename(disks / "b.img", disks / "a.img")
    elif change == "moved":
        os.rename(disks / "a.img", disks / "old.img")
    else:
        (disks / "link").unlink()
        (disks / "link").symlink_to("b.img")
    check_kinds(vm, "disk_unknown")


# --- drives that come and go ---


def test_node_that_was_put_in_again_with_another_file(start_paused, disks):
    vm = start_paused(
        *("-device", "pcie-root-port,id=rp", "-blockdev", "file,node-name=n,filename=a.img"),
        *("-device", "virtio-scsi-pci,id=s", "-device", "scsi-hd,id=h,drive=n,bus=s.0"),
    )
    check_kinds(vm)
    unplug(vm, "h")
    check_kinds(vm, "disk_missing")
    vm.execute("blockdev-del", {"node-name": "n"})
    vm.execute("blockdev-add", {"driver": "file", "node-name": "n", "filename": "b.img"})
    vm.execute("device_add", {"driver": "scsi-hd", "id": "h", "drive": "n", "bus": "s.0"})
    check_kinds(vm, "disk_replaced")


def test_drive_that_was_taken_out_or_added(start_paused, disks):
    vm = start_paused(
        *("-device", "virtio-scsi-pci,id=s", "-drive", "if=none,id=d,format=raw,file=a.img"),
        *("-device", "scsi-hd,id=h,drive=d,bus=s.0"),
    )
    check_kinds(vm)
    unplug(vm, "h")
    check_kinds(vm, "disk_missing")
    vm.execute("blockdev-add", {"driver": "file", "node-name": "n", "filename": "b.img"})
    vm.execute("device_add", {"driver": "scsi-hd", "id": "h2", "drive": "n", "bus": "s.0"})
    assert sorted(problem.kind for problem in problems_of(vm)) == ["disk_added", "disk_missing"]
    vm.execute("human-monitor-command", {"command-line": "drive_add 0 if=none,id=e,format=raw,file=c.img"})
    assert sorted(problem.kind for problem in problems_of(vm)) == ["disk_added", "disk_added", "disk_missing"]


def test_configuration_file_that_cannot_be_read(start_paused, disks):
    (disks / "vm.conf").write_text('[drive "d0"]\n  if = "virtio"\n  file = "a.img"\n  format = "raw"\n')
    vm = start_paused("-readconfig", "vm.conf")
    (disks / "vm.conf").unlink()
    check_kinds(vm, "disk_unknown")


def test_process_that_is_not_known(start_paused, disks):
    vm = start_paused(*NAMED)

    async def look() -> list[Problem]:
        configuration = read_configuration(vm.argv)
        async with await Monitor.connect(str(vm.qmp_socket)) as monitor:
            devices = await read_devices(monitor)
            return await replaced_media(await read_media(monitor, None), devices, configuration, None)

    (problem,) = asyncio.run(look())
    assert (problem.kind, problem.blocks) == ("disk_unknown", True)


def test_cost(start_paused, tmp_path):
    arguments: list[str] = []
    for number in range(8):
        make_disk(tmp_path / f"base-{number}", "qcow2")
        make_disk(tmp_path / f"disk-{number}", "qcow2", "-b", f"base-{number}", "-F", "qcow2")
        arguments += ["-drive", f"if=virtio,format=qcow2,file=disk-{number}"]
    vm = start_paused(*arguments)

    async def measure() -> float:
        process = read_process(vm.pid)
        assert process is not None
        configuration = read_configuration(process.argv, process.cwd, process.pid, process.uid)
        async with await Monitor.connect(str(vm.qmp_socket)) as monitor:
            took = []
            for _time in range(5):
                begin = time.process_time()
                media = await read_media(monitor, process)
                assert await replaced_media(media, await read_devices(monitor), configuration, process) == []
                took.append(time.process_time() - begin)
            return min(took)

    assert asyncio.run(measure()) < 0.05
