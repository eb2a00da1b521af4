# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""tests/machines.py, which makes the machines of the tests, as a command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import machines


def _why_not() -> str:
    if os.geteuid() != 0:
        return "only root can make machines"
    if shutil.which("systemd-nspawn") is None:
        return "no systemd-nspawn; run: scripts/setup hosts"
    try:
        machines.base_tree()
    except machines.MachineError as error:
        return str(error)
    return ""


#: Why no machine can be made here, or the empty string.
UNAVAILABLE = _why_not()


def start(*arguments: str) -> subprocess.Popen[str]:
    """tests/machines.py, in the background."""
    command = [sys.executable, machines.__file__, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    """What it said; it must have succeeded."""
    said, _nothing = process.communicate(timeout=machines.BOOT_TIMEOUT + machines.END_TIMEOUT)
    assert process.returncode == 0, said
    return said
