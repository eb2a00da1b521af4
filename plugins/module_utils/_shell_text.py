# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What can be told of a shell script without running it: its commands, and whether it starts something in a loop.

This is no parser of the shell's language. It is right about scripts as people write them to start a VM; where it may
be wrong, its callers say what they have found, and that it may be wrong.
"""

from __future__ import annotations

import os
import re
import shlex
import typing as t

SHELLS = frozenset(("sh", "bash", "dash", "zsh", "ksh", "mksh", "ash", "busybox", "fish", "rbash", "yash"))

#: Programs that run another one, end with it, and do nothing else.
WRAPPERS = frozenset(
    (
        *("sudo", "doas", "su", "runuser", "pkexec", "setpriv", "unshare", "nsenter", "ip", "timeout", "time"),
        *("script", "setsid", "flock", "strace", "ltrace", "dbus-run-session", "systemd-inhibit", "bwrap", "firejail"),
        *("sg", "newgrp", "env", "nice", "ionice", "nohup", "chroot", "stdbuf", "unbuffer", "taskset", "numactl"),
        *("capsh", "prlimit", "chrt", "systemd-run", "catchsegv", "fakeroot", "faketime", "proot", "xvfb-run"),
        *("exec", "command", "builtin", "exec_as"),
    )
)

#: Words of the shell's own after which a command may stand.
_BEFORE_COMMANDS = frozenset(("if", "then", "else", "elif", "do", "while", "until", "!", "{", "(", "time"))

_SEPARATOR = re.compile(r"(&&|\|\||;;|;|(?<![<>&])\|(?!\|)|(?<![<>&\d])&(?![>&]))")
_ASSIGNMENT = re.compile(r"(?:(?:export|local|readonly|declare|typeset)\s+(?:-\w+\s+)*)?(\w+)\+?=(.*)")
_FOR_ONE_COMMAND = re.compile(r"\w+=(?:\"[^\"]*\"|'[^']*'|[^\s\"']*)\s+")
_FUNCTION = re.compile(r"(?:function\s+)?([\w-]+)\s*\(\)\s*\{?|function\s+([\w-]+)\s*\{?")

#: Characters of a line that is looked at: a QEMU's command line fits, and reading one takes a moment at most.
_MAX_LINE = 8 * 1024

#: Words of a command among which the program is looked for that a wrapper runs.
_MAX_WORDS = 32

#: How deep names for a start are followed: a variable in a function in a function.
_MAX_INDIRECTIONS = 4


def command_text(argv: list[str]) -> tuple[str | None, str | None]:
    """What a shell runs: its text (``-c``), or the path of its script; both None where it reads its commands.

    :param argv: the shell's command line.
    """
    has_text = False
    words = iter(argv[1:])
    for word in words:
        if word in ("--rcfile", "--init-file"):
            next(words, None)
        elif word in ("-", "--"):
            word = next(words, "")
            return (word, None) if has_text else (None, word or None)
        elif word.startswith("--"):
            continue
        elif word.startswith(("-", "+")):
            has_text = has_text or ("c" in word and word.startswith("-"))
            if word.endswith(("o", "O")):
                next(words, None)  # the name of an option
            if "s" in word and not has_text:
                return None, None
        else:
            return (word, None) if has_text else (None, word)
    return None, None


def is_readable(text: str) -> bool:
    """Whether a script is one that can be looked at in a moment: no line is longer than people write."""
    return all(len(line) <= _MAX_LINE for line in re.sub(r"\\\r?\n", " ", text).splitlines())


def logical_lines(text: str) -> list[str]:
    """A script's lines without comments, those that a backslash continues in one."""
    joined = re.sub(r"\\\r?\n", " ", text)
    return [re.sub(r"(?:^|\s)#.*", "", line) for line in joined.splitlines()]


def split_commands(text: str) -> list[str]:
    """The commands of a script, each without the words of the shell's own that stand before it."""
    commands = []
    for line in logical_lines(text):
        for part in re.split(r"\$\(|`", line):
            for command in _SEPARATOR.split(part)[::2]:
                words = command.strip().split()
                while words and words[0] in _BEFORE_COMMANDS:
                    words.pop(0)
                if words:
                    commands.append(" ".join(words))
    return commands


def split_words(command: str) -> list[str]:
    """A command's words without their quotes."""
    try:
        return shlex.split(command, posix=True)
    except ValueError:  # a quote that is not closed
        return command.replace('"', " ").replace("'", " ").split()


def assignments(text: str) -> dict[str, str]:
    """The variables that are given a value in it, and the last one of each, without quotes."""
    found = {}
    for command in split_commands(text):
        match = _ASSIGNMENT.match(command)
        if match:
            found[match.group(1)] = match.group(2).strip().strip("\"'")
    return found


def starts_in_a_loop(text: str, starters: t.Collection[str]) -> bool:
    """Whether a script runs one of these programs again when it has ended: in a loop, or by running itself again.

    A loop that does not wait for them (``&``), one over a list of VMs say, does not.

    :param starters: file names.
    """
    if re.search(r"(?:^|[;&])[ \t]*exec[ \t]+[\"']?\$(?:0\b|\{0\}|\{?BASH_SOURCE)", text, re.MULTILINE):
        return True
    script = _Script(text, starters)
    for _time in range(_MAX_INDIRECTIONS):
        if not script.read():
            break
    return script.loops


class _Script:
    """A script, as far as it is understood: what in it stands for a start, and whether one is in a loop."""

    def __init__(self, text: str, starters: t.Collection[str]) -> None:
        self.loops = False
        self._programs = re.compile(
            "|".join([r"qemu-system-.+", "qemu", "kvm", "qemu-kvm", *(re.escape(name) for name in starters if name)])
        )
        self._lines = logical_lines(text)
        self._waits = re.search(r"(?:^|[;\s])wait\b", text) is not None
        #: Its variables that hold a command that starts one, and its functions that do.
        self._variables: set[str] = set()
        self._functions: set[str] = set()

    def read(self) -> bool:
        """Read it once; whether a name was found that was not known before."""
        known = len(self._variables) + len(self._functions)
        depth, function, array = 0, "", ""
        #: For each loop that is open, whether it is one over a list.
        over_list: list[bool] = []
        for line in self._lines:
            parts = _SEPARATOR.split(line)
            for part, separator in zip(parts[::2], [*parts[1::2], ""]):
                command = part.strip()
                opened = _FUNCTION.match(command)
                if opened:
                    function = opened.group(1) or opened.group(2)
                    command = command[opened.end() :].strip()
                repeated = False
                while True:
                    word, _blank, rest = command.partition(" ")
                    if word in ("for", "select"):
                        over_list.append(True)
                        command = ""
                    elif word in ("while", "until"):
                        over_list.append(False)
                        repeated, command = True, rest.strip()
                    elif word == "do":
                        depth, command = depth + 1, rest.strip()
                    elif word in ("done", "done)"):
                        depth, command = max(0, depth - 1), ""
                        over_list[-1:] = []
                    elif word in _BEFORE_COMMANDS:
                        command = rest.strip()
                    else:
                        break
                assigned = _ASSIGNMENT.match(command)
                if array and self._starts(command):
                    self._variables.add(array)
                array = assigned.group(1) if assigned and assigned.group(2).strip() == "(" else ""
                if assigned and self._starts(assigned.group(2).strip("\"'( ")):
                    self._variables.add(assigned.group(1))
                if self._starts(_without_assignments(command)):
                    if function:
                        self._functions.add(function)
                    background = separator == "&" and not (self._waits and not any(over_list))
                    if (depth or repeated) and not background:
                        self.loops = True
                if command.startswith("}"):
                    function = ""
        return len(self._variables) + len(self._functions) > known

    def _starts(self, command: str, depth: int = 0) -> bool:
        """Whether a command starts one of the programs."""
        words = split_words(command)
        if not words:
            return False
        first = words[0]
        variable = re.match(r"\$\{?(\w+|[@*])", first)
        if variable:
            # What a script is given to run is what it runs.
            return variable.group(1) in self._variables or re.fullmatch(r"[\d@*]+", variable.group(1)) is not None
        name = os.path.basename(first)
        if self._programs.fullmatch(name) or name in self._functions or name == "eval":
            return True
        if depth < _MAX_INDIRECTIONS and (name in WRAPPERS or name in SHELLS or name == "."):
            for word in words[1:_MAX_WORDS]:
                parts = split_commands(word) if name in SHELLS else [shlex.quote(word)]
                if any(self._starts(part, depth + 1) for part in parts):
                    return True
        return False


def _without_assignments(command: str) -> str:
    """A command without the variables that are set for it alone."""
    while True:
        match = _FOR_ONE_COMMAND.match(command)
        if not match:
            return command
        command = command[match.end() :]
