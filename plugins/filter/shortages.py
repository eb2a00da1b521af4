# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether all images of a host fit together."""

from __future__ import annotations

import collections
import sys
import typing as t

DOCUMENTATION = r"""
name: shortages
short_description: Find the file systems that cannot hold all save images together
version_added: 0.1.0
description:
  - Takes the C(vms) that M(vmops.qemu.qemu_parallel) returned for saves in check mode. Each image alone may fit.
options:
  _input:
    description: The results of the saves in check mode.
    type: list
    elements: dict
    required: true
author:
  - vmops.qemu contributors (@vmops)
"""

EXAMPLES = r"""
- name: Fail where they do not fit together
  ansible.builtin.assert:
    that: predicted.vms | vmops.qemu.shortages | length == 0
"""

RETURN = r"""
_value:
  description: A sentence for each file system that is too small.
  type: list
  elements: str
"""


def shortages(runs: t.Iterable[t.Mapping[str, t.Any]]) -> list[str]:
    """A sentence for each file system that is too small."""
    needed: collections.Counter[str] = collections.Counter()
    free: dict[str, int] = {}
    count: collections.Counter[str] = collections.Counter()
    for run in runs:
        place = run.get("file_system")
        if place and run.get("space_free") is not None:
            needed[place] += int(run["space_needed"])
            count[place] += 1
            free[place] = min(free.get(place, sys.maxsize), int(run["space_free"]))
    return [
        f"{place} has {free[place] // 2**20} MiB free, but the images of {count[place]} VMs may take"
        f" {needed[place] // 2**20} MiB ({-(-(needed[place] - free[place]) // 2**20)} MiB are missing)"
        for place in sorted(needed)
        if needed[place] > free[place]
    ]


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """The filters by name."""
        return {"shortages": shortages}
