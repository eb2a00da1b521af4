# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""systemd: what it says of its units, the files in which they are changed, and the way in which those quote.

Sources: systemd.unit(5), systemd.service(5), systemd.syntax(7), systemctl(1); systemd's src/shared/cgroup-util
(cg_path_get_unit), src/basic/unit-name.c (unit_name_escape), src/core/load-fragment.c (config_parse_exec).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import json
import os
import re
import signal
import subprocess
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._bounded_read import read_bounded
from ansible_collections.vmops.qemu.plugins.module_utils._durable import (
    flush_directory,
    make_directories,
    write_durably,
)
from ansible_collections.vmops.qemu.plugins.module_utils._errors import UnitError
from ansible_collections.vmops.qemu.plugins.module_utils._proc import read_proc
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.manager import (
    HOST,
    Manager,
    can_be_asked,
    is_unit,
    is_unit_name,
    plain_name,
    split_unit,
    user_of_service,
)

#: Seconds until systemctl and its kin must have answered. A reload of a thousand units takes one.
_TOOL_TIMEOUT = 60.0

#: Bytes that are read at most: of what a tool prints (a unit has some 2 KiB, and of the journal a VM's user may have
#: written lines of any length), of what it complains of, of a process's control groups, and of a drop-in.
_MAX_OUTPUT = 16 * 1024 * 1024
_MAX_COMPLAINT = 4096
_MAX_CGROUPS = 256 * 1024
_MAX_DROP_IN = 1024 * 1024

#: Those of services, of machines that are registered, and of sessions; and of a user's own services.
_USUAL_SLICE = re.compile(r"(?:system|machine|user|user-[0-9]+|app|session|background)\.slice")

#: The settings of a service with commands that run beside its main process, in the order in which they do.
HELPER_SETTINGS = ("ExecCondition", "ExecStartPre", "ExecStartPost", "ExecStop", "ExecStopPost")

#: The settings of a service that systemd brings about by seccomp filters.
_FILTER_SETTINGS = (
    *("SystemCallFilter", "SystemCallArchitectures", "SystemCallLog", "RestrictAddressFamilies", "RestrictNamespaces"),
    *("RestrictRealtime", "RestrictSUIDSGID", "LockPersonality", "MemoryDenyWriteExecute", "PrivateDevices"),
    *("ProtectKernelTunables", "ProtectKernelModules", "ProtectKernelLogs", "ProtectClock", "ProtectHostname"),
)

#: What is asked of a unit; no value of these has a newline, but the commands.
_PROPERTIES = (
    *("Id", "LoadState", "ActiveState", "Result", "Job", "MainPID", "ExecMainStatus", "Type"),
    *("FragmentPath", "UnitFileState", "DropInPaths", "Transient", "InvocationID"),
    *("ConditionResult", "ConditionTimestampMonotonic"),
    *("Restart", "WorkingDirectory", "RuntimeDirectory", "RuntimeDirectoryPreserve", "PrivateTmp"),
    *("PrivateNetwork", "NetworkNamespacePath", "OnSuccess", "Environment", "EnvironmentFiles"),
    *("User", "DynamicUser", "NoNewPrivileges"),
    *_FILTER_SETTINGS,
    *HELPER_SETTINGS,
)

#: A command as ``systemctl show`` prints it: its words are joined by blanks, and may have newlines.
_COMMAND = re.compile(
    r"^(Exec\w+)=\{ path=(.*?) ; argv\[\]=(.*?) ; (?:ignore_errors=(?:yes|no)|flags=[a-z -]*) ; start_time=[^\n]*\}$",
    re.DOTALL | re.MULTILINE,
)


@dataclasses.dataclass(frozen=True)
class HelperCommand:
    """A command that a service runs beside its main process, with its specifiers (``%i``) expanded."""

    #: The setting it stands in (``ExecStartPre``).
    setting: str
    program: str
    #: Its words, with its own name first, joined by blanks: which of them belong together is not known any more.
    text: str


@dataclasses.dataclass(frozen=True)
class Unit:
    """A unit, as systemd has it now. Names and words are systemd's own; a text that does not apply is empty."""

    #: By what it is known (:mod:`manager`).
    name: str
    #: ``loaded``, ``not-found``, ``masked``, ``bad-setting``, ``error``.
    load_state: str
    #: ``active``, ``inactive``, ``failed``, ``activating``, ``deactivating``, ``reloading``.
    active_state: str
    #: How a service ended: ``success``, ``exit-code``, ``signal``, ``exec-condition`` …
    result: str
    #: Whether it waits to be started or stopped.
    has_job: bool
    #: The service's main process, 0 where it has none.
    main_pid: int
    #: The exit status, or the signal, of the last main process.
    exit_status: int
    #: ``Type=`` of a service.
    service_type: str
    #: The file that configures it.
    fragment: str
    drop_ins: tuple[str, ...]
    #: Whether it was made at run time (``systemd-run``, sessions, machines), so that it is gone after its end.
    transient: bool
    #: Whether its conditions were met when it was started last.
    conditions_met: bool
    #: Which of its runs this is.
    invocation: str
    #: Whether they were looked at since the boot: each start does, unless what it requires has failed.
    conditions_checked: bool = False
    #: Whether a boot starts it: ``enabled``, ``disabled``, ``static``, ``masked`` …
    file_state: str = ""
    #: ``Restart=`` of a service: ``no``, ``always``, ``on-success``, ``on-failure`` …
    restart: str = ""
    #: Where its processes are started; empty where that is the root, or a user's home.
    working_directory: str = ""
    #: The directories that are removed when it ends (``RuntimeDirectory=``), as absolute paths.
    volatile_directories: tuple[str, ...] = ()
    #: Whether its ``/tmp`` and ``/var/tmp`` are its own, and removed when it ends.
    private_tmp: bool = False
    #: Whether it makes, or enters, a network namespace.
    private_network: bool = False
    #: The units that are started when it has ended well.
    on_success: tuple[str, ...] = ()
    #: The variables that it sets, and the files with more of them.
    environment: tuple[tuple[str, str], ...] = ()
    environment_files: tuple[str, ...] = ()
    #: The user of its processes (``User=``), a name or a number; empty for root, and for whose own systemd it is of.
    user: str = ""
    #: Whether its user is made for each of its runs.
    dynamic_user: bool = False
    #: Whether its processes may not gain privileges by programs that they run.
    no_new_privileges: bool = False
    #: Whether any of its settings gives its processes seccomp filters.
    has_filters: bool = False
    helpers: tuple[HelperCommand, ...] = ()


def is_running() -> bool:
    """Whether systemd runs this host (sd_booted(3))."""
    return os.path.isdir("/run/systemd/system")


def escape_unit_name(text: str) -> str:
    """Any text as part of a unit's name (systemd-escape(1)): the same text always gives the same part."""
    escaped = ""
    for position, byte in enumerate(os.fsencode(text)):
        char = chr(byte)
        if char == "/":
            escaped += "-"
        elif char.isascii() and (char.isalnum() or char in ":_" or (char == "." and position)):
            escaped += char
        else:
            escaped += f"\\x{byte:02x}"
    return escaped


# --- which unit a process is in ---------------------------------------------------------------------------------


def unit_of_process(pid: int) -> str:
    """The unit in whose control group a process is, or "" where there is none or it cannot be told."""
    return unit_of_cgroup(_read_cgroups(pid), _read_cgroups(1))


def _read_cgroups(pid: int) -> str:
    try:
        return read_proc(pid, "cgroup", _MAX_CGROUPS).decode("utf-8", "surrogateescape")
    except OSError:
        return ""


def unit_of_cgroup(text: str, root_text: str = "") -> str:
    """The unit that a process's ``/proc/PID/cgroup`` names.

    systemd's own hierarchy is the one named ``systemd`` of version 1, or the one of version 2. The unit is what comes
    first below the slices; a control group in it is its own business, but for a user's own systemd, whose units are
    there.

    :param root_text: the same file of process 1, which is systemd: its control group is the root, or, in a container,
        what stands for it.
    """
    for names in _names_in_cgroups(text, root_text):
        units = list(itertools.takewhile(is_unit_name, (name for name in names if not name.endswith(".slice"))))
        uid = user_of_service(units[0]) if units else None
        if uid is not None and len(units) > 1:
            return Manager(uid).named(units[1])
        if units:
            return units[0]
    return ""


def slice_of_process(pid: int) -> str:
    """The slice that somebody has chosen for a process; the empty string for those in which systemd puts all others.

    One of a user's own systemd is told with it, as its units are.
    """
    for names in _names_in_cgroups(_read_cgroups(pid), _read_cgroups(1)):
        slices = _leading_slices(names)
        service = "".join(names[len(slices) : len(slices) + 1])
        if user_of_service(service) is not None:
            slices = [f"{service}/{name}" for name in _leading_slices(names[len(slices) + 1 :])]
        if slices and is_unit(slices[-1]) and not _USUAL_SLICE.fullmatch(plain_name(slices[-1])):
            return slices[-1]
    return ""


def _leading_slices(names: t.Iterable[str]) -> list[str]:
    return list(itertools.takewhile(lambda name: name.endswith(".slice"), names))


def _names_in_cgroups(text: str, root_text: str) -> t.Iterator[list[str]]:
    """The names in the path of a process's control group, of each hierarchy that may be systemd's own."""
    paths, roots = _cgroup_paths(text), _cgroup_paths(root_text)
    for hierarchy in ("name=systemd", ""):
        path = paths.get(hierarchy, "")
        root = re.sub(r"/(init\.scope|system)$", "", roots.get(hierarchy, "")).rstrip("/")
        if root and (path == root or path.startswith(root + "/")):
            path = path[len(root) :]
        # An underscore stands before a name that the kernel would take for its own.
        yield [part[1:] if part.startswith("_") else part for part in path.split("/") if part not in ("", "_")]


def _cgroup_paths(text: str) -> dict[str, str]:
    """The path in each hierarchy, by the names of its controllers; the empty name is version 2."""
    rows = (line.split(":", 2) for line in text.splitlines())
    return {row[1]: row[2] for row in rows if len(row) == 3}


# --- asking -----------------------------------------------------------------------------------------------------


async def run_tool(*command: str, manager: Manager = HOST, timeout: float = _TOOL_TIMEOUT) -> str:
    """Run one of systemd's tools and return what it printed.

    :param manager: the systemd to which it talks.
    :param timeout: seconds that it may take.
    :raises UnitError: it is missing, failed, or took longer; or that systemd cannot be asked.
    """
    program = os.path.basename(command[0])
    command = (command[0], *manager.options, *command[1:])
    try:
        # A session of its own: a signal for the module's group must not end it halfway.
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=manager.environment(),
            start_new_session=True,
        )
    except OSError as exc:
        raise UnitError(f"{program} cannot be run: {exc.strerror}", cure="Install systemd's tools") from exc
    answer = asyncio.ensure_future(_read_answer(process))
    try:
        done, _pending = await asyncio.wait({answer}, timeout=timeout)
        if not done:
            raise UnitError(
                f"{' '.join(command[:5])} was not done within {timeout:g} seconds",
                cure=f"See what systemd waits for ({' '.join(('systemctl', *manager.options))} list-jobs)",
            )
        output, errors = answer.result()
        if len(output) > _MAX_OUTPUT:
            raise UnitError(f"{program} printed more than {_MAX_OUTPUT >> 20} MiB, which were not read")
    finally:
        answer.cancel()
        await asyncio.gather(answer, return_exceptions=True)
        if process.returncode is None:
            # With what it has started itself, which may hold its pipes.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            # asyncio sees its end only when its pipes are read to theirs.
            await asyncio.gather(*(_read_stream(pipe, 0, drain=True) for pipe in (process.stdout, process.stderr)))
            await process.wait()
    if process.returncode != 0:
        said = errors.decode(errors="replace").strip() or f"exit code {process.returncode}"
        raise UnitError(f"{program} failed: {said}")
    return output.decode(errors="surrogateescape")


async def _read_answer(process: asyncio.subprocess.Process) -> tuple[bytes, bytes]:
    """What a tool prints, of which more than _MAX_OUTPUT is read no further, and the beginning of its complaints."""
    complaints = asyncio.ensure_future(_read_stream(process.stderr, _MAX_COMPLAINT, drain=True))
    try:
        output = await _read_stream(process.stdout, _MAX_OUTPUT + 1, drain=False)
        if len(output) > _MAX_OUTPUT:
            return output, b""
        errors = await complaints
        await process.wait()
        return output, errors
    finally:
        complaints.cancel()
        await asyncio.gather(complaints, return_exceptions=True)


async def _read_stream(stream: asyncio.StreamReader | None, limit: int, drain: bool) -> bytes:
    """The stream's first bytes; with ``drain`` it is read to its end, so that its writer goes on."""
    pieces = []
    while stream and (limit > 0 or drain):
        piece = await stream.read(64 * 1024)
        if not piece:
            break
        pieces.append(piece[:limit])
        limit -= len(pieces[-1])
    return b"".join(pieces)


async def systemctl(*arguments: str, manager: Manager = HOST, timeout: float = _TOOL_TIMEOUT) -> str:
    """Run ``systemctl``; raises as :func:`run_tool`."""
    return await run_tool("systemctl", "--no-pager", "--no-ask-password", *arguments, manager=manager, timeout=timeout)


async def control(unit: str, *arguments: str, timeout: float = _TOOL_TIMEOUT) -> str:
    """Run ``systemctl`` for one unit, of whichever systemd it is; raises as :func:`run_tool`.

    :param arguments: what comes before the unit's name.
    """
    manager, name = split_unit(unit)
    return await systemctl(*arguments, "--", name, manager=manager, timeout=timeout)


async def read_units(*units: str) -> dict[str, Unit]:
    """What systemd says of these units, by the names that were asked for; of those that it may be asked.

    :raises UnitError: it cannot be asked.
    """
    by_manager: dict[Manager, dict[str, str]] = {}
    for unit in units:
        if can_be_asked(unit):
            manager, name = split_unit(unit)
            by_manager.setdefault(manager, {})[unit] = name
    found: dict[str, Unit] = {}
    for manager, names in by_manager.items():
        shown = await systemctl("show", f"--property={','.join(_PROPERTIES)}", "--", *names.values(), manager=manager)
        found.update(zip(names, parse_units(shown, manager)))
    return found


async def read_unit(unit: str) -> Unit:
    """What systemd says of a unit.

    :raises UnitError: it cannot be asked, or is that of another user, or that is no unit's name.
    """
    manager, name = split_unit(unit)
    if not manager.can_be_asked:
        raise UnitError(f"{name} is a unit of another user's own systemd ({manager.service}), which is not asked")
    return (await read_units(unit))[unit]


def parse_units(text: str, manager: Manager = HOST) -> list[Unit]:
    """The units in what ``systemctl show`` prints: ``KEY=VALUE`` lines, and an empty line between two units.

    :param manager: the systemd that was asked.
    :raises UnitError: that is not what it has printed.
    """
    commands: list[HelperCommand] = []

    def put_aside(match: re.Match[str]) -> str:
        commands.append(HelperCommand(match.group(1), match.group(2), match.group(3)))
        return f"Command={len(commands) - 1}"

    # Before the text is taken for lines, which a command may look like.
    text = _COMMAND.sub(put_aside, text)
    units = []
    for block in text.strip().split("\n\n"):
        keys = {key: value for key, equals, value in (line.partition("=") for line in block.splitlines()) if equals}
        if not keys.get("Id"):
            raise UnitError(f"systemctl show printed something that is not understood: {block[:80]!r}")
        units.append(
            Unit(
                name=manager.named(keys["Id"]),
                load_state=keys.get("LoadState", ""),
                active_state=keys.get("ActiveState", ""),
                result=keys.get("Result", ""),
                has_job=keys.get("Job", "") not in ("", "0"),
                main_pid=_number(keys.get("MainPID", "")),
                exit_status=_number(keys.get("ExecMainStatus", "")),
                service_type=keys.get("Type", ""),
                fragment=keys.get("FragmentPath", ""),
                drop_ins=_paths(keys.get("DropInPaths", "")),
                transient=keys.get("Transient") == "yes",
                conditions_met=keys.get("ConditionResult") != "no",
                invocation=keys.get("InvocationID", ""),
                conditions_checked=keys.get("ConditionTimestampMonotonic", "0") not in ("", "0"),
                file_state=keys.get("UnitFileState", ""),
                restart=keys.get("Restart", ""),
                working_directory=keys.get("WorkingDirectory", "").lstrip("!-").removeprefix("~"),
                volatile_directories=tuple(
                    f"{manager.run_directory}/{name}"
                    for name in _paths(keys.get("RuntimeDirectory", ""))
                    if keys.get("RuntimeDirectoryPreserve", "no") == "no"
                ),
                private_tmp=keys.get("PrivateTmp", "no") not in ("no", ""),
                private_network=keys.get("PrivateNetwork") == "yes" or bool(keys.get("NetworkNamespacePath")),
                on_success=_paths(keys.get("OnSuccess", "")),
                environment=_variables(keys.get("Environment", "")),
                environment_files=tuple(
                    re.findall(r"^EnvironmentFiles=(.*?)(?: \(ignore_errors=\w+\))?$", block, re.MULTILINE)
                ),
                user=keys.get("User", ""),
                dynamic_user=keys.get("DynamicUser") == "yes",
                no_new_privileges=keys.get("NoNewPrivileges") == "yes",
                has_filters=any(keys.get(name, "") not in ("", "no", "~") for name in _FILTER_SETTINGS),
                helpers=tuple(commands[int(number)] for number in re.findall(r"^Command=(\d+)$", block, re.MULTILINE)),
            )
        )
    return units


def _paths(text: str) -> tuple[str, ...]:
    """A list as systemctl prints it: what has a backslash, as an escaped name has, is quoted by newer versions."""
    words = re.findall(r'"((?:[^"\\]|\\.)*)"|(\S+)', text)
    return tuple(re.sub(r"\\(.)", r"\1", quoted) if quoted else plain for quoted, plain in words)


def _variables(text: str) -> tuple[tuple[str, str], ...]:
    """``Environment=`` as systemctl prints it."""
    pairs = (word.partition("=") for word in _paths(text))
    return tuple((name, value) for name, equals, value in pairs if equals)


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0


@dataclasses.dataclass(frozen=True)
class StartCommand:
    """What a service executes as its main process."""

    program: str
    #: The characters before it in ``ExecStart=`` that say as whom it runs.
    prefix: str
    #: Its words, with its own name first: specifiers (``%i``) are expanded in them, and variables are not yet; None
    #: where systemd cannot tell them.
    words: tuple[str, ...] | None = None
    #: Whether systemd expands variables in them when it starts them.
    expands: bool = True
    #: Whether a shell reads them.
    by_shell: bool = False
    #: The capabilities that its processes can have, one bit for each; None where systemd cannot tell them.
    bounding: int | None = None
    #: Those that a user other than root has in its processes.
    ambient: int = 0


_USER_FLAGS = {"privileged": "+", "no-setuid": "!", "ambient": "!!"}


async def read_start_command(unit: str) -> StartCommand:
    """The first command of a service's ``ExecStart=``; raises as :func:`read_unit`."""
    manager, name = split_unit(unit)
    path = f"/org/freedesktop/systemd1/unit/{_bus_label(name)}"
    interface = ("org.freedesktop.systemd1", path, "org.freedesktop.systemd1.Service")
    with contextlib.suppress(UnitError):  # no D-Bus, an older systemd, or words that are not UTF-8
        asked = ("ExecStartEx", "CapabilityBoundingSet", "AmbientCapabilities")
        words = ("busctl", "--json=short", "get-property", *interface, *asked)
        return parse_bus_start_command(await run_tool(*words, manager=manager))
    # Asked for alone, since the arguments may have newlines.
    for key in ("ExecStartEx", "ExecStart"):  # the former since systemd 243
        text = await control(unit, "show", f"--property={key}")
        if text.strip():
            break
    return parse_start_command(text)


def _bus_label(name: str) -> str:
    """A unit's name as a part of its object's path on D-Bus (sd-bus's bus_label_escape)."""
    return "".join(
        char if char.isascii() and (char.isalpha() or (char.isdigit() and position)) else f"_{ord(char):02x}"
        for position, char in enumerate(name)
    )


def parse_bus_start_command(text: str) -> StartCommand:
    """The first command of a unit, with its capabilities, in what ``busctl`` prints.

    Asked for are ``ExecStartEx``, ``CapabilityBoundingSet`` and ``AmbientCapabilities``.

    :raises UnitError: that is not what it has printed.
    """
    try:
        commands, bounding, ambient = (json.loads(line)["data"] for line in text.splitlines())
        if not commands:
            return StartCommand("", "")
        program, words, flags = commands[0][:3]
        return StartCommand(
            program=str(program),
            prefix=_user_prefix(flags),
            words=tuple(str(word) for word in words),
            expands="no-env-expand" not in flags,
            by_shell="via-shell" in flags,
            bounding=int(bounding),
            ambient=int(ambient),
        )
    except (ValueError, KeyError, TypeError, IndexError) as exc:
        raise UnitError(f"busctl printed something that is not understood: {text[:80]!r}") from exc


def _user_prefix(flags: t.Collection[str]) -> str:
    return "".join(sign for flag, sign in _USER_FLAGS.items() if flag in flags)


def parse_start_command(text: str) -> StartCommand:
    """The first command in what ``systemctl show`` prints of ``ExecStartEx`` or ``ExecStart``."""
    program = re.match(r"\s*\w+=\{ path=(.*?) ; argv\[\]=", text, re.DOTALL)
    # What follows the flags is systemd's own, so the last place is the right one, whatever the arguments say.
    flags = re.search(r".* ; flags=([a-z- ]*) ; start_time=", text, re.DOTALL)
    names = flags.group(1).split() if flags else []
    return StartCommand(program.group(1) if program else "", _user_prefix(names))


# --- writing ----------------------------------------------------------------------------------------------------


def escape_specifiers(text: str) -> str:
    """A text in which systemd shall see no specifier (``%i``)."""
    return text.replace("%", "%%")


def quote_word(word: str, variables: bool = False) -> str:
    """One word of a command in a unit file, so that it arrives as it is: any bytes but NUL.

    In double quotes with C escapes; a doubled percent sign and dollar sign stand for one.

    :param variables: leave dollar signs as they are, for systemd to expand the variables (systemd.service(5)).
    """
    quoted = ""
    for byte in word.encode("utf-8", "surrogateescape"):
        char = chr(byte)
        if char == "%" or (char == "$" and not variables):
            quoted += char * 2
        elif char in '"\\' or not 0x20 <= byte < 0x7F:
            quoted += f"\\x{byte:02x}"
        else:
            quoted += char
    return f'"{quoted}"'


def quote_words(words: t.Iterable[str], variables: bool = False) -> str:
    """Several, as :func:`quote_word`, joined by blanks."""
    return " ".join(quote_word(word, variables) for word in words)


def escape_environment(word: str) -> str:
    """A word of a command that is given to systemd over D-Bus, so that no variable in it is expanded."""
    return word.replace("$", "$$")


def lasting_drop_in(unit: str, name: str) -> str:
    """The file ``name`` with changes of a unit that last; raises UnitError where that is no unit's name."""
    manager, plain = split_unit(unit)
    return os.path.join(manager.persistent, f"{plain}.d", name)


def passing_drop_in(unit: str, name: str) -> str:
    """The file ``name`` with changes of a unit until the host's reboot at most; as :func:`lasting_drop_in`.

    It takes the place of a lasting one of its name.
    """
    manager, plain = split_unit(unit)
    return os.path.join(manager.runtime, f"{plain}.d", name)


def write_drop_in(path: str, text: str, mode: int = 0o644) -> None:
    """Write a file with changes of a unit, whole or not at all, and onto the storage; systemd sees it after a reload.

    :raises UnitError: it cannot be written.
    """
    directory = os.path.dirname(path)
    try:
        make_directories(directory, 0o755)
        write_durably(path, text.encode("utf-8", "surrogateescape"), mode)
        flush_directory(os.path.dirname(directory))  # in which an earlier run may have made it
    except OSError as exc:
        raise UnitError(
            f"{path} cannot be written: {exc.strerror}", cure="See whether its directory can be written to"
        ) from exc


def hide_drop_in(path: str) -> None:
    """Put an empty file in the place of one of the same name that comes after it; systemd sees it after a reload.

    :raises UnitError: it cannot be made.
    """
    try:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.symlink("/dev/null", path)
    except OSError as exc:
        raise UnitError(
            f"{path} cannot be made: {exc.strerror}", cure="See whether its directory can be written to"
        ) from exc


def remove_drop_in(path: str) -> bool:
    """Remove a file with changes of a unit, and its directory where that is empty then; whether it was there.

    :raises UnitError: it cannot be removed.
    """
    try:
        os.unlink(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as exc:
        raise UnitError(f"{path} cannot be removed: {exc.strerror}", cure="Remove it by hand") from exc
    directory = os.path.dirname(path)
    with contextlib.suppress(OSError):  # it is not empty
        os.rmdir(directory)
    with contextlib.suppress(OSError):  # where a crash brings it back, the next run removes it
        flush_directory(directory if os.path.isdir(directory) else os.path.dirname(directory))
    return True


def read_drop_in(path: str) -> str | None:
    """What is in a file with changes of a unit; None where there is no such file, or it cannot be read."""
    try:
        return read_bounded(path, _MAX_DROP_IN).decode("utf-8", "surrogateescape")
    except OSError:
        return None


async def reload(unit: str) -> None:
    """Have the systemd of a unit read its files anew; raises as :func:`run_tool`."""
    await systemctl("daemon-reload", manager=split_unit(unit)[0])
