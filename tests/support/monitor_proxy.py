# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A proxy in front of a real QEMU's QMP socket, which does faults at steps that are named to it.

It listens at a path of its own, which the module is given as ``qmp_socket``; QEMU and its command line know nothing of
it. Bytes and descriptors pass both ways. The peer of the module's connection is then the process with the proxy, not
QEMU, as where QEMU was handed a socket that someone else listens on. So QEMU is handed the connection, too (``getfd``):
by that it is known to be behind it.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import os
import select
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Optional

#: Where at a step: before QEMU gets the command, when it has carried it out but its answer is not passed on, and when
#: the answer was passed on.
BEFORE, INSTEAD, AFTER = "before", "instead of the answer to", "after"
MOMENTS = (BEFORE, INSTEAD, AFTER)

#: What goes wrong, and at which moments it can. "For good" is where a new connection does not help either.
FAULTS: dict[str, tuple[str, ...]] = {
    "cut": MOMENTS,
    "cut for good": MOMENTS,
    "hang": MOMENTS,
    "hang for good": MOMENTS,
    "QEMU frozen": MOMENTS,
    "QEMU killed": MOMENTS,
    "error": (BEFORE, INSTEAD),
    "no JSON": (INSTEAD,),
    "no UTF-8": (INSTEAD,),
    "wrong type": (INSTEAD,),
    "hollow": (INSTEAD,),
}

#: The text of an error that is the proxy's own.
MADE_UP = "the proxy made this up"


@dataclasses.dataclass(frozen=True)
class Step:
    """A command of a run: the name, and the how-many-eth of that name it is."""

    command: str
    number: int

    def __str__(self) -> str:
        return f"{self.command} {self.number}"


@dataclasses.dataclass(frozen=True)
class Fault:
    """What goes wrong, and where."""

    step: Step
    moment: str
    kind: str

    def __str__(self) -> str:
        return f"{self.kind} {self.moment} {self.step}"


class MonitorProxy:
    """The proxy, in threads of this process; QEMU must listen at ``upstream`` when the first client comes."""

    def __init__(
        self,
        path: Path,
        upstream: Path,
        pid: Callable[[], int],
        faults: Sequence[Fault] = (),
        handover: Optional[Path] = None,
    ) -> None:
        """pid: gives QEMU's process id when it is to be killed or frozen, or raises ProcessLookupError.

        handover: where someone else hands the socket over that listens at path (support.listening_wrapper).
        """
        self._upstream = upstream
        self._pid = pid
        self._faults = list(faults)
        self._path = path
        self._counts: collections.Counter[str] = collections.Counter()
        self._frozen = 0
        self._silent = False
        self._clients: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        #: The steps so far, oldest first.
        self.steps: list[Step] = []
        #: The faults that were done.
        self.done: list[Fault] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._handover = handover
        self._listener.bind(os.fspath(handover or path))
        self._listener.listen()

    def __enter__(self) -> MonitorProxy:
        self._start(self._accept)
        return self

    def __exit__(
        self, _kind: Optional[type[BaseException]], _error: Optional[BaseException], _trace: Optional[TracebackType]
    ) -> None:
        self._stop_listening()
        for client in self._clients:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            # A session that connects to a frozen QEMU waits for it; and one may freeze it still, whose run has ended.
            while thread.is_alive():
                self._thaw()
                thread.join(0.1)
        self._thaw()
        for client in self._clients:
            client.close()

    def _thaw(self) -> None:
        if self._frozen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._frozen, signal.SIGCONT)

    def _start(self, function: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=function, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _stop_listening(self) -> None:
        for path in filter(None, (self._path, self._handover)):
            path.unlink(missing_ok=True)
        # Closing alone does not wake the thread that accepts.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _take_over(self, handover: Path) -> None:
        with self._listener.accept()[0] as wrapper:
            descriptor = socket.recv_fds(wrapper, 64, 1)[1][0]
        self._listener.close()
        handover.unlink()
        self._listener = socket.socket(fileno=descriptor)

    def _accept(self) -> None:
        if self._handover:
            try:
                self._take_over(self._handover)
            except OSError:
                return
        while True:
            try:
                client = self._listener.accept()[0]
            except OSError:
                return
            self._clients.append(client)
            if not self._silent:
                self._start(_Session(self, client, self._upstream).run)

    # What a session asks for

    def next_step(self, command: str) -> Step:
        """Count a command."""
        self._counts[command] += 1
        step = Step(command, self._counts[command])
        self.steps.append(step)
        return step

    def fault(self, step: Step, moment: str) -> str:
        """The kind of fault that is due, done as far as it is not one of the session's alone; else empty."""
        for fault in self._faults:
            if (fault.step, fault.moment) == (step, moment):
                break
        else:
            return ""
        self._faults.remove(fault)
        self.done.append(fault)
        if fault.kind == "cut for good":
            self._stop_listening()
        elif fault.kind == "hang for good":
            self._silent = True
        elif fault.kind == "QEMU killed":
            os.kill(self._pid(), signal.SIGKILL)
        elif fault.kind == "QEMU frozen":
            self._frozen = self._pid()
            os.kill(self._frozen, signal.SIGSTOP)
        return fault.kind


class _Session:
    """One client, and its own connection to QEMU."""

    def __init__(self, proxy: MonitorProxy, client: socket.socket, upstream: Path) -> None:
        self._proxy = proxy
        self._client = client
        self._qemu = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._upstream = upstream
        self._asked = b""
        self._said = b""
        self._descriptors: list[int] = []
        self._outstanding: collections.deque[tuple[Optional[Step], Any]] = collections.deque()
        #: The answer to the first command, until QEMU holds the connection.
        self._held_back: Optional[tuple[Step, Any, dict[str, Any], bytes]] = None
        self._handed = False
        self._hangs = False

    def run(self) -> None:
        # Either side may go at any moment.
        with self._qemu, contextlib.suppress(OSError, EOFError):
            self._qemu.connect(os.fspath(self._upstream))
            while True:
                sides = [self._client] if self._hangs else [self._client, self._qemu]
                readable = select.select(sides, [], [])[0]
                if self._client in readable:
                    self._from_client()
                elif self._qemu in readable:
                    self._from_qemu()
        for descriptor in self._descriptors:
            os.close(descriptor)
        with contextlib.suppress(OSError):
            self._client.shutdown(socket.SHUT_RDWR)

    def _from_client(self) -> None:
        data, descriptors, _flags, _address = socket.recv_fds(self._client, 65536, 8)
        self._descriptors += descriptors
        if not data:
            raise EOFError
        self._asked += data
        while not self._hangs:
            # Commands follow each other without a line end, a descriptor comes with a blank.
            text = self._asked.decode().lstrip()
            try:
                command, end = json.JSONDecoder().raw_decode(text)
            except ValueError:
                return
            self._asked = text[end:].encode()
            self._command(command, text[:end].encode())

    def _command(self, command: dict[str, Any], text: bytes) -> None:
        step = self._proxy.next_step(command["execute"])
        kind = self._proxy.fault(step, BEFORE)
        if kind == "error":
            self._answer({"error": {"class": "GenericError", "desc": MADE_UP}}, command.get("id"))
            return
        if kind:
            self._break(kind)
            if kind != "QEMU frozen":
                return
        descriptors, self._descriptors = self._descriptors, []
        self._outstanding.append((step, command.get("id")))
        socket.send_fds(self._qemu, [text], descriptors)
        for descriptor in descriptors:
            os.close(descriptor)

    def _from_qemu(self) -> None:
        data = self._qemu.recv(65536)
        if not data:
            raise EOFError
        self._said += data
        while b"\n" in self._said and not self._hangs:
            line, self._said = self._said.split(b"\n", 1)
            message = json.loads(line)
            if "return" in message or "error" in message:
                self._answered(message, line + b"\n")
            else:
                self._client.sendall(line + b"\n")

    def _answered(self, message: dict[str, Any], line: bytes) -> None:
        step, identifier = self._outstanding.popleft()
        if step is None:
            assert self._held_back is not None
            step, identifier, message, line = self._held_back
        elif not self._handed:
            # QEMU executes nothing before the first command, which is qmp_capabilities.
            self._handed = True
            self._held_back = step, identifier, message, line
            self._outstanding.append((None, None))
            hand_over = {"execute": "getfd", "arguments": {"fdname": "proxied"}}
            socket.send_fds(self._qemu, [json.dumps(hand_over).encode()], [self._client.fileno()])
            return
        kind = self._proxy.fault(step, INSTEAD)
        if kind == "error":
            self._answer({"error": {"class": "GenericError", "desc": MADE_UP}}, identifier)
        elif kind == "no JSON":
            self._client.sendall(b'{"return": {"status"\r\n')
        elif kind == "no UTF-8":
            self._client.sendall(b'{"return": "\xff\xfe"}\r\n')
        elif kind == "wrong type":
            self._answer({"return": {"x": 7} if isinstance(message.get("return"), list) else [7]}, identifier)
        elif kind == "hollow":
            self._answer({"return": _hollow(message.get("return"))}, identifier)
        elif kind:
            self._break(kind)
        else:
            self._client.sendall(line)
            kind = self._proxy.fault(step, AFTER)
            if kind:
                self._break(kind)

    def _answer(self, answer: dict[str, Any], identifier: Any) -> None:
        if identifier is not None:
            answer["id"] = identifier
        self._client.sendall(json.dumps(answer).encode() + b"\r\n")

    def _break(self, kind: str) -> None:
        if kind.startswith("hang") or kind == "QEMU frozen":
            self._hangs = True
        else:
            # A killed QEMU closes its end itself, at about this moment.
            raise EOFError


def _hollow(value: Any) -> Any:
    """A value of the same kind with nothing in it that is asked for."""
    if isinstance(value, dict):
        return {"hollow": 1}
    return [{"hollow": 1}] if isinstance(value, list) else ""
