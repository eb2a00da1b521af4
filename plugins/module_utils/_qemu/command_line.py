# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""QEMU command lines: what one says about its VM, and how it is used again for a restore.

Source: QEMU's qemu-options.hx and util/qemu-option.c. Options begin with one or two dashes; most take one argument,
which may itself begin with a dash; option strings are C(key=value) lists in which a doubled comma stands for one.
"""

from __future__ import annotations

import dataclasses
import os
import re
import typing as t

#: The options without an argument (no HAS_ARG in qemu-options.hx, QEMU 2 to 11). All others take one.
_OPTIONS_WITHOUT_ARGUMENT = frozenset(
    (
        *("S", "alt-grab", "ctrl-grab", "curses", "daemonize", "dump-vmstate-help", "enable-fips", "enable-hax"),
        *("enable-kvm", "enable-sync-profile", "full-screen", "h", "help", "mem-prealloc", "no-acpi", "no-fd-bootchk"),
        *("no-frame", "no-hpet", "no-kvm", "no-kvm-irqchip", "no-kvm-pit", "no-kvm-pit-reinjection", "no-quit"),
        *("no-reboot", "no-shutdown", "no-user-config", "nodefaults", "nodefconfig", "nographic", "old-param"),
        *("one-insn-per-tb", "only-migratable", "portrait", "preconfig", "rtc-td-hack", "sdl", "semihosting"),
        *("singlestep", "snapshot", "usb", "version", "win2k-hack", "xen-attach", "xen-domid-restrict"),
    )
)

#: Options that a restore replaces: how the guest starts is the restore's business, and a daemonized QEMU could no
#: longer say on stderr why a load failed.
_START_OPTIONS = frozenset(("incoming", "loadvm", "S", "daemonize"))

_INHERITED_DESCRIPTOR = re.compile(
    r"(?:^|[,:])(?:fd|fds|vhostfd|vhostfds|sockfd)=|/dev/fdset/|/(?:dev|proc/self)/fd/|fd:\d"
)


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


def parse_option_string(text: str, implied: str) -> dict[str, str]:
    """A C(key=value,…) string as a dict; the first part may be the implied key's value; C(flag) means C(flag=on).

    A later value replaces an earlier one, as in QEMU.
    """
    parsed: dict[str, str] = {}
    # A comma that is doubled belongs to the value.
    parts = [part.replace("\0", ",") for part in text.replace(",,", "\0").split(",")]
    for index, part in enumerate(parts):
        key, equals, value = part.partition("=")
        if equals:
            parsed[key] = value
        elif index == 0:
            parsed[implied] = part
        elif part.startswith("no") and part in ("nowait", "nodelay"):
            parsed[part[2:]] = "off"
        elif part:
            parsed[part] = "on"
    return parsed


def guest_name(argv: t.Sequence[str]) -> str:
    """The VM's name (C(-name)), or the empty string."""
    name = ""
    for option in options(argv):
        if option.name == "name" and option.argument is not None:
            name = parse_option_string(option.argument, "guest").get("guest", name)
    return name


def qmp_addresses(argv: t.Sequence[str], cwd: str) -> list[str]:
    """The addresses of the QMP servers that a command line opens: UNIX socket paths (absolute) and C(host:port).

    C(-qmp), C(-qmp-pretty), and C(-mon)/C(-monitor) in control mode with their C(-chardev socket).
    """
    parsed = options(argv)
    chardevs = {}
    for option in parsed:
        if option.name == "chardev" and option.argument:
            keys = parse_option_string(option.argument, "backend")
            if keys.get("backend") == "socket":
                chardevs[keys.get("id", "")] = _socket_address(keys, cwd)
    found: list[str | None] = []
    for option in parsed:
        if not option.argument:
            continue
        if option.name in ("qmp", "qmp-pretty"):
            found.append(_short_address(option.argument, chardevs, cwd))
        elif option.name == "mon":
            keys = parse_option_string(option.argument, "chardev")
            if keys.get("mode") == "control":
                found.append(chardevs.get(keys.get("chardev", "")))
    return [address for address in found if address]


def _short_address(argument: str, chardevs: t.Mapping[str, str | None], cwd: str) -> str | None:
    """The address of the short form that C(-qmp) takes: C(unix:PATH,…), C(tcp:HOST:PORT,…), C(chardev:ID)."""
    kind, colon, rest = argument.partition(":")
    if not colon:
        return None
    if kind == "unix":
        return _socket_address(parse_option_string(rest, "path"), cwd)
    if kind == "tcp":
        return parse_option_string(rest, "address")["address"]
    if kind == "chardev":
        return chardevs.get(rest)
    return None


def _socket_address(keys: t.Mapping[str, str], cwd: str) -> str | None:
    if keys.get("server", "off") in ("off", "no", "false"):
        return None
    if "path" in keys:
        if keys.get("abstract") == "on":
            return "\0" + keys["path"]
        return os.path.join(cwd, keys["path"])
    if "port" in keys:
        return f"{keys.get('host', 'localhost')}:{keys['port']}"
    return None


def why_not_replayable(argv: t.Sequence[str]) -> str:
    """Why a command line cannot start the VM again, or the empty string.

    Descriptors that QEMU inherited from whoever started it (C(fd=3), C(-add-fd)) are gone with that process.
    """
    for option in options(argv):
        if option.name == "add-fd" or (
            option.name != "incoming" and option.argument and _INHERITED_DESCRIPTOR.search(option.argument)
        ):
            return f"-{option.name} uses a descriptor inherited from the process that started the VM"
    return ""


def machine_type(argv: t.Sequence[str]) -> str:
    """The machine type that a command line asks for (C(-machine), C(-M)), or the empty string."""
    machine = ""
    for option in options(argv):
        if option.name in ("machine", "M") and option.argument is not None:
            machine = parse_option_string(option.argument, "type").get("type", machine)
    return machine


def restore_command(argv: t.Sequence[str], machine: str = "") -> list[str]:
    """The command line that starts the same VM stopped and waiting for its saved state.

    C(-incoming), C(-S), C(-loadvm) and C(-daemonize) are taken out, C(-S -incoming defer) is appended.

    :param machine: the saved machine type, which is appended where the command line asks for another one: C(pc) is
        a newer machine in a newer QEMU.
    """
    dropped = {
        position
        for option in options(argv)
        if option.name in _START_OPTIONS
        for position in range(option.start, option.end)
    }
    kept = [word for position, word in enumerate(argv) if position not in dropped]
    pinned = ["-machine", machine] if machine and machine_type(argv) != machine else []
    return [*kept, *pinned, "-S", "-incoming", "defer"]
