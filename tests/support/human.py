# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A guest whose QEMU opens a human monitor (HMP) and nothing else, and that monitor's client."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Union

from .counter import CounterGuest
from .guest import GuestError, escaped
from .process import read_argv

_PROMPT = b"(qemu) "
_UNSEEN = re.compile(rb"\x1b\[[0-9;]*[A-Za-z]|\xff[\xfb-\xfe].", re.DOTALL)
_POLL = 0.02  # seconds


class HumanMonitor:
    """A session with a human monitor at a UNIX socket's path or at a port of loopback."""

    def __init__(self, place: Union[Path, int], timeout: float = 20.0) -> None:
        """Connect, and wait for its prompt; raises OSError."""
        family = socket.AF_INET if isinstance(place, int) else socket.AF_UNIX
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.settimeout(timeout)
        try:
            self._socket.connect(("127.0.0.1", place) if isinstance(place, int) else str(place))
            self._read()
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> HumanMonitor:
        return self

    def __exit__(self, *_unused: object) -> None:
        self._socket.close()

    def execute(self, command: str) -> str:
        """Run a command; what QEMU says to it."""
        self._socket.sendall(f"{command}\n".encode())
        return self._read(b"\n").partition("\r\n")[2].replace("\r", "").strip()

    def _read(self, wanted: bytes = b"") -> str:
        data = b""
        while not (data.endswith(_PROMPT) and wanted in data):
            more = self._socket.recv(65536)
            if not more:
                raise ConnectionError("the human monitor hung up")
            data = _UNSEEN.sub(b"", data + more)
        return data[: -len(_PROMPT)].decode("utf-8", "replace")


class HumanGuest(CounterGuest):
    """A counter guest that is reached by its human monitor alone."""

    kind: ClassVar[str] = "human-counter"

    def __init__(self, *arguments: Any, monitor: Iterable[str] = (), port: int = 0, **options: Any) -> None:
        """Describe the guest.

        monitor: the words that open it, with {} for its socket's path; port: that of one at TCP.
        """
        super().__init__(*arguments, **{**options, "observer": False})
        self.monitor = list(monitor) or ["-monitor", "unix:{},server=on,wait=off"]
        self.port = port

    def config(self) -> dict[str, Any]:
        """The constructor's arguments beside workdir, for guest.json."""
        return {**super().config(), "monitor": self.monitor, "port": self.port}

    @property
    def human_socket(self) -> Path:
        """The human monitor."""
        return self.qmp_socket.with_name("human.sock")

    @property
    def place(self) -> Union[Path, int]:
        """Where the human monitor is."""
        return self.port or self.human_socket

    def argv(self, incoming: Union[bool, str] = False) -> list[str]:
        """The command line."""
        argv = super().argv(incoming)
        at = argv.index("-qmp")
        argv[at : at + 2] = [word.format(escaped(self.human_socket)) for word in self.monitor]
        return argv

    def human(self, command: str) -> str:
        """Run one command in a session of its own."""
        with HumanMonitor(self.place) as monitor:
            return monitor.execute(command)

    def opened(self) -> list[str]:
        """What QEMU has, beside what it was started with, of character devices and objects."""
        with HumanMonitor(self.place) as monitor:
            told = monitor.execute("info chardev") + "\n" + monitor.execute("qom-list /objects")
        return [line for line in told.splitlines() if "vmops" in line]

    def _is_ours(self, pid: int) -> bool:
        return any(escaped(self.serial_socket) in word for word in read_argv(pid))

    def _wait_monitor(self, deadline: float) -> None:
        while True:
            try:
                HumanMonitor(self.place, max(0.1, deadline - time.monotonic())).__exit__()
                return
            except OSError as error:
                if not self.alive():
                    raise GuestError(f"QEMU of {self.name} ended: {self.stderr().strip()}") from error
                if time.monotonic() > deadline:
                    raise GuestError(f"{self.name}: {error}") from error
                time.sleep(_POLL)


def free_port() -> int:
    """A port of loopback where nothing listens now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
