# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which image a module is about."""

from __future__ import annotations


class ModuleDocFragment:
    # extends_documentation_fragment: vmops.qemu._image_location
    DOCUMENTATION = r"""
options:
  name:
    description:
      - The VM's name, as in QEMU's C(-name) option. Its image is the name with C(.save) in O(save_dir).
      - If O(path) is given, too, the image must hold the VM of this name.
      - One of O(name) and O(path) is needed.
    type: str
  path:
    description:
      - The save image. It must be a regular file; symbolic links are not followed.
      - The default is O(name) with C(.save) in O(save_dir).
    type: path
"""
