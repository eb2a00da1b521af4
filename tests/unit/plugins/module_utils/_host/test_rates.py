# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils import _state_directory
from ansible_collections.vmops.qemu.plugins.module_utils._host.rates import keep_rate, read_rates, seconds_for


@pytest.fixture
def place(own_key):
    """Where they are kept."""
    return own_key.parent / "rates.json"


def test_are_kept_for_the_next_run(place):
    assert read_rates() == {}
    keep_rate("save", 1000, 4.0)
    keep_rate("restore", 1000, 5.0)
    keep_rate("save", 1000, 2.0)
    assert read_rates() == {"save": 500.0, "restore": 200.0}
    assert place.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("size", "seconds"), [(0, 1.0), (1, 0.0), (-1, 1.0)])
def test_what_measures_nothing_is_not_kept(place, size, seconds):
    keep_rate("save", size, seconds)
    assert not place.exists()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"save": "x"}', '{"save": true}', '{"save": NaN}', '{"save": 0}', "9" * 5000]
)
def test_what_makes_no_sense_counts_as_none(place, text):
    keep_rate("save", 1000, 4.0)
    place.write_text(text)
    assert read_rates() == {}
    keep_rate("restore", 1000, 5.0)
    assert read_rates() == {"restore": 200.0}


def test_what_others_could_have_written_is_not_believed(place):
    keep_rate("save", 1000, 4.0)
    place.chmod(0o666)
    assert read_rates() == {}


def test_place_that_cannot_be_written_to(place, monkeypatch):
    monkeypatch.setattr(_state_directory, "ROOT_DIRECTORY", "/proc/none")
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/none")
    keep_rate("save", 1000, 4.0)
    assert read_rates() == {}


def test_seconds():
    assert seconds_for(1000, 250.0) == 4.0
    assert seconds_for(1000, None) is None
