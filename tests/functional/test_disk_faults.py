# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Disks that are full, broken or not what they seem: the guest goes on, and an image that was there stays.

The file systems are real ones, that are made and mounted for a test. What no file system does on demand, an error at a
certain step, is put into the system calls of QEMU (with strace) or of the module.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from support import CounterGuest, find_qemu_pids
from support.guest import REPOSITORY
from support.module_run import check_error
from support.observe import VM, Continuity, migration_is_active, wait_until
from support.unchanged import BOUND, Before, contents, make_image
from support.versions import find_qemus

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount file systems, and make files of others")


SPARSE = {"format": "sparse"}
BUFFERED = {"format": "sparse", "bypass_cache": False}
RAW = {"format": "raw"}
ZSTD = {"format": "zstd"}


def named(value: Any) -> str | None:
    """The id of a test with these options."""
    if not isinstance(value, dict):
        return None
    return "-".join([value["format"], *(f"{key}={value[key]}" for key in value if key != "format")])


@pytest.fixture
def undo() -> Iterator[contextlib.ExitStack]:
    """Takes what is to be undone after the test, however it ends."""
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def mount(undo: contextlib.ExitStack, tmp_path: Path) -> Callable[..., Path]:
    """Mount something at a directory of this name: ``mount("full", "tmpfs", "size=9m")``."""

    def mount_at(name: str, kind: str, options: str, source: str = "none") -> Path:
        place = tmp_path / name
        place.mkdir()
        argv = ["mount", "-t", kind, "-o", options, source, str(place)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"this host cannot mount {kind} with {options}: {done.stderr.strip()}")
        undo.callback(unmount, place)
        place.chmod(0o700)
        return place

    return mount_at


def unmount(place: Path) -> None:
    # The log of a restored QEMU may be there; then it goes with that guest, a moment later.
    if subprocess.run(["umount", place], capture_output=True, check=False).returncode:
        subprocess.run(["umount", "--lazy", place], check=True)


@pytest.fixture
def big_guest(make_guest: Callable[..., CounterGuest]) -> CounterGuest:
    """A guest whose save takes some seconds when it is told to (bandwidth), so that its disk can be disturbed."""
    return make_guest(memory_mib=160, block_mib=128, observer=True)


def fill(path: Path) -> None:
    """Write until the file system is full."""
    with path.open("wb", buffering=0) as handle, contextlib.suppress(OSError):
        while True:
            handle.write(bytes(2**20))


# --- no space ---


@only_root
@pytest.mark.parametrize("check", [False, True], ids=["save", "check"])
def test_too_little_space(mount, guest, run_module, check):
    place = mount("small", "tmpfs", "size=30m")
    image = make_image(place / "images" / "web1.save")
    before = Before(guest, image.parent)
    result = run_module("qemu_save", name=VM, path=str(image), force=True, check=check)
    before.check(result, "ImageSpaceError", str(image.parent), f"the file system {place} has only", guest="running")
    numbers = re.search(r"(\d+) MiB may be needed.* has only (\d+) MiB free \((\d+) MiB are missing\)", result["msg"])
    assert numbers, result["msg"]
    needed, free, missing = map(int, numbers.groups())
    assert 25 <= free <= 30
    assert abs(needed - free - missing) <= 1
    assert "Free space" in result["cure"]


@only_root
@pytest.mark.parametrize(
    "options",
    [SPARSE, BUFFERED, {**SPARSE, "live": True}, RAW, {**RAW, "live": True}, {"format": "lzop"}, ZSTD],
    ids=named,
)
def test_full_in_the_middle(mount, big_guest, start_module, options):
    place = mount("full", "tmpfs", "size=240m")
    image = make_image(place / "images" / "web1.save")
    before = Before(big_guest, image.parent)
    run = start_module("qemu_save", name=VM, path=str(image), force=True, bandwidth="32M", **options)
    wait_until(lambda: migration_is_active(big_guest))
    fill(place / "filler")
    result = run.result()
    before.check(result, "MigrationError", f"{VM} could not be saved in {image}", "No space left on device")
    assert "Free space" in result["cure"]


@pytest.fixture
def directory_with_quota(mount, tmp_path):
    """A function that makes a directory, on a btrfs, that takes so many MiB and no more."""

    def make(size_mib: int) -> Path:
        if shutil.which("mkfs.btrfs") is None:
            pytest.skip("no mkfs.btrfs")
        disk = tmp_path / "disk"
        with disk.open("wb") as handle:
            handle.truncate(600 * 2**20)
        subprocess.run(["mkfs.btrfs", "--quiet", disk], check=True, stdout=subprocess.DEVNULL)
        place = mount("quota", "btrfs", "loop", str(disk))
        directory = place / "images"
        for command in (
            ["quota", "enable", place],
            ["subvolume", "create", directory],
            ["qgroup", "limit", f"{size_mib}M", directory],
        ):
            subprocess.run(["btrfs", *command], check=True, stdout=subprocess.DEVNULL)
        return directory

    return make


@only_root
@pytest.mark.parametrize(
    ("options", "error"),
    [
        (SPARSE, "MigrationError"),
        (BUFFERED, "MigrationError"),
        (RAW, "MigrationError"),
        # It may come to the end of its input before it writes its last.
        (ZSTD, "ImageError|MigrationError"),
    ],
    ids=named,
)
def test_quota_that_is_met_in_the_middle(directory_with_quota, make_guest, run_module, options, error):
    """The space that is free does not tell of a quota."""
    guest = make_guest(memory_mib=64, block_mib=40, observer=True)
    image = make_image(directory_with_quota(20) / "web1.save")
    before = Before(guest, image.parent)
    result = run_module("qemu_save", name=VM, path=str(image), force=True, **options)
    assert result["error"] in error.split("|"), result["msg"]
    before.check(result, result["error"], str(image.parent), "Disk quota exceeded")
    assert "quota" in result["cure"]


@pytest.mark.parametrize(
    ("options", "said"),
    # Of what stands between the blocks of pages QEMU (10.0) knows only that it could not be written.
    [(SPARSE, "ram_save_setup failed"), (RAW, "File too large")],
    ids=named,
)
def test_file_size_limit_that_is_met_in_the_middle(make_guest, image, run_module, options, said):
    """What its user's limits (ulimit -f, LimitFSIZE=) do not allow QEMU."""
    guest = make_guest(memory_mib=64, block_mib=40, observer=True)
    make_image(image)
    before = Before(guest, image.parent)
    resource.prlimit(guest.pid, resource.RLIMIT_FSIZE, (20 * 2**20, resource.RLIM_INFINITY))
    result = run_module("qemu_save", name=VM, path=str(image), force=True, **options)
    before.check(result, "MigrationError", str(image), said)
    assert said != "File too large" or "file size limit" in result["cure"]


# --- writes that fail, and such as only seem to be done ---


@pytest.fixture
def short_writes(tmp_path, monkeypatch):
    """A function that starts a guest whose QEMU's writes are cut short."""
    if os.uname().machine != "x86_64":
        pytest.skip("the library that cuts writes short is for x86_64")

    def start(guest: CounterGuest) -> None:
        parts = [str(tmp_path / f"short_writes.{suffix}") for suffix in ("o", "so")]
        source = REPOSITORY / "tests" / "support" / "short_writes.s"
        subprocess.run(["as", "--64", "-o", parts[0], source], check=True)
        subprocess.run(["ld", "-shared", "-o", parts[1], parts[0]], check=True)
        with monkeypatch.context() as patch:
            patch.setenv("LD_PRELOAD", parts[1])
            guest.start()

    return start


@pytest.mark.parametrize("options", [SPARSE, BUFFERED, {**SPARSE, "live": True}], ids=named)
def test_short_write(make_guest, short_writes, image, run_module, options):
    """QEMU takes it for a success, and the rest of the pages lie in holes of the file."""
    if next(qemu for qemu in find_qemus() if qemu.path == "qemu-system-x86_64").version >= (11, 1):
        pytest.skip("this QEMU sees that a write was cut short")
    guest = make_guest(start=False, observer=True)
    short_writes(guest)
    make_image(image)
    before = Before(guest, image.parent)
    result = run_module("qemu_save", name=VM, path=str(image), force=True, **options)
    before.check(result, "ImageFormatError", str(image), "the file is not complete", "never written")
    assert "dmesg" in result["cure"]


def test_short_write_of_a_stream(make_guest, short_writes, image, save, restore):
    """Of a stream QEMU writes the rest with another call: the image is whole."""
    guest = make_guest(start=False, observer=True)
    short_writes(guest)
    continuity = Continuity(guest)
    save(name=VM, path=str(image), format="raw")
    restore(name=VM, path=str(image))
    continuity.check()


@only_root
def test_save_into_a_read_only_file_system(mount, guest, run_module):
    place = mount("read-only", "tmpfs", "size=200m")
    image = make_image(place / "web1.save")
    before = Before(guest, place)
    subprocess.run(["mount", "-o", "remount,ro", place], check=True)
    for check in (False, True):
        result = run_module("qemu_save", name=VM, path=str(image), force=True, check=check)
        check_error(result, "ImageAccessError", str(place), "Read-only file system", guest="running")
        assert "remount it" in result["cure"]
    before.check_all_is_as_before()


@pytest.fixture
def breakable_disk(undo: contextlib.ExitStack, mount: Callable[..., Path]) -> Callable[[], tuple[Path, int]]:
    """Mount a disk that ``break_disk`` breaks: a loop device on a file in memory that can be sealed against writes."""

    def make() -> tuple[Path, int]:
        disk = os.memfd_create("disk", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
        undo.callback(os.close, disk)
        os.ftruncate(disk, 500 * 2**20)
        path = f"/proc/{os.getpid()}/fd/{disk}"
        subprocess.run(["mkfs.ext4", "-q", "-F", path], check=True)
        done = subprocess.run(["losetup", "--find", "--show", path], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"this host makes no loop device: {done.stderr.strip()}")
        device = done.stdout.strip()
        try:
            return mount("disk", "ext4", "defaults", device), disk
        finally:
            # From the moment on in which nobody has it mounted any more.
            subprocess.run(["losetup", "--detach", device], check=True)

    return make


def break_disk(disk: int) -> None:
    """All writes to it are answered with Input/output error from now on."""
    fcntl.fcntl(disk, 1033, 0x10)  # F_ADD_SEALS, F_SEAL_FUTURE_WRITE


@only_root
@pytest.mark.parametrize(
    ("options", "errors"),
    [
        (SPARSE, ("MigrationError",)),
        # The page cache takes it all, and the flush tells; unless the file system finds it first.
        (BUFFERED, ("ImageAccessError", "MigrationError")),
        (RAW, ("ImageAccessError", "MigrationError")),
        (ZSTD, ("ImageAccessError", "MigrationError", "ImageError")),
    ],
    ids=named,
)
def test_disk_that_dies_in_the_middle(breakable_disk, big_guest, start_module, options, errors):
    place, disk = breakable_disk()
    image = make_image(place / "images" / "web1.save")
    subprocess.run(["sync", "-f", image], check=True)
    before = Before(big_guest, image.parent)
    run = start_module("qemu_save", name=VM, path=str(image), force=True, bandwidth="64M", **options)
    wait_until(lambda: migration_is_active(big_guest))
    break_disk(disk)
    result = run.result()
    assert result["error"] in errors, result["msg"]
    # A file system that cannot write its journal any more becomes read-only.
    assert re.search("Input/output error|Read-only file system", result["msg"]), result["msg"]
    check_error(result, result["error"], str(image.parent), "kernel's log", guest="running")
    if not takes_changes(image.parent):  # nor can anything be removed: that is left to the next save
        before.contents = {**contents(image.parent), image.name: before.contents[image.name]}
    before.check_all_is_as_before()


def takes_changes(place: Path) -> bool:
    """Whether files can be made there."""
    try:
        (place / "probe").touch()
        (place / "probe").unlink()
    except OSError:
        return False
    return True


@only_root
@pytest.mark.parametrize(("options", "error"), [(SPARSE, "MigrationError"), (RAW, "ImageSpaceError")], ids=named)
def test_disk_that_is_smaller_than_it_says(mount, big_guest, start_module, options, error):
    """Its file system has space, but the storage that it lies on has none any more, as with thin provisioning."""
    below = mount("below", "tmpfs", "size=240m")
    disk = below / "disk"
    with disk.open("wb") as handle:
        handle.truncate(2**30)
    subprocess.run(["mkfs.ext4", "-q", disk], check=True)
    image = make_image(mount("disk", "ext4", "loop", str(disk)) / "images" / "web1.save")
    subprocess.run(["sync", "-f", image], check=True)
    before = Before(big_guest, image.parent)
    run = start_module("qemu_save", name=VM, path=str(image), force=True, bandwidth="64M", **options)
    wait_until(lambda: migration_is_active(big_guest))
    fill(below / "filler")
    result = run.result()
    # Before Linux 6.17 a loop device says Input/output error, whatever is wrong below it.
    if "Input/output error" in result["msg"]:
        error = "MigrationError" if options == SPARSE else "ImageAccessError"
    before.check(result, error, str(image.parent))


@contextlib.contextmanager
def failing(pid: int, calls: str, fault: str, path: Path | None = None, *, one_thread: bool = False) -> Iterator[None]:
    """Let system calls of a process fail, all or those on one file, as they do where the disk fails."""
    which = ["-p", str(pid)] if one_thread else ["-f", "-p", str(pid)]
    command = ["strace", *which, "-o", "/dev/null", *injected(calls, fault, path)]
    strace = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert strace.stderr
    try:
        said = strace.stderr.readline()
        assert "attached" in said, said
        yield
    finally:
        strace.terminate()
        strace.communicate(timeout=20)


def injected(calls: str, fault: str, path: Path | None = None) -> list[str]:
    """What strace does to some calls of each thread: ``error=EIO:when=2+`` lets all but the first fail."""
    return ["-e", f"trace={calls}", "-e", f"inject={calls}:{fault}", *(["-P", str(path)] if path else [])]


@pytest.mark.parametrize(
    ("options", "calls"),
    [
        # The pages, by several threads past the page cache, or through it; and what stands between them.
        (SPARSE, "pwritev"),
        (BUFFERED, "pwritev"),
        ({**SPARSE, "live": True}, "pwritev"),
        (SPARSE, "writev"),
        (RAW, "writev"),
        ({**RAW, "live": True}, "writev"),
    ],
    ids=named,
)
def test_qemu_meets_an_io_error(guest, image, run_module, options, calls):
    make_image(image)
    before = Before(guest, image.parent)
    with failing(guest.pid, calls, "error=EIO:when=2+"):
        result = run_module("qemu_save", name=VM, path=str(image), force=True, **options)
    before.check(result, "MigrationError", f"{VM} could not be saved in {image}", "Input/output error")
    assert "kernel's log" in result["cure"]


@only_root
@pytest.mark.parametrize("options", [SPARSE, {**SPARSE, "live": True}], ids=named)
def test_qemu_that_cleans_up_late(mount, make_guest, start_module, save, restore, options):
    """It says that its migration has failed before the migration's own thread knows.

    Settings that are put back before it does make QEMU (10.0) keep all descriptors, and die at the next migration.
    """
    guest = make_guest(memory_mib=160, block_mib=128, observer=True, extra_args=["-name", "debug-threads=on"])
    place = mount("full", "tmpfs", "size=240m")
    image = make_image(place / "images" / "web1.save")
    before = Before(guest, image.parent)
    run = start_module("qemu_save", name=VM, path=str(image), force=True, bandwidth="16M", **options)
    wait_until(lambda: migration_is_active(guest))
    threads = Path(f"/proc/{guest.pid}/task").iterdir()
    names = {(thread / "comm").read_text().strip(): int(thread.name) for thread in threads}
    thread = next((names[name] for name in names if name.startswith("mig/src/main")), None)
    if thread is None:
        pytest.skip(f"this QEMU names its threads otherwise: {sorted(names)}")
    with failing(thread, "futex", "delay_exit=1000000", one_thread=True):
        fill(place / "filler")
        before.check(run.result(), "MigrationError", "No space left on device")
    (place / "filler").unlink()
    save(name=VM, path=str(image), force=True)
    restore(name=VM, path=str(image))
    before.continuity.check()


#: Run with the name of a function of os, which call of it is the first one that fails, with which error, and a regular
#: expression of the files that it must be about; then the module's own command.
FAULTY_STORAGE = """
import importlib, os, re, sys
from ansible.module_utils import basic

name, first, number, pattern = sys.argv[1:5]
real, calls = getattr(os, name), 0

def faulty(target, *arguments, **options):
    global calls
    path = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else os.fspath(target)
    if re.search(pattern, path):
        calls += 1
        if calls >= int(first):
            raise OSError(int(number), os.strerror(int(number)))
    return real(target, *arguments, **options)

module = importlib.import_module(sys.argv[-2])
setattr(os, name, faulty)
basic._ANSIBLE_ARGS, basic._ANSIBLE_PROFILE = open(sys.argv[-1], "rb").read(), "legacy"
module.main()
"""
PARTIAL = r"\.partial$"


def faulty_storage(call: str, first: int, number: int, pattern: str) -> list[str]:
    """The prefix of a module whose calls fail from the first so-and-so-many-th on."""
    return [sys.executable, "-c", FAULTY_STORAGE, call, str(first), str(number), pattern]


@pytest.mark.parametrize(
    ("call", "first", "number", "error", "said"),
    [
        ("open", 1, errno.EIO, "ImageAccessError", "create the image"),
        ("fchmod", 1, errno.EPERM, "ImageAccessError", "mode 0o600"),
        ("pwrite", 1, errno.EDQUOT, "ImageSpaceError", "write the image's head"),
        ("ftruncate", 1, errno.EIO, "ImageAccessError", "cut the image back"),
        ("open", 4, errno.EIO, "ImageAccessError", "open the image for QEMU"),
        ("pwrite", 2, errno.EIO, "ImageAccessError", "write the image's head"),
        ("fsync", 1, errno.EIO, "ImageAccessError", "flush the image"),
        ("fsync", 1, errno.ENOSPC, "ImageSpaceError", "flush the image"),
        ("pread", 1, errno.EIO, "ImageAccessError", "read the image"),
        ("pwrite", 3, errno.EIO, "ImageAccessError", "write the image's head"),
        ("fsync", 2, errno.EIO, "ImageAccessError", "flush the image"),
        ("pwrite", 4, errno.EIO, "ImageAccessError", "write the complete magic"),
        ("fsync", 3, errno.EIO, "ImageAccessError", "flush the image"),
    ],
)
def test_storage_that_fails_the_module(guest, image, start_module, call, first, number, error, said):
    """At each step: nothing that is not flushed is taken for an image."""
    make_image(image)
    before = Before(guest, image.parent)
    prefix = faulty_storage(call, first, number, PARTIAL)
    result = start_module("qemu_save", name=VM, path=str(image), force=True, prefix=prefix).result()
    check_error(result, error, str(image.parent), said, os.strerror(number), guest="running")
    before.check_all_is_as_before()


def test_storage_that_fails_the_modules_rename(guest, image, start_module):
    make_image(image)
    before = Before(guest, image.parent)
    calls = "/^renameat"
    prefix = ["strace", "-f", "-o", "/dev/null", *injected(calls, "error=EROFS", image.parent)]
    result = start_module("qemu_save", name=VM, path=str(image), force=True, prefix=prefix).result()
    before.check(result, "ImageAccessError", str(image.parent), "rename the image", os.strerror(errno.EROFS))


def test_storage_that_fails_the_modules_last_flush(guest, image, start_module, save, restore):
    """The new image has its name by then, and nobody knows for how long: it must not stand beside a guest that runs.

    The older one has its name again.
    """
    make_image(image)
    before = Before(guest, image.parent)
    prefix = faulty_storage("fsync", 1, errno.EIO, f"^{re.escape(str(image.parent))}$")
    result = start_module("qemu_save", name=VM, path=str(image), force=True, prefix=prefix).result()
    before.check(result, "ImageAccessError", str(image.parent), "flush the directory", "Input/output error")
    save(name=VM, path=str(image), force=True)
    restore(name=VM, path=str(image))
    before.continuity.check()


#: Run with a regular expression and the path of a breakable disk, which breaks at the flush of what has such a name.
BREAKING_DISK = """
import fcntl, importlib, os, re, sys
from ansible.module_utils import basic

pattern, disk = sys.argv[1:3]
real = os.fsync

def fsync(target):
    if re.search(pattern, os.readlink(f"/proc/self/fd/{target}")):
        descriptor = os.open(disk, os.O_RDWR)
        fcntl.fcntl(descriptor, 1033, 0x10)
        os.close(descriptor)
    return real(target)

module = importlib.import_module(sys.argv[-2])
os.fsync = fsync
basic._ANSIBLE_ARGS, basic._ANSIBLE_PROFILE = open(sys.argv[-1], "rb").read(), "legacy"
module.main()
"""


@only_root
@pytest.mark.parametrize("there_before", [False, True], ids=["new", "replaced"])
def test_disk_that_dies_at_the_last_flush(breakable_disk, guest, start_module, there_before):
    """The image is complete and has its name, and the file system takes no change any more: then that is told."""
    place, disk = breakable_disk()
    image = make_image(place / "images" / "web1.save")
    older = image.read_bytes()
    if not there_before:
        image.unlink()
    subprocess.run(["sync", "-f", place], check=True)
    before = Before(guest, image.parent)
    pattern = f"^{re.escape(str(image.parent))}$"
    prefix = [sys.executable, "-c", BREAKING_DISK, pattern, f"/proc/{os.getpid()}/fd/{disk}"]
    result = start_module("qemu_save", name=VM, path=str(image), force=True, prefix=prefix).result()
    check_error(result, "ImageAccessError", str(image), "flush the directory", "kernel's log", guest="running")
    assert not takes_changes(image.parent)
    assert f"the image of this failed save stays at {image}, complete" in result["msg"]
    assert f"remove {image} before anyone restores it" in result["cure"]
    assert result["image"]["state"] in ("complete", "partial")
    if there_before:
        kept = re.search(r"the image that was there before is (\S+\.partial),", result["msg"])
        assert kept, result["msg"]
        assert Path(kept[1]).read_bytes() == older
    before.contents = contents(image.parent)
    before.check_all_is_as_before()


# --- reads that fail ---


@pytest.mark.parametrize(
    ("options", "calls", "errors"),
    [
        # QEMU 10.0 dies where it cannot read a page of a sparse image.
        (SPARSE, "preadv", ("MonitorLostError", "MigrationError")),
        (BUFFERED, "preadv", ("MonitorLostError", "MigrationError")),
        (SPARSE, "readv", ("MigrationError",)),
        (RAW, "readv", ("MigrationError",)),
    ],
    ids=named,
)
def test_restore_that_meets_an_io_error(guest, image, save, run_module, restore, options, calls, errors):
    continuity = Continuity(guest)
    save(name=VM, path=str(image), **options)
    before = contents(image.parent)
    guest.start(incoming=True)
    started = time.monotonic()
    access = {key: options[key] for key in options if key == "bypass_cache"}
    with failing(guest.pid, calls, "error=EIO:when=2+", image):
        result = run_module("qemu_restore", name=VM, path=str(image), launch="attach", **access)
    assert time.monotonic() - started < BOUND
    assert result["error"] in errors, result["msg"]
    check_error(result, result["error"], f"{VM} could not be loaded from {image}", guest="saved")
    assert contents(image.parent) == before
    guest.wait_exit()
    restore(name=VM, path=str(image))
    continuity.check()


@pytest.mark.parametrize(
    ("options", "calls", "error", "said", "is_now"),
    [
        # Before the VM is looked for, and by the tool beside its QEMU.
        (SPARSE, "pread64:error=EIO:when=4+", "ImageAccessError", "read the image: Input/output error", "unknown"),
        (RAW, "pread64:error=EIO:when=4+", "ImageAccessError", "read the image: Input/output error", "unknown"),
        # Its tool reads ahead while the head of the stream is looked at: some 25 pieces of 128 KiB at the most.
        (ZSTD, "read:error=EIO:when=60+", "MigrationError|ImageError", "zstd failed with", "saved"),
    ],
    ids=named,
)
def test_restore_whose_module_meets_an_io_error(
    guest, image, save, start_module, restore, options, calls, error, said, is_now
):
    continuity = Continuity(guest)
    save(name=VM, path=str(image), **options)
    before = contents(image.parent)
    started = time.monotonic()
    call, _colon, fault = calls.partition(":")
    prefix = ["strace", "-f", "-o", "/dev/null", *injected(call, fault, image)]
    result = start_module("qemu_restore", name=VM, path=str(image), prefix=prefix).result()
    assert time.monotonic() - started < BOUND
    assert result["error"] in error.split("|"), result["msg"]
    check_error(result, result["error"], str(image), said, guest=is_now)
    assert find_qemu_pids(VM) == []
    assert contents(image.parent) == before
    restore(name=VM, path=str(image))
    continuity.check()


def test_restore_whose_tool_gives_nothing(guest, image, save, start_module, restore, tmp_path):
    """QEMU takes no notice of a stream that ends before its first byte."""
    continuity = Continuity(guest)
    save(name=VM, path=str(image), **ZSTD)
    before = contents(image.parent)
    tool = tmp_path / "bin" / "zstd"
    tool.parent.mkdir()
    # The image's head can still be read, the first time that the tool is called.
    script = 'mkdir "$0.called" 2>/dev/null && exec {} "$@"; echo "zstd: Input/output error" >&2; exit 1'
    tool.write_text(f"#!/bin/sh\n{script.format(shutil.which('zstd'))}\n")
    tool.chmod(0o755)
    started = time.monotonic()
    prefix = ["env", f"PATH={tool.parent}:{os.environ['PATH']}"]
    result = start_module("qemu_restore", name=VM, path=str(image), prefix=prefix, timeout=60).result()
    assert time.monotonic() - started < BOUND
    check_error(result, "ImageError", str(image), "zstd", "Input/output error", guest="saved")
    assert find_qemu_pids(VM) == []
    assert contents(image.parent) == before
    restore(name=VM, path=str(image))
    continuity.check()


# --- a file system that lacks something ---


@only_root
def test_file_system_without_direct_io(mount, guest, run_module, save, restore):
    """Nor does this one (ramfs) know how much space it has."""
    image = mount("buffered", "ramfs", "mode=0700") / "web1.save"
    continuity = Continuity(guest)
    planned = run_module("qemu_save", name=VM, path=str(image), check=True)
    assert planned["changed"]
    assert planned["space_free"] is None
    for run in (save, restore):
        result = run(name=VM, path=str(image))
        assert result["bypass_cache"] is False
        assert "does not take O_DIRECT" in result["reasons"]["bypass_cache"]
        assert result["parallel_channels"]
    continuity.check()


@only_root
def test_direct_io_where_there_is_none(mount, guest, run_module, save):
    image = make_image(mount("buffered", "ramfs", "mode=0700") / "web1.save")
    before = Before(guest, image.parent)
    result = run_module("qemu_save", name=VM, path=str(image), force=True, bypass_cache=True)
    before.check(result, "RequestError", str(image), "does not take O_DIRECT", guest="running")
    save(name=VM, path=str(image), force=True)
    saved = contents(image.parent)
    result = run_module("qemu_restore", name=VM, path=str(image), bypass_cache=True)
    check_error(result, "RequestError", str(image), "does not take O_DIRECT", guest="saved")
    assert contents(image.parent).items() >= saved.items()
