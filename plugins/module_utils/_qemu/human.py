# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A QMP monitor that is opened through a human one (HMP), for as long as a run needs it: QEMU 11.1 and later.

What is opened has no name that others could use: one end of a socket pair is passed to QEMU over the human monitor's
own UNIX socket. Over TCP, where nothing can be passed, QEMU connects to a socket of this run, which takes in nobody
else. In both cases QEMU removes it by itself when the connection ends (``close-action=delete``), whatever ends this
run. Only what a run leaves that is killed between two commands is removed by the next one.

Whether QEMU can do it is seen from a greeting, or none. What a human monitor says is text, and is only shown.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import secrets
import socket
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._cancellation import despite_cancellation, within
from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    MonitorBusyError,
    MonitorError,
    MonitorForeignError,
    MonitorHumanError,
    MonitorLostError,
    MonitorProtocolError,
)
from ansible_collections.vmops.qemu.plugins.module_utils._proc import birth_of, proc_path
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.dial import shown_address
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.monitor import Dialled
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.socket_end import SocketEnd, other_end

#: Bytes of one answer: with each character of a command QEMU writes all of the line again.
_MAX_ANSWER = 256 * 1024

#: Characters of QEMU's words in a message.
_MAX_SHOWN = 300

_PROMPT = b"(qemu) "

#: What a terminal takes for itself, and what Telnet's two sides agree on (RFC 854).
_UNSEEN = re.compile(rb"\x1b\[[0-9;]*[A-Za-z]|\xff[\xfb-\xfe].", re.DOTALL)

#: Seconds for a greeting after QEMU has said something to the last command: where it obeys, it says nothing.
_DOUBTFUL_TIMEOUT = 0.5

#: Seconds for taking back what was begun.
_UNDO_TIMEOUT = 5.0

#: What one run looks at of what others have left.
_MAX_LEFTOVERS = 8

#: The descriptor's name in QEMU: one that was left there makes room for the next one of this name.
_DESCRIPTOR = "vmops-qmp"

#: The ids of what runs open: the PID namespace, the process and its start tell whose it is.
_ID = re.compile(r"^vmops-([0-9a-f]{1,16})-([0-9]{1,10})-([0-9]{1,20})-[0-9]{1,10}(?=:)", re.MULTILINE)
_places = itertools.count()


class Connected(t.Protocol):
    """A connection to a monitor, of either kind."""

    @property
    def end(self) -> SocketEnd:
        """The other end, as the kernel knows it."""

    @property
    def shown_address(self) -> str:
        """Where it leads, for messages."""


#: Sees that the right QEMU is at the other end of a connection, or raises MonitorForeignError.
Check = t.Callable[[Connected], None]


class HumanMonitor:
    """A session with a human monitor, from its prompt on."""

    def __init__(self, connection: socket.socket, address: str, timeout: float) -> None:
        """:param timeout: seconds that each answer may take."""
        self._connection = connection
        self.timeout = timeout
        self.shown_address = shown_address(address)
        #: Known from the prompt on: before that, nobody may have taken the connection in.
        self.end = SocketEnd()

    async def greet(self) -> None:
        """Wait for its prompt.

        :raises MonitorBusyError: there is none: another client holds it, or QEMU hangs.
        :raises MonitorProtocolError: it is no human monitor.
        """
        try:
            await within(self.timeout, self._read(lambda text: True))
        except asyncio.TimeoutError:
            raise self._busy("show its prompt") from None
        self.end = other_end(self._connection)

    async def tell(self, command: str, descriptor: int | None = None) -> str:
        """Give a command; what QEMU says to it, which is nothing where it obeys.

        :param descriptor: one to pass along.
        :raises MonitorError: it does not answer, or the connection has ended.
        """
        data = f"{command}\n".encode()
        try:
            if descriptor is None:
                self._connection.send(data)
            else:
                socket.send_fds(self._connection, [data], [descriptor])
            text = await within(self.timeout, self._read(lambda text: b"\n" in text))
        except asyncio.TimeoutError:
            raise self._busy(f"answer {command.partition(' ')[0]}") from None
        except OSError as exc:
            raise self._lost() from exc
        return text.partition(b"\n")[2][: -len(_PROMPT)].decode("utf-8", "replace").strip()

    async def _read(self, is_enough: t.Callable[[bytes], bool]) -> bytes:
        """What it writes up to its prompt, without what a terminal would not show."""
        data = b""
        while True:
            try:
                more = await asyncio.get_running_loop().sock_recv(self._connection, 65536)
            except OSError as exc:
                raise self._lost() from exc
            if not more:
                raise self._lost()
            data += more
            text = _UNSEEN.sub(b"", data)
            if text.endswith(_PROMPT) and is_enough(text):
                return text
            if len(data) > _MAX_ANSWER:
                raise MonitorProtocolError(
                    f"{self.shown_address} does not speak as QEMU's human monitor does: it writes on and on",
                    cure="Find out what listens there",
                )

    def _busy(self, what: str) -> MonitorBusyError:
        return MonitorBusyError(
            f"The human monitor {self.shown_address} did not {what} within {self.timeout:g} seconds: another client"
            " holds it (a QEMU monitor serves one at a time), or QEMU hangs",
            cure="End the other client (socat, telnet, the program that started the VM), or give the VM a QMP monitor"
            " (-qmp unix:…)",
        )

    def _lost(self) -> MonitorLostError:
        return MonitorLostError(
            f"The connection to the human monitor {self.shown_address} ended",
            cure="See whether the VM runs, then run the task again",
        )


async def open_qmp(connection: socket.socket, address: str, timeout: float, check: Check) -> Dialled:
    """Open a QMP monitor through a human one, to which ``connection`` leads; that is closed.

    :param timeout: seconds that each of QEMU's answers may take.
    :raises MonitorForeignError: another QEMU is there.
    :raises MonitorHumanError: its QEMU opens none so.
    :raises MonitorError: it cannot be used.
    """
    try:
        human = HumanMonitor(connection, address, timeout)
        await human.greet()
        check(human)
        await _remove_leftovers(human)
        if connection.family == socket.AF_UNIX:
            return await _open_by_descriptor(human)
        return await _open_by_listening(human, check)
    finally:
        connection.close()


async def _open_by_descriptor(human: HumanMonitor) -> Dialled:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    try:
        with theirs:
            await human.tell(f"getfd {_DESCRIPTOR}", theirs.fileno())
        # The kernel says of a pair only who made it: QEMU was found at the human monitor.
        pair = other_end(ours)
        end = SocketEnd(human.end.listener, human.end.listener_birth, human.end.uid, pair.inode)

        async def take(_timeout: float) -> socket.socket:
            return ours

        await _open(human, f"fd={_DESCRIPTOR}", take)
        return Dialled(ours, end, is_temporary=True)
    except BaseException:
        ours.close()
        raise


async def _open_by_listening(human: HumanMonitor, check: Check) -> Dialled:
    """As :func:`_open_by_descriptor`, over a socket of the abstract namespace, to which anyone can connect."""
    name = f"vmops.qemu-{secrets.token_hex(16)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as listener:
        listener.bind(f"\0{name}")
        listener.listen(16)
        listener.setblocking(False)

        async def take(timeout: float) -> socket.socket:
            return await within(timeout, _accept(listener, human.shown_address, check))

        return Dialled(await _open(human, f"path={name},abstract=on", take), is_temporary=True)


async def _open(
    human: HumanMonitor, place: str, take: t.Callable[[float], t.Awaitable[socket.socket]]
) -> socket.socket:
    """Have QEMU open the monitor; the connection to it.

    :param place: where QEMU connects to, as keys of its character device.
    :param take: gives the connection within so many seconds.
    """
    name = _new_id()
    connection = None
    try:
        said = await human.tell(f"chardev-add socket,id={name},{place}")
        with contextlib.suppress(asyncio.TimeoutError):
            connection = await take(_DOUBTFUL_TIMEOUT if said else human.timeout)
            said = await human.tell(f"object_add monitor-qmp,id={name},chardev={name},close-action=delete") or said
            if await _greets(connection, _DOUBTFUL_TIMEOUT if said else human.timeout):
                return connection
        told = said[:_MAX_SHOWN] if said else f"it did not greet within {human.timeout:g} seconds"
        raise MonitorHumanError(
            f"{human.shown_address} is a human monitor, through which its QEMU opens no QMP monitor, as QEMU 11.1 and"
            f" later do ({told})"
        )
    except BaseException:
        if connection is not None:
            connection.close()
        await despite_cancellation(_remove(human, name))
        raise


async def _accept(listener: socket.socket, address: str, check: Check) -> socket.socket:
    """The connection of the right QEMU; those of others are closed."""
    while True:
        connection, _place = await asyncio.get_running_loop().sock_accept(listener)
        try:
            check(_Accepted(other_end(connection), address))
            return connection
        except BaseException as exc:
            connection.close()
            if not isinstance(exc, MonitorForeignError):
                raise


class _Accepted(t.NamedTuple):
    """As Connected."""

    end: SocketEnd
    shown_address: str


async def _greets(connection: socket.socket, timeout: float) -> bool:
    """Whether something is there to be read within so many seconds."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(connection.fileno(), readable.set)
    try:
        await within(timeout, readable.wait())
        return bool(connection.recv(1, socket.MSG_PEEK))
    except (asyncio.TimeoutError, OSError):
        return False
    finally:
        loop.remove_reader(connection.fileno())


# --- what runs leave ---


def _new_id() -> str:
    """An id for what this run opens."""
    return f"vmops-{_pid_namespace():x}-{os.getpid()}-{birth_of(os.getpid()) or 0}-{next(_places)}"


def _pid_namespace() -> int:
    try:
        return os.stat(proc_path("self", "ns/pid")).st_ino
    except OSError:
        return 0


async def _remove_leftovers(human: HumanMonitor) -> None:
    """Remove what runs have left that were killed, at the worst moment: a run that lives has its own in use."""
    for found in itertools.islice(_ID.finditer(await human.tell("info chardev")), _MAX_LEFTOVERS):
        namespace, pid, birth = int(found.group(1), 16), int(found.group(2)), int(found.group(3))
        if namespace == _pid_namespace() and birth_of(pid) != birth:
            await human.tell(f"object_del {found.group()}")
            await human.tell(f"chardev-remove {found.group()}")


async def _remove(human: HumanMonitor, name: str) -> None:
    """Take back what was begun under an id; what is not there is no error."""
    with contextlib.suppress(MonitorError, asyncio.TimeoutError):
        for command in (f"object_del {name}", f"chardev-remove {name}", f"closefd {_DESCRIPTOR}"):
            await within(_UNDO_TIMEOUT, human.tell(command))
