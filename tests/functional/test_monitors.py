# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Every monitor that a QEMU opens is tried: the pretty ones, and those beside one that an agent holds for good."""

from __future__ import annotations

import time

import pytest

from support.boot_program import said
from support.observe import VM, Continuity

#: Seconds that are lost to a monitor that somebody holds, with much room for a busy machine.
SOME = 12.0


MONITORS = [
    ["-qmp", "unix:{},server=on,wait=off"],
    ["-qmp-pretty", "unix:{},server=on,wait=off"],
    ["-mon", "second,mode=control,pretty=on", "-chardev", "socket,id=second,path={},server=on,wait=off"],
]


@pytest.mark.parametrize("words", MONITORS, ids=["qmp", "qmp-pretty", "mon"])
def test_second_monitor_serves_where_an_agent_holds_the_first(
    make_guest, image, tmp_path, agent, save, restore, run_module, words
):
    second = tmp_path / "second.sock"
    guest = make_guest(extra_args=[word.format(second) for word in words])
    assert agent(guest.qmp_socket).connected.wait(10)
    continuity = Continuity(guest)
    (vm,) = run_module("qemu_vm_info", name=[VM])["vms"]
    assert (vm["monitor"], vm["qmp_socket"]) == ("answers", str(second))
    began = time.monotonic()
    save(name=VM, path=str(image))
    restore(name=VM, path=str(image))
    assert time.monotonic() - began < 2 * SOME
    continuity.check()


def test_boot_restore_takes_the_second_where_an_agent_is_faster(make_guest, image, tmp_path, agent, save, run_program):
    guest = make_guest(extra_args=["-qmp-pretty", f"unix:{tmp_path / 'second.sock'},server=on,wait=off"])
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    agent(guest.qmp_socket)
    assert f"{VM} was restored from {image}" in said(run_program(), 0)
    continuity.check()


def test_pretty_monitor_alone(start_paused, image, save, run_module, tmp_path):
    """With what it says unasked."""
    place = tmp_path / "pretty.sock"
    qemu = start_paused("-name", f"pretty-{VM}", "-qmp-pretty", f"unix:{place},server=on,wait=off")
    assert save(qmp_socket=str(place), path=str(image), after_save="resume")["changed"]
    assert qemu.pid in {vm["pid"] for vm in run_module("qemu_vm_info", name=["paused", f"pretty-{VM}"])["vms"]}
