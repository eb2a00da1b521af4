# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where a file server takes root for nobody (NFS with root squash): is it said of images and disks before the save?"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest

from support import find_qemu_pids
from support.module_run import check_error
from support.mounts import SQUASHED, shown_by_server
from support.observe import VM, Continuity, wait_until, words
from support.paused import make_disk
from support.unchanged import Before

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root is taken for somebody else")

#: A user other than root and the one for whom root is taken.
DAEMON = 1


@pytest.fixture
def below(tmp_path: Path) -> Path:
    """The directory of the server, which belongs to the user for whom it takes root."""
    place = tmp_path / "server"
    place.mkdir()
    os.chown(place, SQUASHED, SQUASHED)
    for above in tmp_path, *tmp_path.parents[:2]:
        above.chmod(0o755)
    return place


@pytest.fixture
def show(tmp_path: Path, below: Path) -> Iterator[Callable[..., Path]]:
    """Have the server show its directory: ``show("--chmod-ignore", squash=False)``; where it is seen."""
    with contextlib.ExitStack() as stack:

        def run(*options: str, squash: bool = True) -> Path:
            reason = stack.enter_context(shown_by_server(below, tmp_path / "nfs", *options, squash=squash))
            if reason:
                pytest.skip(reason)
            return tmp_path / "nfs"

        yield run


# --- the directory of the images ---


def test_directory_of_the_server(make_guest, run_module, show, below):
    """Others could put an image there: with root, all for whom the server takes root."""
    before = Before(make_guest(observer=True), below)
    nfs = show()
    for options in ({"path": str(nfs / "web1.save")}, {"save_dir": str(nfs / "new" / "save")}):
        for check in (True, False):
            result = run_module("qemu_save", name=VM, check=check, **options)
            check_error(result, "NotRestorableError", f"{nfs} belongs to the user {SQUASHED}", guest="running")
            assert [each["kind"] for each in result["problems"] if each["blocks"]] == ["image_unsafe"]
            assert "Save into a directory of root's" in result["cure"]
    # Where that is known and accepted, what cannot be done there is an error before the guest is touched.
    result = run_module("qemu_save", name=VM, path=str(nfs / "web1.save"), owner="daemon", require_restorable=False)
    before.check(result, "ImageAccessError", "cannot set owner", "no_root_squash")


def test_all_vms_of_a_host(make_guest, run_module, show, below):
    nfs = show()
    guest = make_guest(observer=True)
    before = Before(guest, below)
    for check in (True, False):
        result = run_module("qemu_managed_save", vms=[VM], save_dir=str(nfs / "save"), unsaved="ignore", check=check)
        assert result["failed"]
        assert f"{nfs} belongs to the user {SQUASHED}" in result["msg"]
        assert "No VM was touched" in result["msg"]
    before.check_all_is_as_before()


def test_directory_in_which_root_may_make_nothing(make_guest, run_module, show, below):
    """It is root's, and so safe; that the server lets nobody write there, it says when it is asked to."""
    os.chown(below, 0, 0)
    nfs = show()
    before = Before(make_guest(observer=True), below)
    result = run_module("qemu_save", name=VM, path=str(nfs / "web1.save"))
    before.check(result, "ImageAccessError", "cannot create the image", "root squash", "no_root_squash")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--create-for-user=nobody", "--chown-ignore"], "a file that root makes there belongs to nobody"),
        (["--chmod-ignore", "--create-with-perms=a+r"], "a file with the mode 0600 has the mode 0644 there"),
    ],
    ids=["owner", "mode"],
)
def test_file_that_is_another_one_than_was_asked_for(make_guest, run_module, show, below, options, said):
    """The directory is root's, and the server puts there what is not; found before the guest is touched."""
    os.chown(below, 0, 0)
    below.chmod(0o700)
    nfs = show(*options, squash=False)
    before = Before(make_guest(observer=True), below)
    result = run_module("qemu_save", name=VM, path=str(nfs / "web1.save"))
    before.check(result, "ImageUnsafeError", said)


# --- an image that root cannot read ---


def test_image_that_root_cannot_read(make_guest, run_module, restore, save, image, show, below):
    guest = make_guest(observer=True)
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    theirs = below / image.name
    shutil.copy2(image, theirs)
    os.chown(theirs, DAEMON, DAEMON)
    nfs = show()
    path = str(nfs / image.name)
    for check in (True, False):
        result = run_module("qemu_restore", name=VM, path=path, check=check)
        check_error(result, "ImageAccessError", path, "Permission denied", "no_root_squash")
        assert words(result) == ("unknown", "unknown")
        assert find_qemu_pids(VM) == []
    for asked in (path, str(nfs)):
        (told,) = run_module("qemu_save_image_info", path=asked)["images"]
        assert (told["state"], told["path"]) == ("invalid", path), told
        assert "Permission denied" in " ".join(told["problems"])
    restore(name=VM, path=str(image))
    continuity.check()


# --- a disk that root cannot read ---


@pytest.fixture
def start_on_server(make_guest, show, below):
    """Start a guest with disks on the server; to some the server denies root any access while QEMU has them open."""

    def run(extra_args: Callable[[Path], list[str]], *hidden: str):
        for place in below.iterdir():
            os.chown(place, SQUASHED, SQUASHED)
        nfs = show()
        guest = make_guest(observer=True, extra_args=extra_args(nfs))
        give(below, DAEMON, *hidden)
        for name in hidden:
            with pytest.raises(PermissionError):
                (nfs / name).open("rb")
        return guest

    return run


def give(below: Path, uid: int, *names: str) -> None:
    """Who is their owner has a disk for himself; its time is as it was."""
    for name in names:
        os.chown(below / name, uid, uid)
        (below / name).chmod(0o600)


def is_denied(path: Path) -> bool:
    """Whether root may not look at a file."""
    try:
        path.stat()
    except PermissionError:
        return True
    return False


def test_disk_that_root_cannot_open_again(run_module, below, start_on_server, image):
    """As QEMU would try at the end of the save, when all is written."""
    make_disk(below / "d.img", size="4M")
    guest = start_on_server(
        lambda nfs: ["-drive", f"if=none,id=d0,format=raw,file={nfs}/d.img", "-device", "virtio-blk-pci,drive=d0"],
        "d.img",
    )
    before = Before(guest, image.parent)
    for options in ({"check": True}, {}, {"require_restorable": False}):
        result = run_module("qemu_save", name=VM, path=str(image), **options)
        check_error(result, "NotRestorableError", "nfs/d.img", "root may not read that file any more", guest="running")
        assert [each["kind"] for each in result["problems"] if each["blocks"]] == ["disk_name_lost"]
    before.check_all_is_as_before()


def test_disk_whose_header_root_cannot_read(run_module, below, start_on_server, image):
    """What is below it is not known then, and is not said to be unchanged."""
    make_disk(below / "base.img", size="4M")
    make_disk(below / "d.qcow2", "qcow2", "-F", "raw", "-b", str(below / "base.img"))
    node = "driver=qcow2,node-name=n0,file.driver=file,file.filename"
    guest = start_on_server(
        lambda nfs: ["-blockdev", f"{node}={nfs}/d.qcow2", "-device", "virtio-blk-pci,drive=n0"], "d.qcow2"
    )
    before = Before(guest, image.parent)
    for check in (True, False):
        result = run_module("qemu_save", name=VM, path=str(image), check=check)
        check_error(result, "NotRestorableError", "nfs/d.qcow2 cannot be read: Permission denied", guest="running")
        assert [each["kind"] for each in result["problems"] if each["blocks"]] == ["disk_unknown"]
        assert "the server leave root as it is" in result["cure"]
    before.check_all_is_as_before()


def test_disk_that_only_qemu_reads(run_module, save, restore, below, start_on_server, image):
    """Its size and time are known through what QEMU has open. It is compared when a QEMU has opened it again."""
    make_disk(below / "d.img", size="4M")
    node = "driver=raw,node-name=n0,file.driver=file,file.filename"
    guest = start_on_server(
        lambda nfs: ["-blockdev", f"{node}={nfs}/d.img", "-device", "virtio-blk-pci,drive=n0"], "d.img"
    )
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    disks = run_module("qemu_save_image_info", path=str(image))["image"]["disks"]
    (disk,) = [each for each in disks if not each["read_only"]]
    facts = (below / "d.img").stat()
    assert [(file["size"], file["mtime_ns"], file["uncheckable"]) for file in disk["files"]] == [
        (facts.st_size, facts.st_mtime_ns, "")
    ]
    nfs = below.parent / "nfs"
    below.chmod(0o700)
    os.chown(below, DAEMON, DAEMON)  # nor may root look at the file
    wait_until(lambda: is_denied(nfs / "d.img"))  # the kernel remembers for a second
    result = run_module("qemu_restore", name=VM, path=str(image))
    assert result["failed"]
    assert words(result) == ("saved", "kept"), result["msg"]
    assert find_qemu_pids(VM) == []
    os.chown(below, SQUASHED, SQUASHED)
    give(below, SQUASHED, "d.img")
    restore(name=VM, path=str(image))
    continuity.check()
