# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""An image is older or later than the shutdown of its VM, or that is not known, and never guessed."""

from __future__ import annotations

import time

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._image.record import LaunchRecord, now
from ansible_collections.vmops.qemu.plugins.module_utils._shutdown.record import ShutDownVm
from ansible_collections.vmops.qemu.plugins.module_utils._shutdown.relation import (
    Relation,
    doubtful_image,
    later_image,
    relation,
    why_not_restored,
)

SAVED = 1772357400.0
UUID = "1b4e28ba-2fa1-41d2-883f-b9a761bde3fb"
OTHER_UUID = "2b4e28ba-2fa1-41d2-883f-b9a761bde3fb"


def image(**more):
    known = {"name": "web1", "uuid": "", "path": "/s/web1.save", "state": "complete", "vouched": True, "problems": []}
    return {**known, "saved_at": "2026-03-01T09:30:00.000Z", "launch": {"uid": 64055}, **more}


def vm(at=SAVED - 1, name="web1", uid=64055, uuid=""):
    words = ["qemu", "-name", name, *(["-uuid", uuid] if uuid else [])]
    return ShutDownVm(name, at, LaunchRecord(words, "/", "qemu", uid, 0), ended=True)


@pytest.mark.parametrize(
    ("kept", "found", "expected"),
    [
        (vm(), image(), Relation.LATER),
        (vm(SAVED), image(), Relation.OLDER),
        (vm(SAVED + 1), image(), Relation.OLDER),
        (vm(), image(state="archived"), Relation.LATER),
        (vm(), image(state="partial"), Relation.UNKNOWN),
        (vm(), image(state="invalid"), Relation.UNKNOWN),
        (vm(SAVED + 1), image(state="invalid"), Relation.OLDER),
        (vm(), image(saved_at=None), Relation.UNKNOWN),
        (vm(), image(saved_at="2026-03-01"), Relation.UNKNOWN),
        (vm(), image(vouched=False), Relation.UNKNOWN),
        # Which VM it is.
        (vm(), image(name="db1"), None),
        (vm(uuid=UUID), image(), Relation.LATER),
        (vm(uuid=UUID), image(uuid=UUID, name="db1"), Relation.LATER),
        (vm(uuid=UUID), image(uuid=OTHER_UUID), None),
        # Whose it is.
        (vm(), image(launch=None), Relation.LATER),
        (vm(), image(launch={"uid": 0}), Relation.LATER),
        (vm(), image(launch={"uid": 1000}), None),
        (vm(SAVED + 1), image(launch={"uid": 1000}), None),
        (vm(SAVED + 1), image(launch={"uid": 0}), Relation.UNKNOWN),
        (vm(SAVED + 1, uid=0), image(launch={"uid": 1000}), Relation.OLDER),
    ],
)
def test_relation(kept, found, expected):
    assert relation(kept, found) == expected


@pytest.mark.parametrize(
    ("path", "name", "is_its"),
    [
        ("/s/web1.save", "web1", True),
        (f"/s/web1-{UUID}.save", "web1", True),
        ("/s/.web1.save.0123456789abcdef.partial", "web1", True),
        ("/s/web1.save.tar.zst", "web1", True),
        ("/s/web12.save", "web1", False),
        ("/s/web1-old.save", "web1", False),
        ("/s/web1.save", "a/web1", False),
        ("/s/...save", "..", True),
    ],
)
def test_what_cannot_be_read_is_known_by_the_name_of_its_file(path, name, is_its):
    found = image(name=None, uuid=None, path=path, saved_at=None, state="invalid", vouched=None, launch=None)
    assert relation(vm(name=name), found) == (Relation.UNKNOWN if is_its else None)


def test_clock_that_was_set_back_tells_nothing():
    ahead = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(time.time() + 3600))
    assert relation(vm(), image(saved_at=ahead)) is Relation.UNKNOWN
    assert relation(vm(time.time() + 3600), image(saved_at=now())) is Relation.UNKNOWN
    assert relation(vm(time.time() + 3600), image()) is Relation.UNKNOWN


def test_what_follows_from_it():
    older, later, unknown = image(saved_at="2026-03-01T09:29:00.000Z"), image(path="/s/b.save"), image(vouched=False)
    assert (later_image(vm(), [older, unknown, later]), later_image(vm(), [older, unknown])) == ("/s/b.save", "")
    assert (doubtful_image(vm(), [older, unknown]), doubtful_image(vm(), [older, later])) == (unknown, None)
    assert "ran on after this save" in why_not_restored(vm(), older)
    assert "it is not known" in why_not_restored(vm(), unknown)
    assert why_not_restored(vm(), later) == ""
    assert why_not_restored(vm(), {**unknown, "state": "invalid"}) == ""
