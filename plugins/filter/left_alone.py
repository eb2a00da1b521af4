# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The save images of a host that are not the state in which a VM was last."""

from __future__ import annotations

import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._image.last_save import why_left_alone
from ansible_collections.vmops.qemu.plugins.module_utils._names import is_selected

DOCUMENTATION = r"""
name: left_alone
short_description: Find the save images that do not hold the last state of a VM
version_added: 0.1.0
description:
  - Takes the C(images) that M(vmops.qemu.qemu_save_image_info) returned for a directory, and returns those that a
    restore of all VMs does not restore. These are images of a VM that has a later save, further copies of a save, and
    checkpoints, whose VMs went on after the save.
  - Archives are not returned, because they were made on purpose.
positional: include, exclude
options:
  _input:
    description: The images.
    type: list
    elements: dict
    required: true
  include:
    description: Shell patterns of the names of the VMs.
    type: list
    elements: str
    default: ["*"]
  exclude:
    description: Shell patterns of the names of VMs whose images are not returned.
    type: list
    elements: str
    default: []
author:
  - vmops.qemu contributors (@vmops)
"""

EXAMPLES = r"""
- name: Show what will not be restored
  ansible.builtin.debug:
    msg: "{{ found.images | vmops.qemu.left_alone }}"
"""

RETURN = r"""
_value:
  description: The C(path), C(name) and C(saved_at) of each image, and C(why) it is not restored.
  type: list
  elements: dict
"""


def left_alone(
    images: t.Iterable[t.Mapping[str, t.Any]], include: t.Sequence[str] = ("*",), exclude: t.Sequence[str] = ()
) -> list[dict[str, t.Any]]:
    """What is to be known of each."""
    return [
        {**{key: image.get(key) for key in ("path", "name", "saved_at")}, "why": why_left_alone(image)}
        for image in images
        if image.get("state") != "archived" and why_left_alone(image) and is_selected(image["name"], include, exclude)
    ]


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """The filters by name."""
        return {"left_alone": left_alone}
