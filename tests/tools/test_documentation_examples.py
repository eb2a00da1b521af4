# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Every example of the documentation could be run: what it names is there, and takes what it is given."""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ansible
import pytest
import yaml

from support.documentation import blocks, check_syntax, commands, pages, spans
from support.guest import COLLECTIONS, SOURCES

PREFIX = "vmops.qemu."
#: What begins like a variable of a role.
VARIABLE = re.compile(r"(?:host_setup|host_maintenance|managed_save|managed_restore|doctor|vmops_qemu)_\w+")
#: Code that is a command, in a sentence or a block.
COMMAND = re.compile(r"(?:ansible|ansible-playbook|ansible-doc|make) ")
ROLES = {path.name for path in (SOURCES / "roles").iterdir()}
PLAYBOOKS = {path.stem for path in (SOURCES / "playbooks").glob("*.yml")}
TARGETS = set(re.findall(r"^([a-z-]+):", (SOURCES / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
VERSION = yaml.safe_load((SOURCES / "galaxy.yml").read_text(encoding="utf-8"))["version"]
SHELLS = ("sh", "bash", "console", "shell")


@functools.cache
def documented(kind: str) -> dict[str, dict[str, Any]]:
    """By the name of each plugin of a kind, its options, as ansible-doc has them."""
    folder = {"module": "modules", "inventory": "inventory"}[kind]
    names = [f"{PREFIX}{path.stem}" for path in (SOURCES / "plugins" / folder).glob("*.py")]
    said = subprocess.run(
        [str(Path(sys.executable).with_name("ansible-doc")), "--type", kind, "--json", *names],
        env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return {name: about["doc"]["options"] for name, about in json.loads(said.stdout).items()}


@functools.cache
def variables() -> set[str]:
    """What may be set for the roles and playbooks."""
    found = set()
    for role in ROLES:
        specs = yaml.safe_load((SOURCES / "roles" / role / "meta" / "argument_specs.yml").read_text(encoding="utf-8"))
        found |= {name for spec in specs["argument_specs"].values() for name in spec["options"]}
    for playbook in (SOURCES / "playbooks").glob("*.yml"):
        found |= set(re.findall(rf"({VARIABLE.pattern}) (?:\\||is defined)", playbook.read_text(encoding="utf-8")))
    return found


@functools.cache
def named() -> str:
    """All text in which roles, playbooks and plugins name things."""
    files = [path for folder in ("roles", "playbooks", "plugins") for path in (SOURCES / folder).rglob("*")]
    return "\n".join(path.read_text(encoding="utf-8") for path in files if path.suffix in (".yml", ".py", ".j2"))


# --- what is wrong with it ---------------------------------------------------------------------------------------


def wrong_options(name: str, given: dict[str, Any], options: dict[str, Any]) -> Iterator[str]:
    """What a plugin would not take."""
    for option, value in given.items():
        spec = options.get(option)
        if spec is None:
            yield f"{name} has no option {option}"
            continue
        if "{{" in str(value):
            continue
        choices = [str(choice).lower() for choice in spec.get("choices") or ()]
        if choices and str(value).lower() not in choices:
            yield f"{option} of {name} cannot be {value}"
        if spec["type"] in ("int", "float") and not re.fullmatch(r"[0-9.]+", str(value)):
            yield f"{option} of {name} is no number: {value}"
        if spec["type"] == "bool" and str(value).lower() not in ("true", "false", "yes", "no"):
            yield f"{option} of {name} is no bool: {value}"


def wrong_values(value: Any) -> Iterator[str]:
    """What is wrong in a document of YAML."""
    if isinstance(value, list):
        for each in value:
            yield from wrong_values(each)
    if not isinstance(value, dict):
        return
    if str(value.get("plugin", "")).startswith(PREFIX):
        options = documented("inventory").get(value["plugin"])
        yield from wrong_options(value["plugin"], value, options) if options else [f"no inventory {value['plugin']}"]
        return
    for key, inner in value.items():
        yield from wrong_key(str(key), inner)
        yield from wrong_values(inner)


def wrong_key(key: str, inner: Any) -> Iterator[str]:
    """What is wrong with a key and its value."""
    _before, _dot, last = key.rpartition(".")
    if key.startswith(PREFIX):
        options = documented("module").get(key)
        yield from wrong_options(key, inner or {}, options) if options is not None else [f"there is no module {key}"]
    elif key.startswith("ansible.builtin."):
        places = [Path(ansible.__file__).parent / place / f"{last}.py" for place in ("modules", "plugins/action")]
        if not any(place.exists() for place in places) and last not in ("import_playbook",):
            yield f"there is no module {key}"
    elif VARIABLE.fullmatch(key) and key not in variables():
        yield f"nobody takes the variable {key}"
    if key == "roles":
        roles = [each["role"] if isinstance(each, dict) else each for each in inner]
        yield from (f"there is no role {role}" for role in roles if not is_there(role, ROLES))
    if last in ("include_role", "import_role") and not is_there(inner["name"], ROLES):
        yield f"there is no role {inner['name']}"
    if last == "import_playbook" and not is_there(inner, PLAYBOOKS):
        yield f"there is no playbook {inner}"
    for prefix in ("managed_save", "managed_restore"):
        module = f"{PREFIX}{prefix.replace('managed', 'qemu')}"
        if key == f"{prefix}_options":
            yield from wrong_options(module, inner, documented("module")[module])
        if key == f"{prefix}_by_vm":
            for options in inner.values():
                yield from wrong_options(module, options, documented("module")[module])


def is_there(name: str, among: set[str]) -> bool:
    """Whether something of the collection is there; what is not of it is somebody else's affair."""
    return not name.startswith(PREFIX) or name[len(PREFIX) :] in among


def wrong_command(line: str) -> Iterator[str]:
    """What is wrong with a command."""
    words = shlex.split(line, comments=True)
    program, arguments = words[0], words[1:]
    after = {option: [b for a, b in zip(arguments, arguments[1:]) if a == option] for option in ("-m", "-a", "-e")}
    if program == "ansible" and after["-m"]:
        module = after["-m"][0]
        options = documented("module").get(module)
        if module.startswith(PREFIX) and options is None:
            yield f"there is no module {module}"
        if options and after["-a"]:
            given = dict(word.partition("=")[::2] for word in shlex.split(after["-a"][0]))
            yield from wrong_options(module, given, options)
    if program == "ansible-playbook":
        yield from (f"there is no playbook {word}" for word in arguments if not is_there(word, PLAYBOOKS))
    if program == "ansible-doc":
        known = {*documented("module"), *(f"{PREFIX}{name}" for name in ROLES), *documented("inventory")}
        yield from (f"nothing documents {word}" for word in arguments if word.startswith(PREFIX) and word not in known)
    for setting in after["-e"]:
        name = setting.partition("=")[0]
        if VARIABLE.fullmatch(name) and name not in variables():
            yield f"nobody takes the variable {name}"
    if program == "make":
        goals = [word for word in arguments if re.fullmatch(r"[a-z-]+", word)]
        yield from (f"make has no target {goal}" for goal in goals if goal not in TARGETS)


def wrong_text(text: str) -> Iterator[str]:
    """What is wrong with any text."""
    for version in re.findall(r"vmops-qemu-([\w.]+)\.tar\.gz", text):
        if version != VERSION:
            yield f"{version} is not the version of the collection, {VERSION}"


# --- the examples ------------------------------------------------------------------------------------------------

BLOCKS = [block for page in pages() for block in blocks(page)]


def test_there_are_examples():
    languages = [block.language for block in BLOCKS]
    assert len(BLOCKS) > 50
    assert languages.count("yaml") > 15
    assert sum(bool(COMMAND.match(command)) for block in BLOCKS for command in commands(block.text)) > 10


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_block(block):
    found = list(wrong_text(block.text))
    value = None
    if block.language in ("yaml", "yml"):
        value = yaml.safe_load(block.text)
        assert isinstance(value, (dict, list)), block.text
    elif not block.language and re.match(r"(#.*\n)?(- |plugin:|\w+: )", block.text):
        value = yaml.safe_load(block.text)
    found += wrong_values(value)
    if block.language in SHELLS:
        assert check_syntax("\n".join(commands(block.text))) == ""
    if block.language in (*SHELLS, ""):
        found += [wrong for line in commands(block.text) if COMMAND.match(line) for wrong in wrong_command(line)]
    assert found == [], block.text


@pytest.mark.parametrize("page", pages())
def test_code_in_sentences(page):
    found = []
    for place, span in spans(page):
        wrong = list(wrong_command(span)) if COMMAND.match(span) else []
        wrong += wrong_text(span)
        name = re.match(r"(\w+)(?:[=:].*)?$", span)
        if name and VARIABLE.fullmatch(name[1]) and not re.search(rf"\b{name[1]}\b", named()):
            wrong.append(f"nothing is called {name[1]}")
        module = re.fullmatch(rf"(?:{re.escape(PREFIX)})?qemu_(\w+)", span)
        # A group of the inventory is made of its state.
        if module and not re.search(rf"\b(qemu_)?{module[1]}\b", named()):
            wrong.append(f"nothing is called {span}")
        found += [f"{place}: {each} ({span})" for each in wrong]
    assert found == []


@pytest.mark.parametrize("example", sorted(path.stem for path in (SOURCES / "plugins" / "modules").glob("*.py")))
def test_examples_of_modules(example):
    text = (SOURCES / "plugins" / "modules" / f"{example}.py").read_text(encoding="utf-8")
    found = re.search(r'^EXAMPLES = r"""\n(.*?)^"""', text, re.MULTILINE | re.DOTALL)
    assert found
    assert list(wrong_values(yaml.safe_load(found[1]))) == []


@pytest.mark.parametrize(
    "text",
    [
        "- vmops.qemu.qemu_sav: {name: web1}",
        "- vmops.qemu.qemu_save: {nmae: web1}",
        "- vmops.qemu.qemu_restore: {name: web1, state: stopped}",
        "- vmops.qemu.qemu_save: {name: web1, timeout: long}",
        "- ansible.builtin.rebot:",
        "- {hosts: a, roles: [vmops.qemu.host_setups]}",
        "- {hosts: a, roles: [{role: vmops.qemu.host_setup, host_setup_boot: true}]}",
        "- ansible.builtin.include_role: {name: vmops.qemu.managed}",
        "- import_playbook: vmops.qemu.maintenance",
        "managed_save_options: {after: quit}",
        "plugin: vmops.qemu.vms",
        "{plugin: vmops.qemu.qemu_vms, hosts: a}",
    ],
)
def test_mistakes_are_found(text):
    assert list(wrong_values(yaml.safe_load(text)))


@pytest.mark.parametrize(
    "line",
    [
        "ansible hv1 -b -m vmops.qemu.qemu_sav -a name=web1",
        "ansible hv1 -b -m vmops.qemu.qemu_save -a 'name=web1 liv=true'",
        "ansible-playbook vmops.qemu.maintenance -b",
        "ansible-playbook vmops.qemu.doctor -e doctor_host=hv1",
        "ansible-doc vmops.qemu.qemu_saves",
        "make all",
    ],
)
def test_mistakes_in_commands_are_found(line):
    assert list(wrong_command(line))
