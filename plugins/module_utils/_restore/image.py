# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the image alone tells before a restore, before QEMU reads a byte of it."""

from __future__ import annotations

import os
import sys

from ansible_collections.vmops.qemu.plugins.module_utils._access import require_possible_access
from ansible_collections.vmops.qemu.plugins.module_utils._cancellation import in_stoppable_thread, in_thread
from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    ImageFormatError,
    ImageNotFoundError,
    ImagePartialError,
    ImageUnsupportedError,
    RequestError,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.compressed_head import read_compressed_head
from ansible_collections.vmops.qemu.plugins.module_utils._image.compressor import COMPRESSORS
from ansible_collections.vmops.qemu.plugins.module_utils._image.digest import digest_problems
from ansible_collections.vmops.qemu.plugins.module_utils._image.edit import require_markable
from ansible_collections.vmops.qemu.plugins.module_utils._image.head import ImageHead
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_file import read_image_head
from ansible_collections.vmops.qemu.plugins.module_utils._image.info import image_result
from ansible_collections.vmops.qemu.plugins.module_utils._image.place import require_removable
from ansible_collections.vmops.qemu.plugins.module_utils._image.stream import StreamFacts, read_stream
from ansible_collections.vmops.qemu.plugins.module_utils._image.trust import require_loadable_image
from ansible_collections.vmops.qemu.plugins.module_utils._image.verify import structure_problems
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.vm import RunningVm
from ansible_collections.vmops.qemu.plugins.module_utils._restore.run import RestoreRun


def read_complete_head(path: str) -> ImageHead | None:
    """The image's head; None where there is no file.

    :raises ImagePartialError: it is partial.
    :raises ImageError: it cannot be read, or is none.
    """
    try:
        head = read_image_head(path)
    except ImageNotFoundError:
        return None
    if not head.header.complete:
        problems = image_result(path)["problems"]
        raise ImagePartialError(
            path,
            problems[0] if problems else "the image is partial",
            cure="If the guest still runs, save it again; else start it from its disks and remove the file",
        )
    return head


def require_loadable(run: RestoreRun, vm: RunningVm | None) -> None:
    """Refuse an image with which another user could act on the QEMU that loads it.

    :raises ImageUnsafeError: one could have put it there.
    """
    if vm is not None:
        require_loadable_image(run.path, vm.process.uid if vm.process else None)
    elif run.request.launch == "command":
        require_loadable_image(run.path, os.geteuid())
    # The recorded start asks for more, and of a QEMU that is yet to be started the user is not known.


async def check_image(run: RestoreRun, head: ImageHead) -> StreamFacts | None:
    """Everything that the file alone can tell, before QEMU reads a byte."""
    if head.header.mapped_ram and head.header.byte_order != sys.byteorder:
        raise ImageUnsupportedError(
            run.path,
            f"the image was saved on a {head.header.byte_order}-endian host: QEMU would misread its bitmaps here",
            cure=f"Restore it on a {head.header.byte_order}-endian host",
        )
    require_possible_access(head.header.format, run.request.parallel_channels, run.request.bypass_cache, run.path)
    if run.request.remove_image:
        require_removable(run.path)
        require_markable(run.path)
    recorded = _recorded_digest(run.path, head) if run.request.verify == "full" else ""
    if run.request.verify != "none":
        problems = await in_thread(structure_problems, run.path)
        if recorded and not problems:
            # Past the page cache, unless QEMU will read through it: then the image comes from the storage once.
            bypass_cache = head.header.mapped_ram and run.request.bypass_cache is not False
            problems = await in_stoppable_thread(digest_problems, run.path, recorded, bypass_cache)
        if problems:
            raise ImageFormatError(
                run.path,
                f"the image is damaged: {'; '.join(problems[:3])}",
                cure="Restore an intact copy, or start the VM from its disks",
            )
    if head.header.format in COMPRESSORS:
        return await in_thread(read_compressed_head, run.path, head.header)
    return await in_thread(read_stream, run.path, head.header)


def _recorded_digest(path: str, head: ImageHead) -> str:
    """:raises RequestError: the image has none."""
    facts = head.domain().save_facts
    if facts is None or not facts.digest:
        raise RequestError(
            f"{path} has no checksum, which verify: full needs: it was not saved with checksum: true",
            cure="Restore it with verify: structure, which does not see a change in the guest's memory",
        )
    return facts.digest
