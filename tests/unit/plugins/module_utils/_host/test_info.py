# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import dataclasses
import types

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils import _state_directory
from ansible_collections.vmops.qemu.plugins.module_utils._host.info import (
    _MONITOR_CURES,
    image_problems,
    shut_down_problems,
    space_problems,
    vm_problems,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.record import LaunchRecord
from ansible_collections.vmops.qemu.plugins.module_utils._proc import boot_id
from ansible_collections.vmops.qemu.plugins.module_utils._shutdown.record import ShutDownVm, keep
from ansible_collections.vmops.qemu.plugins.module_utils._vm_info import _MONITOR_STATES

PROBLEM = {"kind": "disk_replaced", "what": "it was", "cure": "Put it back", "blocks": True}
WARNING = {"kind": "throttle", "what": "is lost", "cure": "Set it again", "blocks": False}


def vm(**facts):
    named = {"name": "web1", "uuid": "", "unit": None, "launch": dict[str, str](), "pid": 7}
    known = {**named, "run_state": "running", "monitor": "answers", "reason": "", "image": None}
    support = {"formats": ["sparse", "raw"]}
    more = {"problems": [], "blockers": [], "save_support": support, "qemu_version": "10.0.2"}
    return {**known, **more, **facts}


def image(path="/s/web1.save", **facts):
    known = {"path": path, "name": "web1", "state": "complete", "superseded_by": None, "copy_of": None, "problems": []}
    return {**known, "restorable": True, "restore_problems": [], "vouched": True, "launch": None, **facts}


def process(name, uid, pid=1, birth=2):
    return types.SimpleNamespace(name=name, uid=uid, pid=pid, birth=birth)


def told(problems):
    return [(problem.kind, problem.blocks) for problem in problems]


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({}, []),
        ({"name": ""}, [("name", True)]),
        ({"name": "", "uuid": "1b4e28ba-2fa1-41d2-883f-b9a761bde3fb"}, []),
        ({"name": "", "unit": "qemu@web1.service", "launch": {"how": "unit"}}, []),
        ({"name": "", "unit": "session-1.scope", "launch": {"how": "command"}}, [("name", True)]),
        ({"problems": [PROBLEM, WARNING]}, [("disk_replaced", True), ("throttle", False)]),
        ({"blockers": ["VFIO"]}, [("blocker", True)]),
        (
            {
                "run_state": None,
                "monitor": "busy",
                "reason": "by others",
                "problems": None,
                "blockers": None,
                "save_support": None,
            },
            [("monitor", True)],
        ),
        ({"monitor": "human", "reason": "through its human monitor"}, []),
        ({"run_state": "suspended", "save_support": {"formats": ["sparse"], "suspended": True}}, []),
        ({"run_state": "suspended", "save_support": {"formats": ["sparse"], "suspended": False}}, [("sleeping", True)]),
        ({"save_support": {"formats": ["raw", "gzip"]}}, [("no_mapped_ram", False)]),
        ({"save_support": {"formats": []}}, [("monitor_remote", True)]),
        ({"image": {"path": "/s", "state": "complete", "checkpoint": False}}, [("image_beside", True)]),
        ({"image": {"path": "/s", "state": "complete", "checkpoint": True}}, [("image_beside", True)]),
        ({"image": {"path": "/s", "state": "partial", "checkpoint": None}}, []),
        ({"image": {"path": "/s", "state": "complete", "checkpoint": False}, "run_state": "postmigrate"}, []),
    ],
)
def test_problems_of_a_vm(facts, expected):
    found = vm_problems(vm(**facts))
    assert told(found) == expected
    assert all(problem.what and problem.cure for problem in found)


def test_vms_that_were_shut_down_and_do_not_run(tmp_path, monkeypatch):
    tmp_path.chmod(0o755)
    monkeypatch.setattr(_state_directory, "ROOT_DIRECTORY", str(tmp_path / "vmops.qemu"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert shut_down_problems([], []) == []
    launch = LaunchRecord(["qemu"], "/", "/usr/bin/qemu", 0, 0)
    kept = [ShutDownVm(name, 1764000000.5, launch, pid=7, birth=8, boot_id=boot_id()) for name in ("a", "b")]
    for each in kept:
        keep(each)
    (problem,) = shut_down_problems([process("a", 0)], [])
    assert (problem.subject, problem.kind, problem.blocks) == ("b", "shut_down", False)
    assert "2025-11-24T16:00:00Z" in problem.what
    assert kept[1].path in problem.cure
    assert "not seen its end" in problem.what
    keep(dataclasses.replace(kept[1], ended=True))
    (problem,) = shut_down_problems([process("a", 0)], [])
    assert "not seen its end" not in problem.what
    # The very one that was asked.
    (other, problem) = shut_down_problems([process("a", 0, pid=7, birth=8)], [])
    assert (other.subject, other.kind) == ("b", "shut_down")
    assert (problem.subject, problem.kind, problem.blocks) == ("a", "shutdown_pending", False)
    assert kept[0].path in problem.cure
    of_others = [process("a", 1000)]
    assert len(shut_down_problems(of_others, [image(name="b", saved_at="2025-11-24T15:59:59.000Z")])) == 2
    (problem,) = shut_down_problems(of_others, [image(name="b", saved_at="2025-11-24T16:00:01.000Z")])
    assert problem.subject == "a"
    with open(kept[0].path, "w") as file:
        file.write("{")
    (problem,) = shut_down_problems([], [])
    assert (problem.subject, problem.kind) == ("host", "shut_down")
    assert kept[0].path in problem.what
    assert problem.cure


def test_each_state_of_a_monitor_has_a_cure():
    assert set(_MONITOR_CURES) == {state for _error, state in _MONITOR_STATES} - {"answers"}


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({}, []),
        ({"restorable": None}, []),
        ({"superseded_by": "/s/new.save"}, [("image_superseded", False)]),
        ({"superseded_by": "/s/new.save", "state": "invalid"}, [("image_superseded", False)]),
        ({"copy_of": "/s/new.save", "restorable": False}, []),
        ({"state": "invalid", "name": None, "problems": ["no magic"]}, [("image_invalid", True)]),
        ({"state": "partial"}, [("image_partial", True)]),
        ({"state": "partial", "name": "db1"}, []),
        ({"state": "archived", "restorable": False}, []),
        ({"restorable": False, "restore_problems": [PROBLEM, WARNING]}, [("image_not_restorable", True)]),
        ({"restorable": False, "vouched": False}, [("image_not_restorable", True)]),
        ({"restorable": False, "launch": {"reason": "it has no command"}}, [("image_not_restorable", True)]),
    ],
)
def test_problems_of_an_image(facts, expected):
    found = image_problems([image(**facts)], {"db1"})
    assert told(found) == expected
    assert all(problem.what and problem.cure and problem.subject == "/s/web1.save" for problem in found)


def test_cure_of_an_image_that_nobody_vouches_for():
    (found,) = image_problems([image(restorable=False, vouched=False)], ())
    assert "vouch: true" in found.cure


@pytest.mark.parametrize(
    ("free", "needed", "expected"),
    [(None, 2**40, []), (2**30, 2**30, []), (2**30, 2**30 + 1, [("space", True)]), (0, 1, [("space", True)])],
)
def test_space(free, needed, expected):
    assert told(space_problems("/s", free, needed)) == expected
