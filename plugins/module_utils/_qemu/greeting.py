# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The first word of a QEMU that was just started: where it will answer, and that it does."""

from __future__ import annotations

import asyncio
import os
import time
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    LaunchError,
    MonitorBusyError,
    MonitorError,
    MonitorMissingError,
    MonitorProtocolError,
)
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import command_line
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.configuration import read_configuration
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.identity import IMPATIENCE, process_behind
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.launch import Launch, LaunchedQemu
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.monitor import Monitor

#: Seconds that a QEMU may take from its start to its QMP greeting, where its run has no shorter limit: hundreds of GiB
#: that are allocated first take minutes, as do helpers of its unit.
LAUNCH_TIMEOUT = 3600.0

#: Seconds between two looks for the QMP socket of a QEMU that is just starting; nothing announces it.
_LAUNCH_INTERVAL = 0.02


def addresses_of(how: Launch, name: str) -> list[str]:
    """Where a QEMU that is started this way will answer, the best one first.

    :param name: the VM's, for messages.
    :raises LaunchError: it opens no QMP server.
    """
    addresses = command_line.qmp_addresses(read_configuration(how.argv, how.cwd).words, how.cwd)
    if not addresses:
        raise LaunchError(
            f"The command of {name} opens no QMP server", cure="Add -qmp unix:PATH,server=on,wait=off to it"
        )
    # Only over a UNIX socket can it be given the image.
    return [address for address in addresses if address[0] in "/\0"] or addresses


async def greeted(launched: LaunchedQemu, addresses: t.Sequence[str], name: str) -> Monitor:
    """Wait for a QMP server of a QEMU that was started.

    :param addresses: where it will answer, the best one first; the others may be somebody's as soon as they are there.
    :param name: the VM's, for messages.
    :raises LaunchError: it has none, or ended before it greeted.
    """
    deadline = time.monotonic() + LAUNCH_TIMEOUT
    while True:
        if await launched.ended():
            said = await words_of(launched) or "it said nothing"
            raise LaunchError(
                f"The QEMU that was started for {name} ended at once: {said}",
                cure=f"Correct what it says and restore again; its log is {launched.log}",
            )
        problem: MonitorError | None = None
        may_come = False
        for address in addresses:
            try:
                monitor = await Monitor.connect(address, IMPATIENCE if len(addresses) > 1 else None)
                if _is_of(monitor, launched):
                    return monitor
                # Someone else listened there before; our QEMU has not come to it yet.
                await monitor.close()
                raise MonitorMissingError(f"Another process (pid {monitor.peer_pid}) listens at {address}")
            except MonitorError as exc:
                # Protocol: it opened its server and ended before it greeted, which the next look at it tells.
                may_come = may_come or isinstance(exc, (MonitorMissingError, MonitorBusyError, MonitorProtocolError))
                problem = problem or exc
        if problem and not may_come:
            raise problem
        if problem and time.monotonic() > deadline:
            raise LaunchError(
                f"The QEMU that was started for {name} opened no QMP server at {addresses[0]} within"
                f" {LAUNCH_TIMEOUT:g} seconds ({problem.what})",
                cure=f"See its log {launched.log}",
            ) from problem
        await asyncio.sleep(_LAUNCH_INTERVAL)


def _is_of(monitor: Monitor, launched: LaunchedQemu) -> bool:
    """Whether the QEMU that was started here may answer on a monitor, or whoever listens for it."""
    process = process_behind(monitor)
    pid = process.pid if process else monitor.peer_pid
    if pid is not None:
        return launched.is_or_started(pid)
    # Behind a TCP port of a container, say; but not one that somebody else has taken.
    wanted = launched.how.rights.uid if launched.how.rights else os.geteuid()
    return monitor.peer_uid is None or monitor.peer_uid in (0, os.geteuid(), wanted)


async def words_of(launched: LaunchedQemu) -> str:
    """What a QEMU that was started wrote to stderr, where it repeats its words, but not the secrets in them."""
    text = await launched.stderr()
    for word in launched.how.argv:
        text = text.replace(word, command_line.redact_argument(word))
    return text
