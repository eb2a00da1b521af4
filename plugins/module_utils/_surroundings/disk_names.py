# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Disks that QEMU cannot open again by their names, so that a save would fail when all of the memory is written.

When a migration has written all, QEMU lets go of its disks. A disk of ``-drive`` is then opened again, read-only, by
its name (``auto-read-only``, on for those, in block/file-posix.c). Where the file was moved or removed, or QEMU has
left the directory from which that counts (``-daemonize``) or gone into a jail (``-run-with chroot=``), or may not read
the file any more (a file server that takes root for nobody), it ends the migration with "Bad address" or "Block
inactivate failed" (tried with QEMU 7.2, 10.0 and 11.1), and the guest, which stood still all the time, goes on. A node
of ``-blockdev`` is not opened again.
"""

from __future__ import annotations

import asyncio
import os
import stat

from ansible_collections.vmops.qemu.plugins.module_utils._cancellation import looking, within
from ansible_collections.vmops.qemu.plugins.module_utils._proc import proc_path
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import command_line
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.file_names import own_jail
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import QemuProcess
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.block_graph import BlockGraph
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.verdict import Problem

#: Seconds that the host's file systems may take to answer.
_HOST_TIMEOUT = 10.0


async def look_at_disk_names(graph: BlockGraph, process: QemuProcess) -> list[Problem]:
    """Those of a running QEMU; never raises."""
    try:
        return await within(_HOST_TIMEOUT, looking(disk_name_problems, graph, process))
    except asyncio.TimeoutError:
        what = (
            "the names by which QEMU opens its disks again at the end of a save could not be looked at within"
            f" {_HOST_TIMEOUT:g} seconds"
        )
        return [Problem("disk_unknown", what, "See which file system of them does not answer")]


def disk_name_problems(graph: BlockGraph, process: QemuProcess) -> list[Problem]:
    """The same; it looks at files, which may hang."""
    if any(kind == "temporary_disks" for kind, _what in command_line.replay_obstacles(process.configuration.words)):
        return []  # whose files have no names from the start, and are not opened again
    problems = []
    for drive in graph.drives:
        if not drive.node or not drive.backend or drive.read_only:
            continue
        for layer in graph.layers(drive.node)[:1]:
            name = layer.node.filename
            lost = _why_lost(name, process) if layer.node.driver == "file" and name else None
            if lost:
                what, cure = lost
                problems.append(
                    Problem(
                        "disk_name_lost",
                        f"QEMU opens its disk {drive.backend} again by the name {name} at the end of a save, and"
                        f" {what}, so the save would fail",
                        f"{cure}, or with the disk as a node (-blockdev)",
                        fails_save=True,
                    )
                )
    return problems


def _why_lost(name: str, process: QemuProcess) -> tuple[str, str] | None:
    """Why QEMU could not open the file by this name, as a clause, and what to do; None as far as is known."""
    base = proc_path(process.pid, "root" if os.path.isabs(name) else "cwd")
    place = os.path.join(base, name.lstrip("/"))
    # What root is denied here, it is denied there. What others may do depends on groups, too.
    is_root = process.uid == os.geteuid() == 0
    try:
        os.stat(base)
    except OSError:
        return None
    try:
        facts = os.stat(place)
        if is_root and stat.S_ISREG(facts.st_mode):  # opening a device may do something
            os.close(os.open(place, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except (FileNotFoundError, NotADirectoryError):
        return (
            f"that leads nowhere {_why(name, process)}",
            "Put a file that was moved back (ln, where it was only renamed); start the VM with absolute paths and"
            " without chroot",
        )
    except PermissionError:
        if is_root:
            return (
                "root may not read that file any more, as where a file server takes root for another user (root"
                " squash)",
                "Open the file to that user, or have the server leave root as it is (no_root_squash); start the VM as"
                " the file's owner",
            )
    except (OSError, ValueError):
        pass  # whose file system does not say it
    return None


def _why(name: str, process: QemuProcess) -> str:
    if own_jail(process.configuration.words):
        return "from the jail into which it has gone (chroot)"
    if command_line.daemonizes(process.argv) and not os.path.isabs(name):
        return "from the directory into which it has gone (-daemonize)"
    return "any more, as the file was moved or removed"
