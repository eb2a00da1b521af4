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
    MonitorForeignError,
    MonitorHumanError,
    MonitorLostError,
    MonitorMissingError,
    MonitorProtocolError,
)
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import command_line
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.configuration import read_configuration
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.door import Door, doors, doors_for_images
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.human import Connected
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.identity import IMPATIENCE, process_behind
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.launch import Launch, LaunchedQemu
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.monitor import Monitor
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import list_processes

#: Seconds that a QEMU may take from its start to its QMP greeting, where its run has no shorter limit: hundreds of GiB
#: that are allocated first take minutes, as do helpers of its unit.
LAUNCH_TIMEOUT = 3600.0

#: Seconds between two looks for the QMP socket of a QEMU that is just starting; nothing announces it.
_LAUNCH_INTERVAL = 0.02

#: Seconds between two looks for the process that may see other files: each goes over all processes.
_ROOT_INTERVAL = 1.0

#: Protocol and lost: it opened its server and ended before it greeted, which the next look at it tells.
_MAY_COME = (MonitorMissingError, MonitorForeignError, MonitorBusyError, MonitorProtocolError, MonitorLostError)


def doors_of(how: Launch, name: str, wanted: str | None = None, for_image: bool = True) -> list[Door]:
    """The ways to a QEMU that is started this way, the best one first.

    :param name: the VM's, for messages.
    :param wanted: the address at which it is asked for; None for any.
    :param for_image: whether it is to be given its image; else a QMP server at a TCP port may take the place of a human
        monitor, through which older QEMUs open nothing.
    :raises LaunchError: it opens no monitor.
    """
    found = doors(read_configuration(how.argv, how.cwd).words, how.cwd)
    if wanted:
        return [door for door in found if door.address == wanted] or [Door(wanted)]
    if not found:
        raise LaunchError(
            f"The command of {name} opens no QMP server", cure="Add -qmp unix:PATH,server=on,wait=off to it"
        )
    has_servers = any(not door.is_human and not door.is_tcp for door in found)
    return doors_for_images(found) if for_image or has_servers else found


async def greeted(launched: LaunchedQemu, known: t.Sequence[Door], name: str) -> Monitor:
    """Wait for a QMP server of a QEMU that was started.

    :param known: the ways to it, the best one first; the others may be somebody's as soon as they are there.
    :param name: the VM's, for messages.
    :raises LaunchError: it has none, or ended before it greeted.
    """
    deadline = time.monotonic() + LAUNCH_TIMEOUT
    next_look = 0.0

    def check(connection: Connected) -> None:
        if not _is_of(connection, launched):
            # Someone else listened there before; our QEMU has not come to it yet.
            raise MonitorForeignError(
                f"Another process (pid {connection.end.listener}) listens at {connection.shown_address}"
            )

    while True:
        if await launched.ended():
            said = await words_of(launched) or "it said nothing"
            raise LaunchError(
                f"The QEMU that was started for {name} ended at once: {said}",
                cure=f"Correct what it says and restore again; its log is {launched.log}",
            )
        problems: list[tuple[Door, MonitorError]] = []
        if time.monotonic() >= next_look:
            # It may see other files than this process.
            next_look = time.monotonic() + _ROOT_INTERVAL
            known = _seen_by(launched, known)
        timeout = IMPATIENCE if len({door.address for door in known}) > 1 else None
        has_servers = not known[0].is_human
        opens_none: MonitorHumanError | None = None
        for door in known:
            if door.is_human and (opens_none or (has_servers and not _is_held(problems))):
                # The others open none, either; or it has a QMP server, which is not there yet.
                continue
            try:
                return await door.open(timeout, check)
            except MonitorHumanError as exc:
                exc.cure = "Add -qmp unix:PATH,server=on,wait=off to its command"
                opens_none = exc
            except MonitorError as exc:
                problems.append((door, exc))
        # It has answered: whatever human monitors are not there, or are held, is of no use.
        found = [exc for door, exc in problems if not (door.is_human and opens_none)]
        found += [opens_none] if opens_none else []
        # What is said of a place where something is tells more.
        problem = next((exc for exc in found if not isinstance(exc, MonitorMissingError)), found[0])
        if not any(isinstance(exc, _MAY_COME) for exc in found):
            raise problem
        if time.monotonic() > deadline:
            raise LaunchError(
                f"The QEMU that was started for {name} opened no QMP server at {known[0].shown_address} within"
                f" {LAUNCH_TIMEOUT:g} seconds ({problem.what})",
                cure=f"See its log {launched.log}",
            ) from problem
        await asyncio.sleep(_LAUNCH_INTERVAL)


def _is_held(problems: t.Iterable[tuple[Door, MonitorError]]) -> bool:
    """Whether a server is there, but may be another client's."""
    return any(isinstance(exc, MonitorBusyError) for _door, exc in problems)


def _seen_by(launched: LaunchedQemu, known: t.Sequence[Door]) -> list[Door]:
    """The same doors, and where the QEMU itself has them, if that is elsewhere; as they are where it is not there."""
    here = [door for door in known if door.root_of is None]
    for process in list_processes():
        if launched.is_or_started(process.pid):
            return [seen for door in here for seen in door.seen_by(process.pid)]
    return here


def _is_of(monitor: Connected, launched: LaunchedQemu) -> bool:
    """Whether the QEMU that was started here may answer on a monitor, or whoever listens for it."""
    process = process_behind(monitor)
    pid = process.pid if process else monitor.end.listener
    if pid is not None:
        return launched.is_or_started(pid)
    # Behind a TCP port of a container, say; but not one that somebody else has taken.
    wanted = launched.how.rights.uid if launched.how.rights else os.geteuid()
    return monitor.end.uid is None or monitor.end.uid in (0, os.geteuid(), wanted)


async def words_of(launched: LaunchedQemu) -> str:
    """What a QEMU that was started wrote to stderr, where it repeats its words, but not the secrets in them."""
    text = await launched.stderr()
    for word in launched.how.argv:
        text = text.replace(word, command_line.redact_argument(word))
    return text
