# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""An SSH server with a network of its own, so that a connection to it can be broken in every way; needs root.

Nothing of it is seen from outside: it listens at the loopback address of its own network namespace, and the accounts
that it knows are files mounted in its own mount namespace.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Optional

from .guest import REPOSITORY, GuestError
from .process import Process

SSHD = REPOSITORY / ".cache" / "sshd-9.2" / "sshd"
#: In a network of its own any port is free.
PORT = 2222
#: Where sshd goes to be nobody; its name is compiled in.
_EMPTY_DIRECTORY = Path("/run/sshd")


def missing() -> Optional[str]:
    """What is missing for such a server here, or None."""
    if os.geteuid() != 0:
        return "only root can make a network namespace"
    for program in ("unshare", "nsenter", "ip", "ssh", "ssh-keygen"):
        if shutil.which(program) is None:
            return f"no {program}"
    return None if SSHD.exists() else f"no {SSHD}"


class SshServer:
    """A running server; ``inside`` is the beginning of a command that shall run in its network."""

    def __init__(self, place: Path) -> None:
        """Start it, with its files in a new directory."""
        place.mkdir(mode=0o700)
        self._made_directory = False
        self.key = place / "key"
        for key in (self.key, place / "host_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        (place / "authorized_keys").write_bytes((place / "key.pub").read_bytes())
        self.known_hosts = place / "known_hosts"
        self.known_hosts.write_text(f"[127.0.0.1]:{PORT} {(place / 'host_key.pub').read_text()}")
        # An account without a password is locked for sshd if that begins with an exclamation mark.
        (place / "shadow").write_text("root:*:1::::::\n")
        accounts = re.sub("^sshd:.*\n", "", Path("/etc/passwd").read_text(), flags=re.MULTILINE)
        (place / "passwd").write_text(f"{accounts}sshd:x:{pwd.getpwnam('nobody').pw_uid}:65534::/run/sshd:/bin/false\n")
        options = {
            "ListenAddress": f"127.0.0.1:{PORT}",
            "HostKey": place / "host_key",
            "AuthorizedKeysFile": place / "authorized_keys",
            "PidFile": "none",
            "StrictModes": "no",
            "UsePAM": "no",
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            "PermitRootLogin": "prohibit-password",
            # The server has a mount namespace of its own, in which a QEMU would not be where the tests' are.
            "ForceCommand": f'exec nsenter --target {os.getpid()} --mount -- /bin/sh -c "$SSH_ORIGINAL_COMMAND"',
            "PrintMotd": "no",
            # A connection that says nothing any more is given up after three seconds.
            "ClientAliveInterval": 1,
            "ClientAliveCountMax": 3,
        }
        (place / "config").write_text("".join(f"{name} {value}\n" for name, value in options.items()))
        script = (
            'ip link set lo up; mount --bind "$0/passwd" /etc/passwd; mount --bind "$0/shadow" /etc/shadow;'
            f' exec {SSHD} -D -e -f "$0/config"'
        )
        if not _EMPTY_DIRECTORY.exists():
            _EMPTY_DIRECTORY.mkdir(mode=0o755)
            self._made_directory = True
        self._log = place / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ["unshare", "--net", "--mount", "sh", "-e", "-c", script, str(place)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.inside = ["nsenter", "--target", str(self._process.pid), "--net"]
        deadline = time.monotonic() + 20
        while "Server listening" not in self.log():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.close()
                raise GuestError(f"sshd does not start: {self.log()}")
            time.sleep(0.02)

    def log(self) -> str:
        """What it has said."""
        return self._log.read_text(errors="replace")

    def network(self, on: bool) -> None:
        """Let its network go down, so that no packet comes through, or up again."""
        subprocess.run([*self.inside, "ip", "link", "set", "lo", "up" if on else "down"], check=True)

    def sessions(self) -> list[Process]:
        """The processes that serve a connection, not what they have started."""
        found = []
        for pid in Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                found.append(Process(int(pid)))
        return found

    def close(self) -> None:
        """End it, and the connections."""
        if self._process.poll() is None:
            for session in self.sessions():
                session.kill()
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(20)
        if self._made_directory:
            # Another run may use it by now.
            with contextlib.suppress(OSError):
                _EMPTY_DIRECTORY.rmdir()
