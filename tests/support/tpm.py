# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""An emulated TPM for a guest: a swtpm, as people start it by hand."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from .linux import LinuxGuest
from .observe import wait_until
from .process import read_argv


class Swtpm:
    """A swtpm beside a guest; one that somebody else has started again in its place is found by its socket's path."""

    def __init__(
        self, directory: Path, prefix: Sequence[str] = (), options: Sequence[str] = (), relative: bool = False
    ) -> None:
        """Nothing is started yet.

        prefix: what executes it; options: more of its own; relative: its paths count from the directory.
        """
        self._directory = directory
        self._relative = relative
        self.socket = directory / "tpm.sock"
        self.state = directory / "tpm"
        self.state.mkdir(exist_ok=True, mode=0o700)
        self._prefix = list(prefix)
        self._options = list(options)
        self._process: Optional[subprocess.Popen[bytes]] = None

    def argv(self) -> list[str]:
        """Its command line."""
        state, path = (self.state.name, self.socket.name) if self._relative else (self.state, self.socket)
        own = ["--tpm2", "--tpmstate", f"dir={state}", "--ctrl", f"type=unixio,path={path}"]
        return [*self._prefix, "swtpm", "socket", *own, *self._options]

    def start(self) -> None:
        """Start it, and wait until it serves."""
        if self._process is not None:
            self._process.wait()  # its QEMU has told it to end
        self._process = subprocess.Popen(
            self.argv(), stdin=subprocess.DEVNULL, cwd=self._directory, start_new_session=True
        )
        wait_until(self.socket.exists)

    def qemu_args(self, device: str = "tpm-tis") -> list[str]:
        """What gives a guest this TPM."""
        chardev = f"socket,id=chrtpm,path={self.socket}"
        return ["-chardev", chardev, "-tpmdev", "emulator,id=tpm0,chardev=chrtpm", "-device", f"{device},tpmdev=tpm0"]

    def pids(self) -> list[int]:
        """The processes that serve at its socket, whoever started them."""
        word = next(word for word in self.argv() if word.startswith("type=unixio,path="))
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                argv = read_argv(int(entry))
                if word in argv and os.path.basename(argv[0]) == "swtpm" and self._is_here(entry):
                    found.append(int(entry))
        return found

    def _is_here(self, pid: str) -> bool:
        try:
            return not self._relative or os.path.samefile(f"/proc/{pid}/cwd", self._directory)
        except FileNotFoundError:
            return False

    def kill(self) -> None:
        """End it, whoever has started it."""
        for pid in self.pids():
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                continue
        if self._process is not None:
            self._process.wait()
        wait_until(lambda: not self.pids())


def read_register(guest: LinuxGuest, number: int = 16) -> str:
    """A platform configuration register of the guest's TPM, as its Linux reads it: 64 hex digits."""
    return guest.command(f"pcr {number}\n", r"^pcr=([0-9a-f]{64})\r?$", 30.0).group(1)


def extend_register(guest: LinuxGuest) -> None:
    """Have the guest extend the register 16 by 32 bytes of the value 1."""
    guest.command(b"extend\n", r"^extended\r?$", 30.0)


def extended(register: str) -> str:
    """What a register holds after that."""
    return hashlib.sha256(bytes.fromhex(register) + b"\1" * 32).hexdigest()
