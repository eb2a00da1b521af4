# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A user turns a path in a directory of his to another file between two looks of root's at it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._errors import ImageUnsafeError
from ansible_collections.vmops.qemu.plugins.module_utils._image.archive import create_archive
from ansible_collections.vmops.qemu.plugins.module_utils._image.edit import open_for_edit
from ansible_collections.vmops.qemu.plugins.module_utils._image.expand import expand_archive
from ansible_collections.vmops.qemu.plugins.module_utils._image.header import ImageFormat, SaveImageHeader
from ansible_collections.vmops.qemu.plugins.module_utils._image.partial import PartialImage

from support.attacker import Attacker
from support.observe import VM, wait_until

QEMU = shutil.which("qemu-system-x86_64") or ""
UUID = "6b7d6a1e-0000-4000-8000-000000000002"


def qemu(qmp: Path, *more: str) -> list[str]:
    """The words of a QEMU of his."""
    words = [QEMU, "-name", VM, "-uuid", UUID, "-machine", "pc-i440fx-10.0", "-accel", "tcg", "-m", "16"]
    return [*words, "-display", "none", "-nodefaults", "-qmp", f"unix:{qmp},server=on,wait=off", *more]


@pytest.fixture
def his_image(attacker: Attacker, image: Path, save: Any) -> Path:
    """An image of a VM of his, for which root vouches, in a directory of his."""
    qmp = attacker.home / "saved"
    process = subprocess.Popen(
        qemu(qmp),
        user=attacker.uid,
        group=attacker.gid,
        extra_groups=[],
        cwd=attacker.home,
        stdin=subprocess.DEVNULL,
    )
    try:
        wait_until(qmp.exists)
        save(name=VM, path=str(image), format="raw")
    finally:
        process.kill()
        process.wait()
    his = attacker.home / "his"
    his.mkdir(mode=0o700)
    shutil.copyfile(image, his / "web1.save")
    image.unlink()
    for path in (his, his / "web1.save"):
        os.chown(path, attacker.uid, attacker.gid)
    return his / "web1.save"


def test_file_that_his_qemu_gets_is_the_image(
    attacker: Attacker, his_image: Path, tmp_path: Path, run_module: Any
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("what root alone can read")
    secret.chmod(0o600)
    taken = attacker.home / "taken"
    words = ["-name", VM, "-uuid", UUID, "-incoming", "defer", "-qmp", f"unix:{attacker.home}/qmp,server=on"]
    attacker.python("take_descriptor.py", his_image, secret, taken, *words, named="qemu-system-x86_64")
    options = {"path": str(his_image), "qmp_socket": str(attacker.home / "qmp"), "timeout": 20}
    result = run_module("qemu_restore", launch="attach", disks="ignore", cpu="ignore", **options)
    assert not taken.exists() or b"what root" not in taken.read_bytes()
    assert result["error"] == "ConflictError", result["msg"]
    assert his_image.is_symlink(), "he has turned it"


def test_image_that_is_removed_is_the_one_that_was_restored(
    attacker: Attacker, his_image: Path, tmp_path: Path, restore: Any
) -> None:
    """In the directory to which he turns the path, another VM's image has the same name."""
    others = tmp_path / "others"
    others.mkdir(mode=0o700)
    (others / his_image.name).write_bytes(b"another VM's")
    turner = attacker.python("turn_directory.py", his_image, others)
    argv = qemu(attacker.home / "waits", "-incoming", "defer")
    waiting = subprocess.Popen(argv, user=attacker.uid, group=attacker.gid, extra_groups=[], cwd=attacker.home)
    try:
        result = restore(name=VM, path=str(his_image), launch="attach", attach_timeout=20, disks="ignore")
        assert turner.stdout is not None
        assert turner.stdout.readline().strip() == "turned"
    finally:
        waiting.kill()
        waiting.wait()
    assert (others / his_image.name).exists()
    assert "another file is in its place" in str(result["warnings"])


@pytest.mark.parametrize("name", [".web1.save.{inode:x}.head", ".web1.save.archiving"])
@pytest.mark.parametrize("mode", ["vm_state", "archive"])
def test_fifo_in_the_place_of_a_record(attacker: Attacker, start_module: Any, name: str, mode: str) -> None:
    """What an interrupted run leaves beside an image; root does not wait for who might write to it."""
    his = attacker.home / "web1.save"
    xml = f"<domain type='qemu'><name>{VM}</name><memory unit='MiB'>16</memory></domain>"
    partial = PartialImage.create(str(his), SaveImageHeader(2, ImageFormat.RAW, was_running=True), xml)
    partial.finish()
    partial.release()
    with his.open("r+b") as handle:
        handle.seek(0, os.SEEK_END)
        handle.write(b"x" * 100_000)
        handle.seek(0)
        handle.write(b"LibvirtQemudPart")
    os.chown(his, attacker.uid, attacker.gid)
    os.mkfifo(his.with_name(name.format(inode=his.stat().st_ino)))
    options = {"vm_state": "paused"} if mode == "vm_state" else {"archive": "zstd", "space": "tight"}
    result = start_module("qemu_save_image", path=str(his), **options).result(timeout=30)
    assert result["failed"], result["msg"]


@pytest.mark.parametrize("where", ["his own", "root's, by his link", "root's, in his", "root's"])
def test_image_that_shall_belong_to_him(
    attacker: Attacker, guest: Any, tmp_path: Path, run_module: Any, where: str
) -> None:
    """With a file of his in a directory of root's programs he would have root execute it."""
    roots = tmp_path / "programs"
    roots.mkdir(mode=0o755)
    place = attacker.home / "place"
    if where == "root's":
        place = roots
    elif where == "root's, by his link":
        place.symlink_to(roots)
    else:
        place.mkdir(mode=0o755)
        if where == "his own":
            os.chown(place, attacker.uid, attacker.gid)
    path = place / "web1.save"
    result = run_module(
        "qemu_save", name=VM, path=str(path), owner="nobody", after_save="resume", require_restorable=False
    )
    if where in ("his own", "root's"):
        assert not result.get("failed"), result["msg"]
        assert path.stat().st_uid == attacker.uid
        return
    assert result["error"] == "ImageUnsafeError", result["msg"]
    assert "lead its path to any directory" in result["msg"]
    assert "place" in result["msg"]
    assert list(roots.iterdir()) == []
    assert guest.alive()


def test_archive_is_expanded_for_its_owner_in_its_own_directory_alone(attacker: Attacker, tmp_path: Path) -> None:
    """He turns the directory when the archive has been opened."""
    his = attacker.home / "his"
    his.mkdir()
    path = his / "web1.save"
    xml = f"<domain type='qemu'><name>{VM}</name><memory unit='MiB'>16</memory></domain>"
    partial = PartialImage.create(str(path), SaveImageHeader(2, ImageFormat.RAW, was_running=True), xml)
    partial.finish()
    partial.release()
    with open_for_edit(str(path)) as image:
        create_archive(image, ImageFormat.GZIP)
    archive = his / "web1.save.tar.gz"
    for each in (his, archive):
        os.chown(each, attacker.uid, attacker.gid)
    archive.chmod(0o755)
    roots = tmp_path / "programs"
    roots.mkdir(mode=0o755)
    with open_for_edit(str(archive)) as packed:
        his.rename(attacker.home / "away")
        his.symlink_to(roots)
        with pytest.raises(ImageUnsafeError, match="lead its path to any directory"):
            expand_archive(packed)
    assert list(roots.iterdir()) == []
