# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One stream between QEMU and an image: what QEMU has set and holds for it, with a note of it, and its migration.

QEMU keeps a free text, ``opaque``, with each descriptor of an fdset. A save and a restore note there what they change,
so that a later run knows of them when they are killed (:func:`find_transfer`).
"""

from __future__ import annotations

import contextlib
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._errors import CommandError
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.fdset import DescriptorSet
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.migration import Migration, MigrationSettings
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.session import VmSession


class Transfer:
    """What a run has set and passed; of an earlier run's see :meth:`found`."""

    def __init__(self, session: VmSession) -> None:
        self.session = session
        self.settings = MigrationSettings(session.monitor)
        self.descriptors = DescriptorSet(session.monitor)
        self.migration = Migration(session.monitor, session.pid)

    @classmethod
    def found(
        cls, session: VmSession, fdset: int, capabilities: t.Mapping[str, bool], parameters: t.Mapping[str, t.Any]
    ) -> Transfer:
        """That of an earlier run, by its note.

        :param fdset: the number of the set that has the note.
        :param capabilities: and ``parameters``: what it has changed, with the values that it had found.
        """
        transfer = cls(session)
        transfer.settings = MigrationSettings(session.monitor, capabilities, parameters)
        transfer.descriptors = DescriptorSet(session.monitor, number=fdset)
        return transfer

    async def pass_files(self, note: str, *files: int) -> None:
        """Pass the image's descriptors, buffered first, with a note of this run; raises as DescriptorSet.add."""
        self.descriptors = DescriptorSet(self.session.monitor, note)
        await self.descriptors.add(*files)

    async def call_off(self, run_state: str) -> str:
        """Cancel what QEMU writes, and let the guest go on as before: at once, while that is being cancelled.

        :param run_state: QEMU's run state before the save.
        :returns: the run state now.
        :raises MonitorError: it could not be done.
        """
        # Not a sleeping one, which must not be let go on should the migration be over in this very moment.
        if run_state == "running" and await self.migration.is_active():
            # At the migration's very end QEMU refuses; then it is asked again.
            with contextlib.suppress(CommandError):
                await self.session.monitor.execute("cont")
        await self.migration.cancel()
        return await self.session.put_guest_back(run_state)

    async def clean(self) -> None:
        """Capabilities, parameters and descriptors as they were before it; the note, which names them, goes last.

        May be done twice. Raises as :meth:`Monitor.execute`.
        """
        if self.migration.is_outgoing:
            await self.migration.settle()
        await self.settings.restore()
        await self.descriptors.remove()
