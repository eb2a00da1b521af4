# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The one ending of a restore, however it was come to."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses

from ansible_collections.vmops.qemu.plugins.module_utils._cancellation import in_thread
from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    CommandError,
    ConflictError,
    ImageAccessError,
    ImageError,
    ImageNotFoundError,
    MigrationError,
    VmopsError,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.edit import mark_checkpoint, unmark_checkpoint
from ansible_collections.vmops.qemu.plugins.module_utils._image.head import ImageHead
from ansible_collections.vmops.qemu.plugins.module_utils._image.last_save import mark_superseded
from ansible_collections.vmops.qemu.plugins.module_utils._image.place import remove_image
from ansible_collections.vmops.qemu.plugins.module_utils._image.vouching import is_vouched
from ansible_collections.vmops.qemu.plugins.module_utils._launch import free_units
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import QemuProcess
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.session import VmSession
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.transfer import Transfer
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.vm import LIVE_STATES
from ansible_collections.vmops.qemu.plugins.module_utils._restore.disks import is_mark_alone
from ansible_collections.vmops.qemu.plugins.module_utils._restore.guest_clock import look_at_clock
from ansible_collections.vmops.qemu.plugins.module_utils._restore.run import RestoreRun
from ansible_collections.vmops.qemu.plugins.module_utils._situation import Situation, guest_in
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.pid_files import update_pid_files
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.record import Surroundings


async def mark_used(run: RestoreRun, head: ImageHead, adopted: bool = False) -> None:
    """Say in the image that its guest goes on, before it does: it may outlast a removal that fails, or a crash.

    :param head: as it was read before it was loaded.
    :param adopted: whether it was loaded by another run, or its guest never left its QEMU.
    :raises ConflictError: somebody else has marked, removed or replaced it since, and may have its guest.
    :raises ImageAccessError: it cannot be marked, and nothing else would keep it from being restored again.
    """
    was_unmarked = not adopted and not head.header.checkpoint
    try:
        run.marked = await in_thread(mark_checkpoint, run.path, head)
        taken = "" if run.marked else "it is marked as one whose guest went on"
    except ImageAccessError as exc:
        if was_unmarked and run.request.remove_image and is_mark_alone(run):
            # It may be there, but not on the storage.
            with contextlib.suppress(ConflictError, ImageError):
                await in_thread(unmark_checkpoint, run.path, head)
            raise
        _warn_of_mark(run, exc)
        return
    except (ConflictError, ImageError) as exc:
        taken = exc.what
        if not was_unmarked:
            _warn_of_mark(run, exc)
    if taken and was_unmarked:
        raise ConflictError(
            f"Somebody else has taken the image while {run.subject} was loaded from it, so its guest was not let go on"
            f" here: {taken}",
            cure="See where it runs now: another host may restore from the same directory",
        )


def _warn_of_mark(run: RestoreRun, exc: VmopsError) -> None:
    if not run.request.remove_image:
        run.warnings.append(
            f"The image does not say that its guest went on, and must not be restored again: {exc.what}"
        )


async def finish_restore(
    run: RestoreRun,
    session: VmSession,
    head: ImageHead | None,
    running: bool,
    *,
    transfer: Transfer | None = None,
    recorded_unit: str = "",
) -> bool:
    """With the guest in QEMU and its image marked: the guest, the image, the VM's unit, and the note in QEMU.

    :param head: that of the image, where it is there, and the one that was loaded; None also where nothing was.
    :param running: whether the guest shall run.
    :param transfer: what QEMU has set and holds for this restore; None where there is nothing of it.
    :param recorded_unit: the unit that the image names, where it may be believed.
    :returns: whether the image is gone.
    :raises CommandError: QEMU does not let the guest go on.
    :raises MigrationError: the guest does not come to where it shall be.
    :raises MonitorError: QEMU cannot be reached any more.
    """
    label = session.label
    # A mark ends the note's force. Until the guest goes on, its disks are to be told from those of others by the note.
    is_marked = head is not None and (run.marked or head.header.checkpoint)
    if head and not is_marked:
        await _end_note(run)
    kept = f", and its image {run.path} was kept" if head else ""
    run.situation = Situation(f"{label} is in its QEMU{kept}; whether it runs is not known")
    tries = 0

    async def let_go_on() -> str | CommandError:
        nonlocal tries
        tries += 1
        return await _let_go_on(session, transfer, running, head is not None)

    with session.patience(way_back=True):
        run_state = await session.twice(let_go_on)
        if isinstance(run_state, CommandError):
            await _tell_refusal(run, session, head, tries == 1)
            raise run_state
    if (run_state in LIVE_STATES) != running:
        raise MigrationError(
            f"{label} was told to {'go on' if running else 'stand still'}, but is in QEMU's run state {run_state}",
            situation=Situation(f"{label} is in its QEMU{kept}", guest_in(run_state)),
            cure="Look at the guest; let it go on with QMP cont",
        )
    run.situation = Situation(f"{label} {words_for(run_state)}", guest_in(run_state))
    session.vm = dataclasses.replace(session.vm, run_state=run_state)
    if head and is_marked:
        await _end_note(run)
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


async def _let_go_on(session: VmSession, transfer: Transfer | None, running: bool, marked: bool) -> str | CommandError:
    """QEMU's settings as they were found, and then the guest; its run state, or QEMU's refusal. May be done twice.

    :param marked: whether there is an image, which says now that the guest goes on; else it had done so long ago.
    """
    if transfer:
        await transfer.settings.restore()
    try:
        run_state = await session.put_guest_back("running" if running else "paused")
    except CommandError as refusal:
        # It would be the same over another connection.
        return refusal
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


async def _tell_refusal(run: RestoreRun, session: VmSession, head: ImageHead | None, was_first: bool) -> None:
    """QEMU has refused to let the guest go on; one that has not run at all has not used up its image.

    :param was_first: whether no earlier try was lost, after which it may have run.
    :raises MonitorError: QEMU cannot be asked.
    """
    run_state = await session.run_state()
    if head and run.marked and was_first and run_state == "paused":
        try:
            await in_thread(unmark_checkpoint, run.path, head)
            run.marked = False
        except (ConflictError, ImageError) as exc:
            run.warnings.append(f"The image says that its guest went on, which it did not: {exc.what}")
    kept = f", and its image {run.path} was kept" if head else ""
    sentence = f"{session.label} is in its QEMU, in the run state {run_state}{kept}"
    run.situation = Situation(sentence, guest_in(run_state))


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


async def _end_note(run: RestoreRun) -> None:
    """What was written anew is whole, and what is written to it from now on is the guest's."""
    note = run.load_note
    if note is None:
        return
    try:
        await in_thread(note.remove)
    except OSError as exc:
        run.warnings.append(f"Remove {note.path} by hand, as the restore has come to its end ({exc.strerror})")


async def _see_image_off(run: RestoreRun, head: ImageHead) -> bool:
    """With the guest where it should be: no older save must take the place of this one; whether the image is gone."""
    try:
        run.warnings += await in_thread(mark_superseded, run.path, head)
    except ImageError as exc:
        run.warnings.append(f"Whether older images of {run.subject} lie beside it is not known: {exc.what}")
    if not run.request.remove_image:
        return False
    try:
        await in_thread(remove_image, run.path, head.file_id)
    except ImageNotFoundError:
        return True
    except ImageError as exc:
        # The guest is where it should be: that is no failure of the restore, but a trap for the next one.
        run.warnings.append(f"Remove the image by hand, it must not be restored again: {exc.what}")
        return False
    run.removed = True
    return True
