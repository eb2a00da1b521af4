# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which numbers can be: others have told them, and they go into sums, pictures and dates."""

from __future__ import annotations

import math
import typing as t

#: The largest size, rate or number of seconds; more has no room in what others read.
MOST = 2**63 - 1

#: Seconds since the epoch at the end of 2099, after which no time of an event is believed.
LATEST = 4102444799.0


def number(value: t.Any) -> t.Any:
    """A value, or the number that it is as a text: ansible-core before 2.19 makes texts of what a template reckons."""
    if isinstance(value, str) and len(value) <= 40:
        try:
            return float(value)
        except ValueError:
            pass
    return value


def is_figure(value: t.Any, most: float = MOST) -> bool:
    """Whether a value is a finite number, not negative, and no more than ``most``."""
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and (isinstance(value, int) or math.isfinite(value))
        and 0 <= value <= most
    )


#: Of a VM in a report, its figures, and the most that each can be.
OF_VM: t.Mapping[str, float] = {
    "bytes": MOST,
    "throughput": MOST,
    "save_seconds": LATEST,
    "restore_seconds": LATEST,
    "stopped_at": LATEST,
    "running_at": LATEST,
}

#: The same of a host.
OF_HOST: t.Mapping[str, float] = {
    "save_seconds": LATEST,
    "work_seconds": LATEST,
    "restore_seconds": LATEST,
    "saves_took": LATEST,
    "restores_took": LATEST,
}


def figures(told: t.Mapping[str, t.Any], limits: t.Mapping[str, float]) -> tuple[dict[str, t.Any], list[str]]:
    """The figures of something by name, None for what is not known, and the names of those that cannot be.

    :param told: what others have told of it; ``disbelieved`` has names that were left out before.
    :param limits: the most that each can be.
    """
    before = told.get("disbelieved")
    names = dict.fromkeys(name for name in before if isinstance(name, str)) if isinstance(before, list) else {}
    wrong = list(names)[: len(OF_VM)]
    known: dict[str, t.Any] = {}
    for name, most in limits.items():
        value = number(told.get(name))
        known[name] = value if is_figure(value, most) else None
        if value not in (None, "") and known[name] is None:
            wrong.append(name)
    return known, sorted(set(wrong))
