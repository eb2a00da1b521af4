# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A small synchronous QMP client for tests, independent of the one under test."""

from __future__ import annotations

import json
import os
import socket
import time
from typing import Any, Optional, Union


class MonitorError(Exception):
    """The monitor could not be reached, or answered a command with an error."""


class Monitor:
    """One QMP session. A monitor serves one client at a time, so hold it no longer than needed."""

    def __init__(self, path: Union[str, os.PathLike[str]], timeout: float = 10.0) -> None:
        """Connect to the UNIX socket at path and negotiate; timeout in seconds, for this and for each reply.

        Raises MonitorError if there is no monitor or it is busy with another client.
        """
        self.events: list[dict[str, Any]] = []
        self._buffer = b""
        self._timeout = timeout
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout)
        try:
            self._socket.connect(os.fspath(path))
            greeting = self._message(time.monotonic() + timeout)
            while "event" in greeting:  # what QEMU says to a client that has just come may be before the greeting
                greeting = self._message(time.monotonic() + timeout)
            if "QMP" not in greeting:
                raise MonitorError(f"no QMP greeting from {os.fspath(path)}: {greeting}")
            self.execute("qmp_capabilities")
        except OSError as error:
            self.close()
            raise MonitorError(f"no QMP session at {os.fspath(path)}: {error}") from error
        except MonitorError:
            self.close()
            raise

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *_unused: object) -> None:
        self.close()

    def close(self) -> None:
        """End the session."""
        self._socket.close()

    def _message(self, deadline: float) -> dict[str, Any]:
        """The next message; raises MonitorError at the deadline (monotonic seconds) or when QEMU hangs up."""
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0:
                raise MonitorError("QEMU did not answer in time")
            self._socket.settimeout(left)
            try:
                data = self._socket.recv(65536)
            except socket.timeout:
                continue
            except ConnectionError as error:
                raise MonitorError(f"QEMU closed the monitor: {error}") from error
            if not data:
                raise MonitorError("QEMU closed the monitor")
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        message: dict[str, Any] = json.loads(line)
        return message

    def execute(self, command: str, arguments: Optional[dict[str, Any]] = None, fd: Optional[int] = None) -> Any:
        """Run a command and return its result; fd: a descriptor to pass along (for add-fd and getfd).

        Events that come in between are kept in self.events. Raises MonitorError, with QEMU's words.
        """
        request: dict[str, Any] = {"execute": command}
        if arguments:
            request["arguments"] = arguments
        data = json.dumps(request).encode() + b"\n"
        try:
            if fd is None:
                self._socket.sendall(data)
            else:
                socket.send_fds(self._socket, [data], [fd])
        except OSError as error:
            raise MonitorError(f"{command}: {error}") from error
        deadline = time.monotonic() + self._timeout
        while True:
            message = self._message(deadline)
            if "event" in message:
                self.events.append(message)
            elif "error" in message:
                raise MonitorError(f"{command}: {message['error']['desc']}")
            else:
                return message["return"]

    def wait_event(self, name: str, timeout: float) -> dict[str, Any]:
        """The next event of this name, an earlier unread one included; raises MonitorError after timeout seconds."""
        deadline = time.monotonic() + timeout
        while True:
            for index, event in enumerate(self.events):
                if event["event"] == name:
                    return self.events.pop(index)
            message = self._message(deadline)
            if "event" in message:
                self.events.append(message)


def qmp(
    path: Union[str, os.PathLike[str]],
    command: str,
    arguments: Optional[dict[str, Any]] = None,
    *,
    fd: Optional[int] = None,
    timeout: float = 10.0,
) -> Any:
    """Connect, run one command, disconnect; timeout in seconds. Raises MonitorError."""
    with Monitor(path, timeout) as monitor:
        return monitor.execute(command, arguments, fd)


def wait_migration(path: Union[str, os.PathLike[str]], timeout: float = 60.0) -> dict[str, Any]:
    """Poll query-migrate up to timeout seconds until the migration has ended; its last answer, failed or not.

    Raises MonitorError if it is still under way then.
    """
    deadline = time.monotonic() + timeout
    with Monitor(path) as monitor:
        while True:
            info: dict[str, Any] = monitor.execute("query-migrate")
            if info.get("status") in ("completed", "failed", "cancelled"):
                return info
            if time.monotonic() > deadline:
                raise MonitorError(f"migration still {info.get('status')} after {timeout:g} s")
            time.sleep(0.02)
