# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils import _situation
from ansible_collections.vmops.qemu.plugins.module_utils._situation import (
    GUEST_WORDS,
    IMAGE_WORDS,
    Situation,
    guest_in,
)


def test_what_nobody_has_looked_at_is_not_known():
    assert Situation().words() == {"guest": "unknown", "image": {"state": "unknown"}}


@pytest.mark.parametrize(
    ("run_state", "word"),
    [
        ("running", "running"),
        ("paused", "paused"),
        ("postmigrate", "paused"),
        ("io-error", "paused"),
        ("inmigrate", "unknown"),
        ("restore-vm", "unknown"),
    ],
)
def test_a_guest_in_a_qemu(run_state, word):
    assert guest_in(run_state) == word


def test_a_guest_whose_qemu_waits_for_its_image():
    assert guest_in("inmigrate", "saved") == "saved"
    assert guest_in("running", "saved") == "running"


def test_the_words_are_explained():
    for word in {*GUEST_WORDS, *IMAGE_WORDS}:
        assert f"\n``{word}``" in (_situation.__doc__ or "")
