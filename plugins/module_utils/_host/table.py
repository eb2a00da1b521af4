# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What became of each VM, and what stands in the way, as tables for people: columns that stand below each other."""

from __future__ import annotations

import itertools
import textwrap
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._errors import one_line

#: Characters of the last column that are shown; all of it is in ``vms``.
_MOST = 160

#: Characters of a line of a table of problems: of what it is about, and of the text.
_SUBJECT = 28
_TEXT = 84


def table(vms: t.Iterable[t.Mapping[str, t.Any]]) -> list[str]:
    """The lines, the first of which has the columns' names; none where there are no VMs.

    :param vms: each with ``name``, ``state``, ``msg``, and ``image`` and ``duration`` where they are known.
    """
    rows = [
        (one_line(vm["name"]), vm["state"], _size(vm), _seconds(vm.get("duration")), _cut(one_line(vm["msg"])))
        for vm in vms
    ]
    if not rows:
        return []
    rows.insert(0, ("VM", "STATE", "IMAGE", "TIME", ""))
    aligned = [
        [align(cell, max(map(len, column))) for cell in column]
        for align, column in zip((str.ljust, str.ljust, str.rjust, str.rjust), zip(*(row[:4] for row in rows)))
    ]
    return ["  ".join([*cells, row[4]]).rstrip() for *cells, row in zip(*aligned, rows)]


def problem_table(problems: t.Iterable[t.Mapping[str, t.Any]]) -> list[str]:
    """The lines of a table of problems, each with what to do about it; long texts go on below.

    :param problems: each with ``subject``, ``kind``, ``what``, ``cure`` and ``blocks``.
    """
    rows = [
        (
            textwrap.wrap(one_line(problem["subject"]), _SUBJECT) or [""],
            "yes" if problem["blocks"] else "no",
            [
                *textwrap.wrap(f"{problem['kind']}: {one_line(problem['what'])}", _TEXT),
                *textwrap.wrap(one_line(problem["cure"]), _TEXT, initial_indent="-> ", subsequent_indent="   "),
            ],
        )
        for problem in problems
    ]
    if not rows:
        return []
    width = max(len("WHERE"), *(len(line) for subject, _blocks, _text in rows for line in subject))
    lines = [f"{'WHERE'.ljust(width)}  BLOCKS  WHAT"]
    for subject, blocks, text in rows:
        for left, middle, right in itertools.zip_longest(subject, [blocks], text, fillvalue=""):
            lines.append(f"{left.ljust(width)}  {middle.ljust(6)}  {right}".rstrip())
    return lines


def _size(vm: t.Mapping[str, t.Any]) -> str:
    size = vm.get("space_needed") or (vm.get("image") or {}).get("allocated")
    return f"{size / 2**20:.0f} MiB" if isinstance(size, int) else "-"


def _seconds(seconds: t.Any) -> str:
    return f"{seconds:.1f} s" if isinstance(seconds, (int, float)) else "-"


def _cut(text: str) -> str:
    return text if len(text) <= _MOST else f"{text[: _MOST - 1]}…"
