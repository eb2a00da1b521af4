# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the tests share: real guests and the means to talk to their QEMU. Needs nothing but the standard library."""

from __future__ import annotations

from . import cli
from .counter import CounterGuest
from .guest import Guest, GuestError, gaps
from .linux import LinuxGuest
from .monitor import Monitor, MonitorError, qmp, wait_migration
from .process import Process, find_qemu_pids

__all__ = [
    "CounterGuest",
    "Guest",
    "GuestError",
    "LinuxGuest",
    "Monitor",
    "MonitorError",
    "Process",
    "cli",
    "find_qemu_pids",
    "gaps",
    "qmp",
    "wait_migration",
]
