# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A guest goes on only with the CPU that it found when it booted: through the modules."""

from __future__ import annotations

import asyncio
import hashlib

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.cpu import Cpu, read_cpu
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.monitor import Monitor

from support.changed_record import blank_element, change_record
from support.module_run import check_error
from support.observe import VM, Continuity, run_state, settings


def attach(guest):
    return {"launch": "attach", "qmp_socket": str(guest.qmp_socket)}


def cpu_of(guest, accelerator: str = "tcg") -> Cpu:
    async def read() -> Cpu:
        async with await Monitor.connect(str(guest.observer_socket)) as monitor:
            return await read_cpu(monitor, "x86_64", accelerator)

    return asyncio.run(read())


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("-cpu max", "-cpu qemu64", ["it lacks", "avx2", "its model was 6, and is 107 now"]),
        ("-cpu max", "-cpu max,-avx2,-bmi1", ["it lacks bmi1, avx2"]),
        ("-cpu Nehalem", "-cpu Opteron_G1", ["its vendor was GenuineIntel, and is AuthenticAMD now"]),
        ("-cpu max", "-cpu max,phys-bits=36", ["had 40 bits, and have 36 now"]),
        ("-smp 2,cores=2", "-smp 2,sockets=2", ["there were 2 cores", "there are 2 sockets"]),
    ],
    ids=["max-qemu64", "features", "vendor", "address", "topology"],
)
def test_other_cpu(make_guest, image, save, run_module, restore, before, after, said):
    guest = make_guest(extra_args=before.split(), observer=True)
    continuity = Continuity(guest)
    save(name=VM, path=str(image), format="raw")
    content = hashlib.sha256(image.read_bytes()).digest()
    guest.extra_args = after.split()
    guest.start(incoming=True)
    found = settings(guest)
    for check in (True, False):
        result = run_module("qemu_restore", name=VM, path=str(image), check=check, **attach(guest))
        check_error(result, "MismatchError", *said, "cpu: ignore")
    assert run_state(guest) == "inmigrate"
    assert settings(guest) == found
    assert hashlib.sha256(image.read_bytes()).digest() == content
    guest.end()
    assert "warnings" not in restore(name=VM, path=str(image))
    continuity.check()


def test_operator_who_insists(make_guest, image, save, restore):
    guest = make_guest(extra_args=["-cpu", "max"])
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    guest.extra_args = ["-cpu", "max,-avx2"]
    guest.start(incoming=True)
    assert "warnings" not in restore(name=VM, path=str(image), cpu="ignore", **attach(guest))
    continuity.check()


def test_cpu_that_has_more(make_guest, image, save, run_module, restore):
    guest = make_guest(extra_args=["-cpu", "max,-avx2"])
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    guest.extra_args = ["-cpu", "max"]
    guest.start(incoming=True)
    cpu = run_module("qemu_save_image_info", path=str(image))["image"]["cpu"]
    assert (cpu["type"], cpu["accelerator"]) == ("max-x86_64-cpu", "tcg")
    assert "avx" in cpu["features"]
    assert "avx2" not in cpu["features"]
    (warning,) = restore(name=VM, path=str(image), **attach(guest))["warnings"]
    assert "it has avx2, too" in str(warning)
    continuity.check()


def test_command_with_another_cpu(make_guest, image, save, run_module, restore):
    """The QEMU that was started for it is ended, and the guest is where it was."""
    guest = make_guest(extra_args=["-cpu", "max"])
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    command = [*guest.argv()[:-1], "max,-avx2"]
    result = run_module("qemu_restore", path=str(image), launch="command", command=command)
    check_error(result, "MismatchError", "it lacks avx2", guest="saved")
    assert image.exists()
    assert not guest.adopt_restarted()
    restore(name=VM, path=str(image))
    continuity.check()


def test_image_without_a_record_of_the_cpu(guest, image, save, run_module, restore):
    """As one of libvirt's: restored, and said."""
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    change_record(image, run_module, lambda data: blank_element(data, b"vmops:cpu"))
    (warning,) = restore(name=VM, path=str(image))["warnings"]
    assert "whether the CPU" in str(warning)
    assert "does not record it" in str(warning)
    continuity.check()


def test_record_that_makes_no_sense(guest, image, save, run_module, restore):
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    change_record(image, run_module, lambda data: data.replace(b'"accelerator":"tcg"', b'"accelerator":12345', 1))
    result = run_module("qemu_restore", name=VM, path=str(image))
    check_error(result, "ImageFormatError", "record of the VM's CPU", "cpu: ignore")
    restore(name=VM, path=str(image), cpu="ignore")
    continuity.check()


def test_what_is_known_of_a_cpu(make_guest):
    """And that nothing of it changes while the guest boots, which switches much of it on."""
    guest = make_guest(extra_args=["-cpu", "Haswell,hv-relaxed", "-smp", "2,cores=2"], observer=True)
    booted = cpu_of(guest)
    assert (booted.type, booted.vendor, booted.family, booted.model) == ("Haswell-x86_64-cpu", "GenuineIntel", 6, 60)
    assert booted.topology == {"cores": 2, "maxcpus": 2}
    assert booted.hyperv is None, "QEMU does nothing of it without KVM"
    assert cpu_of(guest, "kvm").hyperv == ["hv-relaxed"]
    guest.end()
    guest.start(incoming=True)
    assert cpu_of(guest) == booted
    assert Cpu.parse(booted.dump()) == booted
