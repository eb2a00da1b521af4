# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The limits of a QEMU's control group below its slice: of a scope, or a group that somebody made, which goes with it.

A slice that is configured is used again; what the VM's own unit sets is set again by it. Of control groups of version 1
nothing is said.

Source: Linux's Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import os
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._bounded_read import read_bounded
from ansible_collections.vmops.qemu.plugins.module_utils._proc import Pid, read_proc
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.verdict import Problem

_ROOTS = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")

#: How many tasks there may be is left out: systemd limits that for each group, and no QEMU comes near it.
_LIMITS = ("memory.max", "memory.high", "memory.swap.max", "cpu.max", "io.max", "cpuset.cpus", "cpuset.mems")

#: Bytes of one limit, and groups that are looked at.
_MAX_SIZE = 64 * 1024
_MAX_GROUPS = 64
_MAX_SHOWN = 100


def control_group_problems(pid: int, starter: int) -> list[Problem]:
    """What of them a start in another control group would not give again; never raises.

    :param starter: the process in whose group it would be started, 1 for a group of its own.
    """
    path = _path(pid)
    if starter != 1 and path == _path(starter):
        return []
    found = list(_limits(path))
    if not found:
        return []
    return [
        Problem(
            "control_group",
            f"the limits of the control group {path} of its QEMU (pid {pid}) would be lost at a restore:"
            f" {', '.join(found)}",
            "Set them for a slice that is configured (MemoryMax=, CPUQuota=), and start the VM there (systemd-run"
            " --slice=), or for a systemd unit of its own",
            blocks=False,
        )
    ]


def _path(pid: Pid) -> str:
    """The path of a process's group of version 2; the empty string for the root, or none."""
    try:
        lines = read_proc(pid, "cgroup").decode("utf-8", "surrogateescape").splitlines()
    except OSError:
        return ""
    return next((line[len("0::") :].rstrip("/") for line in lines if line.startswith("0::/")), "")


def _limits(path: str) -> t.Iterator[str]:
    """The limits of a group and of those above it, up to the slice."""
    for _step in range(_MAX_GROUPS):
        if not path.strip("/") or path.endswith(".slice"):
            return
        for name in _LIMITS:
            value = _read(path, name)
            if value and not value.startswith("max"):
                yield f"{name} {value[:_MAX_SHOWN]}"
        path = os.path.dirname(path)


def _read(path: str, name: str) -> str:
    for root in _ROOTS:
        try:
            text = read_bounded(f"{root}{path}/{name}", _MAX_SIZE)
        except OSError:
            continue
        return " ".join(text.decode("ascii", "replace").split())
    return ""
