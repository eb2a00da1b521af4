# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Run a command, and kill it with all that it has started when lines that match came from so many hosts.

    kill_when.py PATTERN HOSTS COMMAND...

A host is what stands in brackets in such a line. The exit status is that of the command, 137 where it was killed.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys


def main(pattern: str, hosts: int, command: list[str]) -> int:
    """Run it; returns the exit status."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    assert process.stdout is not None
    seen = set()
    for line in process.stdout:
        print(line, end="", flush=True)
        if re.search(pattern, line):
            seen.add(line.split("]")[0])
        if len(seen) == hosts:
            os.killpg(process.pid, signal.SIGKILL)
            break
    process.stdout.close()
    status = process.wait()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))
