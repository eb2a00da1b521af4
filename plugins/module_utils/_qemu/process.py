# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""QEMU processes of this host: find one by its VM's name, and what the kernel tells of it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import stat
import time
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._bounded_read import TooLongError
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
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.file_names import left_directory, start_directory
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.rights import (
    Rights,
    rights_of,
)
from ansible_collections.vmops.qemu.plugins.module_utils._user import user_name

#: Bytes and words of a command line that are read at most. A VM of libvirt's has 5 to 20 KiB of it, and one with 255
#: disks some 200 KiB; but what stands in /proc is the process's own memory, which any user makes gigabytes long.
MAX_COMMAND_LINE = 512 * 1024
MAX_WORDS = 16 * 1024

#: VMs that one message names at most, and characters of each name.
_MAX_NAMED = 20
_MAX_SHOWN = 100

#: File names of QEMU's; with a dot where a distribution wraps it (``.qemu-system-x86_64-wrapped``).
_EMULATOR = re.compile(r"\.?(?:qemu|kvm|qemu-kvm|qemu-system-.+)")

#: The umask of a QEMU of which none is known. This process's own may let everyone use what it creates, its monitor too.
DEFAULT_UMASK = 0o022


@dataclasses.dataclass(frozen=True)
class QemuProcess:
    """A running QEMU, as /proc shows it."""

    pid: int
    #: Empty where its configuration gives it none, or could not be read.
    name: str = dataclasses.field(compare=False)
    argv: tuple[str, ...]
    #: Where it was started, as far as that is known; else where it is now.
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
    def is_in_charge(self) -> bool:
        """Whether this user's runs over the host see to it: root's to all VMs, any other user's to his own."""
        return os.geteuid() in (0, self.uid)

    @property
    def uuid(self) -> str:
        """The VM's, in the usual form; empty where its configuration gives it none."""
        return command_line.vm_uuid(self.configuration.words)

    @property
    def qmp_addresses(self) -> list[str]:
        """Where its QMP servers listen, in the order of its configuration."""
        return command_line.qmp_addresses(self.configuration.words, self.cwd)

    @property
    def human_addresses(self) -> list[str]:
        """As ``qmp_addresses``, of its human monitors."""
        return command_line.human_addresses(self.configuration.words, self.cwd)

    @property
    def addresses(self) -> list[str]:
        """Where its monitors of either kind listen, the best one first."""
        return [*self.qmp_addresses, *self.human_addresses]

    @property
    def is_of_libvirt(self) -> bool:
        """Whether libvirt started it, which holds its monitor, and stops and starts it by itself.

        Its user can pretend that, with the result that his VM is left alone.
        """
        return any(
            option.name == "chardev"
            and command_line.parse_option_string(option.argument or "", "backend").get("id") == "charmonitor"
            for option in command_line.options(self.argv)
        )

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
    return bool(first) and any(is_emulator(name) for name in names)


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
    if visible and left_directory(argv):
        cwd = start_directory(pid, argv) or cwd
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
    if not is_emulator(executable):
        return f"says that it is one, but executes {executable}"
    if visible and uid in (0, os.geteuid()) and os.stat(proc_path(pid, "exe")).st_mode & (stat.S_ISUID | stat.S_ISGID):
        return f"executes {executable}, which changes its user (set-user-ID)"
    return ""


def _umask_of(status: t.Mapping[str, str]) -> int:
    try:
        return int(status.get("Umask", f"{DEFAULT_UMASK:o}"), 8)  # from Linux 4.7 on
    except ValueError:
        return DEFAULT_UMASK


def is_emulator(path: str) -> bool:
    """Whether a program is a QEMU, by its name."""
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


def running_note(details: t.Callable[[QemuProcess], str] | None = None) -> str:
    """Which VMs run, as a sentence, for whoever has asked for another one.

    :param details: what else is told of each, with its process id.
    """

    def told(process: QemuProcess) -> str:
        name = process.name[:_MAX_SHOWN] or "one without a name"
        if details:
            return f"{name} (pid {process.pid}, {details(process)})"
        return name if process.name else f"{name} (pid {process.pid})"

    names = sorted({told(process) for process in list_processes()})
    if not names:
        return "No QEMU is known to run here"
    more = len(names) - _MAX_NAMED
    return f"Those that run: {', '.join(names[:_MAX_NAMED])}" + (f" and {more} more" if more > 0 else "")


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
