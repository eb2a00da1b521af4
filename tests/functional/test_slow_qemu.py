# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A QEMU that is slow is not broken: its disks may take minutes to flush, as long as the guest runs in the end."""

from __future__ import annotations

import threading
import time

import pytest

from support import Monitor
from support.observe import VM, Continuity, run_state
from support.preloaded import PreloadedModules

#: Seconds that the disk's flush takes, and those within which the runs here expect an answer: as 60 s of a real run.
FLUSH = 10.0
COMMAND_TIMEOUT = 2.0

SLOW_DISK = f"null-co,node-name=slow,size=1048576,latency-ns={int(FLUSH * 1e9)},read-zeroes=on"


@pytest.fixture
def modules():
    with PreloadedModules() as modules:
        modules.constants = {"_qemu.monitor": {"COMMAND_TIMEOUT": COMMAND_TIMEOUT, "GREETING_TIMEOUT": 0.5}}
        yield modules


@pytest.fixture
def slow_guest(make_guest):
    """A guest with a disk that has something to flush."""
    guest = make_guest(
        observer=True, extra_args=["-blockdev", SLOW_DISK, "-device", "virtio-blk-pci,drive=slow,share-rw=on"]
    )
    began = time.monotonic()
    with Monitor(guest.observer_socket, 60) as monitor:
        monitor.execute("human-monitor-command", {"command-line": 'qemu-io slow "write 0 512"'})
    assert time.monotonic() - began > FLUSH, "nothing was written"
    return guest


@pytest.mark.parametrize("live", [False, True])
def test_stop_that_flushes_for_long_is_waited_for(slow_guest, image, modules, live):
    """A live save's last step flushes, too."""
    continuity = Continuity(slow_guest)
    began = time.monotonic()
    modules.start("qemu_save", name=VM, path=str(image), require_restorable=False, live=live)
    result = modules.wait()
    assert not result.get("failed"), result["msg"]
    assert time.monotonic() - began > FLUSH
    assert result["vm"]["run_state"] == "ended"
    modules.start("qemu_restore", name=VM, path=str(image))
    result = modules.wait()
    assert not result.get("failed"), result["msg"]
    continuity.check()


def test_guest_runs_again_where_the_time_is_up_while_it_is_stopped(slow_guest, image, modules):
    continuity = Continuity(slow_guest)
    modules.start("qemu_save", name=VM, path=str(image), require_restorable=False, timeout=FLUSH - 3)
    result = modules.wait()
    assert result["failed"]
    assert result["error"] == "OperationTimeoutError"
    assert result["guest"] == "running", result["msg"]
    assert "to stop" in result["msg"], result["msg"]
    assert run_state(slow_guest) == "running"
    continuity.check()


def test_restore_waits_for_a_qemu_that_greets_late(make_guest, image, tmp_path, agent, save, restore, run_module):
    """A device of it waits for its peer."""
    peer = tmp_path / "peer.sock"
    first = agent(peer)
    waiting = f"socket,id=waiting,path={peer},server=on,wait=on"
    guest = make_guest(extra_args=["-chardev", waiting, "-device", "pci-serial,chardev=waiting"])
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    first.close()
    result = run_module("qemu_restore", name=VM, path=str(image), timeout=3)
    assert result["failed"]
    assert "it waited for the QEMU that was started to open its QMP server" in result["msg"]
    assert (result["guest"], result["image"]["state"]) == ("saved", "kept")
    late = threading.Timer(3, agent, [peer])
    late.start()
    try:
        restore(name=VM, path=str(image))
    finally:
        late.join()
    continuity.check()
