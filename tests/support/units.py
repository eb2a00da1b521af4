# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Guests as services of the host's systemd, for tests that run on such a host as root; or of a user's own systemd."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

import pytest

from .guest import Guest, GuestError
from .module_run import Result

#: Why these tests cannot run here, or the empty string.
UNAVAILABLE = (
    "systemd does not run this host: make test-units has a machine for them"
    if not os.path.isdir("/run/systemd/system")
    else "this user's own systemd does not run"
    if os.geteuid() != 0 and not os.path.exists(f"/run/user/{os.geteuid()}/systemd/private")
    else ""
)

#: Whether the units are those of a user's own systemd.
BY_USER = os.geteuid() != 0

#: Where units are made, what lasts of their changes, and what does not.
UNITS, PERSISTENT, RUNTIME = (
    (
        Path(f"/run/user/{os.geteuid()}/systemd/user"),
        Path.home() / ".config/systemd/user",
        Path(f"/run/user/{os.geteuid()}/systemd/user.control"),
    )
    if BY_USER
    else (Path("/run/systemd/system"), Path("/etc/systemd/system"), Path("/run/systemd/system.control"))
)

#: For a test of what only root can do: other users, mounts.
of_root = pytest.mark.skipif(BY_USER, reason="a user's own systemd has no other users, and cannot mount")

#: The first words of what talks to the systemd whose units are tested.
OF_USER = ["--user"] if BY_USER else []
#: Lines of a unit that is started again at once.
ALWAYS = "Restart=always\nRestartSec=100ms"


def systemctl(*arguments: str, check: bool = True) -> str:
    """Run systemctl; what it printed."""
    argv = ["systemctl", *OF_USER, *arguments]
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert not check or done.returncode == 0, done.stdout
    return done.stdout.strip()


def known_as(name: str) -> str:
    """What modules return for a unit of this name."""
    return f"user@{os.geteuid()}.service/{name}" if BY_USER else name


def quoted(argv: Sequence[str]) -> str:
    """A command of plain words for a unit file."""
    for word in argv:
        assert not set(word) & set("\"\\%$'"), word
    return " ".join(f'"{word}"' for word in argv)


def blocking_kinds(result: Result) -> list[str]:
    """The kinds of the problems for which a module refuses a save."""
    return [problem["kind"] for problem in result["problems"] if problem["blocks"]]


class Service:
    """A guest's own unit: an instance of a template, so that the names are those of the common case."""

    def __init__(
        self,
        guest: Guest,
        service: str = "",
        unit: str = "",
        command: Optional[str] = None,
        instance: str = "web1",
    ) -> None:
        """Make it, and start nothing.

        service and unit: more lines for these sections; command: what to execute in place of the guest's QEMU.
        """
        self.guest = guest
        stem = f"vmops-test-{os.getpid()}-{os.urandom(4).hex()}"
        self.name = f"{stem}@{instance}.service"
        self.fragment = UNITS / f"{stem}@.service"
        self.directories = [root / f"{self.name}.d" for root in (PERSISTENT, RUNTIME)]
        guest.prepare()
        UNITS.mkdir(parents=True, exist_ok=True)
        self.fragment.write_text(
            f"[Unit]\nDescription=A guest of the tests\n{unit}\n[Service]\nWorkingDirectory={guest.workdir}\n"
            f"ExecStart={command or quoted(guest.argv())}\n{service}\n"
        )
        systemctl("daemon-reload")

    def start(self) -> None:
        """Start it, and wait for the guest's boot."""
        boots = self.guest.boots()
        systemctl("start", self.name)
        self.guest.wait_restarted()
        deadline = time.monotonic() + self.guest.boot_timeout
        while self.guest.boots() == boots:
            if time.monotonic() > deadline:
                raise GuestError(f"no boot of {self.name}: {self.journal()}")
            time.sleep(0.05)

    def get(self, key: str) -> str:
        """A property, as systemctl show prints it."""
        return systemctl("show", f"--property={key}", "--value", self.name)

    def wait_state(self, *states: str, timeout: float = 20.0) -> str:
        """Wait until it is in one of these states, and has nothing to do; the state."""
        deadline = time.monotonic() + timeout
        while self.get("ActiveState") not in states or self.get("Job") not in ("", "0"):
            assert time.monotonic() < deadline, systemctl("status", self.name, check=False)
            time.sleep(0.05)
        return self.get("ActiveState")

    def changes(self) -> list[str]:
        """The files with changes of this unit that are there."""
        return sorted(str(path) for directory in self.directories if directory.is_dir() for path in directory.iterdir())

    @property
    def known_as(self) -> str:
        """What modules return for it."""
        return known_as(self.name)

    @property
    def guard(self) -> str:
        """The file of the guard, which a save leaves."""
        return f"{PERSISTENT}/{self.name}.d/50-vmops-saved.conf"

    def kill_qemu(self) -> None:
        """Have its QEMU end as if it had crashed."""
        os.kill(self.guest.pid or 0, signal.SIGKILL)
        self.guest.wait_exit()

    def journal(self) -> str:
        """What it, and systemd about it, have said."""
        done = subprocess.run(
            ["journalctl", *OF_USER, "-q", "--no-pager", "-o", "cat", "-u", self.name],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        return done.stdout

    def close(self) -> None:
        """Stop and remove it."""
        systemctl("kill", "--signal=KILL", self.name, check=False)
        systemctl("stop", self.name, check=False)
        for directory in [*self.directories, Path(UNITS, f"{self.name}.d")]:
            shutil.rmtree(directory, ignore_errors=True)
        self.fragment.unlink(missing_ok=True)
        systemctl("daemon-reload")
        systemctl("reset-failed", self.name, check=False)
