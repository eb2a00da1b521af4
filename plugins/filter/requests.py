# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The options of each VM's run, put together."""

from __future__ import annotations

import typing as t

DOCUMENTATION = r"""
name: requests
short_description: Combine the options of each VM's save or restore
version_added: 0.1.0
description:
  - Combines names, options for all VMs and options for some of them into the C(vms) for M(vmops.qemu.qemu_parallel).
positional: common, by_vm
options:
  _input:
    description: The VMs' names.
    type: list
    elements: str
    required: true
  common:
    description: Options for all VMs.
    type: dict
    default: {}
  by_vm:
    description: For a name, options of this VM, which override those for all VMs.
    type: dict
    default: {}
author:
  - vmops.qemu contributors (@vmops)
"""

EXAMPLES = r"""
- name: Save two VMs, one of them while it runs
  vmops.qemu.qemu_parallel:
    operation: save
    vms: "{{ ['db1', 'web1'] | vmops.qemu.requests({'checksum': true}, {'db1': {'live': true}}) }}"
"""

RETURN = r"""
_value:
  description: The options of each VM, including its C(name), in the order of the names.
  type: list
  elements: dict
"""


def requests(
    names: t.Iterable[str],
    common: t.Mapping[str, t.Any] | None = None,
    by_vm: t.Mapping[str, t.Mapping[str, t.Any]] | None = None,
) -> list[dict[str, t.Any]]:
    """The options of each VM."""
    return [{**(common or {}), **(by_vm or {}).get(name, {}), "name": name} for name in names]


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """The filters by name."""
        return {"requests": requests}
