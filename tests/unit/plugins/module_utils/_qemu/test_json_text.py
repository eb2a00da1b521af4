# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""QEMU's JSON, in which strings may be in single quotes."""

from __future__ import annotations

import json

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.json_text import read_json
from hypothesis import given
from hypothesis import strategies as st

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{'a': 'b', \"c\": 1}", {"a": "b", "c": 1}),
        ("""{'a': 'say "b"'}""", {"a": 'say "b"'}),
        (r"""{'a': 'it\'s'}""", {"a": "it's"}),
        (r"""{"a": "it\'s"}""", {"a": "it's"}),
        ("""{"a": "it's"}""", {"a": "it's"}),
        (r"{'a': '\\', 'b': '\u00e4\n'}", {"a": "\\", "b": "ä\n"}),
        ("{'a': true, 'b': [null]}", {"a": True, "b": [None]}),
    ],
)
def test_what_it_stands_for(text, value):
    assert read_json(text) == value


@pytest.mark.parametrize("text", ["", "{'a'", "{'a': 'b\"}", "{'a': b}", "'\\"])
def test_none(text):
    with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
        read_json(text)


@given(st.recursive(TEXT | st.integers() | st.booleans(), lambda inner: st.dictionaries(TEXT, inner), max_leaves=5))
def test_any_json_is_read_as_ever(value):
    assert read_json(json.dumps(value)) == value
    assert read_json(json.dumps(value, ensure_ascii=False)) == value


@given(TEXT)
def test_any_text_in_single_quotes(text):
    inside = json.dumps(text)[1:-1].replace('\\"', '"').replace("'", "\\'")
    assert read_json(f"'{inside}'") == text
