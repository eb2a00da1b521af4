# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The program of host_setup that restores a host's saved VMs at boot."""

from __future__ import annotations

import subprocess

from .guest import REPOSITORY

#: What is made into the archive that runs.
BOOT_PROGRAM = REPOSITORY / "roles" / "host_setup" / "files" / "restore_saved_vms.py"


def said(process: subprocess.Popen[str], status: int, timeout: float = 120) -> str:
    """What it said, when it has ended as it should."""
    output, _nothing = process.communicate(timeout=timeout)
    assert process.returncode == status, output
    assert "Traceback" not in output, output
    return output
