# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""qemu_managed_restore, followed while it works on the host."""

from __future__ import annotations

from ansible_collections.vmops.qemu.plugins.plugin_utils._host_run import HostRunAction


class ActionModule(HostRunAction):
    """Runs the module of this name."""

    operation = "restore"
