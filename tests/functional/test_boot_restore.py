# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The program of host_setup that restores a host's saved VMs at boot, run as its service runs it."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
import zipfile

import pytest
from ansible_collections.vmops.qemu.plugins.lookup.restore_program import make_program
from ansible_collections.vmops.qemu.plugins.module_utils._host.progress import read_host_runs
from ansible_collections.vmops.qemu.plugins.module_utils._host.run_lock import host_run_lock
from ansible_collections.vmops.qemu.plugins.module_utils._host.service import StandardStreams
from ansible_collections.vmops.qemu.plugins.module_utils._image.edit import mark_checkpoint
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_file import read_image_head

from support import find_qemu_pids
from support.boot_program import BOOT_PROGRAM, said
from support.monitor import Monitor
from support.observe import VM, Continuity, run_state, wait_until


def wait_for_qemu():
    """The pid of the QEMU that it starts."""
    deadline = time.monotonic() + 60
    while not find_qemu_pids(VM):
        assert time.monotonic() < deadline, "it starts none"
        time.sleep(0.002)
    return find_qemu_pids(VM)[0]


def test_archive_is_the_same_each_time_and_needs_no_ansible(program, tmp_path):
    again = tmp_path / "again.pyz"
    with again.open("wb") as archive:
        make_program(BOOT_PROGRAM, archive)
    assert again.read_bytes() == program.read_bytes()
    names = zipfile.ZipFile(program).namelist()
    assert "__main__.py" in names
    assert any(name.endswith("_qemu_qmp/qmp_client.py") for name in names)
    assert [name for name in names if name.endswith("_module.py")] == []


def test_restores_what_is_saved(guest, image, save, run_program):
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    assert f"{VM} was restored from {image}" in said(run_program(), 0)
    guest.adopt_restarted()
    continuity.check()
    assert not image.exists()


def test_nothing_to_restore(image, run_program):
    assert said(run_program(), 0) == ""
    assert "nothing to restore" in said(run_program(save_dir=str(image.parent / "missing")), 0)


def test_damaged_and_partial_images_are_named_and_the_others_go_on(guest, image, save, run_program):
    save(name=VM, path=str(image))
    damaged, partial, garbage = (image.parent / f"{name}.save" for name in ("aaa", "partial", "zzz"))
    shutil.copyfile(image, damaged)
    os.truncate(damaged, 200)
    partial.write_bytes(b"LibvirtQemudPart" + image.read_bytes()[16:])
    garbage.write_bytes(b"no image")
    for path in (damaged, partial, garbage):
        path.chmod(0o600)
    # One VM is in all of them: only one image can be restored, and it is not the one that comes first.
    output = said(run_program(parallel=1), 1)
    assert f"{VM} was restored from {image}" in output
    for path in (damaged, garbage):
        assert f"<3>{path}: not restored, invalid" in output, output
    # There is a complete image of its VM.
    assert f"{partial}: left alone, it is partial" in output, output
    assert all(path.exists() for path in (damaged, partial, garbage))
    guest.adopt_restarted()
    assert run_state(guest) == "running"


def test_last_save_is_restored_and_the_older_one_named(guest, image, save, run_program):
    """The name of the older one comes first. Its guest went on by hand, so it does not say that it did."""
    older = image.parent / "aaa.save"
    save(name=VM, path=str(older), after_save="pause")
    with Monitor(guest.observer_socket) as monitor:
        monitor.execute("cont")
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    copy = image.parent / "copy.save"
    shutil.copyfile(image, copy)
    copy.chmod(0o600)
    os.truncate(copy, copy.stat().st_size // 2)
    output = said(run_program(parallel=1), 0)
    assert f"{VM} was restored from {image}" in output
    assert f"{older}: left alone, {image} is a later save of {VM}" in output
    assert f"{copy}: left alone, it is a copy of {image}" in output
    assert older.exists()
    assert not image.exists()
    guest.adopt_restarted()
    continuity.check()


def test_checkpoint_is_named_and_left_alone(guest, image, save, run_program):
    """Also one that is the only image of a VM that does not run any more."""
    save(name=VM, path=str(image), after_save="resume")
    # Until the save says so itself.
    mark_checkpoint(str(image), read_image_head(str(image)))
    guest.end()
    output = said(run_program(), 0)
    assert f"{image}: left alone, it is a checkpoint: {VM} went on after this save" in output
    assert image.exists()
    assert find_qemu_pids(VM) == []


def test_image_that_others_could_have_written_is_not_restored(guest, image, save, run_program):
    save(name=VM, path=str(image))
    image.parent.chmod(0o777)
    assert "<3>" in said(run_program(), 1)
    assert image.exists()
    assert find_qemu_pids(VM) == []
    image.parent.chmod(0o700)


def test_settings_that_others_could_have_written_are_not_followed(image, run_program, program):
    process = run_program()
    said(process, 0)
    program.parent.chmod(0o777)
    assert "is not safe" in said(run_program(), 1)


def test_another_run_is_waited_for_and_others_can_see_it(guest, image, save, run_program):
    continuity = Continuity(guest)
    save(name=VM, path=str(image))

    def lines_of(process):
        return [line["text"] for run in read_host_runs() if run.pid == process.pid for line in run.lines]

    async def work():
        async with host_run_lock(str(image.parent), 5, StandardStreams()):
            process = run_program()
            await asyncio.to_thread(wait_until, lambda: lines_of(process) or process.poll() is not None, 60)
            assert "waiting, as another run works on VMs in " in str(lines_of(process))
            assert image.exists()
            return process

    output = said(asyncio.run(work()), 0)
    assert "waiting, as another run" in output
    assert f"{VM} was restored from {image}" in output
    guest.adopt_restarted()
    continuity.check()


def test_restore_that_hangs_is_given_up(guest, image, save, run_program):
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    process = run_program(timeout=4)
    os.kill(wait_for_qemu(), signal.SIGSTOP)
    output = said(process, 1)
    assert "not done within 4 seconds" in output
    assert image.exists()
    assert find_qemu_pids(VM) == []
    # Nothing of it is in the way of the next try.
    said(run_program(), 0)
    guest.adopt_restarted()
    continuity.check()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_leaves_no_half_a_guest(make_guest, image, save, run_program, number):
    guest = make_guest(memory_mib=256, block_mib=150, observer=True)
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    process = run_program()
    qemu = wait_for_qemu()
    os.kill(qemu, signal.SIGSTOP)  # so that it is in the middle
    process.send_signal(number)
    output = said(process, 1)
    assert f"interrupted by {signal.Signals(number).name}" in output
    assert "its image is untouched" in output
    assert image.exists()
    assert find_qemu_pids(VM) == []
    said(run_program(), 0)
    guest.adopt_restarted()
    continuity.check()
