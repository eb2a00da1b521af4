# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether the services of the role host_setup did what they are for; systemd's own words are tested on a machine."""

from __future__ import annotations

import os
import time

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._host import own_services
from ansible_collections.vmops.qemu.plugins.module_utils._host.info import service_problems
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.systemd import parse_units

RESTORE, SAVE = own_services.BOOT_RESTORE, own_services.SHUTDOWN_SAVE


def unit(name=RESTORE, **facts):
    known = {"LoadState": "loaded", "ActiveState": "active", "UnitFileState": "enabled", "ConditionResult": "no"}
    lines = {"Id": name, **known, "ConditionTimestampMonotonic": "0", **facts}
    return parse_units("".join(f"{key}={value}\n" for key, value in lines.items()))[0]


NOT_MET = {"ActiveState": "inactive", "ConditionTimestampMonotonic": "17"}


@pytest.mark.parametrize(
    ("facts", "images_known", "has_failed"),
    [
        ({"ActiveState": "failed"}, True, True),
        ({"ActiveState": "active"}, False, False),
        ({"ActiveState": "activating"}, False, False),
        ({"ActiveState": "inactive", "Job": "7"}, False, False),
        (NOT_MET, True, False),
        (NOT_MET, False, True),
        ({**NOT_MET, "ConditionResult": "yes"}, False, False),
    ],
)
def test_restore_that_has_failed(facts, images_known, has_failed):
    assert own_services.restore_has_failed(unit(**facts), images_known) == has_failed


@pytest.mark.parametrize(("enabled", "has_failed"), [("before the boot", True), ("after it", False), ("never", False)])
@pytest.mark.parametrize("images_known", [True, False])
def test_restore_that_was_never_begun(tmp_path, monkeypatch, enabled, has_failed, images_known):
    monkeypatch.setattr(own_services, "age", lambda pid: 600.0)
    (tmp_path / "multi-user.target.wants").mkdir()
    if enabled != "never":
        link = tmp_path / "multi-user.target.wants" / RESTORE
        link.symlink_to(tmp_path / RESTORE)
        moment = time.time() - (1200 if enabled == "before the boot" else 300)
        os.utime(link, (moment, moment), follow_symlinks=False)
    found = unit(ActiveState="inactive", FragmentPath=str(tmp_path / RESTORE))
    assert own_services.restore_has_failed(found, images_known) == has_failed


@pytest.mark.parametrize(
    ("facts", "kinds"),
    [
        ({}, []),
        ({"UnitFileState": ""}, []),
        ({"UnitFileState": "enabled-runtime"}, []),
        ({"LoadState": "not-found", "ActiveState": "inactive", "UnitFileState": ""}, ["missing"]),
        ({"ActiveState": "failed"}, ["failed"]),
        ({"ActiveState": "inactive"}, ["inactive"]),
        ({"ActiveState": "deactivating"}, ["inactive"]),
        ({"ActiveState": "inactive", "Job": "7"}, []),
        ({"UnitFileState": "disabled"}, ["disabled"]),
        ({"ActiveState": "inactive", "UnitFileState": "disabled"}, ["inactive", "disabled"]),
        ({"LoadState": "masked", "UnitFileState": "masked"}, ["inactive", "disabled"]),
        ({"LoadState": "masked", "UnitFileState": "masked", "ActiveState": "inactive"}, ["inactive", "disabled"]),
    ],
)
def test_what_the_doctor_says_of_the_save(facts, kinds):
    found = service_problems([unit(), unit(SAVE, **facts)])
    assert [(problem.subject, problem.kind, problem.blocks) for problem in found] == [
        (SAVE, f"shutdown_save_{kind}", False) for kind in kinds
    ]


@pytest.mark.parametrize(
    ("facts", "kinds"),
    [
        ({"LoadState": "not-found", "ActiveState": "inactive", "UnitFileState": ""}, ["missing"]),
        ({"ActiveState": "failed"}, ["failed"]),
        (NOT_MET, []),
        ({**NOT_MET, "UnitFileState": "disabled"}, ["disabled"]),
        ({"ActiveState": "inactive", "LoadState": "masked", "UnitFileState": "masked"}, ["disabled"]),
    ],
)
def test_what_the_doctor_says_of_the_restore(facts, kinds):
    found = service_problems([unit(**facts), unit(SAVE)])
    assert [problem.kind for problem in found] == [f"boot_restore_{kind}" for kind in kinds]
