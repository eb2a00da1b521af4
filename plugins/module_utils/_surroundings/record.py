# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What an image keeps of what surrounded its VM: a JSON text, of which only this file knows the shape.

``{"version": 1, "media": [MEDIUM, …], "problems": [PROBLEM, …], "needs": NEEDS, "pid_files": {"pid": PID, "files":
[FILE, …]}}``; the keys of a medium are those of ``Medium``, those of a problem are ``kind``, ``what``, ``cure`` and
``blocks``, those of a file ``path`` and ``uid``. Older images lack ``needs`` (:mod:`needs`) and ``pid_files``. It is
read from images that others may have written, so everything in it is bounded.
"""

from __future__ import annotations

import dataclasses
import json
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.circumstances import Circumstances
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.media import Medium
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.media_record import parse_media, record_media
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.needs import Needs
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.pid_files import (
    PidFiles,
    parse_pid_files,
    record_pid_files,
)
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.verdict import Problem

_VERSION = 1

#: What is written and read at most: problems, and characters of each text in one.
_MAX_PROBLEMS = 1000
_MAX_TEXT = 8192


@dataclasses.dataclass(frozen=True)
class Surroundings:
    """What surrounds a VM, or surrounded it when it was saved."""

    media: tuple[Medium, ...]
    problems: tuple[Problem, ...]
    #: What its QEMU needs beside them to be started again.
    needs: Needs = dataclasses.field(default_factory=Needs)
    #: The pid files of others that name it.
    pid_files: PidFiles = dataclasses.field(default_factory=PidFiles)
    #: Where its QEMU runs, and with what; how it is started again is recorded elsewhere.
    circumstances: Circumstances | None = None

    def dump(self) -> str:
        """The text for an image, which :meth:`parse` takes whatever surrounds the VM."""
        return json.dumps(
            {
                "version": _VERSION,
                "media": record_media(self.media),
                "problems": _record_problems(self.problems),
                "needs": self.needs.dump(),
                "pid_files": record_pid_files(self.pid_files),
            },
            separators=(",", ":"),
        )

    @classmethod
    def parse(cls, text: str) -> Surroundings:
        """Read such a text.

        :raises ValueError: it is none, or one of a version that is not known here.
        """
        try:
            value = json.loads(text)
        except RecursionError as exc:
            raise ValueError("it has too many levels") from exc
        if not isinstance(value, dict) or value.get("version") != _VERSION:
            raise ValueError("its version is not known here")
        return cls(
            tuple(parse_media(value.get("media"))),
            _parse_problems(value.get("problems")),
            Needs.parse(value.get("needs")),
            parse_pid_files(value.get("pid_files")),
        )


def _record_problems(problems: t.Sequence[Problem]) -> list[dict[str, t.Any]]:
    """Where there are too many, those that block come first."""
    if len(problems) > _MAX_PROBLEMS:
        problems = sorted(problems, key=lambda problem: not problem.blocks)[:_MAX_PROBLEMS]
    return [
        {key: _cut(value) if isinstance(value, str) else value for key, value in problem.as_result().items()}
        for problem in problems
    ]


def _parse_problems(value: object) -> tuple[Problem, ...]:
    """They are for people: one that makes no sense costs no other, nor what else is recorded."""
    if not isinstance(value, list):
        raise ValueError("its problems are not a list")
    return tuple(problem for problem in map(_parse_problem, value[:_MAX_PROBLEMS]) if problem)


def _parse_problem(value: object) -> Problem | None:
    if not isinstance(value, dict) or not isinstance(value.get("blocks"), bool):
        return None
    texts = [value.get(key) for key in ("kind", "what", "cure")]
    if not all(isinstance(text, str) for text in texts):
        return None
    kind, what, cure = map(_cut, t.cast("list[str]", texts))
    return Problem(kind, what, cure, value["blocks"])


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else f"{text[: _MAX_TEXT - 1]}…"
