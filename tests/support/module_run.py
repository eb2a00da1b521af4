# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A module run in a process of its own, as Ansible runs it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from .guest import COLLECTIONS
from .preloaded import ForkedProcess, ModuleServer

#: What a module returns.
Result = dict[str, Any]


class ModuleRun:
    """A module that runs in the background."""

    def __init__(
        self, server: ModuleServer, module: str, options: dict[str, Any], prefix: list[str], arguments: Path
    ) -> None:
        """prefix: a command that is to execute it, as ``["strace"]``: it is then no fork of the server.

        arguments: where its options may be written for that.
        """
        self.process: ForkedProcess | subprocess.Popen[str]
        if not prefix:
            self.process = server.start(module, options)
            return
        arguments.write_text(json.dumps({"ANSIBLE_MODULE_ARGS": options}))
        arguments.chmod(0o600)
        command = [sys.executable, "-m", f"ansible_collections.vmops.qemu.plugins.modules.{module}", str(arguments)]
        self.process = subprocess.Popen(
            [*prefix, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(COLLECTIONS)},
            text=True,
        )

    def result(self, timeout: float = 120) -> Result:
        """Its result; there must be exactly one, and never a traceback beside it."""
        try:
            output, errors = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise
        assert "Traceback" not in errors, errors
        assert output, f"exit status {self.process.returncode}, {errors}"
        result: Result = json.loads(output)
        assert "exception" not in result, result["exception"]
        return result

    def close(self) -> None:
        """Kill it where it still runs."""
        if self.process.returncode is None:
            self.process.kill()
        with contextlib.suppress(ValueError):  # its output was read already
            self.process.communicate()


def check_error(result: Result, kind: str, *said: str, guest: str = "") -> None:
    """It failed with this kind of error, and says what went wrong with what, how the guest is, and what to do."""
    assert result.get("failed"), result["msg"]
    assert result["error"] == kind, result["msg"]
    for text in (*said, result["guest_state"], result["cure"]):
        assert text
        assert text in result["msg"], result["msg"]
    assert result["image"]["state"]
    assert result["guest"] == guest if guest else result["guest"]
