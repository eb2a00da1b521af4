# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""After any outcome QEMU is as it was found, and of use: an internal snapshot and somebody else's save work.

libvirt leaves multifd and direct-io on after a restore; what comes next then ends QEMU. The last test shows that.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest

from support import Monitor, MonitorError
from support.observe import VM, Continuity, run_state, settings, wait_until

SLOW = {"bandwidth": "16M"}


@pytest.fixture
def guest(make_guest, tmp_path):
    """A guest with a disk that can hold internal snapshots, and memory for a save of some seconds."""
    disk = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "1M"], check=True)
    drive = f"if=none,id=d0,node-name=disk0,format=qcow2,file={disk}"
    devices = ["-drive", drive, "-device", "virtio-blk-pci,drive=d0"]
    return make_guest(memory_mib=128, block_mib=64, observer=True, extra_args=devices)


def status(guest):
    with Monitor(guest.observer_socket) as monitor:
        return monitor.execute("query-migrate").get("status", "none")


def begin(guest, start_module, image, **options):
    """A save that takes its time, and is under way."""
    run = start_module("qemu_save", name=VM, path=str(image), **SLOW, **options)
    wait_until(lambda: status(guest) == "active", 30)
    return run


def snapshot(guest, tag):
    """An internal snapshot, which QEMU writes with whatever migration capabilities are set."""
    with Monitor(guest.observer_socket, timeout=30) as monitor:
        job = {"job-id": tag, "tag": tag, "vmstate": "disk0", "devices": ["disk0"]}
        monitor.execute("snapshot-save", job)
        deadline = time.monotonic() + 30
        while True:
            (now,) = [job for job in monitor.execute("query-jobs") if job["id"] == tag]
            if now["status"] == "concluded":
                break
            assert time.monotonic() < deadline, now
            time.sleep(0.05)
        monitor.execute("job-dismiss", {"id": tag})
        assert "error" not in now, now["error"]


def save_by_hand(guest, path):
    """A buffered save with QEMU alone, by someone who sets nothing but what he needs; then the guest goes on."""
    with Monitor(guest.observer_socket, timeout=30) as monitor:
        monitor.execute("migrate", {"uri": f"file:{path}"})
        deadline = time.monotonic() + 30
        while monitor.execute("query-migrate")["status"] not in ("completed", "failed", "cancelled"):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert monitor.execute("query-migrate")["status"] == "completed"
        monitor.execute("cont")


# --- what befalls a guest, and leaves it in a QEMU ---


def resumed(guest, image, start_module):
    assert start_module("qemu_save", name=VM, path=str(image), after_save="resume").result()["changed"]


def resumed_raw(guest, image, start_module):
    assert start_module("qemu_save", name=VM, path=str(image), after_save="resume", format="raw").result()["changed"]


def resumed_live_zstd(guest, image, start_module):
    result = start_module("qemu_save", name=VM, path=str(image), after_save="resume", format="zstd", live=True).result()
    assert result["changed"]


def paused_and_continued(guest, image, start_module):
    assert start_module("qemu_save", name=VM, path=str(image), after_save="pause").result()["changed"]
    with Monitor(guest.observer_socket) as monitor:
        monitor.execute("cont")


def restored(guest, image, start_module, **options):
    assert start_module("qemu_save", name=VM, path=str(image), **options).result()["changed"]
    assert start_module("qemu_restore", name=VM, path=str(image)).result()["changed"]
    guest.wait_restarted()


def restored_past_the_page_cache(guest, image, start_module):
    assert start_module("qemu_save", name=VM, path=str(image), bypass_cache=True).result()["changed"]
    result = start_module("qemu_restore", name=VM, path=str(image), bypass_cache=True, parallel_channels=4).result()
    assert result["bypass_cache"] is True
    guest.wait_restarted()


def restored_raw(guest, image, start_module):
    restored(guest, image, start_module, format="raw")


def restored_zstd(guest, image, start_module):
    restored(guest, image, start_module, format="zstd")


def cancelled(guest, image, start_module):
    run = begin(guest, start_module, image)
    run.process.send_signal(signal.SIGTERM)
    assert run.result()["error"] == "InterruptedOperationError"


def cancelled_live(guest, image, start_module):
    run = begin(guest, start_module, image, live=True)
    run.process.send_signal(signal.SIGTERM)
    assert run.result()["error"] == "InterruptedOperationError"


def timed_out(guest, image, start_module):
    run = start_module("qemu_save", name=VM, path=str(image), **SLOW, timeout=1)
    assert run.result()["error"] == "OperationTimeoutError"


def killed_and_called_off(guest, image, start_module):
    run = begin(guest, start_module, image)
    run.process.kill()
    run.process.communicate()
    assert start_module("qemu_restore", name=VM, path=str(image)).result()["changed"]


def killed_and_adopted(guest, image, start_module):
    run = begin(guest, start_module, image)
    run.process.kill()
    run.process.communicate()
    result = start_module("qemu_save", name=VM, path=str(image), after_save="resume").result()
    assert "earlier run" in result["msg"]


def killed_restore_ended_by_the_next(guest, image, start_module):
    assert start_module("qemu_save", name=VM, path=str(image)).result()["changed"]
    run = start_module("qemu_restore", name=VM, path=str(image))
    # Its QEMU is there from some moment on, and the run is killed in the midst of it.
    wait_until(lambda: guest.adopt_restarted() or run.process.poll() is not None, 30)
    run.process.kill()
    run.process.communicate()
    assert not start_module("qemu_restore", name=VM, path=str(image)).result().get("failed")
    guest.adopt_restarted()


OUTCOMES = [
    resumed,
    resumed_raw,
    resumed_live_zstd,
    paused_and_continued,
    restored_past_the_page_cache,
    restored_raw,
    restored_zstd,
    cancelled,
    cancelled_live,
    timed_out,
    killed_and_called_off,
    killed_and_adopted,
    killed_restore_ended_by_the_next,
]


@pytest.mark.parametrize("outcome", OUTCOMES, ids=lambda outcome: outcome.__name__)
def test_qemu_is_as_it_was_and_of_use(guest, image, start_module, tmp_path, outcome):
    before = settings(guest)
    continuity = Continuity(guest)
    outcome(guest, image, start_module)
    assert settings(guest) == before
    assert run_state(guest) == "running"
    snapshot(guest, "after")
    save_by_hand(guest, tmp_path / "by-hand")
    assert os.path.getsize(tmp_path / "by-hand") > 64 * 2**20
    continuity.check()
    result = start_module("qemu_save", name=VM, path=str(image), force=True, bypass_cache=False).result()
    assert result["changed"], result["msg"]
    assert start_module("qemu_restore", name=VM, path=str(image)).result()["changed"]
    continuity.check()


def test_settings_that_are_left_behind_end_qemu(guest):
    """What this is about: the settings of a sparse save, still there, and QEMU does not survive a snapshot."""
    with Monitor(guest.observer_socket) as monitor:
        on = [{"capability": name, "state": True} for name in ("multifd", "mapped-ram")]
        monitor.execute("migrate-set-capabilities", {"capabilities": on})
    with pytest.raises(MonitorError):
        snapshot(guest, "after")
    guest.wait_exit()
    assert guest.exit_code in (-signal.SIGABRT, -signal.SIGSEGV)
