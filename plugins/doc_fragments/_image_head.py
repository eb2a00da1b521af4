# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What stands before the QEMU stream of an image."""

from __future__ import annotations


class ModuleDocFragment:
    # extends_documentation_fragment: vmops.qemu._image_head
    DOCUMENTATION = r"""
options:
  domain_xml:
    description:
      - The libvirt domain XML to store in the image.
    type: str
  image_version:
    description:
      - The version of the image's header. V(3) marks mapped-ram in its C(features), V(2) is what libvirt reads.
    type: int
    choices: [2, 3]
  vm_state:
    description:
      - The state in which a restore leaves the VM.
    type: str
    choices: [running, paused]
"""
