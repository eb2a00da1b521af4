# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How long the work of a module may take."""

from __future__ import annotations


class ModuleDocFragment:
    # extends_documentation_fragment: vmops.qemu._timeout
    DOCUMENTATION = r"""
options:
  timeout:
    description:
      - The number of seconds after which the module gives up and undoes what it has begun. V(0) means no limit.
      - Keep it shorter than C(async) and the task's C(timeout), which leave the module no time to clean up.
    type: float
    default: 3600
"""
