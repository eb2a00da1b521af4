# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The kernel's figures of a process (proc(5), C(/proc/PID/stat))."""

from __future__ import annotations

from ansible_collections.vmops.qemu.plugins.module_utils._bounded_read import read_bounded

#: Bytes of it at most: the name and some fifty numbers.
_MAX_SIZE = 16 * 1024

#: Places in what :func:`read_process_stat` gives.
PARENT = 1
USER_TICKS = 11
SYSTEM_TICKS = 12
START_TICKS = 19


def read_process_stat(pid: int) -> list[bytes]:
    """The fields after the program's name, which may itself hold blanks and parentheses; times are in ticks.

    :raises OSError: there is no such process.
    """
    return read_bounded(f"/proc/{pid}/stat", _MAX_SIZE).rpartition(b")")[2].split()
