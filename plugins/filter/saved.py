# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a run of saves has saved, as what a run of restores takes."""

from __future__ import annotations

import typing as t

DOCUMENTATION = r"""
name: saved
short_description: Turn the results of saves into options for restores
version_added: 0.1.0
description:
  - Takes the C(vms) that M(vmops.qemu.qemu_parallel) returned for saves, and returns the C(vms) to restore, which are
    those that this run has saved.
options:
  _input:
    description: The results of the saves.
    type: list
    elements: dict
    required: true
author:
  - vmops.qemu contributors (@vmops)
"""

EXAMPLES = r"""
- name: Restore what was just saved
  vmops.qemu.qemu_parallel:
    operation: restore
    vms: "{{ saves.vms | vmops.qemu.saved }}"
"""

RETURN = r"""
_value:
  description: The name and the image of each VM.
  type: list
  elements: dict
"""


def saved(runs: t.Iterable[t.Mapping[str, t.Any]]) -> list[dict[str, t.Any]]:
    """Name and path of the image of each run that saved its VM."""
    return [
        {"name": run["name"], "path": run["image"]["path"]}
        for run in runs
        if run.get("changed") and not run.get("failed") and run.get("image")
    ]


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """The filters by name."""
        return {"saved": saved}
