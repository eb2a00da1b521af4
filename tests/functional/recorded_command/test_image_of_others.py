# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The command that an image records is run only if nobody else can have written the image, or turned the way to it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._errors import ConflictError
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_file import read_image_head
from ansible_collections.vmops.qemu.plugins.module_utils._restore.operation import RestoreOperation
from ansible_collections.vmops.qemu.plugins.module_utils._restore.request import RestoreRequest

from support.access import NOBODY, STRANGER, give_to_stranger, grant, reachable_by_nobody
from support.canary import check_refused
from support.observe import VM

QEMU = shutil.which("qemu-system-x86_64") or ""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of other users")

UNSAFE = {
    "file-group-writable": lambda image: image.chmod(0o620),
    "file-world-writable": lambda image: image.chmod(0o602),
    "file-of-another": give_to_stranger,
    "file-acl": lambda image: grant(image, 0o6),
    "directory-group-writable": lambda image: image.parent.chmod(0o770),
    "directory-world-writable": lambda image: image.parent.chmod(0o707),
    "directory-sticky": lambda image: image.parent.chmod(0o1777),
    "directory-of-another": lambda image: give_to_stranger(image.parent),
    "directory-acl": lambda image: grant(image.parent, 0o7),
    "above-group-writable": lambda image: image.parent.parent.chmod(0o770),
    "above-world-writable": lambda image: image.parent.parent.chmod(0o757),
    "above-of-another": lambda image: give_to_stranger(image.parent.parent),
    "above-acl": lambda image: grant(image.parent.parent, 0o7),
}


def test_canary_sings(forged, canary, run_module):
    """Where nothing is wrong with the image the canary is run: else none of these tests would show anything."""
    result = run_module("qemu_restore", name=VM, path=str(forged))
    assert result["error"] == "LaunchError", "the canary is no QEMU, and ends at once"
    assert canary.run
    assert forged.exists()


@pytest.mark.parametrize("spoil", UNSAFE.values(), ids=UNSAFE.keys())
def test_image_that_others_could_have_written(forged, canary, run_module, spoil):
    spoil(forged)
    result = run_module("qemu_restore", name=VM, path=str(forged), check=True)
    check_refused(result, "ImageUnsafeError", "is not run", image=forged, canary=canary)
    result = run_module("qemu_restore", name=VM, path=str(forged))
    check_refused(result, "ImageUnsafeError", "is not run", "mode 0600", image=forged, canary=canary)
    assert os.listdir(forged.parent) == [forged.name], "not even a log was made"


SAFE = {
    "file-group-readable": lambda image: image.chmod(0o640),
    "file-acl-for-reading": lambda image: grant(image, 0o4),
    "above-sticky": lambda image: image.parent.parent.chmod(0o1777),
    "second-name": lambda image: os.link(image, image.parent / "backup.save"),
}


@pytest.mark.parametrize("change", SAFE.values(), ids=SAFE.keys())
def test_image_that_others_could_not_have_written(forged, canary, run_module, change):
    change(forged)
    run_module("qemu_restore", name=VM, path=str(forged))
    assert canary.run


@pytest.fixture
def hostile_place(tmp_path):
    """A directory of a stranger's."""
    place = tmp_path / "hostile"
    place.mkdir()
    give_to_stranger(place)
    return place


def links(image, place, elsewhere):
    """Ways to a safe image through a directory of someone else's, who can turn them to another one at any time."""
    (place / "file.save").symlink_to(image)
    (place / "directory").symlink_to(image.parent)
    (place / "relative.save").symlink_to(f"../{image.parent.name}/{image.name}")
    (elsewhere / "second.save").symlink_to(place / "file.save")
    (elsewhere / "through").symlink_to(place)
    os.link(image, place / "second-name.save")
    return [
        place / "file.save",
        place / "directory" / image.name,
        place / "relative.save",
        elsewhere / "second.save",
        elsewhere / "through" / "directory" / image.name,
        place / "second-name.save",
    ]


def test_path_through_a_directory_of_someone_else(forged, canary, run_module, hostile_place, tmp_path):
    """The image is safe, but whose image stands at the path is for others to say."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for path in links(forged, hostile_place, elsewhere):
        result = run_module("qemu_restore", name=VM, path=str(path), remove_image=False)
        check_refused(result, "ImageUnsafeError", str(hostile_place), image=forged, canary=canary)
    # By its own path it is as safe as before.
    run_module("qemu_restore", name=VM, path=str(forged))
    assert canary.run


def test_link_of_someone_else_in_a_shared_directory(forged, canary, run_module, tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    link = shared / "link"
    link.symlink_to(forged.parent)
    os.lchown(link, STRANGER, -1)
    path = str(link / forged.name)
    result = run_module("qemu_restore", name=VM, path=path, remove_image=False)
    check_refused(result, "ImageUnsafeError", "symbolic link", str(link), image=forged, canary=canary)
    os.lchown(link, 0, -1)
    run_module("qemu_restore", name=VM, path=path, remove_image=False)
    assert canary.run


def test_safe_link_to_an_unsafe_image(forged, canary, run_module, hostile_place, tmp_path):
    hostile = hostile_place / "web1.save"
    shutil.copy(forged, hostile)
    hostile.chmod(0o600)
    link = tmp_path / "link.save"
    link.symlink_to(hostile)
    result = run_module("qemu_restore", name=VM, path=str(link), remove_image=False)
    check_refused(result, "ImageUnsafeError", str(hostile_place), image=hostile, canary=canary)


def test_links_without_end(run_module, tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    result = run_module("qemu_restore", name=VM, path=str(tmp_path / "a" / "web1.save"))
    assert result["error"] == "ImageAccessError", result["msg"]


@contextlib.contextmanager
def bind_mount(source, target):
    target.mkdir(exist_ok=True)
    subprocess.run(["mount", "--bind", source, target], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", target], check=True)


def test_bind_mounts(forged, canary, run_module, hostile_place, tmp_path):
    """What is mounted counts, and where it is mounted."""
    shutil.copy(forged, hostile_place / "web1.save")
    with bind_mount(hostile_place, tmp_path / "safe"):
        result = run_module("qemu_restore", name=VM, path=str(tmp_path / "safe" / "web1.save"), remove_image=False)
        check_refused(result, "ImageUnsafeError", str(tmp_path / "safe"), image=forged, canary=canary)
    with bind_mount(forged.parent, hostile_place / "mounted"):
        path = str(hostile_place / "mounted" / "web1.save")
        result = run_module("qemu_restore", name=VM, path=path, remove_image=False)
        check_refused(result, "ImageUnsafeError", str(hostile_place), image=forged, canary=canary)


def test_image_that_was_exchanged_between_two_looks(forged, forge, canary):
    """The command is that of the file which was found safe, not of one that was there before."""
    operation = RestoreOperation(RestoreRequest(name=VM, qmp_socket=None, path=str(forged), save_dir="/"))
    before = read_image_head(str(forged)).domain()
    assert asyncio.run(operation._how_to_launch(before, "pc")).argv[0] == str(canary.program)
    forge(argv=[QEMU, "-name", VM], executable=QEMU)
    with pytest.raises(ConflictError, match="replaced"):
        asyncio.run(operation._how_to_launch(before, "pc"))


#: A module that becomes nobody when it has read its code and its arguments, which are root's.
RUN_AS_NOBODY = [
    sys.executable,
    "-c",
    "import importlib, os, pwd, sys\n"
    "from ansible.module_utils import basic\n"
    "module = importlib.import_module(sys.argv[3])\n"
    "basic._ANSIBLE_ARGS, basic._ANSIBLE_PROFILE = open(sys.argv[4], 'rb').read(), 'legacy'\n"
    "entry = pwd.getpwnam('nobody')\n"
    "os.setgroups([]); os.setgid(entry.pw_gid); os.setuid(entry.pw_uid)\n"
    "module.main()\n",
]


def give_to_nobody(image):
    for path in (image.parent, *image.parent.iterdir()):
        os.chown(path, NOBODY, -1)


def test_command_recorded_as_roots_in_an_image_of_another_user(forge, canary, run_module, start_module):
    """Root does not run it; the user who owns the image gets what is theirs anyway: a process of their own."""
    image = forge(
        argv=[str(canary.program), "-name", VM, "-qmp", "unix:/x,server=on"],
        executable=str(canary.program),
        uid=0,
        gid=0,
        cwd="/",
    )
    give_to_nobody(image)
    result = run_module("qemu_restore", name=VM, path=str(image))
    check_refused(result, "ImageUnsafeError", f"user {NOBODY}", image=image, canary=canary)
    os.chown(canary.file.parent, NOBODY, -1)
    with reachable_by_nobody(image.parent, canary.file.parent):
        image.parent.chmod(0o700)
        run = image.parent / "run"
        run.mkdir(mode=0o700)
        os.chown(run, NOBODY, -1)
        prefix = ["env", f"XDG_STATE_HOME={image.parent / 'state'}", f"XDG_RUNTIME_DIR={run}", *RUN_AS_NOBODY]
        result = start_module("qemu_restore", name=VM, path=str(image), prefix=prefix).result()
        assert result["error"] == "NotVouchedError", result["msg"]
        assert start_module("qemu_save_image", path=str(image), vouch=True, prefix=prefix).result()["changed"]
        result = start_module("qemu_restore", name=VM, path=str(image), prefix=prefix).result()
    assert canary.run, result["msg"]
    assert canary.file.stat().st_uid == NOBODY
