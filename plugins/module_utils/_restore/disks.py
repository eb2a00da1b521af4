# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether the disks are those of the image's memory: before anything is started, and as QEMU has opened them."""

from __future__ import annotations

import dataclasses

from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    ConflictError,
    DiskMismatchError,
    ImageFormatError,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image import domain_xml
from ansible_collections.vmops.qemu.plugins.module_utils._image.head import ImageHead
from ansible_collections.vmops.qemu.plugins.module_utils._image.last_save import newer_image
from ansible_collections.vmops.qemu.plugins.module_utils._image.vouching import is_vouched
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.session import VmSession
from ansible_collections.vmops.qemu.plugins.module_utils._restore.run import RestoreRun
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.media_changes import changed_media, other_media
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.record import Surroundings
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.survey import read_all_media
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.verdict import Problem, blocking


def require_last_save(run: RestoreRun, head: ImageHead) -> None:
    """:raises ConflictError: there is a newer image of the VM beside it, and its disks are that one's."""
    newer = newer_image(run.path, head)
    if newer:
        why = (
            f"{newer} is newer, and the VM's disks have moved on since"
            if is_vouched(head.domain())
            else f"{newer} is newer, or is vouched for, as this one is not"
        )
        raise ConflictError(
            f"{run.path} is not the last save of {run.subject}: {why}",
            cure=f"Restore {newer}; or, if the disks are those of the older one, use disks: ignore",
        )


def require_same_disks(run: RestoreRun, head: ImageHead, domain: domain_xml.ParsedDomain, qemu_waits: bool) -> None:
    """Refuse, before anything is started, disks that have moved on since the save.

    What a QEMU has opened that waits already, or that is started with another command, is compared when it is
    there.

    :raises DiskMismatchError: they have, or that cannot be known of an image whose guest went on.
    :raises ImageFormatError: the record makes no sense.
    """
    text = domain.save_facts.surroundings if domain.save_facts else ""
    if not text:
        if head.header.checkpoint:
            _refuse_disks(
                run,
                [
                    Problem(
                        "disk_unchecked",
                        "its guest went on after it was saved, and the image does not record its disks",
                        "Start the VM from its disks",
                    )
                ],
            )
        run.warnings.append(
            f"It is not known whether the disks of {domain.name} are as they were when it was saved, as {run.path} does"
            " not record them"
        )
        return
    try:
        recorded = Surroundings.parse(text)
    except ValueError as exc:
        raise ImageFormatError(
            run.path,
            f"its record of the VM's disks cannot be read: {exc}",
            cure="If you know that they are as they were at the save, use disks: ignore",
        ) from exc
    media = run.load_note.forgive(recorded.media) if run.load_note else recorded.media
    run.surroundings = dataclasses.replace(recorded, media=media)
    if run.request.launch == "command":
        words = run.request.command or []
        media = tuple(each for each in media if any(file.path in word for file in each.files for word in words))
    elif qemu_waits or run.request.launch == "attach":
        media = ()
    _refuse_disks(run, changed_media(media), head.header.checkpoint)


async def require_same_media(run: RestoreRun, session: VmSession, head: ImageHead) -> None:
    """Compare what the QEMU that waits has opened with what the saved one had.

    :raises DiskMismatchError: it is something else.
    """
    if run.surroundings is not None:
        opened = await read_all_media(session.monitor, session.process)
        _refuse_disks(run, other_media(run.surroundings.media, opened, run.subject), head.header.checkpoint)


def is_mark_alone(run: RestoreRun) -> bool:
    """Whether nothing but its mark would keep the image from being restored again: its disks will not tell.

    Whoever does not want them asked (``disks: ignore``) knows better.
    """
    if run.request.disks != "check":
        return False
    media = run.surroundings.media if run.surroundings else None
    return media is None or any(file.uncheckable for medium in media if not medium.read_only for file in medium.files)


def _refuse_disks(run: RestoreRun, problems: list[Problem], checkpoint: bool = True) -> None:
    """Refuse those problems that block; of an image whose guest went on, also what cannot be known.

    :raises DiskMismatchError: there are some.
    """
    refused = problems if checkpoint else blocking(problems)
    if refused:
        if run.load_note and run.load_note.cure:
            # Whichever disk it is: the image may hold the only copy of another one.
            problems = [dataclasses.replace(problem, cure=run.load_note.cure) for problem in problems]
            refused = problems if checkpoint else blocking(problems)
        went_on = ", whose guest went on after it was saved," if checkpoint else ""
        raise DiskMismatchError(
            f"{run.subject} was not restored from {run.path}{went_on} as its disks are not those of its memory: "
            + "; ".join(problem.what for problem in refused),
            cure=refused[0].cure,
            problems=[problem.as_result() for problem in problems],
        )
    run.warnings += [problem.what for problem in problems if not problem.blocks and problem.what not in run.warnings]
