# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The servers to whose UNIX sockets a QEMU connects when it starts: of disks, of network cards, of other devices.

QEMU ends at its start where nobody answers there, or goes on without (a network card of ``-netdev stream``). So they
are named at the save, where nothing but whoever has started them is known to start them again, and looked for at the
restore. That of a TPM is in :mod:`tpm`.
"""

from __future__ import annotations

import dataclasses
import os
import re
import socket
import typing as t
import urllib.parse

from ansible_collections.vmops.qemu.plugins.module_utils._proc import executable_of
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import command_line, systemd
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.configuration import Configuration, Setting
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import QemuProcess
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.unix_sockets import (
    is_listened_at,
    server_at,
    servers_behind,
)
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.verdict import Problem

_OFF = frozenset(("off", "no", "false", "n"))

#: Options whose argument may be a character device in the short form.
_SHORT_FORMS = frozenset(("serial", "parallel", "monitor", "qmp", "qmp-pretty", "debugcon", "virtioconsole"))

#: A server of disks in the name of one (``nbd+unix:///export?socket=PATH``, ``nbd:unix:PATH:exportname=…``).
_NBD_URL = re.compile(r"nbd\+unix://[^?]*\?(?:[^,\"']*&)?socket=([^&,\"']+)")
_NBD_NAME = re.compile(r"nbd:unix:([^:,\"']+)")

#: Seconds that a socket may take to refuse a connection.
_TIMEOUT = 2.0


@dataclasses.dataclass(frozen=True)
class Server:
    """Who serves at a socket that QEMU connects to at its start."""

    path: str
    #: What of the VM it serves, as messages name it.
    use: str
    #: The program that served there at the save; empty where that was not known.
    program: str = ""
    #: The systemd service in which it ran; empty for none.
    unit: str = ""


def find_servers(process: QemuProcess) -> list[Server]:
    """Those behind a running QEMU, but for those of its TPM; reads /proc, and never raises."""
    wanted = client_sockets(process.configuration, process.cwd)
    if not wanted:
        return []
    behind = servers_behind(process.pid)
    found = []
    for path, use in wanted.items():
        pid = server_at(path, behind)
        program = unit = ""
        if pid is not None:
            try:
                program = os.path.basename(executable_of(pid))
                unit = systemd.unit_of_process(pid) if systemd.is_running() else ""
            except OSError:
                pass
        found.append(Server(path, use, program, unit if unit.endswith(".service") else ""))
    return found


def server_problems(servers: t.Iterable[Server], by_unit: bool) -> list[Problem]:
    """What has to be started by somebody before the restore.

    :param by_unit: whether the VM's own unit starts QEMU, and what that needs.
    """
    return [
        Problem(
            "server_needed",
            f"{server.use} is served at {server.path} by {server.program or 'a program that is not known'}, which a"
            " restore does not start",
            "See that it serves there again before the restore, best as a systemd service that the host's boot starts",
            blocks=False,
        )
        for server in servers
        if not by_unit and (not server.unit or re.match(r"(?:run-|vmops-qemu-)", server.unit))
    ]


def unserved(servers: t.Iterable[Server]) -> list[Server]:
    """Those of the recorded servers that do not answer now."""
    return [server for server in servers if not _is_served(server.path)]


def _is_served(path: str) -> bool:
    if is_listened_at(path):
        return True
    # It may be in a container. One that answers loses a client that has said nothing; a refusal costs nobody anything.
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(_TIMEOUT)
            probe.connect(path)
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
        return False
    except OSError:
        pass  # this user may not connect to it, say: what is not known is left to QEMU
    return True


def unserved_text(servers: t.Sequence[Server]) -> tuple[str, str]:
    """What is missing, as a clause, and what to do about it, as a sentence without the final full stop."""
    what = "; ".join(
        f"nothing serves {server.use} at {server.path}"
        f"{f', where {server.program} did at the save' if server.program else ''}"
        for server in servers
    )
    units = ", ".join(dict.fromkeys(server.unit for server in servers if server.unit))
    return (
        what,
        f"Start {units or 'that'} (systemctl start), then restore again" if units else "Start it, then restore again",
    )


def client_sockets(configuration: Configuration, cwd: str) -> dict[str, str]:
    """The paths to which QEMU connects at its start, and what for; those to which it connects again are left out."""
    found: dict[str, str] = {}
    for setting in configuration.settings:
        for path in _paths_of(setting):
            if path and not path.startswith("\0"):
                found.setdefault(os.path.join(cwd, path), _use_of(setting, configuration))
    for path in tpm_sockets(configuration, cwd).values():
        found.pop(path, None)
    return found


def _paths_of(setting: Setting) -> list[str]:
    keys = setting.keys
    if setting.option == "chardev":
        return [keys["path"]] if _is_client(keys, "backend") else []
    if setting.option in _SHORT_FORMS and setting.argument.startswith("unix:"):
        keys = command_line.parse_option_string(setting.argument[len("unix:") :], "path")
        return [keys["path"]] if _is_client({"backend": "socket", **keys}, "backend") else []
    if setting.option in ("netdev", "nic"):
        client = keys.get("type") == "stream" and keys.get("server", "off") in _OFF and not _reconnects(keys)
        return [keys.get("addr.path", "")] if client and keys.get("addr.type") == "unix" else []
    if setting.option == "object":
        return [keys.get("path", "")] if keys.get("qom-type") == "pr-manager-helper" else []
    if setting.option == "blockdev":
        servers = [key for key in keys if key == "server.path" or key.endswith(".server.path")]
        found = [keys[key] for key in servers if keys.get(key[: -len("path")] + "type", "unix") == "unix"]
    else:
        found = []
    if setting.option in ("drive", "blockdev", "hda", "hdb", "hdc", "hdd", "cdrom"):
        text = setting.argument
        found += [urllib.parse.unquote(path) for path in _NBD_URL.findall(text)] + _NBD_NAME.findall(text)
    return found


def _is_client(keys: t.Mapping[str, str], kind: str) -> bool:
    is_socket = keys.get(kind) == "socket" and "path" in keys and keys.get("abstract") != "on"
    return is_socket and keys.get("server", "off") in _OFF and not _reconnects(keys)


def _reconnects(keys: t.Mapping[str, str]) -> bool:
    return any(keys.get(key, "0") != "0" for key in ("reconnect", "reconnect-ms"))


def _use_of(setting: Setting, configuration: Configuration) -> str:
    keys = setting.keys
    if setting.option in ("drive", "blockdev"):
        return f"its disk {keys.get('id') or keys.get('node-name') or ''}".rstrip()
    if setting.option in ("netdev", "nic"):
        return f"its network {keys.get('id', '')}".rstrip()
    if setting.option != "chardev":
        return f"its -{setting.option}"
    name = keys.get("id", "")
    for other in configuration.of("device", "netdev"):
        if other.keys.get("chardev") == name:
            label = other.keys.get("driver") or other.keys.get("type") or other.option
            return f"its {label} {other.keys.get('id', '')}".rstrip()
    return f"its character device {name}"


def tpm_sockets(configuration: Configuration, cwd: str) -> dict[str, str]:
    """The paths of the sockets behind emulated TPMs, by the names of their ``-tpmdev``."""
    chardevs = {setting.keys.get("id", ""): setting.keys for setting in configuration.of("chardev")}
    found = {}
    for setting in configuration.of("tpmdev"):
        keys = chardevs.get(setting.keys.get("chardev", ""), {})
        if setting.keys.get("type") == "emulator" and keys.get("path"):
            found[setting.keys.get("id", "")] = os.path.join(cwd, keys["path"])
    return found


def state_problems(configuration: Configuration) -> list[Problem]:
    """Servers that keep a part of the guest's state, which QEMU does not get from most of them."""
    return [
        Problem(
            "server_state",
            f"its {setting.keys.get('driver')} {setting.keys.get('id', '')}".rstrip()
            + " is a file system whose server (virtiofsd) keeps a part of the guest's state, which the save does not"
            " get",
            "Unmount it in the guest and unplug the device (device_del), and start the VM without it",
        )
        for setting in configuration.of("device")
        if setting.keys.get("driver", "").startswith("vhost-user-fs")
    ]
