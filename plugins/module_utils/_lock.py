# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""File locks (C(flock)): they end with the process that holds them, however it ends."""

from __future__ import annotations

import errno
import fcntl
import time

#: Seconds for which a lock is waited for. A run that was killed while it started another program (QEMU, a compressor)
#: leaves its locks to that one until it is loaded, some milliseconds later.
LOCK_TIMEOUT = 1.0

#: A file system without locks; EBADF: NFS, which locks exclusively only what is open for writing.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF)


def lock(descriptor: int, timeout: float = LOCK_TIMEOUT) -> bool:
    """Take the exclusive lock of an open file or directory; it is let go when the last copy of it is closed.

    :param timeout: seconds for which it may be waited for.
    :returns: False where another process holds it; True also where the file system has no locks.
    :raises OSError: it cannot be locked for another reason.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return True
            raise
        time.sleep(0.02)


def unlock(descriptor: int) -> None:
    """Let a lock go before its descriptor is closed; quiet where there is none."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
