# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How QEMU writes or reads the guest's memory."""

from __future__ import annotations


class ModuleDocFragment:
    # extends_documentation_fragment: vmops.qemu._access
    DOCUMENTATION = r"""
options:
  parallel_channels:
    description:
      - The number of channels that write or read the memory at the same time (V(sparse) format only).
      - The default is two for each CPU of the host, but no fewer than 2 and no more than 8.
      - A restore may use another number than the save.
    type: int
  bypass_cache:
    description:
      - Whether the memory bypasses the host's page cache (O_DIRECT; V(sparse) format only).
      - By default, O_DIRECT is used if the file system supports it.
      - With V(true), the task fails if the file system does not support it. V(false) never uses it.
    type: bool
"""
