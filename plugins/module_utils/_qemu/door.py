# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The ways to a QEMU: its QMP servers, its human monitors, and where their sockets are as seen from here."""

from __future__ import annotations

import dataclasses
import functools
import os
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._cancellation import despite_cancellation
from ansible_collections.vmops.qemu.plugins.module_utils._errors import MonitorBusyError
from ansible_collections.vmops.qemu.plugins.module_utils._proc import proc_path
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import command_line
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.dial import Reach, open_socket, reachable, shown_address
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.human import Check, open_qmp
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.monitor import Dialled, Monitor


@dataclasses.dataclass(frozen=True)
class Door:
    """One monitor of a QEMU, and how it is reached."""

    address: str
    #: Whether it is a human monitor, through which a QMP one is opened.
    is_human: bool = False
    #: The process in whose root directory the socket is; None for ours.
    root_of: int | None = None
    #: Gives another path for its socket, which has lost its own.
    reach: Reach | None = dataclasses.field(default=None, compare=False)

    @property
    def shown_address(self) -> str:
        """Where it is, for messages."""
        return shown_address(self.address)

    @property
    def is_tcp(self) -> bool:
        """Whether it is a TCP port."""
        return not self.address.startswith(("/", "\0"))

    @property
    def passes_descriptors(self) -> bool:
        """Whether QEMU can be given its image through it: what a human monitor opens is at a UNIX socket, always."""
        return self.is_human or not self.is_tcp

    def seen_by(self, pid: int) -> list[Door]:
        """Where this door of a process may be as seen from here, the likelier place first."""
        if not self.address.startswith("/"):
            return [self]
        roots: list[int | None] = [pid, None]
        if not _is_other(pid, "ns/mnt"):
            # It may have changed its root after it had opened its sockets.
            roots = [None, pid] if _has_other_root(pid) else [None]
        return [dataclasses.replace(self, root_of=root) for root in roots]

    def is_out_of_reach(self, pid: int) -> bool:
        """Whether a process has this door in a network namespace of its own, which only paths cross."""
        return not self.address.startswith("/") and _is_other(pid, "ns/net")

    async def open(self, timeout: float | None, check: Check) -> Monitor:
        """A session.

        :param timeout: seconds until the server must have greeted; None for the usual.
        :param check: that it is the right QEMU.
        :raises MonitorForeignError: it is not.
        :raises MonitorError: it cannot be used; MonitorHumanError where the monitor is one through which nothing opens.
        """

        async def dial(seconds: float) -> Dialled:
            noun = "human monitor" if self.is_human else "QMP socket"
            busy = MonitorBusyError(
                f"Others wait already for the {noun} {shown_address(self.address)}", cure="End the other clients"
            )
            reach, where = self.reach, ""
            if reach is None and self.root_of is not None:
                reach = functools.partial(reachable, self.address, self.root_of)
                where = f" (as the process {self.root_of} sees it)"
            connection = await open_socket(self.address, seconds, busy, noun, reach, where)
            found = await open_qmp(connection, self.address, seconds, check) if self.is_human else Dialled(connection)
            return found._replace(has_lost_its_name=self.reach is not None)

        monitor = await Monitor.connect(self.address, timeout, dial)
        try:
            check(monitor)
        except BaseException:
            await despite_cancellation(monitor.close())
            raise
        return monitor


def doors(words: t.Sequence[str], cwd: str, pid: int | None = None) -> list[Door]:
    """The ways to a QEMU that was started with these words, the best ones first.

    A QMP server at a TCP port comes last: no descriptors, and so no images, can be passed to it, as they can to the one
    that is opened through a human monitor.

    :param pid: its process, where it is known: it may see other files than this one.
    """
    servers = [Door(address) for address in command_line.qmp_addresses(words, cwd)]
    human = [Door(address, is_human=True) for address in command_line.human_addresses(words, cwd)]
    found = [*(door for door in servers if not door.is_tcp), *human, *(door for door in servers if door.is_tcp)]
    return found if pid is None else [seen for door in found for seen in door.seen_by(pid)]


def doors_for_images(known: t.Sequence[Door]) -> list[Door]:
    """Of the ways to a QEMU those through which it can be given its image; all where there is none of them.

    A QMP server at a TCP port is no second choice where a better way is only not free yet, or not there yet.
    """
    return [door for door in known if door.passes_descriptors] or list(known)


def _is_other(pid: int, name: str) -> bool:
    """Whether a process has another one of these than this process; False where that cannot be told."""
    try:
        return not os.path.samestat(os.stat(proc_path(pid, name)), os.stat(proc_path("self", name)))
    except OSError:
        return False


def _has_other_root(pid: int) -> bool:
    """Whether a process in our mount namespace has another root directory; False where that cannot be told.

    By its path: a bind mount of our root has the same inode.
    """
    try:
        return os.readlink(proc_path(pid, "root")) != os.readlink(proc_path("self", "root"))
    except OSError:
        return False
