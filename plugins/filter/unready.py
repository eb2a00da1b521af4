# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The VMs of a host that a maintenance must not begin with, although each save would succeed."""

from __future__ import annotations

import typing as t

DOCUMENTATION = r"""
name: unready
short_description: Find the VMs that would be lost in a maintenance, although they can be saved
version_added: 0.1.0
description:
  - Takes the C(vms) that M(vmops.qemu.qemu_vm_info) returned. Two kinds of them are found. One has no name, so that no
    list of names has it, and it would end with the host. The other could not be started again from its image.
positional: include, requests, restorable
options:
  _input:
    description: The VMs that run.
    type: list
    elements: dict
    required: true
  include:
    description:
      - Shell patterns of the names to save. Where V(*) is among them, a VM without a name is meant, too.
    type: list
    elements: str
    default: ["*"]
  requests:
    description: The C(vms) that will be given to M(vmops.qemu.qemu_parallel).
    type: list
    elements: dict
    default: []
  restorable:
    description: Whether a VM that cannot be started again is looked for.
    type: bool
    default: true
author:
  - vmops.qemu contributors (@vmops)
"""

EXAMPLES = r"""
- name: Fail where a VM would be lost
  ansible.builtin.assert:
    that: found.vms | vmops.qemu.unready(['*'], requests) | length == 0
"""

RETURN = r"""
_value:
  description: A sentence for each.
  type: list
  elements: str
"""


def unready(
    vms: t.Iterable[t.Mapping[str, t.Any]],
    include: t.Sequence[str] = ("*",),
    requests: t.Sequence[t.Mapping[str, t.Any]] = (),
    restorable: bool = True,
) -> list[str]:
    """A sentence for each VM that would be lost."""
    asked = {request["name"]: request for request in requests}
    found = []
    for vm in vms:
        if not vm["name"]:
            if "*" in include:
                found.append(
                    f"A QEMU without a name (pid {vm['pid']}) runs here and would not be saved: start it with -name,"
                    " end it, or list the names of the VMs to save."
                )
            continue
        request = asked.get(vm["name"])
        # A save after which the VM goes on in its QEMU needs none that starts it again.
        ends = request is not None and request.get("after_save", "quit") == "quit"
        if restorable and ends and (vm.get("launch") or {}).get("how") == "none":
            found.append(f"{vm['name']} could not be started again from its image: {vm['launch'].get('reason')}.")
    return found


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """The filters by name."""
        return {"unready": unready}
