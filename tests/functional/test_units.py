# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""VMs that systemd runs: started again by their own unit, or in one made for them, and never beside their image."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._image.identity import ImageIdentity
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import systemd
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import Launch, read_process
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.unit import (
    LaunchedTransientUnit,
    guard_text,
    read_vm_unit,
)
from ansible_collections.vmops.qemu.plugins.module_utils._restore.in_qemu import RestoreRecord
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.media import Medium, MediumFile
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.process import process_problems
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.unit import unit_problems

from support import Monitor, find_qemu_pids
from support.observe import VM, Continuity, run_state, words
from support.record import without_record_checksum
from support.units import UNAVAILABLE, Service, quoted, systemctl

pytestmark = pytest.mark.skipif(bool(UNAVAILABLE), reason=UNAVAILABLE)

ALWAYS = "Restart=always\nRestartSec=100ms"


@pytest.fixture
def make_service(make_guest):
    """Make guests that a unit of their own runs: C(make_service(service=..., unit=..., command=..., guest={}))."""
    services = []

    def make(*, start=True, guest=None, **options):
        described = make_guest(start=False, observer=True, **(guest or {}))
        # Whoever the unit's user is.
        for place in described.workdir, *described.workdir.parents[:3]:
            if place.is_dir():
                place.chmod(0o755)
        services.append(Service(described, **options))
        if start:
            services[-1].start()
        return services[-1]

    yield make
    for service in services:
        service.close()


def unit_of(pid: int) -> str:
    return systemd.unit_of_process(pid)


def guard_of(service: Service) -> str:
    return f"/etc/systemd/system/{service.name}.d/50-vmops-saved.conf"


def kill_qemu(service: Service) -> None:
    os.kill(service.guest.pid or 0, signal.SIGKILL)
    service.guest.wait_exit()


def argv_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="surrogateescape").split("\0")[:-1]


# --- its own unit ---


def test_saved_and_restored_by_its_unit(make_service, image, save, restore):
    service = make_service(service=ALWAYS)
    continuity = Continuity(service.guest)
    saved = save(name=VM, path=str(image))
    assert saved["launch"] == {"how": "unit", "unit": service.name, "reason": ""}
    assert "warnings" not in saved
    assert service.changes() == [guard_of(service)]
    restored = restore(name=VM, path=str(image))
    assert restored["launched"]
    assert restored["unit"] == service.name == unit_of(restored["vm"]["pid"])
    assert int(service.get("MainPID")) == restored["vm"]["pid"]
    assert service.get("ActiveState") == "active"
    assert "warnings" not in restored
    assert not image.exists()
    assert not Path(f"{image}.log").exists(), "what a unit's QEMU says goes to the journal"
    continuity.check()
    # Nothing of that start is left: the unit does what it did before.
    assert service.changes() == []
    assert service.get("NeedDaemonReload") == "no"
    assert service.get("Restart") == "always"
    assert "incoming" not in service.get("ExecStart")
    kill_qemu(service)
    service.guest.wait_restarted()
    deadline = time.monotonic() + 20
    while service.guest.boots() < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_unit_with_an_escaped_name(make_service, image, save, restore):
    service = make_service(instance=systemd.escape_unit_name("db-1 é"))
    assert "\\x2d" in service.name
    continuity = Continuity(service.guest)
    save(name=VM, path=str(image))
    assert service.changes() == [guard_of(service)]
    assert restore(name=VM, path=str(image))["unit"] == service.name
    assert service.changes() == []
    continuity.check()


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
    kill_qemu(service)
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
        assert service.changes() == [guard_of(service)]
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
    Path(guard_of(service)).unlink()
    save(name=VM, path=str(image), after_save="quit")
    assert service.changes() == [guard_of(service)]
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


@pytest.mark.parametrize("service_type", ["simple", "exec", "oneshot", "idle"])
def test_types_of_services(make_service, image, save, restore, service_type):
    service = make_service(start=False, service=f"Type={service_type}")
    systemctl("start", "--no-block", service.name)
    service.guest.wait_restarted()
    service.guest.wait_for_counter()
    continuity = Continuity(service.guest)
    assert save(name=VM, path=str(image))["launch"]["how"] == "unit"
    assert restore(name=VM, path=str(image))["unit"] == service.name
    continuity.check()


@pytest.mark.parametrize("pid_file", [False, True])
def test_forking_service_is_up_when_qemu_is(make_service, image, save, restore, pid_file, tmp_path):
    """What the unit does after its start (C(ExecStartPost=)) may need what QEMU has made."""
    extra = ["-daemonize", *(["-pidfile", str(tmp_path / "pid")] if pid_file else [])]
    lines = f"Type=forking\n{f'PIDFile={tmp_path}/pid' if pid_file else ''}\nExecStartPost=/bin/sh -c 'test -S SOCKET'"
    service = make_service(start=False, guest={"extra_args": extra})
    text = service.fragment.read_text() + lines.replace("SOCKET", str(service.guest.qmp_socket)) + "\n"
    service.fragment.write_text(text)
    systemctl("daemon-reload")
    service.start()
    continuity = Continuity(service.guest)
    for _time in range(2):
        assert save(name=VM, path=str(image))["launch"]["how"] == "unit"
        service.guest.qmp_socket.unlink(missing_ok=True)
        restored = restore(name=VM, path=str(image))
        assert restored["unit"] == service.name
        assert "-daemonize" in argv_of(restored["vm"]["pid"])
        assert service.wait_state("active", "failed") == "active"
        assert int(service.get("MainPID")) == restored["vm"]["pid"]
    continuity.check()


def test_service_that_tells_when_it_is_up(make_service, image, save, restore, tmp_path):
    """A script that says so, and then becomes QEMU: the restore executes QEMU in its place."""
    script = tmp_path / "start-vm"
    service = make_service(
        start=False, service="Type=notify\nNotifyAccess=all\nTimeoutStartSec=10", command=str(script)
    )
    script.write_text(f"#!/bin/sh\ncd /\nsystemd-notify --ready\nexec {quoted(service.guest.argv())}\n")
    script.chmod(0o755)
    service.start()
    continuity = Continuity(service.guest)
    saved = save(name=VM, path=str(image))
    assert saved["launch"]["how"] == "unit"
    assert str(script) in saved["launch"]["reason"]
    assert str(script) in str(saved["warnings"])
    restored = restore(name=VM, path=str(image))
    assert service.wait_state("active", "failed") == "active"
    assert restored["unit"] == service.name
    assert os.readlink(f"/proc/{restored['vm']['pid']}/cwd") == "/"
    time.sleep(11)
    assert service.get("ActiveState") == "active"
    continuity.check()


def test_the_units_own_settings_hold(make_service, image, save, restore, tmp_path):
    helper = tmp_path / "helper"
    service = make_service(
        service="User=nobody\nLimitNOFILE=4321\nEnvironment=OF_THE_UNIT=1"
        f"\nExecStartPre=+/bin/sh -c 'echo x >>{helper}'",
        unit="ConditionPathExists=/etc/passwd",
        start=False,
    )
    for place in service.guest.workdir, service.guest.qmp_socket.parent:
        os.chown(place, 65534, 65534)
    service.start()
    continuity = Continuity(service.guest)
    save(name=VM, path=str(image))
    pid = restore(name=VM, path=str(image))["vm"]["pid"]
    assert os.stat(f"/proc/{pid}").st_uid == 65534
    assert "4321" in Path(f"/proc/{pid}/limits").read_text()
    assert "OF_THE_UNIT=1" in Path(f"/proc/{pid}/environ").read_text().split("\0")
    assert helper.read_text() == "x\nx\n"
    continuity.check()


@pytest.mark.parametrize("prefix", ["+", "!", "-"])
def test_prefix_of_the_units_command(make_service, image, save, restore, prefix):
    service = make_service(start=False, service="User=nobody")
    text = service.fragment.read_text().replace("ExecStart=", f"ExecStart={prefix}")
    service.fragment.write_text(text)
    systemctl("daemon-reload")
    for place in service.guest.workdir, service.guest.qmp_socket.parent:
        os.chown(place, 65534, 65534)
    service.start()
    uid = os.stat(f"/proc/{service.guest.pid}").st_uid
    assert uid == (65534 if prefix == "-" else 0)
    save(name=VM, path=str(image))
    restored = restore(name=VM, path=str(image))
    assert os.stat(f"/proc/{restored['vm']['pid']}").st_uid == uid


def test_change_of_the_operators_own_comes_first(make_service, image, save, restore):
    service = make_service(service=ALWAYS)
    continuity = Continuity(service.guest)
    own = service.directories[0]
    own.mkdir(parents=True)
    (own / "override.conf").write_text("[Service]\nExecStart=\nExecStart=/bin/false\n")
    systemctl("daemon-reload")
    save(name=VM, path=str(image))
    restore(name=VM, path=str(image))
    continuity.check()
    assert service.changes() == [str(own / "override.conf")]
    assert "/bin/false" in service.get("ExecStart")


def test_change_that_comes_last_is_refused(make_service, image, save, run_module):
    service = make_service(service=ALWAYS)
    own = service.directories[0]
    own.mkdir(parents=True)
    (own / "zzzz.conf").write_text(f"[Service]\nExecStart=\nExecStart={quoted(service.guest.argv())}\n")
    systemctl("daemon-reload")
    save(name=VM, path=str(image))
    result = run_module("qemu_restore", name=VM, path=str(image))
    assert result["error"] == "LaunchError"
    assert "zzzz.conf" in result["msg"]
    assert service.guest.boots() == 1
    assert find_qemu_pids(VM) == []
    assert service.changes() == [guard_of(service), str(own / "zzzz.conf")]
    assert image.exists()


def test_the_units_own_conditions_hold(make_service, image, save, run_module, restore, tmp_path):
    flag = tmp_path / "flag"
    flag.touch()
    service = make_service(unit=f"ConditionPathExists={flag}")
    continuity = Continuity(service.guest)
    save(name=VM, path=str(image))
    flag.unlink()
    result = run_module("qemu_restore", name=VM, path=str(image))
    assert result["error"] == "LaunchError"
    assert "conditions are not met" in result["msg"]
    assert service.changes() == [guard_of(service)]
    flag.touch()
    restore(name=VM, path=str(image))
    continuity.check()


def test_argv_arrives_as_it_was(make_service, image, save, restore):
    odd = "%i %% $HOME ${HOME} $$ \\x41 \\ \"q\" 'a' ;é\t\N{SNOWMAN} \n end "
    service = make_service(
        start=False, guest={"extra_args": ["-fw_cfg", f"name=opt/odd,string={odd}"]}, command="/bin/true"
    )
    argv = service.guest.argv()
    command = " ".join(systemd.quote_word(word) for word in argv)
    service.fragment.write_text(service.fragment.read_text().replace("/bin/true", command))
    systemctl("daemon-reload")
    service.start()
    assert argv_of(service.guest.pid) == argv
    continuity = Continuity(service.guest)
    save(name=VM, path=str(image))
    pid = restore(name=VM, path=str(image))["vm"]["pid"]
    restored = argv_of(pid)
    assert restored[: len(argv)] == argv
    assert restored[-3:] == ["-S", "-incoming", "defer"]
    continuity.check()


def test_descriptors_of_the_units_own(make_service, image, save, restore, tmp_path):
    (tmp_path / "opened").touch()
    service = make_service(
        service=f"OpenFile={tmp_path}/opened:opened:read-only", guest={"extra_args": ["-add-fd", "fd=3,set=5"]}
    )
    continuity = Continuity(service.guest)
    saved = save(name=VM, path=str(image))
    assert saved["launch"] == {"how": "unit", "unit": service.name, "reason": ""}
    assert restore(name=VM, path=str(image))["unit"] == service.name
    continuity.check()


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
        assert service.changes() == [guard_of(service)]
    assert find_qemu_pids(VM) == []
    (tmp_path / "elsewhere").rename(disk)
    restore(name=VM, path=str(image))
    continuity.check()


def test_qemu_that_does_not_fit_is_ended_with_its_unit(make_service, image, save, run_module, restore):
    """C(ExecStop=) is for a guest that runs: it is not asked to shut down a half one, which would take a minute."""
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
    assert service.changes() == [guard_of(service)]
    assert find_qemu_pids(VM) == []
    service.fragment.write_text(text)
    systemctl("daemon-reload")
    restore(name=VM, path=str(image))
    continuity.check()


def test_unit_that_runs_something_else_is_left_alone(make_service, image, save, run_module):
    service = make_service()
    save(name=VM, path=str(image))
    service.fragment.write_text("[Service]\nExecStart=/bin/sleep 1000\n")
    Path(guard_of(service)).unlink()
    systemctl("daemon-reload")
    systemctl("start", service.name)
    pid = service.get("MainPID")
    result = run_module("qemu_restore", name=VM, path=str(image))
    assert result["error"] == "LaunchError"
    assert f"pid {pid}" in result["msg"]
    assert service.get("MainPID") == pid
    assert service.get("ActiveState") == "active"
    assert service.changes() == []


def test_masked_unit_is_not_started(make_service, image, save, run_module, restore):
    service = make_service()
    continuity = Continuity(service.guest)
    save(name=VM, path=str(image))
    systemctl("mask", "--runtime", service.name)
    try:
        result = run_module("qemu_restore", name=VM, path=str(image))
        assert result["error"] == "LaunchError"
        assert "masked" in result["msg"]
    finally:
        systemctl("unmask", "--runtime", service.name)
    restore(name=VM, path=str(image))
    continuity.check()


def test_unit_that_is_not_there_any_more(make_service, image, save, restore):
    service = make_service()
    continuity = Continuity(service.guest)
    save(name=VM, path=str(image))
    service.fragment.unlink()
    systemctl("daemon-reload")
    restored = restore(name=VM, path=str(image))
    assert service.name in str(restored["warnings"])
    assert restored["unit"] == f"vmops-qemu-{systemd.escape_unit_name(VM)}.service"
    assert service.changes() == []
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
    assert service.changes() == [guard_of(service)]
    assert service.get("Restart") == "always"
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
    assert restored["unit"] == service.name
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
    assert service.changes() == [guard_of(service)]
    service.fragment.write_text(service.fragment.read_text().replace("/bin/sleep 30", "/bin/true"))
    systemctl("daemon-reload")
    restore(name=VM, path=str(image))
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
    other = Path(f"/etc/systemd/system/{service.name.replace('web1', 'db1')}.d")
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


def test_unit_cannot_be_guarded(make_service, image, run_module, save):
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


# --- what of its unit would make a restore wrong ---


def problems_of(guest, disk=None, guarded=True):
    """What is found of the unit and of the process, by its kind; with the file of a disk."""
    process = read_process(guest.pid)
    assert process
    unit = asyncio.run(read_vm_unit(process))
    facts = os.stat(f"/proc/{process.pid}/root/{disk}") if disk else None
    files = (MediumFile(str(disk), "raw", 0, 0, facts.st_ino, facts.st_dev),) if facts else ()
    media = [Medium("d0", "", "", False, files)]
    by_unit = unit.starts_vm and not unit.starter
    found = [*unit_problems(unit, process, guarded, media), *process_problems(process, by_unit, unit)]
    return {problem.kind: problem for problem in found}


def with_disk(disk):
    return {"extra_args": ["-drive", f"if=none,id=d0,format=raw,file={disk}", "-device", "virtio-blk-pci,drive=d0"]}


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "vm" / "web1.raw"
    path.parent.mkdir()
    path.write_bytes(bytes(2**20))
    return path


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("ExecStartPre=-/usr/bin/qemu-img create -q -f raw DISK 1M", "ExecStartPre"),
        ("ExecStartPre=+/bin/sh -c 'truncate -s 0 DISK; truncate -s 1M DISK'", "ExecStartPre"),
        ("ExecStopPost=/bin/rm -f DISK", "ExecStopPost"),
        ("WorkingDirectory=DIRECTORY\nExecStop=-/bin/rm -f web1.raw", "ExecStop"),
        ("ExecStopPost=SCRIPT %i", "ExecStopPost"),
        ("Environment=OVERLAY=DISK\nExecStopPost=/bin/rm -f ${OVERLAY}", "ExecStopPost"),
    ],
)
def test_helper_that_changes_a_disk(make_service, disk, tmp_path, lines, said):
    script = tmp_path / "helper"
    script.write_text(f"#!/bin/sh\nset -e\nrm -f {disk.parent}/$1.raw\n")
    script.chmod(0o755)
    for name, value in {"DISK": disk, "DIRECTORY": disk.parent, "SCRIPT": script}.items():
        lines = lines.replace(name, str(value))
    service = make_service(service=lines, guest=with_disk(disk))
    problems = problems_of(service.guest, disk)
    assert list(problems) == ["unit_helper"]
    assert problems["unit_helper"].blocks
    assert f"({said}=)" in problems["unit_helper"].what
    assert problems["unit_helper"].what.endswith(f"which changes {disk}")
    assert service.name in problems["unit_helper"].what


def test_helpers_that_are_harmless(make_service, disk, tmp_path):
    service = make_service(
        service=f"ExecStartPre=/bin/mkdir -p {tmp_path}/run\nExecStartPre=/usr/bin/test -f {disk}\n"
        f"ExecStartPre=/bin/sh -c 'test -f {disk} || truncate -s 1M {disk}'\n"
        f"ExecStopPost=/bin/sh -c 'echo bye | logger'\nPrivateTmp=yes\nBindPaths={tmp_path}\nNice=5\n"
        "LimitMEMLOCK=123456\nCPUAffinity=0\nRestart=on-failure",
        guest=with_disk(disk),
    )
    assert problems_of(service.guest, disk) == {}
    assert problems_of(service.guest, disk, guarded=False) == {}


def test_helper_of_which_nothing_is_known(make_service, disk, tmp_path):
    program = tmp_path / "program"
    program.write_bytes(Path("/bin/true").read_bytes())
    program.chmod(0o755)
    service = make_service(service=f"ExecStartPre={program} %i", guest=with_disk(disk))
    problems = problems_of(service.guest, disk)
    assert list(problems) == ["unit_helper_unknown"]
    assert not problems["unit_helper_unknown"].blocks
    assert f"{program} web1" in problems["unit_helper_unknown"].what


@pytest.mark.parametrize(
    ("place", "lines"), [("/run/vmops-test-disks", "RuntimeDirectory=vmops-test-disks"), ("/tmp", "PrivateTmp=yes")]
)
def test_disk_that_goes_with_its_unit(make_service, place, lines, tmp_path):
    disk = Path(place, f"web1-{os.getpid()}.raw")
    lines += f"\nBindPaths={tmp_path}\nExecStartPre=/bin/sh -c 'test -f {disk} || truncate -s 1M {disk}'"
    service = make_service(service=lines, guest=with_disk(disk))
    problems = problems_of(service.guest, disk)
    assert list(problems) == ["unit_helper"]
    assert lines.split("=")[0] in problems["unit_helper"].what
    service.close()
    assert not disk.exists()


@pytest.mark.parametrize(
    ("restart", "found"), [("always", True), ("on-success", True), ("on-failure", False), ("no", False)]
)
def test_restart_without_a_guard(make_service, restart, found):
    service = make_service(service=f"Restart={restart}\nRestartSec=1h")
    assert problems_of(service.guest) == {}
    assert ("unit_restarts" in problems_of(service.guest, guarded=False)) == found
    service.guest.qmp("quit")
    # What systemd makes of it.
    deadline = time.monotonic() + 20
    while service.get("SubState") not in ("auto-restart", "dead"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert (service.get("SubState") == "auto-restart") == found


def test_restart_of_a_unit_whose_script_waits_for_qemu(make_service, disk, tmp_path):
    script = tmp_path / "start-vm"
    service = make_service(
        start=False,
        service=f"Restart=on-failure\nRestartSec=1h\nExecStopPost=/bin/rm -f {disk}",
        command=str(script),
        guest=with_disk(disk),
    )
    script.write_text(f"#!/bin/sh\n{quoted(service.guest.argv())}\nexit 0\n")
    script.chmod(0o755)
    service.start()
    problems = problems_of(service.guest, disk, guarded=False)
    assert sorted(problems) == ["supervisor_unknown", "unit_helper", "unit_restarts"]
    assert problems["unit_restarts"].blocks


def test_unit_that_runs_others_beside_a_vm(make_guest, tmp_path):
    """What its main process does not wait for does not end it."""
    guest = make_guest(start=False)
    guest.prepare()
    script = guest.workdir / "start-vms"
    script.write_text(f"#!/bin/sh\n{quoted([*guest.argv(), '-daemonize'])}\nexec sleep 1000\n")
    script.chmod(0o755)
    name = f"vmops-test-{os.getpid()}-others.service"
    path = Path("/run/systemd/system", name)
    path.write_text(f"[Service]\nRestart=always\nExecStart={script}\nExecStopPost=/bin/rm -rf {tmp_path}/x\n")
    try:
        systemctl("daemon-reload")
        systemctl("start", name)
        guest.wait_restarted()
        guest.wait_for_counter()
        assert problems_of(guest, guarded=False) == {}
    finally:
        systemctl("stop", name)
        path.unlink()
        systemctl("daemon-reload")


@pytest.mark.parametrize(
    ("prefix", "lines", "blocks"),
    [("/usr/bin/nice -n 0", "PrivateNetwork=yes", None), ("/usr/bin/unshare -n", "", True)],
)
def test_network_namespace_that_a_program_of_the_unit_makes(make_service, prefix, lines, blocks):
    """It becomes QEMU: a restore executes QEMU in its place, in the namespace of the unit."""
    service = make_service(start=False, service=lines, guest={"extra_args": ["-nic", "user"]})
    service.fragment.write_text(service.fragment.read_text().replace("ExecStart=", f"ExecStart={prefix} "))
    systemctl("daemon-reload")
    service.start()
    problem = problems_of(service.guest).get("network_namespace")
    assert (problem.blocks if problem else None) == blocks


def test_qemu_of_a_restore_has_all_that_the_next_one_gets(make_guest, image, save, restore):
    """In a transient unit: what systemd gives it is nobody's own setting."""
    guest = make_guest()
    save(name=VM, path=str(image))
    restore(name=VM, path=str(image))
    guest.wait_restarted()
    assert problems_of(guest) == {}


def test_console_of_a_unit_keeps_its_history(make_service, image, save, restore, tmp_path):
    log = tmp_path / "console"
    service = make_service(guest={"extra_args": ["-serial", f"file:{log}"]})
    continuity = Continuity(service.guest)
    log.write_text("what it had said\n")
    for _time in range(2):
        save(name=VM, path=str(image))
        restore(name=VM, path=str(image))
        continuity.check()
    assert log.read_text().startswith("what it had said\n")


# --- the unit's own words, and its user ---


def rewrite(pid: int, old: str, new: str) -> None:
    """Have a process say another word of the same length of itself, as one that was taken over can."""
    before, after = (f"\0{word}\0".encode() for word in (old, new))
    words = Path(f"/proc/{pid}/cmdline").read_bytes()
    assert (len(before), words.count(before)) == (len(after), 1)
    start = int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[45])  # arg_start
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        memory.seek(start + words.index(before))
        memory.write(after)


def blocking_kinds(result) -> list[str]:
    return [problem["kind"] for problem in result["problems"] if problem["blocks"]]


def test_words_that_qemu_has_forged(make_service, image, save, run_module, restore):
    """Found before the save; and where it was saved all the same, they are not what the unit starts."""
    room = "name=opt/room,string=abcdef"
    service = make_service(guest={"extra_args": ["-fw_cfg", room]})
    continuity = Continuity(service.guest)
    rewrite(service.guest.pid, room, room.replace("abcdef", "forged"))
    refused = run_module("qemu_save", name=VM, path=str(image))
    assert refused["error"] == "NotRestorableError"
    assert blocking_kinds(refused) == ["unit_changed"]
    assert "-fw_cfg" in refused["msg"]
    assert service.name in refused["cure"]
    rewrite(service.guest.pid, room.replace("abcdef", "forged"), room)
    save(name=VM, path=str(image))
    pristine = image.read_bytes()
    changed = pristine.replace(b">-fw_cfg</vmops:argument>", b">-XX_cfg</vmops:argument>", 1)
    assert changed != pristine
    image.write_bytes(without_record_checksum(changed))
    assert run_module("qemu_restore", name=VM, path=str(image))["error"] == "NotVouchedError"
    # As one who has saved it before that was found out.
    assert run_module("qemu_save_image", path=str(image), vouch=True)["changed"]
    words = argv_of(restore(name=VM, path=str(image))["vm"]["pid"])
    assert "-fw_cfg" in words
    assert "-XX_cfg" not in words
    continuity.check()


def test_unit_that_was_changed_since_its_start(make_service, image, save, run_module, restore):
    service = make_service()
    continuity = Continuity(service.guest)
    text = service.fragment.read_text()
    changed = text.replace('"-m" "64"', '"-m" "96"')
    service.fragment.write_text(changed)
    systemctl("daemon-reload")
    refused = run_module("qemu_save", name=VM, path=str(image))
    assert blocking_kinds(refused) == ["unit_changed"]
    assert "-m in the place of -m" in refused["msg"]
    service.fragment.write_text(text)
    systemctl("daemon-reload")
    save(name=VM, path=str(image))
    service.fragment.write_text(changed)
    systemctl("daemon-reload")
    result = run_module("qemu_restore", name=VM, path=str(image))
    assert result["error"] == "LaunchError"
    assert "another command now" in result["msg"]
    assert service.changes() == [guard_of(service)]
    service.fragment.write_text(text)
    systemctl("daemon-reload")
    restore(name=VM, path=str(image))
    continuity.check()


def test_variables_are_the_units_own(make_service, image, save, restore, run_module, tmp_path):
    """systemd expands them again; they are compared as they are now."""
    file = tmp_path / "variables"
    file.write_text("MORE=-no-reboot -no-shutdown\n")
    service = make_service(start=False, service=f"Environment=MEMORY=64 ODD='a b$$c'\nEnvironmentFile={file}")
    text = service.fragment.read_text().replace(
        '"-m" "64"', '"-m" ${MEMORY} $MORE $UNSET -fw_cfg name=opt/o,string=${ODD}$$x%%'
    )
    service.fragment.write_text(text)
    systemctl("daemon-reload")
    service.start()
    words = argv_of(service.guest.pid)
    assert "-no-shutdown" in words
    assert "name=opt/o,string=a b$$c$x%" in words
    continuity = Continuity(service.guest)
    for _time in range(2):
        saved = save(name=VM, path=str(image))
        assert "warnings" not in saved
        restored = argv_of(restore(name=VM, path=str(image))["vm"]["pid"])
        assert restored[: len(words)] == words
    continuity.check()
    service.fragment.write_text(text.replace("MEMORY=64", "MEMORY=96"))
    systemctl("daemon-reload")
    assert blocking_kinds(run_module("qemu_save", name=VM, path=str(image))) == ["unit_changed"]


def test_start_option_in_a_variable(make_service, image, run_module):
    service = make_service(start=False, service="Environment=MORE=-S")
    service.fragment.write_text(service.fragment.read_text().replace('"-m" "64"', '"-m" "64" $MORE'))
    systemctl("daemon-reload")
    systemctl("start", service.name)
    service.guest.wait_restarted()
    assert blocking_kinds(run_module("qemu_save", name=VM, path=str(image))) == ["unit_command_unknown"]


def test_script_that_gives_rights_up(make_service, image, save, restore):
    """A restore executes QEMU in its place, by its own words, as the user and with the rights that it has now."""
    service = make_service(start=False)
    drop = "/usr/bin/setpriv --reuid=nobody --regid=nogroup --clear-groups --no-new-privs"
    service.fragment.write_text(service.fragment.read_text().replace("ExecStart=", f"ExecStart={drop} "))
    systemctl("daemon-reload")
    for place in service.guest.workdir, *service.guest.workdir.iterdir(), service.guest.qmp_socket.parent:
        os.chown(place, 65534, 65534)
    service.start()
    continuity = Continuity(service.guest)
    save(name=VM, path=str(image))
    restored = restore(name=VM, path=str(image))
    status = Path(f"/proc/{restored['vm']['pid']}/status").read_text()
    assert restored["unit"] == service.name
    assert "Uid:\t65534\t65534\t65534\t65534" in status
    assert "NoNewPrivs:\t1" in status
    continuity.check()


def test_script_that_drops_the_units_capabilities(make_service, image, save, restore):
    service = make_service(start=False, service="User=nobody\nAmbientCapabilities=CAP_NET_RAW CAP_CHOWN")
    drop = "/usr/bin/setpriv --inh-caps=-net_raw --ambient-caps=-net_raw"
    service.fragment.write_text(service.fragment.read_text().replace("ExecStart=", f"ExecStart={drop} "))
    systemctl("daemon-reload")
    for place in service.guest.workdir, *service.guest.workdir.iterdir(), service.guest.qmp_socket.parent:
        os.chown(place, 65534, 65534)
    service.start()
    save(name=VM, path=str(image))
    status = Path(f"/proc/{restore(name=VM, path=str(image))['vm']['pid']}/status").read_text()
    assert "CapEff:\t0000000000000001\n" in status


def test_script_that_becomes_another_user_than_the_units(make_service, image, run_module):
    service = make_service(start=False, service="User=daemon\nAmbientCapabilities=CAP_SETUID CAP_SETGID")
    drop = "/usr/bin/setpriv --reuid=nobody --regid=nogroup --clear-groups"
    service.fragment.write_text(service.fragment.read_text().replace("ExecStart=", f"ExecStart={drop} "))
    systemctl("daemon-reload")
    for place in service.guest.workdir, *service.guest.workdir.iterdir(), service.guest.qmp_socket.parent:
        os.chown(place, 65534, 65534)
    service.start()
    refused = run_module("qemu_save", name=VM, path=str(image))
    assert "unit_user" in blocking_kinds(refused)
    assert "daemon" in refused["msg"]


def test_qemu_of_root_that_gives_root_up_in_its_unit(make_service, image, save, restore):
    """The words are the unit's, so root may run them: QEMU opens what is root's, and becomes nobody as before."""
    service = make_service(guest={"extra_args": ["-run-with", "user=nobody"]})
    assert os.stat(f"/proc/{service.guest.pid}").st_uid == 65534
    continuity = Continuity(service.guest)
    save(name=VM, path=str(image))
    restored = restore(name=VM, path=str(image))
    assert os.stat(f"/proc/{restored['vm']['pid']}").st_uid == 65534
    assert "user=nobody" in argv_of(restored["vm"]["pid"])
    continuity.check()


def test_hardened_unit_with_a_script(make_service, image, save, restore, tmp_path):
    """What the unit sets is set again, filters and capabilities among it."""
    script = tmp_path / "start-vm"
    service = make_service(
        start=False,
        service="NoNewPrivileges=yes\nRestrictRealtime=yes\nCapabilityBoundingSet=CAP_DAC_OVERRIDE CAP_FOWNER",
        command=str(script),
    )
    script.write_text(f"#!/bin/sh\nexec {quoted(service.guest.argv())}\n")
    script.chmod(0o755)
    service.start()
    before = Path(f"/proc/{service.guest.pid}/status").read_text()
    save(name=VM, path=str(image))
    after = Path(f"/proc/{restore(name=VM, path=str(image))['vm']['pid']}/status").read_text()
    for key in ("CapPrm", "CapBnd", "NoNewPrivs", "Seccomp_filters"):
        lines = [next(line for line in text.splitlines() if line.startswith(f"{key}:")) for text in (before, after)]
        assert lines[0] == lines[1]


# --- no unit of its own ---


def test_started_by_hand_goes_into_a_transient_unit(guest, image, save, restore):
    continuity = Continuity(guest)
    saved = save(name=VM, path=str(image))
    assert saved["launch"]["how"] == "command"
    restored = restore(name=VM, path=str(image))
    pid = restored["vm"]["pid"]
    unit = restored["unit"]
    assert unit == f"vmops-qemu-{systemd.escape_unit_name(VM)}.service" == unit_of(pid)
    assert Path(f"/proc/{pid}/cgroup").read_text() != Path("/proc/self/cgroup").read_text()
    assert os.readlink(f"/proc/{pid}/fd/2") == f"{image}.log"
    assert (os.stat(f"{image}.log").st_mode & 0o777) == 0o600
    environment = Path(f"/proc/{pid}/environ").read_text().split("\0")
    assert "HOME" not in {entry.split("=")[0] for entry in environment if entry}
    assert "LANG=C.UTF-8" in environment
    continuity.check()
    # Gone with its QEMU: not what starts the VM the next time.
    saved = save(name=VM, path=str(image))
    assert saved["launch"]["how"] == "command"
    assert "transient" in saved["launch"]["reason"]
    assert not Path(f"/etc/systemd/system/{unit}.d").exists()
    assert restore(name=VM, path=str(image))["unit"] == unit
    continuity.check()
    os.kill(guest.pid, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while systemctl("show", "--property=LoadState", "--value", unit) != "not-found":
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("account", [True, False])
def test_command_of_another_user(make_guest, image, save, restore, account):
    """Also one without an account, whom systemd itself would not take."""
    uid, gid = (1, 2) if account else (12345, 12346)
    guest = make_guest(start=False)
    guest.prepare()
    for place in guest.workdir, *guest.workdir.parents[:3]:
        place.chmod(0o755)
    for place in guest.workdir, guest.qmp_socket.parent:
        os.chown(place, uid, gid)
    as_user = ["setpriv", "--reuid", str(uid), "--regid", str(gid), "--clear-groups"]
    process = subprocess.Popen([*as_user, *guest.argv()], cwd=guest.workdir, stdin=subprocess.DEVNULL)
    guest.wait_restarted()
    guest.wait_for_counter()
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    process.wait()
    restored = restore(name=VM, path=str(image))
    owner = os.stat(f"/proc/{restored['vm']['pid']}")
    assert (owner.st_uid, owner.st_gid) == (uid, gid)
    assert restored["unit"].startswith("vmops-qemu-")
    continuity.check()


def test_transient_unit_whose_name_is_taken(make_guest, image, save, restore):
    continuity = Continuity(make_guest())
    save(name=VM, path=str(image))
    name = f"vmops-qemu-{systemd.escape_unit_name(VM)}.service"
    subprocess.run(["systemd-run", "--quiet", "--collect", f"--unit={name}", "sleep", "1000"], check=True)
    try:
        restored = restore(name=VM, path=str(image))
        assert restored["unit"] != name
        assert restored["unit"].startswith(name[: -len(".service")])
        continuity.check()
    finally:
        systemctl("stop", name)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda argv: [*argv, "-no-such-option"], "no-such-option"),
        (lambda argv: ["/no/such/qemu", *argv[1:]], "could not be started"),
        (lambda argv: ["/etc/passwd", *argv[1:]], "could not be started"),
    ],
    ids=["option", "program", "no-program"],
)
def test_command_that_fails_in_a_transient_unit(guest, image, save, run_module, change, said):
    save(name=VM, path=str(image))
    result = run_module("qemu_restore", path=str(image), launch="command", command=change(guest.argv()))
    assert result["error"] == "LaunchError"
    assert said in result["msg"]
    assert image.exists()
    assert "vmops-qemu-" not in systemctl("list-units", "--all", "--plain", f"vmops-qemu-*{os.getpid()}*")


def test_vm_that_a_service_starts_among_others(make_guest, image, save, restore):
    """Not its main process: it is started by its command line, and the unit is not touched."""
    guest = make_guest(start=False)
    guest.prepare()
    script = guest.workdir / "start-vms"
    script.write_text(f"#!/bin/sh\n{quoted([*guest.argv(), '-daemonize'])}\n")
    script.chmod(0o755)
    name = f"vmops-test-{os.getpid()}-all.service"
    path = Path("/run/systemd/system", name)
    path.write_text(f"[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart={script}\n")
    try:
        systemctl("daemon-reload")
        systemctl("start", name)
        guest.wait_restarted()
        guest.wait_for_counter()
        continuity = Continuity(guest)
        saved = save(name=VM, path=str(image))
        assert saved["launch"] == {"how": "command", "unit": None, "reason": f"it is not the main process of {name}"}
        assert name in str(saved["warnings"])
        assert not Path(f"/etc/systemd/system/{name}.d").exists()
        assert restore(name=VM, path=str(image))["unit"].startswith("vmops-qemu-")
        continuity.check()
    finally:
        systemctl("stop", name)
        path.unlink()
        systemctl("daemon-reload")


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


def test_log_with_an_odd_path(guest, save, restore, tmp_path):
    continuity = Continuity(guest)
    directory = tmp_path / "sp ace %i $UNSET \"q\" 'a'"
    directory.mkdir(mode=0o700)
    image = directory / "web1.save"
    save(name=VM, path=str(image))
    pid = restore(name=VM, path=str(image))["vm"]["pid"]
    assert os.readlink(f"/proc/{pid}/fd/2") == f"{image}.log"
    continuity.check()


# --- what is quoted arrives ---

_DUMP = "import json, os, sys; json.dump([os.fsencode(w).hex() for w in sys.argv[1:]], open(sys.argv[1], 'w'))"


def odd_words(count: int, binary: bool) -> list[str]:
    """Words of what means something to somebody; with C(binary) of all bytes but NUL."""
    rng = random.Random(4711)
    special = ["%", "$", '"', "'", "\\", ";", "#", "{", "}", "[", "]", "@", "!", "-", "|", "=", " ", "\t", "\n", "\r"]
    special += ["\x01", "\x7f", "\x85", "\xa0", "é☃", "%i", "$HOME", "${A}", "\\x41", "$$", "%%"]
    special += [bytes([byte]).decode("utf-8", "surrogateescape") for byte in range(0x80, 0x100)] if binary else []
    words = ["", ";", "%", "$", "$$", "${A}", "\\", "%%", "-", "#", " ", "a;b", "\\;", "\\x41", "~", "a" * 5000]
    for _number in range(count):
        pieces = [
            rng.choice(special) if rng.random() < 0.7 else chr(rng.randrange(1, 128)) for _n in range(rng.randrange(12))
        ]
        # As an argument of a command would be read.
        words.append(os.fsdecode(os.fsencode("".join(pieces))))
    return words


def test_quoted_words_arrive_in_a_unit(tmp_path):
    words = odd_words(400, binary=True)
    name = f"vmops-test-{os.getpid()}-quote.service"
    path = Path("/run/systemd/system", name)
    result = tmp_path / "words"
    command = " ".join(systemd.quote_word(word) for word in [sys.executable, "-c", _DUMP, str(result), *words])
    path.write_text(f"[Service]\nType=oneshot\nExecStart={command}\n")
    try:
        systemctl("daemon-reload")
        systemctl("start", name)
    finally:
        path.unlink()
        systemctl("daemon-reload")
    arrived = json.loads(result.read_text())[1:]
    assert arrived == [word.encode("utf-8", "surrogateescape").hex() for word in words]
    print(f"{len(words)} words arrived")


def test_words_arrive_in_a_transient_unit(tmp_path):
    words = odd_words(400, binary=False)
    result = tmp_path / "words"
    how = Launch(argv=(sys.executable, "-c", _DUMP, str(result), *words), cwd=str(tmp_path))

    async def run() -> None:
        launched = LaunchedTransientUnit(how, str(tmp_path / "log"), f"vmops test {os.getpid()}")
        await launched.start()
        deadline = time.monotonic() + 20
        while not await launched.ended():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        assert await launched.stderr() == ""
        await launched.end()

    asyncio.run(run())
    arrived = json.loads(result.read_text())[1:]
    assert arrived == [word.encode("utf-8", "surrogateescape").hex() for word in words]


# --- someone else starts it ---


def test_attach_waits_for_the_unit_that_someone_else_starts(make_service, image, save, start_module):
    service = make_service()
    continuity = Continuity(service.guest)
    save(name=VM, path=str(image), cold_boot_guard=False)
    run = start_module("qemu_restore", name=VM, path=str(image), launch="attach", attach_timeout=30)
    time.sleep(2)
    text = service.fragment.read_text()
    service.fragment.write_text(text.replace(quoted(service.guest.argv()), quoted(service.guest.argv(incoming=True))))
    systemctl("daemon-reload")
    systemctl("start", service.name)
    result = run.result()
    assert result["unit"] == service.name, result
    assert not result["launched"]
    continuity.check()


def test_monitor_is_there(make_service):
    """The guests of these tests have a second monitor."""
    service = make_service()
    with Monitor(service.guest.observer_socket) as monitor:
        assert monitor.execute("query-name")["name"] == VM
