# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A second start of a VM takes the names of its sockets, and ends: the VM that runs is reached all the same."""

from __future__ import annotations

import os
import socket
import subprocess

import pytest

from support.observe import VM, Continuity
from support.paused import make_disk

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root reaches a socket without a name")

#: Root that may not look into other processes.
WITHOUT_RIGHTS = ["setpriv", "--bounding-set=-sys_ptrace,-net_admin", "--inh-caps=-sys_ptrace,-net_admin"]


@pytest.fixture
def guest(make_guest, tmp_path):
    """A guest with a disk that its QEMU has locked."""
    disk = make_disk(tmp_path / "disk.qcow2", "qcow2", size="8M")
    return make_guest(extra_args=["-drive", f"file={disk},format=qcow2,if=none,id=d0"])


def start_again(guest):
    """As its runner would, in the belief that it is not running; the second QEMU ends on the disk's lock."""
    second = subprocess.run(
        guest.argv(), cwd=guest.workdir, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert second.returncode
    assert "lock" in second.stderr
    assert guest.alive()
    assert not leads_somewhere(guest)


def leads_somewhere(guest):
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(guest.qmp_socket)) == 0


@only_root
@pytest.mark.parametrize("by", ["name", "qmp_socket"])
def test_saved_and_restored(guest, image, save, restore, run_module, by):
    continuity = Continuity(guest)
    start_again(guest)
    (vm,) = run_module("qemu_vm_info", name=[VM])["vms"]
    assert (vm["monitor"], vm["run_state"]) == ("answers", "running")
    which = {"name": VM} if by == "name" else {"qmp_socket": str(guest.qmp_socket)}
    saved = save(path=str(image), **which)
    assert f"The QMP socket {guest.qmp_socket} has lost its name" in str(saved["warnings"])
    restore(path=str(image))
    continuity.check()
    assert leads_somewhere(guest), "it has its name again"


@only_root
def test_restored_and_then_started_again(guest, image, save, restore):
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    restore(name=VM, path=str(image))
    guest.wait_restarted()
    start_again(guest)
    save(name=VM, path=str(image))
    restore(name=VM, path=str(image))
    continuity.check()


@only_root
def test_path_that_is_gone(guest, image, save, restore):
    continuity = Continuity(guest)
    guest.qmp_socket.unlink()
    save(name=VM, path=str(image))
    restore(name=VM, path=str(image))
    continuity.check()


@only_root
def test_path_that_another_server_has(guest, image, save, restore):
    """Which does not speak QMP, and is not asked twice."""
    continuity = Continuity(guest)
    guest.qmp_socket.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(guest.qmp_socket))
        other.listen()
        result = save(name=VM, path=str(image), require_restorable=False)
    assert "has lost its name" in str(result["warnings"])
    restore(name=VM, path=str(image))
    continuity.check()


@only_root
def test_one_who_may_not(guest, image, start_module):
    start_again(guest)
    result = start_module("qemu_save", name=VM, path=str(image), prefix=WITHOUT_RIGHTS).result()
    assert result["error"] == "MonitorMissingError", result["msg"]
    assert "listens there all the same, on a socket that has lost its name" in result["msg"]
    assert "another one was made at its path at 20" in result["msg"]
    assert f"pid {guest.pid}" in result["msg"]
    assert "Run the task as root" in result["cure"]
    assert not image.exists()
    assert guest.alive()


def test_socket_of_nobody(guest, image, run_module):
    """There is nothing to be reached where the VM does not listen."""
    path = guest.workdir / "other.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
    result = run_module("qemu_save", qmp_socket=str(path), path=str(image))
    assert result["error"] == "MonitorMissingError", result["msg"]
    assert "lost its name" not in result["msg"]
