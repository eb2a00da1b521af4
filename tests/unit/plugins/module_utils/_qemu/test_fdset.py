# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is taken for a note of an earlier run."""

from __future__ import annotations

import json

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.fdset import parse_note

NOTE: dict[str, object] = {"partial": "/x/\udcff.partial", "capabilities": {}, "more": None}


def test_note_of_ours():
    assert parse_note(json.dumps(NOTE), partial=str, capabilities=dict) == NOTE


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "5",
        "[" * 5000,
        '{"partial":' * 5000,
        json.dumps({**NOTE, "partial": 5}),
        json.dumps({**NOTE, "partial": "/x\0"}),
        json.dumps({**NOTE, "more": "\0"}),
        json.dumps({**NOTE, "capabilities": []}),
        json.dumps({"capabilities": {}}),
    ],
)
def test_what_is_none(text):
    with pytest.raises((TypeError, ValueError)):
        parse_note(text, partial=str, capabilities=dict)
