# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""qemu_managed_restore: what was saved with its host comes back, in order; all else is named and left alone."""

from __future__ import annotations

import os
import signal
import sys
import tempfile

import pytest

from support import find_qemu_pids
from support.guest import REPOSITORY
from support.mounts import mounted
from support.observe import Continuity, wait_until

from .conftest import NAMES, files, states


def test_what_was_saved_by_itself_is_left_alone_until_named(guests, save_dir, save, managed_save, managed_restore):
    save(name=NAMES[0], save_dir=str(save_dir))
    managed_save(vms=NAMES[1:])
    result = managed_restore()
    assert not result.get("failed"), result["msg"]
    assert states(result) == dict.fromkeys(NAMES[1:], "restored")
    [left] = result["left_alone"]
    assert left["name"] == NAMES[0]
    assert "not saved by a run over the whole host" in left["why"]
    assert result["msg"].endswith("; 1 image is left alone")
    assert managed_restore(images="all", check=True)["msg"] == "1 VM would be restored"
    continuity = states(managed_restore(vms=[NAMES[0]]))
    assert continuity == {NAMES[0]: "restored"}


def test_groups_follow_one_another_with_their_checks(guests, save_dir, managed_save, managed_restore, tmp_path):
    """The check of the first group ends only when the file is there that it makes; the second group comes after it."""
    managed_save()
    order = tmp_path / "order"
    check = [
        sys.executable,
        "-c",
        "import sys, time; time.sleep(0.5); open(sys.argv[1], 'a').write(sys.argv[2] + '\\n')",
        str(order),
        "{name}",
    ]
    result = managed_restore(order=[["web2*"], ["db*"]], health_check=check)
    assert not result.get("failed"), result["msg"]
    assert order.read_text().split() == [NAMES[2], NAMES[0], NAMES[1]]
    assert {vm["health_check"] for vm in result["vms"]} == {"passed"}


def test_check_that_does_not_pass(guests, managed_save, managed_restore):
    managed_save()
    result = managed_restore(by_vm={NAMES[1]: {"health_check": ["/bin/false"], "health_check_timeout": 3}})
    assert result["failed"]
    assert states(result) == dict.fromkeys(NAMES, "restored")
    assert result["unhealthy"] == [NAMES[1]]
    assert f"{NAMES[1]} runs, but its health check did not pass" in result["msg"]
    assert all(find_qemu_pids(name) for name in NAMES)


def test_damaged_image_is_named_and_the_others_come_back(guests, save_dir, managed_save, managed_restore):
    managed_save()
    os.truncate(save_dir / f"{NAMES[1]}.save", 4096 * 20)
    result = managed_restore()
    assert result["failed"]
    assert NAMES[1] in result["msg"]
    assert {name for name, state in states(result).items() if state == "restored"} == {NAMES[0], NAMES[2]}
    assert (save_dir / f"{NAMES[1]}.save").exists()


def test_saves_at_work_are_waited_for(make_guest, save_dir, start_module, managed_restore):
    guest = make_guest(NAMES[0], memory_mib=256, block_mib=128)
    continuity = Continuity(guest)
    saving = start_module(
        "qemu_managed_save", vms=NAMES[:1], save_dir=str(save_dir), bandwidth="64M", parallel_channels=1
    )
    wait_until(lambda: any(name.startswith(".") for name in os.listdir(save_dir)), timeout=60)
    result = managed_restore()
    assert states(result) == {NAMES[0]: "restored"}
    assert not saving.result().get("failed")
    continuity.check()


def test_interrupted_restore_keeps_the_images(make_guest, save_dir, managed_save, start_module, managed_restore):
    guests = {name: make_guest(name, memory_mib=512, block_mib=256) for name in NAMES}
    continuities = [Continuity(guest) for guest in guests.values()]
    managed_save()
    run = start_module("qemu_managed_restore", save_dir=str(save_dir), parallel=1)
    wait_until(lambda: any(find_qemu_pids(name) for name in NAMES), timeout=60, interval=0.002)
    run.process.send_signal(signal.SIGTERM)
    result = run.result()
    back = [name for name, state in states(result).items() if state == "restored"]
    assert len(back) <= 1
    assert files(save_dir) == sorted(f"{name}.save" for name in NAMES if name not in back)
    assert {name for name in NAMES if find_qemu_pids(name)} == set(back)
    if len(back) < 3:
        assert result["failed"]
    assert not managed_restore().get("failed")
    for continuity in continuities:
        continuity.check()


def test_missing_directory(managed_restore, tmp_path):
    result = managed_restore(save_dir=str(tmp_path / "missing"))
    assert (result["changed"], result["msg"]) == (False, "No VM is to be restored")


def test_check_mode_of_a_play_that_saves_before_it_restores(guests, managed_save, managed_restore, save_dir):
    """In check mode nothing is saved yet: those that run are left as they are, and what is missing is told."""
    assert set(states(managed_save(check=True)).values()) == {"predicted"}
    absent = f"absent-{NAMES[0]}"
    result = managed_restore(vms=[*NAMES, absent], check=True)
    assert not result.get("failed"), result["msg"]
    told = {vm["name"]: (vm["changed"], vm["msg"]) for vm in result["vms"]}
    assert {name for name, (changed, _msg) in told.items() if changed} == {absent}
    assert all("runs already" in told[name][1] for name in NAMES)
    assert "unless a task before this one makes the image" in str(result["warnings"])
    assert files(save_dir) == []
    assert managed_restore(vms=[*NAMES, absent])["failed"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount file systems")
def test_where_a_reboot_would_take_the_images(managed_restore, tmp_path):
    """Told also of a directory that is not there yet, and where nothing is to be restored."""
    with mounted(tmp_path / "memory", "tmpfs", 1) as reason:
        if reason:
            pytest.skip(reason)
        (tmp_path / "link").symlink_to(tmp_path / "memory")
        for place in "memory", "memory/new/save", "link/save":
            told = managed_restore(save_dir=str(tmp_path / place), vms=["none"], check=True)
            assert told["save_dir_volatile"] == str(tmp_path / "memory"), told
    with tempfile.TemporaryDirectory(dir=REPOSITORY / "build") as on_disk:
        assert managed_restore(save_dir=on_disk, vms=["none"], check=True)["save_dir_volatile"] == ""
