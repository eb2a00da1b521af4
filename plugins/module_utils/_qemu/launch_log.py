# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where a launched QEMU's stdout and stderr go, and what it has said there.

To the files to which they went before, where nobody else can have put these there; what they hold is kept. Else, where
systemd does not take them to its journal, through a pipe to a log in a directory of this user's alone: as much as
``LOG_LIMIT``, which is plenty for what QEMU says while it starts, and no more for all of the VM's life, as a guest
whose console is QEMU's stdout writes without an end.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import subprocess

from ansible_collections.vmops.qemu.plugins.module_utils._errors import LaunchError
from ansible_collections.vmops.qemu.plugins.module_utils._proc import Pid, open_again, proc_path, read_proc
from ansible_collections.vmops.qemu.plugins.module_utils._run_directory import log_path
from ansible_collections.vmops.qemu.plugins.module_utils._safe_path import why_unsafe

#: Bytes of a log that is made here.
LOG_LIMIT = 1024 * 1024

#: Bytes of what it has said that are told at most.
_TAIL = 4096

#: Seconds in which the log has all that an ended QEMU has said.
_LOG_TIMEOUT = 2.0

#: Writes the beginning of its input to its output at once, and swallows the rest: QEMU must never wait for a reader.
#: The limit, in units of 512 bytes, is that of the file's size.
_BEGINNING = """
trap '' XFSZ
(ulimit -f "$1"; exec cat)
exec cat >/dev/null
"""


def output_file(pid: Pid, number: int) -> str:
    """The file to which a process writes its stdout (1) or stderr (2); the empty string for anything else.

    Only one in whose place nobody but root and this user could put another one: a process can say of any file that it
    writes there, and its user may lead a path elsewhere later.
    """
    place = proc_path(pid, f"fd/{number}")
    with contextlib.suppress(OSError, ValueError):
        path = os.readlink(place)
        flags = re.search(rb"^flags:\s*([0-7]+)", read_proc(pid, f"fdinfo/{number}"), re.MULTILINE)
        writes = bool(flags) and int(flags.group(1), 8) & os.O_ACCMODE != os.O_RDONLY if flags else False
        facts = os.stat(place)
        if writes and stat.S_ISREG(facts.st_mode) and os.path.samestat(facts, os.lstat(path)) and is_usable(path):
            return path
    return ""


def is_usable(path: str) -> bool:
    """Whether it is a file to which a QEMU may write whom this user starts."""
    try:
        facts = os.lstat(path)
        return (
            os.path.isabs(path)
            and stat.S_ISREG(facts.st_mode)
            and facts.st_nlink == 1
            and not why_unsafe(path, {0, os.geteuid()})
        )
    except (OSError, ValueError):
        return False


class LaunchLog:
    """What a launched QEMU writes to stdout and stderr."""

    def __init__(self, vm_name: str, stdout: str = "", stderr: str = "") -> None:
        """:param stdout: and ``stderr``: the files to which it went before, and which are there; empty for none."""
        self._name = vm_name
        self._files = (stdout, stderr)
        #: Where to look for what it says; empty before ``open`` where it is a log that is made there.
        self.path = stderr
        self._start = 0
        #: A descriptor of our own, to read from.
        self._reader = -1
        self._writer: subprocess.Popen[bytes] | None = None

    def open(self) -> tuple[int, int]:
        """Descriptors for its stdout and stderr, which the caller closes; what was written before does not count.

        :raises LaunchError: it cannot be written.
        """
        self.close()
        opened: list[int] = []
        try:
            for path in self._files:
                if path:
                    opened.append(_open_file(path))
                elif "" in self._files[: len(opened)]:
                    opened.append(os.dup(opened[0]))
                else:
                    opened.append(self._make())
            if self._files[1]:
                self._read(opened[1])
            return opened[0], opened[1]
        except BaseException:  # whatever it is: the descriptors are nobody's yet
            for descriptor in opened:
                os.close(descriptor)
            raise

    def follow(self) -> None:
        """Only read what is written to the file for its stderr, which somebody else opens.

        :raises LaunchError: it is no file.
        """
        self.close()
        descriptor = _open_file(self._files[1])
        try:
            self._read(descriptor)
        finally:
            os.close(descriptor)

    def _read(self, descriptor: int) -> None:
        self._start = os.fstat(descriptor).st_size
        # Of the same file, whatever has the name by now; QEMU cannot read in it what earlier ones have said.
        with contextlib.suppress(OSError):
            self._reader = open_again(descriptor, os.O_RDONLY | os.O_NONBLOCK)

    def _make(self) -> int:
        """A descriptor of a pipe to a new log, in the place of that of an earlier start."""
        path = ""
        try:
            path = log_path(self._name)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            # Nobody else may read it: command lines hold passwords.
            log = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise LaunchError(
                f"{exc.filename or path}: QEMU's log cannot be written: {exc.strerror}",
                cure="Remove what is in its place; or give the directory to the user that runs the task, with the mode"
                " 0700",
            ) from exc
        try:
            output, pipe = os.pipe()
            try:
                # Of no session or group of others', since it must live as long as QEMU does.
                self._writer = subprocess.Popen(
                    ["/bin/sh", "-c", _BEGINNING, "sh", str(LOG_LIMIT // 512)],
                    stdin=output,
                    stdout=log,
                    stderr=subprocess.DEVNULL,
                    cwd="/",
                    env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"},
                    start_new_session=True,
                )
            except OSError as exc:
                os.close(pipe)
                raise LaunchError(
                    f"QEMU's log cannot be written: /bin/sh cannot be run: {exc.strerror}", cure="Install a shell"
                ) from exc
            finally:
                os.close(output)
        except BaseException:
            os.close(log)
            raise
        if not self._files[1]:
            self.path, self._start, self._reader = path, 0, log
        else:
            os.close(log)
        return pipe

    def settle(self) -> None:
        """Wait until what an ended QEMU has said is in the log."""
        if self._writer is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._writer.wait(_LOG_TIMEOUT)

    def tail(self) -> str:
        """What was written since ``open``, the end at most (4 KiB), its lines in one."""
        if self._reader < 0:
            return ""
        with contextlib.suppress(OSError):
            size = os.fstat(self._reader).st_size
            return in_one_line(os.pread(self._reader, _TAIL, max(self._start, size - _TAIL)).decode(errors="replace"))
        return ""

    def close(self) -> None:
        """Give the own descriptor back, and let the log go its own way; may be called again."""
        if self._reader >= 0:
            os.close(self._reader)
            self._reader = -1
        if self._writer is not None:
            self._writer.poll()
            # It is meant to live on: keep subprocess from warning that it was not waited for.
            self._writer.returncode = self._writer.returncode or 0
            self._writer = None


def in_one_line(text: str) -> str:
    """What a program said, for a message: lines of others' words could pass for lines of our own."""
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())


def _open_file(path: str) -> int:
    """Open a file to append to it.

    :raises LaunchError: it cannot be, or is no regular file.
    """
    try:
        log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as exc:
        raise LaunchError(
            f"{path}, to which QEMU wrote before, cannot be written: {exc.strerror}", cure="Make it writable"
        ) from exc
    if not stat.S_ISREG(os.fstat(log).st_mode):
        os.close(log)
        raise LaunchError(f"{path}, to which QEMU wrote before, is no file any more", cure="Remove it")
    os.set_blocking(log, True)
    return log
