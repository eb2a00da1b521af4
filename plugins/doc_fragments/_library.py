# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where Python on the host finds qemu.qmp."""

from __future__ import annotations


class ModuleDocFragment:
    # extends_documentation_fragment: vmops.qemu._library
    DOCUMENTATION = r"""
options:
  bundle_library:
    description:
      - If Python on the host lacks the library C(qemu.qmp), use the controller's copy for this run. It is pure Python,
        is put into the run's temporary directory, and is removed with it.
      - With V(false), the library must be installed on the host.
    type: bool
    default: true
"""
