# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Modules run from a server that has imported them and forks: each is a process of its own, without the imports.

Python's start and the imports take a CPU for longer than a save of a small guest, and the tests run modules thousands
of times. The server is started with ``python -m support.preloaded DESCRIPTOR``, where the descriptor is a socket. Each
message there is a request, JSON with the descriptors of the run's standard output and error and of a pipe for its exit
status; it is answered by the run's process id, with a pidfd of it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, Optional

from .guest import COLLECTIONS

_PLUGINS = "ansible_collections.vmops.qemu.plugins"
_PACKAGE = f"{_PLUGINS}.modules"

#: What is imported before the first run.
_MODULES = (
    *("qemu_save", "qemu_restore", "qemu_save_image", "qemu_save_image_info", "qemu_vm_info"),
    *("qemu_managed_save", "qemu_managed_restore", "qemu_progress_info"),
)

_MAX_REQUEST = 1 << 20

#: Values for a run, by module util and name, ``{"_qemu.monitor": {"COMMAND_TIMEOUT": 1.0}}``: for tests that would else
#: wait for long.
Constants = dict[str, dict[str, float]]


# --- the test's side --------------------------------------------------------------------------------------------


class ForkedProcess:
    """A run, used as :class:`subprocess.Popen`: it is another process's child."""

    def __init__(self, pid: int, pidfd: int, status: int, outputs: tuple[int, int]) -> None:
        """status: the pipe that says its exit status; outputs: what it writes is read there."""
        self.pid = pid
        self.returncode: Optional[int] = None
        self._pidfd = pidfd
        self._status = status
        #: A test's watchdog may send it signals while it is waited for.
        self._lock = threading.Lock()
        self.stdout, self.stderr = (os.fdopen(descriptor, "r", encoding="utf-8") for descriptor in outputs)

    def poll(self) -> Optional[int]:
        """Its exit status, negative for a signal; None while it runs."""
        return self._wait(0)

    def wait(self, timeout: Optional[float] = None) -> int:
        """Its exit status, when it has ended. Raises subprocess.TimeoutExpired."""
        status = self._wait(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(f"the module run with the pid {self.pid}", timeout or 0)
        return status

    def _wait(self, timeout: Optional[float]) -> Optional[int]:
        if self.returncode is None and select.select([self._status], [], [], timeout)[0]:
            with self._lock:
                if self.returncode is None:
                    self.returncode = int(os.read(self._status, 16))
                    os.close(self._status)
                    os.close(self._pidfd)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, which does nothing when it has ended."""
        with self._lock:
            if self.returncode is None:
                # It may just be being reaped.
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self._pidfd, number)

    def terminate(self) -> None:
        """Send it SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send it SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: Optional[float] = None) -> tuple[str, str]:
        """What it has written, when nobody can write any more and it has ended. Raises subprocess.TimeoutExpired."""
        deadline = None if timeout is None else time.monotonic() + timeout
        said = {self.stdout: b"", self.stderr: b""}
        with selectors.DefaultSelector() as selector:
            for stream in said:
                selector.register(stream, selectors.EVENT_READ)
            while selector.get_map():
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise subprocess.TimeoutExpired(f"the module run with the pid {self.pid}", timeout or 0)
                for key, _events in selector.select(left):
                    data = os.read(key.fd, 1 << 16)
                    said[key.fileobj] += data  # type: ignore[index]
                    if not data:
                        selector.unregister(key.fileobj)
        self.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
        for stream in said:
            stream.close()
        return said[self.stdout].decode(), said[self.stderr].decode()


class ModuleServer:
    """The server, from the test's side."""

    def __init__(self) -> None:
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        paths = [str(COLLECTIONS), str(Path(__file__).resolve().parents[1])]
        with other:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "support.preloaded", str(other.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[other.fileno()],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            )

    def close(self) -> None:
        """End it, when the runs have ended."""
        self._socket.close()
        self._process.wait()

    def start(self, module: str, options: dict[str, Any], constants: Optional[Constants] = None) -> ForkedProcess:
        """Start a run, with the environment, directory and umask that this process has now."""
        # Asking by os.umask() would change it for a moment, also for the other threads.
        (umask,) = re.findall(r"^Umask:\s*([0-7]+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
        request = {
            "module": module,
            "options": options,
            "constants": constants or {},
            "environment": {**os.environ, "PYTHONPATH": str(COLLECTIONS)},
            "directory": os.getcwd(),
            "umask": int(umask, 8),
        }
        pipes = [os.pipe() for _each in ("stdout", "stderr", "status")]
        try:
            socket.send_fds(self._socket, [json.dumps(request).encode()], [write for _read, write in pipes])
        finally:
            for _read, write in pipes:
                os.close(write)
        answer, pidfds, _flags, _address = socket.recv_fds(self._socket, 64, 1, socket.MSG_CMSG_CLOEXEC)
        if not answer:
            raise RuntimeError(
                f"the server that starts modules has ended with {self._process.wait()}, see its traceback"
            )
        output, errors, status = (read for read, _write in pipes)
        return ForkedProcess(int(answer), pidfds[0], status, (output, errors))


class PreloadedModules:
    """A server for tests that run one module after the other, and kill some."""

    def __init__(self) -> None:
        self._server = ModuleServer()
        self._run: Optional[ForkedProcess] = None
        #: For the runs to come.
        self.constants: Constants = {}

    def __enter__(self) -> PreloadedModules:
        return self

    def __exit__(self, *_unused: object) -> None:
        if self._run:
            self._run.kill()
            self._run.communicate()
        self._server.close()

    def start(self, module: str, **options: Any) -> None:
        """Start a run."""
        self._run = self._server.start(module, options, self.constants)

    def send_signal(self, number: int) -> None:
        """Send a signal to the run, which may have ended."""
        if self._run:
            self._run.send_signal(number)

    def wait(self) -> Optional[dict[str, Any]]:
        """Wait for its end: its result, or None where a signal ended it before it had one."""
        assert self._run is not None
        output, errors = self._run.communicate()
        status, self._run = self._run.returncode, None
        assert status is not None
        if status < 0 and not output.endswith("}\n"):
            return None
        try:
            result: dict[str, Any] = json.loads(output)
        except ValueError:
            raise AssertionError(f"exit status {status}, output {output!r}, errors {errors!r}") from None
        # The traceback of an error that is none of the collection's; where it is kept depends on ansible-core.
        assert "exception" not in result and "please report it" not in result.get("msg", ""), result  # noqa: PT018
        return result


# --- the server's side ------------------------------------------------------------------------------------------


def _run(request: dict[str, Any], outputs: list[int]) -> None:
    """Be the module, as ``python -m`` would start it."""
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["directory"])
    os.umask(request["umask"])
    for number, descriptor in enumerate(outputs, 1):
        os.dup2(descriptor, number)
        os.close(descriptor)
    for name, values in request["constants"].items():
        util = vars(importlib.import_module(f"{_PLUGINS}.module_utils.{name}"))
        assert values.keys() <= util.keys(), f"{name} has no {values.keys() - util.keys()}"
        util.update(values)
    arguments = json.dumps({"ANSIBLE_MODULE_ARGS": request["options"]}).encode()
    vars(importlib.import_module("ansible.module_utils.basic")).update(
        _ANSIBLE_ARGS=arguments, _ANSIBLE_PROFILE="legacy"
    )
    runpy.run_module(f"{_PACKAGE}.{request['module']}", run_name="__main__", alter_sys=True)


def _fork(request: dict[str, Any], outputs: list[int], others: list[int]) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for descriptor in others:
            os.close(descriptor)
        _run(request, outputs)
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    except KeyboardInterrupt:  # before the module watches for it
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _reap(statuses: dict[int, int]) -> None:
    """Tell the exit status of each run that has ended, by the pipe for it."""
    for pid in list(statuses):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            pipe = statuses.pop(pid)
            with contextlib.suppress(BrokenPipeError):  # nobody wants to know
                os.write(pipe, str(os.waitstatus_to_exitcode(status)).encode())
            os.close(pipe)


def _serve(requests: socket.socket) -> None:
    for name in _MODULES:
        importlib.import_module(f"{_PACKAGE}.{name}")
        # Each run executes it anew, as its __main__; what it uses is imported.
        del sys.modules[f"{_PACKAGE}.{name}"]
    wake, woken = os.pipe()
    for descriptor in (wake, woken):
        os.set_blocking(descriptor, False)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    signal.set_wakeup_fd(woken)
    statuses: dict[int, int] = {}
    while True:
        ready, _writable, _special = select.select([requests.fileno(), wake], [], [])
        if wake in ready:
            os.read(wake, 4096)
            _reap(statuses)
        if requests.fileno() in ready:
            message, descriptors, _flags, _address = socket.recv_fds(requests, _MAX_REQUEST, 3, socket.MSG_CMSG_CLOEXEC)
            if not message:
                return
            *outputs, status = descriptors
            others = [wake, woken, requests.fileno(), status, *statuses.values()]
            pid = _fork(json.loads(message), outputs, others)
            for descriptor in outputs:
                os.close(descriptor)
            statuses[pid] = status
            pidfd = os.pidfd_open(pid)  # it was not reaped yet
            socket.send_fds(requests, [str(pid).encode()], [pidfd])
            os.close(pidfd)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as _requests:
        _serve(_requests)
