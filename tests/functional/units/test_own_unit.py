# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A VM that a unit of its own runs is started again by this unit, as the unit says now."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import systemd

from support import Monitor, find_qemu_pids
from support.module_run import check_error
from support.observe import VM, Continuity
from support.process import read_argv
from support.units import ALWAYS, UNAVAILABLE, known_as, of_root, quoted, systemctl

pytestmark = pytest.mark.skipif(bool(UNAVAILABLE), reason=UNAVAILABLE)


def test_saved_and_restored_by_its_unit(make_service, image, save, restore):
    service = make_service(service=ALWAYS)
    continuity = Continuity(service.guest)
    saved = save(name=VM, path=str(image))
    assert saved["launch"] == {"how": "unit", "unit": service.known_as, "reason": ""}
    assert "warnings" not in saved
    assert service.changes() == [service.guard]
    restored = restore(name=VM, path=str(image))
    assert restored["launched"]
    assert restored["unit"] == service.known_as == systemd.unit_of_process(restored["vm"]["pid"])
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
    service.kill_qemu()
    service.guest.wait_restarted()
    deadline = time.monotonic() + 20
    while service.guest.boots() < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_unit_that_may_not_have_the_memory(make_service, image, save, restore, run_module):
    """Its limit is less than what the image holds: the guest would be ended while it is loaded."""
    service = make_service(guest={"memory_mib": 256, "block_mib": 100})
    continuity = Continuity(service.guest)
    save(name=VM, path=str(image))
    text = service.fragment.read_text()
    service.fragment.write_text(text.replace("[Service]", "[Service]\nMemoryMax=90M", 1))
    systemctl("daemon-reload")
    for check in (True, False):
        result = run_module("qemu_restore", name=VM, path=str(image), check=check)
        check_error(result, "HostMemoryError", service.name, "90 MiB", guest="saved")
        assert find_qemu_pids(VM) == []
    service.fragment.write_text(text)
    systemctl("daemon-reload")
    restore(name=VM, path=str(image))
    continuity.check()


def test_unit_with_an_escaped_name(make_service, image, save, restore):
    service = make_service(instance=systemd.escape_unit_name("db-1 é"))
    assert "\\x2d" in service.name
    continuity = Continuity(service.guest)
    save(name=VM, path=str(image))
    assert service.changes() == [service.guard]
    assert restore(name=VM, path=str(image))["unit"] == service.known_as
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
    assert restore(name=VM, path=str(image))["unit"] == service.known_as
    continuity.check()


@pytest.mark.parametrize("pid_file", [False, True])
def test_forking_service_is_up_when_qemu_is(make_service, image, save, restore, pid_file, tmp_path):
    """What the unit does after its start (``ExecStartPost=``) may need what QEMU has made."""
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
        assert restored["unit"] == service.known_as
        assert "-daemonize" in read_argv(restored["vm"]["pid"])
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
    assert restored["unit"] == service.known_as
    assert os.readlink(f"/proc/{restored['vm']['pid']}/cwd") == "/"
    time.sleep(11)
    assert service.get("ActiveState") == "active"
    continuity.check()


@of_root
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


@of_root
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
    assert service.changes() == [service.guard, str(own / "zzzz.conf")]
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
    assert service.changes() == [service.guard]
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
    assert read_argv(service.guest.pid) == argv
    continuity = Continuity(service.guest)
    save(name=VM, path=str(image))
    pid = restore(name=VM, path=str(image))["vm"]["pid"]
    restored = read_argv(pid)
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
    assert saved["launch"] == {"how": "unit", "unit": service.known_as, "reason": ""}
    assert restore(name=VM, path=str(image))["unit"] == service.known_as
    continuity.check()


def test_unit_that_runs_something_else_is_left_alone(make_service, image, save, run_module):
    service = make_service()
    save(name=VM, path=str(image))
    service.fragment.write_text("[Service]\nExecStart=/bin/sleep 1000\n")
    Path(service.guard).unlink()
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
    assert restored["unit"] == known_as(f"vmops-qemu-{systemd.escape_unit_name(VM)}.service")
    assert service.changes() == []
    continuity.check()


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
    assert result["unit"] == service.known_as, result
    assert not result["launched"]
    continuity.check()


def test_monitor_is_there(make_service):
    """The guests of these tests have a second monitor."""
    service = make_service()
    with Monitor(service.guest.observer_socket) as monitor:
        assert monitor.execute("query-name")["name"] == VM


def test_virtual_cpu_on_a_cpu_of_its_own(make_service, image, save, restore):
    """As no unit can say: it is recorded with the VM."""
    cpu = min(os.sched_getaffinity(0))
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one CPU")
    guest = make_service(service="Nice=3").guest
    (thread,) = (entry["thread-id"] for entry in guest.qmp("query-cpus-fast"))
    os.sched_setaffinity(thread, {cpu})
    continuity = Continuity(guest)
    saved = save(name=VM, path=str(image))
    assert saved["problems"] == []
    restored = restore(name=VM, path=str(image))
    continuity.check()
    assert not restored.get("warnings")
    (thread,) = (entry["thread-id"] for entry in guest.qmp("query-cpus-fast"))
    assert os.sched_getaffinity(thread) == {cpu}
    assert os.sched_getaffinity(guest.pid) != {cpu}
    assert os.getpriority(os.PRIO_PROCESS, guest.pid) == 3


@of_root
def test_unit_that_starts_it_in_a_network_namespace(make_service, image, save, restore):
    """By programs that become QEMU, in whose place a restore executes it."""
    place = Path(f"/run/vmops-test-{os.getpid()}")
    place.touch()
    subprocess.run(["unshare", f"--net={place}", "true"], check=True)
    try:
        service = make_service(start=False, guest={"extra_args": ["-nic", "user"]})
        prefix = f"/usr/bin/nsenter --net={place} /usr/bin/nice -n 4 "
        service.fragment.write_text(service.fragment.read_text().replace("ExecStart=", f"ExecStart={prefix}"))
        systemctl("daemon-reload")
        service.start()
        guest = service.guest
        continuity = Continuity(guest)
        network, nice = os.readlink(f"/proc/{guest.pid}/ns/net"), os.getpriority(os.PRIO_PROCESS, guest.pid)
        for _time in range(2):
            saved = save(name=VM, path=str(image))
            assert saved["problems"] == []
            assert restore(name=VM, path=str(image))["unit"] == service.name
            continuity.check()
            assert os.readlink(f"/proc/{guest.pid}/ns/net") == network == f"net:[{place.stat().st_ino}]"
            assert os.getpriority(os.PRIO_PROCESS, guest.pid) == nice
        guest.end()
    finally:
        subprocess.run(["umount", str(place)], check=True)
        place.unlink()
