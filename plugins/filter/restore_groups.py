# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The groups in which saved VMs are restored."""

from __future__ import annotations

import os
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._image.last_save import why_left_alone
from ansible_collections.vmops.qemu.plugins.module_utils._names import group_of, is_selected

DOCUMENTATION = r"""
name: restore_groups
short_description: Order saved VMs into groups that are restored one after the other
version_added: 0.1.0
description:
  - Takes the C(images) that M(vmops.qemu.qemu_save_image_info) returned for a directory, and orders the complete ones.
    Each VM is restored once, from its last save. The images that P(vmops.qemu.left_alone#filter) returns are left out.
  - A partial image was left by an interrupted save. If its VM is still paused in its QEMU, M(vmops.qemu.qemu_restore)
    lets it go on there. Therefore, partial images are included. Their C(path) is the one that the save would have made.
  - A VM belongs to the first group with a pattern that matches its name. VMs that match no pattern form the last group.
positional: order, include, exclude, common, by_vm
options:
  _input:
    description: The images.
    type: list
    elements: dict
    required: true
  order:
    description: The groups, each a list of shell patterns of names.
    type: list
    elements: list
    default: []
  include:
    description: Shell patterns of the names to restore.
    type: list
    elements: str
    default: ["*"]
  exclude:
    description: Shell patterns of the names that are not restored.
    type: list
    elements: str
    default: []
  common:
    description: Options of M(vmops.qemu.qemu_restore) for all VMs.
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
- name: Databases first
  ansible.builtin.debug:
    msg: "{{ found.images | vmops.qemu.restore_groups([['db*']]) }}"
"""

RETURN = r"""
_value:
  description:
    - The groups that are not empty, each a list of options, including C(name) and C(path). No VM is listed twice. Two
      images with the same name are of two VMs if their UUIDs differ.
  type: list
  elements: list
"""


def restore_groups(
    images: t.Iterable[t.Mapping[str, t.Any]],
    order: t.Sequence[t.Sequence[str]] = (),
    include: t.Sequence[str] = ("*",),
    exclude: t.Sequence[str] = (),
    common: t.Mapping[str, t.Any] | None = None,
    by_vm: t.Mapping[str, t.Mapping[str, t.Any]] | None = None,
) -> list[list[dict[str, t.Any]]]:
    """The options for the restore of each complete image, in groups."""
    groups: list[list[dict[str, t.Any]]] = [[] for _group in range(len(order) + 1)]
    known: set[str] = set()
    # Where there is a complete image, a partial one beside it is an older leftover.
    for image in sorted(images, key=lambda image: image.get("state") != "complete"):
        name = image.get("name") or ""
        wanted = is_selected(name, include, exclude) and not why_left_alone(image)
        if image.get("state") == "complete" and wanted:
            path = image["path"]
        elif image.get("state") == "partial" and wanted and name and name not in known:
            path = os.path.join(os.path.dirname(image["path"]), f"{name}.save")
        else:
            continue
        known.add(name)
        options = {**(common or {}), **(by_vm or {}).get(name, {})}
        groups[group_of(name, order)].append({**options, "name": name, "path": path})
    return [group for group in groups if group]


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """The filters by name."""
        return {"restore_groups": restore_groups}
