# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a QEMU was configured to be: its command line, and the files that are part of it.

QEMU reads the files that ``-readconfig`` names and, before its command line, ``qemu.conf`` in its own directory for
configuration (util/qemu-config.c, system/vl.c). A section of such a file is an option of the command line:
``[device "d0"]`` with ``driver = "e1000"`` is ``-device id=d0,driver=e1000``. So a configuration is one list of words,
the files' options in the place of their names, and whatever reads a command line reads a configuration.

Both are what a process of perhaps another user says of itself: the files are read as that process finds them, if they
are regular files and small, for a short time, and no message repeats what is in one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import os
import re
import stat
import threading
import time
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._proc import open_again, proc_path, read_stat, threads_of
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.command_line import (
    daemonizes,
    option_pairs,
    options,
)
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.json_text import read_json

#: Bytes of a file that are read at most, and files of a command line that are looked at.
_MAX_BYTES = 1024 * 1024
_MAX_FILES = 64

#: Seconds that reading one may take: its file system may be another user's program, or a server that is away.
_READ_TIMEOUT = 2.0

#: As many symbolic links as the kernel follows in one path (path_resolution(7)).
_MAX_LINKS = 40

#: Seconds by which the times of processes (1/100 s) and those of files (the tick of the clock) may be apart.
_CLOCK_ERROR = 0.05

#: QEMU's own words for sections that the command line calls otherwise (``query-command-line-options`` lists them).
_OPTION_OF_GROUP = {"memory": "m", "smp-opts": "smp", "boot-opts": "boot", "acpi": "acpitable"}

#: The key of an argument's first part where that is only a value (``implied_opt_name`` and ``implied_key`` in QEMU).
_IMPLIED_KEYS = {
    "M": "type",
    "accel": "accel",
    "audio": "driver",
    "audiodev": "driver",
    "blockdev": "driver",
    "boot": "order",
    "chardev": "backend",
    "device": "driver",
    "display": "type",
    "fsdev": "fsdriver",
    "fw_cfg": "name",
    "icount": "shift",
    "m": "size",
    "machine": "type",
    "mon": "chardev",
    "name": "guest",
    "net": "type",
    "netdev": "type",
    "nic": "type",
    "numa": "type",
    "object": "qom-type",
    "rtc": "base",
    "sandbox": "enable",
    "smp": "cpus",
    "tpmdev": "type",
    "trace": "enable",
    "virtfs": "fsdriver",
    "vnc": "vnc",
}
_OTHER_LISTS = frozenset(("acpitable", "action", "add-fd", "drive", "global", "overcommit", "run-with", "spice"))

#: What QEMU takes for an id (util/id.c).
_ID = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")

#: C's white space, which is what separates words in such a file.
_SPACE = b" \t\n\v\f\r"
#: Characters of a name, and of a line, in QEMU's buffers for them.
_MAX_NAME = 63
_MAX_LINE = 1023

_DESCRIPTOR = re.compile(r"/+dev/+(?:fd|fdset)/|/+dev/+std(?:in|out|err)$|/+proc/")

#: Where even a look may do something, or waits for something, and where no configuration is.
_NO_FILE = re.compile(r"/(?:proc|sys|dev(?!/shm/))/")

#: Users for whom a file took too long: no further one of theirs is tried by this process, as each costs that time.
_SLOW_USERS: set[int] = set()


@dataclasses.dataclass(frozen=True)
class Setting:
    """One option of a configuration."""

    #: Its name on the command line, without dashes; ``hda`` for a disk image that is given without an option.
    option: str
    #: Its argument, the empty string where it has none.
    argument: str
    #: The file that it is from; the empty string for the command line.
    origin: str = ""

    @functools.cached_property
    def keys(self) -> dict[str, str]:
        """The argument's parts: ``key=value`` with the option's implied key, or JSON flattened to dotted keys.

        Empty for an option whose argument is no such list.
        """
        return dict(self.pairs)

    @functools.cached_property
    def pairs(self) -> list[tuple[str, str]]:
        """As ``keys``, with all values of a key that is there several times (``hostfwd=``)."""
        if self.argument.startswith("{"):
            with contextlib.suppress(ValueError, RecursionError):
                return list(_flattened(read_json(self.argument), ""))
        if self.option in _IMPLIED_KEYS:
            return option_pairs(self.argument, _IMPLIED_KEYS[self.option])
        return option_pairs(self.argument) if self.option in _OTHER_LISTS else []


@dataclasses.dataclass(frozen=True)
class Configuration:
    """What a QEMU was configured to be."""

    settings: tuple[Setting, ...]
    #: All of it as a command line; a file that could not be read is still named there.
    words: tuple[str, ...]
    #: Why this may not be all, or not be what QEMU read: clauses, each of which names its file.
    unknown: tuple[str, ...] = ()

    def of(self, *names: str) -> list[Setting]:
        """The settings of these options, in their order."""
        return [setting for setting in self.settings if setting.option in names]


def read_configuration(argv: t.Sequence[str], cwd: str = "/", pid: int | None = None, uid: int = 0) -> Configuration:
    """The configuration that a command line stands for.

    :param cwd: the directory in which relative names are looked up.
    :param pid: the process of which it is the command line: files are then those that this process finds, and have
        not changed since it started; None for one that is not running.
    :param uid: the user of that process.
    """
    given = options(argv)
    inside = {position for option in given for position in range(option.start, option.end)}
    places = {option.start: option for option in given}
    settings: list[Setting] = []
    unknown: list[str] = []
    words: list[str] = list(argv[:1])
    reader = _Reader(cwd, pid, uid, started_in_cwd=not daemonizes(argv))
    if not any(option.name in ("no-user-config", "nodefconfig") for option in given):
        found, problem = reader.read(_own_file(argv[0] if argv else ""), optional=True)
        settings.extend(found)
        unknown.extend(filter(None, [problem]))
        words.extend(_words_of(found))
    files = 0
    for position in range(1, len(argv)):
        option = places.get(position)
        if option and option.name == "readconfig" and option.argument is not None:
            files += 1
            name = option.argument
            too_many = f"it names more than {_MAX_FILES} files of its configuration"
            found, problem = reader.read(name) if files <= _MAX_FILES else ([], too_many)
            settings.extend(found)
            words.extend(_words_of(found) if found or not problem else argv[option.start : option.end])
            if problem and problem not in unknown:
                unknown.append(problem)
        elif option:
            settings.append(Setting(option.name, option.argument or ""))
            words.extend(argv[option.start : option.end])
        elif position not in inside:
            settings.append(Setting("hda", argv[position]))
            words.append(argv[position])
    return Configuration(tuple(settings), tuple(words), tuple(unknown))


def appending_settings(argv: t.Sequence[str], cwd: str) -> list[str]:
    """The words that have QEMU append to what files of its configuration have it truncate: a console's, and its log.

    They go behind a command line, whose own options are changed by ``command_line.start_command``.
    """
    words: list[str] = []
    for setting in read_configuration(argv, cwd).settings:
        keys = setting.keys
        name = keys.get("id", "")
        if setting.option != "chardev" or not setting.origin or not _ID.fullmatch(name):
            continue
        truncated = ("append" if keys.get("backend") == "file" else "", "logappend" if keys.get("logfile") else "")
        for switch in filter(None, truncated):
            word = f"chardev.{name}.{switch}=on"
            if keys.get(switch) not in ("on", "yes", "true", "y") and word not in (*argv, *words):
                words += ["-set", word]
    return words


def _own_file(program: str) -> str:
    """Where QEMU looks for the configuration of all VMs of its host."""
    return "/usr/local/etc/qemu/qemu.conf" if program.startswith("/usr/local/") else "/etc/qemu/qemu.conf"


def _words_of(settings: t.Iterable[Setting]) -> list[str]:
    return [word for setting in settings for word in (f"-{setting.option}", setting.argument)]


def _flattened(value: t.Any, prefix: str) -> t.Iterator[tuple[str, str]]:
    """The leaves of a JSON value with their dotted keys, as QEMU's own ``-blockdev`` has them."""
    if isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _flattened(inner, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, bool):
        yield prefix, "on" if value else "off"
    else:
        yield prefix, "" if value is None else str(value)


# --- the files ---


class _Reader:
    """Reads files as one process finds them."""

    def __init__(self, cwd: str, pid: int | None, uid: int, started_in_cwd: bool) -> None:
        self._root = proc_path(pid, "root") if pid is not None else "/"
        self._cwd = proc_path(pid, "cwd") if pid is not None else cwd
        self._pid = pid
        self._uid = uid
        #: A relative name means nothing any more in the directory into which QEMU went later.
        self._started_in_cwd = started_in_cwd or pid is None

    def read(self, name: str, optional: bool = False) -> tuple[list[Setting], str]:
        """The settings in a file, and why they may not be what QEMU read, as a clause, or the empty string.

        :param optional: it is none of the configuration where it is not there, or may not be looked for.
        """
        if _DESCRIPTOR.match(name):
            return [], f"its configuration file {name} is a descriptor that it inherited"
        if not name.startswith("/") and not self._started_in_cwd:
            return [], f"its configuration file {name} was in a directory that it has left (-daemonize)"
        try:
            content, changed = self._content(name)
            settings = parse_configuration_file(content, name)
        except (OSError, ValueError) as exc:
            missing = isinstance(exc, (FileNotFoundError, NotADirectoryError, PermissionError))
            reason = getattr(exc, "strerror", None) or exc
            return [], "" if optional and missing else f"its configuration file {name} could not be read: {reason}"
        started = _program_start(self._pid) if self._pid is not None else None
        if started is not None and changed > started + _CLOCK_ERROR:
            return settings, f"its configuration file {name} was changed after it had started"
        return settings, ""

    def _content(self, name: str) -> tuple[bytes, float]:
        """What is in a file, and when it was changed last (seconds since the epoch).

        :raises OSError: it cannot be read, is no regular file, too large, or too slow.
        """
        if self._uid in _SLOW_USERS:
            raise OSError(errno.ETIMEDOUT, "another file of its user took too long")
        found: list[tuple[bytes, float] | OSError] = []

        def work() -> None:
            try:
                found.append(_read_regular_file(self._root, self._cwd, name))
            except OSError as exc:
                found.append(exc)
            except ValueError as exc:
                found.append(OSError(errno.EINVAL, str(exc)))

        # Only what reads what may hang is left behind with it, and does not keep this process from its end.
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(_READ_TIMEOUT)
        if not found:
            _SLOW_USERS.add(self._uid)
            raise OSError(errno.ETIMEDOUT, "it took too long")
        if isinstance(found[0], OSError):
            raise found[0]
        return found[0]


def _program_start(pid: int) -> float | None:
    """When a process's program started, in seconds since the epoch; None for one that has ended.

    A program that takes the place of another one (a script that writes QEMU's configuration and then becomes QEMU)
    keeps the time of its process, but not its threads: QEMU starts one before it reads anything.
    """
    try:
        ticks = [read_stat(pid).start_ticks]
        threads = [read_stat(pid, thread).start_ticks for thread in threads_of(pid) if thread != pid]
        ticks = threads or ticks
    except OSError:
        return None
    since_boot = min(ticks) / os.sysconf("SC_CLK_TCK")
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + since_boot


def _read_regular_file(root: str, cwd: str, name: str) -> tuple[bytes, float]:
    """What is in a file, and when it was changed last, or its name given to it (seconds since the epoch).

    :raises OSError: it cannot be read, is no regular file, or too large.
    :raises ValueError: a NUL in the name.
    """
    found = _open_below(root, cwd, name)
    try:
        facts = os.fstat(found)
        if not stat.S_ISREG(facts.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        if facts.st_size > _MAX_BYTES:
            raise OSError(errno.EFBIG, f"it is larger than {_MAX_BYTES} bytes")
        # The very file that was looked at, whatever has its name now.
        descriptor = open_again(found, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    finally:
        os.close(found)
    content = b""
    try:
        while len(content) <= _MAX_BYTES:
            part = os.read(descriptor, _MAX_BYTES + 1 - len(content))
            if not part:
                return content, max(facts.st_mtime, facts.st_ctime)
            content += part
    finally:
        os.close(descriptor)
    raise OSError(errno.EFBIG, f"it is larger than {_MAX_BYTES} bytes")


def _open_below(root: str, cwd: str, name: str) -> int:
    """A descriptor (O_PATH) of what a process with that root and working directory finds by a name.

    The kernel would follow an absolute symbolic link from our own root, so each step is taken here.

    :raises OSError: there is no such file, or it may not be looked for.
    """
    flags = os.O_PATH | os.O_CLOEXEC
    top = os.open(root, flags | os.O_DIRECTORY)
    place = -1
    try:
        place = os.dup(top) if name.startswith("/") else os.open(cwd, flags | os.O_DIRECTORY)
        waiting = name.split("/")[::-1]
        links = 0
        while waiting:
            step = waiting.pop()
            if step in ("", ".") or (step == ".." and os.path.sameopenfile(place, top)):
                continue
            following = os.open(step, flags | os.O_NOFOLLOW, dir_fd=place)
            if not stat.S_ISLNK(os.fstat(following).st_mode):
                os.close(place)
                place = following
                continue
            try:
                target = os.readlink("", dir_fd=following)
            finally:
                os.close(following)
            links += 1
            if links > _MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name)
            if target.startswith("/"):
                os.close(place)
                place = os.dup(top)
            waiting.extend(target.split("/")[::-1])
        if _NO_FILE.match(os.readlink(proc_path("self", f"fd/{place}"))):
            raise OSError(errno.EINVAL, "it is not a file on a disk")
        found, place = place, -1
        return found
    finally:
        os.close(top)
        if place >= 0:
            os.close(place)


# --- what is in them ---


def parse_configuration_file(content: bytes, origin: str) -> list[Setting]:
    """The settings in a configuration file, read as QEMU (6.1 and later) reads it.

    :param origin: the file's name.
    :raises ValueError: QEMU would not take it; the text says where.
    """
    sections: list[tuple[str, dict[str, str]]] = []
    for number, line in _lines(content):
        if line[:1] in (b"\n", b"#"):
            continue
        group = _group(line) if line[:1] == b"[" else None
        if group:
            sections.append(group)
            continue
        key, value = _key_and_value(line)
        if not key or not sections:
            raise ValueError(f"line {number} is not understood as QEMU's configuration")
        sections[-1][1][os.fsdecode(key)] = os.fsdecode(value)
    return [
        Setting(
            _OPTION_OF_GROUP.get(name, name),
            ",".join(f"{key}={value.replace(',', ',,')}" for key, value in keys.items()),
            origin,
        )
        for name, keys in sections
    ]


def _lines(content: bytes) -> t.Iterator[tuple[int, bytes]]:
    """The lines as fgets() gives them to QEMU: with their ends, the long ones in pieces, and as C's strings."""
    for number, line in enumerate(re.findall(rb"[^\n]*\n|[^\n]+", content), 1):
        for start in range(0, len(line), _MAX_LINE):
            yield number, line[start : start + _MAX_LINE].partition(b"\0")[0]


def _group(line: bytes) -> tuple[str, dict[str, str]] | None:
    """The name of the section that a line begins, and its id as the first of its keys; None where it begins none."""
    name, rest = _token(line[1:])
    rest = rest.lstrip(_SPACE)
    identifier = rest[1:].partition(b'"')[0][:_MAX_NAME] if rest[:1] == b'"' else b""
    if name and identifier:
        return os.fsdecode(name), {"id": os.fsdecode(identifier)}
    name = line[1:].partition(b"]")[0][:_MAX_NAME]
    return (os.fsdecode(name), {}) if name else None


def _key_and_value(line: bytes) -> tuple[bytes, bytes]:
    """A key and its value. QEMU takes whatever does not look like a value for an empty one."""
    key, rest = _token(line)
    rest = rest.lstrip(_SPACE)
    quoted = rest[1:].lstrip(_SPACE) if rest[:1] == b"=" else b""
    return key, quoted[1:].partition(b'"')[0] if quoted[:1] == b'"' else b""


def _token(text: bytes) -> tuple[bytes, bytes]:
    """The first word, and what follows it."""
    text = text.lstrip(_SPACE)
    end = next((place for place, byte in enumerate(text[:_MAX_NAME]) if byte in _SPACE), min(len(text), _MAX_NAME))
    return text[:end], text[end:]
