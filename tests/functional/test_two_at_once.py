# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Two runs at once on one VM or one image: one wins, the other gets a clear error at once and disturbs nothing."""

from __future__ import annotations

import os
import signal
import time

import pytest

from support.observe import OTHER_VM, VM, Continuity, run_state, wait_until, words

AT_ONCE = 10  # seconds, of which the start of a module takes most on a busy machine

SLOW = {"bandwidth": "2M", "parallel_channels": 1}


def is_partial(image):
    return any(name.endswith(".partial") for name in os.listdir(image.parent))


def stop(run):
    """Stop a run that is under way, by continuing it first where it was frozen."""
    run.process.send_signal(signal.SIGCONT)
    run.process.send_signal(signal.SIGTERM)
    return run.result()


@pytest.mark.parametrize("way", ["name", "the same monitor", "another monitor", "another path", "restore"])
def test_while_a_vm_is_saved(big_guest, image, start_module, way):
    continuity = Continuity(big_guest)
    first = start_module("qemu_save", qmp_socket=str(big_guest.qmp_socket), path=str(image), **SLOW)
    wait_until(lambda: run_state(big_guest) != "running")
    options = {"name": VM, "path": str(image)}
    if way == "the same monitor":
        options["qmp_socket"] = str(big_guest.qmp_socket)
    elif way == "another monitor":
        options["qmp_socket"] = str(big_guest.observer_socket)
    elif way == "another path":
        options["path"] = str(image.with_name("other.save"))
    started = time.monotonic()
    second = start_module("qemu_restore" if way == "restore" else "qemu_save", **options).result()
    assert time.monotonic() - started < AT_ONCE
    assert second["error"] == "BusyError", second["msg"]
    assert f"by another run (pid {first.process.pid})" in second["msg"]
    assert is_partial(image)
    result = stop(first)
    assert result["error"] == "InterruptedOperationError"
    assert os.listdir(image.parent) == []
    continuity.check()


def test_the_lock_of_a_killed_run_is_gone(big_guest, image, start_module, save):
    first = start_module("qemu_save", name=VM, path=str(image), **SLOW)
    wait_until(lambda: is_partial(image))
    first.process.kill()
    first.process.communicate()
    assert save(name=VM, path=str(image))["changed"]


@pytest.mark.parametrize("module", ["qemu_restore", "qemu_save", "qemu_save_image"])
def test_while_an_image_is_restored(guest, image, save, start_module, module):
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    guest.wait_exit()
    first = start_module("qemu_restore", name=VM, path=str(image))
    # Frozen when its QEMU is there: as long as a restore from a slow disk.
    wait_until(guest.adopt_restarted)
    first.process.send_signal(signal.SIGSTOP)
    options = {"state": "absent"} if module == "qemu_save_image" else {"name": VM}
    started = time.monotonic()
    second = start_module(module, path=str(image), **options).result()
    assert time.monotonic() - started < AT_ONCE
    assert second["error"] == "BusyError", second["msg"]
    assert str(image) in second["msg"]
    assert image.exists()
    first.process.send_signal(signal.SIGCONT)
    assert first.result()["changed"]
    continuity.check()


def test_two_restores_at_once_of_which_one_wins(guest, image, save, start_module):
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    guest.wait_exit()
    runs = [start_module("qemu_restore", name=VM, path=str(image)) for _number in range(3)]
    results = [run.result() for run in runs]
    # A loser that came late found the guest running.
    assert sum(result.get("changed", False) for result in results) == 1
    assert {result.get("error") for result in results if result.get("failed")} <= {"BusyError", "ConflictError"}
    continuity.check()


def test_two_vms_saved_to_one_path_at_once(make_guest, image, start_module):
    """Both find the path free; the image of the first stays, the guest of the second goes on."""
    one = make_guest(VM, memory_mib=256, block_mib=128)
    other = make_guest(OTHER_VM, memory_mib=256, block_mib=128)
    continuity = Continuity(other)
    slow = start_module("qemu_save", name=OTHER_VM, path=str(image), bandwidth="8M", parallel_channels=1)
    wait_until(lambda: is_partial(image))
    first = start_module("qemu_save", name=VM, path=str(image)).result()
    assert first["changed"], first["msg"]
    before = os.stat(image)
    second = slow.result()
    assert second["error"] == "ConflictError", second["msg"]
    assert "Another image was put at" in second["msg"]
    assert words(second) == ("running", "complete")
    assert os.listdir(image.parent) == [image.name]
    assert (os.stat(image).st_ino, os.stat(image).st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    one.wait_exit()
    continuity.check()
