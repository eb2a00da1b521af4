# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is at the path of an image and is none, or is not ours: it is neither written to nor loaded."""

from __future__ import annotations

import os
import socket
import stat
import time
from pathlib import Path
from typing import Any, Callable

import pytest

from support.access import NOBODY
from support.module_run import check_error
from support.observe import VM, Continuity
from support.unchanged import BOUND, Before, contents, make_image

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount file systems, and make files of others")


def make_socket(path: Path) -> None:
    place = os.open(path.parent, os.O_PATH)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"/proc/self/fd/{place}/{path.name}")  # the whole path may be too long
    finally:
        os.close(place)


KINDS: dict[str, Callable[[Path], None]] = {
    "a directory": Path.mkdir,
    "a FIFO": os.mkfifo,
    "a socket": make_socket,
    "a character device": lambda path: os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3)),
    "a block device": lambda path: os.mknod(path, 0o600 | stat.S_IFBLK, os.makedev(7, 255)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_no_image_at_the_path(guest, image, run_module, kind):
    try:
        KINDS[kind](image)
    except PermissionError:
        pytest.skip("only root can make devices")
    before = Before(guest, image.parent)
    for options in ({}, {"force": True}, {"force": True, "check": True}):
        result = run_module("qemu_save", name=VM, path=str(image), **options)
        check_error(result, "RequestError", f"{image} is {kind}", guest="running")
    unchecked: dict[str, Any] = {"verify": "none", "remove_image": False}
    for options in ({}, unchecked):
        result = run_module("qemu_restore", name=VM, path=str(image), **options)
        check_error(result, "ImageFormatError", str(image), f"it is {kind}", guest="unknown")
    before.check_all_is_as_before()


@pytest.mark.parametrize("target", ["image", "text", "missing"])
def test_image_through_a_link_is_not_replaced(guest, image, run_module, tmp_path, target):
    victim = tmp_path / "elsewhere" / "victim"
    make_image(victim)
    if target == "text":
        victim.write_text("precious")
    elif target == "missing":
        victim.unlink()
    image.symlink_to(victim)
    before = Before(guest, image.parent)
    there = contents(victim.parent)
    for options in ({}, {"force": True}, {"check": True, "force": True}):
        result = run_module("qemu_save", name=VM, path=str(image), **options)
        check_error(result, "RequestError", f"{image} is a symbolic link", guest="running")
    before.check_all_is_as_before()
    assert contents(victim.parent) == there


def test_image_through_a_link_is_restored_but_not_removed(guest, image, save, run_module, restore, tmp_path):
    continuity = Continuity(guest)
    target = tmp_path / "elsewhere" / "web1.save"
    target.parent.mkdir(mode=0o700)
    save(name=VM, path=str(target))
    image.symlink_to(target)
    there = contents(target.parent)
    result = run_module("qemu_restore", name=VM, path=str(image))
    check_error(result, "RequestError", f"{image} is a symbolic link", guest="saved")
    assert contents(target.parent) == there
    restore(name=VM, path=str(image), remove_image=False)
    continuity.check()
    # All that has changed is that it says of itself that its guest went on.
    assert set(contents(target.parent)) == set(there)
    assert run_module("qemu_save_image_info", path=str(image))["image"]["checkpoint"] is True
    assert os.readlink(image) == str(target)


@pytest.fixture
def shared(tmp_path):
    """A directory in which everybody may put files, as /tmp."""
    place = tmp_path / "shared"
    place.mkdir()
    place.chmod(0o1777)
    return place


@pytest.fixture
def victim(tmp_path):
    """A file of root's, which another user would like to see written."""
    place = tmp_path / "private"
    place.mkdir(mode=0o700)
    path = place / "victim"
    path.write_text("precious")
    path.chmod(0o600)
    return path


def check_own_image(image: Path) -> None:
    facts = image.lstat()
    assert stat.S_ISREG(facts.st_mode)
    assert (facts.st_uid, stat.S_IMODE(facts.st_mode), facts.st_nlink) == (0, 0o600, 1)


@only_root
@pytest.mark.parametrize("planted", ["link", "fifo"])
def test_image_that_another_user_planted(shared, victim, guest, run_module, planted):
    image = shared / "web1.save"
    if planted == "link":
        image.symlink_to(victim)
    else:
        os.mkfifo(image, 0o666)
    os.lchown(image, NOBODY, NOBODY)
    before = Before(guest, shared)
    there = contents(victim.parent)
    for force in (False, True):
        result = run_module("qemu_save", name=VM, path=str(image), force=force)
        check_error(result, "RequestError", str(image), guest="running")
    before.check_all_is_as_before()
    assert contents(victim.parent) == there


@only_root
@pytest.mark.parametrize("planted", ["complete", "partial", "hard-link"])
def test_file_that_another_user_planted_is_replaced_by_one_of_our_own(shared, victim, guest, run_module, save, planted):
    """He keeps it open, and may write to it; nothing of the guest comes into it."""
    image = shared / "web1.save"
    if planted == "hard-link":
        image.hardlink_to(victim)
    else:
        make_image(image, b"LibvirtQemudPart" if planted == "partial" else b"LibvirtQemudSave")
        image.chmod(0o666)
        os.chown(image, NOBODY, NOBODY)
    with image.open("r+b") as handle:
        was = handle.read()
        if planted != "partial":
            before = Before(guest, shared)
            result = run_module("qemu_save", name=VM, path=str(image))
            before.check(result, "ConflictError", str(image), "force", guest="running")
        # Nothing in such a directory is restored by its own record.
        result = run_module("qemu_save", name=VM, path=str(image), force=planted != "partial")
        check_error(result, "NotRestorableError", str(shared), guest="running")
        save(name=VM, path=str(image), force=planted != "partial", require_restorable=False)
        check_own_image(image)
        assert not os.path.samestat(os.fstat(handle.fileno()), image.stat())
        handle.seek(0)
        assert handle.read() == was
    assert victim.read_text() == "precious"
    assert victim.stat().st_nlink == 1


@only_root
def test_partial_images_that_another_user_planted(shared, victim, guest, save, restore):
    image = shared / "web1.save"
    continuity = Continuity(guest)
    names = [shared / f".web1.save.{number:016x}.partial" for number in range(6)]
    names[0].symlink_to(victim)
    names[1].hardlink_to(victim)
    make_image(names[2], b"LibvirtQemudPart").chmod(0o666)
    os.mkfifo(names[3], 0o666)
    names[4].mkdir()
    names[5].symlink_to(shared)
    for path in (names[0], *names[2:]):
        os.lchown(path, NOBODY, NOBODY)
    planted = contents(shared)
    with names[2].open("r+b") as handle:
        was = handle.read()
        started = time.monotonic()
        save(name=VM, path=str(image), require_restorable=False)
        assert time.monotonic() - started < BOUND
        handle.seek(0)
        # Nothing of the guest comes into it; as a leftover it may be emptied.
        assert handle.read() in (was, b"")
    check_own_image(image)
    left = contents(shared)
    del left["web1.save"]
    # A file may be taken for what a killed save left, and removed; what is no file stays.
    assert left.items() <= planted.items()
    assert {names[0].name, *(path.name for path in names[3:])} <= set(left)
    assert victim.read_text() == "precious"
    guest.wait_exit()
    # From a directory of all nothing is loaded.
    mine = shared.with_name("mine")
    mine.mkdir(mode=0o700)
    image = image.rename(mine / image.name)
    restore(name=VM, path=str(image), launch="command", command=guest.argv())
    continuity.check()
