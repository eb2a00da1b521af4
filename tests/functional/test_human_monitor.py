# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A VM with a human monitor alone, whose QEMU opens no QMP monitor through it, is refused with what to add, and where.

What QEMU 11.1 and later do with one is in tests/versions.
"""

from __future__ import annotations

import functools
import os
import shlex
import subprocess

import pytest

from support.human import HumanGuest, HumanMonitor, free_port
from support.observe import VM, Continuity, wait_until

OPTION = f"-qmp unix:/run/{VM}.qmp,server=on,wait=off"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a VM of another user is told another directory")


@pytest.fixture
def make_human(make_guest):
    return functools.partial(make_guest, kind=HumanGuest)


@pytest.mark.parametrize("check", [False, True], ids=["save", "check"])
def test_save_is_refused_with_the_option(make_human, image, run_module, check):
    guest = make_human()
    continuity = Continuity(guest)
    result = run_module("qemu_save", check=check, name=VM, path=str(image))
    assert (result["error"], result["guest_state"]) == ("MonitorHumanError", "The guest was not touched")
    assert str(guest.human_socket) in result["msg"]
    assert f"Add {OPTION} " in result["cure"]
    assert os.listdir(image.parent) == []
    assert guest.opened() == []
    continuity.check()


def test_over_tcp(make_human, image, run_module):
    port = free_port()
    guest = make_human(monitor=["-monitor", f"telnet:127.0.0.1:{port},server=on,wait=off"], port=port)
    continuity = Continuity(guest)
    result = run_module("qemu_save", name=VM, path=str(image))
    assert result["error"] == "MonitorHumanError"
    assert OPTION in result["cure"]
    assert guest.opened() == []
    continuity.check()


def test_info_and_host_run(make_human, image, run_module):
    guest = make_human()
    continuity = Continuity(guest)
    (vm,) = run_module("qemu_vm_info", name=[VM])["vms"]
    assert (vm["monitor"], vm["qmp_socket"], vm["run_state"]) == ("none", None, None)
    assert str(guest.human_socket) in vm["reason"]
    assert OPTION in vm["reason"]
    result = run_module("qemu_managed_save", save_dir=str(image.parent), vms=[VM])
    assert result["failed"]
    assert OPTION in result["msg"]
    assert os.listdir(image.parent) == []
    continuity.check()


def test_no_monitor_at_all(make_human, image, run_module):
    guest = make_human(start=False, monitor=["-vga", "none"])
    guest.prepare()
    with subprocess.Popen(guest.argv(), cwd=guest.workdir) as process:
        try:
            wait_until(guest.boots)
            result = run_module("qemu_save", name=VM, path=str(image))
        finally:
            process.kill()
    assert result["error"] == "VmNotFoundError"
    assert f"Add {OPTION} " in result["cure"]


@pytest.mark.parametrize(
    ("script", "told"),
    [("quickemu", f'extra_args="{OPTION}" to '), ("start-web1.sh", "start-web1.sh")],
)
def test_runner_is_told_how(script, told, make_human, image, run_module, tmp_path):
    guest = make_human(start=False)
    guest.prepare()
    path = tmp_path / script
    path.write_text(f"#!/bin/bash\n{shlex.join(guest.argv())}\ntrue\n")
    path.chmod(0o755)
    with subprocess.Popen([str(path)], cwd=guest.workdir) as process:
        try:
            wait_until(guest.adopt_restarted)
            wait_until(guest.boots)
            result = run_module("qemu_save", name=VM, path=str(image))
        finally:
            guest.end()
            process.wait()
    assert OPTION in result["cure"]
    assert told in result["cure"]


def test_monitor_beside_a_qmp_server_is_left_alone(make_guest, image, save, restore, tmp_path):
    place = tmp_path / "human.sock"
    guest = make_guest(extra_args=["-monitor", f"unix:{place},server=on,wait=off"])
    continuity = Continuity(guest)
    with HumanMonitor(place):
        save(name=VM, path=str(image))
    restore(name=VM, path=str(image))
    continuity.check()


def test_muxed_monitor_is_not_written_to(make_human, image, run_module):
    """What is written there may be for the guest."""
    words = ["-chardev", "socket,id=c0,path={},server=on,wait=off,mux=on", "-mon", "c0", "-serial", "chardev:c0"]
    guest = make_human(start=False, monitor=words)
    guest.prepare()
    with subprocess.Popen(guest.argv(), cwd=guest.workdir) as process:
        try:
            wait_until(guest.boots)
            result = run_module("qemu_save", name=VM, path=str(image))
        finally:
            process.kill()
    assert result["error"] == "VmNotFoundError"
