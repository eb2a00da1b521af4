# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A restore for which the host has not the memory is refused before anything is started; the others go on."""

from __future__ import annotations

import os

import pytest

from support import find_qemu_pids
from support.module_run import check_error
from support.observe import OTHER_VM, VM, Continuity

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a process another /proc/meminfo")


@pytest.fixture
def host_with(tmp_path):
    """A host with so many MiB of memory that are free, as the prefix of a module's command."""

    def make(mib, swap=0):
        path = tmp_path / f"meminfo-{mib}"
        path.write_text(f"MemTotal: 99999999 kB\nMemAvailable: {mib * 1024} kB\nSwapFree: {swap * 1024} kB\n")
        return ["unshare", "--mount", "sh", "-c", f'mount --bind {path} /proc/meminfo && exec "$@"', "sh"]

    return make


@pytest.mark.parametrize("image_format", ["sparse", "raw", "zstd"])
def test_refused(image_format, make_guest, image, save, start_module, host_with):
    """Of 512 MiB the guest has used some 100, and these count; in check mode, too."""
    guest = make_guest(memory_mib=512, block_mib=100)
    continuity = Continuity(guest)
    save(name=VM, path=str(image), format=image_format)

    def restore(mib, check):
        return start_module("qemu_restore", prefix=host_with(mib), name=VM, path=str(image), check=check).result()

    for check in (True, False):
        result = restore(90, check)
        check_error(result, "HostMemoryError", VM, "90 MiB available", "are missing", "memory: ignore", guest="saved")
        assert find_qemu_pids(VM) == []
        assert image.exists()
        enough = restore(250, check)
        assert enough["changed"], enough["msg"]
    continuity.check()


def test_swap_counts_and_the_check_can_be_left_out(make_guest, image, save, start_module, host_with):
    continuity = Continuity(make_guest(memory_mib=256, block_mib=100))
    save(name=VM, path=str(image))
    swapping = start_module(
        "qemu_restore", prefix=host_with(90, swap=200), name=VM, path=str(image), check=True
    ).result()
    assert swapping["changed"], swapping["msg"]
    result = start_module("qemu_restore", prefix=host_with(1), name=VM, path=str(image), memory="ignore").result()
    assert result["changed"], result["msg"]
    continuity.check()


def test_memory_that_is_allocated_in_advance_counts_in_full(make_guest, image, save, start_module, host_with):
    memory = ["-object", "memory-backend-ram,id=m0,size=512M,prealloc=on", "-machine", "memory-backend=m0"]
    continuity = Continuity(make_guest(memory_mib=512, block_mib=16, extra_args=memory))
    save(name=VM, path=str(image))
    options = {"name": VM, "path": str(image)}
    check_error(start_module("qemu_restore", prefix=host_with(400), **options).result(), "HostMemoryError", "544 MiB")
    assert start_module("qemu_restore", prefix=host_with(600), **options).result()["changed"]
    continuity.check()


def test_huge_pages_that_are_not_there(make_guest, image, save, run_module):
    """This host has none; the command is given anew, as no such VM could be saved here."""
    guest = make_guest(memory_mib=64)
    save(name=VM, path=str(image))
    memory = ["-object", "memory-backend-memfd,id=m0,size=64G,hugetlb=on", "-machine", "memory-backend=m0"]
    command = [*guest.argv(), *memory]
    result = run_module("qemu_restore", path=str(image), check=True, launch="command", command=command)
    check_error(result, "HostMemoryError", "65536 MiB of huge pages", guest="saved")


@pytest.mark.parametrize("check", [True, False], ids=["check", "restore"])
def test_of_several_those_come_back_that_fit(check, make_guest, image, run_module, start_module, host_with):
    guests = [make_guest(name, memory_mib=256, block_mib=100, workdir=name) for name in (VM, OTHER_VM)]
    continuities = [Continuity(guest) for guest in guests]
    directory = {"save_dir": str(image.parent), "vms": [VM, OTHER_VM]}
    saved = run_module("qemu_managed_save", **directory)
    assert not saved.get("failed"), saved["msg"]
    order = [[VM, OTHER_VM]]
    result = start_module("qemu_managed_restore", prefix=host_with(200), check=check, order=order, **directory).result()
    assert result["error"] == "HostRunError"
    states = {vm["name"]: vm for vm in result["vms"]}
    (left,) = result["failures"]
    (back,) = {VM, OTHER_VM} - {left}
    assert states[left]["error"] == "HostMemoryError"
    assert "for other VMs of this run" in states[left]["msg"]
    assert states[back]["state"] == "predicted" if check else "restored"
    if check:
        assert find_qemu_pids(VM) + find_qemu_pids(OTHER_VM) == []
        return
    again = run_module("qemu_managed_restore", **directory)
    assert not again.get("failed"), again["msg"]
    for continuity in continuities:
        continuity.check()
