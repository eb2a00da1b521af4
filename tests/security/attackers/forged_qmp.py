# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A QMP server that is no QEMU: forged_qmp.py ADDRESS NAME NOTE RUN_STATE.

It says that a run was cut off in it, by the note of an fdset. ADDRESS is a path or HOST:PORT. Runs as the attacker,
with the host's own Python.
"""

import json
import socket
import sys

from qmp_server import reply, requests, serve_all, unix_server

address, name, note, run_state = sys.argv[1:]

answers = {
    "query-name": {"name": name} if name else {},
    "query-uuid": {"UUID": "00000000-0000-0000-0000-000000000000"},
    "query-memory-size-summary": {"base-memory": 64 << 20},
    "qom-get": "pc-i440fx-10.0-machine",
    "query-kvm": {"enabled": False, "present": False},
    "query-cpus-fast": [{"qom-path": "/machine/cpu"}],
    "query-target": {"arch": "x86_64"},
    "query-status": {"status": run_state, "running": run_state == "running"},
    "query-version": {"qemu": {"major": 10, "minor": 0, "micro": 2}, "package": ""},
    "query-migrate": {"status": "failed"},
    "query-migrate-capabilities": [{"capability": "mapped-ram", "state": False}],
    "query-migrate-parameters": {"max-bandwidth": 1 << 27, "multifd-channels": 2, "direct-io": False},
    "query-fdsets": [{"fdset-id": 0, "fds": [{"fd": 9, "opaque": note}]}],
    "query-memory-devices": [],
    "query-block": [],
    "query-named-block-nodes": [],
    "query-jobs": [],
    "query-chardev": [],
    "query-iothreads": [],
    "qom-list": [],
    "query-yank": [],
    "x-query-ramblock": {"human-readable-text": ""},
}

GREETING = {"QMP": {"version": answers["query-version"], "capabilities": []}}


def serve(connection):
    connection.sendall(json.dumps(GREETING).encode() + b"\n")
    for request in requests(lambda: connection.recv(4096)):
        reply(connection, request, answers.get(request["execute"], {}))
        # It does what makes a run take the process behind it for one that hangs.
        if request["execute"] == "quit":
            return


if "/" in address:
    server = unix_server(address)
else:
    server = socket.create_server((address.split(":")[0], int(address.split(":")[1])))
serve_all(server, serve)
