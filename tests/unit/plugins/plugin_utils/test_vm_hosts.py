# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What VMs a hypervisor's answers are, and what hosts they become."""

from __future__ import annotations

import typing

import pytest
from ansible_collections.vmops.qemu.plugins.plugin_utils._vm_hosts import UnbelievableError, host_names, read_vms

PROBLEM = {"kind": "disk_replaced", "what": "it was", "cure": "put it back", "blocks": True}
WARNING = {"kind": "throttle", "what": "is lost", "cure": "set it again", "blocks": False}


def vm(name="web1", **facts):
    """An element of the ``vms`` of ``qemu_vm_info``."""
    known = {
        "name": name,
        "uuid": "",
        "pid": 7,
        "run_state": "running",
        "monitor": "answers",
        "reason": "",
        "image": None,
    }
    return {**known, "problems": [], "blockers": [], "unit": None, **facts}


def image(path="/s/web1.save", **facts):
    """An element of the ``images`` of ``qemu_save_image_info``."""
    known = {"path": path, "state": "complete", "name": "web1", "uuid": "", "superseded_by": None, "copy_of": None}
    return {**known, "checkpoint": False, "restorable": True, "restore_problems": [], "problems": [], **facts}


def read(*vms, images=(), hypervisor="hv1"):
    return read_vms(hypervisor, {"vms": list(vms)}, {"images": list(images)})


def states(found):
    return {one.variables["qemu_name"]: one.variables["qemu_state"] for one in found}


@pytest.mark.parametrize(
    ("run_state", "state"),
    [
        ("running", "running"),
        ("suspended", "running"),
        ("paused", "paused"),
        ("postmigrate", "paused"),
        (None, "unknown"),
    ],
)
def test_state_of_a_vm_with_a_qemu(run_state, state):
    (found,) = read(vm(run_state=run_state))
    assert found.variables["qemu_state"] == state
    assert f"qemu_{state}" in found.groups
    assert found.variables["qemu_run_state"] == run_state


@pytest.mark.parametrize(
    ("facts", "state", "restorable"),
    [
        ({}, "saved", True),
        ({"restorable": False, "restore_problems": [PROBLEM]}, "saved", False),
        ({"restorable": None}, "saved", None),
        ({"checkpoint": True}, "checkpoint", True),
        ({"state": "archived"}, "archived", True),
        ({"state": "archived", "checkpoint": True}, "checkpoint", True),
        ({"state": "partial", "problems": ["it is partial"]}, "partial", False),
        ({"state": "invalid", "name": None, "problems": ["no image"]}, "invalid", False),
        ({"state": "of its own making"}, "invalid", False),
        ({"problems": ["it is too short"]}, "saved", False),
    ],
)
def test_state_of_a_vm_without_a_qemu(facts, state, restorable):
    (found,) = read(images=[image(**facts)])
    assert found.variables["qemu_state"] == state
    assert found.variables["qemu_restorable"] is restorable
    assert found.variables["qemu_image"] == "/s/web1.save"
    assert ("qemu_not_restorable" in found.groups) == (restorable is False)
    assert found.label == "web1"


def test_no_image_is_no_vm():
    assert read(images=[image(state="absent")]) == []


@pytest.mark.parametrize(
    ("facts", "restorable", "kinds"),
    [
        ({}, True, []),
        ({"problems": [WARNING]}, True, ["throttle"]),
        ({"problems": [WARNING, PROBLEM]}, False, ["throttle", "disk_replaced"]),
        ({"blockers": ["VFIO device"]}, False, ["blocker"]),
        ({"monitor": "human", "reason": "through its human monitor"}, True, []),
        (
            {"run_state": None, "monitor": "busy", "reason": "another client", "problems": None, "blockers": None},
            None,
            ["monitor"],
        ),
    ],
)
def test_whether_a_running_vm_could_be_restored(facts, restorable, kinds):
    (found,) = read(vm(**facts))
    assert found.variables["qemu_restorable"] is restorable
    assert [problem["kind"] for problem in found.variables["qemu_problems"]] == kinds
    assert ("qemu_not_restorable" in found.groups) == (restorable is False)


def test_images_of_a_running_vm_are_no_vms():
    images = [
        image("/s/old.save", superseded_by="/s/web1.save"),
        image(),
        image("/s/copy.save", copy_of="/s/web1.save"),
    ]
    (found,) = read(vm(image={"path": "/s/web1.save"}), images=images)
    assert found.variables["qemu_image"] == "/s/web1.save"
    assert found.variables["qemu_superseded_images"] == ["/s/old.save"]
    assert "qemu_superseded" in found.groups
    assert found.variables["qemu_state"] == "running"


def test_image_of_another_users_vm_of_that_name():
    """The hypervisor does not take it for the running one's."""
    found = read(vm(), images=[image()])
    assert sorted(one.variables["qemu_state"] for one in found) == ["running", "saved"]
    assert sorted(host_names(found, {}.__contains__, with_hypervisor=False)) == ["hv1+web1", "hv1+web1+2"]


def test_older_images_are_of_the_same_vm():
    images = [
        image("/s/a.save", superseded_by="/s/web1.save"),
        image("/s/b.save", copy_of="/s/a.save"),
        image("/s/web1.save", state="invalid"),
    ]
    (found,) = read(images=images)
    assert found.variables["qemu_image"] == "/s/web1.save"
    assert found.variables["qemu_state"] == "invalid"
    assert found.variables["qemu_superseded_images"] == ["/s/a.save"]


def test_partial_image_beside_its_vm_is_none():
    partial = image("/s/.web1.save.0.partial", state="partial")
    assert states(read(vm(), images=[partial])) == {"web1": "running"}
    assert states(read(images=[partial, image()])) == {"web1": "saved"}
    assert states(read(vm("db1"), images=[partial])) == {"web1": "partial", "db1": "running"}


def test_names_of_what_has_none():
    found = read(vm(""), vm("", uuid="5-6", pid=8), images=[image("/s/lost.save.tar.zst", name=None, state="invalid")])
    assert [one.label for one in found] == ["5-6", "lost", "pid-7"]


# --- names of hosts ---


def names(*vms, taken=(), with_hypervisor=False):
    return sorted(host_names(vms, set(taken).__contains__, with_hypervisor=with_hypervisor))


def test_a_vm_has_its_own_name():
    assert names(*read(vm("web1"), vm("db1"))) == ["db1", "web1"]
    assert names(*read(vm("web1")), with_hypervisor=True) == ["hv1+web1"]


def test_names_that_several_have():
    vms = [*read(vm("web1"), vm("db1")), *read(vm("web1"), hypervisor="hv2")]
    assert names(*vms) == ["db1", "hv1+web1", "hv2+web1"]


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "all", "ungrouped", "hv1", "web1"])
def test_names_of_others_are_taken(name):
    assert names(*read(vm(name)), taken=["hv1", "web1"]) == [f"hv1+{name}"]
    assert names(*read(vm(name)), taken=["hv1", "web1", f"hv1+{name}"]) == [f"hv1+{name}+2"]


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("web 1", "web_1"),
        ("{{ lookup('pipe', 'id') }}", "___lookup__pipe____id_____"),
        ("a:b,c!d&e*[1:9]", "a_b_c_d_e__1_9_"),
        ("-i", "i"),
        ("--", "_"),
        ("..", "_"),
        ("hv2+web1", "hv2_web1"),
        ("::1", "__1"),
        ("é\x1b[2J\n", "___2J_"),
        ("x" * 500, "x" * 128),
    ],
)
def test_special_characters_of_names(name, label):
    (found,) = read(vm(name))
    assert names(found) == [label]
    assert found.variables["qemu_name"] == name


def test_names_that_become_the_same():
    assert names(*read(vm("a b"), vm("a:b"), vm("a_b"))) == ["hv1+a_b", "hv1+a_b+2", "hv1+a_b+3"]


# --- lies ---


@pytest.mark.parametrize(
    ("vms", "images"),
    [
        (None, []),
        ({}, []),
        ([], None),
        (["web1"], []),
        ([], ["web1"]),
        ([], [{"state": "complete"}]),
        ([vm()] * 10_001, []),
        ([], [image()] * 10_001),
    ],
)
def test_what_is_no_answer(vms, images):
    with pytest.raises(UnbelievableError):
        read_vms("hv1", {"vms": vms}, {"images": images})


@pytest.mark.parametrize("lie", [None, 7, True, [], {}, [[]], {"a": {}}, "x" * 5000, "\ud800", float("nan"), -1, 2**70])
def test_values_of_other_types(lie):
    """Each at each place; the rest of what is told is of use."""
    for key in vm():
        (found,) = read(vm(**{key: lie}))
        assert_plain(found)
    for key in image():
        if key == "path" and not isinstance(lie, str):
            continue
        if key == "path" and len(lie) > 4096:
            continue
        (found,) = read(images=[image(**{key: lie})])
        assert_plain(found)


def assert_plain(found):
    kinds: dict[str, typing.Any] = {
        "qemu_name": str,
        "qemu_uuid": str,
        "qemu_state": str,
        "qemu_problems": list,
        "qemu_superseded_images": list,
        "qemu_memory": (int, type(None)),
        "qemu_pid": (int, type(None)),
        "qemu_restorable": (bool, type(None)),
        "qemu_managed": (bool, type(None)),
    }
    assert all(name.startswith("qemu_") for name in found.variables)
    for name, value in found.variables.items():
        assert isinstance(value, kinds.get(name, (str, type(None)))), name
        if isinstance(value, str):
            assert len(value) <= 4096
            value.encode()


def test_images_that_supersede_each_other():
    """A liar's; it comes to an end, and none is told twice."""
    found = read(
        images=[image("/s/a", superseded_by="/s/b"), image("/s/b", superseded_by="/s/a"), image("/s/c", copy_of="/s/c")]
    )
    paths = [one.variables["qemu_image"] for one in found]
    assert len(paths) == len(set(paths)) <= 3


def test_many_problems():
    (found,) = read(vm(problems=[PROBLEM] * 5000, blockers=["x"] * 5000))
    assert len(found.variables["qemu_problems"]) == 100
