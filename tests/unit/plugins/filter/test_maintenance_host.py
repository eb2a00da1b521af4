# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the report tells of each VM."""

from __future__ import annotations

import pytest
from ansible_collections.vmops.qemu.plugins.filter.maintenance_host import maintenance_host

SAVED = {
    "name": "a",
    "changed": True,
    "image": {"allocated": 100},
    "duration": 2.0,
    "throughput": 50,
    "stopped_at": 10.0,
    "msg": "saved",
}
RESTORED = {"name": "a", "duration": 3.0, "running_at": 20.0, "msg": "restored", "image": {"allocated": 100}}


def states(*arguments):
    return {vm["name"]: vm["state"] for vm in maintenance_host(*arguments)["vms"]}


def test_vm_that_was_saved_and_restored():
    (vm,) = maintenance_host({"vms": [SAVED]}, {"vms": [RESTORED]})["vms"]
    assert vm == {
        "name": "a",
        "state": "restored",
        "msg": "restored",
        "bytes": 100,
        "written": True,
        "throughput": 50,
        "save_seconds": 2.0,
        "restore_seconds": 3.0,
        "stopped_at": 10.0,
        "running_at": 20.0,
        "disbelieved": [],
    }


@pytest.mark.parametrize(
    ("saves", "restores", "state"),
    [
        ({"vms": [SAVED]}, None, "saved"),
        ({"vms": [SAVED]}, {"vms": [{**RESTORED, "failed": True}]}, "saved"),
        ({"vms": [{**SAVED, "rollback": RESTORED}]}, None, "restored"),
        ({"vms": [{"name": "a", "failed": True}]}, None, "failed"),
        ({"vms": [{"name": "a", "skipped": True}]}, None, "running"),
        ({"vms": [{"name": "a", "failed": True}]}, {"vms": [], "running": [{"name": "a"}]}, "failed"),
        ({"vms": [{"name": "a", "skipped": True}]}, {"vms": [], "running": [{"name": "a"}]}, "running"),
        ({"vms": [{"name": "a", "changed": True, "state": "predicted"}]}, None, "predicted"),
        ({}, {"vms": [RESTORED]}, "restored"),
        (None, None, None),
    ],
)
def test_states(saves, restores, state):
    assert states(saves, restores) == ({"a": state} if state else {})


def test_vm_that_the_host_restored_by_itself_is_not_told_to_be_saved():
    assert states({"vms": [SAVED]}, {"vms": [], "running": [{"name": "a"}, {"name": "b"}]}) == {"a": "restored"}


@pytest.mark.parametrize(
    ("lie", "name"),
    [
        ({"stopped_at": 1e30}, "stopped_at"),
        ({"stopped_at": 253402300799}, "stopped_at"),
        ({"stopped_at": float("nan")}, "stopped_at"),
        ({"stopped_at": -1}, "stopped_at"),
        ({"throughput": float("inf")}, "throughput"),
        ({"throughput": 10**400}, "throughput"),
        ({"space_needed": -5}, "bytes"),
        ({"image": {"allocated": -(2**40)}}, "bytes"),
        ({"image": {"allocated": [1]}}, "bytes"),
        ({"duration": "long"}, "save_seconds"),
        ({"duration": True}, "save_seconds"),
        ({"disbelieved": ["stopped_at"], "stopped_at": None}, "stopped_at"),
    ],
)
def test_figure_that_cannot_be_is_left_out_and_named(lie, name):
    (vm,) = maintenance_host({"vms": [{**SAVED, **lie}]}, {"vms": [RESTORED]})["vms"]
    assert vm["disbelieved"] == [name]
    assert vm[name] is None


@pytest.mark.parametrize("vms", [None, 7, "many", [7, None, {}, {"name": ["x"]}, {"name": None}], {"a": 1}])
def test_results_that_are_none(vms):
    assert maintenance_host({"vms": vms}, {"vms": vms, "running": vms})["vms"] == []


@pytest.mark.parametrize("image", [7, "x", ["x"]])
def test_image_that_is_none(image):
    assert states({"vms": [{**SAVED, "image": image}]}) == {"a": "saved"}


def test_fate_of_those_that_were_shut_down():
    fates = {"a": "shut down", "b": "shut down", "c": "ignored", "d": "started again"}
    saved = {"unsaved": [{"name": name, "fate": fate} for name, fate in fates.items()]}

    def found(*arguments):
        return {vm["name"]: vm["fate"] for vm in maintenance_host(saved, *arguments)["unsaved"]}

    assert found() == found({}) == found({"running": None}) == fates
    assert found({"running": [{"name": "a"}]}) == {**fates, "a": "started again", "b": "not started again"}


@pytest.mark.parametrize("unsaved", [None, 7, "many", [3, {"name": 7, "fate": "shut down"}, {"fate": []}]])
def test_lists_of_unsaved_vms_that_are_none(unsaved):
    found = maintenance_host({"unsaved": unsaved}, {"running": [{"name": 7}]})["unsaved"]
    assert [vm["fate"] for vm in found] == (["not started again", []] if isinstance(unsaved, list) else [])


FAILED = {"name": "b", "failed": True, "guest": "running"}
PUT_BACK = {**SAVED, "rollback": RESTORED}


@pytest.mark.parametrize(
    ("saves", "back"),
    [
        ({"failed": True, "vms": [PUT_BACK, FAILED]}, True),
        ({"failed": True, "vms": [PUT_BACK, {**FAILED, "guest": "ended"}]}, False),
        ({"failed": True, "vms": [PUT_BACK, {**FAILED, "guest": "unknown"}]}, False),
        ({"failed": True, "vms": [PUT_BACK, {**FAILED, "guest": "saved", "rollback": RESTORED}]}, True),
        ({"failed": True, "vms": [SAVED, FAILED]}, False),
        ({"failed": True, "vms": [FAILED]}, False),
        ({"failed": True, "vms": [PUT_BACK], "unsaved": [{"name": "c", "fate": "started again"}]}, True),
        ({"failed": True, "vms": [PUT_BACK], "unsaved": [{"name": "c", "fate": "not started again"}]}, False),
        ({"vms": [PUT_BACK]}, False),
    ],
)
def test_host_is_rolled_back_where_all_its_guests_are_as_they_were(saves, back):
    assert maintenance_host(saves)["rolled_back"] is back


def test_images_that_stay_unusable():
    def unusable(*paths):
        return {
            "unusable": [{"path": path, "name": None, "state": "invalid", "problems": ["cut off"]} for path in paths]
        }

    saves = {"vms": [{"name": "a", "image": {"path": "/save/a.save"}}, {"name": "b", "failed": True}]}
    left = maintenance_host(
        saves,
        unusable(
            "/save/a.save",
            "/save/.a.save.0123456789abcdef.partial",
            "/save/.aa.save.0123456789abcdef.partial",
            "/save/b.save",
            "/other/a.save",
        ),
    )["unusable"]
    assert [image["path"] for image in left] == [
        "/save/.aa.save.0123456789abcdef.partial",
        "/save/b.save",
        "/other/a.save",
    ]
    for nonsense in ({"unusable": "x"}, {"unusable": [1, {"path": 2}]}, {}):
        assert maintenance_host(saves, nonsense)["unusable"] == []
