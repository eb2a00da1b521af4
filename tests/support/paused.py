# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A QEMU whose guest never runs: for tests of what QEMU says of a machine and its disks, which needs no guest."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from .guest import GuestError
from .monitor import Monitor, MonitorError, qmp, wait_migration


class PausedQemu:
    """A QEMU started with -S; ended with end()."""

    def __init__(
        self,
        workdir: Path,
        *arguments: str,
        machine: str = "q35",
        qemu: str = "qemu-system-x86_64",
        prefix: Sequence[str] = (),
        name: str = "paused",
        defaults: bool = False,
    ) -> None:
        """Start it in workdir, in which its monitor is, too; prefix: what to start it with, as setpriv.

        defaults: with the devices that QEMU adds by itself.
        """
        self.workdir = workdir
        # sun_path is short, and pytest's directories are long.
        self.qmp_socket = Path("/tmp") / f"vmops-{os.getpid()}-{time.monotonic_ns():x}.sock"
        words = [qemu, "-name", name, "-no-user-config", "-display", "none", "-accel", "tcg", "-S"]
        if not defaults:
            words.append("-nodefaults")
        words += ["-machine", machine, "-m", "16", "-qmp", f"unix:{self.qmp_socket},server=on,wait=off"]
        self.argv = [*words, *arguments]
        self._log = workdir / "paused.stderr"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*prefix, *self.argv], cwd=workdir, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self._daemon: Optional[int] = None
        deadline = time.monotonic() + 20
        while True:
            try:
                Monitor(self.qmp_socket, 20).close()
                return
            except MonitorError as error:
                if self._process.poll() or time.monotonic() > deadline:
                    self.end()
                    raise GuestError(self._log.read_text(errors="replace")) from error
                time.sleep(0.02)

    @property
    def pid(self) -> int:
        """The process that was started; one with -daemonize is told by daemon()."""
        return self._daemon or self._process.pid

    def daemon(self, pid_file: Path) -> None:
        """Go on with the process that -pidfile names."""
        self._process.wait()
        self._daemon = int(pid_file.read_text())

    def __enter__(self) -> PausedQemu:
        return self

    def __exit__(self, *_unused: object) -> None:
        self.end()

    def exit_code(self, timeout: float = 20.0) -> int:
        """Wait for its end; what it ended with, -N for signal N."""
        return self._process.wait(timeout)

    def quit(self) -> None:
        """Have it end by itself, as a save does."""
        with contextlib.suppress(MonitorError):  # it hangs up
            self.execute("quit")
        self._process.wait(timeout=20)

    def end(self) -> None:
        """Kill it."""
        if self._daemon is not None:
            with contextlib.suppress(MonitorError):
                self.execute("quit")
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self.qmp_socket.unlink(missing_ok=True)

    def execute(self, command: str, arguments: Optional[dict[str, Any]] = None, **more: Any) -> Any:
        """Run one QMP command; more: arguments whose names are Python's."""
        return qmp(self.qmp_socket, command, {**(arguments or {}), **more})

    def write(self, drive: str, what: str = "write 0 64k") -> None:
        """Have QEMU write into a drive (by its backend, device id, or QOM path with a slash) as a guest does."""
        where = f"-d {drive}" if "/" in drive else drive
        answer = self.execute("human-monitor-command", {"command-line": f'qemu-io {where} "{what}"'})
        if answer:  # what went wrong; what went well is on its stdout
            raise GuestError(answer)

    def migrate(self, path: Path) -> None:
        """Save its state into a file, as a stream, and leave it in postmigrate."""
        self.execute("migrate", {"uri": f"exec:cat >{path}"})
        info = wait_migration(self.qmp_socket)
        if info["status"] != "completed":
            raise GuestError(f"{info}")


def make_disk(path: Path, format_name: str = "raw", *options: str, size: str = "1M") -> Path:
    """Make a disk image with qemu-img; options go before its path."""
    command = ["qemu-img", "create", "-q", "-f", format_name, *options, path.name, size]
    if "-b" in options:
        command.pop()
    subprocess.run(command, check=True, cwd=path.parent, stdout=subprocess.DEVNULL)
    return path
