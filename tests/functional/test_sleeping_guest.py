# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A guest that sleeps (S3) is saved and restored asleep, and is woken as if nothing had happened."""

from __future__ import annotations

import pytest

from support import LinuxGuest, Monitor, gaps
from support.module_run import check_error
from support.observe import VM, run_state, settings, wait_until

NAME = f"linux-{VM}"


@pytest.fixture
def machine():
    return "pc"


@pytest.fixture
def sleeper(tmp_path, machine):
    """A Linux guest that sleeps."""
    guest = LinuxGuest(tmp_path / "linux", NAME, observer=True, machine=machine)
    guest.start()
    guest.wait_for_counter(5)
    guest.known_checksum = guest.checksum()
    guest.sleep()
    wait_until(lambda: run_state(guest) == "suspended", 60)
    yield guest
    guest.adopt_restarted()
    guest.close()


def wake(guest):
    """Wake it, and see that it goes on where it was."""
    if not guest.alive():
        guest.wait_restarted()
    assert run_state(guest) == "suspended"
    known = guest.counters()[-1]
    with Monitor(guest.observer_socket) as monitor:
        monitor.execute("system_wakeup")
    wait_until(lambda: run_state(guest) == "running", 60)
    guest.wait_for_counter(known + 3, timeout=60)
    assert guest.boots() == 1
    assert gaps(guest.counters()) == []
    assert guest.checksum() == guest.known_checksum


@pytest.mark.parametrize(
    "options",
    [{}, {"live": True}, {"format": "zstd"}, {"format": "raw", "image_version": 2}],
    ids=["sparse", "live", "zstd", "raw"],
)
def test_saved_and_restored_asleep(options, sleeper, image, save, restore):
    save(name=NAME, path=str(image), **options)
    result = restore(name=NAME, path=str(image))
    assert result["vm"]["run_state"] == "suspended"
    assert "sleeps" in result["msg"]
    assert result["time_sync"] is None
    wake(sleeper)


@pytest.mark.parametrize("machine", ["pc", "q35"])
def test_machines(machine, sleeper, image, save, restore, run_module):
    (vm,) = run_module("qemu_vm_info", name=[NAME])["vms"]
    assert (vm["run_state"], vm["save_support"]["suspended"], vm["blockers"]) == ("suspended", True, [])
    planned = run_module("qemu_save", name=NAME, path=str(image), check=True, diff=True)
    assert planned["changed"]
    assert run_state(sleeper) == "suspended"
    save(name=NAME, path=str(image))
    planned = run_module("qemu_restore", name=NAME, path=str(image), check=True, diff=True)
    assert planned["diff"]["after"]["vm"] == "suspended"
    restore(name=NAME, path=str(image))
    again = restore(name=NAME, path=str(image))
    assert not again["changed"]
    wake(sleeper)
    if machine == "pc":  # one that has slept on q35 is not powered off by QEMU (10.0), saved or not
        sleeper.power_off(60)
        sleeper.check_disk()


def test_running_does_not_wake_it(sleeper, image, save, restore):
    save(name=NAME, path=str(image))
    assert restore(name=NAME, path=str(image), state="running")["vm"]["run_state"] == "suspended"
    wake(sleeper)


def test_paused_sleeps_on_when_it_is_let_go(sleeper, image, save, restore):
    save(name=NAME, path=str(image))
    assert restore(name=NAME, path=str(image), state="paused")["vm"]["run_state"] == "paused"
    sleeper.wait_restarted()
    # A sleeping guest that was stopped says only that it is stopped, and is saved as any other.
    save(name=NAME, path=str(image))
    assert restore(name=NAME, path=str(image), state="running")["vm"]["run_state"] == "suspended"
    wake(sleeper)


@pytest.mark.parametrize("live", [False, True], ids=["", "live"])
def test_failed_save_leaves_it_asleep(live, sleeper, image, run_module):
    before = settings(sleeper)
    slow = {"bandwidth": "8M", "timeout": 2, "live": live}
    result = run_module("qemu_save", name=NAME, path=str(image), **slow)
    check_error(result, "OperationTimeoutError", "sleeps again", guest="running")
    assert settings(sleeper) == before
    assert list(image.parent.iterdir()) == []
    wake(sleeper)


@pytest.mark.parametrize("after_save", ["pause", "resume"])
def test_after_save(after_save, sleeper, image, save, restore):
    result = save(name=NAME, path=str(image), after_save=after_save)
    if after_save == "pause":
        assert result["vm"]["run_state"] == "postmigrate"
        result = restore(name=NAME, path=str(image))
    assert result["vm"]["run_state"] == "suspended"
    wake(sleeper)


def test_killed_save_is_undone(sleeper, image, start_module, run_module, restore):
    run = start_module("qemu_save", name=NAME, path=str(image), bandwidth="8M", format="gzip")
    wait_until(lambda: run_state(sleeper) in ("paused", "finish-migrate", "postmigrate"), 60)
    run.process.kill()
    run.close()
    result = restore(name=NAME, path=str(image))
    assert result["changed"]
    assert result["diff"]["after"]["vm"] == "suspended" if "diff" in result else True
    wake(sleeper)


def test_managed(sleeper, image, run_module):
    directory = {"save_dir": str(image.parent), "vms": [NAME]}
    saved = run_module("qemu_managed_save", **directory)
    assert not saved.get("failed"), saved["msg"]
    restored = run_module("qemu_managed_restore", **directory)
    assert not restored.get("failed"), restored["msg"]
    assert restored["vms"][0]["vm"]["run_state"] == "suspended"
    wake(sleeper)
