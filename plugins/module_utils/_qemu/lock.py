# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One run at a time on one VM: a lock that is named after its QEMU process, and ends with the run that holds it.

A monitor serves one client, but a VM may have several monitors, and two controllers may each use their own. The name is
the process's id with its time of start, so another process is never taken for it. The lock lies in a directory of the
run's user: QEMU's own user cannot hold it.
"""

from __future__ import annotations

import contextlib
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._errors import BusyError, ConflictError
from ansible_collections.vmops.qemu.plugins.module_utils._lock import LOCK_TIMEOUT, named_lock
from ansible_collections.vmops.qemu.plugins.module_utils._proc import birth_of
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import QemuProcess


@contextlib.contextmanager
def vm_lock(process: QemuProcess, timeout: float = LOCK_TIMEOUT) -> t.Iterator[None]:
    """Hold the lock of a VM's QEMU; without effect where it has ended.

    :param timeout: seconds for which it may be waited for.
    :raises BusyError: another run holds it.
    :raises ConflictError: there is no place for it.
    """
    birth = birth_of(process.pid)
    if birth is None:
        yield
        return
    label = f"{process.name or 'The VM'} (QEMU's pid {process.pid})"
    with contextlib.ExitStack() as stack:
        try:
            holder = stack.enter_context(named_lock(f"vm-{process.pid}-{birth}", timeout))
        except OSError as exc:
            raise ConflictError(
                f"{label} cannot be kept from other runs: {exc.filename or ''} {exc.strerror}",
                cure="Give the directory to the user that runs the task, with the mode 0700",
            ) from exc
        if holder is not None:
            raise BusyError(
                f"{label} is being saved or restored by another run{holder}",
                cure="Wait for its end, then run the task again",
            )
        yield
