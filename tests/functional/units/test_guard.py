# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A saved VM is never started beside its image by its unit: the guard, and when it has no effect."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.unit import guard_text

from support import find_qemu_pids
from support.observe import VM, Continuity, run_state
from support.record import without_record_checksum
from support.units import ALWAYS, PERSISTENT, UNAVAILABLE, of_root, systemctl

pytestmark = pytest.mark.skipif(bool(UNAVAILABLE), reason=UNAVAILABLE)


def test_saved_vm_does_not_start_beside_its_image(make_service, image, save, restore):
    """Neither by itself, as systemd restarts services without a look at their conditions, nor when it is told to."""
    service = make_service(service=ALWAYS)
    continuity = Continuity(service.guest)
    save(name=VM, path=str(image))
    time.sleep(1.5)
    assert service.wait_state("inactive") == "inactive"
    systemctl("start", service.name, check=False)
    assert service.wait_state("inactive") == "inactive"
    assert service.get("ConditionResult") == "no"
    archive = Path(f"{image}.tar.zst")
    image.rename(archive)
    systemctl("start", service.name, check=False)
    assert service.wait_state("inactive") == "inactive"
    archive.rename(image)
    assert find_qemu_pids(VM) == []
    assert service.guest.boots() == 1
    restore(name=VM, path=str(image))
    continuity.check()


def test_without_the_image_the_guard_has_no_effect(make_service, image, save):
    service = make_service(service=ALWAYS)
    save(name=VM, path=str(image))
    assert service.wait_state("inactive") == "inactive"
    image.unlink()
    service.start()
    service.kill_qemu()
    service.guest.wait_restarted()
    assert service.get("NRestarts") == "1"


def test_unguarded_unit_starts_the_vm_beside_its_image(make_service, image, run_module):
    """What the guard is there for: refused without it, and where the operator insists, it comes to that."""
    service = make_service(service=ALWAYS)
    options = {"name": VM, "path": str(image), "cold_boot_guard": False}
    result = run_module("qemu_save", **options)
    assert result["error"] == "NotRestorableError", result["msg"]
    assert [problem["kind"] for problem in result["problems"] if problem["blocks"]] == ["unit_restarts"]
    result = run_module("qemu_save", require_restorable=False, **options)
    # Whether it is back in the moment in which it is looked for is systemd's affair.
    assert not result.get("failed") or "started again" in result["msg"], result["msg"]
    assert service.changes() == []
    service.guest.wait_restarted()
    deadline = time.monotonic() + 20
    while service.guest.boots() < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("after_save", ["pause", "resume"])
def test_guard_while_qemu_stays(make_service, image, save, restore, after_save):
    service = make_service(service=ALWAYS)
    continuity = Continuity(service.guest)
    save(name=VM, path=str(image), after_save=after_save)
    if after_save == "resume":
        # The image is not the guest's truth any more.
        assert service.changes() == []
    else:
        assert service.changes() == [service.guard]
        restore(name=VM, path=str(image))
        assert service.changes() == []
    continuity.check()
    assert service.get("NRestarts") == "0"


def test_paused_and_then_resumed_or_quit(make_service, image, save, restore):
    service = make_service(service=ALWAYS)
    continuity = Continuity(service.guest)
    save(name=VM, path=str(image), after_save="pause")
    save(name=VM, path=str(image), after_save="resume")
    assert service.changes() == []
    save(name=VM, path=str(image), after_save="pause", force=True)
    Path(service.guard).unlink()
    save(name=VM, path=str(image), after_save="quit")
    assert service.changes() == [service.guard]
    assert service.wait_state("inactive") == "inactive"
    restore(name=VM, path=str(image))
    continuity.check()


def test_failed_save_leaves_no_guard(make_service, image, start_module):
    service = make_service(service=ALWAYS, guest={"memory_mib": 512, "block_mib": 300})
    continuity = Continuity(service.guest)
    run = start_module("qemu_save", name=VM, path=str(image), bandwidth="20M")
    deadline = time.monotonic() + 20
    while run_state(service.guest) == "running":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    run.process.send_signal(signal.SIGTERM)
    assert run.result()["error"] == "InterruptedOperationError"
    assert service.changes() == []
    continuity.check()


def test_image_that_is_kept_does_not_block_the_unit(make_service, image, save, restore):
    service = make_service(service=ALWAYS)
    save(name=VM, path=str(image))
    restore(name=VM, path=str(image), remove_image=False)
    assert image.exists()
    assert service.changes() == []


def test_guard_of_another_image_stays(make_service, image, save, restore):
    """An image may name any unit; only the guard of this image, or of the QEMU that runs, goes."""
    service = make_service(service=ALWAYS)
    other = PERSISTENT / f"{service.name.replace('web1', 'db1')}.d"
    save(name=VM, path=str(image))
    other.mkdir()
    guard = other / "50-vmops-saved.conf"
    guard.write_text(guard_text(["/var/lib/vmops/save/db1.save"]))
    try:
        data = without_record_checksum(image.read_bytes())
        name, wrong = service.name.encode(), other.name[:-2].encode()
        padding = b" " * (len(name) - len(wrong))
        image.write_bytes(data.replace(name + b"</vmops:unit>", wrong + b"</vmops:unit>" + padding, 1))
        service.guest.start(incoming=True)
        restore(name=VM, path=str(image), launch="attach")
        assert guard.exists()
    finally:
        guard.unlink()
        other.rmdir()


@of_root
@pytest.mark.parametrize(
    "name", ["plain", "sp ace", "per%cent", "quo\"te'", "back\\slash", "dol$lar${x}", "sn\N{SNOWMAN}w"]
)
def test_guard_of_any_path(make_service, save, restore, tmp_path, name):
    service = make_service(service=ALWAYS)
    continuity = Continuity(service.guest)
    directory = tmp_path / name
    directory.mkdir(mode=0o700)
    # With a file system of its own, whose mount the guard must know.
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200M,mode=0700", "tmpfs", str(directory)], check=True)
    image = directory / f"{name}.save"
    try:
        save(name=VM, path=str(image))
        time.sleep(1)
        assert service.wait_state("inactive") == "inactive"
        systemctl("start", service.name, check=False)
        assert service.wait_state("inactive") == "inactive"
        assert service.get("ConditionResult") == "no"
        warnings = [line for line in service.journal().splitlines() if "50-vmops-saved.conf" in line]
        assert warnings == []
        restore(name=VM, path=str(image))
        continuity.check()
    finally:
        service.close()
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


@of_root
def test_image_whose_file_system_is_not_mounted(make_service, save, restore, tmp_path):
    service = make_service()
    continuity = Continuity(service.guest)
    directory = tmp_path / "srv"
    backing = tmp_path / "backing"
    directory.mkdir(mode=0o700)
    backing.mkdir(mode=0o700)
    image = directory / "web1.save"
    subprocess.run(["mount", "--bind", str(backing), str(directory)], check=True)
    save(name=VM, path=str(image))
    subprocess.run(["umount", "--lazy", str(directory)], check=True)
    assert not image.exists()
    systemctl("start", service.name, check=False)
    assert service.wait_state("inactive", "failed") in ("inactive", "failed")
    assert find_qemu_pids(VM) == []
    subprocess.run(["mount", "--bind", str(backing), str(directory)], check=True)
    try:
        restore(name=VM, path=str(image))
        continuity.check()
    finally:
        service.close()
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


@of_root
def test_file_system_of_the_image_is_unmounted_under_the_vm(make_service, save, tmp_path):
    """A guard that is left over, of an image that is gone, must not end the VM then."""
    service = make_service()
    directory = tmp_path / "srv"
    directory.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200M,mode=0700", "tmpfs", str(directory)], check=True)
    image = directory / "web1.save"
    save(name=VM, path=str(image))
    image.unlink()
    service.start()
    subprocess.run(["umount", str(directory)], check=True)
    time.sleep(2)
    assert service.get("ActiveState") == "active"
    assert service.guest.alive()


@of_root
def test_unit_cannot_be_guarded(make_service, image, run_module):
    """A directory of units that cannot be written to: said before the guest is touched."""
    service = make_service(service=ALWAYS)
    continuity = Continuity(service.guest)
    prefix = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        'mount --bind -o ro /etc/systemd/system /etc/systemd/system && exec "$@"',
        "sh",
    ]
    result = run_module("qemu_save", name=VM, path=str(image), prefix=prefix)
    assert result["error"] == "UnitError"
    assert "cold_boot_guard" in result["cure"]
    assert not image.exists()
    continuity.check()
    checked = run_module("qemu_save", name=VM, path=str(image), prefix=prefix, check=True)
    assert checked["error"] == "UnitError"
