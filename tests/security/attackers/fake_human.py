# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A process that says it is a QEMU with a human monitor: fake_human.py KIND -name NAME -monitor unix:PATH,server=on.

What that does is KIND. Runs as the attacker, with the host's own Python.
"""

import sys
import time

from qmp_server import serve_all, unix_server

kind = sys.argv[1]
path = sys.argv[-1].split(":", 1)[1].split(",")[0]

PROMPT = b"(qemu) "
LEFTOVERS = b"".join(b"vmops-1-%d-1-1: filename=null\r\n" % number for number in range(2000))


def serve(connection):
    if kind == "silent":
        time.sleep(600)
    while kind == "endless":
        connection.sendall(b"x" * 65536)
    if kind == "one-by-one":
        while True:
            connection.sendall(b"x")
            time.sleep(0.5)
    connection.sendall(b"QEMU monitor\r\n" + PROMPT)
    while True:
        command = connection.recv(4096)
        if not command or kind == "hangs-up":
            return
        if kind == "mute":
            continue
        said = LEFTOVERS if command.startswith(b"info") else b"\x1b[31m" + b"no " * 20000 if kind == "talks" else b""
        connection.sendall(command.strip() + b"\r\n" + said + b"\r\n" + PROMPT)


serve_all(unix_server(path), serve)
