# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A QEMU with a guest in it that speaks on its serial port: what the counter guest and the Linux guest share."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Optional, TypeVar, Union

from .monitor import Monitor, MonitorError, qmp
from .process import Process, find_qemu_pids, read_argv

# sun_path has 108 bytes, the last one for NUL
_SOCKET_PATH_MAX = 107
_POLL = 0.02  # seconds between two looks at the log

# Where this tree's sources are, and where what is downloaded (.cache) or built (build) is kept. In the copy that
# scripts/stage.py makes, in build/collections, such files do not last: there it is the tree that was copied.
SOURCES = Path(__file__).resolve().parents[2]
_OUTER = SOURCES.parents[4] if len(SOURCES.parents) > 4 else SOURCES
_STAGED = SOURCES == _OUTER / "build" / "collections" / "ansible_collections" / "vmops" / "qemu"
REPOSITORY = _OUTER if _STAGED else SOURCES
#: The staged copy, as Ansible's tools find it.
COLLECTIONS = REPOSITORY / "build" / "collections"

G = TypeVar("G", bound="Guest")


class GuestError(Exception):
    """The guest did not do what it should, in time or at all."""


def counters_in(log: str) -> list[int]:
    """The counters in what a guest has said, in their order; of a line that is still being written nothing is known."""
    return [int(number) for number in re.findall(r"counter=(\d+)\r?\n", log)]


def gaps(counters: Sequence[int]) -> list[tuple[int, int]]:
    """The neighbours that are not n, n+1: gaps, repeats and restarts. Empty for a guest that never noticed a thing."""
    return [(a, b) for a, b in zip(counters, counters[1:]) if b != a + 1]


class Guest:
    """A guest, its QEMU, and its directory, in which qemu.stderr, serial.log and guest.json are kept.

    The log goes on over restarts of QEMU with the same command line, whoever does them.
    """

    kind: ClassVar[str] = ""  # the name of the kind in guest.json
    boot_line: ClassVar[str] = ""  # a regular expression: the line that shows a cold boot
    boot_timeout: ClassVar[float] = 60.0  # seconds
    checksum_command: ClassVar[bytes] = b""  # what to send to the serial port for a checksum
    command_end: ClassVar[bytes] = b""  # what ends a command on the serial port

    def __init__(
        self,
        workdir: Union[str, os.PathLike[str]],
        name: str,
        *,
        memory_mib: int,
        uuid: Optional[str] = None,
        extra_args: Iterable[str] = (),
        qemu: str = "qemu-system-x86_64",
        machine: str = "pc",
        accel: str = "tcg",
        observer: bool = False,
    ) -> None:
        """Describe the guest; nothing is started and nothing written.

        observer adds a second QMP monitor (observer_socket), for a test that looks on while the first is in use.
        """
        found = shutil.which(qemu)
        if found is None:
            raise GuestError(f"no {qemu}")
        self.workdir = Path(workdir).absolute()
        self.name = name
        self.memory_mib = memory_mib
        self.uuid = uuid
        self.extra_args = list(extra_args)
        self.qemu = os.path.abspath(found)
        self.machine = machine
        self.accel = accel
        self.observer = observer
        self.serial_log = self.workdir / "serial.log"
        self.stderr_log = self.workdir / "qemu.stderr"
        self._process: Optional[Process] = None
        self._child: Optional[subprocess.Popen[bytes]] = None
        self._short_dir: Optional[Path] = None
        self._socket_dir = self.workdir
        if len(os.fsencode(self.workdir / "observer.sock")) > _SOCKET_PATH_MAX:
            # Made at the first use, as describing a guest leaves no trace
            self._short_dir = Path(tempfile.gettempdir()) / f"vmops-{os.urandom(6).hex()}"
            self._socket_dir = self._short_dir

    # What a kind of guest adds

    def config(self) -> dict[str, Any]:
        """The constructor's arguments beside workdir, for guest.json."""
        return {
            "name": self.name,
            "memory_mib": self.memory_mib,
            "uuid": self.uuid,
            "extra_args": self.extra_args,
            "qemu": self.qemu,
            "machine": self.machine,
            "accel": self.accel,
            "observer": self.observer,
        }

    def prepare(self) -> None:
        """Make the files that the command line names, those that are not there yet."""
        self.workdir.mkdir(parents=True, exist_ok=True)
        if self._short_dir is not None and not self._short_dir.is_dir():
            self._short_dir.mkdir(mode=0o700)

    def device_args(self) -> list[str]:
        """The part of the command line with the disks and cards of this kind of guest."""
        return []

    def power_off(self, timeout: float = 30.0) -> None:
        """Have the guest power its machine off by itself, and wait up to timeout seconds for QEMU to end."""
        raise NotImplementedError

    # The command line and the files

    @property
    def qmp_socket(self) -> Path:
        """The QMP monitor."""
        return self._socket_dir / "qmp.sock"

    @property
    def observer_socket(self) -> Path:
        """The second QMP monitor, of a guest with observer=True."""
        return self._socket_dir / "observer.sock"

    @property
    def serial_socket(self) -> Path:
        """The serial port, for one client at a time; the log is written with and without one.

        To look on, read the log. A client of the port must read what comes: else the log stands still, QEMU (10.0)
        drops a byte each time the socket was full, and if the client hangs up so, may never write to the port again.
        """
        return self._socket_dir / "serial.sock"

    def argv(self, incoming: Union[bool, str] = False) -> list[str]:
        """The command line; incoming: True for "-incoming defer", or what to give to -incoming."""
        argv = [self.qemu, "-name", self.name]
        if self.uuid is not None:
            argv += ["-uuid", self.uuid]
        argv += ["-machine", self.machine, "-accel", self.accel, "-m", str(self.memory_mib)]
        argv += ["-nodefaults", "-no-user-config", "-display", "none"]
        serial = f"socket,id=serial0,path={escaped(self.serial_socket)},server=on,wait=off"
        argv += ["-chardev", f"{serial},logfile={escaped(self.serial_log)},logappend=on", "-serial", "chardev:serial0"]
        argv += ["-qmp", f"unix:{escaped(self.qmp_socket)},server=on,wait=off"]
        if self.observer:
            argv += ["-qmp", f"unix:{escaped(self.observer_socket)},server=on,wait=off"]
        argv += self.device_args()
        argv += self.extra_args
        if incoming:
            argv += ["-incoming", "defer" if incoming is True else incoming]
        return argv

    @property
    def shown_name(self) -> str:
        """The name by which QEMU knows it."""
        return self.name

    # Its life

    def start(self, incoming: Union[bool, str] = False, timeout: Optional[float] = None) -> None:
        """Start QEMU and wait for its monitor and, without incoming, for the guest's boot line.

        timeout in seconds, boot_timeout without. Raises GuestError, with QEMU's stderr in it, after ending QEMU.
        """
        if self.alive():
            raise GuestError(f"{self.name} runs already, pid {self.pid}")
        deadline = time.monotonic() + (self.boot_timeout if timeout is None else timeout)
        self.prepare()
        boots = self.boots()
        with open(self.stderr_log, "wb") as stderr:
            self._child = subprocess.Popen(
                self.argv(incoming),
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                cwd=self.workdir,
                start_new_session=True,
            )
        self._process = Process(self._child.pid)
        self._remember()
        try:
            self._wait_monitor(deadline)
            if not incoming:
                self._wait(lambda: self.boots() > boots, deadline, "its boot line")
        except BaseException:
            self.end()
            raise

    def define(self) -> None:
        """Make its files and remember it, for a QEMU that someone else starts with its command line, a unit say."""
        self.prepare()
        self._remember()

    def adopt(self, pid: int) -> None:
        """Take over a QEMU of this guest that someone else started; end() will end that one.

        Raises GuestError if pid is no QEMU of this guest, or if the one known so far still runs.
        """
        if self.alive() and pid != self.pid:
            raise GuestError(f"{self.name} still runs as {self.pid}")
        try:
            process = Process(pid)
        except ProcessLookupError as error:
            raise GuestError(f"no process {pid}") from error
        if not self._is_ours(pid):
            raise GuestError(f"process {pid} is no QEMU of {self.name}")
        if self._child is not None and self._child.pid != pid:
            self._child.wait()
            self._child = None
        self._process = process
        self._remember()

    def adopt_restarted(self) -> bool:
        """Adopt the QEMU that runs with this guest's name and monitor, if there is one; whether there is."""
        if self.alive():
            return True
        for pid in find_qemu_pids(self.shown_name):
            if self._is_ours(pid):
                with contextlib.suppress(GuestError):
                    self.adopt(pid)
                    return True
        return False

    def wait_restarted(self, timeout: float = 10.0) -> None:
        """Wait up to timeout seconds for a QEMU that someone else starts for this guest, and adopt it."""
        deadline = time.monotonic() + timeout
        while not self.adopt_restarted():
            if time.monotonic() > deadline:
                raise GuestError(f"nobody started {self.name} again")
            time.sleep(_POLL)

    def _is_ours(self, pid: int) -> bool:
        """Whether the command line of pid has this guest's monitor, which is in this guest's own directory."""
        monitor = f"unix:{escaped(self.qmp_socket)},"
        return any(word.startswith(monitor) for word in read_argv(pid))

    @property
    def pid(self) -> Optional[int]:
        """The pid of its QEMU, running or not; None before the first start."""
        return None if self._process is None else self._process.pid

    def alive(self) -> bool:
        """Whether the QEMU that was started or adopted still runs."""
        if self._child is not None and self._child.poll() is not None:
            return False
        return self._process is not None and self._process.alive()

    def wait_exit(self, timeout: float = 10.0) -> None:
        """Wait up to timeout seconds for QEMU to end by itself, and reap it; raises GuestError if it does not."""
        if self._process is not None and not self._process.wait(timeout):
            raise GuestError(f"{self.name} (pid {self.pid}) still runs after {timeout:g} s")
        if self._child is not None:
            self._child.wait()
        elif self._process is not None:
            self._process.reap()

    @property
    def exit_code(self) -> Optional[int]:
        """What the QEMU that start() started ended with, -N for signal N; None if it runs or was adopted."""
        return None if self._child is None else self._child.poll()

    def end(self) -> None:
        """Kill QEMU, if it runs, and reap it. The files stay: the guest may be started or restored again.

        A QEMU that someone else started with this guest's monitor is ended as well.
        """
        while True:
            if self._process is not None:
                self._process.kill()
                self.wait_exit()
            if not self.adopt_restarted():
                return

    def close(self) -> None:
        """End QEMU and remove the directory of its sockets, if it had one outside workdir."""
        self.end()
        if self._short_dir is not None:
            shutil.rmtree(self._short_dir, ignore_errors=True)

    def __enter__(self: G) -> G:
        return self

    def __exit__(self, *_unused: object) -> None:
        self.close()

    # What it says

    def log(self) -> str:
        """The whole of the serial log, without a last line that is not complete."""
        try:
            text = self.serial_log.read_bytes().decode("ascii", "replace")
        except FileNotFoundError:
            return ""
        return text[: text.rfind("\n") + 1]

    def boots(self) -> int:
        """How many cold boots the log shows."""
        return len(re.findall(self.boot_line, self.log(), re.MULTILINE))

    def counters(self) -> list[int]:
        """All the counters in the log, in their order."""
        return counters_in(self.log())

    def wait_for_counter(self, beyond: int = -1, timeout: float = 10.0) -> int:
        """Wait up to timeout seconds until the last counter is greater than beyond, and return it."""
        last = -1

        def reached() -> bool:
            nonlocal last
            last = (self.counters() or [-1])[-1]
            return last > beyond

        self._wait(reached, time.monotonic() + timeout, f"a counter beyond {beyond}")
        return last

    def checksum(self, timeout: float = 30.0) -> str:
        """Have the guest compute the checksum of its memory: 8 hex digits. Raises GuestError after timeout seconds."""
        return self.command(self.checksum_command, r"checksum=([0-9a-f]{8})\b", timeout).group(1)

    def send(self, data: Union[bytes, str], timeout: float = 5.0) -> None:
        """Send bytes to the serial port, and wait up to timeout seconds until QEMU has them (command: until an answer).

        Raises GuestError if the port is taken by another client, or the guest does not read.
        """
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout)
            try:
                connection.connect(str(self.serial_socket))
                connection.sendall(data.encode() if isinstance(data, str) else data)
                # QEMU hangs up when it has read up to this end. If we did, without that, it would lose what it has
                # not read yet, and the byte that the guest writes at that moment would be missing in the log.
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):
                    pass
            except OSError as error:
                raise GuestError(f"serial port of {self.name}: {error}") from error

    def command(self, data: Union[bytes, str], answer: str, timeout: float = 10.0) -> re.Match[str]:
        """Send bytes to the serial port and wait up to timeout seconds for lines that match answer; their match."""
        deadline = time.monotonic() + timeout
        known = len(self.log())
        found: list[re.Match[str]] = []

        def answered() -> bool:
            found.extend(re.finditer(answer, self.log()[known:], re.MULTILINE))
            return bool(found)

        self.send(data, timeout)
        self._wait(answered, deadline, f"an answer to {data!r}")
        return found[0]

    def qmp(self, command: str, arguments: Optional[dict[str, Any]] = None, *, fd: Optional[int] = None) -> Any:
        """Run one QMP command in a session of its own. Raises MonitorError."""
        return qmp(self.qmp_socket, command, arguments, fd=fd)

    def stderr(self) -> str:
        """What the QEMU that start() started has written to stdout and stderr."""
        try:
            return self.stderr_log.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""

    # guest.json, by which another process finds the guest again

    def describe(self) -> dict[str, Any]:
        """What a playbook or a shell needs to know of the running guest."""
        return {
            "name": self.name,
            "pid": self.pid,
            "alive": self.alive(),
            "uuid": self.uuid,
            "qmp_socket": str(self.qmp_socket),
            "serial_socket": str(self.serial_socket),
            "serial_log": str(self.serial_log),
            "stderr_log": str(self.stderr_log),
            "workdir": str(self.workdir),
            "argv": self.argv(),
        }

    def _remember(self) -> None:
        state = {
            "kind": self.kind,
            "config": self.config(),
            "short_dir": None if self._short_dir is None else str(self._short_dir),
            "pid": self._process.pid if self._process else None,
            "start_time": self._process.start_time if self._process else None,
        }
        path = self.workdir / "guest.json"
        new = path.with_suffix(".new")
        new.write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
        os.replace(new, path)

    @classmethod
    def load(cls: type[G], workdir: Union[str, os.PathLike[str]]) -> G:
        """The guest that was started in workdir by another process, as guest.json has it."""
        try:
            state = json.loads((Path(workdir) / "guest.json").read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise GuestError(f"no guest was started in {os.fspath(workdir)}") from error
        if state["kind"] != cls.kind:
            raise GuestError(f"the guest in {os.fspath(workdir)} is a {state['kind']} guest")
        guest = cls(workdir, **state["config"])
        if state["short_dir"] is not None:
            guest._short_dir = guest._socket_dir = Path(state["short_dir"])
        if state["pid"] is not None:
            guest._process = Process(state["pid"], state["start_time"])
        return guest

    # Waiting

    def _wait_monitor(self, deadline: float) -> None:
        while True:
            try:
                Monitor(self.qmp_socket, timeout=max(0.1, deadline - time.monotonic())).close()
            except MonitorError as error:
                if not self.alive():
                    raise GuestError(f"QEMU of {self.name} ended: {self.stderr().strip()}") from error
                if time.monotonic() > deadline:
                    raise GuestError(f"{self.name}: {error}") from error
                time.sleep(_POLL)
            else:
                return

    def _wait(self, reached: Callable[[], bool], deadline: float, what: str) -> None:
        while not reached():
            ended = not self.alive() and not self.adopt_restarted()
            if ended and not reached():
                raise GuestError(f"QEMU of {self.name} ended before {what}: {self.stderr().strip()}")
            if time.monotonic() > deadline:
                tail = self.log()[-200:]
                raise GuestError(f"{self.name}: no sign of {what} in time; log ends {tail!r}; {self.stderr().strip()}")
            time.sleep(_POLL)


def escaped(path: Path) -> str:
    """A path as part of a QEMU option."""
    return str(path).replace(",", ",,")


def run(argv: Sequence[str], what: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run a build command; raises GuestError with its output. options go to subprocess.run."""
    try:
        return subprocess.run(argv, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    except FileNotFoundError as error:
        raise GuestError(f"{what}: no {argv[0]}") from error
    except subprocess.CalledProcessError as error:
        output = error.stdout.decode("utf-8", "replace").strip()
        raise GuestError(f"{what}: {' '.join(argv)}: {output}") from error
