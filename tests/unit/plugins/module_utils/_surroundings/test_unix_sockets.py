# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who listens at a path, and who holds the other end of a connection, as the kernel has it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.unix_sockets import (
    is_listened_at,
    listeners_at,
    server_at,
    servers_behind,
)


@pytest.fixture
def listen(tmp_path, monkeypatch):
    opened = []

    def at(name, directory=tmp_path):
        directory.mkdir(exist_ok=True)
        monkeypatch.chdir(directory)
        opened.append(socket.socket(socket.AF_UNIX))
        opened[-1].bind(str(name))
        opened[-1].listen()
        return opened[-1]

    yield at
    for each in opened:
        each.close()


@pytest.mark.parametrize("relative", [True, False])
def test_somebody_listens(listen, tmp_path, relative):
    path = tmp_path / ".sock"
    assert not is_listened_at(str(path))
    listener = listen(path.name if relative else path)
    assert is_listened_at(str(path))
    assert listeners_at(str(path)) == [os.getpid()]
    listener.close()
    assert path.is_socket()
    assert not is_listened_at(str(path))


def test_link_to_the_socket_or_its_directory(listen, tmp_path):
    listen("s")
    (tmp_path / "link").symlink_to("s")
    (tmp_path / "directory").symlink_to(tmp_path)
    assert is_listened_at(str(tmp_path / "link"))
    assert is_listened_at(str(tmp_path / "directory" / "s"))


def test_socket_of_the_same_relative_name(listen, tmp_path):
    listen("s", tmp_path / "a")
    assert is_listened_at(str(tmp_path / "a" / "s"))
    assert not is_listened_at(str(tmp_path / "s"))
    (tmp_path / "b").mkdir()
    assert not is_listened_at(str(tmp_path / "b" / "s"))


def test_another_socket_in_its_place(listen, tmp_path):
    """Whoever listened there first still does, and nobody reaches him."""
    listen(tmp_path / "s")
    os.unlink(tmp_path / "s")
    bound = socket.socket(socket.AF_UNIX)
    with bound:
        bound.bind(str(tmp_path / "s"))
        assert not is_listened_at(str(tmp_path / "s"))


def test_server_behind_a_connection(listen, tmp_path):
    code = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); print(flush=True); input()"
    listener = listen("s")
    client = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "s")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        accepted, _address = listener.accept()
        assert client.stdout
        client.stdout.readline()
        with accepted:
            behind = servers_behind(client.pid)
            assert server_at(str(tmp_path / "s"), behind) == os.getpid()
            assert server_at(str(tmp_path / "t"), behind) is None
    finally:
        client.communicate(b"\n")
