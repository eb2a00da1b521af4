# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where one configuration is tried: its files, the servers beside its QEMU, and the guest in it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Callable, ClassVar, Optional

from support import CounterGuest, Monitor
from support.guest import Guest, GuestError, escaped
from support.monitor import MonitorError
from support.observe import Continuity
from support.process import read_argv

MIB = 1024 * 1024


class Skip(Exception):
    """This host lacks what the configuration needs."""


def run(*argv: object) -> str:
    """Run a tool that a configuration needs; its output."""
    words = [str(word) for word in argv]
    if shutil.which(words[0]) is None:
        raise Skip(f"no {words[0]}")
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout


def needs_root() -> None:
    """Skip where the tests do not run as root."""
    if os.geteuid() != 0:
        raise Skip("root is needed")


class Place:
    """The directory of one configuration; what was begun here ends with :meth:`close`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.directory.mkdir(parents=True, exist_ok=True)
        self._undo = contextlib.ExitStack()
        #: What starts QEMU by executing it.
        self.prefix: tuple[str, ...] = ()

    def close(self) -> None:
        """End the servers and remove what is outside of the directory."""
        self._undo.close()

    def undo(self, function: Callable[..., object], *arguments: Any) -> None:
        """Have it called at the end."""
        self._undo.callback(function, *arguments)

    def __truediv__(self, name: str) -> Path:
        return self.directory / name

    def folder(self, name: str) -> Path:
        """A directory."""
        path = self / name
        path.mkdir(exist_ok=True)
        return path

    def text(self, name: str, text: str) -> Path:
        """A file with a text in it."""
        path = self / name
        path.write_text(text, encoding="utf-8")
        return path

    def file(self, name: str, size: int = 16 * MIB, filler: bytes = b"") -> Path:
        """A raw file."""
        path = self / name
        path.write_bytes(filler * (size // len(filler)) if filler else b"")
        os.truncate(path, size)
        return path

    def disk(self, name: str, kind: str = "qcow2", *options: str) -> Path:
        """An image of qemu-img's of 16 MiB, where there is none yet."""
        path = self / name
        if not path.exists():
            run("qemu-img", "create", "-q", "-f", kind, *options, path, "16M")
        return path

    def memory(self, name: str = "memory") -> Path:
        """A path on tmpfs."""
        if not os.path.ismount("/dev/shm"):
            raise Skip("no tmpfs at /dev/shm")
        directory = Path(tempfile.mkdtemp(prefix="vmops-machine-", dir="/dev/shm"))
        self.undo(shutil.rmtree, directory)
        return directory / name

    def server(self, *argv: object, socket: Optional[Path] = None) -> None:
        """Start a server, and wait for its socket."""
        words = [str(word) for word in argv]
        if shutil.which(words[0]) is None:
            raise Skip(f"no {words[0]}")
        with open(self / "servers.log", "ab") as log:
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.undo(process.wait)
        self.undo(process.kill)
        deadline = time.monotonic() + 10
        while socket is not None and not socket.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"{words[0]} does not serve: {(self / 'servers.log').read_text()}")
            time.sleep(0.01)

    def child_of(self, name: str) -> None:
        """Have a process of this name start QEMU, hold its standard input and output, and wait for its end."""
        script = self.text(
            name,
            f"#!{sys.executable}\nimport subprocess, sys\n"
            "subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE).wait()\n",
        )
        script.chmod(0o755)
        self.prefix = (str(script), *self.prefix)

    def tap(self) -> str:
        """A persistent tap."""
        needs_root()
        if not os.path.exists("/dev/net/tun"):
            raise Skip("no /dev/net/tun")
        name = f"vm{os.getpid() % 100000}t{os.urandom(2).hex()}"[:15]
        try:
            run("ip", "tuntap", "add", "dev", name, "mode", "tap")
        except subprocess.CalledProcessError as error:
            raise Skip(f"no tap can be made: {error.stdout}") from error
        self.undo(run, "ip", "link", "delete", name)
        return name

    def network_namespace(self) -> str:
        """A network namespace."""
        needs_root()
        name = f"vmops-{os.getpid()}-{os.urandom(2).hex()}"
        try:
            run("ip", "netns", "add", name)
        except subprocess.CalledProcessError as error:
            raise Skip(f"no network namespace can be made: {error.stdout}") from error
        self.undo(run, "ip", "netns", "delete", name)
        return name


class Started(Guest):
    """A guest whose QEMU is nobody's child, as in the life of a host, by a command line that may be another's."""

    rewrite: Optional[Callable[[list[str]], list[str]]] = None

    def argv(self, incoming: Any = False) -> list[str]:
        argv = super().argv(incoming)
        return self.rewrite(argv) if self.rewrite else argv

    def start(self, incoming: Any = False, timeout: Optional[float] = None) -> None:
        """Start it; it becomes a child of init's."""
        deadline = time.monotonic() + (self.boot_timeout if timeout is None else timeout)
        self.prepare()
        with open(self.stderr_log, "wb") as stderr:
            subprocess.run(
                ["/bin/sh", "-c", '"$@" </dev/null &', "sh", *self.argv(incoming)],
                check=True,
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                cwd=self.workdir,
                start_new_session=True,
            )
        self._wait_start(deadline)
        self._wait_monitor(deadline)
        self._wait(lambda: self.boots() > 0, deadline, "its boot line")

    def _wait_monitor(self, deadline: float) -> None:
        # Some programs open none that this guest could be asked through.
        if any(escaped(self.qmp_socket) in word for word in self.argv()):
            super()._wait_monitor(deadline)

    def _wait_start(self, deadline: float) -> None:
        while not self.adopt_restarted():
            if time.monotonic() > deadline or "qemu-system" in self.stderr():
                raise GuestError(f"{self.name} does not start: {self.stderr()}")
            time.sleep(0.02)

    def adopt_restarted(self) -> bool:
        """Adopt the QEMU that has this guest's serial port, whatever its name; whether there is one."""
        if self.alive():
            return True
        for entry in os.listdir("/proc"):
            if entry.isdigit() and self._is_ours(int(entry)):
                with contextlib.suppress(GuestError):
                    self.adopt(int(entry))
                    return True
        return False

    def _is_ours(self, pid: int) -> bool:
        # The monitor may be in a file, or spelt in another way: the serial port's log is always named.
        words = read_argv(pid)
        log = f"logfile={escaped(self.serial_log)},"
        emulator = bool(words) and os.path.basename(words[0]).startswith("qemu-system-")
        return emulator and any(log in word for word in words)


class MachineGuest(Started, CounterGuest):
    """The counter guest, booted from a disk that the machine can boot from."""

    BOOT: ClassVar[dict[str, Sequence[str]]] = {
        "virtio": ("-device", "virtio-blk-pci,drive=boot,bootindex=0"),
        "ide": ("-device", "ide-hd,drive=boot,bootindex=0"),
    }

    def __init__(self, *arguments: Any, boot: str, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.boot = boot

    def device_args(self) -> list[str]:
        """The boot disk."""
        drive, words = super().device_args()[:2], self.BOOT[self.boot]
        if self.boot == "ide":  # which takes no disk that is read-only
            drive[1] = drive[1].replace("readonly=on", "file.locking=off")
        return [*drive, *words]


class FirmwareGuest(Started):
    """A machine that runs its firmware, or a program of some bytes, where the counter guest cannot boot."""

    kind = "firmware"

    def boots(self) -> int:
        """It runs, and its monitor answers if it has one: it has begun."""
        return int(self.alive())

    def human(self, command: str) -> str:
        """A command of the human monitor."""
        return str(self.qmp("human-monitor-command", {"command-line": command}))


#: The lines of "info registers" with the general registers, of the architectures that are tried.
_GENERAL = re.compile(r"\s*(?:GPR|R\d\d=|X\d\d=|RAX|RSI|R8 |R12=|EAX|ESI|x\d+/)")


class SameMachine:
    """As Continuity, where no guest speaks: registers and memory are what they were at the stop for the save."""

    def __init__(self, guest: FirmwareGuest, address: int) -> None:
        self.guest = guest
        self.address = address
        time.sleep(0.7)  # for the firmware to come to something
        guest.qmp("stop")
        self.seen = self._look()

    def _look(self) -> tuple[list[str], bytes]:
        path = self.guest.workdir / "memory.dump"
        self.guest.qmp("pmemsave", {"val": self.address, "size": 32 * MIB, "filename": str(path)})
        # Not the clocks among them, which go on.
        registers = [line for line in self.guest.human("info registers").splitlines() if _GENERAL.match(line)]
        return registers, path.read_bytes()

    def check(self) -> None:
        if not self.guest.alive():
            self.guest.wait_restarted()
        registers, memory = self._look()
        assert memory == self.seen[1], "its memory differs"
        assert registers == self.seen[0]
        self.guest.qmp("cont")
        assert self.guest.qmp("query-status")["status"] == "running"


def observe(guest: Guest, address: int) -> Any:
    """What shows after the restore that it is the same machine."""
    if isinstance(guest, CounterGuest):
        return Continuity(guest)
    assert isinstance(guest, FirmwareGuest)
    return SameMachine(guest, address)


def wait_for_job(guest: Guest, job: str, timeout: float = 20.0) -> None:
    """Wait until a mirror is ready to be completed."""
    with Monitor(guest.qmp_socket) as monitor:
        deadline = time.monotonic() + timeout
        while True:
            jobs = {entry["device"]: entry for entry in monitor.execute("query-block-jobs")}
            if jobs.get(job, {}).get("ready"):
                monitor.execute("block-job-complete", {"device": job})
            if job not in jobs:
                return
            if time.monotonic() > deadline:
                raise MonitorError(f"the job {job} does not come to its end")
            time.sleep(0.02)


def replaced(argv: Iterable[str], old: str, *new: str) -> list[str]:
    """A command line with other words in the place of one option and its argument."""
    words = list(argv)
    index = words.index(old)
    return [*words[:index], *new, *words[index + 2 :]]
