# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What every module says of its own behaviour; a module adds C(support) and, where it has more to say, C(details)."""

from __future__ import annotations


class ModuleDocFragment:
    # Every module: extends_documentation_fragment: vmops.qemu._attributes
    DOCUMENTATION = r"""
options: {}
requirements:
  - Python 3.9 or later on the host
attributes:
  check_mode:
    description: Can run in C(check_mode) and return what it would do, without changing the VM or the image.
  diff_mode:
    description: Returns what has changed, or would change, in diff mode.
  idempotent:
    description:
      - If the module is run twice in a row with the same options, the second run changes nothing and says so.
      - This assumes that nothing else changes the VM or the image in between.
  platform:
    description: The systems on which the module can run.
    platforms: posix
    support: full
"""

    # A module that never changes anything: vmops.qemu._attributes.info_module
    INFO_MODULE = r"""
options: {}
attributes:
  check_mode:
    support: full
    details:
      - This module only reads, it changes nothing.
  diff_mode:
    support: N/A
    details:
      - This module only reads, it changes nothing.
  idempotent:
    support: full
    details:
      - This module only reads, it changes nothing.
"""

    # A module that takes the defaults of the action group: vmops.qemu._attributes.actiongroup_qemu
    ACTIONGROUP_QEMU = r"""
options: {}
attributes:
  action_group:
    description: Use C(group/vmops.qemu.qemu) in C(module_defaults) to set defaults for this module.
    support: full
    membership:
      - vmops.qemu.qemu
"""
