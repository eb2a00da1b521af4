# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._image.domain_xml import embed, parse
from ansible_collections.vmops.qemu.plugins.module_utils._image.record import LaunchRecord, SaveFacts
from ansible_collections.vmops.qemu.plugins.module_utils._image.vouching import vouch
from ansible_collections.vmops.qemu.plugins.module_utils._launch import (
    freeable_unit,
    launch_result,
    recorded_identity,
)
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import manager
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.identity import RecordedIdentity
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.unit import guard_text
from ansible_collections.vmops.qemu.plugins.module_utils._vouching_key import make_key

IMAGE = "/srv/save/web1.save"


def domain(unit, vouched=False):
    facts = SaveFacts("0.1.0", "10.0.2", "2026-03-01T09:30:00Z")
    xml = embed("<domain><name>web1</name></domain>", facts, LaunchRecord(["q"], "/", "/bin/q", 0, 0, unit=unit))
    return parse(vouch(xml, make_key()) if vouched else xml)


@pytest.fixture
def guard(monkeypatch, tmp_path):
    """Guard a unit for an image, as a save does."""
    monkeypatch.setattr(manager, "PERSISTENT", str(tmp_path))

    def write(unit, image):
        directory = tmp_path / f"{unit}.d"
        directory.mkdir()
        (directory / "50-vmops-saved.conf").write_text(guard_text([image]))

    return write


def test_unit_that_is_vouched_for_is_freed(guard):
    assert freeable_unit(domain("web1.service", vouched=True), IMAGE) == "web1.service"
    assert freeable_unit(domain("", vouched=True), IMAGE) == ""


def test_unit_that_is_not_vouched_for_is_not_freed(guard):
    """It may be any VM's; but where root has guarded it for this image, it is this one's."""
    assert freeable_unit(domain("web1.service"), IMAGE) == ""
    guard("web1.service", IMAGE)
    guard("db1.service", "/srv/save/db1.save")
    assert freeable_unit(domain("web1.service"), IMAGE) == "web1.service"
    assert freeable_unit(domain("db1.service"), IMAGE) == ""
    assert freeable_unit(domain("../../etc/x.service"), IMAGE) == ""


def test_image_without_a_record(guard):
    assert freeable_unit(parse("<domain><name>web1</name></domain>"), IMAGE) == ""


def test_why_it_is_not_started():
    record = domain("web1.service").launch
    assert launch_result(record) == {"how": "unit", "unit": "web1.service", "reason": ""}
    told = launch_result(record, unvouched="there is no key")
    assert told == {
        "how": "none",
        "unit": "web1.service",
        "reason": "nobody vouches for its record: there is no key",
    }


def test_who_ran_the_saved_vm():
    assert recorded_identity(domain("web1.service", vouched=True)) == RecordedIdentity(0, "web1.service")


def test_who_ran_it_is_not_known_where_nobody_vouches():
    """Whom the record names could be whoever has written it."""
    assert recorded_identity(domain("web1.service")) is None
    assert recorded_identity(None) is None
