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

#: What is read at most: problems, and characters of each text in one.
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
        """The text for an image."""
        return json.dumps(
            {
                "version": _VERSION,
                "media": record_media(self.media),
                "problems": [problem.as_result() for problem in self.problems],
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


def _parse_problems(value: object) -> tuple[Problem, ...]:
    if not isinstance(value, list) or len(value) > _MAX_PROBLEMS:
        raise ValueError("its problems are not a list, or too many")
    return tuple(_parse_problem(item) for item in value)


def _parse_problem(value: object) -> Problem:
    if not isinstance(value, dict) or not isinstance(value.get("blocks"), bool):
        raise ValueError("a problem is not valid")
    texts = [value.get(key) for key in ("kind", "what", "cure")]
    if not all(isinstance(text, str) and len(text) <= _MAX_TEXT for text in texts):
        raise ValueError("a problem's text is not a text, or too long")
    kind, what, cure = t.cast("list[str]", texts)
    return Problem(kind, what, cure, value["blocks"])
