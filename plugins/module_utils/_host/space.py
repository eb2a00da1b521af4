# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether the images of several VMs fit together, each of which fits alone."""

from __future__ import annotations

import collections
import sys
import typing as t


def shortages(plans: t.Iterable[t.Mapping[str, t.Any]]) -> list[str]:
    """A sentence, without the final full stop, for each file system that is too small.

    :param plans: the return values of saves in check mode; one that does not know how much is free is left out.
    """
    needed: collections.Counter[str] = collections.Counter()
    count: collections.Counter[str] = collections.Counter()
    free: dict[str, int] = {}
    for plan in plans:
        place = plan.get("file_system")
        if place and plan.get("space_free") is not None:
            needed[place] += plan["space_needed"]
            count[place] += 1
            free[place] = min(free.get(place, sys.maxsize), plan["space_free"])
    return [
        f"{place} has {free[place] // 2**20} MiB free, but the images of {count[place]} VMs may take"
        f" {needed[place] // 2**20} MiB ({-(-(needed[place] - free[place]) // 2**20)} MiB are missing)"
        for place in sorted(needed)
        if needed[place] > free[place]
    ]
