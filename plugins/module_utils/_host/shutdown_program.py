# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The save of VMs at their host's shutdown, which ``vmops-save.service`` runs without Ansible when it is stopped.

What cannot be saved, or not in time, is left to whoever shuts it down: its guest goes on until then. So are libvirt's
VMs.

A restore that is at work, which systemd stops only after this service, is told to end first: what it brought back
behind the save would be lost. Another save is left half of the time to come to its end, and those whom it puts back are
saved here. After that the VMs are saved beside whoever still works, since those that are not saved end anyway.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._cancellation import in_thread
from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    ConflictError,
    InterruptedOperationError,
    UnitError,
)
from ansible_collections.vmops.qemu.plugins.module_utils._file_system import lasting
from ansible_collections.vmops.qemu.plugins.module_utils._host.journal import Journal
from ansible_collections.vmops.qemu.plugins.module_utils._host.progress import HostProgress
from ansible_collections.vmops.qemu.plugins.module_utils._host.run_lock import host_run_lock, runs_at_work
from ansible_collections.vmops.qemu.plugins.module_utils._host.save import HostSaveOperation, HostSaveRequest
from ansible_collections.vmops.qemu.plugins.module_utils._host.service import (
    StandardStreams,
    exit_status,
    read_settings,
    run_as_service,
)
from ansible_collections.vmops.qemu.plugins.module_utils._names import label_of_unit
from ansible_collections.vmops.qemu.plugins.module_utils._process_handle import ProcessHandle
from ansible_collections.vmops.qemu.plugins.module_utils._progress import read_progress
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import systemd
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.manager import HOST, Manager
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import QemuProcess, list_processes
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.selection import distinct_names, names_of
from ansible_collections.vmops.qemu.plugins.module_utils._save.ending import unit_of


@dataclasses.dataclass(frozen=True)
class ShutdownSettings:
    """What is asked for, as it stands in a file."""

    save_dir: str
    #: Shell patterns of the names of VMs that are left alone.
    exclude: list[str]
    parallel: int
    #: Seconds for all of it.
    timeout: float

    @classmethod
    def parse(cls, settings: t.Mapping[str, t.Any]) -> ShutdownSettings:
        """:raises KeyError: one is missing. :raises ValueError: one makes no sense, as TypeError."""
        return cls(
            save_dir=str(settings["save_dir"]),
            exclude=[str(pattern) for pattern in settings["exclude"]],
            parallel=int(settings["parallel"]),
            timeout=float(settings["timeout"]),
        )

    def request(self, names: list[str]) -> HostSaveRequest:
        """The save of these VMs, of as many as can be."""
        return HostSaveRequest(
            vms=names,
            include=["*"],
            exclude=[],
            save_dir=self.save_dir,
            parallel=self.parallel,
            on_error="continue",
            unsaved="ignore",
            shutdown_timeout=0.0,
            common={"after_save": "quit", "timeout": self.timeout},
            by_vm={},
            check_mode=False,
        )


async def vms_to_save(exclude: t.Iterable[str]) -> tuple[list[str], list[QemuProcess]]:
    """What the VMs are called that run here and are to be saved; and those that nothing names, which cannot be."""
    processes, patterns = await in_thread(list_processes), list(exclude)
    own_names = distinct_names(processes)
    called, nameless = set(), []
    for process in processes:
        if not process.is_in_charge or process.is_of_libvirt:
            continue
        own = own_names[process.pid] or process.name
        if not own:
            with contextlib.suppress(UnitError):  # who cannot be asked names nothing
                own = label_of_unit(await unit_of(process))
        if names_of(process, own).matches(patterns):
            continue
        if own:
            called.add(own)
        else:
            nameless.append(process)
    return sorted(called), nameless


def main(settings: str) -> int:
    """Save the VMs of this host where it shuts down; do nothing where only the service is stopped.

    :param settings: the path of a JSON file, as :class:`ShutdownSettings` takes it.
    :returns: the exit status: 0 where all that was to be saved was saved, else 1.
    """
    journal = StandardStreams()

    async def work() -> bool:
        asked = read_settings(settings, ShutdownSettings.parse)
        if not await _host_goes_down():
            journal.say("this host does not shut down, so no VM is touched")
            return True
        place = await in_thread(lasting, asked.save_dir)
        where = f"{asked.save_dir} is on {place.place}, a file system ({place.kind or 'unknown'})"
        # Not of a user's own systemd, which also ends when that user logs out.
        if place.is_refused and os.geteuid() == 0:
            raise ConflictError(
                f"{where} that {'goes' if place.lasts is False else 'is not known to stay, and may go,'} with this"
                " host's shutdown: no VM is saved there, and each ends as its own unit ends it",
                cure="Choose a directory on a disk (vmops_qemu_save_dir), and run the role vmops.qemu.host_setup again",
            )
        if place.lasts is None:
            journal.say(f"{where} that is not known to outlast this host's shutdown; the VMs are saved there, as asked")
        with HostProgress("save", asked.save_dir, journal) as progress:
            return await _save(asked, progress)

    return exit_status(work, journal)


async def _save(asked: ShutdownSettings, journal: Journal) -> bool:
    """Save all that run, in the time that is given; whether nothing is left that was to be saved."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with contextlib.AsyncExitStack() as stack:
        _end_restores(asked.save_dir, journal)
        enough = began + asked.timeout / 2
        lock = host_run_lock(asked.save_dir, 0, journal, lambda: "this shutdown" if loop.time() > enough else "")
        left: set[str] = set()
        try:
            await stack.enter_async_context(lock)
        except InterruptedOperationError:
            # To wait for those, too, would keep the others from being saved.
            left = {progress.vm for progress in read_progress()}
            but_for = f", but for those on which others are at work ({', '.join(sorted(left))})" if left else ""
            journal.complain(f"another run is still at work: the VMs are saved beside it{but_for}")
        waited = loop.time() - began
        called, nameless = await vms_to_save(asked.exclude)
        for process in nameless:
            # Not by the journal of the run, which is to say itself what keeps it from its begin.
            StandardStreams().complain(
                f"A QEMU (pid {process.pid}) cannot be saved: it has no name, uuid or unit of its own by which it could"
                " be found again. Start it with -name or -uuid"
            )
        names = [name for name in called if name not in left]
        if not names:
            journal.say("no VM is to be saved")
            return not left and not nameless
        operation = HostSaveOperation(asked.request(names), journal, has_lock=True)
        loop.call_later(asked.timeout - waited, operation.stop, "the end of its time")
        return not (await run_as_service(operation))["failures"] and not left and not nameless


def _end_restores(save_dir: str, journal: Journal) -> None:
    """Tell the restores that are at work to end, which leave their images as they are."""
    for run in runs_at_work(save_dir):
        if run.operation == "restore":
            journal.say(f"the restore that is at work (pid {run.pid}) is told to end")
            with contextlib.closing(ProcessHandle(run.pid, run.birth)) as process:
                process.terminate()


async def _host_goes_down() -> bool:
    """Whether systemd shuts this host down, or, of a user, his own systemd ends; raises UnitError."""
    uid = os.geteuid()
    whose = Manager(uid) if uid else HOST
    return (await systemd.systemctl("show", "--property=SystemState", "--value", manager=whose)).strip() == "stopping"
