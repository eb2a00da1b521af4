# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What modules that need qemu.qmp say of it."""

from __future__ import annotations


class ModuleDocFragment:
    # extends_documentation_fragment: vmops.qemu._library
    DOCUMENTATION = r"""
options:
  bundle_library:
    description:
      - Where Python on the host lacks the library C(qemu.qmp), bring the controller's own copy along for this run. It
        is pure Python, lies in the run's temporary directory, and is removed with it.
      - With V(false) the host must have it.
    type: bool
    default: true
"""
