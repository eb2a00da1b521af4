# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import dataclasses
import os

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import systemd
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.command_line import restore_command
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.unit_command import (
    expanded,
    first_difference,
    has_variables,
    hidden_start_option,
    variables_of,
)

WORDS = ["/usr/bin/qemu", "-name", "web1", "-m", "64", "-serial", "file:/log", "-machine", "pc"]


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("plain", ["plain"]),
        ("$A", ["1", "2 3"]),
        ("${A}", ["1 '2 3'"]),
        ("x${B}y", ["xby"]),
        ("$UNSET", []),
        ("${UNSET}", [""]),
        ("x$B", ["x$B"]),
        ("$$B", ["$B"]),
        ("$$${B}", ["$b"]),
        ("$BROKEN", ["'x", "y"]),
        ("$", ["$"]),
        ("${}", ["${}"]),
        ("$1", ["$1"]),
    ],
)
def test_expansion(word, words):
    variables = {"A": "1 '2 3'", "B": "b", "BROKEN": "'x y"}
    assert expanded(["q", word], variables) == ["q", *words]


def test_variables():
    assert has_variables(["$A"])
    assert has_variables(["x${A}"])
    assert not has_variables(["$$A", "x$A", "a$", "$$", "100%"])


def test_variables_of_a_process(tmp_path):
    file = tmp_path / "file"
    file.write_text("B=of/file\n# C=1\nD='quoted'\n E=1,2\n")
    facts = dataclasses.replace(
        systemd.parse_units("Id=a.service\n")[0],
        environment=(("A", "of unit"), ("B", "of unit")),
        environment_files=(str(file), "/nonexistent"),
    )
    found = variables_of(os.getpid(), facts)
    assert {name: found[name] for name in ("A", "B", "E")} == {"A": "of unit", "B": "of/file", "E": "1,2"}
    assert "C" not in found
    assert "D" not in found
    assert found["PATH"]
    assert variables_of(0, None) == {}


@pytest.mark.parametrize(
    "running",
    [
        WORDS,
        ["vm", *WORDS[1:]],
        [*WORDS, "-S", "-incoming", "defer"],
        restore_command(WORDS),
        restore_command(WORDS, "pc-i440fx-10.0"),
        restore_command(restore_command(WORDS, "pc-i440fx-10.0"), "pc-i440fx-10.0"),
    ],
    ids=["same", "own-name", "attached", "restored", "pinned", "restored-twice"],
)
def test_no_difference(running):
    assert first_difference(WORDS, running) == ""


@pytest.mark.parametrize(
    ("running", "said"),
    [
        (["96" if word == "64" else word for word in WORDS], "-m in the place of -m"),
        ([*WORDS, "-pidfile", "/x"], "-pidfile in the place of nothing"),
        (WORDS[:-2], "nothing in the place of -machine"),
        ([*WORDS, "-machine", "q35,smm=on"], "-machine in the place of nothing"),
        ([*WORDS, "secret"], "a word that is not an option in the place of nothing"),
        ([*restore_command(WORDS, "pc-i440fx-10.0"), "-usb"], "in the place of nothing"),
    ],
)
def test_difference(running, said):
    assert said in first_difference(WORDS, running)
    assert "secret" not in first_difference(WORDS, running)


def test_start_option_in_a_variable():
    variables = {"MORE": "-usb -loadvm a", "NONE": "-usb"}
    assert hidden_start_option([*WORDS, "$MORE"], variables, daemonize=False) == "-loadvm"
    assert hidden_start_option([*WORDS, "$NONE"], variables, daemonize=False) == ""
    assert hidden_start_option([*WORDS, "-S", "-daemonize"], variables, daemonize=False) == ""
    assert hidden_start_option([*WORDS, "$D"], {"D": "-daemonize"}, daemonize=False) == "-daemonize"
    assert hidden_start_option([*WORDS, "$D"], {"D": "-daemonize"}, daemonize=True) == ""
