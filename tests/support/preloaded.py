# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Modules run from a server that has imported them and forks: each is a process of its own, without the imports.

For tests that run modules a thousand times and kill them. Started with ``python -m support.preloaded``, the server
reads one JSON line for each run, ``{"module": …, "options": …, "output": path, "constants": …}``, answers with the
process id, and answers an empty line with the exit status of the last run, negative for a signal.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Optional

_PLUGINS = "ansible_collections.vmops.qemu.plugins"
_PACKAGE = f"{_PLUGINS}.modules"

#: What is imported before the first run.
MODULES = (
    *("qemu_save", "qemu_restore", "qemu_save_image", "qemu_save_image_info"),
    *("qemu_managed_save", "qemu_managed_restore"),
)


class PreloadedModules:
    """The server, from the test's side; one run at a time."""

    def __init__(self, collections: Path, scratch: Path) -> None:
        """collections: where ansible_collections is; scratch: a directory for the outputs."""
        self._scratch = scratch
        self._number = 0
        paths = [str(collections), str(Path(__file__).resolve().parents[1])]
        #: Values for the runs to come, by module util and name, ``{"_qemu.monitor": {"COMMAND_TIMEOUT": 1.0}}``: for
        #: tests that would else wait for long.
        self.constants: dict[str, dict[str, float]] = {}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.preloaded"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            text=True,
        )
        self._pid: Optional[int] = None
        self._output = scratch

    def __enter__(self) -> PreloadedModules:
        return self

    def __exit__(self, *_unused: object) -> None:
        self.send_signal(signal.SIGKILL)
        self._process.communicate()

    def start(self, module: str, **options: Any) -> None:
        """Start a run."""
        self._number += 1
        self._output = self._scratch / f"run-{self._number}"
        self._output.touch()
        request = {"module": module, "options": options, "output": str(self._output), "constants": self.constants}
        self._pid = int(self._ask(request))

    def send_signal(self, number: int) -> None:
        """Send a signal to the run, which may have ended: it is reaped only by wait()."""
        if self._pid is not None:
            os.kill(self._pid, number)

    def wait(self) -> Optional[dict[str, Any]]:
        """Wait for its end: its result, or None where a signal ended it before it had one."""
        status = int(self._ask(None))
        self._pid = None
        text = self._output.read_text()
        self._output.unlink()
        if status < 0 and not text.endswith("}\n"):
            return None
        try:
            result: dict[str, Any] = json.loads(text)
        except ValueError:
            raise AssertionError(f"exit status {status}, output {text!r}") from None
        # The traceback of an error that is none of the collection's; where it is kept depends on ansible-core.
        assert "exception" not in result and "please report it" not in result.get("msg", ""), result  # noqa: PT018
        return result

    def _ask(self, request: Optional[dict[str, Any]]) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write((json.dumps(request) if request else "") + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline()


def _run(module: str, options: dict[str, Any], output: str, constants: dict[str, dict[str, float]]) -> None:
    for name, values in constants.items():
        util = vars(importlib.import_module(f"{_PLUGINS}.module_utils.{name}"))
        assert values.keys() <= util.keys(), f"{name} has no {values.keys() - util.keys()}"
        util.update(values)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.setsid()
    basic = importlib.import_module("ansible.module_utils.basic")
    vars(basic).update(_ANSIBLE_ARGS=json.dumps({"ANSIBLE_MODULE_ARGS": options}).encode(), _ANSIBLE_PROFILE="legacy")
    importlib.import_module(f"{_PACKAGE}.{module}").main()


def _serve() -> None:
    for name in MODULES:
        importlib.import_module(f"{_PACKAGE}.{name}")
    pid = 0
    for line in sys.stdin:
        if line.strip():
            pid = os.fork()
            if pid == 0:
                try:
                    _run(**json.loads(line))
                except SystemExit as end:
                    sys.stdout.flush()
                    os._exit(int(end.code or 0))
                except KeyboardInterrupt:  # before the module watches for it
                    signal.signal(signal.SIGINT, signal.SIG_DFL)
                    signal.raise_signal(signal.SIGINT)
                finally:
                    os._exit(99)
            answer = pid
        else:
            answer = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(answer, flush=True)


if __name__ == "__main__":
    _serve()
