# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""qemu_host_info, its answer reduced to what it documents."""

from __future__ import annotations

from ansible_collections.vmops.qemu.plugins.plugin_utils._action import ModuleAction


class ActionModule(ModuleAction):
    """Runs the module of this name."""
