# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The processes above one, up to the first: who started it, and what they say of themselves.

Their names, words and scripts are theirs, so whoever wants to can hide, or pretend to be something else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re

from ansible_collections.vmops.qemu.plugins.module_utils._bounded_read import TooLongError
from ansible_collections.vmops.qemu.plugins.module_utils._proc import (
    executable_of,
    read_command_line,
    read_proc,
    read_stat,
)
from ansible_collections.vmops.qemu.plugins.module_utils._shell_text import SHELLS

_INTERPRETERS = re.compile(r"(?:python|pypy|ruby|perl|node|nodejs|lua|php|tclsh|wish|java)[\d.]*")

#: Bytes of a command line that are read.
_MAX_COMMAND_LINE = 64 * 1024

_MAX_ANCESTORS = 64


@dataclasses.dataclass(frozen=True)
class Ancestor:
    """A process above QEMU."""

    pid: int
    parent: int
    session: int
    has_terminal: bool
    #: The name that the kernel shows.
    comm: str
    argv: tuple[str, ...]
    executable: str

    @property
    def names(self) -> set[str]:
        """What it may be known by: of a script in another language the script's name."""
        found = {self.comm, os.path.basename(self.executable)}
        if self.argv:
            found.add(os.path.basename(self.argv[0]).lstrip("-"))
        if self.is_interpreted:
            words = [word for word in self.argv[1:] if word == "-m" or not word.startswith("-")]
            if words[:1] == ["-m"] and len(words) > 1:
                found.add(words[1].rpartition(".")[2])
            elif words:
                found.add(os.path.basename(words[0]))
        return {name for name in found if name}

    @property
    def is_interpreted(self) -> bool:
        """Whether it is a program in an interpreted language."""
        return any(_INTERPRETERS.fullmatch(os.path.basename(name)) for name in (self.executable, *self.argv[:1]))

    @property
    def is_shell(self) -> bool:
        """Whether it is a shell."""
        name = os.path.basename(self.executable) or (os.path.basename(self.argv[0]) if self.argv else "")
        return name.lstrip("-") in SHELLS

    @property
    def label(self) -> str:
        """It as messages name it."""
        return f"{printable(self.comm)} (pid {self.pid})"


def is_interpreter(name: str) -> bool:
    """Whether a program of this name runs others, which are written in its language."""
    return _INTERPRETERS.fullmatch(name) is not None


def ancestors_of(pid: int) -> tuple[list[Ancestor], int]:
    """The processes above one, the nearest first, and its session."""
    found: list[Ancestor] = []
    session = 0
    with contextlib.suppress(OSError):
        figures = read_stat(pid)
        session, parent = figures.session, figures.parent
        while parent > 0 and len(found) < _MAX_ANCESTORS:
            ancestor = _read_ancestor(parent)
            found.append(ancestor)
            parent = ancestor.parent
    return found, session


def _read_ancestor(pid: int) -> Ancestor:
    """Raises OSError where there is none."""
    figures = read_stat(pid)
    executable = ""
    with contextlib.suppress(OSError):
        executable = executable_of(pid)
    return Ancestor(
        pid=pid,
        parent=figures.parent,
        session=figures.session,
        has_terminal=figures.terminal != 0,
        comm=os.fsdecode(read_proc(pid, "comm")).rstrip("\n"),
        argv=tuple(read_words(pid)),
        executable=executable,
    )


def read_words(pid: int) -> list[str]:
    """The words of a process, those of a long command line as far as they are read."""
    data = b""
    try:
        data = read_command_line(pid, _MAX_COMMAND_LINE)
    except TooLongError as exc:
        data = exc.beginning
    except OSError:
        pass
    return [os.fsdecode(word) for word in data.split(b"\0")[:-1]]


def printable(text: str) -> str:
    """A text that a process gave itself, for a message."""
    return "".join(char if char.isprintable() else "?" for char in text)
