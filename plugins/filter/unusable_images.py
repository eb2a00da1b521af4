# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The save images of a host from which nothing can be restored."""

from __future__ import annotations

import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._image.last_save import why_left_alone
from ansible_collections.vmops.qemu.plugins.module_utils._names import is_selected

DOCUMENTATION = r"""
name: unusable_images
short_description: Find the save images from which nothing can be restored
version_added: 0.1.0
description:
  - Takes the C(images) that M(vmops.qemu.qemu_save_image_info) returned, and returns those that are damaged, and
    partial ones that do not contain their VM's name.
  - Archives are not returned, because they were made on purpose, and neither are images of VMs that have a later save.
positional: include, exclude
options:
  _input:
    description: The images.
    type: list
    elements: dict
    required: true
  include:
    description: Shell patterns of the names of the VMs. An image without a name is always included.
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
- name: Show what is damaged
  ansible.builtin.debug:
    msg: "{{ found.images | vmops.qemu.unusable_images }}"
"""

RETURN = r"""
_value:
  description: The C(path), C(name), C(state) and C(problems) of each image.
  type: list
  elements: dict
"""


def unusable_images(
    images: t.Iterable[t.Mapping[str, t.Any]], include: t.Sequence[str] = ("*",), exclude: t.Sequence[str] = ()
) -> list[dict[str, t.Any]]:
    """What is to be known of each."""
    return [
        {key: image.get(key) for key in ("path", "name", "state", "problems")}
        for image in images
        if (not image.get("name") or is_selected(image["name"], include, exclude))
        and not why_left_alone(image)
        and (image.get("state") == "invalid" or (image.get("state") == "partial" and not image.get("name")))
    ]


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """The filters by name."""
        return {"unusable_images": unusable_images}
