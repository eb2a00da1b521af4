# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The directories in which a VM's QEMU makes its sockets, pid files and logs, where a reboot of the host takes them.

They are on a tmpfs (``/run/vm``, ``/dev/shm/vm``), and nobody makes them again but whoever did it by hand. So they are
recorded with owner and mode, and made again for a restore, as far as that is safe:

- only what is missing, and only by the record for which the save has vouched;
- in a directory of root's in which others can change no names: there the kernel makes it, and it gets its owner through
  a descriptor of the very directory that was made; else as the user to whom it shall belong, by that one's own rights;
- no symbolic link is followed on the way, and nothing that is there is changed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import stat
import subprocess
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._errors import LaunchError
from ansible_collections.vmops.qemu.plugins.module_utils._file_system import volatile_mount
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import command_line
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.file_names import file_names
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.launch import LAUNCH_ENVIRONMENT
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.manager import lingers
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import QemuProcess
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.rights import Rights, access_words
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.verdict import Problem
from ansible_collections.vmops.qemu.plugins.module_utils._user import user_name

#: Directories of a VM at most, and parts of one's path.
_MAX_DIRECTORIES = 64
_MAX_DEPTH = 32

#: Paths that a message names.
_MAX_SHOWN = 3

#: Seconds that making one as another user may take.
_TIMEOUT = 10.0

_USERS_OWN = re.compile(r"/run/user/(\d+)(?:/|$)")


@dataclasses.dataclass(frozen=True)
class Directory:
    """One that a reboot takes; those above it come before it."""

    path: str
    uid: int
    gid: int
    mode: int


def find_directories(process: QemuProcess, more: t.Iterable[str] = ()) -> list[Directory]:
    """Those of a running QEMU, each after those above it; never raises.

    :param more: the paths of other directories that are needed, such as a TPM's.
    """
    names = [*file_names(process.configuration.words), *_display_sockets(process.configuration.words)]
    places = [os.path.dirname(os.path.join(process.cwd, name)) for name in names if not _is_url(name)]
    found: dict[str, Directory] = {}
    for place in dict.fromkeys([*places, *more]):
        mount = volatile_mount(place)
        path = os.path.realpath(place)
        if not mount or path == mount or len(found) > _MAX_DIRECTORIES:
            continue
        parts = path[len(mount.rstrip("/")) + 1 :].split("/")[:_MAX_DEPTH]
        for number in range(len(parts)):
            step = os.path.join(mount, *parts[: number + 1])
            with contextlib.suppress(OSError):
                facts = os.lstat(step)
                if stat.S_ISDIR(facts.st_mode) and "\0" not in step:
                    mode = stat.S_IMODE(facts.st_mode)
                    found.setdefault(step, Directory(step, facts.st_uid, facts.st_gid, mode))
    return [found[path] for path in sorted(found)]


def _is_url(name: str) -> bool:
    return re.match(r"[\w+.-]+:", name) is not None or "\0" in name


def _display_sockets(words: t.Sequence[str]) -> list[str]:
    """Of servers of displays, which have spellings of their own."""
    found = []
    for option in command_line.options(words):
        argument = option.argument or ""
        keys = command_line.parse_option_string(argument, "implied")
        if option.name == "vnc" and argument.startswith("unix:"):
            found.append(keys["implied"][len("unix:") :])
        elif option.name == "spice" and keys.get("unix") == "on":
            found.append(keys.get("addr", ""))
        elif option.name in ("netdev", "nic"):
            found += [keys.get(key, "") for key in ("addr.path", "local.path")]
    return [name for name in found if name]


def directory_problems(directories: t.Iterable[Directory], by_unit: bool) -> list[Problem]:
    """Those of the directories that a restore could not make again after a reboot of the host."""
    if by_unit:
        return []  # RuntimeDirectory= and the like
    problems = []
    for directory in directories:
        match = _USERS_OWN.match(directory.path)
        if match and not lingers(int(match.group(1))):
            problems.append(
                Problem(
                    "session_directory",
                    f"{directory.path}, which its QEMU uses, goes when {user_name(int(match.group(1)))} logs out, and"
                    " is there only while that user is logged in",
                    f"Let that user's session last (loginctl enable-linger {user_name(int(match.group(1)))}), or put"
                    " its sockets elsewhere",
                    blocks=False,
                )
            )
            break
    return problems


def volatile_problems(paths: t.Iterable[str]) -> list[Problem]:
    """Files that a reboot of the host takes, which nobody makes again."""
    lost = [path for path in dict.fromkeys(paths) if os.path.isabs(path) and volatile_mount(path)]
    if not lost:
        return []
    more = f" and {len(lost) - _MAX_SHOWN} more" if len(lost) > _MAX_SHOWN else ""
    return [
        Problem(
            "on_tmpfs",
            f"a reboot of the host empties the file systems (tmpfs) of {', '.join(lost[:_MAX_SHOWN])}{more}",
            "Put that on a disk, if the host shall be rebooted before the restore",
            blocks=False,
        )
    ]


# --- made again -------------------------------------------------------------------------------------------------


def missing_directories(recorded: t.Iterable[Directory]) -> list[Directory]:
    """Those that are not there."""
    return [directory for directory in recorded if not os.path.lexists(directory.path)]


def why_taken(recorded: t.Iterable[Directory], trusted: t.Collection[int]) -> str:
    """Why a directory that is there must not be used, as a clause: somebody has put his own in its place; or nothing.

    :param trusted: users to whom it may belong beside the recorded one.
    """
    for directory in recorded:
        with contextlib.suppress(OSError):
            facts = os.lstat(directory.path)
            if not stat.S_ISDIR(facts.st_mode):
                return f"{directory.path} was a directory when the VM was saved, and is none now"
            if facts.st_uid not in (directory.uid, *trusted):
                return (
                    f"{directory.path} was {user_name(directory.uid)}'s when the VM was saved, and is"
                    f" {user_name(facts.st_uid)}'s now"
                )
    return ""


def make_directories(recorded: t.Iterable[Directory]) -> list[str]:
    """Make those that are missing, those above first; the paths that were made.

    :raises LaunchError: one cannot be made, or not safely.
    """
    made = []
    for directory in missing_directories(recorded):
        try:
            if _make(directory):
                made.append(directory.path)
        except (OSError, subprocess.SubprocessError) as exc:
            reason = getattr(exc, "strerror", None) or getattr(exc, "stderr", None) or exc
            raise _refusal(directory, str(reason).strip()) from exc
    return made


def _refusal(directory: Directory, reason: str) -> LaunchError:
    return LaunchError(
        f"{directory.path}, in which QEMU makes its sockets or files, is not there any more, and cannot be made again:"
        f" {reason}",
        cure=f"Make it (mkdir, owner {user_name(directory.uid)}, mode {directory.mode:04o}), best at each boot"
        " (tmpfiles.d), then restore again",
    )


def _make(directory: Directory) -> bool:
    """Whether it was made: somebody else may have been faster. Raises OSError and SubprocessError."""
    name = os.path.basename(directory.path)
    parent = _open_directory(os.path.dirname(directory.path))
    try:
        facts = os.fstat(parent)
        writable = facts.st_mode & 0o022 and not facts.st_mode & stat.S_ISVTX
        if facts.st_uid != os.geteuid() or writable:
            return _make_as(directory, facts)
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            return False
        # Nobody else can have put another one there: names in this directory are ours alone to change.
        new = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            if os.geteuid() == 0:
                os.fchown(new, directory.uid, directory.gid)
            os.fchmod(new, directory.mode)
        finally:
            os.close(new)
        return True
    finally:
        os.close(parent)


def _make_as(directory: Directory, parent: os.stat_result) -> bool:
    """By its owner, in a directory of his own, where he could do it himself."""
    if os.geteuid() != 0 or parent.st_uid != directory.uid or directory.uid == 0:
        raise _refusal(
            directory, f"the directory above it is {user_name(parent.st_uid)}'s, who may change it meanwhile"
        )
    words = access_words(Rights(directory.uid, directory.gid))
    subprocess.run(
        [*words, "/bin/mkdir", f"--mode={directory.mode:04o}", "--", directory.path],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd="/",
        env=LAUNCH_ENVIRONMENT,
        timeout=_TIMEOUT,
        check=True,
    )
    return True


def _open_directory(path: str) -> int:
    """A descriptor of a directory to which no symbolic link leads."""
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    place = os.open("/", flags)
    try:
        for step in filter(None, path.split("/")):
            following = os.open(step, flags, dir_fd=place)
            os.close(place)
            place = following
        found, place = place, -1
        return found
    finally:
        if place >= 0:
            os.close(place)
