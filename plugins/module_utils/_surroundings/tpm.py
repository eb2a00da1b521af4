# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The server of an emulated TPM (swtpm): found behind a running VM's socket, recorded, and started again for a restore.

swtpm ends with its QEMU, which tells it to. What the TPM holds, its permanent state, its registers and its sessions, is
in QEMU's stream (``backends/tpm/tpm_emulator.c``), and a new swtpm is given it when that is loaded. So it needs no more
than the words with which it was started, its directory, and a socket at the same path.

Its words are what the process says of itself. So it is started as the user that it was, with no more rights, and only a
swtpm that nobody else than root, the caller and that user could have written; the record is one for which the save has
vouched.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._proc import (
    executable_of,
    proc_path,
    read_command_line,
    read_status,
)
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import systemd
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.launch import Launch, why_not_trusted
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.manager import split_unit
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.monitor import Monitor
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import DEFAULT_UMASK, QemuProcess
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.rights import (
    Rights,
    parse_capabilities,
    parse_groups,
    rights_of,
)
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.servers import tpm_sockets
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.unix_sockets import server_at, servers_behind
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.verdict import Problem

_PROGRAM = "swtpm"

#: Bytes and words of its command line.
_MAX_COMMAND_LINE = 64 * 1024
_MAX_WORDS = 256

#: Descriptors that it inherited, in ``--ctrl``, ``--server`` and the like, and as an option of its own.
_INHERITED = re.compile(r"(?:^|,)(?:clientfd|fd|pwdfd|keyfd|migration-key-fd)=")

_STATE = re.compile(r"(?:^|,)(?:dir=|backend-uri=dir://)([^,]+)")


@dataclasses.dataclass(frozen=True)
class TpmServer:
    """A swtpm as it was at the save; ``path`` is the socket at which QEMU connects to it."""

    path: str
    argv: tuple[str, ...] = ()
    cwd: str = "/"
    executable: str = ""
    uid: int = -1
    gid: int = -1
    groups: str = ""
    no_new_privileges: bool = False
    capabilities: str = ""
    umask: int = DEFAULT_UMASK
    #: The systemd service whose main process it is; empty for none.
    unit: str = ""
    #: Why it cannot be started again, as a clause; empty where it can.
    reason: str = ""

    @property
    def state_directory(self) -> str:
        """Where it keeps its state; empty where its words do not say."""
        for option, value in zip(self.argv, (*self.argv[1:], "")):
            name, equals, inner = option.partition("=")
            if name == "--tpmstate":
                match = _STATE.search(inner if equals else value)
                if match:
                    return os.path.join(self.cwd, match.group(1))
        return ""

    def launch(self) -> Launch:
        """How it is started again.

        :raises ValueError: it cannot be; why, as a clause.
        """
        program, reason = _program(self)
        groups, capabilities = parse_groups(self.groups), parse_capabilities(self.capabilities)
        if self.reason or reason or not self.argv:
            raise ValueError(self.reason or reason or "its words are not recorded")
        if groups is None or capabilities is None:
            raise ValueError("its groups or capabilities make no sense")
        rights = Rights(
            self.uid,
            self.gid,
            groups,
            no_new_privileges=self.no_new_privileges,
            capabilities=capabilities,
        )
        return Launch(argv=(program, *_kept_words(self)), cwd=self.cwd, rights=rights, umask=self.umask)


async def find_tpm_servers(
    monitor: Monitor, process: QemuProcess, by_unit: str
) -> tuple[list[TpmServer], list[Problem]]:
    """The servers of a VM's TPMs, and what stands between them and the VM's return.

    :param by_unit: the VM's unit, where that starts QEMU itself; empty for none.
    :raises MonitorError: QEMU cannot be asked.
    """
    sockets = tpm_sockets(process.configuration, process.cwd)
    if not sockets:
        return [], []
    chardevs = {setting.keys.get("id"): setting.keys.get("chardev") for setting in process.configuration.of("tpmdev")}
    states = {entry["label"]: entry["filename"] for entry in await monitor.execute_if_known("query-chardev") or []}
    servers = []
    problems = []
    behind = servers_behind(process.pid)
    for name, path in sockets.items():
        if str(states.get(chardevs.get(name), "")).startswith("disconnected:"):
            problems.append(
                Problem(
                    "tpm_lost",
                    f"the server of its TPM {name} (swtpm at {path}) has ended, and without it QEMU cannot save the"
                    " state of the TPM",
                    "Shut the guest down, and start the VM with a swtpm that runs",
                    fails_save=True,
                )
            )
            continue
        pid = server_at(path, behind)
        if pid is not None and by_unit and systemd.unit_of_process(pid) == by_unit:
            continue  # which starts it again, too
        server = _read_server(path, pid) if pid is not None else TpmServer(path, reason="it is not known who serves it")
        if server.unit:
            server = await _with_own_unit(server, pid)
        servers.append(server)
        if server.reason:
            problems.append(
                Problem(
                    "server_needed",
                    f"its TPM {name} is served at {path}, and a restore does not start its server again:"
                    f" {server.reason}",
                    "Start it again before the restore, with the same words, or run it as a systemd service",
                    blocks=False,
                )
            )
    return servers, problems


def _read_server(path: str, pid: int) -> TpmServer:
    try:
        status = read_status(pid)
        rights = rights_of(status)
        words = read_command_line(pid, _MAX_COMMAND_LINE).split(b"\0")[:-1]
        executable, cwd = executable_of(pid), os.readlink(proc_path(pid, "cwd"))
        unit = systemd.unit_of_process(pid) if systemd.is_running() else ""
    except OSError as exc:
        return TpmServer(path, reason=f"its process {pid} cannot be looked at: {exc.strerror}")
    if rights is None or len(words) > _MAX_WORDS:
        return TpmServer(path, reason=f"its process {pid} says too much, or the kernel too little, of it")
    server = TpmServer(
        path=path,
        argv=tuple(os.fsdecode(word) for word in words),
        cwd=cwd,
        executable=executable,
        uid=rights.uid,
        gid=rights.gid,
        groups=rights.named_groups,
        no_new_privileges=rights.no_new_privileges,
        capabilities=str(rights.capabilities),
        umask=int(status.get("Umask", f"{DEFAULT_UMASK:o}"), 8),
        unit=unit if unit.endswith(".service") else "",
    )
    if not rights.one_user:
        return dataclasses.replace(server, reason=f"its process {pid} runs as several users at once")
    return dataclasses.replace(server, reason=_why_not(server))


async def _with_own_unit(server: TpmServer, pid: int | None) -> TpmServer:
    """Without the unit, unless it is one that starts the server when it is started; raises UnitError."""
    if not split_unit(server.unit)[0].is_own:
        # Another user's own systemd would say what it likes, and of the host's only root may have it started again.
        return dataclasses.replace(server, unit="")
    unit = await systemd.read_unit(server.unit)
    is_own = unit.main_pid == pid and not unit.transient and bool(unit.fragment)
    return dataclasses.replace(server, reason="") if is_own else dataclasses.replace(server, unit="")


def _why_not(server: TpmServer) -> str:
    """Why its words cannot be used again, as a clause; else the empty string."""
    words = server.argv[1:]
    for option, value in zip(words, (*words[1:], "")):
        if option in ("--fd", "-f") or option.startswith("--fd=") or _INHERITED.search(option.partition("=")[2]):
            return "it uses a descriptor that it inherited"
        if option.startswith("-") and _INHERITED.search(value):
            return "it uses a descriptor that it inherited"
    if server.uid != 0 and {"--chroot", "-R"} & set(words):
        return "it went into a root directory of its own (--chroot), which only root may"
    if server.cwd == "/" and _daemonizes(server) and server.state_directory and not _absolute_paths(server):
        return "it has left the directory from which its relative paths count (--daemon)"
    return _program(server)[1]


def _absolute_paths(server: TpmServer) -> bool:
    paths = re.findall(r"(?:^|[,=])(?:dir|file|path|pwdfile)=([^,]+)", "\n".join(server.argv), re.MULTILINE)
    return all(path.startswith("/") for path in paths)


def _daemonizes(server: TpmServer) -> bool:
    return "--daemon" in server.argv or "-d" in server.argv


def _program(server: TpmServer) -> tuple[str, str]:
    """The program with which it may be started again, and, where there is none, why, as a clause."""
    if os.path.basename(server.executable) != _PROGRAM or not os.path.isabs(server.executable):
        return "", f"its program {server.executable} is not {_PROGRAM}"
    reason = why_not_trusted(server.executable, server.uid)
    return ("", reason) if reason else (server.executable, "")


def _kept_words(server: TpmServer) -> t.Iterator[str]:
    """Its words without what sends it into the background, where nobody would see its end, or changes its user."""
    rest = iter(server.argv[1:])
    for word in rest:
        if word in ("--daemon", "-d"):
            continue
        if server.uid != 0 and word in ("--runas", "-r"):
            with contextlib.suppress(StopIteration):
                next(rest)
            continue
        if server.uid != 0 and word.startswith("--runas="):
            continue
        yield word
