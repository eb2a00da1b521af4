# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""VMs of quickemu: it starts QEMU, and is gone; what it keeps of a VM is right again after a restore."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest
from runners.programs import program, words_of

from support import find_qemu_pids
from support.observe import VM, Continuity, wait_until
from support.process import read_argv


@pytest.fixture
def quickemu(make_guest, run_runner, tmp_path):
    """Start a VM: ``quickemu(monitor=False)``; quickemu itself is called with the words of ``quickemu.call``."""
    path = program("quickemu")
    vm = make_guest(start=False)
    vm.prepare()

    class Quickemu:
        guest = vm
        directory = tmp_path
        files = tmp_path / VM

        def call(self, *words):
            return run_runner(path, "--vm", f"{VM}.conf", "--display", "none", "--viewer", "none", *words)

        def start(self, monitor=True, settings=""):
            self.files.mkdir()
            # An empty one would be taken for one without a system.
            disk = self.files / "disk.qcow2"
            subprocess.run(
                ["qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=full", disk, "8M"], check=True
            )
            words = " ".join(words_of(vm, monitor, serial=False))
            (tmp_path / f"{VM}.conf").write_text(
                'guest_os="linux"\nboot="legacy"\ncpu_cores="1"\nram="256M"\nserial="none"\nnetwork="none"\n'
                f'disk_img="{VM}/disk.qcow2"\nextra_args="{words}"\n{settings}'
            )
            said = self.call()
            if monitor:
                vm.wait_restarted()
            return said

    return Quickemu()


def test_saved_and_restored(quickemu, image, save, restore):
    quickemu.start()
    guest = quickemu.guest
    guest.wait_for_counter()
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    restored = restore(name=VM, path=str(image))
    continuity.check()
    assert int((quickemu.files / f"{VM}.pid").read_text()) == restored["vm"]["pid"]
    assert "Already running" in quickemu.call()
    assert find_qemu_pids(VM) == [restored["vm"]["pid"]]
    assert "killed" in quickemu.call("--kill")
    guest.wait_exit()


def servers_of_tpm(place):
    """The processes that serve a TPM at this path, which quickemu has from the directory in which it is called."""
    words = {pid: read_argv(pid) for pid in (int(entry) for entry in os.listdir("/proc") if entry.isdigit())}
    return [pid for pid, argv in words.items() if argv and "swtpm" in argv[0] and f"type=unixio,path={place}" in argv]


def test_with_the_tpm_that_quickemu_starts(quickemu, image, save, restore, end_later):
    """Its swtpm ends with QEMU, and is started again for the restore."""
    if shutil.which("swtpm") is None:
        pytest.skip("no swtpm")
    quickemu.start(settings='tpm="on"\n')
    guest = quickemu.guest
    guest.wait_for_counter()
    place = f"{VM}/{VM}.swtpm-sock"
    (before,) = servers_of_tpm(place)
    end_later(before)
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    guest.wait_exit()
    wait_until(lambda: servers_of_tpm(place) == [])
    restore(name=VM, path=str(image))
    (after,) = servers_of_tpm(place)
    end_later(after)
    assert os.path.samefile(f"/proc/{after}/cwd", quickemu.directory)
    continuity.check()
    # QEMU asks the server through its socket.
    (tpm,) = guest.qmp("query-tpm")
    assert tpm["options"]["type"] == "emulator"
    # It goes there and back once more, which takes the TPM's state from the server that was started for the restore.
    save(name=VM, path=str(image))
    wait_until(lambda: servers_of_tpm(place) == [])
    restore(name=VM, path=str(image))
    end_later(servers_of_tpm(place)[0])
    continuity.check()


def test_without_a_monitor_it_is_said_where_one_goes(quickemu, image, run_module, end_later):
    quickemu.start(monitor=False)
    pid = int((quickemu.files / f"{VM}.pid").read_text())
    end_later(pid)
    result = run_module("qemu_save", name=VM, path=str(image))
    assert result["failed"]
    assert f'Add extra_args="-qmp unix:/run/{VM}.qmp,server=on,wait=off" to {VM}.conf' in result["cure"]
    (vm,) = run_module("qemu_vm_info", name=[VM])["vms"]
    assert "extra_args=" in vm["reason"]


def test_started_by_quickemu_while_it_is_saved(quickemu, image, save, run_module):
    """Nothing keeps quickemu from that; it is not taken for the saved one."""
    quickemu.start()
    quickemu.guest.wait_for_counter()
    save(name=VM, path=str(image))
    assert "Started" in quickemu.call()
    quickemu.guest.wait_restarted()
    result = run_module("qemu_restore", name=VM, path=str(image))
    assert result["error"] == "ConflictError", result["msg"]
    assert "from its disks" in result["msg"]
    assert image.exists()
