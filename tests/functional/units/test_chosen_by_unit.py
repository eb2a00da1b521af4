# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A VM that is chosen by its unit: also one without a name, which the unit then names, and several in one unit."""

from __future__ import annotations

import asyncio
import json

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._host import shutdown_program

from support.module_run import check_error
from support.observe import Continuity, run_state, wait_until
from support.process import find_qemu_pids
from support.units import UNAVAILABLE, Service, quoted, systemctl

pytestmark = pytest.mark.skipif(bool(UNAVAILABLE), reason=UNAVAILABLE)


def without_name(guest):
    """The guest's command, of whose name QEMU does not know."""
    argv = guest.argv()
    place = argv.index("-name")
    return quoted(argv[:place] + argv[place + 2 :])


@pytest.fixture
def nameless(make_guest):
    """The service of a guest without a name, whose guest looks for it by its monitor."""
    guest = make_guest(start=False, observer=True)
    type(guest).shown_name, before = property(lambda self: ""), type(guest).shown_name
    service = Service(guest, command=without_name(guest))
    service.start()
    yield service
    service.close()
    type(guest).shown_name = before


def test_by_its_unit_and_again(make_service, image, save, restore):
    service = make_service()
    continuity = Continuity(service.guest)
    place = {"save_dir": str(image.parent)}
    # As systemctl takes it, too.
    saved = save(unit=service.name[: -len(".service")], **place)
    assert saved["image"]["path"] == str(image.parent / f"{service.guest.name}.save")
    service.wait_state("inactive", "failed")
    assert not save(unit=service.name, **place)["changed"]
    restored = restore(unit=service.name, **place)
    assert (restored["changed"], restored["unit"]) == (True, service.known_as)
    continuity.check()
    again = restore(unit=service.name, **place)
    assert (again["changed"], "runs already" in again["msg"]) == (False, True)


def label_of(service):
    """What such a VM is called."""
    return service.known_as.replace("/", "-")


def test_vm_without_a_name_has_its_units(nameless, image, save, restore, run_module):
    continuity = Continuity(nameless.guest)
    place = {"save_dir": str(image.parent)}
    label = label_of(nameless)
    planned = run_module("qemu_managed_save", vms=[nameless.name], check=True, **place)
    assert [vm["name"] for vm in planned["vms"]] == [label], planned["msg"]
    saved = save(pid=nameless.guest.pid, **place)
    assert (saved["image"]["path"], saved["image"]["name"]) == (str(image.parent / f"{label}.save"), label)
    nameless.wait_state("inactive", "failed")
    assert not save(unit=nameless.name, **place)["changed"]
    assert restore(unit=nameless.known_as, **place)["unit"] == nameless.known_as
    continuity.check()


def test_vms_of_one_host_by_their_units(nameless, image, run_module):
    continuity = Continuity(nameless.guest)
    place = {"save_dir": str(image.parent)}
    by_vm = {nameless.name: {"checksum": True}}
    saved = run_module("qemu_managed_save", vms=[nameless.name], by_vm=by_vm, **place)
    assert not saved.get("failed"), saved["msg"]
    assert [(vm["name"], bool(vm["image"]["checksum"])) for vm in saved["vms"]] == [(label_of(nameless), True)]
    back = run_module("qemu_managed_restore", vms=[nameless.name], **place)
    assert not back.get("failed"), back["msg"]
    assert [(vm["name"], vm["state"]) for vm in back["vms"]] == [(label_of(nameless), "restored")]
    assert label_of(nameless) in {vm["own_name"] for vm in back["running"]}
    continuity.check()


def test_save_at_shutdown_finds_it(nameless, image, tmp_path, monkeypatch, run_module):
    """That the host goes down is only said; guests of others are left alone."""
    continuity = Continuity(nameless.guest)
    found, unnamed = asyncio.run(shutdown_program.vms_to_save([]))
    assert label_of(nameless) in found
    assert nameless.guest.pid not in {process.pid for process in unnamed}
    assert label_of(nameless) not in asyncio.run(shutdown_program.vms_to_save([nameless.name]))[0]

    async def only_this(exclude):
        return [label_of(nameless)], []

    async def goes_down():
        return True

    monkeypatch.setattr(shutdown_program, "vms_to_save", only_this)
    monkeypatch.setattr(shutdown_program, "_host_goes_down", goes_down)
    settings = tmp_path / "program" / "save_settings.json"
    settings.parent.mkdir(mode=0o755)
    settings.write_text(json.dumps({"save_dir": str(image.parent), "exclude": [], "parallel": 2, "timeout": 60}))
    assert shutdown_program.main(str(settings)) == 0
    nameless.wait_state("inactive", "failed")
    back = run_module("qemu_managed_restore", save_dir=str(image.parent))
    assert [(vm["name"], vm["state"]) for vm in back["vms"]] == [(label_of(nameless), "restored")], back["msg"]
    continuity.check()


def test_unit_that_has_several(make_guest, image, save, run_module):
    guests = [make_guest(f"{name}-in-one", start=False, observer=True) for name in ("web1", "web2")]
    for guest in guests:
        guest.prepare()
    both = " & ".join(quoted(guest.argv()) for guest in guests)
    script = guests[0].workdir / "both.sh"
    script.write_text(f"#!/bin/sh\n{both} & wait\n")
    script.chmod(0o755)
    service = Service(guests[0], command=str(script))
    try:
        systemctl("start", service.name)
        wait_until(lambda: all(guest.adopt_restarted() and guest.boots() for guest in guests))
        result = run_module("qemu_save", unit=service.name, save_dir=str(image.parent))
        pids = [f"pid {guest.pid} of the user" for guest in guests]
        check_error(result, "VmAmbiguousError", f"2 running QEMUs are in the unit {service.name}", *pids)
        result = run_module("qemu_save", unit=service.name, name="web2-in-one", save_dir=str(image.parent), check=True)
        assert result["vm"]["pid"] == guests[1].pid, result["msg"]
        listed = run_module("qemu_vm_info", unit=[service.name])["vms"]
        assert sorted(vm["pid"] for vm in listed) == sorted(guest.pid for guest in guests)
        assert [run_state(guest) for guest in guests] == ["running"] * 2
    finally:
        service.close()


def test_unit_that_is_no_vm(make_service, image, run_module):
    service = make_service()
    result = run_module("qemu_save", unit="systemd-journald", save_dir=str(image.parent))
    there = f"{service.guest.name} (pid {service.guest.pid}, "
    check_error(result, "VmNotFoundError", "is in the unit systemd-journald.service", there, f"unit {service.known_as}")
    assert find_qemu_pids(service.guest.name) == [service.guest.pid]
