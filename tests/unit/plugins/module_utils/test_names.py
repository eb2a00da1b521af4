# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""By what a VM is called, and which patterns match it."""

from __future__ import annotations

import os

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._names import (
    VmNames,
    group_of,
    is_selected,
    label_of_unit,
    means_unit,
    options_of,
)

UUID = "1b4e28ba-2fa1-41d2-883f-b9a761bde3fb"
TWIN = VmNames(f"web1-{UUID}", "web1", UUID, "qemu@web1.service")
NAMELESS = VmNames(UUID, "", UUID)


def test_case_matters():
    assert VmNames("db1").matches(["web*", "db*"])
    assert not VmNames("DB1").matches(["web*", "db*"])
    assert not VmNames("db1").matches([])


def test_what_is_excluded_is_not_selected():
    assert is_selected(VmNames("db1"), ["*"], [])
    assert not is_selected(VmNames("db1"), ["*"], ["db?"])
    assert not is_selected(VmNames("db1"), ["web*"], [])
    assert not is_selected(TWIN, ["*"], [UUID.upper()])


@pytest.mark.parametrize(("name", "number"), [("db1", 0), ("web1", 1), ("db-web", 0), ("other", 2), ("", 2)])
def test_first_group_that_matches_counts(name, number):
    assert group_of(VmNames(name, name), [["db*"], ["web*", "*web"]]) == number


@pytest.mark.parametrize("word", [TWIN.own, "web1", UUID, UUID.upper(), "qemu@web1.service"])
def test_all_that_it_is_called(word):
    assert TWIN.is_called(word)
    assert TWIN.matches([word])
    assert options_of(TWIN, {"live": False}, {word: {"live": True}}) == {"live": True}


@pytest.mark.parametrize("pattern", ["1b4e*", "qemu@*", "*.service", "web1-*", "web", ""])
def test_patterns_are_of_names(pattern):
    assert not TWIN.matches([pattern])


def test_what_stands_for_a_name():
    assert NAMELESS.matches(["1b4e*"])
    assert NAMELESS.is_called(UUID)
    assert not NAMELESS.is_called("")


def test_unit_of_a_users_own_systemd(monkeypatch):
    """His own by its name, too; that of another user, or the host's of that name, is not meant."""
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    own, other = "user@54321.service/web1.service", "user@54322.service/web1.service"
    assert means_unit("web1.service", own)
    assert means_unit(own, own)
    assert means_unit(other, other)
    assert means_unit("web1.service", "web1.service")
    assert not means_unit("web1.service", other)
    assert not means_unit(own, "web1.service")
    assert VmNames("web1", unit=own).is_called("web1.service")
    assert not VmNames("web1", unit=other).is_called("web1.service")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert not means_unit("web1.service", own)


def test_units_of_one_name_stand_for_different_vms():
    units = ["web1.service", "user@54321.service/web1.service", "user@54322.service/web1.service"]
    assert len({label_of_unit(unit) for unit in units}) == len(units)
    assert not any("/" in label_of_unit(unit) for unit in units)
