# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The guest's agent (qemu-ga): where QEMU has its socket, and setting the guest's clock by it.

All that comes from it is the guest's: it is read with bounds in bytes and time, and none of it is shown or logged. The
socket's path is the VM's own word, so nothing is sent to it before the kernel has told that this very QEMU is there.

Another client may hold the socket, as QEMU serves one at a time: the kernel queues ours then, and what was sent over it
reaches the agent when the other one has gone. So no more than a greeting is sent before the agent has answered one.

Source: QEMU's qga/qapi-schema.json.
"""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import json
import os
import socket
import time
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._cancellation import within
from ansible_collections.vmops.qemu.plugins.module_utils._errors import GuestAgentError
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import command_line
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.answers import message_problem
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.dial import reachable
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.identity import process_at
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.monitor import Monitor
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import QemuProcess
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.socket_end import other_end

#: Seconds within which QEMU must be seen at the other end, the agent must have answered at all, and all must be done.
#: A guest that was just loaded has its memory to come by yet; hwclock waits for the next full second.
_END_TIMEOUT = 1.0
_SYNC_TIMEOUT = 4.0
_TIMEOUT = 10.0

_LOOK_INTERVAL = 0.02

#: Seconds within which QEMU has opened the port of a guest that was loaded.
_OPEN_TIMEOUT = 0.5

#: Bytes of all that an agent may say. The list of its commands has some 6 KiB.
_MAX_SAID = 512 * 1024

#: Seconds by which the guest's clock may differ from the host's afterwards: it is asked for a moment later.
_TOLERANCE = 2.0

#: In no UTF-8: what comes before it belongs to another talk.
_DELIMITER = b"\xff"


@dataclasses.dataclass(frozen=True)
class AgentSocket:
    """The socket of a VM's guest agent."""

    process: QemuProcess
    #: The id of its character device.
    chardev: str
    #: An absolute path, a NUL and a name, or ``host:port``; None where QEMU does not listen itself.
    address: str | None


def find_agent(process: QemuProcess) -> AgentSocket | None:
    """Where the guest's agent would be reached, by QEMU's configuration; None where it has no port for one."""
    words = process.configuration.words
    chardev = command_line.agent_chardev(words)
    if not chardev:
        return None
    return AgentSocket(process, chardev, command_line.chardev_addresses(words, process.cwd).get(chardev))


async def guest_listens(monitor: Monitor, agent: AgentSocket) -> bool:
    """Whether a program in the guest has the agent's port open; raises as Monitor.execute.

    QEMU (7.2 to 11.1) opens the ports of a guest that it has loaded a moment after that runs, by a timer.
    """
    deadline = time.monotonic() + _OPEN_TIMEOUT
    while True:
        devices = await monitor.execute("query-chardev")
        if any(device["label"] == agent.chardev and device.get("frontend-open", True) for device in devices):
            return True
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(_LOOK_INTERVAL)


async def set_clock(agent: AgentSocket) -> None:
    """Set the guest's clock to the host's.

    :raises GuestAgentError: it was not done, or is not known to be done.
    """
    try:
        await within(_TIMEOUT, _set_clock(agent))
    except asyncio.TimeoutError:
        raise GuestAgentError(f"the guest's agent did not do it within {_TIMEOUT:g} seconds") from None


async def _set_clock(agent: AgentSocket) -> None:
    connection = await _connect(agent)
    try:
        talk = _Talk(connection)
        await talk.begin()
        commands = await talk.commands()
        if "guest-set-time" not in commands:
            raise GuestAgentError("the guest's agent does not set clocks (guest-set-time)")
        # The host's time, rather than that of the guest's RTC (no argument), which may stand still with the guest.
        took_it = await talk.ask("guest-set-time", {"time": time.time_ns()}) is not None
        if "guest-get-time" in commands:
            # Where the guest has no hwclock, its agent sets the clock, and then tells an error.
            now = await talk.ask("guest-get-time")
            if isinstance(now, int) and abs(now - time.time_ns()) <= _TOLERANCE * 1e9:
                return
            took_it = False
        if not took_it:
            raise GuestAgentError("the guest's agent did not set the clock (guest-set-time)")
    except OSError as exc:
        raise GuestAgentError(f"the connection to the guest's agent ended: {exc.strerror}") from exc
    finally:
        connection.close()


async def _connect(agent: AgentSocket) -> socket.socket:
    """A connection of which the other end is the agent's QEMU's.

    :raises GuestAgentError: there is none.
    """
    address = agent.address
    if not address or address[0] not in "/\0":
        raise GuestAgentError("the socket of the guest's agent is not one on which its QEMU listens at a path")
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        connection.setblocking(False)
        with reachable(address) as name:
            connection.connect(name)
        deadline = time.monotonic() + _END_TIMEOUT
        while True:
            found = process_at(other_end(connection))
            if found and (found.pid, found.birth) == (agent.process.pid, agent.process.birth):
                return connection
            if found or time.monotonic() > deadline:
                raise GuestAgentError(
                    "another process than its QEMU answers at the socket of the guest's agent, or another client holds"
                    " it"
                )
            await asyncio.sleep(_LOOK_INTERVAL)
    except OSError as exc:
        connection.close()
        if exc.errno == errno.EAGAIN:
            raise GuestAgentError("other clients hold the socket of the guest's agent") from exc
        raise GuestAgentError(f"the socket of the guest's agent cannot be reached: {exc.strerror or exc}") from exc
    except BaseException:
        connection.close()
        raise


class _Talk:
    """What is said over one connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._unread = b""
        self._left = _MAX_SAID

    async def begin(self) -> None:
        """See that somebody answers, and leave behind what was said to others.

        :raises GuestAgentError: nobody does.
        """
        number = int.from_bytes(os.urandom(4), "big")
        try:
            await within(_SYNC_TIMEOUT, self._sync(number))
        except asyncio.TimeoutError:
            raise GuestAgentError(
                f"the guest's agent did not answer within {_SYNC_TIMEOUT:g} seconds, or another client holds its socket"
            ) from None

    async def _sync(self, number: int) -> None:
        await self._say("guest-sync-delimited", {"id": number}, _DELIMITER)
        while True:
            answer = _parse((await self._line()).rpartition(_DELIMITER)[2])
            if answer.get("return") == number:
                return

    async def commands(self) -> set[str]:
        """The commands that it has and may be asked for."""
        info = await self.ask("guest-info")
        found = info.get("supported_commands") if isinstance(info, dict) else None
        return {
            str(command.get("name"))
            for command in (found if isinstance(found, list) else [])
            if isinstance(command, dict) and command.get("enabled") is True
        }

    async def ask(self, command: str, arguments: dict[str, t.Any] | None = None) -> t.Any:
        """What it returns; None where it refuses."""
        await self._say(command, arguments)
        return _parse(await self._line()).get("return")

    async def _say(self, command: str, arguments: dict[str, t.Any] | None, before: bytes = b"") -> None:
        text = json.dumps({"execute": command, **({"arguments": arguments} if arguments else {})})
        await asyncio.get_running_loop().sock_sendall(self._connection, before + text.encode() + b"\n")

    async def _line(self) -> bytes:
        """:raises GuestAgentError: it hangs up, or says more than an agent does."""
        while b"\n" not in self._unread:
            piece = await asyncio.get_running_loop().sock_recv(self._connection, 64 * 1024)
            if not piece:
                raise GuestAgentError("the guest's agent hung up")
            self._left -= len(piece)
            if self._left < 0:
                raise GuestAgentError(f"the guest's agent says more than {_MAX_SAID >> 10} KiB")
            self._unread += piece
        line, _end, self._unread = self._unread.partition(b"\n")
        return line


def _parse(line: bytes) -> dict[str, t.Any]:
    """What a line says; nothing where it is no object."""
    try:
        found = {} if message_problem(line) else json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
