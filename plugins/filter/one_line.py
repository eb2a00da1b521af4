# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What hosts have named or said, as it may be shown."""

from __future__ import annotations

import typing as t

from ansible_collections.vmops.qemu.plugins.plugin_utils._answer import sentence

DOCUMENTATION = r"""
name: one_line
short_description: Make text from a host safe to show in one line
version_added: 1.0.0
description:
  - Names of VMs and messages are text from others. A line break in them must not forge a line of a log, and an escape
    sequence must not manipulate a terminal. Therefore, characters that are not visible are replaced by C(\\n) and the
    like, and the text is cut off after 4096 characters.
options:
  _input:
    description: The text. Other values are converted to text.
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
