# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.configuration import read_configuration
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.losses import (
    _changed_forwards,
    _lost_passwords,
)

# As QEMU 10.0.2 answered to "info usernet".
USERNET = """Hub -1 (n1):\r
  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r
  TCP[ESTABLISHED]   14       10.0.2.15 41002       10.0.2.2    80     0     0\r
  TCP[HOST_FORWARD]   3       127.0.0.1 12345       10.0.2.15    22     0     0\r
Hub -1 (n2):\r
  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r
  UDP[HOST_FORWARD]   8               * 12346       10.0.2.15    53     0     0\r
""".splitlines()
BOTH = "-netdev user,id=n1,hostfwd=tcp:127.0.0.1:12345-:22 -nic user,hostfwd=udp::12346-:53"


def configured(words):
    return read_configuration(["/usr/bin/qemu-system-x86_64", "-no-user-config", *words.split()])


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        (BOTH, []),
        ("-netdev user,id=n,hostfwd=tcp::12345-:22,hostfwd=udp::12346-10.0.2.15:53", []),
        ("-netdev user,id=n,hostfwd=::12345-:22,hostfwd=udp::0-:53", []),
        ("-netdev user,id=n,hostfwd=tcp::0-:22,hostfwd=udp::0-:53", []),
        ('-netdev {"type":"user","hostfwd":[{"str":"tcp::12345-:22"},{"str":"udp::12346-:1"}]}', []),
        ("-netdev user,id=n,hostfwd=udp::12346-:53", ["12345/tcp was forwarded"]),
        ("-net user", ["12345/tcp was forwarded", "12346/udp was forwarded"]),
        (f"{BOTH},hostfwd=tcp:[::1]:80-:80", ["80/tcp was taken back"]),
        ("-netdev user,id=n,hostfwd=tcp::12345-:22,hostfwd=tcp::0-:53", ["12346/udp was forwarded"]),
    ],
)
def test_forwarded_ports(words, changes):
    found = list(_changed_forwards(USERNET, configured(words)))
    assert len(found) == len(changes)
    for problem, change in zip(found, changes):
        assert change in problem.what
        assert not problem.blocks


@pytest.mark.parametrize(
    ("words", "kinds"),
    [
        ("-vnc :1", []),
        ("-vnc :1,password=on", ["vnc_password"]),
        ("-vnc :1,password", ["vnc_password"]),
        ("-vnc :1,nopassword", []),
        ("-vnc none,password=on", []),
        ("-vnc :1,password=on,password-secret=s", []),
        ("-display vnc=:1,password=on", ["vnc_password"]),
        ("-display gtk", []),
        ("-spice port=5900", ["spice_password"]),
        ("-spice port=5900,disable-ticketing=on", []),
        ("-spice port=5900,disable-ticketing", []),
        ("-spice port=5900 -spice password-secret=s", []),
        ("-spice port=5900,password=x", []),
        ("-spice port=5900,sasl=on", []),
        ("-spice port=5900 -vnc :1,password=on", ["vnc_password", "spice_password"]),
    ],
)
def test_passwords(words, kinds):
    assert [problem.kind for problem in _lost_passwords(configured(words))] == kinds
