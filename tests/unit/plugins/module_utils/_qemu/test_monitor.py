# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The way to a monitor; what is said there needs a QEMU, and is tested with one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
import time

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._cancellation import within
from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    MonitorBusyError,
    MonitorMissingError,
    MonitorProtocolError,
)
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.dial import open_socket
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.monitor import Monitor
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.socket_end import other_end

BUSY = MonitorBusyError("busy")


def connect(address: str) -> tuple[object, int | None]:
    """Where a connection leads to, and to whose process."""

    async def open_and_close() -> tuple[object, int | None]:
        with await open_socket(address, 5, BUSY) as connection:
            return connection.getpeername(), other_end(connection).listener

    return asyncio.run(open_and_close())


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "", "[127.0.0.1]"])
def test_a_tcp_address(host, port):
    if host in ("localhost", ""):
        try:
            socket.getaddrinfo("localhost", port)
        except OSError as error:  # without /etc/hosts, as debootstrap leaves a system
            pytest.skip(f"localhost has no address here: {error}")
    assert connect(f"{host}:{port}") == (("127.0.0.1", port), None)


def test_all_addresses_of_a_name_are_tried(port, monkeypatch):
    """QEMU may listen at 127.0.0.1 only, where localhost stands for ::1 as well."""

    async def two_addresses(_loop, _host, port, **_options):
        return [(socket.AF_INET, 1, 6, "", (place, port)) for place in ("127.0.0.2", "127.0.0.1")]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", two_addresses)
    assert connect(f"localhost:{port}") == (("127.0.0.1", port), None)


@pytest.mark.parametrize(("directory", "name"), [("run", "qmp"), ("run", "with:4444"), ("a" * 120, "qmp")])
def test_the_path_of_a_unix_socket(directory, name, tmp_path, monkeypatch):
    path = tmp_path / directory / name
    path.parent.mkdir()
    monkeypatch.chdir(path.parent)  # as QEMU does it, whose own path for a socket may be relative
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)
        server.listen()
        assert connect(str(path))[1] == os.getpid()


def test_a_name_that_no_unix_socket_can_have(tmp_path):
    path = tmp_path / ("a" * 120)
    with pytest.raises(MonitorMissingError, match="does not exist"):
        asyncio.run(Monitor.connect(str(path)))
    path.touch()
    with pytest.raises(MonitorMissingError, match="no QEMU behind it"):
        asyncio.run(Monitor.connect(str(path)))


def test_an_abstract_address():
    name = f"\0vmops/test-{os.getpid()}:4444"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)
        server.listen()
        assert connect(name) == (name.encode(), os.getpid())


def test_nothing_there(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        for address, message in (
            (f"127.0.0.1:{unused.getsockname()[1]}", "Nothing answers"),
            (str(tmp_path / "none"), "none does not exist"),
            ("\0vmops-test-none", "@vmops-test-none has no QEMU behind it"),
        ):
            with pytest.raises(MonitorMissingError, match=message):
                asyncio.run(Monitor.connect(address))


@pytest.fixture
def negotiations(tmp_path):
    """A server of QMP that says this before its answers, a list for each of its clients; its path, and the lists."""
    path = str(tmp_path / "qmp")
    before: list[list[bytes]] = []
    greeting = (
        b'{"QMP": {"version": {"qemu": {"major": 10, "minor": 0, "micro": 2}, "package": ""}, "capabilities": []}}'
    )

    def serve(server):
        while True:
            try:
                connection, _address = server.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.sendall(greeting + b"\r\n")
                connection.recv(65536)
                for line in [*(before.pop(0) if before else []), b'{"return": {}}']:
                    connection.sendall(line + b"\r\n")
                connection.recv(65536)

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        thread = threading.Thread(target=serve, args=(server,), daemon=True)
        thread.start()
        yield path, before
        server.shutdown(socket.SHUT_RDWR)
    thread.join()


EVENT = b'{"event": "MIGRATION", "data": {"status": "completed"}, "timestamp": {"seconds": 1, "microseconds": 0}}'
REFUSAL = b'{"id": "another", "error": {"class": "GenericError", "desc": "what another client had asked for"}}'


@pytest.mark.parametrize("first", [[EVENT], [REFUSAL], [EVENT, REFUSAL]])
def test_what_comes_before_the_answer_of_the_negotiation(negotiations, first):
    path, before = negotiations
    before += [first, first]

    async def open_and_close():
        await (await Monitor.connect(path)).close()

    asyncio.run(open_and_close())
    assert not before


def test_what_always_comes_before_it(negotiations):
    path, before = negotiations
    before += [[EVENT]] * 100
    with pytest.raises(MonitorProtocolError, match="negotiation of capabilities"):
        asyncio.run(Monitor.connect(path))


def test_a_full_backlog_is_a_busy_monitor(tmp_path):
    path = str(tmp_path / "qmp")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen(0)
        with socket.socket(socket.AF_UNIX) as other:
            other.connect(path)
            with pytest.raises(MonitorBusyError):
                connect(path)


@pytest.mark.parametrize("steps", range(6))
def test_a_cancellation_is_never_dropped(steps):
    """Also not one that arrives when the work is just done, as asyncio.wait_for does before Python 3.12."""

    async def main():
        answer = asyncio.get_running_loop().create_future()

        async def work():
            return await answer

        task = asyncio.ensure_future(within(5, work()))
        for _step in range(3):
            await asyncio.sleep(0)
        answer.set_result("done")
        for _step in range(steps):
            await asyncio.sleep(0)
        was_done = task.done()
        task.cancel()
        try:
            return was_done, await task
        except asyncio.CancelledError:
            return was_done, "cancelled"

    was_done, outcome = asyncio.run(main())
    assert outcome == ("done" if was_done else "cancelled")


def test_within_goes_on_as_long_as_there_is_activity():
    figures = iter([0, 1, 2, 2])

    async def work():
        await asyncio.sleep(60)

    async def run():
        started = time.monotonic()
        with pytest.raises(asyncio.TimeoutError):
            await within(0.05, work(), lambda: next(figures))
        return time.monotonic() - started

    assert 0.15 <= asyncio.run(run()) < 10
    assert next(figures, None) is None
