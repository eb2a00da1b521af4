# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._proc import birth_of
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.socket_end import SocketEnd, other_end

LISTEN = """
import socket, sys
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen()
print("ready", flush=True)
connection = server.accept()[0]
sys.stdin.read()
"""


def inode(connection: socket.socket) -> int:
    return os.fstat(connection.fileno()).st_ino


def test_unix_socket_of_another_process(tmp_path):
    path = str(tmp_path / "socket")
    command = [sys.executable, "-c", LISTEN, path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(path)
            end = other_end(connection)
            assert (end.listener, end.uid) == (process.pid, os.geteuid())
            assert end.listener_birth in (None, birth_of(process.pid))
            process.stdin.close()
            process.wait()
            # It may have left its number to another one.
            assert other_end(connection).listener_birth is None


@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET, socket.AF_INET6])
def test_who_holds_the_other_end(tmp_path, family):
    address = str(tmp_path / "socket") if family == socket.AF_UNIX else ("127.0.0.1", 0)
    if family == socket.AF_INET6:
        address = ("::1", 0)
    with socket.socket(family) as server:
        try:
            server.bind(address)
        except OSError:
            pytest.skip("this host has no such addresses")
        server.listen()
        with socket.socket(family) as connection:
            connection.connect(server.getsockname())
            with server.accept()[0] as accepted:
                end = other_end(connection)
                if end.inode is None:
                    pytest.skip("this kernel does not tell of sockets")
                assert (end.inode, end.uid) == (inode(accepted), os.geteuid())
                assert end.is_held_by(os.getpid())
                assert end.is_held_by(os.getppid()) in (False, None)
            assert not end.is_held_by(os.getpid())


def test_dual_stack_server():
    if not socket.has_dualstack_ipv6():
        pytest.skip("this host has no such addresses")
    server = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    port = server.getsockname()[1]
    with server, socket.create_connection(("127.0.0.1", port)) as connection, server.accept()[0] as accepted:
        assert other_end(connection).inode in (None, inode(accepted))


def test_nothing_is_known():
    assert SocketEnd().is_held_by(os.getpid()) is None
    assert SocketEnd(inode=1).is_held_by(2**22 + 1) is None
