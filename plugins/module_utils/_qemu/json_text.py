# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""JSON as QEMU reads it in its options: strings may be in single quotes (qobject/json-lexer.c)."""

from __future__ import annotations

import json
import re
import typing as t

_STRING = re.compile(r"""(?P<quote>["'])(?P<text>(?:[^\\]|\\.)*?)(?P=quote)""", re.DOTALL)
_ESCAPED_OR_QUOTE = re.compile(r"""\\.|["']""", re.DOTALL)


def read_json(text: str) -> t.Any:
    """What a text stands for.

    :raises ValueError: it is none.
    :raises RecursionError: it is nested too deeply.
    """
    return json.loads(_STRING.sub(_in_double_quotes, text) if "'" in text else text)


def _in_double_quotes(found: re.Match[str]) -> str:
    def change(part: re.Match[str]) -> str:
        return {"\\'": "'", '"': '\\"'}.get(part.group(), part.group())

    return f'"{_ESCAPED_OR_QUOTE.sub(change, found.group("text"))}"'
