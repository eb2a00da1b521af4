# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""QEMU command lines: what one says about its VM, how it is used again for a restore, and how it is shown.

Source: QEMU's qemu-options.hx and util/qemu-option.c. Options begin with one or two dashes; most take one argument,
which may itself begin with a dash; option strings are ``key=value`` lists in which a doubled comma stands for one.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._errors import LaunchError
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.json_text import read_json

#: The options without an argument (no HAS_ARG in qemu-options.hx, QEMU 2 to 11.1). All others take one. A test asks
#: the installed QEMU.
_OPTIONS_WITHOUT_ARGUMENT = frozenset(
    (
        *("S", "alt-grab", "async-teardown", "audio-help", "ctrl-grab", "curses", "daemonize", "enable-fips"),
        *("enable-hax", "enable-kvm", "enable-sync-profile", "full-screen", "h", "help", "jitdump", "localtime"),
        *("mem-prealloc", "no-acpi", "no-fd-bootchk", "no-frame", "no-hpet", "no-kvm", "no-kvm-irqchip"),
        *("no-kvm-pit", "no-kvm-pit-reinjection", "no-quit", "no-reboot", "no-shutdown", "no-user-config"),
        *("nodefaults", "nodefconfig", "nographic", "old-param", "only-migratable", "perfmap", "portrait"),
        *("preconfig", "rtc-td-hack", "s", "sdl", "semihosting", "show-cursor", "singlestep", "snapshot", "usb"),
        *("version", "win2k-hack", "xen-attach", "xen-domid-restrict"),
    )
)

#: Options that a restore replaces: how the guest starts is the restore's business, and a daemonized QEMU could no
#: longer say on stderr why a load failed.
_START_OPTIONS = frozenset(("incoming", "loadvm", "S", "daemonize"))

#: How an argument names a descriptor, in ``key=value`` lists and in JSON.
_INHERITED_DESCRIPTOR = re.compile(
    r"(?:^|[,:])(?:fd|fds|vhostfd|vhostfds|sockfd|sock_fd)="
    r"|\btype=fd\b"
    r'|"(?:fd|fds|vhostfd|vhostfds|sockfd|sock_fd)"\s*:'
    r'|"type"\s*:\s*"fd"'
    r"|/dev/fdset/|/(?:dev|proc/self)/fd/|(?:^|[=,])fd:\d"
)

#: Options whose argument is the guest's affair, whatever it looks like, or is replaced by a restore.
_OPTIONS_WITH_ANY_ARGUMENT = frozenset(("append", "incoming", "loadvm", "name"))

#: Options that take a character device in the short form (``file:PATH``, ``unix:PATH,…``), and the id that QEMU gives
#: it, with the place among the options of its kind (vl.c: serial_parse, parallel_parse, monitor_parse).
_SHORT_FORMS = {
    "serial": "serial{}",
    "parallel": "parallel{}",
    "debugcon": "debugcon",  # the device that the option makes asks for this id
    "monitor": "compat_monitor{}",
    "qmp": "compat_monitor{}",
    "qmp-pretty": "compat_monitor{}",
}

#: The short forms after which QEMU reads ``key=value`` options.
_SHORT_FORMS_WITH_KEYS = ("unix:", "tcp:", "telnet:", "tn3270:", "websocket:")

_ON = frozenset(("on", "yes", "true", "y"))
_OFF = frozenset(("off", "no", "false", "n"))

#: What QEMU's machine types are named with; anything else in an image's would be read as further options.
_MACHINE_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")

#: Bytes of memory and numbers of CPUs that a VM can have: more than any host (2^52 bytes are what x86 can address).
MAX_MEMORY = 1 << 56
MAX_CPUS = 1 << 20
_CPUS = re.compile("[0-9]{1,7}")

_KEY = re.compile("[^=,]*")
_VALUE = re.compile("(?:[^,]|,,)*")


@dataclasses.dataclass(frozen=True)
class CommandOption:
    """One option of a command line: its name without dashes, its argument, and its place in the argv."""

    name: str
    argument: str | None
    start: int
    end: int


def options(argv: t.Sequence[str]) -> list[CommandOption]:
    """The options of a QEMU command line; words that belong to none (disk images, a wrapper's name) are left out."""
    found = []
    position = 1
    while position < len(argv):
        word = argv[position]
        start = position
        position += 1
        if not word.startswith("-") or word == "-":
            continue
        name = word[2:] if word.startswith("--") else word[1:]
        argument = None
        if name not in _OPTIONS_WITHOUT_ARGUMENT and position < len(argv):
            argument = argv[position]
            position += 1
        found.append(CommandOption(name, argument, start, position))
    return found


def parse_option_string(text: str, implied: str = "") -> dict[str, str]:
    """A ``key=value,…`` string as a dict, as QEMU reads it: a later value replaces an earlier one.

    :param implied: the key of the first part where that part is only a value.
    """
    return dict(option_pairs(text, implied))


def option_pairs(text: str, implied: str = "") -> list[tuple[str, str]]:
    """The keys and values of a ``key=value,…`` string; ``flag`` means ``flag=on``, and ``noflag`` means ``flag=off``.

    :param implied: the key of the first part where that part is only a value.
    """
    pairs: list[tuple[str, str]] = []
    position = 0
    while position < len(text):
        key, end = _match(_KEY, text, position)
        if text[end : end + 1] == "=":
            value, end = _match(_VALUE, text, end + 1)
            pairs.append((key, value.replace(",,", ",")))
        elif position == 0 and implied:
            value, end = _match(_VALUE, text, 0)
            pairs.append((implied, value.replace(",,", ",")))
        elif key.startswith("no"):
            pairs.append((key[2:], "off"))
        elif key:
            pairs.append((key, "on"))
        position = end + 1  # past the comma
    return pairs


def _match(pattern: re.Pattern[str], text: str, position: int) -> tuple[str, int]:
    """What matches from there, which may be nothing, and where it ends."""
    found = pattern.match(text, position)
    matched = found.group() if found else ""
    return matched, position + len(matched)


def guest_name(argv: t.Sequence[str]) -> str:
    """The VM's name (``-name``), or the empty string."""
    name = ""
    for option in options(argv):
        if option.name == "name" and option.argument is not None:
            name = parse_option_string(option.argument, "guest").get("guest", name)
    return name


def qmp_addresses(argv: t.Sequence[str], cwd: str) -> list[str]:
    """The addresses of the QMP servers that a command line opens: UNIX socket paths (absolute) and ``host:port``.

    ``-qmp``, ``-qmp-pretty``, and with their ``-chardev socket`` ``-mon`` in control mode and, from QEMU 11.1 on,
    ``-object monitor-qmp``. An address that begins with a NUL is one of the abstract namespace.
    """
    return _monitors(argv, cwd, ("qmp", "qmp-pretty"), ("control",), "monitor-qmp")


def human_addresses(argv: t.Sequence[str], cwd: str) -> list[str]:
    """As :func:`qmp_addresses`, of the human monitors that are at a socket of their own.

    ``-monitor``, and with their ``-chardev socket`` ``-mon`` and ``-object monitor-hmp``.
    """
    return _monitors(argv, cwd, ("monitor",), ("readline", None), "monitor-hmp")


def _monitors(
    argv: t.Sequence[str], cwd: str, names: t.Collection[str], modes: t.Collection[str | None], qom_type: str
) -> list[str]:
    """:param names: of the short options. :param modes: of ``-mon``. :param qom_type: of ``-object``."""
    # A human monitor's client takes Telnet for what it is.
    ports = ("tcp", "telnet") if qom_type == "monitor-hmp" else ("tcp",)
    # What is written to a multiplexed one may be for the guest.
    chardevs = chardev_addresses(argv, cwd, muxed=False)
    found: list[str | None] = []
    for option in options(argv):
        if not option.argument:
            continue
        if option.name in names:
            found.append(_short_address(option.argument, chardevs, cwd, ports))
        elif option.name == "mon":
            keys = parse_option_string(option.argument, "chardev")
            if keys.get("mode") in modes:
                found.append(chardevs.get(keys.get("chardev", "")))
        elif option.name == "object":
            keys = _object_words(option.argument)
            if keys.get("qom-type") == qom_type and keys.get("readline") not in _OFF:
                found.append(chardevs.get(keys.get("chardev", "")))
    # Only the UNIX sockets pass descriptors, which saves and restores need.
    return sorted((address for address in found if address), key=lambda address: address[0] not in "/\0")


def chardev_addresses(argv: t.Sequence[str], cwd: str, muxed: bool = True) -> dict[str, str | None]:
    """By id, where each ``-chardev socket`` listens, as :func:`qmp_addresses` has it; None where it does not.

    :param muxed: with those that are shared by several.
    """
    found = {}
    for option in options(argv):
        if option.name == "chardev" and option.argument:
            keys = parse_option_string(option.argument, "backend")
            if keys.get("backend") == "socket" and (muxed or keys.get("mux", "off") in _OFF):
                found[keys.get("id", "")] = _socket_address(keys, cwd)
    return found


#: The name of the port at which a guest agent listens, wherever it was configured.
_AGENT_PORT = "org.qemu.guest_agent.0"


def agent_chardev(argv: t.Sequence[str]) -> str:
    """The id of the character device to which the guest agent's port is connected; empty where there is no port."""
    for option in options(argv):
        if option.name == "device" and option.argument:
            keys = _object_keys(option.argument, "driver")
            if keys.get("driver") == "virtserialport" and keys.get("name") == _AGENT_PORT:
                return keys.get("chardev", "")
    return ""


def own_clock(argv: t.Sequence[str]) -> str:
    """Why the guest's clock is meant to be another one than the host's (``-rtc``), as a clause, or the empty string."""
    keys: dict[str, str] = {}
    for option in options(argv):
        if option.name == "rtc" and option.argument:
            keys.update(parse_option_string(option.argument))
    if keys.get("base", "utc") not in ("utc", "localtime"):
        return "its clock began at a time of its own (-rtc base=)"
    if keys.get("clock", "host") != "host":
        return f"its clock is not the host's (-rtc clock={keys['clock'][:20]})"
    return ""


def _object_keys(argument: str, implied: str = "qom-type") -> dict[str, str]:
    """What ``-object`` says of its object: a ``key=value`` list, or JSON, of which the values that are text."""
    if not argument.startswith("{"):
        return parse_option_string(argument, implied)
    try:
        found = read_json(argument)
    except (ValueError, RecursionError):
        return {}
    return {key: value for key, value in found.items() if isinstance(value, str)}


def _short_address(
    argument: str, chardevs: t.Mapping[str, str | None], cwd: str, ports: t.Collection[str]
) -> str | None:
    """The address of the short form that ``-qmp`` takes: ``unix:PATH,…``, ``tcp:HOST:PORT,…``, ``chardev:ID``.

    :param ports: the words for one with a port.
    """
    kind, _colon, rest = argument.partition(":")
    if kind == "unix":
        return _socket_address(parse_option_string(rest, "path"), cwd)
    if kind in ports:
        place, _comma, flags = rest.partition(",")
        host, _colon, port = place.partition(":")
        return _socket_address({**parse_option_string(flags), "host": host, "port": port}, cwd)
    if kind == "chardev":
        return chardevs.get(rest)
    return None


def _socket_address(keys: t.Mapping[str, str], cwd: str) -> str | None:
    """Where a ``socket`` character device listens, or None: it connects to others, or was handed its descriptor."""
    if keys.get("server", "off") in _OFF:
        return None
    if "path" in keys:
        if keys.get("abstract") == "on":
            return "\0" + keys["path"]
        return os.path.join(cwd, keys["path"])
    if keys.get("port"):
        host = keys.get("host") or "localhost"
        return f"[{host}]:{keys['port']}" if ":" in host else f"{host}:{keys['port']}"
    return None


def replay_obstacles(argv: t.Sequence[str], starter_gives_descriptors: bool = False) -> t.Iterator[tuple[str, str]]:
    """Why a command line cannot start the VM again: a word for each reason, and the reason as a clause.

    Descriptors that QEMU inherited from whoever started it (``fd=3``, ``-add-fd``) are gone with that process, and what
    was written to a ``snapshot`` disk goes with QEMU.

    :param starter_gives_descriptors: whether QEMU is started by what gave it its descriptors, and gives them again.
    """
    for option in options(argv):
        if option.name in _OPTIONS_WITH_ANY_ARGUMENT:
            continue
        inherits = option.name == "add-fd" or _INHERITED_DESCRIPTOR.search(option.argument or "")
        if inherits and not starter_gives_descriptors:
            yield (
                "inherited_descriptor",
                f"-{option.name} uses a descriptor inherited from the process that started the VM",
            )
        if _is_snapshot(option):
            yield (
                "temporary_disks",
                f"-{option.name} keeps what the guest wrote to its disks in a temporary file, which goes with QEMU",
            )
        if option.name == "preconfig":
            yield (
                "preconfig",
                "-preconfig leaves a part of the VM's configuration to QMP commands, which are not known any more",
            )


def why_not_replayable(argv: t.Sequence[str]) -> str:
    """The first of :func:`replay_obstacles`, or the empty string."""
    return next((reason for _kind, reason in replay_obstacles(argv)), "")


def _is_snapshot(option: CommandOption) -> bool:
    """Whether an option makes disks whose changes go with QEMU (``-snapshot``, ``-drive …,snapshot=on``)."""
    if option.name == "drive":
        switch = parse_option_string(option.argument or "", "file").get("snapshot", "off")
        return switch in ("on", "yes", "true", "y")
    return option.name == "snapshot"


def machine_type(argv: t.Sequence[str]) -> str:
    """The machine type that a command line asks for (``-machine``, ``-M``), or the empty string."""
    machine = ""
    for option in options(argv):
        if option.name in ("machine", "M") and option.argument is not None:
            machine = parse_option_string(option.argument, "type").get("type", machine)
    return machine


def vm_uuid(argv: t.Sequence[str]) -> str:
    """The VM's UUID (``-uuid``) in small letters; empty where it has none, for which zeros stand."""
    given = [option.argument or "" for option in options(argv) if option.name == "uuid"]
    return given[-1].lower() if given and given[-1].strip("0-") else ""


def memory_size(argv: t.Sequence[str]) -> int | None:
    """The VM's memory in bytes (``-m``, MiB without a unit), or None where the command line does not say."""
    size = None
    for option in options(argv):
        if option.name == "m":
            text = parse_option_string(option.argument or "", "size").get("size", "")
            match = re.fullmatch(r"([0-9]{1,19})([bkmgtpe]?)", text, re.IGNORECASE)
            size = int(match.group(1)) << 10 * "bkmgtpe".index(match.group(2).lower() or "m") if match else size
    return size if size is None or size < MAX_MEMORY else None


@dataclasses.dataclass(frozen=True)
class MemoryBackend:
    """Memory of a VM, and where it comes from."""

    #: Bytes.
    size: int
    #: The file or directory that it is mapped from; empty for none.
    path: str = ""
    shared: bool = False
    #: Whether all of it is allocated at QEMU's start, or locked.
    prealloc: bool = False
    #: Whether it is in huge pages, and the bytes of each; None for the usual size.
    hugetlb: bool = False
    page_size: int | None = None


def memory_backends(argv: t.Sequence[str], memory: int) -> list[MemoryBackend]:
    """The memory that a command line says more of than its size.

    :param memory: bytes of all of the VM's memory.
    """
    found = []
    prealloc = locked = False
    path = ""
    for option in options(argv):
        if option.name == "mem-prealloc":
            prealloc = True
        elif option.name == "mem-path":
            path = option.argument or ""
        elif option.name == "overcommit":
            locked = locked or parse_option_string(option.argument or "").get("mem-lock") in _ON
        elif option.name == "object" and option.argument:
            keys = _object_words(option.argument)
            kind = keys.get("qom-type", "")
            size = _size(keys.get("size", ""), "b")
            if kind.startswith("memory-backend-") and size:
                found.append(
                    MemoryBackend(
                        size,
                        keys.get("mem-path", ""),
                        keys.get("share") in _ON,
                        keys.get("prealloc") in _ON,
                        kind == "memory-backend-memfd" and keys.get("hugetlb") in _ON,
                        _size(keys.get("hugetlbsize", ""), "b"),
                    )
                )
    if path:
        found.append(MemoryBackend(memory, path, prealloc=prealloc))
    elif prealloc and not found:
        found.append(MemoryBackend(memory, prealloc=True))
    if locked:
        return [dataclasses.replace(each, prealloc=True) for each in found] or [MemoryBackend(memory, prealloc=True)]
    return found


def _object_words(argument: str) -> dict[str, str]:
    """As :func:`_object_keys`, with the values that are no text as in a ``key=value`` list."""
    if not argument.startswith("{"):
        return _object_keys(argument)
    try:
        found = read_json(argument)
    except (ValueError, RecursionError):
        return {}
    return {key: ("off", "on")[value] if isinstance(value, bool) else str(value) for key, value in found.items()}


def _size(text: str, unit: str) -> int | None:
    """Bytes of a size as QEMU writes it; None where it is none, or more than any host has.

    :param unit: of a number without one.
    """
    match = re.fullmatch(r"([0-9]{1,19})([bkmgtpe]?)", text, re.IGNORECASE)
    size = int(match.group(1)) << 10 * "bkmgtpe".index(match.group(2).lower() or unit) if match else None
    return size if size is None or size < MAX_MEMORY else None


def vcpu_count(argv: t.Sequence[str]) -> int:
    """The VM's CPUs at its start (``-smp``); one where the command line does not say."""
    count = 1
    for option in options(argv):
        if option.name == "smp":
            keys = parse_option_string(option.argument or "", "cpus")
            levels = ("drawers", "books", "sockets", "dies", "clusters", "modules", "cores", "threads")
            numbers = [keys["cpus"]] if "cpus" in keys else [keys.get(level, "1") for level in levels]
            count = math.prod(int(number) if _CPUS.fullmatch(number) else 1 for number in numbers)
    return min(count, MAX_CPUS)


def changes_user(argv: t.Sequence[str]) -> bool:
    """Whether QEMU, started as root, becomes another user by itself (``-runas``, ``-run-with user=``)."""
    return bool(target_user(argv))


def target_user(argv: t.Sequence[str]) -> str:
    """The user that QEMU, started as root, becomes by itself: a name or ``UID:GID``; empty where it stays root."""
    user = ""
    for option in options(argv):
        if option.name == "runas":
            user = option.argument or ""
        elif option.name == "run-with":
            user = parse_option_string(option.argument or "").get("user", user)
    return user


def without_change_of_user(argv: t.Sequence[str]) -> list[str]:
    """A command line without what makes QEMU another user, which only root may: it is started as that user instead."""
    return _without_run_with(argv, "user", ("runas",))


def _without_run_with(argv: t.Sequence[str], left_out: str, names: t.Collection[str] = ()) -> list[str]:
    """A command line without one key of ``-run-with``, and without the options of these names."""
    kept: list[str] = []
    position = 0
    for option in options(argv):
        kept += argv[position : option.start]
        position = option.end
        if option.name in names:
            continue
        pairs = option_pairs(option.argument or "") if option.name == "run-with" else []
        rest = [(key, value) for key, value in pairs if key != left_out]
        if len(rest) == len(pairs):
            kept += argv[option.start : option.end]
        elif rest:
            kept += [argv[option.start], ",".join(f"{key}={value.replace(',', ',,')}" for key, value in rest)]
    return [*kept, *argv[position:]]


def daemonizes(argv: t.Sequence[str]) -> bool:
    """Whether QEMU goes into the background when it is up (``-daemonize``)."""
    return any(option.name == "daemonize" for option in options(argv))


def start_options(argv: t.Sequence[str], daemonize: bool = False) -> list[CommandOption]:
    """The options that a restore takes out.

    :param daemonize: leave ``-daemonize`` where it is.
    """
    names = _START_OPTIONS - {"daemonize"} if daemonize else _START_OPTIONS
    return [option for option in options(argv) if option.name in names]


def start_command(argv: t.Sequence[str], daemonize: bool = False) -> list[str]:
    """The command line without what says in which state the guest starts: with it the VM starts from its disks.

    ``-incoming``, ``-S``, ``-loadvm`` and ``-daemonize`` are taken out, and ``exit-with-parent=`` of ``-run-with``: a
    QEMU that is started here would end with the task. Files that QEMU would begin anew with what a
    console or a monitor says (``-serial file:PATH``, ``logfile=``) are appended to.

    :param daemonize: leave ``-daemonize`` where it is.
    """
    argv = _without_run_with(argv, "exit-with-parent")
    taken_out = start_options(argv, daemonize)
    kept: list[str] = []
    position = 0
    appending = _appending_words(argv)
    for option in options(argv):
        kept += argv[position : option.start]
        if option not in taken_out:
            kept += appending.get(option.start, argv[option.start : option.end])
        position = option.end
    return [*kept, *argv[position:]]


def restore_command(argv: t.Sequence[str], machine: str = "", daemonize: bool = False) -> list[str]:
    """The command line that starts the same VM stopped and waiting for its saved state.

    It is :func:`start_command` with ``-S -incoming defer`` at its end.

    :param machine: the saved machine type, which is appended where the command line asks for another one: ``pc`` is
        a newer machine in a newer QEMU.
    :param daemonize: leave ``-daemonize`` where it is.
    :raises LaunchError: that is not the name of a machine type.
    """
    if machine and not _MACHINE_TYPE.fullmatch(machine):
        raise LaunchError(
            f"The saved machine type {machine!r} is not a machine type's name, so no QEMU is started with it",
            cure="The image is damaged or forged: restore an intact copy, or start the VM from its disks",
        )
    pinned = ["-machine", machine] if machine and machine_type(argv) != machine else []
    return [*start_command(argv, daemonize), *pinned, "-S", "-incoming", "defer"]


def _appending_words(argv: t.Sequence[str]) -> dict[int, list[str]]:
    """The words that take the place of options whose files QEMU would truncate, by the options' places."""
    parsed = options(argv)
    taken = {
        parse_option_string(option.argument or "", "backend").get("id", "")
        for option in parsed
        if option.name == "chardev"
    }
    places = dict.fromkeys(_SHORT_FORMS.values(), 0)
    found = {}
    for option in parsed:
        argument = option.argument
        if argument is None:
            continue
        dashed = argv[option.start]
        if option.name == "chardev":
            appending = _appending_chardev(argument)
            if appending != argument:
                found[option.start] = [dashed, appending]
        elif option.name in _SHORT_FORMS:
            form = _SHORT_FORMS[option.name]
            words = _appending_short_form(dashed, argument, _free_id(form.format(places[form]), taken))
            places[form] += 1
            if words:
                found[option.start] = words
    return found


def _free_id(name: str, taken: t.Collection[str]) -> str:
    """QEMU's own id, as it was before; another one only where somebody else has it."""
    number = 0
    free = name
    while free in taken:
        free = f"{name}-log{number}"
        number += 1
    return free


def _appending_chardev(argument: str) -> str:
    """The argument of ``-chardev``, so that its files are appended to; a later value replaces an earlier one."""
    keys = parse_option_string(argument, "backend")
    if keys.get("backend") == "file" and keys.get("path") and keys.get("append") not in _ON:
        argument += ",append=on"
    return _appending_log(argument, keys)


def _appending_log(argument: str, keys: t.Mapping[str, str]) -> str:
    return f"{argument},logappend=on" if keys.get("logfile") and keys.get("logappend") not in _ON else argument


def _appending_short_form(dashed: str, argument: str, name: str) -> list[str]:
    """The words for an option with a character device in the short form, or none where they stay as they are.

    :param dashed: the option.
    :param name: an id for the character device.
    """
    multiplexed = argument.startswith("mon:")  # a monitor shares it
    target = argument[len("mon:") :] if multiplexed else argument
    kind, _colon, rest = target.partition(":")
    if kind == "file" and rest:
        # All of the rest is the path, with its commas.
        device = f"file,id={name},path={rest.replace(',', ',,')},append=on"
        monitor = ["-mon", f"chardev={name},mode=readline"] if multiplexed else []
        return ["-chardev", f"{device},mux=on" if multiplexed else device, *monitor, dashed, f"chardev:{name}"]
    if target.startswith(_SHORT_FORMS_WITH_KEYS):
        appending = _appending_log(argument, parse_option_string(rest.partition(",")[2]))
        return [dashed, appending] if appending != argument else []
    return []


# --- secrets ---

#: Stands in results where a secret stood.
HIDDEN = "********"

_SECRET_KEYS = r"(?:data|password|passwd|proxy-password|cookie|string|osk)"
#: How names end with which kernels, init systems and guests are told secrets; "key-secret" names one, and is none.
_SECRET_NAMES = r"(?:password|passwd|passphrase|(?<!by)pass|token|credential|api[_-]?key|(?<!-)secret)"
#: What each of them has in it for sure, the pattern, and what is shown: to look for a word is a hundred times as fast.
_SECRETS = (
    # key=value lists, where a comma in a value is doubled; "password=on" is a switch, not a password
    ("=", re.compile(rf"((?:^|,)(?:[\w-]+\.)*{_SECRET_KEYS}=)(?!(?:on|off)(?:,|$))(?:[^,]|,,)*"), rf"\1{HIDDEN}"),
    # words of a kernel's command line, of a script, of a URL's query
    (
        "=",
        re.compile(
            rf"""((?:^|[\s,;:&?"'])[\w.-]*{_SECRET_NAMES}=)(?!(?:on|off|\*+)(?:[\s,]|$))(?:"[^"]*"|'[^']*'|[^\s,&]+)""",
            re.IGNORECASE,
        ),
        rf"\1{HIDDEN}",
    ),
    (
        "set_credential",
        re.compile(r"(\bset_credential(?:_binary)?=[^:\s]{1,255}:)\S+"),
        rf"\1{HIDDEN}",
    ),
    # JSON, also JSON in a string of JSON, whose quotes are escaped
    (
        '"',
        re.compile(rf'((?<!\\)"(?:[\w-]+\.)*{_SECRET_KEYS}"\s*:\s*)(?:"(?:[^"\\]|\\.)*"|[-+.0-9eE]+)', re.DOTALL),
        rf'\1"{HIDDEN}"',
    ),
    (
        '\\"',
        re.compile(rf'((?<!\\)\\+"(?:[\w-]+\.)*{_SECRET_KEYS}\\+"\s*:\s*\\+").*?(?=\\+")', re.DOTALL),
        rf"\1{HIDDEN}",
    ),
    # QEMU's JSON has strings in single quotes, too
    (
        "'",
        re.compile(rf"('(?:[\w-]+\.)*{_SECRET_KEYS}'\s*:\s*)(?:'(?:[^'\\]|\\.)*'|[-+.0-9eE]+)", re.DOTALL),
        rf"\1'{HIDDEN}'",
    ),
    ("://", re.compile(r"(://[^/@:\s,]*:)[^/@\s]*@"), rf"\1{HIDDEN}@"),
    ("iscsi://", re.compile(r"(iscsi://[^/@%\s,]*%)[^/@\s]*@"), rf"\1{HIDDEN}@"),
    (":key=", re.compile(r"(:key=)[^:,]*"), rf"\1{HIDDEN}"),
    (
        "io.systemd.credential",
        re.compile(r"(io\.systemd\.credential(?:\.binary)?:[^=,:]{1,255}=)(?:[^,]|,,)*"),
        rf"\1{HIDDEN}",
    ),
)


def redact_argument(argument: str) -> str:
    """One argument of a QEMU command line with the secrets in it hidden."""
    for needed, pattern, shown in _SECRETS:
        if needed in argument:
            argument = pattern.sub(shown, argument)
    return argument
