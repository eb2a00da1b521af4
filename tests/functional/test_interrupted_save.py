# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a save that was killed leaves in QEMU and beside its image, and how the next run ends it.

Killing at random moments is the torture's; here each stage is met on purpose.
"""

from __future__ import annotations

import asyncio
import os
import re
import time

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import monitor as monitor_module
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.fdset import DescriptorSet

from support import Monitor
from support.observe import OTHER_VM, VM, Continuity, migration_is_active, run_state, settings, wait_until, words


def test_restore_calls_off_a_live_save_that_goes_on_without_its_run(make_guest, image, start_module, restore):
    """Its guest runs, but would stand still as soon as QEMU has written everything."""
    guest = make_guest(memory_mib=256, block_mib=128, observer=True)
    continuity = Continuity(guest)
    before = settings(guest)
    run = start_module("qemu_save", name=VM, path=str(image), live=True, bandwidth="4M", parallel_channels=1)
    deadline = time.monotonic() + 20
    while not settings(guest)["fdsets"] or settings(guest)["capabilities"] == before["capabilities"]:
        assert time.monotonic() < deadline
    run.process.kill()
    run.process.communicate()
    assert run_state(guest) == "running"
    result = restore(name=VM, path=str(image))
    assert result["changed"]
    assert result["vm"]["run_state"] == "running"
    assert settings(guest) == before
    assert os.listdir(image.parent) == []
    continuity.check()


def killed_save(start_module, guest, image, moment, **options):
    """Start a save and SIGKILL it when ``moment`` has come; its partial image and QEMU's note of it stay."""
    run = start_module("qemu_save", name=VM, path=str(image), **options)
    deadline = time.monotonic() + 30
    with Monitor(guest.observer_socket) as monitor:
        while not moment(monitor):
            assert time.monotonic() < deadline
            assert run.process.poll() is None, run.result()
            time.sleep(0.001)
    run.process.kill()
    run.process.communicate()


def writing(monitor):
    return monitor.execute("query-migrate").get("status") == "active"


def written(monitor):
    return monitor.execute("query-status")["status"] == "postmigrate"


def noted(monitor):
    return bool(monitor.execute("query-fdsets"))


@pytest.mark.parametrize("state", ["as_saved", "running"])
def test_restore_puts_a_paused_guest_back_and_lets_it_go_on_if_asked_to(big_guest, image, start_module, restore, state):
    continuity = Continuity(big_guest)
    before = settings(big_guest)
    with Monitor(big_guest.observer_socket) as monitor:
        monitor.execute("stop")
    killed_save(start_module, big_guest, image, writing, bandwidth="10M")
    predicted = restore(name=VM, path=str(image), state=state, check=True, diff=True)
    result = restore(name=VM, path=str(image), state=state, diff=True)
    assert result["changed"]
    assert result["diff"] == predicted["diff"]
    assert result["vm"]["run_state"] == run_state(big_guest) == {"as_saved": "paused"}.get(state, state)
    assert settings(big_guest) == before
    with Monitor(big_guest.observer_socket) as monitor:
        monitor.execute("cont")
    continuity.check()


@pytest.mark.parametrize("live", [False, True], ids=["stopped", "live"])
@pytest.mark.parametrize("image_format", ["sparse", "raw"])
def test_partial_image_that_qemu_still_writes_is_adopted(
    big_guest, image, start_module, save, restore, live, image_format
):
    continuity = Continuity(big_guest)
    killed_save(start_module, big_guest, image, writing, bandwidth="40M", format=image_format, live=live)
    assert os.listdir(image.parent) != [image.name]
    result = save(name=VM, path=str(image))
    assert result["changed"]
    assert "earlier run" in result["msg"]
    assert result["image"]["format"] == image_format
    assert os.listdir(image.parent) == [image.name]
    big_guest.wait_exit()
    restore(name=VM, path=str(image))
    continuity.check()


@pytest.mark.parametrize("after_save", ["pause", "resume"])
def test_adopted_save_leaves_qemu_as_the_killed_run_found_it(big_guest, image, start_module, save, after_save):
    continuity = Continuity(big_guest)
    before = settings(big_guest)
    killed_save(start_module, big_guest, image, writing, bandwidth="40M")
    assert settings(big_guest) != before
    save(name=VM, path=str(image), after_save=after_save)
    assert settings(big_guest) == before
    if after_save == "pause":
        with Monitor(big_guest.qmp_socket) as monitor:
            monitor.execute("cont")
    continuity.check()


def test_adopted_save_that_is_interrupted_puts_the_guest_back(big_guest, image, start_module, run_module):
    continuity = Continuity(big_guest)
    before = settings(big_guest)
    killed_save(start_module, big_guest, image, writing, bandwidth="8M")
    result = run_module("qemu_save", name=VM, path=str(image), timeout=1)
    assert result["error"] == "OperationTimeoutError"
    assert words(result) == ("running", "absent")
    assert settings(big_guest) == before
    assert os.listdir(image.parent) == []
    continuity.check()


def test_save_killed_before_qemu_began_is_undone_and_done_again(big_guest, image, start_module, save):
    continuity = Continuity(big_guest)
    before = settings(big_guest)
    # Killed when QEMU holds the note; how far the run comes until the signal arrives differs.
    for _number in range(8):
        killed_save(start_module, big_guest, image, noted, bandwidth="40M")
        save(name=VM, path=str(image), after_save="resume")
        assert settings(big_guest) == before
        assert os.listdir(image.parent) == [image.name]
        image.unlink()
    continuity.check()


def test_restore_after_a_killed_save_lets_the_guest_go_on(big_guest, image, start_module, restore):
    continuity = Continuity(big_guest)
    before = settings(big_guest)
    killed_save(start_module, big_guest, image, writing, bandwidth="16M")
    result = restore(name=VM, path=str(image))
    assert result["changed"]
    assert run_state(big_guest) == "running"
    assert settings(big_guest) == before
    assert os.listdir(image.parent) == []
    continuity.check()


def test_adoption_under_another_path_is_refused(big_guest, image, start_module, run_module):
    killed_save(start_module, big_guest, image, writing, bandwidth="8M")
    result = run_module("qemu_save", name=VM, path=str(image.parent / "other.save"))
    assert result["error"] == "ConflictError"
    assert str(image) in result["msg"]
    predicted = run_module("qemu_save", name=VM, path=str(image), check=True)
    assert predicted["changed"]
    assert "earlier run" in predicted["msg"]
    assert len(os.listdir(image.parent)) == 1


def test_save_whose_partial_image_was_removed_is_begun_anew(big_guest, image, start_module, save, restore):
    continuity = Continuity(big_guest)
    killed_save(start_module, big_guest, image, writing, bandwidth="16M")
    (partial,) = image.parent.iterdir()
    partial.unlink()
    result = save(name=VM, path=str(image))
    assert "earlier run" not in result["msg"]
    restore(name=VM, path=str(image))
    continuity.check()


def test_adopted_save_does_not_replace_another_vms_image(big_guest, make_guest, image, start_module, save, run_module):
    make_guest(OTHER_VM)
    killed_save(start_module, big_guest, image, writing, bandwidth="16M")
    save(name=OTHER_VM, path=str(image))
    before = image.read_bytes()
    result = run_module("qemu_save", name=VM, path=str(image))
    assert result["error"] == "ConflictError"
    assert OTHER_VM in result["msg"]
    assert image.read_bytes() == before


@pytest.mark.parametrize("moment", [writing, written], ids=["writing", "written"])
def test_killed_save_over_a_checkpoint_is_undone_by_a_restore(big_guest, image, start_module, save, restore, moment):
    """The guest in QEMU is the truth, the older image beside it is not."""
    continuity = Continuity(big_guest)
    before = settings(big_guest)
    save(name=VM, path=str(image), after_save="resume")
    old = image.read_bytes()
    bandwidth = {"bandwidth": "40M"} if moment is writing else {}
    killed_save(start_module, big_guest, image, moment, force=True, **bandwidth)
    assert restore(name=VM, path=str(image))["changed"]
    # Killed after the rename, it is the newer image that was done with.
    assert not image.exists() or image.read_bytes() == old
    assert run_state(big_guest) == "running"
    assert settings(big_guest) == before
    continuity.check()


def test_paused_guest_whose_save_was_killed_can_be_saved_again(big_guest, image, start_module, save, restore):
    continuity = Continuity(big_guest)
    with Monitor(big_guest.qmp_socket) as monitor:
        monitor.execute("stop")
    killed_save(start_module, big_guest, image, writing, bandwidth="40M")
    (partial,) = image.parent.iterdir()
    deadline = time.monotonic() + 20
    while run_state(big_guest) != "postmigrate":
        assert time.monotonic() < deadline
    partial.unlink()
    result = save(name=VM, path=str(image))
    assert result["image"]["vm_state"] == "paused"
    restore(name=VM, path=str(image), state="running")
    continuity.check()


def test_killed_compressed_save_is_undone_and_done_again(big_guest, image, start_module, save, restore):
    """Its compressor is nobody's any more: whether it came to its end cannot be known."""
    continuity = Continuity(big_guest)
    run = start_module("qemu_save", name=VM, path=str(image), bandwidth="16M", format="zstd")
    wait_until(lambda: migration_is_active(big_guest))
    run.process.kill()
    run.process.communicate()
    result = save(name=VM, path=str(image), format="zstd")
    assert "earlier run" not in result["msg"]
    assert os.listdir(image.parent) == [image.name]
    restore(name=VM, path=str(image))
    continuity.check()


def test_leftover_that_no_one_writes_to_is_replaced(big_guest, image, start_module, save):
    """The save was killed, and so was its migration: the file is worth nothing."""
    run = start_module("qemu_save", name=VM, path=str(image), bandwidth="16M", live=True)
    wait_until(lambda: migration_is_active(big_guest))
    run.process.kill()
    run.process.communicate()
    (leftover,) = os.listdir(image.parent)
    assert re.fullmatch(r"\.web1\.save\.[0-9a-f]{16}\.partial", leftover)
    with Monitor(big_guest.qmp_socket) as monitor:
        monitor.execute("migrate_cancel")
    wait_until(lambda: not migration_is_active(big_guest) and run_state(big_guest) == "running")
    assert "earlier run" not in save(name=VM, path=str(image))["msg"]
    assert os.listdir(image.parent) == ["web1.save"]


def test_descriptors_that_a_killed_run_left_are_taken_back(big_guest, tmp_path):
    """Also the one that was passed for a stream, of which no fdset tells."""

    def count() -> int:
        return len(os.listdir(f"/proc/{big_guest.pid}/fd"))

    async def pass_them() -> int:
        async with await monitor_module.Monitor.connect(str(big_guest.qmp_socket)) as monitor:
            descriptors = DescriptorSet(monitor, "note")
            with (tmp_path / "file").open("wb") as file:
                await descriptors.add(file.fileno())
                assert await descriptors.pass_named(file.fileno()) == f"fd:vmops-fdset-{descriptors.number}"
            assert descriptors.number is not None
            return descriptors.number

    async def take_back(number: int) -> None:
        async with await monitor_module.Monitor.connect(str(big_guest.qmp_socket)) as monitor:
            await DescriptorSet(monitor, number=number).remove()

    with Monitor(big_guest.observer_socket):
        before = count()
        number = asyncio.run(pass_them())
        wait_until(lambda: count() == before + 2)
        asyncio.run(take_back(number))
        wait_until(lambda: count() == before)
