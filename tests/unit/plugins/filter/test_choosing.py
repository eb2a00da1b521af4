# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The filters that choose VMs and images, and order them."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.vmops.qemu.plugins.filter.left_alone import left_alone
from ansible_collections.vmops.qemu.plugins.filter.matching import matching
from ansible_collections.vmops.qemu.plugins.filter.requests import requests
from ansible_collections.vmops.qemu.plugins.filter.restore_groups import restore_groups
from ansible_collections.vmops.qemu.plugins.filter.saved import saved
from ansible_collections.vmops.qemu.plugins.filter.shortages import shortages
from ansible_collections.vmops.qemu.plugins.filter.unready import unready
from ansible_collections.vmops.qemu.plugins.filter.unusable_images import unusable_images

MIB = 2**20


def image(name, state="complete", path=None, **more):
    return {"name": name, "state": state, "path": path or f"/save/{name}.save", "problems": [], **more}


def test_matching():
    names = ["db1", "db-test", "web1", "DB2"]
    assert matching(names) == names
    assert matching(names, ["db*"], ["*-test"]) == ["db1"]
    assert matching(names, []) == []


def test_matching_wants_lists():
    with pytest.raises(AnsibleFilterError, match="list of patterns"):
        matching(["db1"], "db*")
    with pytest.raises(AnsibleFilterError, match="list of patterns"):
        matching(["db1"], ["*"], "db*")


def test_requests():
    assert requests(["db1", "web1"], {"live": False, "name": "other"}, {"db1": {"live": True}}) == [
        {"live": True, "name": "db1"},
        {"live": False, "name": "web1"},
    ]


def test_saved_are_those_of_this_run():
    runs = [
        {"name": "a", "changed": True, "image": {"path": "/save/a.save"}},
        {"name": "saved before", "changed": False, "image": {"path": "/save/b.save"}},
        {"name": "failed", "changed": True, "failed": True, "image": {"path": "/save/c.save"}},
        {"name": "not begun", "skipped": True},
    ]
    assert saved(runs) == [{"name": "a", "path": "/save/a.save"}]


def test_images_that_fit_alone_but_not_together():
    runs: list[dict[str, Any]] = [
        {"file_system": "/", "space_needed": 60 * MIB, "space_free": 100 * MIB},
        {"file_system": "/", "space_needed": 60 * MIB, "space_free": 100 * MIB},
        {"file_system": "/srv", "space_needed": 90 * MIB, "space_free": 100 * MIB},
        {"changed": False},
    ]
    (told,) = shortages(runs)
    assert told.startswith("/ has 100 MiB free, but the images of 2 VMs may take 120 MiB (20 MiB are missing)")
    assert shortages(runs[1:]) == []


def test_least_free_space_counts():
    runs = [
        {"file_system": "/", "space_needed": 60 * MIB, "space_free": 100 * MIB},
        {"file_system": "/", "space_needed": 30 * MIB, "space_free": 200 * MIB},
    ]
    assert shortages(runs) == []
    assert len(shortages([*runs, {"file_system": "/", "space_needed": 20 * MIB, "space_free": 200 * MIB}])) == 1


def test_vms_that_would_be_lost():
    vms = [{"name": "", "pid": 7}, {"name": "a", "pid": 8}]
    (nameless,) = unready(vms)
    assert "pid 7" in nameless
    assert unready(vms, ["a*"]) == []
    assert unready(vms, []) == []


def test_restore_groups():
    images = [image("web1"), image("db1"), image("app1"), image("old", "archived"), image("bad", "invalid")]
    groups = restore_groups(
        images, [["db*"], ["none*"], ["app*", "db*"]], ["*"], [], {"verify": "full"}, {"app1": {"x": 1}}
    )
    assert groups == [
        [{"verify": "full", "name": "db1", "path": "/save/db1.save"}],
        [{"verify": "full", "x": 1, "name": "app1", "path": "/save/app1.save"}],
        [{"verify": "full", "name": "web1", "path": "/save/web1.save"}],
    ]
    assert restore_groups(images, include=["web*"], exclude=["web1"]) == []


def test_save_that_was_cut_off_is_restored_by_the_image_it_would_have_made():
    partial = image("a", "partial", "/save/.a.save.0123456789abcdef.partial")
    assert restore_groups([partial, {**partial, "path": "/save/.a.save.fedcba9876543210.partial"}]) == [
        [{"name": "a", "path": "/save/a.save"}]
    ]
    # One that is complete is the VM's, and the other a leftover.
    assert restore_groups([partial, image("a")]) == [[{"name": "a", "path": "/save/a.save"}]]
    assert restore_groups([image(None, "partial", "/save/x")]) == []


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
    assert restore_groups(SEVERAL) == [
        [
            {"name": "a", "path": "/save/a.save"},
            {"name": "d", "path": "/save/d-2.save"},
            # Its QEMU may still stand there since that save was cut off.
            {"name": "e", "path": "/save/e.save"},
        ]
    ]
    assert unusable_images(SEVERAL) == []


def test_what_is_left_alone_is_named():
    found = left_alone([{**each, "saved_at": "2026-03-01T09:30:00.000Z"} for each in SEVERAL])
    assert [(each["path"], each["why"][:30]) for each in found] == [
        ("/save/a-before.save", "/save/a.save is a later save o"),
        ("/save/z.save", "it is a copy of /save/a.save"),
        ("/save/b.save", "it is a checkpoint: b went on "),
        ("/save/.c.save.0123456789abcdef.partial", "/save/c.save.tar.zst is a late"),
        ("/save/d.save", "/save/d-2.save is a later save"),
        ("/save/e.save", "it is a checkpoint: e went on "),
    ]
    assert set(found[0]) == {"path", "name", "saved_at", "why"}
    assert [each["path"] for each in left_alone(SEVERAL, ["b", "c"], ["c"])] == ["/save/b.save"]


def test_unusable_images():
    images = [
        image("a"),
        image("b", "invalid", problems=["its stream is cut off"]),
        image(None, "invalid", "/save/c.save"),
        image("d", "partial"),
        image(None, "partial", "/save/e.save"),
        image("f", "archived"),
    ]
    assert [found["path"] for found in unusable_images(images)] == ["/save/b.save", "/save/c.save", "/save/e.save"]
    assert unusable_images(images)[0]["problems"] == ["its stream is cut off"]
    assert [found["path"] for found in unusable_images(images, ["a*"])] == ["/save/c.save", "/save/e.save"]
    assert [found["path"] for found in unusable_images(images, ["*"], ["b"])] == ["/save/c.save", "/save/e.save"]
