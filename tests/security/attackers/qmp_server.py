# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the attackers' QMP servers have in common. They run with the host's own Python, and this file beside them."""

import contextlib
import json
import os
import socket
import threading


def requests(receive):
    """The client's requests; nothing need stand between two of them.

    :param receive: gives the next bytes of them; none at their end.
    """
    text, decoder = "", json.JSONDecoder()
    while True:
        piece = receive()
        if not piece:
            return
        text = (text + piece.decode()).lstrip()
        while text:
            try:
                request, end = decoder.raw_decode(text)
            except ValueError:
                break
            text = text[end:].lstrip()
            yield request


def reply(connection, request, value):
    """Answer a request, with its id where it has one."""
    answer = {"return": value}
    if "id" in request:
        answer["id"] = request["id"]
    connection.sendall(json.dumps(answer).encode() + b"\n")


def unix_server(path):
    """A socket that anyone may connect to."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    os.chmod(path, 0o777)
    return server


def serve_all(server, serve):
    """Serve each client in a thread of its own, for ever."""

    def run(connection):
        with contextlib.suppress(OSError, ValueError), connection:
            serve(connection)

    server.listen(5)
    print("ready", flush=True)
    while True:
        client, _address = server.accept()
        threading.Thread(target=run, args=(client,), daemon=True).start()
