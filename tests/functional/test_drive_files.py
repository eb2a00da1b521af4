# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is in each drive of a real QEMU, file by file: held against the files that the test made."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.monitor import Monitor
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import read_process
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.disks import read_media
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.media import Medium, MediumFile

from support import Monitor as ClientMonitor
from support.loops import loop_device
from support.paused import PausedQemu, make_disk
from support.versions import OLD_QEMU

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can do this to a QEMU")

QEMUS = [
    pytest.param("qemu-system-x86_64", id="own"),
    pytest.param(
        str(OLD_QEMU), id="7.2", marks=pytest.mark.skipif(not OLD_QEMU.exists(), reason="no QEMU 7.2 in .cache")
    ),
]


def media_of(qemu: PausedQemu, process: bool = True) -> list[Medium]:
    async def read() -> list[Medium]:
        async with await Monitor.connect(str(qemu.qmp_socket)) as monitor:
            return await read_media(monitor, read_process(qemu.pid) if process else None)

    return asyncio.run(read())


def medium_of(qemu: PausedQemu, label: str = "") -> Medium:
    """The one medium of this label, or the only one."""
    (found,) = [medium for medium in media_of(qemu) if label in ("", medium.label)]
    return found


def paths(medium: Medium) -> list[str]:
    return [os.path.basename(file.path) for file in medium.files]


def formats(medium: Medium) -> list[str]:
    return [file.format for file in medium.files]


def check_files(medium: Medium) -> None:
    """Each has an absolute path, by which this very file is reached, and its facts."""
    for file in medium.files:
        assert file.uncheckable == "", file
        assert os.path.isabs(file.path)
        facts = os.stat(file.path)
        assert (file.size, file.mtime_ns) == (facts.st_size, facts.st_mtime_ns)
        assert (file.inode, file.device_number) == (facts.st_ino, facts.st_dev)


def check_uncheckable(file: MediumFile, *said: str) -> None:
    assert file.uncheckable
    for text in said:
        assert text in file.uncheckable, file
    assert file.mtime_ns == 0


@pytest.fixture
def disks(tmp_path: Path) -> Path:
    """A raw disk, and a chain of three: top.qcow2, mid.qcow2 and base.qcow2."""
    make_disk(tmp_path / "a.img")
    make_disk(tmp_path / "b.img")
    make_disk(tmp_path / "base.qcow2", "qcow2")
    make_disk(tmp_path / "mid.qcow2", "qcow2", "-b", "base.qcow2", "-F", "qcow2")
    make_disk(tmp_path / "top.qcow2", "qcow2", "-b", "mid.qcow2", "-F", "qcow2")
    return tmp_path


# --- the chain ---


@pytest.mark.parametrize("qemu", QEMUS)
def test_files_of_each_drive(start_paused, disks, qemu):
    make_disk(disks / "d.qcow2", "qcow2", "-o", "data_file=d.raw")
    vm = start_paused(
        *("-drive", "if=virtio,format=raw,file=a.img"),
        *("-drive", f"if=none,id=chain,format=qcow2,file={disks}/top.qcow2", "-device", "ide-hd,drive=chain"),
        *("-blockdev", "qcow2,node-name=data,file.driver=file,file.filename=d.qcow2"),
        *("-device", "virtio-blk-pci,id=vd,drive=data"),
        *("-drive", "if=none,id=cd,media=cdrom,readonly=on,file=b.img", "-device", "ide-cd,bus=ide.2,drive=cd"),
        qemu=qemu,
    )
    media = {medium.label: medium for medium in media_of(vm)}
    assert {label: (paths(medium), formats(medium)) for label, medium in media.items()} == {
        "virtio0": (["a.img"], ["raw"]),
        "chain": (["top.qcow2", "mid.qcow2", "base.qcow2"], ["qcow2"] * 3),
        "cd": (["b.img"], ["raw"]),
        "/machine/peripheral/vd/virtio-backend": (["d.qcow2", "d.raw"], ["qcow2"] * 2),
    }
    for medium in media.values():
        check_files(medium)
    assert [media["cd"].read_only, media["chain"].read_only] == [True, False]


@pytest.mark.parametrize("qemu", QEMUS)
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"driver": "throttle", "throttle-group": "g", "file": {"driver": "qcow2", "file": "T"}}, ["qcow2"] * 3),
        ({"driver": "copy-on-read", "file": {"driver": "raw", "file": "A"}}, ["raw"]),
        (
            {"driver": "raw", "offset": 4096, "size": 65536, "file": {"driver": "blkdebug", "image": "A"}},
            ["raw, 65536 bytes from 4096"],
        ),
        ({"driver": "preallocate", "file": "A"}, ["raw"]),
        ("A", ["raw"]),
        (
            {
                "driver": "quorum",
                "vote-threshold": 1,
                "children": [{"driver": "raw", "file": "A"}, {"driver": "raw", "file": "B"}],
            },
            ["raw", "raw"],
        ),
    ],
    ids=["throttle", "copy-on-read", "offset-blkdebug", "preallocate", "protocol", "quorum"],
)
def test_filters_are_looked_through(start_paused, disks, qemu, options, expected):
    names = {"A": "a.img", "B": "b.img", "T": "top.qcow2"}

    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: filled(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [filled(inner) for inner in value]
        return {"driver": "file", "filename": names[value]} if value in names else value

    arguments = json.dumps({**filled(options), "node-name": "disk"})
    vm = start_paused(
        *("-object", "throttle-group,id=g,x-iops-total=1000", "-blockdev", arguments),
        *("-device", "virtio-blk-pci,drive=disk"),
        qemu=qemu,
    )
    medium = medium_of(vm)
    assert formats(medium) == expected
    assert paths(medium)[0] == ("top.qcow2" if "qcow2" in expected else "a.img")
    check_files(medium)


def test_encrypted_disk(start_paused, tmp_path):
    secret = ("--object", "secret,id=s,data=abc")
    make_disk(tmp_path / "c.luks", "luks", *secret, "-o", "key-secret=s,iter-time=10")
    node = "luks,node-name=c,key-secret=s,file.driver=file,file.filename=c.luks"
    vm = start_paused("-object", secret[1], "-blockdev", node, "-device", "virtio-blk-pci,drive=c")
    medium = medium_of(vm)
    assert (paths(medium), formats(medium)) == (["c.luks"], ["luks"])
    check_files(medium)


def test_snapshot_and_mirror_that_were_taken_meanwhile(start_paused, disks):
    vm = start_paused("-drive", "if=virtio,format=raw,file=a.img", "-drive", "if=virtio,format=raw,file=b.img")
    vm.execute("blockdev-snapshot-sync", {"device": "virtio0", "snapshot-file": "over.qcow2"})
    vm.execute("drive-mirror", {"device": "virtio1", "target": "copy.img", "sync": "full", "format": "raw"})
    while not any(job["ready"] for job in vm.execute("query-block-jobs")):
        pass
    assert [paths(medium) for medium in media_of(vm)] == [["over.qcow2", "a.img"], ["b.img"]]
    vm.execute("block-job-complete", {"device": "virtio1"})
    while vm.execute("query-block-jobs"):
        pass
    media = media_of(vm)
    assert [paths(medium) for medium in media] == [["over.qcow2", "a.img"], ["copy.img"]]
    for medium in media:
        check_files(medium)


# --- empty, and not files ---


def test_drives_without_a_medium(start_paused, disks):
    vm = start_paused(
        *("-device", "ide-cd,id=cd0,bus=ide.0"),
        *("-drive", "if=none,id=cd1,media=cdrom,file=b.img", "-device", "ide-cd,bus=ide.1,drive=cd1"),
    )
    assert sorted(paths(medium) for medium in media_of(vm)) == [[], ["b.img"]]
    vm.execute("eject", {"device": "cd1", "force": True})
    assert [(medium.label, medium.files) for medium in media_of(vm)] == [("cd1", ()), ("cd0", ())]


def test_storage_of_a_server(start_paused, disks, tmp_path):
    place = tmp_path / "nbd.sock"
    server = subprocess.Popen(["qemu-nbd", "-t", "-f", "raw", "-k", str(place), "a.img"], cwd=tmp_path)
    try:
        while not place.exists():
            assert server.poll() is None
        vm = start_paused(
            *("-drive", f"if=virtio,format=raw,file=nbd+unix:///?socket={place}"),
            *("-drive", "if=none,id=nothing,format=raw,file=null-co://"),
        )
        served, nothing = media_of(vm)
    finally:
        server.kill()
        server.wait()
    assert served.files[0].path == f"nbd+unix://?socket={place}"
    check_uncheckable(served.files[0], "nbd", "no file of it")
    check_uncheckable(nothing.files[0], "keeps nothing")


@only_root
def test_block_device(start_paused, disks):
    os.truncate(disks / "a.img", 2**20 + 512)
    with loop_device(disks / "a.img", "--offset", "512") as device:
        (disks / "by-name").symlink_to(device)
        with start_paused("-drive", "if=virtio,format=raw,file=by-name") as vm:
            (file,) = medium_of(vm).files
        number = os.stat(device).st_ino
    assert file.path == str(disks / "by-name")
    assert (file.size, file.inode) == (2**20, number)
    # A loop device is what the file behind it is.
    assert (file.uncheckable, file.mtime_ns) == ("", (disks / "a.img").stat().st_mtime_ns)
    assert (file.identity, file.format) == (f"loop over {disks}/a.img", "raw, from byte 512 of its file")


@only_root
def test_block_device_that_keeps_no_time(start_paused, disks):
    """A loop device over another device: which one it is can be told, and no more."""
    with contextlib.ExitStack() as stack:
        below = stack.enter_context(loop_device(disks / "a.img"))
        device = stack.enter_context(loop_device(below))
        with start_paused("-drive", f"if=virtio,format=raw,file={device}") as vm:
            (file,) = medium_of(vm).files
    assert file.size == 2**20
    check_uncheckable(file, "device")
    assert file.identity == f"loop over loop over {disks}/a.img from byte 0 from byte 0"


def test_storage_that_qemu_does_not_see(start_paused, disks, tmp_path):
    if shutil.which("qemu-storage-daemon") is None:
        pytest.skip("no qemu-storage-daemon")
    place = tmp_path / "vub.sock"
    server = subprocess.Popen(
        [
            *("qemu-storage-daemon", "--blockdev", "file,node-name=a,filename=a.img"),
            *("--export", f"vhost-user-blk,id=e,node-name=a,addr.type=unix,addr.path={place},writable=on"),
        ],
        cwd=tmp_path,
    )
    try:
        while not place.exists():
            assert server.poll() is None
        vm = start_paused(
            *("-object", "memory-backend-memfd,id=mem,size=16M,share=on", "-machine", "memory-backend=mem"),
            *("-chardev", f"socket,id=c,path={place}", "-device", "vhost-user-blk-pci,id=vub,chardev=c"),
        )
        medium = medium_of(vm)
    finally:
        server.kill()
        server.wait()
    assert medium.label == "/machine/peripheral/vub"
    check_uncheckable(medium.files[0], "not in QEMU's hands")


# --- names ---


@pytest.mark.parametrize("qemu", QEMUS)
@pytest.mark.parametrize(
    "name", ["a,b=c.img", "a b'.img", "a:b.img", "nbd:x.img", "json:x.img", "ü%s.img", "x (deleted)", "file:y"]
)
def test_names(start_paused, tmp_path, qemu, name):
    make_disk(tmp_path / "plain.img").rename(tmp_path / name)
    arguments = json.dumps({"driver": "raw", "node-name": "d", "file": {"driver": "file", "filename": name}})
    vm = start_paused("-blockdev", arguments, "-device", "virtio-blk-pci,drive=d", qemu=qemu)
    medium = medium_of(vm)
    assert [file.path for file in medium.files] == [str(tmp_path / name)]
    check_files(medium)


def test_name_that_is_not_utf_8(start_paused, tmp_path):
    name = os.fsdecode(b"\xff\xfe.img")
    make_disk(tmp_path / "plain.img").rename(tmp_path / name)
    medium = medium_of(start_paused("-drive", f"if=virtio,format=raw,file={name}"))
    assert [file.path for file in medium.files] == [str(tmp_path / name)]
    check_files(medium)


def test_protocol_and_json_names_on_the_command_line(start_paused, disks):
    vm = start_paused(
        *("-drive", "if=virtio,format=raw,file=file:a.img"),
        *("-drive", 'if=virtio,file=json:{"driver":"raw",,"file":{"driver":"file",,"filename":"b.img"}}'),
    )
    media = media_of(vm)
    assert [paths(medium) for medium in media] == [["a.img"], ["b.img"]]
    for medium in media:
        check_files(medium)


def test_link(start_paused, disks):
    (disks / "link").symlink_to("a.img")
    vm = start_paused("-drive", f"if=virtio,format=raw,file={disks}/link")
    medium = medium_of(vm)
    assert [file.path for file in medium.files] == [f"{disks}/link"]
    check_files(medium)
    (disks / "link").unlink()
    (disks / "link").symlink_to("b.img")
    check_uncheckable(medium_of(vm).files[0], "another file has this name now")


@pytest.mark.parametrize("change", ["deleted", "replaced", "renamed"])
def test_file_that_is_not_there_any_more(start_paused, disks, change):
    vm = start_paused("-drive", "if=virtio,format=raw,file=a.img")
    if change == "deleted":
        (disks / "a.img").unlink()
    elif change == "replaced":
        os.rename(disks / "b.img", disks / "a.img")
    else:
        os.rename(disks / "a.img", disks / "old.img")
    check_uncheckable(medium_of(vm).files[0], "has been moved" if change == "renamed" else "deleted or replaced")


def test_relative_name_after_daemonize(start_paused, disks):
    pid_file = disks / "pid"
    vm = start_paused("-drive", "if=virtio,format=raw,file=a.img", "-daemonize", "-pidfile", str(pid_file))
    vm.daemon(pid_file)
    medium = medium_of(vm)
    assert [file.path for file in medium.files] == [str(disks / "a.img")]
    check_files(medium)


def test_relative_names_that_cannot_be_told_apart(start_paused, disks):
    (disks / "sub").mkdir()
    make_disk(disks / "sub" / "a.img")
    pid_file = disks / "pid"
    vm = start_paused(
        *("-drive", "if=virtio,format=raw,file=a.img", "-drive", "if=virtio,format=raw,file=sub/a.img"),
        *("-daemonize", "-pidfile", str(pid_file)),
    )
    vm.daemon(pid_file)
    unknown, known = media_of(vm)
    check_uncheckable(unknown.files[0], "several files of this name")
    assert [file.path for file in known.files] == [str(disks / "sub" / "a.img")]


@only_root
def test_jail(start_paused, disks):
    vm = start_paused("-drive", "if=virtio,format=raw,file=a.img", "-run-with", f"chroot={disks}")
    overlay = {"device": "virtio0", "snapshot-file": "/jailed.qcow2", "mode": "absolute-paths"}
    vm.execute("blockdev-snapshot-sync", overlay)
    medium = medium_of(vm)
    assert [file.path for file in medium.files] == [f"{disks}/jailed.qcow2", f"{disks}/a.img"]
    check_files(medium)


@only_root
def test_other_mount_namespace(start_paused, disks):
    if shutil.which("unshare") is None:
        pytest.skip("no unshare")
    (disks / "inner").mkdir()
    (disks / "outer").mkdir()
    make_disk(disks / "inner" / "a.img")
    make_disk(disks / "outer" / "a.img")
    script = f'mount --bind {disks}/inner {disks}/outer && exec "$@"'
    prefix = ("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh")
    vm = start_paused("-drive", f"if=virtio,format=raw,file={disks}/outer/a.img", prefix=prefix)
    (file,) = medium_of(vm).files
    # Not the file of this name, which is another one here.
    if not file.uncheckable:
        assert os.path.samefile(file.path, disks / "inner" / "a.img")
        check_files(medium_of(vm))


def test_descriptors_that_were_handed_over(start_paused, disks):
    vm = start_paused("-device", "pcie-root-port,id=rp")
    with ClientMonitor(vm.qmp_socket) as monitor, open(disks / "a.img", "r+b") as disk:
        monitor.execute("add-fd", {"fdset-id": 3}, fd=disk.fileno())
        monitor.execute("blockdev-add", {"driver": "file", "filename": "/dev/fdset/3", "node-name": "n"})
        monitor.execute("device_add", {"driver": "virtio-blk-pci", "drive": "n", "bus": "rp"})
    medium = medium_of(vm)
    assert [file.path for file in medium.files] == [str(disks / "a.img")]
    check_files(medium)


# --- who may look ---


def test_process_that_is_not_known(start_paused, disks):
    vm = start_paused("-drive", "if=virtio,format=raw,file=a.img")
    (medium,) = media_of(vm, process=False)
    assert medium.files[0].path == "a.img"
    check_uncheckable(medium.files[0], "not known on this host")


@pytest.mark.parametrize("qemu", QEMUS)
def test_place_is_the_same_before_the_firmware_has_found_the_bridges(start_paused, tmp_path, qemu):
    """QEMU that waits for an image tells of no device behind a bridge: each must be told as one that runs."""
    buses = ("pcie.0", "rp", "old,addr=1", "far-port", "pcie.0", "rp2")
    ports = ["pcie-root-port,id=rp,chassis=1", "pcie-root-port,id=rp2,chassis=2,addr=1e.0,multifunction=on"]
    ports += ["pxb-pcie,id=far,bus_nr=64", "pcie-root-port,id=far-port,bus=far,chassis=3", "pcie-pci-bridge,id=old"]
    arguments = [word for port in ports for word in ("-device", port)]
    for number, bus in enumerate(buses):
        make_disk(tmp_path / f"{number}.img")
        name = "" if number == 4 else f",id=disk{number}"
        arguments += ["-drive", f"if=none,id=d{number},format=raw,file={number}.img"]
        arguments += ["-device", f"virtio-blk-pci,drive=d{number},bus={bus},disable-legacy=on{name}"]
    vm = start_paused(*arguments, qemu=qemu)
    before = {medium.label: medium.place for medium in media_of(vm)}
    assert before == {
        "d0": "03.0",
        "d1": "rp 00.0",
        "d2": "old 01.0",
        "d3": "far-port 00.0",
        "d4": "04.0",
        "d5": "rp2 00.0",
    }
    vm.execute("cont")
    deadline = time.monotonic() + 60
    while not all(device.get("pci_bridge", {}).get("devices") for device in bridges(vm)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert {medium.label: medium.place for medium in media_of(vm)} == before


def bridges(vm: PausedQemu) -> list[dict[str, Any]]:
    return [
        device
        for bus in vm.execute("query-pci")
        for device in bus["devices"]
        if device["qdev_id"] in ("rp", "rp2", "old", "far-port")
    ]


def test_cost(start_paused, tmp_path):
    arguments: list[str] = []
    for number in range(8):
        make_disk(tmp_path / f"base-{number}", "qcow2")
        make_disk(tmp_path / f"disk-{number}", "qcow2", "-b", f"base-{number}", "-F", "qcow2")
        arguments += ["-drive", f"if=virtio,format=qcow2,file=disk-{number}"]
    vm = start_paused(*arguments)

    async def measure() -> float:
        async with await Monitor.connect(str(vm.qmp_socket)) as monitor:
            process = read_process(vm.pid)
            took = []
            for _time in range(5):
                begin = time.process_time()
                assert len(await read_media(monitor, process)) == 8
                took.append(time.process_time() - begin)
            return min(took)

    assert asyncio.run(measure()) < 0.05
