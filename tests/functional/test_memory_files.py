# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Guest memory that lies in files: what was written to them after the save must not be in the restored guest."""

from __future__ import annotations

import asyncio
import contextlib
import json
import mmap
import os
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.monitor import Monitor
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.vm import read_vm
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.memory import (
    empty_memory,
    memory_files,
    memory_media,
    memory_problems,
    shared_memory_problems,
)

from support.observe import VM, Continuity
from support.versions import OLD_QEMU, why_not_restored

MIB = 1024 * 1024
SIZE = 64 * MIB


@pytest.fixture
def memory():
    """A directory on tmpfs, where memory in files usually lies."""
    if not os.path.ismount("/dev/shm"):
        pytest.skip("no tmpfs at /dev/shm")
    directory = Path(tempfile.mkdtemp(prefix="vmops-memory-", dir="/dev/shm"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def huge(tmp_path):
    """A directory on hugetlbfs with room for the guest."""
    free = int(Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages").read_text()) if os.geteuid() == 0 else 0
    if free * 2 * MIB < SIZE:
        pytest.skip("not root, or too few huge pages are free (/proc/sys/vm/nr_hugepages)")
    directory = tmp_path / "huge"
    directory.mkdir()
    subprocess.run(["mount", "-t", "hugetlbfs", "-o", "pagesize=2M", "none", str(directory)], check=True)
    yield directory
    subprocess.run(["umount", "--lazy", str(directory)], check=True)


def backend(path, *more, name="mem", size=SIZE):
    return ["-object", ",".join([f"memory-backend-file,id={name},size={size},mem-path={path}", *more])]


def json_backend(path):
    facts = {"qom-type": "memory-backend-file", "id": "mem", "size": SIZE, "mem-path": str(path), "share": True}
    return ["-object", json.dumps(facts), "-machine", "memory-backend=mem"]


def config_backend(path):
    config = path.with_name("vm.cfg")
    config.write_text(
        f'[object "mem"]\nqom-type = "memory-backend-file"\nsize = "{SIZE}"\nmem-path = "{path}"\nshare = "on"\n'
    )
    return ["-readconfig", str(config), "-machine", "memory-backend=mem"]


def two_nodes(path):
    other = path.with_name("other")
    return [
        *backend(path, "share=on", name="m0", size=SIZE // 2),
        *backend(other, "share=on", name="m1", size=SIZE // 2),
        *("-numa", "node,memdev=m0", "-numa", "node,memdev=m1"),
    ]


#: Memory that is emptied before a load.
SHARED = {
    "share": lambda path: [*backend(path, "share=on"), "-machine", "memory-backend=mem"],
    "prealloc": lambda path: [*backend(path, "share=on", "prealloc=on"), "-machine", "memory-backend=mem"],
    "JSON": json_backend,
    "readconfig": config_backend,
    "NUMA": two_nodes,
    "DIMM": lambda path: [
        *backend(path, "share=on", name="dimm"),
        *("-device", "pc-dimm,memdev=dimm", "-m", "64,slots=2,maxmem=1G"),
    ],
    "NVDIMM": lambda path: [
        *backend(path, "share=on", name="nv"),
        *("-device", "nvdimm,memdev=nv,id=nv0", "-m", "64,slots=2,maxmem=1G", "-machine", "nvdimm=on"),
    ],
    "ivshmem": lambda path: [*backend(path, "share=on", name="iv"), "-device", "ivshmem-plain,memdev=iv,master=on"],
}


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name != "vm.cfg"}


def spoil(directory):
    """Write over all the memory of a guest whose QEMU has ended."""
    for path in directory.iterdir():
        if path.name != "vm.cfg":
            size = path.stat().st_size
            with open(path, "r+b") as handle:
                for _part in range(0, size, MIB):
                    handle.write(b"\xaa" * MIB)


class Saved:
    """A guest with memory in files that was saved and ran on; what was in its files at the save."""

    def __init__(self, save, guest, image, directory, **options):
        self.guest, self.image, self.directory = guest, image, directory
        guest.dirty(True)
        self.continuity = Continuity(guest)
        self.result = save(name=VM, path=str(image), after_save="pause", **options)
        self.contents = contents(directory)
        self.log = guest.serial_log.read_bytes()

    def spoil(self):
        """Let the guest run on and dirty its memory, end it, and write over what it left."""
        counter = self.guest.counters()[-1]
        self.guest.qmp("cont")
        self.guest.wait_for_counter(counter + 3)
        self.guest.end()
        spoil(self.directory)
        # What it said after the save is none of the restored guest's.
        self.guest.serial_log.write_bytes(self.log)

    def check(self):
        """After a restore to the paused state: all of the guest's memory is what it was at the save."""
        self.guest.wait_restarted()
        now = contents(self.directory)
        assert now.keys() == self.contents.keys()
        # Not compared by ==, whose report of a difference would take minutes.
        assert [name for name in now if now[name] != self.contents[name]] == []
        self.guest.qmp("cont")
        self.continuity.check()


async def look(socket, work):
    async with await Monitor.connect(str(socket)) as monitor:
        return await work(monitor, (await read_vm(monitor)).process)


def files_of(guest):
    return asyncio.run(look(guest.qmp_socket, memory_files))


def problems_of(guest, sparse=True):
    return memory_problems(files_of(guest), sparse)


def kinds(problems):
    return [(problem.kind, problem.blocks) for problem in problems]


# --- through the modules ---


@pytest.mark.parametrize("kind", SHARED)
def test_what_was_written_after_the_save_is_not_in_the_restored_guest(make_guest, save, restore, image, memory, kind):
    guest = make_guest(dirty_mib=8, extra_args=SHARED[kind](memory / "memory"))
    saved = Saved(save, guest, image, memory, checksum=True)
    saved.spoil()
    restore(name=VM, path=str(image), state="paused", verify="full")
    saved.check()


def test_second_restore_of_the_same_image(make_guest, save, restore, image, memory):
    guest = make_guest(dirty_mib=8, extra_args=SHARED["share"](memory / "memory"))
    saved = Saved(save, guest, image, memory)
    for _round in range(2):
        saved.spoil()
        restore(name=VM, path=str(image), state="paused", remove_image=False)
        saved.check()


def test_memory_on_huge_pages(make_guest, save, restore, image, huge):
    guest = make_guest(dirty_mib=8, extra_args=SHARED["share"](huge / "memory"))
    saved = Saved(save, guest, image, huge)
    guest.qmp("cont")
    guest.end()
    with open(huge / "memory", "r+b") as handle:  # which has no write(2)
        import mmap

        with mmap.mmap(handle.fileno(), SIZE) as mapped:
            for offset in range(0, SIZE, MIB):
                mapped[offset : offset + MIB] = b"\xaa" * MIB
    guest.serial_log.write_bytes(saved.log)
    restore(name=VM, path=str(image), state="paused")
    saved.check()


def test_memory_on_a_disk(make_guest, save, restore, image, tmp_path):
    directory = tmp_path / "memory"
    directory.mkdir()
    guest = make_guest(dirty_mib=8, extra_args=SHARED["share"](directory / "memory"))
    saved = Saved(save, guest, image, directory)
    saved.spoil()
    restore(name=VM, path=str(image), state="paused")
    saved.check()


@pytest.mark.parametrize("format", ["raw", "zstd"])
def test_stream_is_right_without_emptying(make_guest, save, restore, image, memory, format):  # noqa: A002
    if not shutil.which("zstd"):
        pytest.skip("no zstd")
    guest = make_guest(dirty_mib=8, extra_args=SHARED["share"](memory / "memory"))
    saved = Saved(save, guest, image, memory, format=format)
    saved.spoil()
    restore(name=VM, path=str(image), state="paused")
    saved.check()


def test_stream_is_right_with_an_old_qemu(make_guest, save, restore, image, memory):
    if why_not_restored():
        pytest.skip(why_not_restored())
    guest = make_guest(dirty_mib=8, extra_args=SHARED["share"](memory / "memory"), qemu=str(OLD_QEMU))
    saved = Saved(save, guest, image, memory)
    saved.spoil()
    restore(name=VM, path=str(image), state="paused")
    saved.check()


def private_args(path):
    return [*backend(path, "share=off"), "-machine", "memory-backend=mem"]


@pytest.mark.parametrize("args", [private_args, lambda path: ["-mem-path", str(path)]], ids=["share=off", "mem-path"])
def test_private_copy_of_a_file_that_is_not_empty_is_refused_before_the_load(
    make_guest, save, run_module, image, memory, args
):
    path = memory / "memory"
    guest = make_guest(extra_args=args(path))
    save(name=VM, path=str(image))
    guest.wait_exit()
    spoil(memory)
    result = run_module("qemu_restore", name=VM, path=str(image))
    assert result["failed"]
    assert str(path) in result["msg"]
    assert image.exists()


# --- the functions, on a QEMU that waits ---


@pytest.mark.parametrize("kind", ["share", "NUMA", "NVDIMM"])
def test_emptied_memory_is_loaded_right(make_guest, save, restore, image, memory, kind):
    guest = make_guest(dirty_mib=8, extra_args=SHARED[kind](memory / "memory"))
    saved = Saved(save, guest, image, memory)
    saved.spoil()
    guest.start(incoming=True)
    files = files_of(guest)
    assert {file.path for file in files} == {str(memory / name) for name in saved.contents}
    assert all(file.shared and file.writable and not file.deleted for file in files)
    assert empty_memory(files) == []
    assert all(set(text) == {0} for text in contents(memory).values())
    restore(name=VM, path=str(image), state="paused", launch="attach")
    saved.check()


def test_memory_that_was_allocated_in_advance_stays_so(make_guest, memory):
    path = memory / "memory"
    guest = make_guest(extra_args=SHARED["prealloc"](path), start=False)
    guest.start(incoming=True)
    path.write_bytes(b"\xaa" * SIZE)
    assert empty_memory(files_of(guest)) == []
    assert not any(path.read_bytes())
    assert path.stat().st_blocks * 512 == SIZE


def test_memory_that_is_not_allocated_is_given_back(make_guest, memory):
    path = memory / "memory"
    guest = make_guest(extra_args=SHARED["share"](path), start=False)
    guest.start(incoming=True)
    path.write_bytes(b"\xaa" * SIZE)
    assert empty_memory(files_of(guest)) == []
    assert path.stat().st_blocks == 0


def test_only_the_part_that_is_memory_is_emptied(make_guest, memory):
    path = memory / "memory"
    path.write_bytes(b"\xaa" * (SIZE + 2 * MIB))
    args = [*backend(path, "share=on", f"offset={MIB}"), "-machine", "memory-backend=mem"]
    guest = make_guest(extra_args=args, start=False)
    guest.start(incoming=True)
    assert empty_memory(files_of(guest)) == []
    text = path.read_bytes()
    assert text == b"\xaa" * MIB + bytes(SIZE) + b"\xaa" * MIB


@pytest.mark.parametrize(
    "args",
    [
        ["-object", f"memory-backend-memfd,id=mem,size={SIZE}", "-machine", "memory-backend=mem"],
        ["-object", f"memory-backend-memfd,id=mem,size={SIZE},share=off", "-machine", "memory-backend=mem"],
        pytest.param(
            ["-object", f"memory-backend-shm,id=mem,size={SIZE}", "-machine", "memory-backend=mem"],
            marks=pytest.mark.skipif(os.geteuid() != 0, reason="whether it has a name is for root to see"),
        ),
        ["-object", f"memory-backend-ram,id=mem,size={SIZE},share=on", "-machine", "memory-backend=mem"],
        [
            "-object",
            f"memory-backend-file,id=mem,size={SIZE},mem-path=/dev/shm,share=on",
            "-machine",
            "memory-backend=mem",
        ],
        ["-mem-path", "/dev/shm"],
        [],
    ],
    ids=["memfd", "private memfd", "shm", "shared RAM", "directory", "mem-path directory", "RAM"],
)
def test_memory_that_ends_with_qemu_is_no_problem(make_guest, memory, args):
    guest = make_guest(extra_args=args)
    assert all(file.deleted for file in files_of(guest))
    assert problems_of(guest) == []
    guest.end()
    guest.start(incoming=True)
    assert empty_memory(files_of(guest)) == []


def test_private_copy_of_an_empty_file_is_no_problem(make_guest, memory):
    guest = make_guest(extra_args=private_args(memory / "memory"))
    assert problems_of(guest) == []


@pytest.mark.parametrize("args", [private_args, lambda path: ["-mem-path", str(path)]], ids=["share=off", "mem-path"])
def test_private_copy_of_a_file_that_is_not_empty(make_guest, memory, args):
    path = memory / "memory"
    path.write_bytes(bytes(SIZE - 1) + b"x")
    guest = make_guest(extra_args=args(path))
    assert kinds(problems_of(guest)) == [("memory_file", True)]
    assert problems_of(guest, sparse=False) == []
    assert kinds(empty_memory(files_of(guest))) == [("memory_file", True)]
    assert path.read_bytes() == bytes(SIZE - 1) + b"x"


def test_memory_that_is_no_file(make_guest, tmp_path):
    backing = tmp_path / "backing"
    backing.write_bytes(bytes(SIZE))
    try:
        device = subprocess.run(
            ["losetup", "--find", "--show", str(backing)], check=True, capture_output=True, text=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no loop device can be made")
    try:
        guest = make_guest(extra_args=SHARED["share"](device), start=False)
        guest.start(incoming=True)
        assert stat.S_ISBLK(os.stat(device).st_mode)
        assert kinds(problems_of(guest)) == [("memory_file", True)]
        assert problems_of(guest, sparse=False) == []
        guest.end()
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def test_nothing_is_emptied_where_one_file_must_not_be(make_guest, memory):
    shared, private = memory / "shared", memory / "private"
    for path in shared, private:
        path.write_bytes(b"\xaa" * (SIZE // 2))
    args = [
        *backend(shared, "share=on", name="m0", size=SIZE // 2),
        *backend(private, "share=off", name="m1", size=SIZE // 2),
        *("-numa", "node,memdev=m0", "-numa", "node,memdev=m1"),
    ]
    guest = make_guest(extra_args=args, start=False)
    guest.start(incoming=True)
    assert kinds(empty_memory(files_of(guest))) == [("memory_file", True)]
    assert set(shared.read_bytes()) == set(private.read_bytes()) == {0xAA}


# --- memory that others have mapped, too ---


def block_name(file):
    """That of the object: QEMU puts the place of a device before it."""
    return file.block.rpartition("/")[2]


@contextlib.contextmanager
def mapped(path, size=SIZE):
    """A peer of the guest's, in this process."""
    with open(path, "r+b") as handle, mmap.mmap(handle.fileno(), size) as view:
        yield view


@pytest.mark.parametrize("image_format", ["sparse", "raw"])
@pytest.mark.parametrize("launch", ["recorded", "attach"])
def test_memory_is_not_put_back_under_others(
    make_guest, save, restore, run_module, image, memory, image_format, launch
):
    path = memory / "iv"
    guest = make_guest(extra_args=SHARED["ivshmem"](path))
    continuity = Continuity(guest)
    with mapped(path) as peer:
        peer[:5] = b"first"
        saved = save(name=VM, path=str(image), format=image_format)
        (problem,) = [each for each in saved["problems"] if each["kind"] == "memory_shared"]
        assert not problem["blocks"]
        assert f"(pid {os.getpid()})" in problem["what"]
        assert problem["what"] in str(saved["warnings"])
        peer[:6] = b"second"
        if launch == "attach":
            guest.wait_exit()
            guest.start(incoming=True)
        refused = run_module("qemu_restore", name=VM, path=str(image), launch=launch)
        assert refused["error"] == "MismatchError", refused["msg"]
        assert f"(pid {os.getpid()})" in refused["msg"]
        assert peer[:6] == b"second"
    restore(name=VM, path=str(image), launch=launch)
    assert path.read_bytes()[:6] == b"first\0"
    continuity.check()


def test_server_of_a_device_has_the_memory_of_the_machine_mapped(make_guest, memory):
    """All of it (vhost-user), and gets all of it anew."""
    own, iv = memory / "own", memory / "iv"
    shared = backend(iv, "share=on", name="iv", size=MIB)
    guest = make_guest(
        extra_args=[*SHARED["share"](own), *shared, "-device", "ivshmem-plain,memdev=iv,master=on"],
    )
    files = files_of(guest)
    assert {block_name(file): file.is_own for file in files} == {"mem": True, "iv": False}
    with mapped(own):
        assert shared_memory_problems(files) == []
        with mapped(iv, MIB):
            assert shared_memory_problems(files) == []
    with mapped(iv, MIB):
        assert kinds(shared_memory_problems(files)) == [("memory_shared", False)]


# --- memory that is a disk ---


def nvdimm(path, *more):
    return [
        *backend(path, *more, name="nv"),
        *("-device", "nvdimm,memdev=nv,id=nv0" + (",unarmed=on" if "readonly=on" in more else "")),
        *("-m", "64,slots=2,maxmem=1G", "-machine", "nvdimm=on"),
    ]


def pmem(*objects):
    return [*objects, "-device", "virtio-pmem-pci,memdev=nv,id=pm0", "-m", "64,slots=2,maxmem=1G"]


@pytest.mark.parametrize("share", ["share=on", "share=off"])
@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "stream"])
def test_read_only_memory_cannot_be_loaded(make_guest, tmp_path, share, sparse):
    path = tmp_path / "nvdimm"
    path.write_bytes(b"x" * SIZE)
    guest = make_guest(extra_args=nvdimm(path, share, "readonly=on"))
    assert ("memory_read_only", True) in kinds(problems_of(guest, sparse))


def test_read_only_memory_that_is_empty_is_no_problem(make_guest, tmp_path):
    path = tmp_path / "nvdimm"
    path.write_bytes(bytes(SIZE))
    assert problems_of(make_guest(extra_args=nvdimm(path, "share=on", "readonly=on"))) == []


def test_nvdimm_is_recorded_as_a_disk(make_guest, tmp_path):
    path = tmp_path / "nvdimm"
    path.write_bytes(b"x" * SIZE)
    guest = make_guest(extra_args=nvdimm(path, "share=on"))
    assert problems_of(guest) == problems_of(guest, sparse=False) == []
    (medium,) = memory_media(files_of(guest))
    (file,) = medium.files
    if file.uncheckable:
        pytest.skip(f"the temporary directory: {file.uncheckable}")
    facts = path.stat()
    assert (medium.backend, medium.qdev, medium.read_only) == ("nv", "nv0", False)
    assert (file.path, file.size, file.mtime_ns) == (str(path), SIZE, facts.st_mtime_ns)
    assert (file.inode, file.device_number) == (facts.st_ino, facts.st_dev)


@pytest.mark.parametrize("device", ["nvdimm", "virtio-pmem"])
def test_nvdimm_on_tmpfs_cannot_be_watched(make_guest, memory, device):
    path = memory / "disk"
    args = nvdimm(path, "share=on") if device == "nvdimm" else pmem(*backend(path, "share=on", name="nv"))
    guest = make_guest(extra_args=args)
    assert kinds(problems_of(guest)) == [("memory_disk_unwatched", False)]
    (medium,) = memory_media(files_of(guest))
    assert "tmpfs" in medium.files[0].uncheckable


def two_of_a_size(directory):
    """Devices whose order, by name, is not that of their memory in QEMU."""
    words = ["-m", "64,slots=4,maxmem=1G", "-machine", "nvdimm=on"]
    for number in range(3):
        for kind, device in (("pm", "virtio-pmem-pci"), ("nv", "nvdimm")):
            path = directory / f"{kind}{number}"
            path.write_bytes(path.name.encode() * (16 * MIB // 3))
            os.truncate(path, 16 * MIB)
            words += backend(path, "share=on", name=f"m{path.name}", size=16 * MIB)
            words += ["-device", f"{device},memdev=m{path.name},id={path.name}"]
    for number in range(2):
        path = directory / f"iv{number}"
        words += backend(path, "share=on", name=path.name, size=16 * MIB)
        words += ["-device", f"ivshmem-plain,memdev={path.name},master=on"]
    return words


def test_each_of_many_memory_disks_of_a_size_has_its_own_file(make_guest, save, restore, image, run_module, tmp_path):
    guest = make_guest(extra_args=two_of_a_size(tmp_path))
    continuity = Continuity(guest)
    # A name that leads to another file by now tells nothing.
    for old, new in (("pm0", "x"), ("pm1", "pm0"), ("x", "pm1")):
        (tmp_path / old).rename(tmp_path / new)
    expected = {name: name for name in ("pm2", "nv0", "nv1", "nv2")} | {"pm0": "pm1", "pm1": "pm0"}
    files = files_of(guest)
    shared = {block_name(file): Path(file.path).name for file in files if not file.device}
    assert shared == {"iv0": "iv0", "iv1": "iv1"}
    assert {file.device: Path(file.path).name for file in files if file.device} == expected
    for old, new in (("pm0", "x"), ("pm1", "pm0"), ("x", "pm1")):
        (tmp_path / old).rename(tmp_path / new)
    save(name=VM, path=str(image))
    (recorded,) = run_module("qemu_save_image_info", path=str(image))["images"]
    disks = {
        disk["qdev"]: Path(disk["files"][0]["path"]).name for disk in recorded["disks"] if disk["qdev"] in expected
    }
    assert disks == {name: name for name in expected}
    restore(name=VM, path=str(image))
    continuity.check()


def test_virtio_pmem_is_a_disk_that_no_image_holds(make_guest, save, restore, image, tmp_path):
    path = tmp_path / "pmem"
    path.write_bytes(b"x" * SIZE)
    guest = make_guest(extra_args=pmem(*backend(path, "share=on", name="nv")))
    continuity = Continuity(guest)
    (file,) = files_of(guest)
    assert (file.block, file.path, file.device_type, file.device) == ("", str(path), "virtio-pmem", "pm0")
    assert [medium.qdev for medium in memory_media([file])] == ["pm0"]
    save(name=VM, path=str(image))
    guest.wait_exit()
    guest.start(incoming=True)
    assert empty_memory(files_of(guest)) == []
    assert set(path.read_bytes()) == {ord("x")}
    restore(name=VM, path=str(image), launch="attach")
    continuity.check()
    assert set(path.read_bytes()) == {ord("x")}


@pytest.mark.parametrize(
    "backing",
    [
        lambda path: ["-object", f"memory-backend-ram,id=nv,size={SIZE}"],
        lambda path: ["-object", f"memory-backend-memfd,id=nv,size={SIZE}"],
        lambda path: backend(path, "share=off", name="nv"),
        lambda path: backend(path.parent, "share=on", name="nv"),
    ],
    ids=["RAM", "memfd", "private", "directory"],
)
def test_virtio_pmem_whose_contents_end_with_qemu(make_guest, memory, backing):
    guest = make_guest(extra_args=pmem(*backing(memory / "disk")))
    assert kinds(problems_of(guest)) == [("memory_disk_lost", True)]
    assert memory_media(files_of(guest)) == []


# --- what cannot be seen ---


def test_process_that_is_not_known(make_guest, memory):
    guest = make_guest(extra_args=SHARED["share"](memory / "memory"))
    files = asyncio.run(look(guest.qmp_socket, lambda monitor, _process: memory_files(monitor, None)))
    assert [(file.path, bool(file.uncheckable)) for file in files] == [(str(memory / "memory"), True)]
    assert kinds(memory_problems(files, sparse=True)) == [("memory_file", True)]
    assert memory_problems(files, sparse=False) == []
    assert kinds(empty_memory(files)) == [("memory_file", True)]


def test_memory_that_is_no_file_needs_no_look(make_guest):
    guest = make_guest(extra_args=["-object", f"memory-backend-memfd,id=mem,size={SIZE}"])
    assert asyncio.run(look(guest.qmp_socket, lambda monitor, _process: memory_files(monitor, None))) == []


def test_file_that_has_no_name_any_more(make_guest, memory):
    path = memory / "memory"
    path.write_bytes(b"\xaa" * SIZE)
    guest = make_guest(extra_args=SHARED["share"](path), start=False)
    guest.start(incoming=True)
    with open(path, "rb") as handle:
        path.unlink()
        path.write_bytes(b"someone else's")
        assert empty_memory(files_of(guest)) == []
        assert not any(handle.read())
    assert path.read_bytes() == b"someone else's"


def test_plugged_in_memory(make_guest, memory):
    guest = make_guest(extra_args=["-m", "64,slots=2,maxmem=1G"])
    assert files_of(guest) == []
    guest.qmp(
        "object-add",
        {
            "qom-type": "memory-backend-file",
            "id": "hot",
            "size": SIZE,
            "mem-path": str(memory / "hot"),
            "share": True,
        },
    )
    guest.qmp("device_add", {"driver": "pc-dimm", "memdev": "hot", "id": "dimm0"})
    assert [(file.block, file.path, file.shared) for file in files_of(guest)] == [("hot", str(memory / "hot"), True)]
