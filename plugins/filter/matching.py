# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Names that match shell patterns."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.vmops.qemu.plugins.module_utils._names import is_selected

DOCUMENTATION = r"""
name: matching
short_description: Select names by shell patterns
version_added: 0.1.0
description:
  - Keeps the names that match one of the patterns to include and none of the patterns to exclude, in their order.
  - Patterns work as in a shell - C(*), C(?), C([abc]). They are case-sensitive.
positional: include, exclude
options:
  _input:
    description: The names.
    type: list
    elements: str
    required: true
  include:
    description: The patterns to include.
    type: list
    elements: str
    default: ["*"]
  exclude:
    description: The patterns to exclude.
    type: list
    elements: str
    default: []
author:
  - vmops.qemu contributors (@vmops)
"""

EXAMPLES = r"""
- name: All databases but the test's
  ansible.builtin.debug:
    msg: "{{ ['db1', 'db-test', 'web1'] | vmops.qemu.matching(['db*'], ['*-test']) }}"
"""

RETURN = r"""
_value:
  description: The selected names.
  type: list
  elements: str
"""


def matching(names: t.Sequence[str], include: t.Sequence[str] = ("*",), exclude: t.Sequence[str] = ()) -> list[str]:
    """The names that match; raises AnsibleFilterError where the patterns are no lists."""
    for patterns in (include, exclude):
        if isinstance(patterns, str) or not isinstance(patterns, t.Sequence):
            raise AnsibleFilterError(f"vmops.qemu.matching wants a list of patterns, not {patterns!r}")

    return [name for name in names if is_selected(name, include, exclude)]


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """The filters by name."""
        return {"matching": matching}
