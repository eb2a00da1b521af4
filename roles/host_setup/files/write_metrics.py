# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Write metrics of this host's saves and restores: vmops-metrics.timer has it run, with the path of its settings."""

from __future__ import annotations

import sys

from ansible_collections.vmops.qemu.plugins.module_utils._host.metrics_program import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
