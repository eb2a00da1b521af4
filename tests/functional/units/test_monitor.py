# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How the VM of a unit is reached, and what is said where it cannot be."""

from __future__ import annotations

import os

import pytest

from support.human import HumanGuest
from support.observe import VM, Continuity
from support.units import BY_USER, UNAVAILABLE, of_root

pytestmark = pytest.mark.skipif(bool(UNAVAILABLE), reason=UNAVAILABLE)

#: A directory that the unit alone sees with what is in it.
HIDDEN = f"/run/vmops-hidden-{os.getpid()}"


@of_root
def test_monitor_in_the_units_mount_namespace(make_service, image, save, restore, run_module):
    place = f"{HIDDEN}/qmp.sock"
    guest = {"kind": HumanGuest, "monitor": ["-qmp", f"unix:{place},server=on,wait=off"]}
    service = make_service(service=f"TemporaryFileSystem={HIDDEN}", guest=guest)
    assert not os.path.exists(place)
    continuity = Continuity(service.guest)
    (vm,) = run_module("qemu_vm_info", name=[VM])["vms"]
    assert (vm["monitor"], vm["qmp_socket"]) == ("answers", place)
    for _round in range(2):
        assert save(name=VM, path=str(image))["launch"]["how"] == "unit"
        assert restore(name=VM, path=str(image))["unit"] == service.name
        continuity.check()
    assert not os.path.exists(place)


def test_unit_is_named_where_the_option_is_missing(make_service, image, run_module):
    service = make_service(guest={"kind": HumanGuest})
    continuity = Continuity(service.guest)
    result = run_module("qemu_save", name=VM, path=str(image))
    assert result["error"] == "MonitorHumanError"
    place, command = (f"/run/user/{os.geteuid()}", "systemctl --user") if BY_USER else ("/run", "systemctl")
    line = f"-qmp unix:{place}/{VM}.qmp,server=on,wait=off to ExecStart= of {service.name} ({command} edit"
    assert line in result["cure"]
    continuity.check()
