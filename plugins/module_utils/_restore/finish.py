# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The one ending of a restore, however it was come to."""

from __future__ import annotations

import asyncio
import dataclasses

from ansible_collections.vmops.qemu.plugins.module_utils._cancellation import in_thread
from ansible_collections.vmops.qemu.plugins.module_utils._errors import ConflictError, ImageError, MigrationError
from ansible_collections.vmops.qemu.plugins.module_utils._image.edit import mark_checkpoint
from ansible_collections.vmops.qemu.plugins.module_utils._image.head import ImageHead
from ansible_collections.vmops.qemu.plugins.module_utils._image.last_save import mark_superseded
from ansible_collections.vmops.qemu.plugins.module_utils._image.place import remove_image
from ansible_collections.vmops.qemu.plugins.module_utils._image.vouching import is_vouched
from ansible_collections.vmops.qemu.plugins.module_utils._launch import free_units
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import QemuProcess
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.session import VmSession
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.transfer import Transfer
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.vm import LIVE_STATES
from ansible_collections.vmops.qemu.plugins.module_utils._restore.guest_clock import look_at_clock
from ansible_collections.vmops.qemu.plugins.module_utils._restore.load_note import LoadNote
from ansible_collections.vmops.qemu.plugins.module_utils._restore.run import RestoreRun
from ansible_collections.vmops.qemu.plugins.module_utils._situation import Situation, guest_in
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.pid_files import update_pid_files
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.record import Surroundings


async def finish_restore(
    run: RestoreRun,
    session: VmSession,
    head: ImageHead | None,
    running: bool,
    *,
    transfer: Transfer | None = None,
    recorded_unit: str = "",
) -> bool:
    """With the guest in QEMU: the image's mark, the guest, the image, the VM's unit, and the note in QEMU.

    :param head: that of the image, where it is there, and the one that was loaded; None also where nothing was.
    :param running: whether the guest shall run.
    :param transfer: what QEMU has set and holds for this restore; None where there is nothing of it.
    :param recorded_unit: the unit that the image names, where it may be believed.
    :returns: whether the image was removed.
    :raises MigrationError: the guest does not come to where it shall be.
    :raises MonitorError: QEMU cannot be reached any more.
    """
    label = session.label
    kept = ""
    if head:
        await _mark_used(run, head)
        await _end_note(run, head)
        kept = f", and its image {run.path} was kept"
    run.situation = Situation(f"{label} is in its QEMU{kept}; whether it runs is not known")
    with session.patience(way_back=True):
        run_state = await session.twice(lambda: _let_go_on(session, transfer, running, head is not None))
    if (run_state in LIVE_STATES) != running:
        raise MigrationError(
            f"{label} was told to {'go on' if running else 'stand still'}, but is in QEMU's run state {run_state}",
            situation=Situation(f"{label} is in its QEMU{kept}", guest_in(run_state)),
            cure="Look at the guest; let it go on with QMP cont",
        )
    run.situation = Situation(f"{label} {words_for(run_state)}", guest_in(run_state))
    session.vm = dataclasses.replace(session.vm, run_state=run_state)
    removed = head is not None and await _see_image_off(run, head)
    _changed, problem = await free_units(recorded_unit, session.process, run.path)
    if problem:
        run.warnings.append(f"Its unit may still be kept from starting {run.subject} from its disks: {problem}")
    if run_state == "running":
        run.clock = await look_at_clock(session, run.request.sync_time)
    if head and session.process:
        run.warnings += await in_thread(_bring_up_to_date, head, session.process)
    if transfer:
        # Last, as the note tells a later run that the image is used up.
        await session.twice(transfer.descriptors.remove)
    return removed


def words_for(run_state: str) -> str:
    """What a restored guest does, as the rest of a sentence."""
    return {"running": "runs", "suspended": "sleeps (S3)"}.get(run_state, "is paused")


async def _let_go_on(session: VmSession, transfer: Transfer | None, running: bool, marked: bool) -> str:
    """QEMU's settings as they were found, and then the guest; its run state. May be done twice.

    :param marked: whether there is an image, which says now that the guest goes on; else it had done so long ago.
    """
    if transfer:
        await transfer.settings.restore()
    run_state = await session.put_guest_back("running" if running else "paused")
    if run_state == "paused" and not running and transfer and transfer.settings.activates_late and marked:
        # An earlier run was about to let it go: only that activates its disks, and without that QEMU (7.2) dies of the
        # next migration. Both are sent at once, as where a guest is put back.
        await asyncio.gather(session.monitor.execute("cont"), session.monitor.execute("stop"))
        run_state = await session.run_state()
    if run_state in LIVE_STATES and not running:
        # An earlier run had let it go.
        await session.monitor.execute("stop")
        run_state = await session.run_state()
    return run_state


def _bring_up_to_date(head: ImageHead, process: QemuProcess) -> list[str]:
    """Have the pid files that others keep of the VM name its new process; what could not be done, in sentences.

    Only those that a save of this user's, or root's, has found: others could have any file written to.
    """
    domain = head.domain()
    if domain.save_facts is None or not is_vouched(domain):
        return []
    try:
        recorded = Surroundings.parse(domain.save_facts.surroundings)
    except ValueError:
        return []
    return update_pid_files(recorded.pid_files, process)


async def _mark_used(run: RestoreRun, head: ImageHead) -> None:
    """Say in the image that its guest goes on, before it does: it may outlast a removal that fails, or a crash."""
    try:
        await in_thread(mark_checkpoint, run.path, head)
    except (ConflictError, ImageError) as exc:
        if not run.request.remove_image:
            run.warnings.append(
                f"The image does not say that its guest went on, and must not be restored again: {exc.what}"
            )


async def _end_note(run: RestoreRun, head: ImageHead) -> None:
    """What was written anew is whole, and what is written to it from now on is the guest's."""
    note = await in_thread(LoadNote.of, head)
    try:
        await in_thread(note.remove)
    except OSError as exc:
        run.warnings.append(f"Remove {note.path} by hand, as the restore has come to its end ({exc.strerror})")


async def _see_image_off(run: RestoreRun, head: ImageHead) -> bool:
    """With the guest where it should be: no older save must take the place of this one; whether it was removed."""
    try:
        run.warnings += await in_thread(mark_superseded, run.path, head)
    except ImageError as exc:
        run.warnings.append(f"Whether older images of {run.subject} lie beside it is not known: {exc.what}")
    if not run.request.remove_image:
        return False
    try:
        await in_thread(remove_image, run.path, head.file_id)
    except ImageError as exc:
        # The guest is where it should be: that is no failure of the restore, but a trap for the next one.
        run.warnings.append(f"Remove the image by hand, it must not be restored again: {exc.what}")
        return False
    run.removed = True
    return True
