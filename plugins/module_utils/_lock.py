# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""File locks (``flock``): they end with the process that holds them, however it ends.

What keeps two runs apart lies in a directory of the runs' own user, which nobody else can look into: the lock of a
thing that others can open (a process's directory in /proc, an image whose descriptor its QEMU was handed) is one that
they can hold against us.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import os
import re
import time
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._bounded_read import read_bounded
from ansible_collections.vmops.qemu.plugins.module_utils._proc import all_pids, descriptors_of, proc_path, read_proc
from ansible_collections.vmops.qemu.plugins.module_utils._run_directory import lock_path
from ansible_collections.vmops.qemu.plugins.module_utils._user import user_name

#: Seconds for which a lock is waited for. A run that was killed while it started another program (QEMU, a compressor)
#: leaves its locks to that one until it is loaded, some milliseconds later.
LOCK_TIMEOUT = 1.0

#: Bytes of ``/proc/locks`` that are read at most; any user can take thousands of locks.
_MAX_LOCKS = 4 * 1024 * 1024

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


@contextlib.contextmanager
def named_lock(name: str, timeout: float = LOCK_TIMEOUT) -> t.Iterator[str | None]:
    """Hold the lock of this name, among all runs of this user: a file (``lock_path``), which goes with the lock.

    :param timeout: seconds for which it may be waited for.
    :returns: None where it is held; else who holds it, as a part of a sentence, which may be empty.
    :raises OSError: the file cannot be made or locked.
    :raises RunDirectoryError: there is no directory for it.
    """
    path = lock_path(name)
    deadline = time.monotonic() + timeout
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
        try:
            if not lock(descriptor, max(0.0, deadline - time.monotonic())):
                yield _holder(descriptor)
                return
            # Whoever had it before may have removed it meanwhile, and another run have made it anew.
            if not _is_at(path, descriptor):
                continue
            try:
                yield None
            finally:
                # Before it is let go, so that nobody locks what is not there any more without seeing it.
                with contextlib.suppress(OSError):
                    os.remove(path)
            return
        finally:
            os.close(descriptor)


def _is_at(path: str, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def file_lock(descriptor: int, timeout: float = LOCK_TIMEOUT) -> t.Iterator[Held | None]:
    """Hold the lock of an open file: by its name among this user's runs, and by ``flock`` for those of others.

    The name is the file's device and inode, which no other file has while it is open.

    :param timeout: seconds for which each of them may be waited for.
    :returns: None where it is held; else who holds it.
    :raises OSError: it cannot be locked.
    """
    facts = os.fstat(descriptor)
    with named_lock(f"file-{facts.st_dev:x}-{facts.st_ino}", timeout) as other:
        if other is not None:
            yield Held(is_run=True, who=other)
        elif lock(descriptor, timeout):
            try:
                yield None
            finally:
                unlock(descriptor)
        else:
            yield _who_holds(facts)


@dataclasses.dataclass(frozen=True)
class Held:
    """A lock that someone else has."""

    #: Whether it is a run like this one, which comes to an end; else it may stay for ever.
    is_run: bool
    #: The process, as a part of a sentence; empty where it is not known.
    who: str
    #: The user whose process it is, where it is known.
    uid: int | None = None


def _who_holds(wanted: os.stat_result) -> Held:
    """The process in which a file is open and locked (``flock``): whichever has it now, not who took it.

    ``/proc/locks`` has the process that took it, which may have ended, and have left it to another one.
    """
    found = Held(False, " (which cannot be seen: it may run on another host)")
    for pid in all_pids():
        with contextlib.suppress(OSError):
            uid = os.stat(proc_path(pid)).st_uid
            if any(_has_locked(pid, link, wanted) for link in descriptors_of(pid)):
                ours = uid in (0, os.geteuid())
                found = Held(ours, f" (pid {pid} of the user {user_name(uid)})", uid)
                # A run's own descriptor is nobody else's, but what others have locked they can pass to a service.
                if not ours:
                    break
    return found


def _has_locked(pid: int, link: str, wanted: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(link), wanted) and b"FLOCK" in read_proc(
            pid, f"fdinfo/{os.path.basename(link)}", _MAX_LOCKS
        )
    except OSError:
        return False


def _holder(descriptor: int) -> str:
    """Who holds the lock of one of the files of ``named_lock``, as a part of a sentence; empty where unknown."""
    inode = os.fstat(descriptor).st_ino
    with contextlib.suppress(OSError):
        text = read_bounded("/proc/locks", _MAX_LOCKS).decode("ascii", "replace")
        found = re.search(rf"FLOCK\s+ADVISORY\s+WRITE\s+([1-9][0-9]*)\s+[0-9a-f]+:[0-9a-f]+:{inode}\s", text)
        if found:
            return f" (pid {found.group(1)})"
    return ""
