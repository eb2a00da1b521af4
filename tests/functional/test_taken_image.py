# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""An image whose guest goes on says so before, or the guest does not go on: nobody may restore it a second time."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._image.edit import mark_checkpoint
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_file import read_image_head
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import has_open

from support import find_qemu_pids
from support.observe import VM, Continuity, run_state, wait_until, words
from support.paused import PausedQemu, make_disk

#: A disk of which nobody can say whether it was written to.
UNCHECKABLE = ["-drive", "if=virtio,driver=null-co,size=1M"]


@contextlib.contextmanager
def unwritable(image):
    """Root, too, may neither write to it nor remove it."""
    if subprocess.run(["chattr", "+i", image], check=False, capture_output=True).returncode:
        pytest.skip("chattr +i cannot be used here")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", image], check=True)


@contextlib.contextmanager
def halted_while_it_loads(guest, image, start_module):
    """A restore whose QEMU has the image open, and stands still for the body; yields the run."""
    run = start_module("qemu_restore", name=VM, path=str(image))
    wait_until(lambda: has_open(guest.pid, str(image)), interval=0)
    os.kill(guest.pid, signal.SIGSTOP)
    yield run
    os.kill(guest.pid, signal.SIGCONT)


@pytest.mark.parametrize("how", ["marked", "removed", "replaced"])
def test_somebody_else_takes_the_image_while_it_is_loaded(make_guest, image, save, start_module, how):
    """As another host does that has the same directory, on a file system without locks."""
    guest = make_guest(observer=True, memory_mib=256, block_mib=128)
    save(name=VM, path=str(image), format="raw")
    guest.start(incoming=True)
    with halted_while_it_loads(guest, image, start_module) as run:
        if how == "marked":
            mark_checkpoint(str(image), read_image_head(str(image)))
        elif how == "removed":
            image.unlink()
        else:
            image.unlink()
            image.write_bytes(b"another save")
    result = run.result()
    assert result.get("error") == "ConflictError", result["msg"]
    assert "somebody else has taken its image" in result["msg"]
    assert result["guest"] == "ended"
    wait_until(lambda: not guest.alive())
    assert image.exists() == (how != "removed")


def test_image_that_cannot_be_marked_is_refused_before_qemu_is_started(guest, image, save, restore, run_module):
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    guest.wait_exit()
    with unwritable(image):
        for check in (True, False):
            result = run_module("qemu_restore", name=VM, path=str(image), check=check)
            assert (result.get("error"), *words(result)) == ("ImageAccessError", "saved", "kept"), result["msg"]
        assert find_qemu_pids(VM) == []
    restore(name=VM, path=str(image))
    continuity.check()


def test_image_that_is_kept_need_not_be_marked(make_guest, image, save, restore):
    guest = make_guest(observer=True, extra_args=UNCHECKABLE)
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    with unwritable(image):
        result = restore(name=VM, path=str(image), remove_image=False)
    assert "must not be restored again" in str(result["warnings"])
    continuity.check()


def test_mark_that_fails_when_the_guest_is_loaded(make_guest, image, save, restore, start_module):
    """Its disks would not keep the image from being restored a second time: so it is as if nothing had been done."""
    guest = make_guest(observer=True, memory_mib=256, block_mib=128, extra_args=UNCHECKABLE)
    continuity = Continuity(guest)
    save(name=VM, path=str(image), format="raw")
    guest.start(incoming=True)
    with contextlib.ExitStack() as afterwards:
        with halted_while_it_loads(guest, image, start_module) as run:
            afterwards.enter_context(unwritable(image))
        result = run.result()
        assert (result.get("error"), *words(result)) == ("ImageAccessError", "saved", "kept"), result["msg"]
        wait_until(lambda: not guest.alive())
    restore(name=VM, path=str(image))
    continuity.check()


@pytest.mark.parametrize("disks", ["checkable", "uncheckable"])
def test_guest_that_qemu_does_not_let_go_on_has_not_used_its_image(
    make_guest, tmp_path, image, save, restore, run_module, disks
):
    """Another QEMU has its disk open; when that has ended, the guest can go on in its own, or in a new one."""
    disk = make_disk(tmp_path / "disk.img")
    arguments = ["-drive", f"if=virtio,format=raw,file={disk}"]
    guest = make_guest(observer=True, extra_args=arguments + (UNCHECKABLE if disks == "uncheckable" else []))
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    guest.wait_exit()
    with PausedQemu(tmp_path, *arguments, name="elsewhere"):
        started = time.monotonic()
        result = run_module("qemu_restore", name=VM, path=str(image))
        assert time.monotonic() - started < 30
        assert (result.get("error"), *words(result)) == ("CommandError", "paused", "kept"), result["msg"]
    guest.wait_restarted()
    assert run_state(guest) == "paused"
    assert not read_image_head(str(image)).header.checkpoint
    if disks == "uncheckable":
        guest.end()
    restore(name=VM, path=str(image))
    assert not image.exists()
    continuity.check()
