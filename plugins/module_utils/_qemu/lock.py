# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One run at a time on one VM: a lock on its QEMU process, which ends with the run that holds it.

A monitor serves one client, but a VM may have several monitors, and two controllers may each use their own. The lock
is a C(flock) on C(/proc/PID/fd): it needs no file of its own, cannot be planted, can be opened by nobody but root and
QEMU's own user, and is let go by the kernel when the run ends, however it ends.
"""

from __future__ import annotations

import contextlib
import os
import re
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._errors import ConflictError
from ansible_collections.vmops.qemu.plugins.module_utils._lock import lock
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import QemuProcess


@contextlib.contextmanager
def vm_lock(process: QemuProcess) -> t.Iterator[None]:
    """Hold the lock of a VM's QEMU; without effect for a user who may not look into the process.

    :raises ConflictError: another run holds it.
    """
    try:
        descriptor = os.open(f"/proc/{process.pid}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:  # it has ended, or is another user's
        yield
        return
    try:
        if not lock(descriptor):
            raise ConflictError(
                f"{process.name or 'The VM'} (QEMU's pid {process.pid}) is being saved or restored by another"
                f" run{_holder(descriptor)}",
                cure="Wait for its end, then run the task again",
            )
        yield
    finally:
        os.close(descriptor)


def _holder(descriptor: int) -> str:
    """Who holds a lock, from C(/proc/locks), as a part of a sentence; empty where it cannot be told."""
    facts = os.fstat(descriptor)
    place = f"{os.major(facts.st_dev):02x}:{os.minor(facts.st_dev):02x}:{facts.st_ino}"
    with contextlib.suppress(OSError), open("/proc/locks", encoding="ascii", errors="replace") as handle:
        found = re.search(rf"FLOCK\s+ADVISORY\s+WRITE\s+([1-9][0-9]*)\s+{place}\s", handle.read())
        if found:
            return f" (pid {found.group(1)})"
    return ""
