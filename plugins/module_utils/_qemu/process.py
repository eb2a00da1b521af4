# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""QEMU processes of this host: find one by its VM's name, follow its end, launch one that outlives this process."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import re
import select
import signal
import stat
import subprocess
import time
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._bounded_read import TooLongError
from ansible_collections.vmops.qemu.plugins.module_utils._errors import LaunchError
from ansible_collections.vmops.qemu.plugins.module_utils._proc import (
    all_pids,
    birth_of,
    descriptors_of,
    executable_of,
    proc_path,
    read_command_line,
    read_io,
    read_stat,
    read_status,
)
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import command_line
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.configuration import Configuration, read_configuration
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.launch_log import LaunchLog
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.rights import (
    Rights,
    read_rights,
    rights_of,
    start_words,
)
from ansible_collections.vmops.qemu.plugins.module_utils._safe_path import why_unsafe
from ansible_collections.vmops.qemu.plugins.module_utils._user import user_name

#: Seconds that a killed process may take to end.
_KILL_TIMEOUT = 30.0

#: Bytes and words of a command line that are read at most. A VM of libvirt's has 5 to 20 KiB of it, and one with 255
#: disks some 200 KiB; but what stands in /proc is the process's own memory, which any user makes gigabytes long.
MAX_COMMAND_LINE = 512 * 1024
MAX_WORDS = 16 * 1024

#: File names of QEMU's; with a dot where a distribution wraps it (``.qemu-system-x86_64-wrapped``).
_EMULATOR = re.compile(r"\.?(?:qemu|kvm|qemu-kvm|qemu-system-.+)")

#: The umask of a QEMU of which none is known. This process's own may let everyone use what it creates, its monitor too.
DEFAULT_UMASK = 0o022

#: All that a launched QEMU inherits: what it was started with by its first owner is not known, and what the
#: controller's session happens to hold (tokens, SSH agents) is none of its business.
LAUNCH_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}


@dataclasses.dataclass(frozen=True)
class QemuProcess:
    """A running QEMU, as /proc shows it."""

    pid: int
    #: Empty where its configuration gives it none, or could not be read.
    name: str = dataclasses.field(compare=False)
    argv: tuple[str, ...]
    cwd: str
    #: The emulator's path; the one it was started by where the file was replaced by an upgrade meanwhile.
    executable: str
    uid: int
    gid: int
    #: When it was started, in the kernel's ticks since the boot: another process may get its number, but not with this.
    birth: int = 0
    #: The permissions that what it creates (its sockets, its logs) does not get.
    umask: int = DEFAULT_UMASK
    #: Whether ``cwd`` and ``executable`` are what /proc says, rather than guessed for another user's process.
    visible: bool = True
    #: What the kernel says that it may do; None where it does not say all.
    rights: Rights | None = dataclasses.field(default=None, compare=False)
    #: What it was configured to be, as far as that can be told now. It is the same process when a file has changed.
    configuration: Configuration = dataclasses.field(default=Configuration((), ()), compare=False)

    @property
    def who(self) -> str:
        """The process as messages name it."""
        return f"pid {self.pid} of the user {user_name(self.uid)}"

    @property
    def qmp_addresses(self) -> list[str]:
        """Where its QMP servers listen, in the order of its configuration."""
        return command_line.qmp_addresses(self.configuration.words, self.cwd)

    @property
    def waits_for_state(self) -> bool:
        """Whether it was started to be told by QMP what to load (``-incoming defer``)."""
        return any(
            option.name == "incoming" and option.argument == "defer" for option in command_line.options(self.argv)
        )


@dataclasses.dataclass(frozen=True)
class DoubtfulProcess:
    """A process that says it is a QEMU, and is not taken for one."""

    pid: int
    uid: int
    #: Why not, as a clause.
    reason: str

    def __str__(self) -> str:
        return (
            f"the process with the pid {self.pid} of the user {user_name(self.uid)} {self.reason}, so it is not taken"
            " for a QEMU"
        )


def read_process(pid: int) -> QemuProcess | None:
    """The QEMU with this process id, or None where it has ended, is another program, or may not be looked at."""
    found = _look_at(pid)
    return found if isinstance(found, QemuProcess) else None


def is_alive(process: QemuProcess) -> bool:
    """Whether this very process still runs, whatever it says of itself by now."""
    watch = ProcessWatch.of(process)
    try:
        return not watch.ended
    finally:
        watch.close()


def _look_at(pid: int) -> QemuProcess | DoubtfulProcess | None:
    if not _claims_to_be_qemu(pid):
        return None
    # What follows is of one process only if its number was that one's all the time.
    birth = birth_of(pid)
    found = None if birth is None else _read(pid, birth)
    return found if birth_of(pid) == birth else None


def _claims_to_be_qemu(pid: int) -> bool:
    """Whether its first word, or its program, has the name of a QEMU."""
    try:
        first = read_command_line(pid, MAX_COMMAND_LINE)
    except TooLongError as exc:
        first = exc.beginning
    except OSError:
        return False
    names = [os.fsdecode(first[: max(0, first.find(b"\0"))])] if first else []
    with contextlib.suppress(OSError):
        names.append(executable_of(pid))
    return bool(first) and any(_is_emulator(name) for name in names)


def _read(pid: int, birth: int) -> QemuProcess | DoubtfulProcess | None:
    try:
        status = read_status(pid)
        uid, gid = (int(status[key].split()[1]) for key in ("Uid", "Gid"))
        too_long = f"has a command line of more than {MAX_COMMAND_LINE >> 10} KiB, or {MAX_WORDS} words"
        try:
            data = read_command_line(pid, MAX_COMMAND_LINE)
        except TooLongError:
            return DoubtfulProcess(pid, uid, too_long)
        if data.count(b"\0") > MAX_WORDS:
            return DoubtfulProcess(pid, uid, too_long)
        words = data.split(b"\0")[:-1]
        if not words:
            return None
        argv = tuple(os.fsdecode(word) for word in words)
        try:
            executable, cwd, visible = executable_of(pid), os.readlink(proc_path(pid, "cwd")), True
        except PermissionError:
            # Another user's: its command line can be read, the rest only by root.
            executable, cwd, visible = argv[0], "/", False
        reason = _why_no_qemu(pid, executable, uid, visible)
    except (OSError, KeyError, ValueError, IndexError):
        return None
    if reason:
        return DoubtfulProcess(pid, uid, reason)
    configuration = read_configuration(argv, cwd, pid, uid)
    return QemuProcess(
        pid=pid,
        name=command_line.guest_name(configuration.words),
        argv=argv,
        cwd=cwd,
        executable=executable,
        visible=visible,
        birth=birth,
        umask=_umask_of(status),
        rights=rights_of(status),
        uid=uid,
        gid=gid,
        configuration=configuration,
    )


def _why_no_qemu(pid: int, executable: str, uid: int, visible: bool) -> str:
    """Why what is executed is no QEMU, whatever its words say, or not that of its user; else the empty string.

    Whoever executes a set-user-ID program gives it its words, and is not the user whose process it then is.
    """
    if not _is_emulator(executable):
        return f"says that it is one, but executes {executable}"
    if visible and uid in (0, os.geteuid()) and os.stat(proc_path(pid, "exe")).st_mode & (stat.S_ISUID | stat.S_ISGID):
        return f"executes {executable}, which changes its user (set-user-ID)"
    return ""


def _umask_of(status: t.Mapping[str, str]) -> int:
    try:
        return int(status.get("Umask", f"{DEFAULT_UMASK:o}"), 8)  # from Linux 4.7 on
    except ValueError:
        return DEFAULT_UMASK


def _is_emulator(path: str) -> bool:
    return _EMULATOR.fullmatch(os.path.basename(path)) is not None


def list_processes() -> list[QemuProcess]:
    """All QEMU processes that this user may look at, by process id."""
    found = {process.pid: process for process in _look_at_all() if isinstance(process, QemuProcess)}
    return [process for process in found.values() if not _cleans_up_after(process, found)]


def _cleans_up_after(process: QemuProcess, others: t.Mapping[int, QemuProcess]) -> bool:
    """Whether it is the copy of itself that QEMU leaves to give its memory back (``-run-with async-teardown=on``)."""
    if not any("async-teardown" in word for word in process.argv):
        return False
    try:
        parent = others.get(read_stat(process.pid).parent)
    except OSError:
        return False
    return parent is not None and (parent.argv, parent.uid) == (process.argv, process.uid)


def list_doubtful() -> list[DoubtfulProcess]:
    """The processes that :func:`list_processes` leaves out, although they say that they are QEMUs."""
    return [process for process in _look_at_all() if isinstance(process, DoubtfulProcess)]


def doubtful_note() -> str:
    """What is to be added where a VM was not found, since it may be one of these; or the empty string."""
    found = list_doubtful()
    return f" ({'; '.join(str(process) for process in found[:3])})" if found else ""


def _look_at_all() -> t.Iterator[QemuProcess | DoubtfulProcess]:
    for pid in all_pids():
        found = _look_at(pid)
        if found:
            yield found


def find_processes(name: str) -> list[QemuProcess]:
    """The QEMU processes whose ``-name`` is this, on the command line or in a file that it names."""
    return [process for process in list_processes() if process.name == name]


def has_open(pid: int, path: str) -> bool:
    """Whether a process has the file at a path open under the name that it has now; False where that cannot be told."""
    try:
        wanted = os.stat(path)
        name = os.path.basename(os.path.realpath(path))
        links = descriptors_of(pid)
    except OSError:
        return False
    for link in links:
        with contextlib.suppress(OSError):
            # By name first: others of its files may be on a server that does not answer.
            if os.path.basename(os.readlink(link)) == name and os.path.samestat(os.stat(link), wanted):
                return True
    return False


def age(pid: int) -> float:
    """Seconds since a process was started; infinite for one that has ended."""
    try:
        started = read_stat(pid).start_ticks
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")
    except OSError:
        return float("inf")


def bytes_read(pid: int) -> int:
    """Bytes that a process has read since its start, from files and pipes.

    :raises OSError: it has ended, or is another user's.
    """
    return read_io(pid)[0]


def work_done(pid: int) -> tuple[int, int] | None:
    """MiB that a process has read and written, and seconds that its threads have had a CPU; None where unknown.

    As coarse as that, since one that only waits does a little now and then, too.
    """
    try:
        read, written = read_io(pid)
        figures = read_stat(pid)
        ticks = figures.user_ticks + figures.system_ticks
    except OSError:
        return None
    return (read + written) >> 20, ticks // os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int | None:
    """Bytes of memory that a process holds: resident, swapped out, and huge pages; None where it cannot be told.

    No page of a guest that was never touched is in it, so it bounds what its save writes from above.
    """
    total = 0
    try:
        for key, value in read_status(pid).items():
            if key in ("VmRSS", "VmSwap", "HugetlbPages"):
                total += int(value.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        return None
    return total or None


class ProcessWatch:
    """Follows one process to its end through a pidfd, so that a reused process id is never taken for it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        try:
            self._descriptor: int | None = os.pidfd_open(pid)
        except (ProcessLookupError, PermissionError):
            self._descriptor = None

    @classmethod
    def of(cls, process: QemuProcess) -> ProcessWatch:
        """Of a process that was looked at before: where another one has its number by now, it has ended."""
        watch = cls(process.pid)
        if birth_of(process.pid) != process.birth:
            watch.close()
        return watch

    @property
    def ended(self) -> bool:
        """Whether the process has ended."""
        if self._descriptor is None:
            return True
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        return bool(poll.poll(0))

    @property
    def follows(self) -> bool:
        """Whether its end is seen; else it has ended already, or may not be followed."""
        return self._descriptor is not None

    async def wait(self) -> None:
        """Wait for the process's end."""
        if self._descriptor is None:
            return
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(self._descriptor, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(self._descriptor)

    async def wait_at_most(self, timeout: float) -> None:
        """Wait for the process's end, for so many seconds at most."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.wait(), timeout)

    def kill(self) -> None:
        """End the process at once, where it still runs."""
        if self._descriptor is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)

    def close(self) -> None:
        """Give the pidfd back."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def startable_program(argv: t.Sequence[str], executable: str, uid: int) -> tuple[str, str]:
    """The program with which a recorded QEMU may be started again, and, where there is none, why, as a clause.

    A process's words are what it says of itself, and any user can let a set-user-ID program of root's say that it is a
    QEMU. So only what is a QEMU is started, and only one that nobody else than root, the caller and the user as whom
    it shall run could have put there. The path in ``argv[0]``, where it is one, outlives an upgrade that moves the
    program; else it is the one that ran.

    :param executable: what ``/proc/PID/exe`` was.
    :param uid: the user as whom it shall run, -1 for the caller.
    """
    reason = "" if _is_emulator(executable) else f"its program {executable} is not a QEMU"
    for program in (argv[0], executable):
        if os.path.isabs(program) and _is_emulator(program) and _is_emulator(executable):
            reason = _why_not_trusted(program, uid)
            if not reason:
                return program, ""
    return "", reason or f"its program {executable} is not an absolute path"


def _why_not_trusted(program: str, uid: int) -> str:
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
    #: The systemd service that shall start it; empty for none.
    unit: str = ""
    #: The unit's own words, in which systemd expands variables; empty where it executes ``argv``.
    unit_argv: tuple[str, ...] = ()


class LaunchedQemu(t.Protocol):
    """A QEMU that is started and then outlives this process, whoever starts it."""

    how: Launch
    #: Where to look for what it says.
    log: str

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

    def __init__(self, how: Launch, log_path: str) -> None:
        self.how = how
        self.log = log_path
        self._log = LaunchLog(log_path)
        self._process: subprocess.Popen[bytes] | None = None
        self._watch: ProcessWatch | None = None

    async def start(self) -> None:
        """Start it.

        :raises LaunchError: it cannot be executed, or the log cannot be written.
        """
        self._process = self._spawn()
        self._watch = ProcessWatch(self._process.pid)

    def _spawn(self) -> subprocess.Popen[bytes]:
        how = self.how
        before = start_words(how.rights, read_rights("self"), how.cwd)
        log = self._log.open()
        try:
            return subprocess.Popen(
                [*before, *how.argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/" if before else how.cwd,
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
            os.close(log)

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
