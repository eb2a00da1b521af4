# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Starting a QEMU that outlives this process."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._cancellation import in_thread
from ansible_collections.vmops.qemu.plugins.module_utils._errors import LaunchError
from ansible_collections.vmops.qemu.plugins.module_utils._proc import (
    read_stat,
)
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.launch_log import LaunchLog
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.network_namespace import namespace_words
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import DEFAULT_UMASK, is_emulator
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process_watch import ProcessWatch
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.resources import (
    Resources,
    Scheduling,
    read_resources,
    resource_words,
)
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.rights import (
    Rights,
    read_rights,
    start_words,
)
from ansible_collections.vmops.qemu.plugins.module_utils._safe_path import why_unsafe

#: Seconds that a killed process may take to end.
_KILL_TIMEOUT = 30.0

#: All that a launched QEMU inherits: what it was started with by its first owner is not known, and what the
#: controller's session happens to hold (tokens, SSH agents) is none of its business.
LAUNCH_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}


def startable_program(argv: t.Sequence[str], executable: str, uid: int) -> tuple[str, str]:
    """The program with which a recorded QEMU may be started again, and, where there is none, why, as a clause.

    A process's words are what it says of itself, and any user can let a set-user-ID program of root's say that it is a
    QEMU. So only what is a QEMU is started, and only one that nobody else than root, the caller and the user as whom
    it shall run could have put there. The path in ``argv[0]``, where it is one, outlives an upgrade that moves the
    program; else it is the one that ran.

    :param executable: what ``/proc/PID/exe`` was.
    :param uid: the user as whom it shall run, -1 for the caller.
    """
    reason = "" if is_emulator(executable) else f"its program {executable} is not a QEMU"
    for program in (argv[0], executable):
        if os.path.isabs(program) and is_emulator(program) and is_emulator(executable):
            reason = why_not_trusted(program, uid)
            if not reason:
                return program, ""
    return "", reason or f"its program {executable} is not an absolute path"


def why_not_trusted(program: str, uid: int) -> str:
    """Why others than root, the caller and that user could have written a program, as a clause; or the empty string."""
    trusted = {0, os.geteuid()}
    if uid >= 0 and os.geteuid() == 0:
        trusted.add(uid)
    try:
        reason = why_unsafe(program, trusted)
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the path
        return f"its program {program} cannot be looked at: {getattr(exc, 'strerror', None) or exc}"
    return f"{reason}, so others could have written its program {program}" if reason else ""


@dataclasses.dataclass(frozen=True)
class Launch:
    """How to start a QEMU."""

    argv: tuple[str, ...]
    cwd: str = "/"
    #: As whom, and with what; None for what whoever starts it has: this process, systemd, or the unit.
    rights: Rights | None = None
    umask: int = DEFAULT_UMASK
    #: What of the host it may use; None for what whoever starts it has.
    resources: Resources | None = None
    #: What only some of its threads have, by their names.
    threads: tuple[tuple[str, Scheduling], ...] = ()
    #: Where its network namespace is mounted (``network_namespace``), and whether it has the mounts of ``ip`` there.
    network_namespace: str = ""
    network_mounts: bool = False
    #: The files to which its stdout and stderr go; empty where they go to a log, or to the journal.
    stdout: str = ""
    stderr: str = ""
    #: The slice in which systemd shall start it; empty for the usual one.
    slice: str = ""
    #: The systemd service that shall start it; empty for none.
    unit: str = ""
    #: The unit's own words, in which systemd expands variables; empty where it executes ``argv``.
    unit_argv: tuple[str, ...] = ()


def words_before(how: Launch, starter: Resources, rights: Rights | None, cwd: str) -> tuple[list[str], bool]:
    """The words before a QEMU's with which it is executed where it ran, and with what it had; none where it is so.

    And whether they enter its directory, rather than being executed there.

    :param starter: what whoever executes these words has; without limits where those are not known.
    :param rights: what that one may do; None where that is not known.
    :param cwd: where QEMU is started; the empty string for where its starter is.
    :raises LaunchError: that cannot be given.
    """
    # The namespace first, and the user last, since each of them needs what the next one takes away.
    namespace = namespace_words(how.network_namespace, how.network_mounts)
    identity = start_words(how.rights, rights, cwd)
    return [*namespace, *resource_words(how.resources, starter), *identity], bool(identity)


class LaunchedQemu(t.Protocol):
    """A QEMU that is started and then outlives this process, whoever starts it."""

    how: Launch

    @property
    def log(self) -> str:
        """Where to look for what it says."""

    async def start(self) -> None:
        """Start it; raises LaunchError, or UnitError where systemd cannot be told."""

    def is_or_started(self, pid: int) -> bool:
        """Whether a process is this one, or was started by it (a wrapper that waits for its QEMU)."""

    async def ended(self) -> bool:
        """Whether it has ended, or will not be started."""

    async def wait_end(self, timeout: float) -> None:
        """Wait for its end, for so many seconds at most."""

    async def stderr(self) -> str:
        """What it wrote since its start, the end at most (4 KiB), its lines in one."""

    async def end(self) -> None:
        """Kill it where it runs, and leave nothing of its start; may be called whatever became of ``start``."""

    def release(self) -> None:
        """Let it go its own way."""


class LaunchedProcess:
    """A QEMU that this process starts: in a session of its own, without a terminal."""

    def __init__(self, how: Launch, vm_name: str) -> None:
        self.how = how
        self._log = LaunchLog(vm_name, how.stdout, how.stderr)
        self._process: subprocess.Popen[bytes] | None = None
        self._watch: ProcessWatch | None = None

    @property
    def log(self) -> str:
        """Where to look for what it says."""
        return self._log.path

    async def start(self) -> None:
        """Start it.

        :raises LaunchError: it cannot be executed, or the log cannot be written.
        """
        self._process = self._spawn()
        self._watch = ProcessWatch(self._process.pid)

    def _spawn(self) -> subprocess.Popen[bytes]:
        how = self.how
        before, enters = words_before(how, read_resources(os.getpid()), read_rights("self"), how.cwd)
        stdout, stderr = self._log.open()
        try:
            return subprocess.Popen(
                [*before, *how.argv],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                cwd="/" if enters else how.cwd,
                env=LAUNCH_ENVIRONMENT,
                close_fds=True,
                start_new_session=True,
                umask=how.umask,
            )
        except (OSError, subprocess.SubprocessError, ValueError) as exc:  # ValueError: a NUL in a word
            raise LaunchError(
                f"{how.argv[0]} could not be started in {how.cwd}: {exc}",
                cure="Check that the emulator is installed where the command says, and that its directory is there",
            ) from exc
        finally:
            os.close(stdout)
            os.close(stderr)

    def is_or_started(self, pid: int) -> bool:
        """Whether a process is this one, or was started by it (a wrapper that waits for its QEMU)."""
        if self._process is None:
            return False
        while pid > 1 and pid != self._process.pid:
            try:
                pid = read_stat(pid).parent
            except OSError:
                return False
        return pid == self._process.pid

    async def ended(self) -> bool:
        """Whether it has ended."""
        return self._watch is not None and self._watch.ended

    async def wait_end(self, timeout: float) -> None:
        """Wait for its end, for so many seconds at most."""
        if self._watch is not None:
            await self._watch.wait_at_most(timeout)

    async def stderr(self) -> str:
        """What it wrote since its start, the end at most (4 KiB), its lines in one."""
        if await self.ended():
            await in_thread(self._log.settle)
        return self._log.tail()

    async def end(self) -> None:
        """Kill it, wait for its end (a process that hangs in the kernel takes longer than this waits), and reap it."""
        if self._process is not None and self._watch is not None:
            # With its group, as a wrapper's QEMU would outlive it; the number is its own until it is reaped.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            await self._watch.wait_at_most(_KILL_TIMEOUT)
            self._process.poll()
        self._log.close()

    def release(self) -> None:
        """Let it go its own way: it now outlives this process."""
        if self._process is not None and self._watch is not None:
            self._watch.close()
            # It is meant to live on: keep subprocess from warning that it was not waited for.
            self._process.returncode = 0
        self._log.close()
