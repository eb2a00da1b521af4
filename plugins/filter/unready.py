# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The VMs that a maintenance would lose because nothing names them."""

from __future__ import annotations

import typing as t

DOCUMENTATION = r"""
name: unready
short_description: Find the VMs that would be lost in a maintenance because they have no name
version_added: 0.1.0
description:
  - Takes the C(vms) that M(vmops.qemu.qemu_vm_info) returned, and finds those without a name. No list of names can
    include them, so they would not be saved and would end with the host.
positional: include
options:
  _input:
    description: The running VMs.
    type: list
    elements: dict
    required: true
  include:
    description:
      - Shell patterns of the names to save. VMs without a name are only looked for if V(*) is one of the patterns.
    type: list
    elements: str
    default: ["*"]
author:
  - vmops.qemu contributors (@vmops)
"""

EXAMPLES = r"""
- name: Fail where a VM would be lost
  ansible.builtin.assert:
    that: found.vms | vmops.qemu.unready | length == 0
"""

RETURN = r"""
_value:
  description: A sentence for each VM without a name.
  type: list
  elements: str
"""


def unready(vms: t.Iterable[t.Mapping[str, t.Any]], include: t.Sequence[str] = ("*",)) -> list[str]:
    """A sentence for each VM that would be lost."""
    return [
        f"A QEMU without a name (pid {vm['pid']}) runs here and would not be saved: start it with -name, end it, or"
        " list the names of the VMs to save."
        for vm in vms
        if not vm["name"] and "*" in include
    ]


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """The filters by name."""
        return {"unready": unready}
