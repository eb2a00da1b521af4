# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where save images are."""

from __future__ import annotations


class ModuleDocFragment:
    # extends_documentation_fragment: vmops.qemu._save_dir
    DOCUMENTATION = r"""
options:
  save_dir:
    description:
      - The directory of the save images. It is not used when C(path) is given.
    type: path
    default: /var/lib/vmops/save
"""
