# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""After a restore by a unit that failed or was killed the unit is as it was before, at the latest with the next run."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._image.identity import ImageIdentity
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.unit import guard_text
from ansible_collections.vmops.qemu.plugins.module_utils._restore.in_qemu import RestoreRecord

from support import Monitor, find_qemu_pids
from support.observe import VM, Continuity, words
from support.units import ALWAYS, UNAVAILABLE, Service, systemctl

pytestmark = pytest.mark.skipif(bool(UNAVAILABLE), reason=UNAVAILABLE)


def test_qemu_that_fails_to_load_leaves_the_unit_as_before(make_service, image, save, run_module, restore, tmp_path):
    """The disk of the recorded command is not there any more; nothing is restarted in a loop."""
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(2**20))
    drive = f"if=none,id=d0,format=raw,file={disk}"
    service = make_service(
        service=ALWAYS, guest={"extra_args": ["-drive", drive, "-device", "virtio-blk-pci,drive=d0,id=disk0"]}
    )
    continuity = Continuity(service.guest)
    save(name=VM, path=str(image))
    disk.rename(tmp_path / "elsewhere")
    assert run_module("qemu_restore", name=VM, path=str(image))["error"] == "DiskMismatchError"
    for _time in range(7):  # more often than systemd starts a unit in ten seconds
        result = run_module("qemu_restore", name=VM, path=str(image), disks="ignore")
        assert result["error"] == "LaunchError"
        assert "disk.img" in result["msg"], "QEMU's own words, from the journal"
        assert service.get("ActiveState") == "inactive"
        assert service.changes() == [service.guard]
    assert find_qemu_pids(VM) == []
    (tmp_path / "elsewhere").rename(disk)
    restore(name=VM, path=str(image))
    continuity.check()


def test_qemu_that_does_not_fit_is_ended_with_its_unit(make_service, image, save, run_module, restore):
    """``ExecStop=`` is for a guest that runs: it is not asked to shut down a half one, which would take a minute."""
    service = make_service(start=False, service=f"{ALWAYS}\nTimeoutStopSec=60\nEnvironment=MEMORY=64")
    text = service.fragment.read_text().replace('"-m" "64"', '"-m" "${MEMORY}"')
    service.fragment.write_text(text)
    systemctl("daemon-reload")
    service.start()
    continuity = Continuity(service.guest)
    save(name=VM, path=str(image))
    service.fragment.write_text(f"{text}\nExecStop=/bin/sleep 50\nEnvironment=MEMORY=96\n")
    systemctl("daemon-reload")
    started = time.monotonic()
    result = run_module("qemu_restore", name=VM, path=str(image))
    assert result["error"] == "MismatchError"
    assert time.monotonic() - started < 40
    assert service.get("ActiveState") == "inactive"
    assert service.changes() == [service.guard]
    assert find_qemu_pids(VM) == []
    service.fragment.write_text(text)
    systemctl("daemon-reload")
    restore(name=VM, path=str(image))
    continuity.check()


def leave_restore(service: Service, image: Path) -> None:
    """What a restore that is killed leaves in the VM's unit."""
    etc, run = service.directories
    for directory in etc, run:
        directory.mkdir(parents=True, exist_ok=True)
    (etc / "50-vmops-saved.conf").write_text(guard_text([str(image)]))
    (run / "50-vmops-saved.conf").symlink_to("/dev/null")
    (run / "zzz-vmops-restore.conf").write_text("[Service]\nRestart=no\nExecStart=\nExecStart=/bin/false\n")
    systemctl("daemon-reload")
    assert service.get("Restart") == "no"


def test_restore_killed_when_the_guest_is_loaded(make_service, image, save, restore):
    """The next run brings guest, image and QEMU to where they should be, and the unit at once, too."""
    service = make_service(service=ALWAYS)
    continuity = Continuity(service.guest)
    save(name=VM, path=str(image))
    restore(name=VM, path=str(image), state="paused", remove_image=False)
    service.guest.adopt_restarted()
    leave_restore(service, image)
    record = RestoreRecord(
        image=str(image), identity=ImageIdentity.of(str(image)), expanded=False, capabilities={}, parameters={}
    )
    with image.open("rb") as file, Monitor(service.guest.observer_socket) as monitor:
        monitor.execute("add-fd", {"opaque": record.opaque()}, fd=file.fileno())
    result = restore(name=VM, path=str(image))
    assert "cut off" in result["msg"]
    assert not image.exists()
    assert service.changes() == []
    assert service.get("Restart") == "always"
    continuity.check()


def test_what_a_killed_restore_left_is_removed(make_service, image, save, restore, run_module):
    service = make_service(service=ALWAYS)
    continuity = Continuity(service.guest)

    def leave():
        leave_restore(service, image)

    leave()
    predicted = run_module("qemu_restore", name=VM, path=str(image), check=True)
    assert predicted["changed"]
    assert len(service.changes()) == 3
    result = restore(name=VM, path=str(image))
    assert result["changed"]
    assert service.changes() == []
    assert service.get("Restart") == "always"
    assert not restore(name=VM, path=str(image))["changed"]
    leave()
    save(name=VM, path=str(image))
    assert service.changes() == [service.guard]
    assert service.get("Restart") == "always"
    # Its start that is due, and refused by the guard, would meet what is left there in its place.
    service.wait_state("inactive", "failed")
    leave()
    restore(name=VM, path=str(image))
    assert service.changes() == []
    continuity.check()


def test_killed_while_it_starts_the_unit(make_service, image, save, restore, start_module):
    """SIGKILL before QEMU is up: the next run converges."""
    service = make_service(service=f"{ALWAYS}\nExecStartPre=/bin/sleep 2")
    continuity = Continuity(service.guest)
    save(name=VM, path=str(image))
    run = start_module("qemu_restore", name=VM, path=str(image))
    deadline = time.monotonic() + 20
    # Not activating alone, which it also is for a moment when it would restart by itself.
    while service.get("SubState") != "start-pre":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    run.process.kill()
    run.process.wait()
    assert len(service.changes()) == 3
    restored = restore(name=VM, path=str(image))
    assert restored["unit"] == service.known_as
    assert service.changes() == []
    continuity.check()


def test_signal_while_it_starts_the_unit(make_service, image, save, restore, start_module):
    service = make_service(service=f"{ALWAYS}\nExecStartPre=/bin/true")
    continuity = Continuity(service.guest)
    save(name=VM, path=str(image))
    service.fragment.write_text(service.fragment.read_text().replace("/bin/true", "/bin/sleep 30"))
    systemctl("daemon-reload")
    run = start_module("qemu_restore", name=VM, path=str(image))
    deadline = time.monotonic() + 20
    # Not activating alone, which it also is for a moment when it would restart by itself.
    while service.get("SubState") != "start-pre":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    run.process.send_signal(signal.SIGTERM)
    result = run.result()
    assert result["error"] == "InterruptedOperationError"
    assert words(result) == ("saved", "kept")
    assert service.get("ActiveState") == "inactive"
    assert service.changes() == [service.guard]
    service.fragment.write_text(service.fragment.read_text().replace("/bin/sleep 30", "/bin/true"))
    systemctl("daemon-reload")
    restore(name=VM, path=str(image))
    continuity.check()
