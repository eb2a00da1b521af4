# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a save notes in QEMU, so that a later run knows of it when this one is killed.

QEMU keeps a free text, ``opaque``, with each descriptor of an fdset. Ours names the partial image and says how guest
and settings were found. A save that QEMU carried on alone is adopted by the next run; one that QEMU had not begun, or
whose file is gone, is undone by it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._cancellation import in_thread
from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    ConflictError,
    DiskMismatchError,
    ImageError,
    ImageNotFoundError,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.head import ImageHead
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_file import read_image_head
from ansible_collections.vmops.qemu.plugins.module_utils._image.names import target_of_partial
from ansible_collections.vmops.qemu.plugins.module_utils._image.partial import PartialImage
from ansible_collections.vmops.qemu.plugins.module_utils._operation import is_last_migration
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.fdset import find_notes, parse_note
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.migration import (
    DOOMED_STATES,
    IDLE_STATES,
    query_state,
)
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import has_open
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.session import VmSession
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.transfer import Transfer
from ansible_collections.vmops.qemu.plugins.module_utils._save.image_at import require_not_gone_on_elsewhere

_PREFIX = "vmops.qemu save "


@dataclasses.dataclass(frozen=True)
class SaveRecord:
    """One save, as it is noted in QEMU."""

    #: The partial image that QEMU writes to.
    partial: str
    #: QEMU's run state before the save.
    run_state: str
    #: The capabilities and parameters that the save changes, with the values that it found.
    capabilities: dict[str, bool]
    parameters: dict[str, t.Any]
    parallel_channels: int | None
    bypass_cache: bool

    def opaque(self) -> str:
        """The text for ``add-fd``."""
        return _PREFIX + json.dumps(dataclasses.asdict(self), sort_keys=True)


class InterruptedSave:
    """A save that an earlier run left in QEMU; found by :meth:`find`."""

    def __init__(self, session: VmSession, record: SaveRecord, fdset: int, migration_status: str) -> None:
        self._session = session
        self.record = record
        self.transfer = Transfer.found(session, fdset, record.capabilities, record.parameters)
        self.transfer.migration.adopt(outgoing=True)
        self._migration_status = migration_status

    @classmethod
    async def find(cls, session: VmSession) -> InterruptedSave | None:
        """Look for one; a note that cannot be read (another version's) is left alone."""
        for fdset, note in await find_notes(session.monitor, _PREFIX):
            with contextlib.suppress(TypeError, ValueError):
                kinds = {"partial": str, "run_state": str, "capabilities": dict, "parameters": dict}
                record = SaveRecord(**parse_note(note, **kinds))
                return cls(session, record, fdset, (await query_state(session.monitor))["status"])
        return None

    async def has_stream(self, partial: PartialImage) -> bool:
        """Whether QEMU wrote the stream still when it was found, or had written all of it and stands there since.

        Where that is known to have been written, what QEMU migrates, or has migrated, may be somebody else's since.
        """
        stands = self._migration_status == "completed" and self._session.vm.run_state == "postmigrate"
        if _is_described(partial):
            return stands and not partial.header.checkpoint and await self._is_last(partial)
        return stands or self._migration_status not in IDLE_STATES | DOOMED_STATES

    def adopt_file(self) -> PartialImage | None:
        """Take over its partial image; None where that is gone, or is not open in QEMU, which can name any file.

        :raises ConflictError: the run that made it is still at work.
        :raises RequestError: what the note names is not a partial image's path.
        :raises ImageError: it cannot be opened or read.
        """
        if self._session.pid is None or not has_open(self._session.pid, self.record.partial):
            return None
        try:
            return PartialImage.adopt(self.record.partial)
        except ImageNotFoundError:
            return None

    async def undo(self, partial: PartialImage | None) -> None:
        """Put guest, QEMU and files back to where they were before it; raises as :meth:`Monitor.execute`.

        :param partial: what :meth:`adopt_file` gave.
        :raises ConflictError: the guest sleeps, and its QEMU cannot let it go on any more.
        :raises DiskMismatchError: its disks are not as it left them.
        """
        if self.record.run_state == "suspended" and await self._session.run_state() == "postmigrate":
            if partial:
                partial.release()
            path = target_of_partial(self.record.partial)
            raise ConflictError(
                f"{self._session.label} sleeps (S3) and was saved by a run that was cut off before its end, and QEMU"
                " cannot let it go on there",
                cure=f"Run qemu_save with path {path}, which finishes that save, and restore it then",
            )
        if partial and _is_described(partial):
            await self.require_not_gone_on_elsewhere(partial)
            await self._end_written(partial)
        elif partial is None and self._was_completed():
            # Not the last migration any more (``completed_image``): the guest went on, whoever let it.
            await self._clean()
        else:
            await self.transfer.call_off(self.record.run_state)
            await self.transfer.clean()
        if partial:
            partial.discard()

    async def require_not_gone_on_elsewhere(self, partial: PartialImage) -> None:
        """Of a guest that stands still since all of it was written, whose disks the partial image may record.

        :raises DiskMismatchError: it has; then the partial image is let go.
        """
        if _is_described(partial) and await self._session.run_state() == "postmigrate":
            try:
                await in_thread(require_not_gone_on_elsewhere, partial.head(), self._session.label)
            except DiskMismatchError:
                partial.release()
                raise

    async def _end_written(self, partial: PartialImage) -> None:
        """All was written; a guest that went on since is not put back, nor is a migration of others called off."""
        if await self._is_last(partial) and await self._session.run_state() == "postmigrate":
            await self._session.put_guest_back(self.record.run_state)
        await self._clean()

    async def _clean(self) -> None:
        """QEMU as it was, but for the settings of a migration of somebody else's that is under way."""
        if (await query_state(self._session.monitor))["status"] in IDLE_STATES:
            await self.transfer.clean()
        else:
            await self.transfer.descriptors.remove()

    async def _is_last(self, partial: PartialImage) -> bool:
        """Whether QEMU's last migration is the one that wrote it."""
        return await is_last_migration(self._session.monitor, partial.head())

    def _was_completed(self) -> bool:
        """Whether an image that was written by some QEMU's migration is where its own was to be."""
        with contextlib.suppress(ImageError):
            head = read_image_head(target_of_partial(self.record.partial))
            return head.header.complete and _has_figures(head)
        return False

    async def completed_image(self) -> str | None:
        """The path of the image that it completed, if it came to that and the image is still there."""
        path = target_of_partial(self.record.partial)
        try:
            head = read_image_head(path)
            if head.header.complete and await is_last_migration(self._session.monitor, head):
                return path
        except ImageError:
            return None
        return None


def _is_described(partial: PartialImage) -> bool:
    """Whether QEMU's figures of its migration are in a partial image: then all of it was written."""
    with contextlib.suppress(ImageError):
        return _has_figures(partial.head())
    return False


def _has_figures(head: ImageHead) -> bool:
    """Whether QEMU's figures of its migration are in it; raises ImageFormatError where it cannot be understood."""
    facts = head.domain().save_facts
    return facts is not None and bool(facts.migration)
