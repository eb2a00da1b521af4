# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A managed host that lies: its shell and its Python answer what a file says, and nothing is run."""

from __future__ import annotations

import fcntl
import json
import os
import re
from pathlib import Path

from ansible.plugins.connection import ConnectionBase

DOCUMENTATION = r"""
name: lying
short_description: Answer what a test says
description:
  - C(LYING_HOSTS) names a JSON file. By host it has C(tmpdir), which the shell prints as the temporary directory, and
    C(modules) - by name a list of results, one for each call, of which the last is repeated. What is read of a
    background job is C(job) of these.
options: {}
"""

_MODULE = re.compile(r"AnsiballZ_(\w+)\.py")


class Connection(ConnectionBase):  # type: ignore[misc]  # ansible-core has no types
    """What Ansible loads."""

    transport = "lying"
    has_pipelining = False

    def _connect(self):
        self._connected = True
        return self

    def exec_command(self, cmd, in_data=None, sudoable=True):
        """What the host prints."""
        super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
        host = self._task_host()
        modules = _MODULE.findall(cmd)
        if modules and "rm -f -r" not in cmd and "chmod" not in cmd:
            return 0, self._answer(host, "async_wrapper" if "async_wrapper.py" in cmd else modules[0]), b""
        if "finished" in cmd:
            return 0, self._answer(host, "job"), b""
        if "mkdir" in cmd:
            return 0, host["tmpdir"].encode(), b""
        if "boot_id" in cmd:
            return 0, self._answer(host, "boot_id"), b""
        return 0, b"", b""

    def put_file(self, in_path, out_path):
        """Forget the file."""

    def fetch_file(self, in_path, out_path):
        """Bring nothing."""

    def close(self):
        """There is nothing to close."""

    def _task_host(self):
        name = self._play_context.remote_addr
        known = json.loads(Path(os.environ["LYING_HOSTS"]).read_text())[name]
        return {"name": name, "tmpdir": f"/tmp/{name}", "modules": {}, **known}

    def _answer(self, host, module):
        log = Path(os.environ["LYING_HOSTS"] + ".log")
        with log.open("a+") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            handle.seek(0)
            before = handle.read().splitlines().count(f"{host['name']} {module}")
            handle.write(f"{host['name']} {module}\n")
        answers = host["modules"].get(module, [{}])
        answer = answers[min(before, len(answers) - 1)]
        # A string is printed as it is, for what JSON cannot say.
        return (answer if isinstance(answer, str) else json.dumps(answer)).encode("utf-8", "surrogatepass")
