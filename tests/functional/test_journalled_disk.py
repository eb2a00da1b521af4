# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A guest with a journalled file system: restored over its own disk it goes on; over a disk that has moved on, never.

A memory that is restored over another disk writes back what it remembers of its journal and its inodes: the file
system is destroyed, and nobody is told.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from support import LinuxGuest, gaps
from support.observe import VM

NAME = f"linux-{VM}"

Result = dict[str, Any]


class Written:
    """What the guest has on its disk before a save; check() shows that it is there, and that it goes on."""

    def __init__(self, guest: LinuxGuest) -> None:
        self.guest = guest
        guest.wait_for_counter(5)
        self.files = {1: guest.write_file(1)}
        self.memory = guest.checksum()

    def check(self) -> None:
        """The guest reads what it wrote, writes on, and shuts down; its file system is sound, from outside as well."""
        guest = self.guest
        guest.wait_restarted()
        guest.wait_for_counter(guest.counters()[-1] + 5)
        assert guest.read_file(1) == self.files[1]
        self.files[2] = guest.write_file(2)
        assert guest.checksum() == self.memory
        assert guest.boots() == 1
        assert gaps(guest.counters()) == []
        guest.power_off()
        guest.check_disk()
        for number, checksum in self.files.items():
            assert guest.file_on_disk(number) == checksum


def state_of(path: Path) -> tuple[int, int, bytes]:
    """A file's size, time and content."""
    facts = path.stat()
    return facts.st_size, facts.st_mtime_ns, path.read_bytes()


def check_refused(result: Result, guest: LinuxGuest, image: Path, before: tuple[int, int, bytes], *said: str) -> None:
    """Nothing was started, the disk is as it was, and the image is still there."""
    assert result.get("failed"), result["msg"]
    for text in ("disks=ignore", *said):
        assert text in result["msg"], result["msg"]
    assert image.exists()
    assert state_of(guest.disk) == before
    assert not guest.adopt_restarted()


def boot_from_disk(guest: LinuxGuest) -> None:
    """What an operator does who does not know of the image: the VM is started from its disk, works, and ends."""
    guest.start()
    guest.write_file(9)
    guest.power_off()


@pytest.mark.parametrize("options", [{}, {"disks": "check"}, {"disks": "ignore"}], ids=["default", "check", "ignore"])
def test_unchanged_disk(linux, image, save, restore, options):
    written = Written(linux)
    save(name=NAME, path=str(image))
    result = restore(name=NAME, path=str(image), **options)
    assert not any("disk" in warning for warning in result.get("warnings", []))
    written.check()


def test_several_times(linux, image, save, restore):
    written = Written(linux)
    for _time in range(3):
        save(name=NAME, path=str(image))
        restore(name=NAME, path=str(image))
        linux.wait_restarted()
    written.check()


def test_disk_that_was_booted_from_meanwhile(linux, image, save, run_module):
    Written(linux)
    save(name=NAME, path=str(image))
    boot_from_disk(linux)
    linux.fsck()
    before = state_of(linux.disk)
    result = run_module("qemu_restore", name=NAME, path=str(image))
    check_refused(result, linux, image, before, str(linux.disk), "disk0", "was written to")
    linux.fsck()


def test_older_state_of_a_guest_that_went_on(linux, image, save, run_module):
    Written(linux)
    save(name=NAME, path=str(image), after_save="resume")
    linux.write_file(3)
    linux.power_off()
    before = state_of(linux.disk)
    result = run_module("qemu_restore", name=NAME, path=str(image))
    check_refused(result, linux, image, before, str(linux.disk), "was written to")
    linux.check_disk()


def test_disk_that_was_repaired_meanwhile(linux, image, save, run_module):
    """The disk of a saved guest looks as after a power cut, so somebody may well let fsck loose on it."""
    Written(linux)
    save(name=NAME, path=str(image))
    subprocess.run(["/sbin/e2fsck", "-fy", str(linux.disk)], capture_output=True, check=False)
    before = state_of(linux.disk)
    result = run_module("qemu_restore", name=NAME, path=str(image))
    check_refused(result, linux, image, before, str(linux.disk), "was written to")


def test_disk_that_is_not_there(linux, image, save, run_module, restore):
    written = Written(linux)
    save(name=NAME, path=str(image))
    away = linux.disk.with_suffix(".away")
    os.rename(linux.disk, away)
    result = run_module("qemu_restore", name=NAME, path=str(image))
    assert result.get("failed"), result["msg"]
    assert str(linux.disk) in result["msg"]
    assert image.exists()
    assert not linux.disk.exists()
    os.rename(away, linux.disk)
    restore(name=NAME, path=str(image))
    written.check()


def test_disk_that_was_put_back(linux, image, save, run_module, restore):
    """A copy that keeps the times, as it is made when a VM is moved to another host, is the same disk."""
    written = Written(linux)
    save(name=NAME, path=str(image))
    copy = linux.disk.with_suffix(".copy")
    shutil.copy2(linux.disk, copy)
    boot_from_disk(linux)
    before = state_of(linux.disk)
    check_refused(run_module("qemu_restore", name=NAME, path=str(image)), linux, image, before, "was written to")
    os.replace(copy, linux.disk)
    restore(name=NAME, path=str(image))
    linux.wait_restarted()
    linux.wait_for_counter(linux.counters()[-1] + 5)
    assert linux.read_file(1) == written.files[1]
    linux.power_off()
    linux.fsck()


def test_touched_disk_on_request(linux, image, save, run_module, restore):
    """The operator knows better: only the time is another one."""
    written = Written(linux)
    save(name=NAME, path=str(image))
    os.utime(linux.disk)
    before = state_of(linux.disk)
    for options in ({}, {"disks": "check"}):
        result = run_module("qemu_restore", name=NAME, path=str(image), **options)
        check_refused(result, linux, image, before, "was last changed at")
    assert run_module("qemu_restore", name=NAME, path=str(image), check=True).get("failed")
    restore(name=NAME, path=str(image), disks="ignore")
    written.check()


def test_other_disk_of_the_qemu_that_waits(linux, image, save, run_module, tmp_path):
    """The disk that the memory belongs to is as it was, but the QEMU that someone started has opened another one."""
    Written(linux)
    save(name=NAME, path=str(image))
    other = LinuxGuest(tmp_path / "other", NAME)
    other.prepare()
    shutil.copyfile(linux.disk, other.disk)
    before = state_of(other.disk)
    try:
        other.start(incoming=True)
        options = {"launch": "attach", "qmp_socket": str(other.qmp_socket)}
        result = run_module("qemu_restore", name=NAME, path=str(image), **options)
    finally:
        other.close()
    assert result.get("failed"), result["msg"]
    assert str(other.disk) in result["msg"]
    assert image.exists()
    assert state_of(other.disk) == before
