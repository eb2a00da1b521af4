# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Disks whose names lead QEMU nowhere any more, so that a save would fail when all of the memory is written.

When a migration has written all, QEMU lets go of its disks. A disk of ``-drive`` is then opened again, read-only, by
its name (``auto-read-only``, on for those, in block/file-posix.c). Where the file was moved or removed, or QEMU has
left the directory from which that counts (``-daemonize``) or gone into a jail (``-run-with chroot=``), it ends the
migration with "Bad address" or "Block inactivate failed" (tried with QEMU 7.2, 10.0 and 11.1), and the guest, which
stood still all the time, goes on. A node of ``-blockdev`` is not opened again.
"""

from __future__ import annotations

import os

from ansible_collections.vmops.qemu.plugins.module_utils._proc import proc_path
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import command_line
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.file_names import own_jail
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import QemuProcess
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.block_graph import BlockGraph
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.verdict import Problem


def disk_name_problems(graph: BlockGraph, process: QemuProcess) -> list[Problem]:
    """Those of a running QEMU; it looks at files, and never raises."""
    if any(kind == "temporary_disks" for kind, _what in command_line.replay_obstacles(process.configuration.words)):
        return []  # whose files have no names from the start, and are not opened again
    problems = []
    for drive in graph.drives:
        if not drive.node or not drive.backend or drive.read_only:
            continue
        for layer in graph.layers(drive.node)[:1]:
            name = layer.node.filename
            if layer.node.driver == "file" and name and not _leads_somewhere(name, process.pid):
                problems.append(
                    Problem(
                        "disk_name_lost",
                        f"QEMU opens its disk {drive.backend} again by the name {name} at the end of a save, and that"
                        f" leads nowhere {_why(name, process)}, so the save would fail",
                        "Put a file that was moved back (ln, where it was only renamed); start the VM with absolute"
                        " paths and without chroot, or with the disk as a node (-blockdev)",
                        fails_save=True,
                    )
                )
    return problems


def _why(name: str, process: QemuProcess) -> str:
    if own_jail(process.configuration.words):
        return "from the jail into which it has gone (chroot)"
    if command_line.daemonizes(process.argv) and not os.path.isabs(name):
        return "from the directory into which it has gone (-daemonize)"
    return "any more, as the file was moved or removed"


def _leads_somewhere(name: str, pid: int) -> bool:
    base = proc_path(pid, "root" if os.path.isabs(name) else "cwd")
    try:
        os.stat(os.path.join(base, name.lstrip("/")))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError):
        pass  # what this user may not look at
    return True
