# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs over the VMs of a host follow one another: what one has listed, no other one brings back behind it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._host.progress import read_host_runs
from ansible_collections.vmops.qemu.plugins.module_utils._progress import Publisher

from support import find_qemu_pids
from support.module_run import ModuleRun, Result, check_error
from support.observe import wait_until

from .conftest import NAMES, files, states


@pytest.fixture
def check_passes(tmp_path: Path) -> Path:
    """A file that lets the health check of the first guest pass."""
    return tmp_path / "check-passes"


@pytest.fixture
def restoring(
    guests,
    save_dir: Path,
    check_passes: Path,
    managed_save: Callable[..., Result],
    start_module: Callable[..., ModuleRun],
) -> Iterator[ModuleRun]:
    """A restore of all three that has brought the first one back, and waits for its health check."""
    result = managed_save()
    assert not result.get("failed"), result["msg"]
    run = start_module(
        "qemu_managed_restore",
        vms=NAMES,
        save_dir=str(save_dir),
        parallel=1,
        order=[NAMES[:1], NAMES[1:]],
        by_vm={NAMES[0]: {"health_check": ["test", "-e", str(check_passes)], "health_check_timeout": 100}},
    )
    wait_until(lambda: files(save_dir) == images_of(*NAMES[1:]), timeout=60)
    yield run
    run.close()


def images_of(*names: str) -> list[str]:
    return sorted(f"{name}.save" for name in names)


def lines_of(run: ModuleRun) -> list[str]:
    """What a run over several VMs has told so far."""
    return [str(line["text"]) for each in read_host_runs() if each.pid == run.process.pid for line in each.lines]


def waits(run: ModuleRun, whom: str) -> bool:
    """Whether it waits for another one, or has ended without that.

    :param whom: a part of how that is told: other tests, which run beside these, restore VMs from other directories.
    """
    return run.process.poll() is not None or any(whom in line for line in lines_of(run))


@pytest.mark.parametrize("place", ["its directory", "another one"])
def test_save_lists_the_vms_after_a_restore_that_is_at_work(
    guests, save_dir, tmp_path, check_passes, restoring, start_module, place
):
    """Those that are still to be restored would be brought back behind it, and their images be gone."""
    directory = save_dir
    if place == "another one":
        directory = tmp_path / "other"
        directory.mkdir(mode=0o700)
    saving = start_module("qemu_managed_save", save_dir=str(directory), include=NAMES)
    wait_until(lambda: waits(saving, f"a run restores VMs in {save_dir}"), timeout=60)
    told = lines_of(saving)
    check_passes.touch()
    result = saving.result()
    assert not result.get("failed"), result["msg"]
    assert states(result) == dict.fromkeys(NAMES, "saved")
    assert f"waiting, as a run restores VMs in {save_dir} (pid {restoring.process.pid})" in told
    assert not restoring.result().get("failed")
    assert files(directory) == images_of(*NAMES)
    assert not any(find_qemu_pids(name) for name in NAMES)


def test_save_comes_after_a_restore_that_waits_already(guests, save_dir, check_passes, restoring, start_module):
    """It would bring back what the save has saved."""
    restore = start_module("qemu_managed_restore", save_dir=str(save_dir), vms=NAMES)
    wait_until(lambda: waits(restore, str(save_dir)), timeout=60)
    saving = start_module("qemu_managed_save", save_dir=str(save_dir), include=NAMES)
    wait_until(lambda: waits(saving, str(save_dir)), timeout=60)
    check_passes.touch()
    results = [run.result() for run in (restoring, restore, saving)]
    assert [result["msg"] for result in results if result.get("failed")] == []
    assert states(results[2]) == dict.fromkeys(NAMES, "saved")
    assert files(save_dir) == images_of(*NAMES)


def test_second_restore_finds_what_the_first_brought_back(guests, save_dir, check_passes, restoring, start_module):
    restore = start_module("qemu_managed_restore", save_dir=str(save_dir))
    wait_until(lambda: waits(restore, str(save_dir)), timeout=60)
    check_passes.touch()
    result = restore.result()
    assert (result.get("failed"), result["msg"]) == (None, "No VM is to be restored")
    assert {vm["name"] for vm in result["running"]} >= set(NAMES)
    assert states(restoring.result()) == dict.fromkeys(NAMES, "restored")


def test_run_that_has_waited_for_too_long_touches_nothing(guests, save_dir, restoring, managed_save, managed_restore):
    for result in (managed_save(vms=[], include=NAMES, timeout=1.5), managed_restore(vms=NAMES, timeout=1.5)):
        check_error(
            result,
            "BusyError",
            "none of which came further within 1.5 seconds",
            f"a run restores VMs in {save_dir} (pid {restoring.process.pid})",
            "No VM was touched",
        )
    assert files(save_dir) == images_of(*NAMES[1:])
    assert [bool(find_qemu_pids(name)) for name in NAMES] == [True, False, False]


def test_run_that_is_told_to_end_while_it_waits_touches_nothing(guests, save_dir, restoring, start_module):
    saving = start_module("qemu_managed_save", save_dir=str(save_dir), include=NAMES)
    wait_until(lambda: waits(saving, str(save_dir)), timeout=60)
    saving.process.send_signal(signal.SIGTERM)
    check_error(saving.result(), "InterruptedOperationError", "was interrupted by", "No VM was touched")
    assert files(save_dir) == images_of(*NAMES[1:])


def test_check_mode_says_that_a_run_is_at_work(guests, save_dir, restoring, managed_save, managed_restore):
    """It does not wait, and it is no reason to refuse anything."""
    for plan in (managed_save(check=True, unsaved="fail", vms=NAMES[:1]), managed_restore(check=True, vms=NAMES)):
        assert f"a run restores VMs in {save_dir} (pid {restoring.process.pid})" in str(plan["warnings"])
    assert restoring.process.poll() is None


def test_lock_of_a_killed_run_is_free(guests, save_dir, restoring, managed_save):
    restoring.process.kill()
    restoring.process.communicate()
    result = managed_save(timeout=20)
    assert not result.get("failed"), result["msg"]
    assert states(result) == dict.fromkeys(NAMES, "saved")
    assert files(save_dir) == images_of(*NAMES)


def test_save_lists_what_a_save_that_fails_puts_back(make_guest, save_dir, start_module):
    """An earlier run has lost its controller, and one of its VMs dies; what it has saved before runs again then."""
    guests = {name: make_guest(name, memory_mib=256, block_mib=128) for name in NAMES}
    slow = {"bandwidth": "2M", "parallel_channels": 1}
    options = {"save_dir": str(save_dir), "include": NAMES, "parallel": 1}
    first = start_module("qemu_managed_save", **options, by_vm={NAMES[1]: slow})
    wait_until(lambda: any(name.startswith(f".{NAMES[1]}") for name in os.listdir(save_dir)), timeout=60)
    second = start_module("qemu_managed_save", **options)
    wait_until(lambda: waits(second, str(save_dir)), timeout=60)
    os.kill(guests[NAMES[1]].pid, signal.SIGKILL)
    assert states(first.result()) == {NAMES[0]: "restored", NAMES[1]: "failed", NAMES[2]: "skipped"}
    result = second.result()
    assert not result.get("failed"), result["msg"]
    assert states(result) == {NAMES[0]: "saved", NAMES[2]: "saved"}
    assert files(save_dir) == images_of(NAMES[0], NAMES[2])


def test_save_waits_for_the_restore_of_one_vm(guests, save_dir, start_module):
    """It may have no QEMU yet, by which it could be found."""
    with Publisher("other", "restore", str(save_dir / "other.save")):
        saving = start_module("qemu_managed_save", save_dir=str(save_dir), include=NAMES)
        wait_until(lambda: waits(saving, "other is being restored"), timeout=60)
        told = lines_of(saving)
        assert files(save_dir) == []
    assert states(saving.result()) == dict.fromkeys(NAMES, "saved")
    assert f"waiting, as other is being restored (pid {os.getpid()})" in told
