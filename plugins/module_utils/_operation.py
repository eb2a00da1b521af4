# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What saving and restoring share: what a run knows and says, its locks, and how it finds the VM."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import dataclasses
import os
import time
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._cancellation import despite_cancellation
from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    BusyError,
    LockHeldError,
    MonitorError,
    MonitorForeignError,
    MonitorLostError,
    MonitorMissingError,
    VmopsError,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.head import ImageHead
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_lock import image_lock
from ansible_collections.vmops.qemu.plugins.module_utils._image.info import image_state, image_word
from ansible_collections.vmops.qemu.plugins.module_utils._last_run import note_run
from ansible_collections.vmops.qemu.plugins.module_utils._lock import LOCK_TIMEOUT
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.identity import (
    RecordedIdentity,
    choose_process,
    connect_by_process,
    is_trusted,
    when_taken,
)
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.lock import vm_lock
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.migration import fingerprint, query_state
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.monitor import Monitor
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import QemuProcess, list_processes
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process_watch import is_alive
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.selection import Selection
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.session import VmSession
from ansible_collections.vmops.qemu.plugins.module_utils._situation import Situation

#: Seconds between two tries to take a lock.
_LOCK_INTERVAL = 0.05

_Result = t.TypeVar("_Result")


class Locks(contextlib.ExitStack):
    """What one run holds so that no other works on the same VM or image; let go at its end, however it ends."""

    def __init__(self) -> None:
        super().__init__()
        self._pids: set[int] = set()

    async def take_vm(self, process: QemuProcess) -> None:
        """:raises ConflictError: another run works on this VM."""
        if process.pid not in self._pids:
            await self._take(lambda: vm_lock(process, 0.0))
            self._pids.add(process.pid)

    async def take_image(self, path: str) -> None:
        """:raises ConflictError: another run works on this image."""
        await self._take(lambda: image_lock(path, 0.0))

    async def _take(self, make: t.Callable[[], contextlib.AbstractContextManager[None]]) -> None:
        """Take a lock within the time for locks; the other runs of this process go on while it is waited for."""
        deadline = time.monotonic() + LOCK_TIMEOUT
        while True:
            try:
                self.enter_context(make())
                return
            except (BusyError, LockHeldError):
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(_LOCK_INTERVAL)


class Run(abc.ABC):
    """A save or a restore while it runs; ``situation`` says at any time how the guest is.

    How the image is, is looked at where that is to be told, at the end.
    """

    #: ``save`` or ``restore``, where it is kept when such a run last ended; empty where not.
    kind = ""

    def __init__(self, path: str, subject: str) -> None:
        """:param path: the image's; empty where it is not known yet. :param subject: who it is about, for messages."""
        self.path = path
        self.subject = subject
        self.situation = Situation("The guest was not touched")
        #: What it waits for that may take long, as a noun; empty for nothing.
        self.awaited = ""
        self.locks = Locks()
        #: What is to be known of other QEMUs that have the VM's name, and of how it went.
        self.warnings: list[str] = []
        #: The VM, where it is there, as soon as it is known.
        self.session: VmSession | None = None
        #: How image and VM were found, for diff mode.
        self.before = {"image": image_state(path) if path else "absent", "vm": "ended"}

    async def run(self) -> dict[str, t.Any]:
        """Do it.

        :returns: the module's return values.
        :raises VmopsError: with its situation filled in.
        """
        try:
            with self.locks:
                result = await self._run()
            if result.get("changed"):
                self._note(True)
            return result
        except BaseException as exc:
            self._note(False)
            if isinstance(exc, VmopsError) and exc.situation:
                self.situation = exc.situation
            elif await despite_cancellation(self._has_lost_qemu(isinstance(exc, MonitorLostError))):
                self.situation = self._ended()
            if self.path:
                self.situation = dataclasses.replace(self.situation, image=self._image_word())
            if isinstance(exc, VmopsError):
                exc.situation = self.situation
            raise

    def _note(self, succeeded: bool) -> None:
        if self.kind and not self.is_planned:
            note_run(self.kind, succeeded)

    @property
    def is_planned(self) -> bool:
        """Whether it is only to be told what it would do."""
        return False

    @abc.abstractmethod
    async def _run(self) -> dict[str, t.Any]:
        """As :meth:`run`, with the locks let go and the situation told by that."""

    async def await_long(self, what: str, work: t.Awaitable[_Result]) -> _Result:
        """The result of work that may take long; where the time is up meanwhile, it is told that this was awaited.

        :param what: what is awaited, as a noun.
        """
        self.awaited = what
        result = await work
        self.awaited = ""
        return result

    async def _has_lost_qemu(self, lost: bool) -> bool:
        """Whether a QEMU has ended that is said to have the guest, or (``lost``) whose connection has ended."""
        if self.session is None or not (lost or self.situation.guest in ("running", "paused")):
            return False
        return await self.session.has_ended(lost)

    def _image_word(self) -> str:
        """The word for what is at the image's path."""
        return image_word(self.path)

    @abc.abstractmethod
    def _ended(self) -> Situation:
        """How the guest is whose QEMU has ended meanwhile."""


async def connect_to_vm(
    selection: Selection,
    qmp_socket: str | None,
    locks: Locks,
    warnings: list[str],
    recorded: RecordedIdentity | None = None,
    must_match: bool = False,
    find: t.Callable[[], t.Sequence[QemuProcess]] | None = None,
    for_image: bool = False,
) -> Monitor | None:
    """A session with the VM's QEMU, by socket or through the running processes; None where it does not run.

    That nothing answers at a socket is not enough to say so: its path may be misspelt, or the socket removed.

    :param selection: which VM; empty where only the socket says it.
    :param locks: holds the VM's lock afterwards.
    :param warnings: gets a sentence where other users' QEMUs have its name, too.
    :param recorded: who ran the VM when it was saved, where its image says so.
    :param must_match: that a QEMU of that name is the VM only if it is theirs, root's or the caller's.
    :param find: finds the QEMUs that may be meant; None for all of which the selection is true.
    :param for_image: as for ``connect_by_process``; what a socket's address names is used in any case.
    :raises ConflictError: another run works on it.
    :raises MonitorError: it runs, but its monitor cannot be used.
    :raises VmAmbiguousError: several run.
    :raises UnitError: systemd cannot be asked whether the recorded unit is there.
    """
    find = find or selection.find
    if qmp_socket:
        address = qmp_socket if ":" in qmp_socket else os.path.abspath(qmp_socket)
        # Before the monitor is asked, which would be silent while the other run holds it.
        listening = [process for process in list_processes() if address in process.addresses]
        if len(listening) == 1:
            await locks.take_vm(listening[0])
        try:
            return await _connect_by_socket(address, listening, warnings)
        except MonitorMissingError as exc:
            found = [process for process in list_processes() if address in process.addresses]
            for running in [*found, *(find() if selection else ())]:
                if is_trusted(running.uid, recorded) or not must_match:
                    exc.what += f", but {running.name or 'a VM without a name'} runs ({running.who})"
                    exc.cure = "Name one of its sockets: " + (", ".join(running.addresses) or "it has none")
                    raise
            return None
    if not selection:
        return None
    choice = await choose_process(
        selection.label,
        find(),
        recorded,
        # What the kernel says of a process is no pretence of its user's.
        must_match and not selection.is_the_kernels,
        selection.predicate(plural=True),
    )
    warnings += choice.warnings(selection.label)
    process = choice.process
    if process is None:
        return None
    await locks.take_vm(process)
    try:
        return _told(await connect_by_process(process, for_image=for_image), warnings)
    except MonitorError:
        if is_alive(process):
            raise
        return None  # it ended just now, as after a save of another run


async def _connect_by_socket(address: str, listening: t.Sequence[QemuProcess], warnings: list[str]) -> Monitor:
    """A session on the server at an address; raises MonitorError.

    :param listening: the QEMUs whose configuration opens it.
    """
    for process in listening:
        if address in process.human_addresses:
            with contextlib.suppress(MonitorForeignError):  # anyone's words may name it
                return _told(await connect_by_process(process, address=address), warnings)
    try:
        return await Monitor.connect(address)
    except MonitorMissingError:
        if len(listening) != 1:
            raise
    # It may have lost its name, or be where only that process sees it.
    return _told(await connect_by_process(listening[0], address=address), warnings)


def _told(monitor: Monitor, warnings: list[str]) -> Monitor:
    """The session; ``warnings`` gets a sentence where nobody else can have one."""
    if monitor.has_lost_its_name:
        warnings.append(
            f"The QMP socket {monitor.shown_address} has lost its name{when_taken(monitor.address)}, as when the VM"
            " is started a second time. Only root reaches it, until the VM is restored or started anew"
        )
    return monitor


def ended_vm(name: str | None, uuid: str | None) -> dict[str, t.Any]:
    """The ``vm`` return value of a VM that does not run."""
    facts = dict.fromkeys(("memory", "vcpus", "machine", "pid"))
    return {"name": name, "uuid": uuid, "run_state": "ended", **facts}


async def is_last_migration(monitor: Monitor, head: ImageHead) -> bool:
    """Whether the image is what this QEMU wrote last: its own figures of that migration are recorded in it."""
    facts = head.domain().save_facts
    if facts is None or not facts.migration:
        return False
    state = await query_state(monitor)
    return state["status"] == "completed" and facts.migration == fingerprint(state)
