# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A process that says it is a QEMU: fake_qemu.py KIND -name NAME -qmp unix:PATH,server=on.

What its monitor does is KIND. Runs as the attacker, with the host's own Python.
"""

import json
import sys
import time

from qmp_server import requests, serve_all, unix_server

kind = sys.argv[1]
path = sys.argv[-1].split(":", 1)[1].split(",")[0]
name = sys.argv[sys.argv.index("-name") + 1]

GREETING = b'{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": ""}, "capabilities": []}}\n'
EVENT = {"event": "STOP", "timestamp": {"seconds": 1700000000, "microseconds": 1}}

answers: "dict[str, object]" = {
    "query-name": {"name": name},
    "query-uuid": {"UUID": "00000000-0000-0000-0000-000000000001"},
    "query-memory-size-summary": {"base-memory": 16 << 20},
    "qom-get": "pc-i440fx-10.0-machine",
    "query-kvm": {"enabled": False, "present": False},
    "query-cpus-fast": [{"qom-path": "/machine/cpu"}],
    "query-target": {"arch": "x86_64"},
    "query-status": {"status": "running", "running": True},
    "query-version": {"qemu": {"major": 10, "minor": 0, "micro": 2}, "package": ""},
    "query-migrate-capabilities": [
        {"capability": capability, "state": False} for capability in ("events", "mapped-ram", "multifd")
    ],
    "query-migrate-parameters": {"max-bandwidth": 1 << 27, "multifd-channels": 2, "direct-io": False},
    "query-block": [],
    "query-named-block-nodes": [],
    "query-block-exports": [],
    "query-chardev": [],
    "query-display-options": {"type": "none"},
    "query-iothreads": [],
    "query-jobs": [],
    "query-memdev": [],
    "query-memory-devices": [],
    "query-migrate": {},
    "x-debug-query-block-graph": {"nodes": [], "edges": []},
    "qom-list": [],
    "human-monitor-command": "",
    "query-fdsets": [],
    "query-yank": [],
    "x-query-ramblock": {"human-readable-text": ""},
}

WRONG: "dict[str, dict[str, object]]" = {
    "negative-memory": {"query-memory-size-summary": {"base-memory": -(1 << 50)}},
    "absurd-memory": {"query-memory-size-summary": {"base-memory": 16 << 20, "plugged-memory": 10**30}},
    "no-channels": {"query-migrate-parameters": {"max-bandwidth": -5, "multifd-channels": 0}},
    "no-events": {"query-migrate-capabilities": [{"capability": "mapped-ram", "state": False}]},
    "more-pmem-than-memory": {
        "query-memory-devices": [
            {"type": "virtio-pmem", "data": {"id": "x", "memdev": "/objects/x", "size": 1 << 50}},
        ]
    },
    "long-name": {"query-name": {"name": "x" * 1000000}},
    "long-line": {"x-query-ramblock": {"human-readable-text": "a" + " " * 2000000}},
}
answers.update(WRONG.get(kind, {}))


def flood(connection):
    """Events without end."""
    line = json.dumps({**EVENT, "data": {"x": "y" * 200}}).encode() + b"\r\n"
    while True:
        connection.sendall(line * 200)


def raw_answer(connection, head, piece, count, tail):
    connection.sendall(head)
    for _index in range(count):
        connection.sendall(piece)
    connection.sendall(tail)


def answer(connection, request):
    head = b'{"id": ' + json.dumps(request["id"]).encode() + b', "return": '
    if request["execute"] == "query-name":
        if kind == "endless-answer":
            raw_answer(connection, head + b'{"name": "', b"x" * 1048576, 3072, b'"}}\n')
        elif kind == "millions-of-values":
            raw_answer(connection, head + b'{"name": "x", "y": [{}', b",{}" * 1000, 1200, b"]}}\n")
        elif kind == "deep":
            raw_answer(connection, head, b"[" * 1000, 400, b"\n")
        elif kind == "long-number":
            raw_answer(connection, head + b'{"name": ', b"7" * 1000, 2000, b"}}\n")
        elif kind == "late-event":
            late = {**EVENT, "timestamp": {"seconds": 10**30, "microseconds": 0}}
            connection.sendall(json.dumps(late).encode() + b"\n")
        elif kind == "early-event":
            early = {**EVENT, "timestamp": {"seconds": -(10**9), "microseconds": 0}}
            connection.sendall(json.dumps(early).encode() + b"\n")
    connection.sendall(head + json.dumps(answers.get(request["execute"], {})).encode() + b"}\n")


def serve(connection):
    if kind == "endless-greeting":
        raw_answer(connection, b'{"QMP": "', b"x" * 1048576, 4096, b'"}\n')
    if kind == "slow-greeting":
        for byte in GREETING:
            connection.sendall(bytes([byte]))
            time.sleep(1)
    connection.sendall(GREETING)
    if kind == "events":
        connection.recv(4096)
        connection.sendall(b'{"return": {}}\n')
        flood(connection)
    for request in requests(lambda: connection.recv(4096)):
        if request["execute"] == "qmp_capabilities" and "id" not in request:
            connection.sendall(b'{"return": {}}\n')
            continue
        answer(connection, request)


serve_all(unix_server(path), serve)
