# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a restore notes in QEMU, so that a later run knows of it when this one is killed.

As for a save (``_save/in_qemu``), QEMU keeps the note with the image's descriptor in an fdset: from before its
first setting is changed until the image is removed. So a QEMU that loads, or has loaded, an image can be told from any
other, and an image whose guest already runs from one that still holds it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._errors import MigrationError
from ansible_collections.vmops.qemu.plugins.module_utils._image.identity import ImageIdentity
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.fdset import find_notes, parse_note
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.migration import (
    IDLE_STATES,
    query_state,
)
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import has_open
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.session import VmSession
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.transfer import Transfer

_PREFIX = "vmops.qemu restore "


@dataclasses.dataclass(frozen=True)
class RestoreRecord:
    """One restore, as it is noted in QEMU."""

    image: str
    #: ``ImageIdentity`` of the image when the restore began.
    identity: ImageIdentity
    #: Whether a tool expands the image for QEMU, so that only the run itself learns whether it did so without error.
    expanded: bool
    #: The capabilities and parameters that the restore changes, with the values that it found.
    capabilities: dict[str, bool]
    parameters: dict[str, t.Any]

    def opaque(self) -> str:
        """The text for ``add-fd``."""
        return _PREFIX + json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def parse(cls, note: str) -> RestoreRecord:
        """Read what follows the prefix.

        :raises KeyError, TypeError: it is another version's.
        :raises ValueError: it is no JSON text.
        """
        values = parse_note(note, image=str, identity=dict, capabilities=dict, parameters=dict)
        identity = values["identity"]
        if not all(isinstance(identity.get(key), str) for key in ("file", "head")):
            raise TypeError("identity is none")
        return cls(**{**values, "identity": ImageIdentity(**identity)})


class InterruptedRestore:
    """A restore that an earlier run left in QEMU; found by :meth:`find`."""

    def __init__(self, session: VmSession, record: RestoreRecord, fdset: int) -> None:
        self._session = session
        self.record = record
        self.transfer = Transfer.found(session, fdset, record.capabilities, record.parameters)

    @classmethod
    async def find(cls, session: VmSession) -> InterruptedRestore | None:
        """Look for one; a note that cannot be read (another version's) is left alone."""
        for fdset, note in await find_notes(session.monitor, _PREFIX):
            with contextlib.suppress(KeyError, TypeError, ValueError):
                return cls(session, RestoreRecord.parse(note), fdset)
        return None

    def is_of_image(self, path: str) -> bool:
        """Whether the file at the path is the image that was being restored.

        Any QEMU can say so; but the one to which it was handed has it open.
        """
        pid = self._session.pid
        return pid is not None and has_open(pid, path) and self.record.identity.is_that_of(path)

    async def wait(self, path: str) -> str:
        """Wait for the load that QEMU may still be busy with.

        :param path: where the image is, or was.
        :returns: ``waiting`` where QEMU had not begun to load, ``loaded`` where the whole guest is there, ``useless``
            where QEMU holds what cannot be used: a load that failed, or whose expander's end nobody saw.
        :raises MonitorError: QEMU was lost.
        """
        run_state = self._session.vm.run_state
        if run_state == "inmigrate":
            state = await query_state(self._session.monitor)
            if state["status"] == "none":
                return "waiting"
            if self.record.expanded:
                return "useless"
            self.transfer.migration.adopt(outgoing=False)
            if state["status"] in IDLE_STATES and state["status"] != "completed":
                return "useless"
            try:
                await self.transfer.migration.wait()
            except MigrationError:
                return "useless"
            return "loaded"
        if self.record.expanded and run_state == "paused" and not self._was_used(path):
            return "useless"
        return "loaded"

    def _was_used(self, path: str) -> bool:
        """Whether the image got its mark as a checkpoint since, or is gone: both come after its expander's end."""
        now = ImageIdentity.of(path)
        if not now.file:
            return not os.path.lexists(path)
        return now.marked and not self.record.identity.marked and self.is_of_image(path)
