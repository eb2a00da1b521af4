# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a module documents, what Ansible checks of its options, and what its operation is asked for are the same."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import subprocess
import typing
from pathlib import Path

import pytest
import yaml
from ansible_collections.vmops.qemu.plugins import doc_fragments, modules
from ansible_collections.vmops.qemu.plugins.module_utils import _options
from ansible_collections.vmops.qemu.plugins.module_utils._host.info import HostInfoRequest
from ansible_collections.vmops.qemu.plugins.module_utils._options import SAVE_DIR, TIMEOUT, changed, without
from ansible_collections.vmops.qemu.plugins.module_utils._restore.request import RestoreRequest
from ansible_collections.vmops.qemu.plugins.module_utils._save.request import SaveRequest
from ansible_collections.vmops.qemu.plugins.module_utils._save_image import SaveImageRequest
from ansible_collections.vmops.qemu.plugins.module_utils._vm_info import VmInfoRequest

PACKAGE = "ansible_collections.vmops.qemu.plugins"


def files_of(package) -> list[str]:
    return sorted(path.stem for path in Path(next(iter(package.__path__))).glob("*.py") if path.stem != "__init__")


MODULES = files_of(modules)
#: They say nothing of options.
ATTRIBUTES = "_attributes"
FRAGMENTS = [name for name in files_of(doc_fragments) if name != ATTRIBUTES]


@functools.lru_cache
def documentation() -> dict[str, typing.Any]:
    """What ``ansible-doc`` makes of the modules and their fragments, by module."""
    names = [f"vmops.qemu.{name}" for name in MODULES]
    run = subprocess.run(["ansible-doc", "--json", *names], check=True, stdout=subprocess.PIPE, text=True)
    return {name.rpartition(".")[2]: content for name, content in json.loads(run.stdout).items()}


def documented(name: str) -> dict[str, typing.Any]:
    options: dict[str, typing.Any] = documentation()[name]["doc"]["options"]
    return options


@functools.lru_cache
def checked(name: str) -> dict[str, typing.Any]:
    """The argument spec of a module."""
    module = importlib.import_module(f"{PACKAGE}.modules.{name}")

    class Made(Exception):
        pass

    def make(argument_spec, **_more):
        raise Made(argument_spec)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "AnsibleModule", make)
        with pytest.raises(Made) as made:
            module.main()
    spec: dict[str, typing.Any] = made.value.args[0]
    return spec


def facts(option: dict[str, typing.Any]) -> dict[str, typing.Any]:
    """What both documentation and argument specs say of an option."""
    told = {key: option.get(key) for key in ("elements", "default", "choices")}
    return {"type": option.get("type", "str"), "required": bool(option.get("required")), **told}


# --- documentation and argument specs ---


@pytest.mark.parametrize("name", MODULES)
def test_what_is_documented_is_what_is_checked(name):
    assert {key: facts(option) for key, option in documented(name).items()} == {
        key: facts(option) for key, option in checked(name).items()
    }


@pytest.mark.parametrize("name", FRAGMENTS)
def test_shared_options_have_a_fragment_of_the_same_name(name):
    fragment = importlib.import_module(f"{PACKAGE}.doc_fragments.{name}").ModuleDocFragment
    spec = getattr(_options, name[1:].upper())
    options = yaml.safe_load(fragment.DOCUMENTATION)["options"]
    assert {key: facts(option) for key, option in options.items()} == {
        key: facts(option) for key, option in spec.items()
    }
    assert all(option["description"] for option in options.values())


def test_each_shared_spec_has_a_fragment():
    assert sorted(f"_{name.lower()}" for name in vars(_options) if name.isupper()) == FRAGMENTS


@pytest.mark.parametrize("name", MODULES)
def test_a_module_says_only_what_is_different_of_shared_options(name):
    own = yaml.safe_load(importlib.import_module(f"{PACKAGE}.modules.{name}").DOCUMENTATION)
    for fragment in FRAGMENTS:
        if f"vmops.qemu.{fragment}" in own["extends_documentation_fragment"]:
            for key, shared in getattr(_options, fragment[1:].upper()).items():
                option = own.get("options", {}).get(key, {})
                same = ("type", "choices", "default")
                repeated = [word for word in same if word in option and option[word] == shared.get(word)]
                assert repeated == [], f"{name} repeats it of {key}"


# --- requests ---

#: Types of an argument spec, and the annotation of a field with such a value.
ANNOTATIONS = {
    "str": "str",
    "path": "str",
    "int": "int",
    "float": "float",
    "bool": "bool",
    "raw": "int",  # a mode, which is parsed
}
#: Fields that come from other options, or from Ansible.
PARSED = {"bandwidth": "int"}
REQUESTS: list[tuple[str, typing.Any, tuple[typing.Any, ...], set[str]]] = [
    (
        "qemu_save",
        SaveRequest,
        (TIMEOUT, {"owner": {}, "group": {}}),
        {"uid", "gid", "managed", "image_name", "check_mode"},
    ),
    ("qemu_restore", RestoreRequest, (TIMEOUT,), {"check_mode"}),
    ("qemu_save_image", SaveImageRequest, (), {"check_mode"}),
    ("qemu_vm_info", VmInfoRequest, (), set()),
    ("qemu_host_info", HostInfoRequest, (), set()),
]


@pytest.mark.parametrize(("name", "request_type", "left_out", "added"), REQUESTS)
def test_a_request_has_the_options_as_fields(name, request_type, left_out, added):
    options = without(checked(name), *left_out)
    fields = {field.name: field for field in dataclasses.fields(request_type)}
    assert set(fields) == set(options) | added
    for key, option in options.items():
        elements = option.get("elements")
        kind = PARSED.get(key) or (f"list[{elements}]" if elements else ANNOTATIONS[option["type"]])
        given = option.get("default") is not None or "fallback" in option
        assert fields[key].type == (kind if given else f"{kind} | None"), key


@pytest.mark.parametrize(("name", "request_type", "left_out", "added"), REQUESTS)
def test_a_request_has_the_defaults_of_the_options(name, request_type, left_out, added):
    options = without(checked(name), *left_out)
    for field in dataclasses.fields(request_type):
        if field.name in options and field.default is not dataclasses.MISSING:
            default = options[field.name].get("default")
            assert field.default == (int(default, 8) if field.name == "mode" else default), field.name


# --- what is returned ---

#: Return values that several modules have, by where they stand; all that is said of them is the same but for examples.
REPEATED = [
    (("qemu_save", "vm"), ("qemu_restore", "vm")),
    (("qemu_save", "reasons"), ("qemu_restore", "reasons")),
    (("qemu_save", "duration"), ("qemu_restore", "duration")),
    (("qemu_save", "launch"), ("qemu_vm_info", "vms", "launch")),
    # These have no errors of this collection.
    *(
        (("qemu_save", key), (name, key))
        for name in MODULES
        for key in ("error", "guest", "cure")
        if name not in ("qemu_save", "qemu_progress_info", "maintenance_report")
    ),
]


def returned(name: str, key: str, *below: str) -> dict[str, typing.Any]:
    value = documentation()[name]["return"][key]
    for step in below:
        value = value["contains"][step]
    return value


def said(value: typing.Any) -> typing.Any:
    """What a block says, without its examples and when it is returned."""
    if not isinstance(value, dict):
        return value
    # A description of one sentence may stand alone or in a list.
    return {
        key: [content] if key == "description" and isinstance(content, str) else said(content)
        for key, content in value.items()
        if key not in ("sample", "returned")
    }


@pytest.mark.parametrize(("one", "other"), REPEATED, ids=".".join)
def test_repeated_blocks_say_the_same(one, other):
    assert said(returned(*one)) == said(returned(*other))


def test_values_of_one_name_have_one_type():
    for key in {key for name in MODULES for key in documentation()[name]["return"]}:
        blocks = [documentation()[name]["return"].get(key) for name in MODULES]
        assert len({(block["type"], block.get("elements")) for block in blocks if block}) == 1, key


# --- the tools for specs ---


def test_changed_leaves_what_is_shared():
    spec = {"a": {"type": "int"}, "b": {"type": "str"}}
    assert changed(spec, a={"default": 1}) == {"a": {"type": "int", "default": 1}, "b": {"type": "str"}}
    assert spec == {"a": {"type": "int"}, "b": {"type": "str"}}


def test_without():
    assert without({"a": 1, "timeout": 2, "save_dir": 3}, TIMEOUT, SAVE_DIR) == {"a": 1}
