# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What hosts have named or said, as it may be shown."""

from __future__ import annotations

import typing as t

from ansible_collections.vmops.qemu.plugins.plugin_utils._answer import sentence

DOCUMENTATION = r"""
name: one_line
short_description: Show what a host has said in one line
version_added: 0.1.0
description:
  - Names of VMs and messages are others' words. A line break in one must not forge a line of a log, nor an escape
    sequence play tricks on a terminal. So what would not be seen as it is becomes C(\\n) and the like, and what is
    longer than 4096 characters is cut off there.
options:
  _input:
    description: The text. What is no text is written as one.
    type: raw
    required: true
author:
  - vmops.qemu contributors (@vmops)
"""

EXAMPLES = r"""
- name: Show the names of the VMs of a host
  ansible.builtin.debug:
    msg: "{{ found.vms | map(attribute='name') | join(', ') | vmops.qemu.one_line }}"
"""

RETURN = r"""
_value:
  description: The text in one line.
  type: str
"""


def in_one_line(value: t.Any) -> str:
    """The text in one line."""
    return sentence(value if isinstance(value, str) else str(value))


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """The filters by name."""
        return {"one_line": in_one_line}
