# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One QMP session with one QEMU: commands, descriptors, events, and the session's end.

QMP itself is qemu.qmp's, which comes with the collection (``_qemu_qmp``). What is added here: a bounded connect that
tells a busy monitor from a missing one, errors from the collection's own tree, a record of the session's last events
with QEMU's own timestamps, and a wait for an event that also ends when QEMU does (a bare ``EventListener`` stays silent
then).
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import socket
import time
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._cancellation import despite_cancellation, within
from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    CommandError,
    MonitorBusyError,
    MonitorError,
    MonitorLostError,
    MonitorProtocolError,
    RequestError,
)
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.answers import (
    MAX_MESSAGE,
    answer_problem,
    event_problem,
    message_problem,
    with_believable_time,
)
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.dial import open_socket, shown_address
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.socket_end import SocketEnd, other_end
from ansible_collections.vmops.qemu.plugins.module_utils._qemu_qmp.error import QMPError
from ansible_collections.vmops.qemu.plugins.module_utils._qemu_qmp.events import EventListener
from ansible_collections.vmops.qemu.plugins.module_utils._qemu_qmp.message import Message
from ansible_collections.vmops.qemu.plugins.module_utils._qemu_qmp.protocol import ConnectError, Runstate, StateError
from ansible_collections.vmops.qemu.plugins.module_utils._qemu_qmp.qmp_client import (
    ExecInterruptedError,
    ExecuteError,
    QMPClient,
)

#: Seconds until a monitor that accepted the connection must have greeted. A QEMU monitor serves one client at a
#: time: a second one is queued by the kernel and would wait for ever.
GREETING_TIMEOUT = 8.0

#: Seconds until a command must have been answered. QEMU answers at once, except where it flushes disks (stop, quit).
COMMAND_TIMEOUT = 60.0

#: The class of QEMU's error for a command that it does not have.
_COMMAND_NOT_FOUND = "CommandNotFound"

Event = t.Dict[str, t.Any]

#: What the library says to developers, in which there may be what QEMU has said.
_LIBRARY_LOG = logging.getLogger(QMPClient.__module__.rpartition(".")[0])

#: The events that are looked for, and how many of them are kept: a save has some ten. Others are dropped as they come.
_KEPT_EVENTS = frozenset(("MIGRATION", "RESUME", "SHUTDOWN", "STOP", "SUSPEND", "WAKEUP"))
_MAX_EVENTS = 1000

#: How often the capabilities of a session are negotiated, where something else comes in between.
_NEGOTIATIONS = 5

#: Characters of a cause in a message: the library's own show what has come.
_MAX_REASON = 300


class _Client(QMPClient):
    """The library's client, to which no message comes that is not to be parsed.

    An error that is raised here ends the session, and is told as its cause.
    """

    def __init__(self, name: str) -> None:
        # asyncio's limit of a line (the library's is 10 MiB); it reads twice that ahead.
        super().__init__(name, readbuflen=MAX_MESSAGE)
        # The library's own listener keeps all events for whoever asks for them later: nobody does.
        self.events.event_filter = lambda _event: False

    async def _do_recv(self) -> Message:
        data = await self._readline()
        if data.rstrip() == b"{":
            data = await self._rest_of_pretty(data)
        problem = message_problem(data)
        if problem:
            raise ValueError(problem)
        # Of what was read ahead, all may be events: whoever takes them comes in between.
        await asyncio.sleep(0)
        return Message(data, eager=True)

    async def _rest_of_pretty(self, data: bytes) -> bytes:
        """A message of a pretty monitor (``-qmp-pretty``), from its first line on: the library takes a line for one.

        QEMU indents what is inside of the message, and no string has an end of a line in it.
        """
        lines = [data]
        size = len(data)
        while lines[-1][:1] != b"}" and size <= MAX_MESSAGE:
            lines.append(await self._readline())
            size += len(lines[-1])
            # Whoever sends lines without end keeps nobody waiting.
            await asyncio.sleep(0)
        return b"".join(lines)

    # The library's own hooks format each message for a log that nobody reads: a fifth of the time of short sessions.

    def _cb_inbound(self, msg: Message) -> Message:
        return msg

    def _cb_outbound(self, msg: Message) -> Message:
        return msg


class _Listener(EventListener):
    """Keeps no history of its events: who sends them without end takes no memory."""

    async def put(self, event: Message) -> None:
        if self.accept(event):
            await self._queue.put(event)


class Dialled(t.NamedTuple):
    """A connection to a QMP server that is to greet on it."""

    connection: socket.socket
    #: The other end, where the kernel says less of it than is known; None to ask the kernel.
    end: SocketEnd | None = None
    #: Whether QEMU was told to open the server for this run alone.
    is_temporary: bool = False
    #: Whether the socket was reached by another way than its path, which does not lead to it any more.
    has_lost_its_name: bool = False


#: Makes such a connection within so many seconds, or raises MonitorError; it may be asked again.
Dial = t.Callable[[float], t.Awaitable[Dialled]]


class _Session(t.NamedTuple):
    """A connection that has greeted."""

    client: QMPClient
    end: SocketEnd
    descriptors: bool
    dialled: Dialled


class Monitor:
    """A QMP session; made by :meth:`connect`, ended by :meth:`close` (or as an asynchronous context manager)."""

    def __init__(self, address: str, session: _Session, dial: Dial | None = None) -> None:
        self.address = address
        self._dial = dial
        #: The last events that are looked for, oldest first, without the data that nobody asks for.
        self._events: collections.deque[Event] = collections.deque(maxlen=_MAX_EVENTS)
        #: How many there were in all.
        self._seen = 0
        self._changed = asyncio.Condition()
        #: Gives a figure that changes as long as QEMU need not answer in time, for all commands.
        self.activity: t.Callable[[], object] = lambda: None
        self._begin(session)

    def _begin(self, session: _Session) -> None:
        #: The other end of the connection, as the kernel knows it.
        self.end = session.end
        #: Whether descriptors can be passed (UNIX sockets only).
        self.passes_descriptors = session.descriptors
        #: Whether the server was opened for this run alone, through a human monitor, which is at the address.
        self.is_temporary = session.dialled.is_temporary
        #: Whether the socket was reached by another way than its path, which does not lead to it any more.
        self.has_lost_its_name = session.dialled.has_lost_its_name
        self._client = session.client
        self._disconnecting: asyncio.Future[BaseException | None] | None = None
        self._lost = False
        #: What came that is not QMP, where that ended the session.
        self._garbage = ""
        self._listener = _Listener(_KEPT_EVENTS)
        session.client.register_listener(self._listener)
        self._end_watch = asyncio.ensure_future(self._watch_end())
        self._tasks = [asyncio.ensure_future(self._record_events()), self._end_watch]

    # --- the session ---

    @classmethod
    async def connect(cls, address: str, timeout: float | None = None, dial: Dial | None = None) -> Monitor:
        """Connect to the QMP server at a UNIX socket's path, or at ``host:port``.

        :param timeout: seconds until the greeting must have come; None for the usual.
        :param dial: how, where it is not done by the address alone.
        :raises MonitorMissingError: nothing listens there.
        :raises MonitorBusyError: it accepts, but does not greet: another client holds it, or QEMU hangs.
        :raises MonitorProtocolError: it does not speak QMP.
        """
        seconds = GREETING_TIMEOUT if timeout is None else timeout
        return cls(address, await _open_session(address, seconds, dial), dial)

    async def connect_again(self) -> None:
        """Begin a new session with the same server in place of one that was lost; the events of both are kept.

        :raises MonitorLostError: someone else listens there now.
        :raises MonitorError: as :meth:`connect`.
        """
        await self.close()
        session = await _open_session(self.address, GREETING_TIMEOUT, self._dial)
        listener = (self.end.listener, self.end.listener_birth, self.end.uid)
        changed = (session.end.listener, session.end.listener_birth, session.end.uid) != listener
        self._begin(session)
        if changed:
            await self._give_up()
            raise self._lost_error("and another process listens there now")

    async def __aenter__(self) -> Monitor:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        # A cancellation comes too late here: the work is done, or undone.
        await despite_cancellation(self.close())

    async def close(self) -> None:
        """End the session; never raises, since a QEMU that has quit ends it with an error of its own."""
        self._lost = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(asyncio.TimeoutError):
            await within(5, self._disconnect())

    async def _disconnect(self) -> BaseException | None:
        """Let go of the connection; what ended it, where that was not us.

        EOFError, OSError and QMPError where QEMU has gone, but also whatever the library met in what it could not
        read (ValueError, TypeError, RecursionError …): all of it is told of here, and nothing of it is of use later.
        """
        self._disconnecting = self._disconnecting or asyncio.ensure_future(self._end_client())
        # Whoever waits may be cancelled, but not the library in the middle of it: it would leave errors to nobody,
        # which asyncio then prints.
        return await asyncio.shield(self._disconnecting)

    async def _end_client(self) -> BaseException | None:
        (cause,) = await asyncio.gather(self._client.disconnect(), return_exceptions=True)
        return cause

    @property
    def shown_address(self) -> str:
        """The address for messages."""
        return shown_address(self.address)

    @property
    def peer_pid(self) -> int | None:
        """The process that began to listen on the UNIX socket; None for TCP or a foreign PID namespace."""
        return self.end.listener

    @property
    def peer_uid(self) -> int | None:
        """The user that this process was when it began to listen; over TCP, who accepted the connection, if known."""
        return self.end.uid

    @property
    def lost(self) -> bool:
        """Whether the connection has ended."""
        return self._lost or self._client.runstate is not Runstate.RUNNING

    # --- commands ---

    async def execute(
        self,
        command: str,
        arguments: dict[str, t.Any] | None = None,
        activity: t.Callable[[], object] = lambda: None,
    ) -> t.Any:
        """Send one command and return its ``return`` value, which is what QEMU's documentation says.

        :param activity: gives a figure that changes as long as QEMU is at work: it then need not answer in time.
        :raises CommandError: QEMU answered with an error.
        :raises MonitorLostError: the connection ended before the answer, or none came; the outcome is unknown.
        :raises MonitorProtocolError: what came is no answer; the outcome is unknown, and the session given up.
        """
        if self._lost:
            raise self._lost_error(f"before {command}")
        try:
            answer = await within(
                COMMAND_TIMEOUT, self._client.execute(command, arguments), lambda: (activity(), self.activity())
            )
        except asyncio.TimeoutError:
            # A QEMU that hangs (its main loop waits for a dead disk or server) must not hang us.
            await self._give_up()
            raise self._lost_error(f"as it did not answer {command} within {COMMAND_TIMEOUT:g} seconds") from None
        except ExecuteError as exc:
            raise CommandError(command, exc.error_class, str(exc)) from exc
        except (ExecInterruptedError, StateError, EOFError, OSError) as exc:
            # The watch learns why it ended.
            await asyncio.wait({self._end_watch}, timeout=1)
            raise self._lost_error(f"while {command} was under way") from exc
        except QMPError as exc:
            await self._give_up(f"it answered {command} with neither a result nor an error")
            raise self._lost_error("") from exc
        problem = answer_problem(command, answer)
        if problem:
            await self._give_up(f"its answer to {command} is not valid: {problem}")
            raise self._lost_error("")
        return answer

    async def execute_if_known(self, command: str, arguments: dict[str, t.Any] | None = None) -> t.Any:
        """As :meth:`execute`, for commands that not every supported QEMU has: None where this one does not.

        Any other refusal is none: what QEMU does not say must not be taken for what is not there.

        :raises CommandError: QEMU has the command, and answered with an error.
        :raises MonitorError: as :meth:`execute`.
        """
        try:
            return await self.execute(command, arguments)
        except CommandError as exc:
            if exc.error_class != _COMMAND_NOT_FOUND:
                raise
            return None

    def send_descriptor(self, descriptor: int) -> None:
        """Pass a descriptor with the next command (``add-fd``, ``getfd``); the caller keeps its own copy.

        :raises RequestError: the monitor is not a UNIX socket.
        """
        if not self.passes_descriptors:
            raise RequestError(
                f"Descriptors cannot be passed over {shown_address(self.address)}: only a UNIX socket carries them",
                cure="Give the VM a monitor on a UNIX socket (-qmp unix:PATH,server=on,wait=off)",
            )
        try:
            self._client.send_fd_scm(descriptor)
        except (QMPError, AssertionError, OSError) as exc:
            raise self._lost_error("while a descriptor was passed") from exc

    # --- events ---

    def mark(self) -> int:
        """A place in the record of events, for the ``since`` of the other calls."""
        return self._seen

    def _since(self, since: int) -> list[Event]:
        """The recorded events after a place in the record; the oldest of too many are not there any more."""
        wanted = min(self._seen - since, len(self._events))
        return list(self._events)[len(self._events) - wanted :] if wanted > 0 else []

    def find_event(self, *names: str, since: int = 0) -> Event | None:
        """The first recorded event of one of these names after ``since``, or None."""
        return next((event for event in self._since(since) if event["event"] in names), None)

    def last_event(self, *names: str) -> Event | None:
        """The last recorded event of one of these names, or None."""
        return next((event for event in reversed(self._events) if event["event"] in names), None)

    async def wait_for_event(self, accept: t.Callable[[Event], bool], since: int = 0) -> Event:
        """Wait for the first event after ``since`` that ``accept`` takes.

        :raises MonitorLostError: the connection ended first.
        """
        position = since
        async with self._changed:
            while True:
                for event in self._since(position):
                    if accept(event):
                        return event
                position = self._seen
                if self._lost:
                    raise self._lost_error("while an event was awaited")
                await self._changed.wait()

    async def wait_for_end(self) -> None:
        """Wait until the connection has ended."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._lost)

    async def _record_events(self) -> None:
        while True:
            event = dict(await self._listener.get())
            problem = event_problem(event)
            if problem:
                await self._give_up(f"one of its events is not valid: {problem}")
                return
            async with self._changed:
                self._record(event)
                self._changed.notify_all()

    def _record(self, event: Event) -> None:
        kept = {key: event[key] for key in ("event", "timestamp")}
        if event["event"] == "MIGRATION":
            kept["data"] = {"status": event["data"]["status"]}
        kept["timestamp"] = {key: event["timestamp"][key] for key in ("seconds", "microseconds")}
        self._events.append(with_believable_time(kept, time.time()))
        self._seen += 1

    async def _watch_end(self) -> None:
        while self._client.runstate is Runstate.RUNNING:
            await self._client.runstate_changed()
        # What QEMU said last (SHUTDOWN) may not have been recorded yet.
        last = (dict(event) for event in self._listener.clear())
        for event in last:
            if not event_problem(event):
                self._record(event)
        cause = await self._disconnect()
        garbage = cause is not None and not isinstance(cause, (EOFError, OSError, asyncio.CancelledError))
        await self._give_up(
            f"it sent something that is not a QMP message ({_reason(cause)})" if cause and garbage else ""
        )

    async def _give_up(self, garbage: str = "") -> None:
        """From now on the session is a lost one; whoever waits for its events learns of it."""
        async with self._changed:
            self._lost = True
            self._garbage = self._garbage or garbage
            self._changed.notify_all()

    def _lost_error(self, when: str) -> MonitorError:
        shown = shown_address(self.address)
        cure = "Run the task again: it goes on from what this run left, or undoes it"
        if self._garbage:
            return MonitorProtocolError(f"{shown} does not speak QMP as QEMU does: {self._garbage}", cure=cure)
        return MonitorLostError(f"QEMU's connection at {shown} ended {when}", cure=cure)


async def _open_session(address: str, timeout: float, dial: Dial | None) -> _Session:
    """As :meth:`Monitor.connect`.

    The first message after the greeting may not be QEMU's answer, but an event, or what it still had to tell a client
    that was killed (QEMU 10.0, when a load ends). The library takes that for a failure; nothing was asked yet.
    """
    for _attempt in range(_NEGOTIATIONS):
        try:
            return await _try_to_open_session(address, timeout, dial)
        except _NegotiationMissed as exc:
            missed = exc
    raise _no_server(address, missed.cause) from missed.cause


class _NegotiationMissed(Exception):
    """Something else came where the answer to the negotiation was to come."""

    def __init__(self, cause: ConnectError) -> None:
        super().__init__()
        self.cause = cause


def _no_server(address: str, cause: ConnectError) -> MonitorProtocolError:
    return MonitorProtocolError(
        f"{shown_address(address)} is not a QMP server ({_reason(cause)})",
        cure="Name the VM's QMP socket (-qmp unix:PATH,server=on,wait=off), not its human monitor, serial console or"
        " guest agent",
    )


async def _try_to_open_session(address: str, timeout: float, dial: Dial | None) -> _Session:
    """As :func:`_open_session`; raises _NegotiationMissed, too."""
    _LIBRARY_LOG.addHandler(logging.NullHandler())
    _LIBRARY_LOG.propagate = False
    # Where a connection ends under several commands, each says so itself; asyncio would print a line as well.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    shown = shown_address(address)
    busy = MonitorBusyError(
        f"The QMP socket {shown} did not greet within {timeout:g} seconds: another client holds it"
        " (a QEMU monitor serves one at a time), or QEMU hangs",
        cure="End the other client (libvirt, a monitoring agent, another save), or give the VM a second"
        " monitor (-qmp unix:…) and name it in qmp_socket",
    )
    dialled = await dial(timeout) if dial else Dialled(await open_socket(address, timeout, busy))
    connection = dialled.connection
    client = _Client(f"vmops.qemu {shown}")
    try:
        await within(timeout, client.connect(connection))
    except asyncio.TimeoutError:
        raise busy from None
    except ConnectError as exc:
        if isinstance(_innermost(exc), AssertionError):
            raise _NegotiationMissed(exc) from None
        raise _no_server(address, exc) from exc
    except AssertionError:
        # What qemu.qmp (0.0.6) says where the connection ends at the very moment at which it is complete.
        await asyncio.gather(client.disconnect(), return_exceptions=True)
        raise MonitorProtocolError(
            f"{shown} greeted, but closed the connection at once", cure="Run the task again; see what closes it"
        ) from None
    finally:
        if client.runstate is not Runstate.RUNNING:
            connection.close()
    try:
        end = dialled.end or other_end(connection)
    except OSError:  # it was closed by now
        end = SocketEnd()
    return _Session(client, end, connection.family == socket.AF_UNIX, dialled)


def event_seconds(event: Event) -> float:
    """QEMU's own time of an event, in seconds since the epoch."""
    stamp = event["timestamp"]
    return float(stamp["seconds"]) + float(stamp["microseconds"]) / 1e6


def _innermost(exc: BaseException) -> BaseException:
    """What the library's exceptions are wrapped around."""
    while True:
        inner = getattr(exc, "exc", None)
        if not isinstance(inner, BaseException):
            return exc
        exc = inner


def _reason(exc: BaseException) -> str:
    """A short cause for people: the text of the innermost exception, or its kind where it has none."""
    exc = _innermost(exc)
    if isinstance(exc, EOFError):
        return "it closed the connection"
    if isinstance(exc, AssertionError):
        return "it did not answer to the negotiation of capabilities"
    return str(exc).split("\n", maxsplit=1)[0][:_MAX_REASON] or type(exc).__name__
