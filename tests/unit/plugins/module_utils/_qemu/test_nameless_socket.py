# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A socket that has lost its name is reached through the process that listens on it, and no other one is."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.nameless_socket import (
    NamelessSocketError,
    name_of_listener,
)

from support.descriptors import COPIES_DESCRIPTORS

only_root = pytest.mark.skipif(
    os.geteuid() != 0 or not COPIES_DESCRIPTORS,
    reason="only root reaches a socket without a name, where descriptors can be taken from another process",
)

LISTEN = """
import socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print(flush=True)
while True:
    connection, _address = listener.accept()
    connection.sendall(sys.argv[2].encode())
    connection.close()
"""


@pytest.fixture
def listen(tmp_path):
    """Have a process listen: ``listen(path, "what it says")``."""
    started = []

    def start(path, says="hello", cwd=tmp_path):
        words = [sys.executable, "-c", LISTEN, str(path), says]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, cwd=cwd)
        started.append(process)
        assert process.stdout
        assert process.stdout.readline()
        return process.pid

    yield start
    for process in started:
        process.kill()
        process.communicate()


def said_at(path):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        return client.recv(100).decode()


@only_root
@pytest.mark.parametrize("spelling", ["absolute", "relative"])
def test_path_that_is_gone(listen, tmp_path, spelling):
    path = tmp_path / "s"
    pid = listen(path if spelling == "absolute" else "s")
    path.unlink()
    with name_of_listener(pid, str(path), str(tmp_path)) as name:
        assert said_at(name) == "hello"
    assert not os.path.exists(name), "its descriptor is closed"


@only_root
def test_path_that_another_one_has(listen, tmp_path):
    """Each is reached, and not the other one."""
    path = tmp_path / "s"
    first = listen(path, "the first")
    path.unlink()
    second = listen(path, "the second")
    with name_of_listener(first, str(path), "/") as name:
        assert said_at(name) == "the first"
    assert said_at(str(path)) == "the second"
    with pytest.raises(NamelessSocketError, match="it has its path"), name_of_listener(second, str(path), "/"):
        pass


def test_process_that_does_not_listen(listen, tmp_path):
    """Although another one does, at a path of that name."""
    path = tmp_path / "s"
    listen(path)
    path.unlink()
    with pytest.raises(NamelessSocketError, match="does not listen there any more"):
        name_of_listener(os.getpid(), str(path), "/").__enter__()


def test_process_that_is_bound_there_but_does_not_listen(tmp_path):
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))
        path.unlink()
        with pytest.raises(NamelessSocketError, match="does not listen"):
            name_of_listener(os.getpid(), str(path), "/").__enter__()


def test_process_that_has_ended(tmp_path):
    child = subprocess.Popen(["true"])
    child.wait()
    with pytest.raises(NamelessSocketError):
        name_of_listener(child.pid, str(tmp_path / "s"), "/").__enter__()


@only_root
def test_no_descriptor_is_left(listen, tmp_path):
    path = tmp_path / "s"
    pid = listen(path)
    before = os.listdir("/proc/self/fd")
    for _time in range(3):
        with pytest.raises(NamelessSocketError), name_of_listener(pid, str(path), "/"):
            pass
    path.unlink()
    with name_of_listener(pid, str(path), "/"):
        pass
    assert os.listdir("/proc/self/fd") == before
