# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where a launched QEMU's stdout and stderr go, and what it has said there.

The log is opened once, and read from what was opened: what others put in its place later is of no matter. systemd opens
it again by its name, and follows links; so its directory is one in which nobody else can change a name.
"""

from __future__ import annotations

import contextlib
import os
import stat

from ansible_collections.vmops.qemu.plugins.module_utils._errors import LaunchError
from ansible_collections.vmops.qemu.plugins.module_utils._proc import open_again
from ansible_collections.vmops.qemu.plugins.module_utils._run_directory import log_path
from ansible_collections.vmops.qemu.plugins.module_utils._safe_path import why_unsafe_directory

#: Bytes of what it has said that are told at most.
_TAIL = 4096


def safe_log_path(path: str, vm_name: str) -> str:
    """The path, or, where others can change names in its directory, one of the VM's in a directory of this user's.

    :raises LaunchError: that directory cannot be made.
    """
    try:
        if not why_unsafe_directory(os.path.dirname(path), (0, os.geteuid())):
            return path
        return log_path(vm_name)
    except OSError as exc:
        raise LaunchError(
            f"{exc.filename or path}: there is no safe place for QEMU's log: {exc.strerror}",
            cure="Give the directory to the user that runs the task, with the mode 0700",
        ) from exc


class LaunchLog:
    """The file for what a launched QEMU writes to stdout and stderr."""

    def __init__(self, path: str) -> None:
        """:param path: a file beside which only its owner can write; created with mode 0600, appended to."""
        self.path = path
        self._start = 0
        #: A descriptor of our own, to read from.
        self._reader = -1

    def open(self) -> int:
        """A descriptor to write to, which the caller closes; what was written before does not count.

        :raises LaunchError: it cannot be written.
        """
        self.close()
        descriptor, self._start = _open_log(self.path)
        # Of the same file, whatever has the name by now; QEMU cannot read in it what earlier ones have said.
        with contextlib.suppress(OSError):
            self._reader = open_again(descriptor, os.O_RDONLY | os.O_NONBLOCK)
        return descriptor

    def tail(self) -> str:
        """What was written since ``open``, the end at most (4 KiB), its lines in one."""
        if self._reader < 0:
            return ""
        with contextlib.suppress(OSError):
            size = os.fstat(self._reader).st_size
            return in_one_line(os.pread(self._reader, _TAIL, max(self._start, size - _TAIL)).decode(errors="replace"))
        return ""

    def close(self) -> None:
        """Give the own descriptor back; may be called again."""
        if self._reader >= 0:
            os.close(self._reader)
            self._reader = -1


def in_one_line(text: str) -> str:
    """What a program said, for a message: lines of others' words could pass for lines of our own."""
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())


def _open_log(path: str) -> tuple[int, int]:
    """Open QEMU's log for appending, which only its owner may read: command lines hold passwords; and its size so far.

    :raises LaunchError: it cannot be written, or what is in its place may be someone else's.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        log = os.open(path, flags, 0o600)
    except OSError as exc:
        raise LaunchError(
            f"{path}: QEMU's log cannot be written: {exc.strerror}", cure="Remove what is in its place"
        ) from exc
    try:
        facts = os.fstat(log)
        # A second name may be that of a file of ours which someone wants to be written to.
        if not stat.S_ISREG(facts.st_mode) or facts.st_nlink != 1:
            raise LaunchError(
                f"{path}: QEMU's log is not a regular file with one name", cure="Remove what is in its place"
            )
        if stat.S_IMODE(facts.st_mode) != 0o600:
            # On a file system that knows neither owners nor modes, the mount's own decide.
            with contextlib.suppress(PermissionError):
                os.fchmod(log, 0o600)
        return log, facts.st_size
    except BaseException:  # whatever it is: the descriptor is nobody's yet
        os.close(log)
        raise
