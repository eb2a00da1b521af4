# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which VMs of a host, and how many at a time."""

from __future__ import annotations


class ModuleDocFragment:
    # extends_documentation_fragment: vmops.qemu._selection
    DOCUMENTATION = r"""
options:
  vms:
    description:
      - The names, UUIDs or systemd units (C(qemu@web1.service)) of the VMs. By default, all VMs of the host are chosen.
      - A name means all VMs that have it.
      - O(include) and O(exclude) apply to them, too.
    type: list
    elements: str
    default: []
  include:
    description:
      - Shell patterns of the names of the VMs (C(*), C(?), C([abc]); case-sensitive), or whole UUIDs or units.
      - A VM without a name has its UUID, or the unit that starts it, in the place of its name.
    type: list
    elements: str
    default: ["*"]
  exclude:
    description:
      - Shell patterns of the names of VMs that are left out, or whole UUIDs or units.
    type: list
    elements: str
    default: []
  by_vm:
    description:
      - For a VM's name, UUID or unit, or a shell pattern of names, a dictionary of options that are different for these
        VMs. If several match a VM, an option of a later one overrides that of an earlier one.
      - All options of this module that concern a single VM can be given, including O(timeout). Any other option is an
        error. A VM that does not exist on the host is no error.
    type: dict
    default: {}
  parallel:
    description:
      - The number of VMs that are worked on at the same time, at least 1.
    type: int
    default: 4
  interval:
    description:
      - The number of seconds between two lines of progress for a VM. The lines go to the standard error output of the
        controller. With V(0), and where C(no_log) is set, no lines are shown.
    type: float
    default: 5
"""
