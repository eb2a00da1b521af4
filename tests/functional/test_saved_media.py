# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""When media keep still, and what is seen where they are others: real QEMUs save, end, and wait for the state."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.monitor import Monitor
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import read_process
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.disks import read_media
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.media import Medium
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.media_changes import (
    changed_media,
    other_media,
    settling_time,
)
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.media_record import parse_media, record_media

from support import wait_migration
from support.mounts import mounted
from support.paused import PausedQemu, make_disk
from support.versions import OLD_QEMU

LABEL = "the VM web1"


def media_of(qemu: PausedQemu) -> list[Medium]:
    async def read() -> list[Medium]:
        async with await Monitor.connect(str(qemu.qmp_socket)) as monitor:
            return await read_media(monitor, read_process(qemu.pid))

    return asyncio.run(read())


def record_of(qemu: PausedQemu, state: Path) -> list[Medium]:
    """Save it, and give what an image records of its media."""
    qemu.migrate(state)
    media = media_of(qemu)
    time.sleep(settling_time(media))
    return parse_media(json.loads(json.dumps(record_media(media))))


def kinds(problems: list[Any]) -> list[str]:
    return [problem.kind for problem in problems]


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A directory on a file system of the kind that is the parameter."""
    if request.param == "own":
        yield tmp_path
        return
    if os.geteuid() != 0:
        pytest.skip("only root can mount file systems")
    with mounted(tmp_path / request.param, request.param) as problem:
        if problem:
            pytest.skip(problem)
        yield tmp_path / request.param


@pytest.mark.parametrize(
    ("qemu", "cache", "place"),
    [
        *(("qemu-system-x86_64", cache, "own") for cache in ("writeback", "none", "unsafe")),
        *(("qemu-system-x86_64", "writeback", kind) for kind in ("tmpfs", "ext4", "xfs", "btrfs")),
        pytest.param(str(OLD_QEMU), "none", "own", id="7.2-none-own"),
    ],
    indirect=["place"],
)
def test_media_keep_still_from_the_save_to_the_restore(start_paused, place, cache, qemu):
    if not os.path.exists(qemu) and qemu == str(OLD_QEMU):
        pytest.skip("no QEMU 7.2 in .cache")
    secret = ("--object", "secret,id=s,data=abc")
    make_disk(place / "raw.img")
    make_disk(place / "q.qcow2", "qcow2")
    make_disk(place / "lazy.qcow2", "qcow2", "-o", "lazy_refcounts=on")
    make_disk(place / "bitmap.qcow2", "qcow2")
    subprocess.run(["qemu-img", "bitmap", "--add", place / "bitmap.qcow2", "bm"], check=True)
    make_disk(place / "c.luks", "luks", *secret, "-o", "key-secret=s,iter-time=10")
    make_disk(place / "base.qcow2", "qcow2")
    make_disk(place / "top.qcow2", "qcow2", "-b", "base.qcow2", "-F", "qcow2")
    make_disk(place / "d.qcow2", "qcow2", "-o", "data_file=d.raw")
    words = ["format=raw,file=raw.img"]
    words += [f"format=qcow2,file={name}.qcow2" for name in ("q", "lazy", "bitmap", "top", "d")]
    words += ["driver=luks,key-secret=s,file.driver=file,file.filename=c.luks"]
    arguments = ["-object", secret[1]]
    for word in words:
        arguments += ["-drive", f"if=virtio,{word},cache={cache}"]
    arguments += ["-drive", "if=none,id=cd,readonly=on,media=cdrom,file=base.qcow2", "-device", "ide-cd,drive=cd"]
    state = place / "state"

    with start_paused(*arguments, place=place, qemu=qemu) as saved:
        for number in range(len(words)):
            saved.write(f"virtio{number}", "write -P 7 0 64k")
            saved.write(f"virtio{number}", "write -P 9 512k 64k")
        before = record_of(saved, state)
        assert [len(medium.files) for medium in before] == [1, 1, 1, 1, 2, 2, 1, 1]
        assert not any(file.uncheckable for medium in before for file in medium.files)
        assert changed_media(before) == []
        saved.quit()
    assert changed_media(before) == []

    waiting = start_paused(*arguments, "-incoming", "defer", place=place, qemu=qemu)
    assert other_media(before, media_of(waiting), LABEL) == []
    assert changed_media(before) == []
    waiting.execute("migrate-incoming", {"uri": f"exec:cat {state}"})
    assert wait_migration(waiting.qmp_socket)["status"] == "completed"
    # From now on QEMU may write by itself: 7.2 marks the persistent bitmaps as being in use already here.
    waiting.execute("cont")
    for number in range(len(words)):
        waiting.write(f"virtio{number}", "write -P 7 0 512")
    written = [problem.what for problem in changed_media(before)]
    names = ["raw.img", "q.qcow2", "lazy.qcow2", "bitmap.qcow2", "top.qcow2", "d.raw", "c.luks"]
    for name in names:
        assert any(name in what for what in written), name
    assert not any("base.qcow2" in what for what in written)


def test_write_right_after_the_record_shows(start_paused, tmp_path):
    make_disk(tmp_path / "a.img")
    vm = start_paused("-drive", "if=virtio,format=raw,file=a.img")
    for _time in range(20):
        vm.write("virtio0", "write 0 512")
        media = media_of(vm)
        time.sleep(settling_time(media))
        vm.write("virtio0", "write 0 512")
        assert kinds(changed_media(media)) == ["disk_written"]


# --- the QEMU that waits has other media ---


@pytest.fixture
def disks(tmp_path: Path) -> Path:
    for name in ("a.img", "b.img"):
        make_disk(tmp_path / name)
    make_disk(tmp_path / "base.qcow2", "qcow2")
    make_disk(tmp_path / "top.qcow2", "qcow2", "-b", "base.qcow2", "-F", "qcow2")
    make_disk(tmp_path / "other.qcow2", "qcow2")
    return tmp_path


SAVED = ["-drive", "if=virtio,format=qcow2,file=top.qcow2", "-drive", "if=none,id=cd,media=cdrom,file=a.img"]
SAVED += ["-device", "ide-cd,drive=cd"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, []),
        ({"file=top.qcow2": "file=./top.qcow2"}, []),
        ({"file=top.qcow2": "file=copy.qcow2"}, []),
        ({"file=top.qcow2": "file=base.qcow2"}, ["disk_chain"]),
        ({"file=top.qcow2": "file=other.qcow2"}, ["disk_chain"]),
        ({"file=top.qcow2": "file=top.qcow2,backing.file.filename=other.qcow2"}, ["disk_replaced"]),
        ({"format=qcow2": "format=raw"}, ["disk_chain"]),
        ({",file=a.img": ",file=b.img"}, ["disk_replaced"]),
        ({",file=a.img": ""}, ["disk_missing"]),
        ({"-drive if=virtio,format=qcow2,file=top.qcow2": ""}, ["disk_missing"]),
        ({"-device": "-drive if=virtio,format=raw,file=b.img -device"}, ["disk_added"]),
    ],
)
def test_media_of_the_qemu_that_waits(start_paused, disks, change, expected):
    subprocess.run(["cp", "-p", disks / "top.qcow2", disks / "copy.qcow2"], check=True)
    with start_paused(*SAVED) as saved:
        before = record_of(saved, disks / "state")
    assert changed_media(before) == []
    words = " ".join(SAVED)
    for old, new in change.items():
        assert old in words
        words = words.replace(old, new)
    waiting = start_paused(*words.split(), "-incoming", "defer")
    assert kinds(other_media(before, media_of(waiting), LABEL)) == expected


NODES = ["-blockdev", "file,node-name=a,filename=a.img", "-blockdev", "file,node-name=b,filename=b.img"]


@pytest.mark.parametrize(
    ("machine", "devices", "other"),
    [
        ("pc", "virtio-blk-pci,drive=a,id=x virtio-blk-pci,drive=b,id=y", "second first"),
        ("pc", "virtio-blk-pci,drive=a,id=x,addr=5 virtio-blk-pci,drive=b,id=y,addr=6", "5 6"),
        ("q35", "virtio-blk-pci,drive=a,id=x,bus=p virtio-blk-pci,drive=b,id=y,bus=r", "=p =r"),
        ("pc", "virtio-scsi scsi-hd,drive=a,id=x,scsi-id=1 scsi-hd,drive=b,id=y,scsi-id=2", "1 2"),
        ("pc", "virtio-scsi scsi-hd,drive=a,id=x,lun=1 scsi-hd,drive=b,id=y,lun=2", "1 2"),
        ("pc", "ide-hd,drive=a,id=x,bus=ide.0,unit=0 ide-hd,drive=b,id=y,bus=ide.0,unit=1", "0 1"),
    ],
)
def test_disks_in_each_others_place(start_paused, disks, machine, devices, other):
    """QEMU loads such an image without an error, and the guest takes each disk for the other."""
    words = devices.split()
    if machine == "q35":
        words = ["pcie-root-port,id=p,chassis=1", "pcie-root-port,id=r,chassis=2", *words]
    first, second = other.split()
    if first == "second":
        swapped = words[::-1]
    else:
        swapped = [*words[:-2], words[-2][: -len(first)] + second, words[-1][: -len(second)] + first]

    def options(devices: list[str]) -> list[str]:
        return [*NODES, *(word for device in devices for word in ("-device", device))]

    with start_paused(*options(words), machine=machine) as saved:
        before = record_of(saved, disks / "state")
    with start_paused(*options(words), "-incoming", "defer", machine=machine) as waiting:
        assert other_media(before, media_of(waiting), LABEL) == []
    waiting = start_paused(*options(swapped), "-incoming", "defer", machine=machine)
    problems = other_media(before, media_of(waiting), LABEL)
    assert kinds(problems) == ["disk_replaced", "disk_replaced"]
    assert "in another place" in problems[0].what


def test_medium_that_was_ejected_or_changed_before_the_save(start_paused, disks):
    with start_paused(*SAVED) as saved:
        saved.execute("eject", {"device": "cd", "force": True})
        ejected = record_of(saved, disks / "state")
        saved.execute("cont")
        saved.execute("blockdev-change-medium", {"device": "cd", "filename": "b.img", "format": "raw"})
        changed = media_of(saved)
    opened = media_of(start_paused(*SAVED, "-incoming", "defer"))
    assert "disk_added" in kinds(other_media(ejected, opened, LABEL))
    assert "disk_replaced" in kinds(other_media(changed, opened, LABEL))


def test_same_disk_after_an_upgrade_of_qemu(start_paused, disks):
    if not OLD_QEMU.exists():
        pytest.skip("no QEMU 7.2 in .cache")
    arguments = ["-drive", "if=pflash,format=raw,readonly=on,file=flash.img", "-hda", "a.img", *SAVED[:2]]
    make_disk(disks / "flash.img", size="256k")
    with start_paused(*arguments, qemu=str(OLD_QEMU), machine="pc-i440fx-7.2") as saved:
        before = media_of(saved)
    waiting = start_paused(*arguments, "-incoming", "defer", machine="pc-i440fx-7.2")
    assert [file.path for medium in before for file in medium.files]
    assert other_media(before, media_of(waiting), LABEL) == []
