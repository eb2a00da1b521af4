# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What of a VM's unit would make its restore wrong, and is therefore said before the save."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import read_process
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.unit import read_vm_unit
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.media import Medium, MediumFile
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.process import process_problems
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.unit import unit_problems

from support.observe import VM
from support.units import BY_USER, UNAVAILABLE, UNITS, of_root, quoted, systemctl

pytestmark = pytest.mark.skipif(bool(UNAVAILABLE), reason=UNAVAILABLE)


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


@of_root
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
    path = UNITS / name
    UNITS.mkdir(parents=True, exist_ok=True)
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


@of_root
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
    # A user's own systemd would give it more than it has, and whether that may be lowered is not known.
    assert set(problems_of(guest)) == ({"oom_score"} if BY_USER else set())
