# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The clock of a guest that runs again: it is as late as the guest stood still, and its agent may set it.

Best effort, and after all else: a guest that was restored is restored, whatever its clock shows.
"""

from __future__ import annotations

import asyncio
import dataclasses

from ansible_collections.vmops.qemu.plugins.module_utils._cancellation import within
from ansible_collections.vmops.qemu.plugins.module_utils._errors import GuestAgentError, MonitorError
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import command_line
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.guest_agent import (
    AgentSocket,
    find_agent,
    guest_listens,
    set_clock,
)
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.session import VmSession

#: Seconds for QEMU's answer whether the guest's agent is there.
_LOOK_TIMEOUT = 5.0

DONE = "done"
OFF = "off"
NO_AGENT = "no agent"


@dataclasses.dataclass(frozen=True)
class GuestClock:
    """What is to become of a guest's clock."""

    #: The ``time_sync`` of the result, where it is known already; empty where the agent is to be asked.
    outcome: str
    agent: AgentSocket | None = None

    async def set(self) -> str:
        """Set it; the ``time_sync`` of the result. It takes some seconds at most."""
        if self.agent is None:
            return self.outcome
        try:
            await set_clock(self.agent)
        except GuestAgentError as exc:
            return f"failed: {exc.what}"
        return DONE


async def look_at_clock(session: VmSession, sync_time: str) -> GuestClock:
    """What can be done for the clock of a guest that runs.

    :param sync_time: the option.
    """
    if sync_time == "false":
        return GuestClock(OFF)
    process = session.process
    if process is None:
        return GuestClock("failed: its QEMU is not known to run on this host")
    agent = find_agent(process)
    if agent is None:
        return GuestClock(NO_AGENT)
    reason = command_line.own_clock(process.configuration.words)
    if reason and sync_time == "auto":
        return GuestClock(f"left alone: {reason}")
    try:
        listens = await within(_LOOK_TIMEOUT, guest_listens(session.monitor, agent))
    except (MonitorError, asyncio.TimeoutError):
        return GuestClock("failed: QEMU did not say whether the guest's agent is there")
    return GuestClock("", agent) if listens else GuestClock(NO_AGENT)
