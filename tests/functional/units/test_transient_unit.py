# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A VM that no unit of its own starts is restored in a transient unit."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import systemd

from support.observe import VM, Continuity
from support.units import (
    BY_USER,
    OF_USER,
    PERSISTENT,
    UNAVAILABLE,
    UNITS,
    known_as,
    of_root,
    quoted,
    systemctl,
)

pytestmark = pytest.mark.skipif(bool(UNAVAILABLE), reason=UNAVAILABLE)


def test_started_by_hand_goes_into_a_transient_unit(guest, image, save, restore):
    continuity = Continuity(guest)
    saved = save(name=VM, path=str(image))
    assert saved["launch"]["how"] == "command"
    restored = restore(name=VM, path=str(image))
    pid = restored["vm"]["pid"]
    unit = restored["unit"]
    assert unit == known_as(f"vmops-qemu-{systemd.escape_unit_name(VM)}.service") == systemd.unit_of_process(pid)
    assert Path(f"/proc/{pid}/cgroup").read_text() != Path("/proc/self/cgroup").read_text()
    assert os.readlink(f"/proc/{pid}/fd/2") == str(guest.stderr_log), "where it wrote before"
    assert list(image.parent.iterdir()) == []
    environment = Path(f"/proc/{pid}/environ").read_text().split("\0")
    if not BY_USER:  # a user's own systemd gives it to all that it starts
        assert "HOME" not in {entry.split("=")[0] for entry in environment if entry}
    assert "LANG=C.UTF-8" in environment
    continuity.check()
    # Gone with its QEMU: not what starts the VM the next time.
    saved = save(name=VM, path=str(image))
    assert saved["launch"]["how"] == "command"
    assert "transient" in saved["launch"]["reason"]
    assert not (PERSISTENT / f"{os.path.basename(unit)}.d").exists()
    assert restore(name=VM, path=str(image))["unit"] == unit
    continuity.check()
    os.kill(guest.pid, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while systemctl("show", "--property=LoadState", "--value", os.path.basename(unit)) != "not-found":
        assert time.monotonic() < deadline
        time.sleep(0.05)


@of_root
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
    subprocess.run(["systemd-run", *OF_USER, "--quiet", "--collect", f"--unit={name}", "sleep", "1000"], check=True)
    try:
        restored = restore(name=VM, path=str(image))
        assert restored["unit"] != known_as(name)
        assert restored["unit"].startswith(known_as(name)[: -len(".service")])
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
    path = UNITS / name
    UNITS.mkdir(parents=True, exist_ok=True)
    path.write_text(f"[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart={script}\n")
    try:
        systemctl("daemon-reload")
        systemctl("start", name)
        guest.wait_restarted()
        guest.wait_for_counter()
        continuity = Continuity(guest)
        saved = save(name=VM, path=str(image))
        assert saved["launch"] == {
            "how": "command",
            "unit": None,
            "reason": f"it is not the main process of {known_as(name)}",
        }
        assert name in str(saved["warnings"])
        assert not (PERSISTENT / f"{name}.d").exists()
        assert restore(name=VM, path=str(image))["unit"].startswith(known_as("vmops-qemu-"))
        continuity.check()
    finally:
        systemctl("stop", name)
        path.unlink()
        systemctl("daemon-reload")


def test_output_to_an_odd_path(make_guest, save, restore, image, tmp_path):
    directory = tmp_path / "sp ace %i $UNSET \"q\" 'a'"
    directory.mkdir(mode=0o700)
    guest = make_guest(start=False, workdir=directory.name)
    guest.start()
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    pid = restore(name=VM, path=str(image))["vm"]["pid"]
    assert os.readlink(f"/proc/{pid}/fd/2") == str(guest.stderr_log)
    continuity.check()


def test_output_that_went_nowhere_goes_to_the_journal(make_guest, image, save, run_module, restore):
    """Which has an end; what a QEMU says that fails is read there."""
    guest = make_guest(start=False)
    guest.prepare()
    process = subprocess.Popen(guest.argv(), cwd=guest.workdir, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    guest.wait_restarted()
    guest.wait_for_counter()
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    process.wait()
    command = [*guest.argv(), "-object", "no-such-thing,id=o"]
    failed = run_module("qemu_restore", path=str(image), launch="command", command=command)
    assert "no-such-thing" in failed["msg"]
    pid = restore(name=VM, path=str(image))["vm"]["pid"]
    assert os.readlink(f"/proc/{pid}/fd/1").startswith("socket:")
    assert list(image.parent.iterdir()) == []
    continuity.check()


def test_limits_of_a_scope(make_guest, image, save):
    """It goes with its QEMU."""
    if not Path("/sys/fs/cgroup/init.scope/memory.max").exists():
        pytest.skip("no controllers here")
    guest = make_guest(start=False)
    guest.prepare()
    command = ["systemd-run", "--quiet", "--scope", "-p", "MemoryMax=1G", "-p", "CPUQuota=150%", *guest.argv()]
    process = subprocess.Popen(command, cwd=guest.workdir, stdin=subprocess.DEVNULL)
    guest.wait_restarted()
    guest.wait_for_counter()
    saved = save(name=VM, path=str(image))
    process.wait()
    (problem,) = [problem for problem in saved["problems"] if problem["kind"] == "control_group"]
    assert not problem["blocks"]
    assert "memory.max 1073741824" in problem["what"]
    assert "cpu.max 150000 100000" in problem["what"]


def test_slice_and_what_it_may_use(make_guest, image, save, restore):
    """Of a slice that is configured, as its limits are those of a group of VMs."""
    name = f"vmops{os.getpid()}.slice"
    UNITS.mkdir(parents=True, exist_ok=True)
    path = UNITS / name
    path.write_text("[Slice]\nMemoryMax=2G\n")
    systemctl("daemon-reload")
    guest = make_guest(start=False)
    guest.prepare()
    command = ["systemd-run", *OF_USER, "--quiet", "--scope", f"--slice={name}"]
    command += ["nice", "-n", "5", "prlimit", "--nofile=1777"]
    process = subprocess.Popen([*command, *guest.argv()], cwd=guest.workdir, stdin=subprocess.DEVNULL)
    try:
        guest.wait_restarted()
        guest.wait_for_counter()
        continuity = Continuity(guest)
        limits, nice = Path(f"/proc/{guest.pid}/limits").read_text(), os.getpriority(os.PRIO_PROCESS, guest.pid)
        for _time in range(2):
            saved = save(name=VM, path=str(image))
            # A user's own systemd gives its units more of it, and who may lower it is not known.
            known = {"supervisor_unknown", *(["oom_score"] if BY_USER else [])}
            assert {problem["kind"] for problem in saved["problems"]} <= known
            restored = restore(name=VM, path=str(image))
            assert BY_USER or not restored.get("warnings")
            pid = restored["vm"]["pid"]
            # Also by a user's own systemd, whose slices are below its service.
            assert f"/{name}/vmops-qemu-" in Path(f"/proc/{pid}/cgroup").read_text()
            assert os.getpriority(os.PRIO_PROCESS, pid) == nice != os.getpriority(os.PRIO_PROCESS, 1)
            assert Path(f"/proc/{pid}/limits").read_text() == limits
            continuity.check()
        guest.end()
    finally:
        process.wait()
        path.unlink()
        systemctl("daemon-reload")
