# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which images are restored, in which groups, and which are left alone."""

from __future__ import annotations

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._host.choice import HostRestoreRequest, choose
from ansible_collections.vmops.qemu.plugins.module_utils._image.record import LaunchRecord
from ansible_collections.vmops.qemu.plugins.module_utils._shutdown.record import ShutDownVm


def image(name, state="complete", path=None, **more):
    known = {"managed": True, "saved_at": "2026-03-01T09:30:00.000Z", "problems": [], "uuid": "", "vouched": True}
    return {"name": name, "state": state, "path": path or f"/save/{name}.save", **known, **more}


def chosen(found, running=(), shut_down=(), held=(), **options):
    """The choice, where no VMs run but these, these are to be started again, and QEMUs have these images open."""
    known = {"vms": [], "include": ["*"], "exclude": [], "images": "managed", "order": []}
    request = HostRestoreRequest(
        **{"save_dir": "/save", "parallel": 1, "common": {}, "by_vm": {}, "check_mode": False, **known, **options}
    )
    return choose(
        found, shut_down, request, lambda image: image["name"] in running, lambda image: image["path"] in held
    )


def names(group):
    return [getattr(task, "names", task).name for task in group]


def paths(choice):
    return [[task.path for task in group] for group in choice.groups]


def test_groups():
    images = [image("web1"), image("db1"), image("app1"), image("old", "archived")]
    choice = chosen(images, order=[["db*"], ["none*"], ["app*", "db*"]])
    assert [names(group) for group in choice.groups] == [["db1"], ["app1"], ["web1"]]
    assert (choice.left_alone, choice.unusable) == ([], [])
    assert paths(chosen(images, include=["web*"], exclude=["web1"])) == []


def test_save_that_was_cut_off_is_restored_by_the_image_it_would_have_made():
    partial = image("a", "partial", "/save/.a.save.0123456789abcdef.partial")
    other = {**partial, "path": "/save/.a.save.fedcba9876543210.partial"}
    assert paths(chosen([partial, other], running=["a"])) == [["/save/a.save"]]
    # One that is complete is the VM's, and the other a leftover.
    choice = chosen([partial, image("a")])
    assert paths(choice) == [["/save/a.save"]]
    assert [(left["path"], left["why"][:20]) for left in choice.left_alone] == [
        (partial["path"], "it is partial, a lef")
    ]
    # Its QEMU has ended: nothing has the guest any more.
    choice = chosen([partial])
    assert paths(choice) == []
    assert [found["path"] for found in choice.unusable] == [partial["path"]]


SEVERAL = [
    image("a", path="/save/a-before.save", superseded_by="/save/a.save"),
    image("a"),
    image("a", path="/save/z.save", copy_of="/save/a.save"),
    image("b", checkpoint=True),
    image("c", "partial", "/save/.c.save.0123456789abcdef.partial", superseded_by="/save/c.save.tar.zst"),
    image("c", "archived", "/save/c.save.tar.zst"),
    image("d", "invalid", superseded_by="/save/d-2.save", problems=["its stream is cut off"]),
    image("d", path="/save/d-2.save", checkpoint=False, superseded_by=None, copy_of=None),
    image("e", checkpoint=True),
    image("e", "partial", "/save/.e.save.0123456789abcdef.partial"),
]


def test_each_vm_is_restored_once_from_its_last_save():
    choice = chosen(SEVERAL, running=["e"])
    # The QEMU of e may still stand there since that save was cut off.
    assert paths(choice) == [["/save/a.save", "/save/d-2.save", "/save/e.save"]]
    assert choice.unusable == []


def test_restore_that_was_cut_off_is_ended():
    """Its image is a checkpoint by then, whichever of a VM's images it is, and its QEMU has it open."""
    images = [image("a", checkpoint=True), image("b", checkpoint=True)]
    assert paths(chosen(images, running=["a", "b"], held=["/save/a.save"])) == [["/save/a.save"]]
    images = [image("a", checkpoint=True, superseded_by="/save/z.save"), image("a", path="/save/z.save")]
    assert paths(chosen(images, held=["/save/a.save"])) == [["/save/a.save", "/save/z.save"]]
    images = [image("a", checkpoint=True, managed=False)]
    assert paths(chosen(images, held=["/save/a.save"])) == []
    assert paths(chosen(images, held=["/save/a.save"], images="all")) == [["/save/a.save"]]


def test_what_is_left_alone_is_named():
    found = chosen(SEVERAL, running=["e"]).left_alone
    assert sorted((each["path"], each["why"][:30]) for each in found) == [
        ("/save/.c.save.0123456789abcdef.partial", "/save/c.save.tar.zst is a late"),
        ("/save/a-before.save", "/save/a.save is a later save o"),
        ("/save/b.save", "it is a checkpoint: b went on "),
        ("/save/d.save", "/save/d-2.save is a later save"),
        ("/save/e.save", "it is a checkpoint: e went on "),
        ("/save/z.save", "it is a copy of /save/a.save"),
    ]
    assert set(found[0]) == {"path", "name", "saved_at", "why"}
    assert [each["path"] for each in chosen(SEVERAL, include=["b", "c"], exclude=["c"]).left_alone] == ["/save/b.save"]


def test_what_was_not_saved_with_its_host_is_restored_only_by_name():
    images = [image("a"), image("b", managed=False), image("c", managed=False)]
    choice = chosen(images)
    assert paths(choice) == [["/save/a.save"]]
    assert [each["name"] for each in choice.left_alone] == ["b", "c"]
    assert paths(chosen(images, vms=["b"])) == [["/save/b.save"]]
    assert paths(chosen(images, images="all")) == [["/save/a.save", "/save/b.save", "/save/c.save"]]


def test_vm_that_is_named_and_has_no_image_is_asked_for():
    assert paths(chosen([image("a")], vms=["a", "b"])) == [["/save/a.save", "/save/b.save"]]


def test_unusable_images():
    images = [
        image("a"),
        image("b", "invalid", problems=["its stream is cut off"]),
        image(None, "invalid", "/save/c.save"),
        image("d", "partial"),
        image(None, "partial", "/save/e.save"),
        image("f", "archived"),
    ]
    every = ["/save/b.save", "/save/c.save", "/save/d.save", "/save/e.save"]
    choice = chosen(images)
    assert [found["path"] for found in choice.unusable] == every
    assert choice.unusable[0]["problems"] == ["its stream is cut off"]
    assert [found["path"] for found in chosen(images, exclude=["b"]).unusable] == every[1:]
    # What has no name may be any VM's, and is told only where all are asked for.
    assert chosen(images, include=["a*"]).unusable == []
    assert chosen(images, vms=["a"]).unusable == []


def test_vms_that_were_shut_down_have_their_place_in_the_order():
    down = [ShutDownVm(name, 0.0, LaunchRecord(["qemu"], "/", "qemu", 0, 0)) for name in ("b", "c", "x")]
    choice = chosen([image("a"), image("d")], shut_down=down, order=[["c", "d"]], exclude=["x"])
    assert [sorted(names(group)) for group in choice.groups] == [["c", "d"], ["a", "b"]]
    # One that is asked for by its name has no image, and needs none.
    assert [names(group) for group in chosen([], shut_down=down, vms=["b"]).groups] == [["b"]]


#: 2026-03-01T09:30:00Z, when the images of these tests were saved.
SAVED = 1772357400.0


def down(at, name="a", uid=0):
    return ShutDownVm(name, at, LaunchRecord(["qemu", "-name", name], "/", "qemu", uid, 0), ended=True)


@pytest.mark.parametrize("state", ["complete", "invalid", "partial"])
def test_image_that_is_older_than_its_vms_shutdown_is_left_alone(state):
    choice = chosen([image("a", state), image("b")], running=["a"], shut_down=[down(SAVED + 1)])
    assert [names(group) for group in choice.groups] == [["b", "a"]]
    assert paths(chosen([image("a", state)], shut_down=[down(SAVED + 1)], exclude=["a"])) == []
    assert [(left["path"], left["why"][:32]) for left in choice.left_alone] == [
        ("/save/a.save", "a ran on after this save, until ")
    ]
    assert (choice.unusable, choice.outdated) == ([], [])


def test_vm_that_was_saved_since_its_shutdown_is_restored_and_not_started():
    kept = down(SAVED - 1)
    choice = chosen([image("a"), image("b")], shut_down=[kept])
    assert paths(choice) == [["/save/a.save", "/save/b.save"]]
    assert choice.outdated == [(kept, "/save/a.save")]
    # Whatever becomes of that image, the VM ran again.
    for more in ({"managed": False}, {"checkpoint": True}, {"state": "archived", "path": "/save/a.save.tar.zst"}):
        choice = chosen([image("a", **more)], shut_down=[kept])
        assert [kept for kept, _path in choice.outdated] == [kept]
        assert choice.groups == []
    assert chosen([image("a")], shut_down=[kept], exclude=["a"]).outdated == []


@pytest.mark.parametrize("more", [{"saved_at": None}, {"saved_at": "soon"}, {"vouched": False}, {"vouched": None}])
def test_image_of_which_it_is_not_known_is_neither_restored_nor_taken_for_later(more):
    choice = chosen([image("a", **more)], shut_down=[down(SAVED - 1)])
    # Its start then refuses.
    assert [names(group) for group in choice.groups] == [["a"]]
    assert choice.groups[0][0] == down(SAVED - 1)
    assert [left["why"][:15] for left in choice.left_alone] == ["it is not known"]
    assert choice.outdated == []


def test_image_that_cannot_be_read_stays_a_failure_beside_its_vms_shutdown():
    choice = chosen([image(None, "invalid", "/save/a.save", saved_at=None)], shut_down=[down(SAVED - 1)])
    assert [names(group) for group in choice.groups] == [["a"]]
    assert [found["path"] for found in choice.unusable] == ["/save/a.save"]


def test_shutdown_of_one_user_says_nothing_of_an_image_of_another():
    of_root = image("a", launch={"uid": 0})
    choice = chosen([of_root], shut_down=[down(SAVED + 1, uid=1000)])
    assert choice.left_alone == []
    assert [type(task).__name__ for task in choice.groups[0]] == ["RestoreTask", "ShutDownVm"]
