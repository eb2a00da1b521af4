# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who a QEMU is: which process answers on a monitor, and which of those that have a VM's name is that VM's.

Any user's process may have any name, name any socket in its words, and answer on a socket of its own whatever it likes.
So a process counts by what the kernel says of it: its user, its systemd unit, and that it holds the other end of the
connection. What cannot be known so is unknown, and nothing is decided by a name alone.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import itertools
import os
import time
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    MonitorBusyError,
    MonitorError,
    MonitorForeignError,
    MonitorHumanError,
    MonitorMissingError,
    MonitorProtocolError,
    VmAmbiguousError,
    VmNotFoundError,
)
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import systemd
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.door import Door, doors, doors_for_images
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.human import Connected
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.manager import can_be_asked
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.monitor import Monitor
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.nameless_socket import (
    NamelessSocketError,
    name_of_listener,
)
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import (
    QemuProcess,
    age,
    list_processes,
    read_process,
)
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.runner import how_to_add_a_monitor
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.socket_end import SocketEnd
from ansible_collections.vmops.qemu.plugins.module_utils._user import user_name

#: Seconds within which a QEMU that was just started opens its monitors, and between two looks for them.
_START_TIMEOUT = 10.0
_START_INTERVAL = 0.05

#: Seconds after which another monitor of the same VM is tried: an agent may hold one for good.
IMPATIENCE = 2.0

#: Processes that are named in one message.
_NAMED = 3

#: Processes of which one is to be chosen that are named in one message.
_CANDIDATES = 20

_CHOOSE = "Name the one you mean by its uuid, unit, pid or qmp_socket"


# --- the process behind a monitor -------------------------------------------------------------------------------


def process_behind(monitor: Connected) -> QemuProcess | None:
    """The QEMU that answers on a monitor; None where that is not known: it is never guessed.

    It is whoever began to listen on the UNIX socket, where that is a QEMU. Where it is not (systemd or libvirt handed
    QEMU the socket, or the monitor is at a TCP port), it is the QEMU that holds the other end of this very connection,
    of the user who opened that, or of anyone where root or the caller did: others cannot have passed it on to another
    user's QEMU for an answer that is not theirs.
    """
    return process_at(monitor.end)


def process_at(end: SocketEnd) -> QemuProcess | None:
    """The QEMU at the other end of a connection, as :func:`process_behind`."""
    listener = read_process(end.listener) if end.listener is not None else None
    if listener is not None and _is_of_opener(listener, end.uid):
        if end.listener_birth is not None:
            if listener.birth == end.listener_birth:
                return listener
        elif end.is_held_by(listener.pid) or (end.inode is None and listener.uid == end.uid):
            return listener
    if end.inode is None or end.uid is None:
        return None
    holders = [
        process for process in list_processes() if _is_of_opener(process, end.uid) and end.is_held_by(process.pid)
    ]
    return holders[0] if len(holders) == 1 else None


def _is_of_opener(process: QemuProcess, uid: int | None) -> bool:
    """Whether a process may answer on a connection that was opened by a user."""
    return uid in (process.uid, 0, os.geteuid())


def is_behind(monitor: Connected, process: QemuProcess) -> bool:
    """Whether this very process is known to answer on a monitor."""
    found = process_behind(monitor)
    return found is not None and (found.pid, found.birth) == (process.pid, process.birth)


def was_started_by_root(monitor: Monitor, process: QemuProcess) -> bool:
    """Whether root started this process, which has become another user since (``-runas``, ``-run-with user=``)."""
    end = monitor.end
    return (end.listener, end.uid) == (process.pid, 0) and end.listener_birth in (None, process.birth)


async def connect_by_process(
    process: QemuProcess, timeout: float | None = None, address: str | None = None, for_image: bool = False
) -> Monitor:
    """A session on the first of the VM's monitors that is free and is answered by this very process.

    Its QMP servers come first, then its human monitors, through which QEMU may open one. Where it has several, all are
    tried for a short time before one is waited for. One that was started just now, perhaps by a restore that was
    killed at once, may not have opened them yet.

    :param timeout: seconds until a server must have greeted; None for the usual.
    :param address: the monitor that is to be used; None for any.
    :param for_image: whether QEMU is to be given an image through it, which those at TCP ports cannot do.
    :raises VmNotFoundError: its configuration opens none.
    :raises MonitorHumanError: it has human monitors alone, and its QEMU opens no QMP server through them.
    :raises MonitorError: none of them could be used; the first one's error.
    """
    known = [
        door for door in doors(process.configuration.words, process.cwd, process.pid) if address in (None, door.address)
    ]
    if for_image:
        known = doors_for_images(known)
    limits = [IMPATIENCE, timeout] if len(known) > 1 else [timeout]
    while True:
        is_up = age(process.pid) > _START_TIMEOUT
        problems: list[MonitorError] = []
        for limit in limits:
            problems = []
            monitor = await _first_free(process, known, limit, is_up, problems)
            if monitor:
                return monitor
            if not any(isinstance(problem, MonitorBusyError) for problem in problems):
                break
        starting = all(isinstance(problem, MonitorMissingError) for problem in problems)
        if not problems or not starting or is_up:
            break
        await asyncio.sleep(_START_INTERVAL)
    if problems:
        # Of QMP servers, where there are some; one that is not at the first of two places may be at the other.
        told = [problem for door, problem in zip(known, problems) if not door.is_human] or problems
        problem = next((problem for problem in told if not isinstance(problem, MonitorMissingError)), told[0])
        if isinstance(problem, MonitorMissingError) and known[problems.index(problem)].is_out_of_reach(process.pid):
            problem.what += ", as the VM is in a network namespace of its own"
            problem.cure = how_to_add_a_monitor(process)
        raise problem
    raise VmNotFoundError(
        f"{process.name or 'The VM without a name'} runs (pid {process.pid}), but its configuration opens no QMP server"
        " that can be reached",
        cure=how_to_add_a_monitor(process, otherwise="or name its socket in qmp_socket"),
    )


async def _open_door(door: Door, process: QemuProcess, timeout: float | None) -> Monitor:
    """As :meth:`Door.open`, with what to do where a VM has no monitor that can be used."""

    def check(connection: Connected) -> None:
        if not is_behind(connection, process):
            raise _foreign(connection, process)

    try:
        return await door.open(timeout, check)
    except MonitorHumanError as exc:
        exc.cure = how_to_add_a_monitor(process)
        raise


async def _first_free(
    process: QemuProcess, known: t.Sequence[Door], timeout: float | None, is_up: bool, problems: list[MonitorError]
) -> Monitor | None:
    """A session on the first server that this process answers within the timeout; ``problems`` gets those before it.

    :param is_up: whether its QMP servers are there if they will be at all; else no human monitor takes their place.
    """
    has_servers = bool(known) and not known[0].is_human
    for (is_human, _address), places in itertools.groupby(known, key=lambda door: (door.is_human, door.address)):
        are_missing = all(isinstance(each, MonitorMissingError) for each in problems)
        if is_human and has_servers and not is_up and are_missing:
            break
        found: list[tuple[Door, MonitorError]] = []
        for door in places:
            try:
                return await _open_door(door, process, timeout)
            except MonitorError as exc:
                found.append((door, exc))
        # Its socket has lost its name only where none of these places leads to it.
        for door, problem in found:
            try:
                return await _connect_without_name(process, door, problem, timeout)
            except MonitorError as exc:
                problems.append(exc)
    return None


async def _connect_without_name(
    process: QemuProcess, door: Door, problem: MonitorError, timeout: float | None
) -> Monitor:
    """A session with this process on a socket to which its path does not lead any more.

    :param problem: what is at that path; it is raised where the socket cannot be reached.
    :raises MonitorError: it cannot be used.
    """
    if not isinstance(problem, (MonitorMissingError, MonitorForeignError, MonitorBusyError, MonitorProtocolError)):
        raise problem
    missing = isinstance(problem, MonitorMissingError)
    try:
        if not door.address.startswith("/") or (door.root_of is not None and not missing):
            raise problem
        reach = functools.partial(name_of_listener, process.pid, door.address, process.cwd)
        return await _open_door(dataclasses.replace(door, reach=reach), process, timeout)
    except NamelessSocketError as reason:
        # Who answers at the path has a socket there, too.
        if reason.sockets > (not missing):
            problem.what += (
                f". {process.name or 'The VM'} ({process.who}) listens there all the same, on a socket that has lost"
                f" its name{when_taken(door.address)}; {reason}"
            )
            problem.cure = (
                "Run the task as root, who reaches a socket without a name; or name another one in qmp_socket"
            )
        raise problem from None


def when_taken(address: str) -> str:
    """When the name of a socket was given to another one, as a clause; or the empty string."""
    try:
        made = os.lstat(address).st_ctime
    except OSError:
        return ""
    return f" (another one was made at its path at {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(made))})"


def _foreign(monitor: Connected, process: QemuProcess) -> MonitorForeignError:
    other = process_behind(monitor)
    uid = monitor.end.uid
    who = other.who if other else "an unknown process" + (f" of the user {user_name(uid)}" if uid is not None else "")
    return MonitorForeignError(
        f"{monitor.shown_address} is named in the command line of {process.name or 'a VM without a name'}"
        f" ({process.who}), but is answered by {who}",
        cure="Name the VM's own QMP socket in qmp_socket",
    )


# --- the process of a name --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class RecordedIdentity:
    """Who ran a VM when it was saved, as its image records it."""

    uid: int
    #: The systemd unit that started it; empty where none did.
    unit: str = ""

    def __str__(self) -> str:
        return user_name(self.uid)


def is_trusted(uid: int | None, recorded: RecordedIdentity | None) -> bool:
    """Whether a user is root, the caller, or the one that is recorded."""
    return uid in (0, os.geteuid()) or (recorded is not None and uid == recorded.uid)


class Choice(t.NamedTuple):
    """Of the QEMUs that have a VM's name, the one that is the VM, and those that are not."""

    process: QemuProcess | None
    strangers: list[QemuProcess]

    def warnings(self, name: str) -> list[str]:
        """A sentence about the strangers, where there are some."""
        if not self.strangers:
            return []
        one = len(self.strangers) == 1
        return [
            f"Another QEMU says that it is {name}, too, and was left alone: {_describe(self.strangers)}"
            if one
            else f"{len(self.strangers)} other QEMUs say that they are {name}, too, and were left alone:"
            f" {_describe(self.strangers)}"
        ]


async def choose_process(
    name: str,
    found: t.Sequence[QemuProcess],
    recorded: RecordedIdentity | None,
    must_match: bool,
    meant: str = "",
) -> Choice:
    """Which of the QEMUs of a name is the VM: one of root's, of the caller's, or of those whom the image records.

    :param meant: what is true of all of them, where that is not the name alone, as the end of a sentence in the plural.
    :param recorded: what the VM's image records; None where there is none, or it says nothing of this.
    :param must_match: that a QEMU of anyone else is not the VM, although it is the only one of this name: its image
        stands for the VM, and is not to be believed used, or loaded elsewhere.
    :raises VmAmbiguousError: it may be several, or whether it is the VM cannot be told.
    """
    ours = [process for process in found if is_trusted(process.uid, recorded)]
    if recorded and recorded.unit:
        outside = [process for process in ours if not is_trusted(process.uid, None) and _is_outside(process, recorded)]
        if outside and await _is_on_this_host(recorded.unit):
            inside = [process for process in ours if process not in outside]
            if not inside and must_match:
                raise VmAmbiguousError(
                    f"{name} was started by {recorded.unit} when it was saved, and a QEMU of that name and user runs"
                    f" outside of that unit: {_candidates(outside)}",
                    cure="If it is the VM, name it by its pid or qmp_socket; else end it",
                )
            ours = inside or outside
    strangers = [process for process in found if process not in ours]
    if not ours and not must_match:
        ours, strangers = strangers, []
    if len(ours) > 1:
        raise VmAmbiguousError(
            f"{len(ours)} running QEMUs {meant or f'are named {name}'}: {_candidates(ours)}", cure=_CHOOSE
        )
    return Choice(ours[0] if ours else None, strangers)


def _is_outside(process: QemuProcess, recorded: RecordedIdentity) -> bool:
    return systemd.unit_of_process(process.pid) != recorded.unit


async def _is_on_this_host(unit: str) -> bool:
    """Whether there is such a unit, without which the VM is started by no unit. Raises UnitError."""
    if not systemd.is_running() or not can_be_asked(unit):
        return False
    return (await systemd.read_unit(unit)).load_state != "not-found"


def _describe(processes: t.Sequence[QemuProcess]) -> str:
    named = [process.who for process in processes[:_NAMED]]
    more = len(processes) - len(named)
    return "; ".join(named) + (f"; and {more} more" if more else "")


def _candidates(processes: t.Sequence[QemuProcess]) -> str:
    """All by which one of them can be chosen."""
    named = [f"{process.who} ({details(process)})" for process in processes[:_CANDIDATES]]
    more = len(processes) - len(named)
    return "; ".join(named) + (f"; and {more} more" if more > 0 else "")


def details(process: QemuProcess) -> str:
    """By what a QEMU can be chosen, besides its name and process id."""
    unit = systemd.unit_of_process(process.pid)
    socket = next(iter(process.addresses), "").replace("\0", "@")
    return ", ".join(
        [
            f"uuid {process.uuid}" if process.uuid else "no uuid",
            f"unit {unit}" if unit else "no unit",
            f"QMP socket {socket}" if socket else "no QMP socket",
        ]
    )


def why_not_to_load(monitor: Monitor, process: QemuProcess | None, recorded: RecordedIdentity | None) -> str:
    """Why the QEMU behind a monitor must not be given the memory of a saved VM, as a clause; else the empty string.

    :param process: that QEMU, where it is known.
    :param recorded: what the VM's image records.
    """
    uid = process.uid if process else monitor.peer_uid
    if is_trusted(uid, recorded) or (process is not None and was_started_by_root(monitor, process)):
        return ""
    who = process.who if process else f"a process of the user {user_name(uid)}" if uid is not None else "unknown"
    owner = f"the saved VM ran as {recorded}" if recorded else "the image does not record as whom the saved VM ran"
    return f"the QEMU at {monitor.shown_address} is {who}, and {owner}"
