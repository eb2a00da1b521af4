# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Every monitor that a QEMU opens is tried: the pretty ones, and those beside one that an agent holds for good."""

from __future__ import annotations

import time
from typing import Union

import pytest

from support import CounterGuest
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


class NamelessGuest(CounterGuest):
    """A guest whose QEMU has no -name: only its socket tells which it is."""

    def argv(self, incoming: Union[bool, str] = False) -> list[str]:
        argv = super().argv(incoming)
        at = argv.index("-name")
        return [*argv[:at], *argv[at + 2 :]]


def test_vm_without_a_name_is_the_process_at_its_socket(make_guest, image, save, restore):
    guest = make_guest(kind=NamelessGuest)
    continuity = Continuity(guest)
    for _round in range(2):
        saved = save(qmp_socket=str(guest.qmp_socket), path=str(image))
        assert (saved["vm"]["name"], saved["launch"]["how"]) == ("", "command")
        guest.wait_exit()
        assert not save(qmp_socket=str(guest.qmp_socket), path=str(image))["changed"]
        restored = restore(path=str(image))
        guest.adopt(restored["vm"]["pid"])
        continuity.check()
    assert not restore(qmp_socket=str(guest.qmp_socket), path=str(image))["changed"]


def test_vm_without_a_name_that_waits_at_its_socket(make_guest, image, save, restore):
    guest = make_guest(kind=NamelessGuest)
    continuity = Continuity(guest)
    save(qmp_socket=str(guest.qmp_socket), path=str(image))
    guest.start(incoming=True)
    restore(qmp_socket=str(guest.qmp_socket), path=str(image), launch="attach")
    continuity.check()


def test_vm_whose_name_is_in_a_file_is_the_process_at_its_socket(make_guest, image, save, restore, tmp_path):
    (tmp_path / "vm.cfg").write_text(f'[name]\n  guest = "{VM}"\n')
    guest = make_guest(kind=NamelessGuest, extra_args=["-readconfig", str(tmp_path / "vm.cfg")])
    continuity = Continuity(guest)
    saved = save(qmp_socket=str(guest.qmp_socket), path=str(image))
    assert (saved["vm"]["name"], saved["launch"]["how"]) == (VM, "command")
    guest.wait_exit()
    assert not save(name=VM, path=str(image))["changed"]
    guest.adopt(restore(name=VM, path=str(image))["vm"]["pid"])
    continuity.check()
