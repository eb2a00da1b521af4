# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A wrapper that starts a QEMU and listens for it, for a module that launches its QEMU itself and wants to see that.

``python listening_wrapper.py PATH HANDOVER QEMU ARGUMENTS…`` listens at PATH, hands the listening socket over to the
proxy that waits for it at HANDOVER (support.monitor_proxy), starts QEMU, and waits for its end. The peer of whoever
connects is then this process, which is QEMU's parent.
"""

from __future__ import annotations

import socket
import subprocess
import sys


def main(path: str, handover: str, *command: str) -> int:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as proxy:
            proxy.connect(handover)
            socket.send_fds(proxy, [b"listener"], [listener.fileno()])
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
