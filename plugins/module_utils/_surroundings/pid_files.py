# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Files in which somebody else than QEMU keeps its process's number, to stop the VM by it: OpenRC, a script, a runner.

After a restore they have the number of a process that is gone, or in time that of another one. So they are found at the
save, and get the new number at the restore. What QEMU writes itself (``-pidfile``), it writes again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import stat
import threading
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._bounded_read import read_up_to
from ansible_collections.vmops.qemu.plugins.module_utils._file_system import mount_points
from ansible_collections.vmops.qemu.plugins.module_utils._proc import read_status
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import command_line
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.file_names import file_names
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import QemuProcess
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.runner import openrc_pid_files
from ansible_collections.vmops.qemu.plugins.module_utils._safe_path import why_unsafe
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.verdict import Problem
from ansible_collections.vmops.qemu.plugins.module_utils._user import user_name

_NAME = re.compile(r".+\.pid|pid|pidfile|.+\.pidfile")

#: Where services keep theirs, and how far below that is looked: /run/qemu/NAME/qemu.pid.
_RUN = "/run"
_DEPTH = 2

#: Names that are looked at, directories of the VM's own, and files that one image may name.
_MAX_NAMES = 20000
_MAX_DIRECTORIES = 50
MAX_FILES = 20

#: Bytes of a pid file, which has a number of seven digits at most and an end of line.
_MAX_SIZE = 64

_MAX_PID = 1 << 22


@dataclasses.dataclass(frozen=True)
class PidFile:
    """A file with the number of a QEMU's process."""

    path: str
    #: Its owner.
    uid: int


@dataclasses.dataclass(frozen=True)
class PidFiles:
    """Those of one QEMU."""

    pid: int = 0
    files: tuple[PidFile, ...] = ()


def find_pid_files(process: QemuProcess, stop: threading.Event) -> tuple[PidFiles, list[Problem]]:
    """The files that can be brought up to date after a restore, and a problem for each that cannot; never raises.

    They are looked for in /run, where QEMU runs, and beside its files.
    """
    found: list[PidFile] = []
    problems = []
    own = {os.path.realpath(os.path.join(process.cwd, name)) for name in _own_pid_files(process)}
    for path in _candidates(process, stop):
        place = os.path.realpath(path)
        if place in own or place in {file.path for file in found} or len(found) >= MAX_FILES:
            continue
        try:
            facts, number = _look(place)
        except OSError:
            continue
        if number != process.pid:
            continue
        reason = _why_not_ours(place, facts.st_uid, process.uid)
        if reason:
            problems.append(
                Problem(
                    "pid_file",
                    f"{place} has the number of its QEMU's process ({process.pid}), and will have it after a restore:"
                    f" {reason}",
                    "Write the new number into it when the VM is restored, for whoever stops the VM by it",
                    blocks=False,
                )
            )
        else:
            found.append(PidFile(place, facts.st_uid))
    return PidFiles(process.pid, tuple(found)), problems


def update_pid_files(recorded: PidFiles, process: QemuProcess) -> list[str]:
    """Bring the files up to date that still have the old number: a sentence for each that could not be; never raises.

    :param recorded: what was found at the save; whoever calls this knows that nobody has forged it.
    :param process: the QEMU that has the guest now.
    """
    warnings = []
    for file in recorded.files:
        try:
            reason = _update(file, recorded.pid, process)
        except FileNotFoundError:
            continue  # a reboot has taken it
        except OSError as exc:
            reason = exc.strerror or str(exc)
        if reason:
            warnings.append(
                f"{file.path} still has the number that the VM's process had before ({recorded.pid}; it is"
                f" {process.pid} now): {reason}"
            )
    return warnings


def _own_pid_files(process: QemuProcess) -> list[str]:
    """What QEMU writes itself."""
    options = command_line.options(process.configuration.words)
    return [option.argument for option in options if option.name == "pidfile" and option.argument]


def _candidates(process: QemuProcess, stop: threading.Event) -> t.Iterator[str]:
    """Files that may have the number, by their names."""
    yield from (path for _service, path in openrc_pid_files())
    beside = [os.path.dirname(os.path.join(process.cwd, name)) for name in file_names(process.configuration.words)]
    own = list(dict.fromkeys(place for place in (process.cwd, *beside) if place.strip("/")))
    mounts = mount_points()
    user = f"{_RUN}/user/{process.uid}"
    budget = _MAX_NAMES
    waiting = [(place, 0) for place in own[:_MAX_DIRECTORIES]] + [(user, 1), (_RUN, _DEPTH)]
    while waiting and budget > 0 and not stop.is_set():
        place, depth = waiting.pop(0)
        with contextlib.suppress(OSError), os.scandir(place) as entries:
            for entry in entries:
                budget -= 1
                if budget <= 0:
                    break
                # What is mounted below may be a server that does not answer.
                if depth > 0 and entry.path not in mounts and entry.is_dir(follow_symlinks=False):
                    waiting.append((entry.path, depth - 1))
                elif _NAME.fullmatch(entry.name):
                    yield entry.path


def _look(path: str) -> tuple[os.stat_result, int | None]:
    """What the file is, and the number in it; None where it has none. Raises OSError."""
    descriptor = _open(path, os.O_RDONLY)
    try:
        return os.fstat(descriptor), _number_in(descriptor)
    finally:
        os.close(descriptor)


def _open(path: str, how: int) -> int:
    """Open a file that others may have made: no link is followed at its end, no FIFO waited for. Raises OSError."""
    return os.open(path, how | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)


def _number_in(descriptor: int) -> int | None:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        return None
    text = read_up_to(descriptor, _MAX_SIZE + 1)
    is_number = len(text) <= _MAX_SIZE and re.fullmatch(rb"[1-9][0-9]{0,6}", text.strip())
    return int(text) if is_number else None


def _why_not_ours(path: str, owner: int, vm_uid: int) -> str:
    """Why this user will not write to a file, as a clause; or the empty string."""
    if owner not in (0, os.geteuid(), vm_uid):
        return f"it belongs to {user_name(owner)}"
    try:
        return why_unsafe(path, {0, os.geteuid(), vm_uid})
    except OSError as exc:
        return exc.strerror or str(exc)


def _update(file: PidFile, old: int, process: QemuProcess) -> str:
    """Write the new number into one; why it was left alone, as a clause. Raises OSError.

    It stays the same file, with its owner, mode and label.
    """
    descriptor = _open(file.path, os.O_RDWR)
    try:
        reason = _why_not_ours(file.path, file.uid, process.uid)
        if reason:
            return reason
        facts = os.fstat(descriptor)
        number = _number_in(descriptor)
        if number == process.pid:
            return ""
        if number != old:
            return ""  # somebody has written another one meanwhile, and knows better
        if facts.st_uid != file.uid or facts.st_nlink != 1:
            return "it is not the file that it was"
        if _is_taken(old):
            return f"another process has the number {old} now"
        text = f"{process.pid}\n".encode()
        # At once, so that nobody reads half of it; what is over are ends of lines, until they are cut off.
        os.pwrite(descriptor, text.ljust(facts.st_size, b"\n"), 0)
        os.ftruncate(descriptor, len(text))
        return ""
    finally:
        os.close(descriptor)


def _is_taken(pid: int) -> bool:
    """Whether a process has this number: not one that has ended, which whoever started it has not noticed yet."""
    try:
        return not read_status(pid).get("State", "").startswith(("Z", "X"))
    except OSError:
        return False


# --- the record ---


def record_pid_files(recorded: PidFiles) -> dict[str, t.Any]:
    """As JSON has it."""
    return {"pid": recorded.pid, "files": [dataclasses.asdict(file) for file in recorded.files]}


def parse_pid_files(value: object) -> PidFiles:
    """What an image has of it, which may be older than this, or damaged: nothing then."""
    if not isinstance(value, dict):
        return PidFiles()
    pid, files = value.get("pid"), value.get("files")
    if not _is_number(pid, _MAX_PID) or not isinstance(files, list) or len(files) > MAX_FILES:
        return PidFiles()
    found = []
    for file in files:
        path, uid = (file.get("path"), file.get("uid")) if isinstance(file, dict) else (None, None)
        if isinstance(path, str) and path.startswith("/") and "\0" not in path and _is_number(uid, (1 << 32) - 2):
            found.append(PidFile(path, t.cast("int", uid)))
    return PidFiles(t.cast("int", pid), tuple(found))


def _is_number(value: object, highest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= highest
