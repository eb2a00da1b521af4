# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Shell patterns of VMs' names, as all that takes them reads them."""

from __future__ import annotations

import fnmatch
import typing as t


def matches(name: str, patterns: t.Iterable[str]) -> bool:
    """Whether a name matches one of the patterns; upper and lower case differ."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def options_of(
    name: str, common: t.Mapping[str, t.Any], by_vm: t.Mapping[str, t.Mapping[str, t.Any]]
) -> dict[str, t.Any]:
    """The options of one VM.

    :param common: those for all.
    :param by_vm: by name or pattern, those that are others; of several that match, a later one overrides an earlier.
    """
    options = dict(common)
    for pattern, others in by_vm.items():
        if pattern == name or matches(name, [pattern]):
            options.update(others)
    return options


def is_selected(name: str, include: t.Iterable[str], exclude: t.Iterable[str]) -> bool:
    """Whether a name is among those to include, and not among those to exclude."""
    return matches(name, include) and not matches(name, exclude)


def group_of(name: str, order: t.Sequence[t.Iterable[str]]) -> int:
    """The number of the first group with a pattern that matches a name; ``len(order)`` where none does.

    :param order: the groups, each as its patterns.
    """
    return next((number for number, patterns in enumerate(order) if matches(name, patterns)), len(order))
