# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""When this host last saved and restored a VM, and when that last failed, for those who watch over it.

An image goes with its restore, so nothing else says it afterwards. It is the time of change of an empty file for each:
``last-save.success``, ``last-save.failure`` and so on, in the state directory. So runs at once do not disturb each
other.
"""

from __future__ import annotations

import contextlib
import os

from ansible_collections.vmops.qemu.plugins.module_utils._state_directory import make_state_directory, state_path

OPERATIONS = ("save", "restore")
RESULTS = ("success", "failure")


def note_run(operation: str, succeeded: bool) -> None:
    """A run has ended just now; quiet where that cannot be kept, which is no reason to disturb a save.

    :param operation: ``save`` or ``restore``.
    """
    with contextlib.suppress(OSError):
        make_state_directory()
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(_path(operation, RESULTS[0] if succeeded else RESULTS[1]), flags, 0o600)
        try:
            os.utime(descriptor)
        finally:
            os.close(descriptor)


def read_runs() -> dict[tuple[str, str], float]:
    """Seconds since the epoch by operation and result; what has never been is left out."""
    found = {}
    for operation in OPERATIONS:
        for result in RESULTS:
            with contextlib.suppress(OSError):
                found[operation, result] = os.lstat(_path(operation, result)).st_mtime
    return found


def _path(operation: str, result: str) -> str:
    return state_path(f"last-{operation}.{result}")
