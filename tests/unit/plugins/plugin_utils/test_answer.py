# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the controller lets in of a host's answer."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import yaml
from ansible_collections.vmops.qemu.plugins import plugin_utils
from ansible_collections.vmops.qemu.plugins.module_utils._situation import GUEST_WORDS, IMAGE_WORDS
from ansible_collections.vmops.qemu.plugins.plugin_utils._answer import ERROR, RETURNED, reduce_answer
from hypothesis import given
from hypothesis import strategies as st

PLUGINS = Path(next(iter(plugin_utils.__path__))).parent


def documented(module):
    """The keys of a module's RETURN, with their types."""
    return {key: value["type"] for key, value in returned(module).items()}


def returned(module):
    """What a module's RETURN says."""
    for node in ast.parse((PLUGINS / "modules" / f"{module}.py").read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "RETURN":
            return yaml.safe_load(ast.literal_eval(node.value))
    raise AssertionError(module)


def modules():
    return sorted(path.stem for path in (PLUGINS / "modules").glob("qemu_*.py"))


def test_every_module_has_its_answer_reduced():
    assert sorted(RETURNED) == modules()
    for module in modules():
        action = (PLUGINS / "action" / f"{module}.py").read_text()
        assert "(ModuleAction)" in action or "(HostRunAction)" in action, module


@pytest.mark.parametrize("module", modules())
def test_documented_keys_are_let_in(module):
    assert dict(RETURNED[module]) == documented(module)


@pytest.mark.parametrize("module", sorted(set(modules()) - {"qemu_progress_info"}))
def test_every_module_says_the_same_of_its_failures(module):
    """Ansible has no fragments for return values."""
    told, model = returned(module), returned("qemu_save")
    assert ERROR.items() <= documented(module).items()
    assert told["guest"] == model["guest"]
    assert told["cure"] == model["cure"]
    assert told["error"]["description"] == model["error"]["description"]
    assert told["image"]["description"][-1] == model["image"]["description"][-1]
    for word in GUEST_WORDS:
        assert f"V({word})" in str(told["guest"]["description"])
    for word in IMAGE_WORDS:
        assert f"V({word})" in told["image"]["description"][-1]


def test_what_is_no_answer_is_told_with_the_words_for_what_is_not_known():
    result, _warnings = reduce_answer("qemu_save", {"image": "complete", "guest": "running"})
    assert result["error"] == "AnswerError"
    assert (result["guest"], result["image"]) == ("unknown", {"state": "unknown"})


def test_result_is_let_in_as_it_is():
    result = {"changed": True, "msg": "saved", "stopped_at": 1764000000.5, "image": {"path": "/a", "size": 2**40}}
    assert reduce_answer("vmops.qemu.qemu_save", result) == (result, [])


def test_none_is_a_value():
    assert reduce_answer("qemu_restore", {"msg": "x", "unit": None})[0] == {"msg": "x", "unit": None}


@pytest.mark.parametrize("value", [-1, 1e30, float("nan"), float("inf"), 253402300799, "soon", True, [1], 10**400])
def test_figure_that_cannot_be(value):
    result, _warnings = reduce_answer("qemu_save", {"msg": "saved", "changed": True, "stopped_at": value})
    assert result == {"msg": "saved", "changed": True, "disbelieved": ["stopped_at"]}


@pytest.mark.parametrize(
    "answer",
    [
        None,
        [],
        "text",
        {"msg": ["a"]},
        {"msg": "a", "vms": {"a": 1}},
        {"msg": "a", "vms": [object()]},
        {"msg": "a", "vms": ["x" * 2**20] * 40},
        {"msg": "a", "vms": [[0] * 1001] * 1000},
    ],
    ids=lambda value: repr(value)[:30],
)
def test_what_is_no_result_is_a_failure(answer):
    result, warnings = reduce_answer("qemu_vm_info", answer)
    assert result["failed"]
    assert result["error"] == "AnswerError"
    assert warnings == []
    assert len(result["msg"]) < 1000


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30, 10**400, -1, "x", True])
def test_figure_of_a_vm_that_cannot_be_is_named_at_that_vm(value):
    """Also one that no number of 64 bits is; the others are as they were."""
    vms = [{"name": "web1", "stopped_at": value, "image": {"allocated": 10**400}}, {"name": "db1", "stopped_at": 1.5}]
    result, _warnings = reduce_answer("qemu_managed_save", {"msg": "saved", "vms": vms})
    assert result["vms"] == [
        {"name": "web1", "image": {"allocated": None}, "disbelieved": ["allocated", "stopped_at"]},
        {"name": "db1", "stopped_at": 1.5},
    ]
    assert result["disbelieved"] == ["allocated", "stopped_at"]


def test_vms_have_bounds_together():
    vms = [{"name": "x" * 2**20, "msg": "x" * 2**20, "reasons": {"a": "x" * 2**20}} for _number in range(20)]
    result, _warnings = reduce_answer("qemu_managed_save", {"msg": "saved", "vms": vms})
    assert result["error"] == "AnswerError"
    assert "it is longer than 32 MiB" in result["msg"]


def test_nesting_has_an_end():
    deep: object = 1
    for _level in range(2000):
        deep = [deep]
    assert reduce_answer("qemu_vm_info", {"msg": "a", "vms": deep})[0]["failed"]


def test_words_are_shown_in_lines():
    told = {"failed": True, "msg": "a\n\x1b[2J", "exception": "one\n\x1b[2J", "warnings": ["w\n\x07", 7, None]}
    result, warnings = reduce_answer("qemu_vm_info", told)
    assert result["msg"] == "a\\n\\x1b[2J"
    assert result["exception"] == "one\n\\x1b[2J"
    assert warnings == ["w\\n\\x07"]


def test_words_have_bounds():
    told = {"failed": True, "msg": "m" * 10**6, "exception": "e\n" * 10**6, "warnings": ["w" * 10**6] * 100}
    result, warnings = reduce_answer("qemu_vm_info", told)
    assert len(result["msg"]) + len(result["exception"]) + sum(map(len, warnings)) < 200_000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
)
KEYS = sorted(
    {key for keys in RETURNED.values() for key in keys} | {"changed", "failed", "warnings", "exception", "diff"}
)


@given(module=st.sampled_from(modules()), answer=st.dictionaries(st.sampled_from(KEYS), JSON), job=st.booleans())
def test_any_answer(module, answer, job):
    result, warnings = reduce_answer(module, answer, job)
    assert result.get("failed") or set(result) <= set(answer) | {"disbelieved"}
    assert all(isinstance(warning, str) for warning in warnings)
