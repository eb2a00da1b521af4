# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The words that a VM's unit has for its QEMU: what a restore starts in their place of those that /proc shows.

What /proc shows a process can write; a unit's ExecStart= is root's. The two are compared, so that a unit that was
changed since its start, and a process that says another thing than it was started with, are found before a save.

Sources: systemd.service(5), "Command lines"; systemd's src/basic/env-util.c (replace_env_argv).
"""

from __future__ import annotations

import re
import shlex
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._bounded_read import read_bounded
from ansible_collections.vmops.qemu.plugins.module_utils._proc import read_environment
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import command_line, systemd

#: Bytes that are read of a process's environment, and of a file with variables.
_MAX_ENVIRONMENT = 256 * 1024
_MAX_FILE = 64 * 1024

_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_REFERENCE = re.compile(rf"\$\$|\$\{{({_NAME})\}}")
_LONE = re.compile(rf"\$({_NAME})")

_ADDITION = re.compile(r"chardev\.[^=]+\.(?:append|logappend)=on")

#: A line of a file with variables whose value has nothing that is quoted.
_PLAIN_LINE = re.compile(rf"^[ \t]*({_NAME})=([\w./:,=+@-]*)[ \t]*$", re.MULTILINE)


def has_variables(words: t.Sequence[str]) -> bool:
    """Whether systemd has anything to expand in a unit's words."""
    return any(_LONE.fullmatch(word) or any(found.group(1) for found in _REFERENCE.finditer(word)) for word in words)


def expanded(words: t.Sequence[str], variables: t.Mapping[str, str]) -> list[str]:
    """A unit's words as systemd executes them: a variable that is not set is empty."""
    found: list[str] = []
    for word in words:
        lone = _LONE.fullmatch(word)
        if lone:
            found += _split(variables.get(lone.group(1), ""))
        else:
            found.append(
                _REFERENCE.sub(lambda match: variables.get(match.group(1), "") if match.group(1) else "$", word)
            )
    return found


def _split(value: str) -> list[str]:
    try:
        return shlex.split(value)
    except ValueError:
        return value.split()


def variables_of(pid: int, facts: systemd.Unit | None) -> dict[str, str]:
    """The variables with which the unit would start its program now.

    Those that the running one was started with, and in their place what the unit and its files say now where that can
    be told.
    """
    found: dict[str, str] = {}
    try:
        text = read_environment(pid).decode("utf-8", "surrogateescape")
        found = {name: value for name, _equals, value in (entry.partition("=") for entry in text.split("\0"))}
    except OSError:
        pass
    if facts is None:
        return found
    found.update(facts.environment)
    for path in facts.environment_files:
        try:
            found.update(_PLAIN_LINE.findall(read_bounded(path, _MAX_FILE).decode("utf-8", "surrogateescape")))
        except OSError:
            continue
    return found


def first_difference(unit_words: t.Sequence[str], words: t.Sequence[str]) -> str:
    """What of a command line is not its unit's, as a clause; the empty string where a start by the unit gives it.

    What a restore has put there is its own: the machine type that it pins, files that are appended to, and how QEMU
    waits for its state.

    :param unit_words: the unit's; with variables expanded where the others are.
    :param words: a running QEMU's, or those that the unit had.
    """
    own, running = (command_line.start_command(given) for given in (unit_words, words))
    if _without_additions(own)[1:] in (_without_additions(running)[1:], _without_additions(_without_pin(running))[1:]):
        return ""
    place = next((number for number in range(1, min(len(own), len(running))) if own[number] != running[number]), 0)
    place = place or min(len(own), len(running))
    return f"{_option_at(running, place)} in the place of {_option_at(own, place)}"


def _without_pin(words: list[str]) -> list[str]:
    """A command line without the machine type that a restore has appended."""
    pinned = len(words) > 2 and words[-2] == "-machine" and not set(words[-1]) & set("=,")
    return words[:-2] if pinned else words


def _without_additions(words: list[str]) -> list[str]:
    """A command line without what a restore has appended for the consoles of its files (``appending_settings``)."""
    while len(words) > 2 and words[-2] == "-set" and _ADDITION.fullmatch(words[-1]):
        words = words[:-2]
    return words


def _option_at(words: t.Sequence[str], place: int) -> str:
    """What stands at a place of a command line, without an argument of it, which may be a secret."""
    if place >= len(words):
        return "nothing"
    for option in command_line.options(words):
        if option.start <= place < option.end:
            return f"-{option.name[:40]}"
    return "a word that is not an option"


def hidden_start_option(words: t.Sequence[str], variables: t.Mapping[str, str], daemonize: bool) -> str:
    """An option in the variables of a unit's words that a restore would have to take out, and cannot; or nothing.

    :param words: the unit's, with its variables.
    :param daemonize: whether ``-daemonize`` stays.
    """
    started = expanded(command_line.start_command(words, daemonize), variables)
    return next((f"-{option.name}" for option in command_line.start_options(started, daemonize)), "")
