# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""To which servers a QEMU connects when it starts, by its words."""

from __future__ import annotations

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.configuration import read_configuration
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.servers import (
    Server,
    client_sockets,
    server_problems,
    state_problems,
    tpm_sockets,
)


def configuration(*words):
    return read_configuration(["qemu-system-x86_64", "-no-user-config", *words])


@pytest.mark.parametrize(
    ("words", "sockets"),
    [
        (
            ["-chardev", "socket,id=c0,path=/s", "-device", "vhost-user-blk-pci,chardev=c0,id=d0"],
            {"/s": "its vhost-user-blk-pci d0"},
        ),
        (["-chardev", "socket,id=c0,path=s", "-serial", "chardev:c0"], {"/vm/s": "its character device c0"}),
        (
            ["-chardev", "socket,id=c0,path=/s", "-netdev", "vhost-user,id=n0,chardev=c0"],
            {"/s": "its vhost-user n0"},
        ),
        (["-chardev", "socket,id=c0,path=/s,server=on,wait=off"], {}),
        (["-chardev", "socket,id=c0,path=/s,reconnect=1"], {}),
        (["-chardev", "socket,id=c0,path=/s,reconnect-ms=100"], {}),
        (["-chardev", "socket,id=c0,path=/s,abstract=on"], {}),
        (["-chardev", "socket,id=c0,host=h,port=1"], {}),
        (["-serial", "unix:/s"], {"/s": "its -serial"}),
        (["-serial", "unix:/s,server=on,wait=off"], {}),
        (["-netdev", "stream,id=n0,addr.type=unix,addr.path=/s"], {"/s": "its network n0"}),
        (
            ["-netdev", '{"type":"stream","id":"n0","addr":{"type":"unix","path":"/s"}}'],
            {"/s": "its network n0"},
        ),
        (["-netdev", "stream,id=n0,server=on,addr.type=unix,addr.path=/s"], {}),
        (["-netdev", "stream,id=n0,addr.type=inet,addr.host=h,addr.port=1"], {}),
        (["-drive", "file=nbd+unix:///disk?socket=/s,id=d0"], {"/s": "its disk d0"}),
        (["-drive", "file=nbd:unix:/s:exportname=disk,id=d0"], {"/s": "its disk d0"}),
        (["-blockdev", "driver=nbd,node-name=n0,server.type=unix,server.path=/s"], {"/s": "its disk n0"}),
        (
            [
                "-blockdev",
                '{"driver":"qcow2","node-name":"n0","file":{"driver":"nbd","server":{"type":"unix","path":"/s"}}}',
            ],
            {"/s": "its disk n0"},
        ),
        (["-drive", "file=nbd://host/disk,id=d0"], {}),
        (["-object", "pr-manager-helper,id=p0,path=/s"], {"/s": "its -object"}),
        (["-chardev", "socket,id=t,path=/s", "-tpmdev", "emulator,id=tpm0,chardev=t"], {}),
    ],
)
def test_sockets_to_which_it_connects(words, sockets):
    assert client_sockets(configuration(*words), "/vm") == sockets


def test_socket_of_a_tpm():
    found = configuration("-chardev", "socket,id=t,path=s", "-tpmdev", "emulator,id=tpm0,chardev=t")
    assert tpm_sockets(found, "/vm") == {"tpm0": "/vm/s"}
    assert tpm_sockets(configuration("-tpmdev", "passthrough,id=tpm0"), "/vm") == {}


def test_server_in_a_unit_is_started_by_that():
    by_hand, transient = Server("/s", "its disk", "qemu-nbd"), Server("/s", "its disk", "qemu-nbd", "run-r1.service")
    own = Server("/s", "its disk", "qemu-nbd", "nbd.service")
    assert [len(server_problems([server], by_unit=False)) for server in (by_hand, transient, own)] == [1, 1, 0]
    assert server_problems([by_hand], by_unit=True) == []


def test_file_system_whose_server_keeps_state():
    words = ("-chardev", "socket,id=c0,path=/s", "-device", "vhost-user-fs-pci,chardev=c0,tag=t0,id=fs0")
    (problem,) = state_problems(configuration(*words))
    assert problem.blocks
    assert "fs0" in problem.what
