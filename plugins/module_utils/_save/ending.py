# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What comes after the image is complete: the guard of the VM's unit, and QEMU's end, or the guest going on."""

from __future__ import annotations

from ansible_collections.vmops.qemu.plugins.module_utils._errors import ConflictError
from ansible_collections.vmops.qemu.plugins.module_utils._image.names import all_forms
from ansible_collections.vmops.qemu.plugins.module_utils._launch import free_units
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import QemuProcess
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.revival import boot_time, look_for_revival, was_reaped
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.session import VmSession
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.unit import guard_unit, read_vm_unit
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.vm import LIVE_STATES, RunningVm
from ansible_collections.vmops.qemu.plugins.module_utils._save.run import SaveRun
from ansible_collections.vmops.qemu.plugins.module_utils._situation import Situation
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.supervisor import waits_for

#: Seconds for which a QEMU is looked for that somebody starts again who has seen the end of ours.
_REVIVAL_TIME = 1.5


async def unit_of(process: QemuProcess | None) -> str:
    """The unit that starts a VM, as systemd knows it of its process; the empty string where none does.

    :raises UnitError: systemd cannot be asked.
    """
    unit = await read_vm_unit(process) if process else None
    return unit.name if unit and unit.starts_vm else ""


async def guard(run: SaveRun, unit: str) -> None:
    """Keep the VM's unit, where it has one, from starting the VM from its disks while the image is there.

    :raises UnitError: it could not be done.
    """
    if run.request.guards and unit:
        await guard_unit(unit, all_forms(run.path))


async def end_save(run: SaveRun, session: VmSession, run_state: str) -> None:
    """Do with the stopped VM what was asked for; the image is complete and on disk.

    :param run_state: QEMU's run state before the save.
    :raises MonitorError: QEMU does not do it.
    :raises ConflictError: somebody has started the VM again, beside its image; or it sleeps, and cannot go on.
    """
    label = session.label
    image_is_safe = f"the image {run.path} is complete"
    after_save = run.request.after_save
    if after_save == "pause":
        run.situation = Situation(f"{label} is paused (QEMU's run state postmigrate; cont continues it)", "paused")
    elif after_save == "resume" and run_state == "suspended":
        run.situation = Situation(f"{label} is stopped and {image_is_safe}", "paused")
        raise ConflictError(
            f"{label} fell asleep (S3) while it was saved, and QEMU cannot let it go on there",
            cure="Restore it (qemu_restore), which lets it sleep on in a new QEMU",
        )
    elif after_save == "resume":
        shall_run = run_state in LIVE_STATES or run_state == "postmigrate"
        run.situation = (
            Situation(f"The image {run.path} is complete; whether {label} runs is not known")
            if shall_run
            else Situation(f"{label} is stopped as before the save", "paused")
        )
        with session.patience(way_back=True):
            # One that was paused, too: in postmigrate it could not be saved again.
            await session.twice(lambda: session.put_guest_back("running" if shall_run else run_state))
        if shall_run:
            await end_checkpoint(run, session)
        else:
            await free_units("", session.process, run.path)
    else:
        run.situation = Situation(f"{label} is stopped and {image_is_safe}", "paused")
        quit_at, waited_for = boot_time(), session.pid is not None and waits_for(session.pid)
        await session.quit()
        run.situation = Situation(f"{label} has ended and {image_is_safe}", "saved")
        if session.process:
            await _require_no_revival(run, session.vm, session.process, quit_at, waited_for)


async def end_checkpoint(run: SaveRun, session: VmSession) -> None:
    """What is left to do where the guest goes on, and the image is complete.

    The image is not the guest's truth any more, but an earlier save may have guarded it. What cannot be removed now is
    removed by the VM's next save or restore.
    """
    run.situation = Situation(f"{session.label} runs, and the image {run.path} is complete", "running")
    await free_units("", session.process, run.path)


async def _require_no_revival(
    run: SaveRun, vm: RunningVm, process: QemuProcess, quit_at: float, waited_for: bool
) -> None:
    """See that nobody has started the VM again, from its disks, as soon as its QEMU had ended.

    :param quit_at: when that was told to quit, in seconds since the host's boot.
    :param waited_for: whether somebody may wait for its end.
    :raises ConflictError: somebody has: the VM runs beside its image.
    """
    attentive = waited_for and await was_reaped(process.pid)
    revived = await look_for_revival(vm.name, vm.uuid, process, _REVIVAL_TIME if attentive else 0.0, since=quit_at)
    if revived is None:
        return
    raise ConflictError(
        f"{vm.label} was started again, from its disks, as soon as its QEMU had ended: it runs beside its image",
        cure=f"End it (pid {revived.pid}) before it writes more, keep what started it from doing so, and restore"
        " the image, which says whether it still fits the disks. If what runs shall go on, remove the image",
        situation=Situation(
            f"{vm.label} was saved, {run.path} is complete, and it was started again from its disks"
            f" (pid {revived.pid})",
            "running",
        ),
    )
