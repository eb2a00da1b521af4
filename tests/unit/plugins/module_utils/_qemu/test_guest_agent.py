# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A guest's agent may say what it likes: it is bounded in bytes and time, and none of its words are told."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._errors import GuestAgentError
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import guest_agent
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.guest_agent import AgentSocket, set_clock
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import QemuProcess

PROCESS = QemuProcess(os.getpid(), "web1", ("qemu",), "/", "/usr/bin/qemu", 0, 0, birth=1)
COMMANDS = ("guest-info", "guest-set-time", "guest-get-time")
SECRET = "\x1b[31mwords of the guest"


class FakeAgent:
    """It answers as a guest agent, and what a test says to some commands."""

    def __init__(self, path, commands=COMMANDS, **answers):
        self.path = str(path)
        self.commands = commands
        self.answers = answers
        self.asked = []
        self.clock = 0

    def answer(self, command, arguments):
        given = self.answers.get(command.replace("-", "_"))
        if given is not None:
            return given if isinstance(given, bytes) else json.dumps(given).encode() + b"\n"
        found: object = {}
        if command == "guest-sync-delimited":
            return b"\xff" + json.dumps({"return": arguments["id"]}).encode() + b"\n"
        if command == "guest-info":
            found = {"supported_commands": [{"name": name, "enabled": True} for name in self.commands]}
        elif command == "guest-set-time":
            self.clock = arguments["time"]
        elif command == "guest-get-time":
            found = self.clock
        return json.dumps({"return": found}).encode() + b"\n"

    async def serve(self, reader, writer):
        try:
            while True:
                line = await reader.readline()
                if not line:
                    break
                request = json.loads(line.rpartition(b"\xff")[2])
                self.asked.append(request["execute"])
                answer = self.answer(request["execute"], request.get("arguments", {}))
                if answer == b"hang up":
                    break
                writer.write(answer)
                while answer == b"x" * 65536:
                    writer.write(answer)
                    await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    def run(self):
        """Have the clock set; what was the matter, or None."""

        async def work():
            server = await asyncio.start_unix_server(self.serve, self.path)
            try:
                await set_clock(AgentSocket(PROCESS, "a0", self.path))
            except GuestAgentError as exc:
                return str(exc)
            finally:
                server.close()

        return asyncio.run(work())


@pytest.fixture
def trusted(monkeypatch):
    """As if the server were the VM's QEMU."""
    monkeypatch.setattr(guest_agent, "process_at", lambda _end: PROCESS)
    monkeypatch.setattr(guest_agent, "_SYNC_TIMEOUT", 0.3)
    monkeypatch.setattr(guest_agent, "_TIMEOUT", 1.0)


def test_the_hosts_time(tmp_path, trusted):
    agent = FakeAgent(tmp_path / "a")
    assert agent.run() is None
    assert abs(agent.clock / 1e9 - time.time()) < 1
    assert agent.asked == ["guest-sync-delimited", *COMMANDS]


def test_old_agent_without_its_clock(tmp_path, trusted):
    agent = FakeAgent(tmp_path / "a", COMMANDS[:2])
    assert agent.run() is None
    assert agent.clock


def test_error_after_the_clock_was_set(tmp_path, trusted):
    """As from a guest without hwclock: its clock tells."""
    agent = FakeAgent(tmp_path / "a", guest_set_time={"error": {"desc": SECRET}})
    agent.clock = time.time_ns()
    assert agent.run() is None


def test_answers_to_others_are_left_behind(tmp_path, trusted):
    class Interrupted(FakeAgent):
        def answer(self, command, arguments):
            before = b'{"return": 1}\n{"ret' if "sync" in command else b""
            return before + super().answer(command, arguments)

    assert Interrupted(tmp_path / "a").run() is None


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ({"guest_sync_delimited": b""}, "did not answer within"),
        ({"guest_sync_delimited": {"return": 7}}, "did not answer within"),
        ({"guest_sync_delimited": b"hang up"}, "hung up"),
        ({"guest_sync_delimited": b"x" * 65536}, "says more than 512 KiB"),
        ({"guest_sync_delimited": b"[" * 100000 + b"\n"}, "did not answer within"),
        ({"guest_sync_delimited": b"9" * 300000 + b"\n"}, "did not answer within"),
        ({"guest_info": {"error": {"class": SECRET, "desc": SECRET}}}, "does not set clocks"),
        ({"guest_info": {"return": {"supported_commands": [SECRET, 1, None]}}}, "does not set clocks"),
        ({"guest_info": {"return": SECRET}}, "does not set clocks"),
        ({"guest_info": b""}, "did not do it within"),
        ({"guest_set_time": {"error": {"desc": SECRET}}}, "did not set the clock"),
        ({"guest_get_time": {"return": SECRET}}, "did not set the clock"),
        ({"guest_get_time": {"return": 10**999}}, "did not set the clock"),
        ({"guest_get_time": {"return": 1}}, "did not set the clock"),
        ({"guest_get_time": b"hang up"}, "hung up"),
    ],
)
def test_strange_agent(answers, told, tmp_path, trusted):
    started = time.monotonic()
    said = FakeAgent(tmp_path / "a", **answers).run()
    assert told in said
    assert SECRET not in said
    assert time.monotonic() - started < 5


def test_command_that_is_not_enabled(tmp_path, trusted):
    commands = [{"name": "guest-set-time", "enabled": False}]
    agent = FakeAgent(tmp_path / "a", guest_info={"return": {"supported_commands": commands}})
    assert "does not set clocks" in agent.run()
    assert agent.asked == ["guest-sync-delimited", "guest-info"]


def test_nothing_is_said_to_another_process(tmp_path):
    """This test's process is no QEMU."""
    agent = FakeAgent(tmp_path / "a")
    assert "another process" in agent.run()
    assert agent.asked == []


def test_no_such_socket(tmp_path):
    for address in (str(tmp_path / "none"), "\0vmops-none", "localhost:1", None, ""):
        with pytest.raises(GuestAgentError):
            asyncio.run(set_clock(AgentSocket(PROCESS, "a0", address)))


def test_socket_with_a_full_queue(tmp_path):
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as other:
        server.bind(str(tmp_path / "a"))
        server.listen(0)
        other.connect(str(tmp_path / "a"))
        with pytest.raises(GuestAgentError, match="other clients hold"):
            asyncio.run(set_clock(AgentSocket(PROCESS, "a0", str(tmp_path / "a"))))
