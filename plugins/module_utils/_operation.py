# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What saving and restoring share: naming the image, finding the VM, and putting its guest back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    CommandError,
    ImageError,
    ImageNotFoundError,
    MonitorError,
    MonitorLostError,
    MonitorMissingError,
    RequestError,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.file import ImageHead, image_lock, read_image_head
from ansible_collections.vmops.qemu.plugins.module_utils._image.info import image_info
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.identity import (
    RecordedIdentity,
    choose_process,
    connect_by_process,
    is_behind,
    is_trusted,
)
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.lock import vm_lock
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.migration import Migration, query_state
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.monitor import Monitor
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import (
    ProcessWatch,
    QemuProcess,
    find_processes,
    is_alive,
    list_processes,
)
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.vm import query_run_state

_Result = t.TypeVar("_Result")

_LONG = frozenset(("domain_xml", "cookie", "disks", "restore_problems", "launch"))

#: Seconds for which QEMU may refuse to let a guest go on because it is finishing a migration.
_FINALIZE_TIMEOUT = 30.0


def image_state(path: str) -> str:
    """What is at the path: C(absent), C(partial), C(complete), or C(invalid), which may be anything else."""
    try:
        return "complete" if read_image_head(path).header.complete else "partial"
    except ImageNotFoundError:
        return "absent"
    except ImageError:
        return "invalid"


def image_result(path: str) -> dict[str, t.Any]:
    """The C(image) return value: all of :func:`image_info` but the long parts, which would bury the rest."""
    return {key: value for key, value in image_info(path).items() if key not in _LONG}


class Locks(contextlib.ExitStack):
    """What one run holds so that no other works on the same VM or image; let go at its end, however it ends."""

    def __init__(self) -> None:
        super().__init__()
        self._pids: set[int] = set()

    def take_vm(self, process: QemuProcess) -> None:
        """:raises ConflictError: another run works on this VM."""
        if process.pid not in self._pids:
            self.enter_context(vm_lock(process))
            self._pids.add(process.pid)

    def take_image(self, path: str) -> None:
        """:raises ConflictError: another run works on this image."""
        self.enter_context(image_lock(path))


async def connect_to_vm(
    name: str | None,
    qmp_socket: str | None,
    locks: Locks,
    warnings: list[str],
    recorded: RecordedIdentity | None = None,
    must_match: bool = False,
) -> Monitor | None:
    """A session with the VM's QEMU, by socket or through the running processes; None where it does not run.

    That nothing answers at a socket is not enough to say so: its path may be misspelt, or the socket removed.

    :param locks: holds the VM's lock afterwards.
    :param warnings: gets a sentence where other users' QEMUs have its name, too.
    :param recorded: who ran the VM when it was saved, where its image says so.
    :param must_match: that a QEMU of that name is the VM only if it is theirs, root's or the caller's.
    :raises ConflictError: another run works on it.
    :raises MonitorError: it runs, but its monitor cannot be used.
    :raises VmAmbiguousError: several run.
    :raises UnitError: systemd cannot be asked whether the recorded unit is there.
    """
    if qmp_socket:
        address = qmp_socket if ":" in qmp_socket else os.path.abspath(qmp_socket)
        # Before the monitor is asked, which would be silent while the other run holds it.
        listening = [process for process in list_processes() if address in process.qmp_addresses]
        if len(listening) == 1:
            locks.take_vm(listening[0])
        try:
            return await Monitor.connect(address)
        except MonitorMissingError as exc:
            found = [
                process
                for process in list_processes()
                if (name and process.name == name) or address in process.qmp_addresses
            ]
            for running in found:
                if is_trusted(running.uid, recorded) or not must_match:
                    exc.what += f", but {running.name} runs ({running.who})"
                    exc.cure = "Name one of its sockets: " + (", ".join(running.qmp_addresses) or "it has none")
                    raise
            return None
    if not name:
        return None
    choice = await choose_process(name, find_processes(name), recorded, must_match)
    warnings += choice.warnings(name)
    process = choice.process
    if process is None:
        return None
    locks.take_vm(process)
    try:
        return await connect_by_process(process)
    except MonitorError:
        if is_alive(process):
            raise
        return None  # it ended just now, as after a save of another run


async def qemu_has_ended(process: QemuProcess | None, lost: bool) -> bool:
    """Whether the VM's QEMU, where it is known, is gone.

    :param lost: whether its connection is: a dying QEMU closes it a moment before it is gone.
    """
    if process is None:
        return False
    if lost:
        watch = ProcessWatch.of(process)
        await watch.wait_at_most(1.0)
        watch.close()
    return not is_alive(process)


async def twice(monitor: Monitor, process: QemuProcess | None, work: t.Callable[[], t.Awaitable[_Result]]) -> _Result:
    """Do it and, where it failed, do it once more over a new connection: that one was lost need not cost the guest.

    :param work: what may be done twice, as its first outcome is not known.
    :raises MonitorError: it failed again, or there is no QEMU any more.
    """
    try:
        return await work()
    except MonitorError:
        if await qemu_has_ended(process, monitor.lost):
            raise
        await monitor.connect_again()
        if process is not None and not is_behind(monitor, process):
            await monitor.close()
            raise MonitorLostError(
                f"QEMU's connection at {monitor.shown_address} ended, and it is not known to answer there any more",
                cure="Run the task again",
            ) from None
        return await work()


async def call_off_save(monitor: Monitor, migration: Migration, run_state: str) -> str:
    """Cancel what QEMU writes, and let the guest go on as before: at once, while the migration is being cancelled.

    :param run_state: QEMU's run state before the save.
    :returns: the run state now.
    :raises MonitorError: it could not be done.
    """
    if run_state == "running" and await migration.is_active():
        # At the migration's very end QEMU refuses; then it is asked again.
        with contextlib.suppress(CommandError):
            await monitor.execute("cont")
    await migration.cancel()
    return await put_guest_back(monitor, run_state)


async def put_guest_back(monitor: Monitor, run_state: str) -> str:
    """Bring the guest into the run state in which it was before a save, as far as QEMU allows; the run state then.

    :param run_state: QEMU's run state before the save.
    :raises MonitorError: QEMU refused, or was lost.
    """
    deadline = time.monotonic() + _FINALIZE_TIMEOUT
    while run_state == "running":
        try:
            await monitor.execute("cont")
            break
        except CommandError:
            # Refused at a migration's very end, also for a moment after its last event.
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.05)
    now = await query_run_state(monitor)
    if run_state != "running" and now == "postmigrate":
        # Only a guest that goes on leaves this state, in which it could not be saved again. Both commands are sent
        # at once, so that it runs for no longer than QEMU takes from the one to the other.
        await asyncio.gather(monitor.execute("cont"), monitor.execute("stop"))
        now = await query_run_state(monitor)
    return now


def ended_vm(name: str | None, uuid: str | None) -> dict[str, t.Any]:
    """The C(vm) return value of a VM that does not run."""
    facts = dict.fromkeys(("memory", "vcpus", "machine", "pid"))
    return {"name": name, "uuid": uuid, "run_state": "ended", **facts}


def check_parallel_channels(parallel_channels: int | None) -> None:
    """:raises RequestError: a number that QEMU's multifd-channels cannot be."""
    if parallel_channels is not None and not 1 <= parallel_channels <= 255:
        raise RequestError(
            f"parallel_channels is {parallel_channels}, but QEMU takes 1 to 255", cure="Leave it out for the default"
        )


def default_parallel_channels() -> int:
    """Channels when none are asked for: two for each CPU, from 2 to 8."""
    return max(2, min(8, 2 * (os.cpu_count() or 1)))


def migration_fingerprint(state: t.Mapping[str, t.Any]) -> str:
    """QEMU's figures of its last migration (C(query-migrate)), which tell one run from another."""
    ram = state.get("ram", {})
    figures = (ram.get("transferred", 0), ram.get("normal", 0), state.get("total-time", 0), state.get("setup-time", 0))
    return ":".join(str(figure) for figure in figures)


async def is_last_migration(monitor: Monitor, head: ImageHead) -> bool:
    """Whether the image is what this QEMU wrote last: its own figures of that migration are recorded in it."""
    facts = head.domain().save_facts
    if facts is None or not facts.migration:
        return False
    state = await query_state(monitor)
    return state["status"] == "completed" and facts.migration == migration_fingerprint(state)
