# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._names import group_of, is_selected, matches


def test_case_matters():
    assert matches("db1", ["web*", "db*"])
    assert not matches("DB1", ["web*", "db*"])
    assert not matches("db1", [])


def test_what_is_excluded_is_not_selected():
    assert is_selected("db1", ["*"], [])
    assert not is_selected("db1", ["*"], ["db?"])
    assert not is_selected("db1", ["web*"], [])


@pytest.mark.parametrize(("name", "number"), [("db1", 0), ("web1", 1), ("db-web", 0), ("other", 2), ("", 2)])
def test_first_group_that_matches_counts(name, number):
    assert group_of(name, [["db*"], ["web*", "*web"]]) == number
