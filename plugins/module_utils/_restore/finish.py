# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The one ending of a restore, however it was come to."""

from __future__ import annotations

import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._cancellation import in_thread
from ansible_collections.vmops.qemu.plugins.module_utils._errors import ConflictError, ImageError
from ansible_collections.vmops.qemu.plugins.module_utils._image.edit import mark_checkpoint
from ansible_collections.vmops.qemu.plugins.module_utils._image.head import ImageHead
from ansible_collections.vmops.qemu.plugins.module_utils._image.last_save import mark_superseded
from ansible_collections.vmops.qemu.plugins.module_utils._image.place import remove_image
from ansible_collections.vmops.qemu.plugins.module_utils._launch import free_units
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import QemuProcess
from ansible_collections.vmops.qemu.plugins.module_utils._restore.run import RestoreRun


async def finish_restore(
    run: RestoreRun,
    head: ImageHead | None,
    process: QemuProcess | None,
    recorded_unit: str,
    go_on: t.Callable[[], t.Awaitable[object]],
) -> bool:
    """The image's mark, the guest, the image, the VM's unit.

    :param head: that of the image, where it is there, and the one that was loaded.
    :param process: the VM's QEMU.
    :param recorded_unit: the unit that the image names, where it may be believed.
    :param go_on: brings the guest to where it shall be.
    :returns: whether the image was removed.
    """
    if head:
        await _mark_used(run, head)
    await go_on()
    removed = head is not None and await _see_image_off(run, head)
    _changed, problem = await free_units(recorded_unit, process, run.path)
    if problem:
        run.warnings.append(f"Its unit may still be kept from starting {run.subject} from its disks: {problem}")
    return removed


async def _mark_used(run: RestoreRun, head: ImageHead) -> None:
    """Say in the image that its guest goes on, before it does: it may outlast a removal that fails, or a crash."""
    try:
        await in_thread(mark_checkpoint, run.path, head)
    except (ConflictError, ImageError) as exc:
        if not run.request.remove_image:
            run.warnings.append(
                f"The image does not say that its guest went on, and must not be restored again: {exc.what}"
            )


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
