# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A guest that sleeps (S3) is saved and restored asleep, and is woken as if nothing had happened.

QEMU (10.0, 11.1) ends at once where a guest that slept is let go on after a migration: it never comes to that.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_file import read_image_head

from support import LinuxGuest, Monitor, gaps
from support.module_run import check_error
from support.observe import VM, migration_is_active, run_state, settings, wait_until

NAME = f"linux-{VM}"


class Sleeper(LinuxGuest):
    """A Linux guest that sleeps; its checksum was taken before that."""

    known_checksum = ""

    def fall_asleep(self):
        self.start()
        self.wait_for_counter(5)
        self.known_checksum = self.checksum()
        self.sleep_again()

    def sleep_again(self):
        self.sleep()
        wait_until(lambda: run_state(self) == "suspended", 60)

    def wake(self):
        """Wake it, and see that it goes on where it was."""
        if not self.alive():
            self.wait_restarted()
        assert run_state(self) == "suspended"
        known = self.counters()[-1]
        with Monitor(self.observer_socket) as monitor:
            monitor.execute("system_wakeup")
        wait_until(lambda: run_state(self) == "running", 60)
        self.wait_for_counter(known + 3, timeout=60)
        assert self.boots() == 1
        assert gaps(self.counters()) == []
        assert self.checksum() == self.known_checksum


@pytest.fixture(scope="module")
def sleepers(tmp_path_factory):
    """Those of this file: one, and after each test that leaves it otherwise than awake another one."""
    made: list[Sleeper] = []
    yield made
    for guest in made:
        guest.close()


@pytest.fixture
def sleeper(sleepers, tmp_path_factory, vouching_key):
    """A guest that sleeps. It takes ten seconds to boot, so it goes from test to test."""
    if sleepers and sleepers[-1].alive() and run_state(sleepers[-1]) == "running":
        sleepers[-1].sleep_again()
    else:
        sleepers.append(Sleeper(tmp_path_factory.mktemp("linux"), NAME, observer=True))
        sleepers[-1].fall_asleep()
    yield sleepers[-1]
    sleepers[-1].adopt_restarted()
    if not sleepers[-1].alive() or run_state(sleepers[-1]) != "running":
        sleepers[-1].close()


@pytest.mark.parametrize(
    "options", [{}, {"live": True}, {"format": "raw", "image_version": 2}], ids=["sparse", "live", "raw"]
)
def test_saved_and_restored_asleep(options, sleeper, image, save, restore):
    save(name=NAME, path=str(image), **options)
    result = restore(name=NAME, path=str(image))
    assert result["vm"]["run_state"] == "suspended"
    assert "sleeps" in result["msg"]
    assert result["time_sync"] is None
    sleeper.wake()


def test_q35(tmp_path, image, save, restore):
    guest = Sleeper(tmp_path / "linux", f"q35-{VM}", observer=True, machine="q35")
    try:
        guest.fall_asleep()
        save(name=guest.name, path=str(image))
        restore(name=guest.name, path=str(image))
        guest.wake()
    finally:
        guest.adopt_restarted()
        guest.close()


def test_what_is_told_and_predicted(sleeper, image, save, restore, run_module):
    (vm,) = run_module("qemu_vm_info", name=[NAME])["vms"]
    assert (vm["run_state"], vm["save_support"]["suspended"], vm["blockers"]) == ("suspended", True, [])
    assert run_module("qemu_save", name=NAME, path=str(image), check=True)["changed"]
    assert run_state(sleeper) == "suspended"
    save(name=NAME, path=str(image))
    planned = run_module("qemu_restore", name=NAME, path=str(image), check=True, diff=True)
    assert planned["diff"]["after"]["vm"] == "suspended"
    restore(name=NAME, path=str(image))
    assert not restore(name=NAME, path=str(image))["changed"]
    sleeper.wake()


def test_running_does_not_wake_it_and_paused_sleeps_on_when_it_is_let_go(sleeper, image, save, restore):
    save(name=NAME, path=str(image))
    assert restore(name=NAME, path=str(image), state="paused")["vm"]["run_state"] == "paused"
    sleeper.wait_restarted()
    # One that was stopped says only that, and is saved as any other.
    save(name=NAME, path=str(image))
    assert restore(name=NAME, path=str(image), state="running")["vm"]["run_state"] == "suspended"
    sleeper.wake()


@pytest.mark.parametrize("live", [False, True], ids=["", "live"])
def test_failed_save_leaves_it_asleep(live, sleeper, image, run_module):
    before = settings(sleeper)
    slow = {"bandwidth": "8M", "timeout": 2, "live": live}
    result = run_module("qemu_save", name=NAME, path=str(image), **slow)
    check_error(result, "OperationTimeoutError", "sleeps again", guest="running")
    assert settings(sleeper) == before
    assert list(image.parent.iterdir()) == []
    sleeper.wake()


@pytest.mark.parametrize("options", [{"after_save": "pause"}, {"after_save": "resume"}, {"format": "zstd"}], ids=str)
def test_what_needs_it_to_go_on_in_its_qemu_is_refused(options, sleeper, image, run_module):
    result = run_module("qemu_save", name=NAME, path=str(image), **options)
    check_error(result, "UnsupportedByQemuError", next(iter(options)), "system_wakeup", guest="running")
    sleeper.wake()


def test_save_that_fails_when_qemu_is_done_is_finished_by_the_next(sleeper, image, start_module, save, restore):
    """The disk says an error at the flush: the guest cannot go on, so what was written stays."""
    broken = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync,fdatasync"]
    broken += ["-e", "inject=fsync,fdatasync:error=EIO"]
    result = start_module("qemu_save", name=NAME, path=str(image), prefix=broken).result()
    check_error(result, "ImageAccessError", "sleeps (S3)", "run again", guest="paused")
    assert sleeper.alive()
    assert not image.exists()
    saved = save(name=NAME, path=str(image))
    assert "taking over" in saved["msg"]
    restore(name=NAME, path=str(image))
    sleeper.wake()


@pytest.mark.parametrize("after_save", ["quit", "resume"])
def test_guest_that_falls_asleep_while_it_is_saved(after_save, sleeper, image, start_module, run_module, restore):
    sleeper.wake()
    slow = {"live": True, "bandwidth": "12M", "after_save": after_save}
    run = start_module("qemu_save", name=NAME, path=str(image), **slow)
    wait_until(lambda: migration_is_active(sleeper), 60)
    sleeper.sleep_again()
    assert migration_is_active(sleeper)
    result = run.result()
    if after_save == "resume":
        check_error(result, "ConflictError", "fell asleep", "qemu_restore", guest="paused")
    else:
        assert result["changed"], result["msg"]
    assert restore(name=NAME, path=str(image))["vm"]["run_state"] == "suspended"
    sleeper.wake()


def kill_in(run, calls, reached):
    """Kill a module that stands in one of these system calls, when it has come to that."""
    wait_until(reached, 60)
    strace = run.process.pid
    children = Path(f"/proc/{strace}/task/{strace}/children").read_text().split()
    for child in children:
        os.kill(int(child), signal.SIGKILL)
    run.process.wait()


def slowed(calls):
    return [
        "strace",
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        f"trace={calls}",
        "-e",
        f"inject={calls}:delay_exit=5000000",
    ]


def test_guest_that_falls_asleep_when_it_went_on_is_saved_awake(sleeper, image, start_module):
    sleeper.wake()
    slow = slowed("fsync,fdatasync")
    run = start_module("qemu_save", name=NAME, path=str(image), after_save="resume", prefix=slow)
    partials = image.parent.iterdir
    wait_until(lambda: any(read_image_head(str(path)).header.checkpoint for path in partials()), 60)
    wait_until(lambda: run_state(sleeper) == "running", 60)
    sleeper.sleep_again()
    assert not image.exists()
    result = run.result()
    assert result.get("changed"), result["msg"]
    assert result["vm"]["run_state"] == "suspended"
    assert result["image"]["vm_state"] == "running"
    facts = read_image_head(str(image)).domain().save_facts
    assert facts
    assert not facts.suspended
    sleeper.wake()


def test_killed_when_qemu_is_done(sleeper, image, start_module, run_module, save, restore):
    """A restore does not let it go on in a QEMU that would end; a save finishes it."""
    run = start_module("qemu_save", name=NAME, path=str(image), prefix=slowed("fsync,fdatasync"))
    kill_in(run, "fsync", lambda: run_state(sleeper) == "postmigrate")
    result = run_module("qemu_restore", name=NAME, path=str(image))
    check_error(result, "ConflictError", "sleeps (S3)", "qemu_save")
    assert run_state(sleeper) == "postmigrate"
    result = run_module("qemu_save", name=NAME, path=str(image), after_save="resume")
    check_error(result, "ConflictError", "after_save: quit")
    save(name=NAME, path=str(image))
    restore(name=NAME, path=str(image))
    sleeper.wake()


def test_killed_before_qemu_has_quit(sleeper, image, start_module, run_module, restore):
    """The image is complete, and its guest stands in QEMU still: it goes on in a new one."""
    run = start_module("qemu_save", name=NAME, path=str(image), prefix=slowed("rename,renameat,renameat2"))
    kill_in(run, "rename", image.exists)
    old = sleeper.pid
    result = run_module("qemu_save", name=NAME, path=str(image), after_save="resume")
    check_error(result, "ConflictError", "sleeps (S3)", "qemu_restore")
    assert restore(name=NAME, path=str(image))["vm"]["run_state"] == "suspended"
    sleeper.wait_restarted()
    assert sleeper.pid != old
    sleeper.wake()


@pytest.mark.parametrize("why", ["it is damaged", "none is started", "it opens no monitor"])
def test_qemu_that_has_the_guest_is_not_ended_for_an_image_that_is_refused(
    sleeper, image, start_module, run_module, restore, save, why
):
    """It could be saved once more: whatever may be in the way is looked at before it quits."""
    slow = slowed("rename,renameat,renameat2")
    run = start_module("qemu_save", name=NAME, path=str(image), checksum=True, prefix=slow)
    kill_in(run, "rename", image.exists)
    old = sleeper.pid
    intact = image.read_bytes()
    refused: dict[str, tuple[dict[str, Any], str]] = {
        "it is damaged": ({"verify": "full"}, "ImageFormatError"),
        "none is started": ({"launch": "attach"}, "VmNotFoundError"),
        "it opens no monitor": ({"launch": "command", "command": ["qemu-system-x86_64"]}, "LaunchError"),
    }
    options, kind = refused[why]
    if why == "it is damaged":
        with image.open("r+b") as file:
            file.seek(len(intact) // 2)
            file.write(bytes([intact[len(intact) // 2] ^ 1]))
        check_error(run_module("qemu_restore", name=NAME, path=str(image), check=True, **options), kind)
    check_error(run_module("qemu_restore", name=NAME, path=str(image), **options), kind)
    assert run_state(sleeper) == "postmigrate"
    assert sleeper.pid == old
    image.write_bytes(intact)
    restore(name=NAME, path=str(image))
    sleeper.wake()


def test_managed(sleeper, image, run_module):
    directory = {"save_dir": str(image.parent), "vms": [NAME]}
    saved = run_module("qemu_managed_save", **directory)
    assert not saved.get("failed"), saved["msg"]
    restored = run_module("qemu_managed_restore", **directory)
    assert not restored.get("failed"), restored["msg"]
    assert restored["vms"][0]["vm"]["run_state"] == "suspended"
    sleeper.wake()
