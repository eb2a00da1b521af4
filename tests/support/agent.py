# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Somebody's client of a socket of QEMU's."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from typing import Union


class Agent:
    """It holds the connection for good, and takes it again as soon as a QEMU opens the socket anew."""

    def __init__(self, path: Union[str, os.PathLike[str]]) -> None:
        self._path = os.fspath(path)
        self._end = threading.Event()
        #: Whether it has been there.
        self.connected = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while not self._end.is_set():
            with socket.socket(socket.AF_UNIX) as connection, contextlib.suppress(OSError):
                connection.settimeout(0.05)
                connection.connect(self._path)
                self.connected.set()
                while not self._end.is_set():
                    with contextlib.suppress(socket.timeout):
                        if not connection.recv(65536):
                            break
            time.sleep(0.001)

    def close(self) -> None:
        """Let go of it."""
        self._end.set()
        self._thread.join()
