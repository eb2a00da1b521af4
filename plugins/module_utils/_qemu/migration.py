# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""QEMU's migration to and from a file: what it supports, its settings, and one run of it.

Sources: QEMU's qapi/migration.json, docs/devel/migration/mapped-ram.rst.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._cancellation import within
from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    CommandError,
    MigrationError,
    MonitorError,
    UnsupportedByQemuError,
)
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.monitor import Event, Monitor
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import work_done

#: A migration is over in these states. QEMU 11 has "failing" before "failed": not an end, since only after the last
#: state may capabilities be changed.
TERMINAL_STATES = frozenset(("completed", "failed", "cancelled"))

#: States in which no migration is under way.
IDLE_STATES = TERMINAL_STATES | {"none", ""}

#: States in which a migration is under way that comes to nothing any more ("failing" from QEMU 11 on).
DOOMED_STATES = frozenset(("cancelling", "failing"))

#: "No limit" for max-bandwidth, in bytes per second: what libvirt uses, too (2**63 overflows in older QEMU).
UNLIMITED_BANDWIDTH = (2**63 - 1) // (1024 * 1024) * (1024 * 1024)

#: Bytes per second that let QEMU hand out next to nothing to its channels (below 10, QEMU takes it for no limit).
_RESTING_BANDWIDTH = 4096

#: Seconds for which a cancellation may wait for resting channels at most, and between two looks at them.
_REST_TIMEOUT = 0.5
_REST_INTERVAL = 0.005

#: Seconds between two looks at a migration that says nothing of itself.
LOOK_INTERVAL = 5.0

#: Seconds between two looks whether QEMU has cleaned up after a migration; nothing announces it.
_SETTLE_INTERVAL = 0.01

#: Seconds within which QEMU ends a migration that was cancelled, and cleans up after one.
_END_TIMEOUT = 30.0

#: Capabilities that may stay as they are during a save or restore; every other one that is on is switched off for
#: the run, since it changes the stream (xbzrle, postcopy-ram, x-ignore-shared …) or waits for a controller
#: (pause-before-switchover).
_NEUTRAL_CAPABILITIES = frozenset(("events", "auto-converge", "late-block-activate", "dirty-limit"))


@dataclasses.dataclass(frozen=True)
class MigrationSupport:
    """What this QEMU can do, asked of QEMU itself rather than guessed from its version."""

    #: The version as QEMU says it, "10.0.2".
    version: str
    mapped_ram: bool
    direct_io: bool
    #: ``file:`` URIs with ``offset`` that keep what stands before it, and fdsets in them (QEMU 9.1). QEMU 9.0 knows
    #: mapped-ram but wipes the whole file; the direct-io parameter came with the release that does not.
    file_uri: bool
    #: That a guest sleeps (S3) is in what it writes and reads (QEMU 9.0, which brought mapped-ram, too, by which it is
    #: known). An older one wakes the guest, and what it loads neither sleeps nor wakes.
    suspended: bool


async def query_version(monitor: Monitor) -> str:
    """QEMU's version as it says it, "10.0.2"."""
    version = (await monitor.execute("query-version"))["qemu"]
    return f"{version['major']}.{version['minor']}.{version['micro']}"


async def read_support(monitor: Monitor) -> MigrationSupport:
    """Ask QEMU what its migration supports."""
    capabilities = {entry["capability"] for entry in await monitor.execute("query-migrate-capabilities")}
    parameters = await monitor.execute("query-migrate-parameters")
    direct_io = "direct-io" in parameters
    return MigrationSupport(
        version=await query_version(monitor),
        mapped_ram="mapped-ram" in capabilities and direct_io,
        direct_io=direct_io,
        file_uri=direct_io,
        suspended="mapped-ram" in capabilities,
    )


class MigrationSettings:
    """The capabilities and parameters of one run, and QEMU's own from before it.

    libvirt leaves them behind, and a later internal snapshot (multifd still on) or buffered save (direct-io still
    on) then crashes QEMU; so they are put back as they were found, whatever the outcome.
    """

    def __init__(
        self,
        monitor: Monitor,
        capabilities: t.Mapping[str, bool] | None = None,
        parameters: t.Mapping[str, t.Any] | None = None,
    ) -> None:
        """:param capabilities: and ``parameters``: found values to put back, from a run that could not do it itself."""
        self._monitor = monitor
        #: What differs from what was found, with the values that were found.
        self.found_capabilities = dict(capabilities or {})
        self.found_parameters = dict(parameters or {})
        self._wanted_capabilities: dict[str, bool] = {}
        self._wanted_parameters: dict[str, t.Any] = {}

    async def plan(
        self,
        *,
        mapped_ram: bool,
        parallel_channels: int | None,
        direct_io: bool,
        bandwidth: int | None,
        late_activation: bool | None = None,
    ) -> None:
        """Find out what the run needs to have set, and how that is set now.

        :param mapped_ram: pages at fixed places in the file, written by multifd's channels.
        :param parallel_channels: multifd's channels; None where there are none (a plain stream).
        :param direct_io: pages past the page cache; always set where QEMU knows it, to either value.
        :param bandwidth: bytes per second, None for no limit.
        :param late_activation: whether a load leaves the disks alone until the guest goes on; None for a save.
        :raises UnsupportedByQemuError: QEMU lacks a capability that every one has since 4.0.
        :raises MonitorError: it could not be asked.
        """
        capabilities = {
            entry["capability"]: entry["state"] for entry in await self._monitor.execute("query-migrate-capabilities")
        }
        wanted = {name: state and name in _NEUTRAL_CAPABILITIES for name, state in capabilities.items()}
        wanted["events"] = True
        if "mapped-ram" in wanted:
            wanted["mapped-ram"] = mapped_ram
        wanted["multifd"] = mapped_ram
        if late_activation is not None:
            wanted["late-block-activate"] = late_activation
        lacking = sorted(wanted.keys() - capabilities.keys())
        if lacking:
            raise UnsupportedByQemuError(
                f"QEMU does not have the migration capability {lacking[0]}, without which nothing can be saved or"
                " restored",
                cure="Use a newer QEMU; if this one is new enough, find out what answers on its monitor",
            )
        self.found_capabilities = _changes(wanted, capabilities)
        self._wanted_capabilities = {name: wanted[name] for name in self.found_capabilities}

        parameters = await self._monitor.execute("query-migrate-parameters")
        needed: dict[str, t.Any] = {"max-bandwidth": UNLIMITED_BANDWIDTH if bandwidth is None else bandwidth}
        if parallel_channels is not None:
            needed["multifd-channels"] = parallel_channels
        # Each of these would change or break a stream to a file; set only where QEMU knows the parameter.
        needed.update(
            {
                name: value
                for name, value in (
                    ("direct-io", direct_io),
                    ("multifd-compression", "none"),
                    ("zero-page-detection", "multifd" if mapped_ram else "legacy"),
                    ("mode", "normal"),
                    ("tls-creds", ""),
                )
                if name in parameters
            }
        )
        self.found_parameters = _changes(needed, parameters)
        self._wanted_parameters = {name: needed[name] for name in self.found_parameters}

    @property
    def activates_late(self) -> bool:
        """Whether the run has QEMU leave the disks alone until the guest goes on."""
        return self.found_capabilities.get("late-block-activate") is False

    async def apply(self) -> None:
        """Set what :meth:`plan` found to be needed; raises as :meth:`Monitor.execute`."""
        await self._set(self._wanted_capabilities, self._wanted_parameters)

    async def restore(self) -> None:
        """Put everything back as it was found; raises as :meth:`Monitor.execute`."""
        await self._set(self.found_capabilities, self.found_parameters)

    async def _set(self, capabilities: dict[str, bool], parameters: dict[str, t.Any]) -> None:
        if parameters:
            await self._monitor.execute("migrate-set-parameters", parameters)
        if capabilities:
            await self._monitor.execute(
                "migrate-set-capabilities",
                {"capabilities": [{"capability": name, "state": state} for name, state in capabilities.items()]},
            )


def _changes(wanted: dict[str, t.Any], found: dict[str, t.Any]) -> dict[str, t.Any]:
    """The found values of what differs from the wanted ones."""
    return {name: found[name] for name, value in wanted.items() if found.get(name) != value}


async def query_state(monitor: Monitor, activity: t.Callable[[], object] = lambda: None) -> dict[str, t.Any]:
    """QEMU's ``query-migrate``, with ``status`` always there ("none" before the first migration).

    :param activity: as for :meth:`Monitor.execute`.
    """
    answer: dict[str, t.Any] = await monitor.execute("query-migrate", activity=activity)
    answer.setdefault("status", "none")
    return answer


def fingerprint(state: t.Mapping[str, t.Any]) -> str:
    """QEMU's figures of its last migration (``query-migrate``), which tell one run from another."""
    ram = state.get("ram", {})
    figures = (ram.get("transferred", 0), ram.get("normal", 0), state.get("total-time", 0), state.get("setup-time", 0))
    return ":".join(str(figure) for figure in figures)


class Migration:
    """One run: started by :meth:`start_outgoing` or :meth:`start_incoming`, followed through QEMU's events.

    One that an earlier process may have started is taken over by :meth:`adopt`.
    """

    def __init__(self, monitor: Monitor, pid: int | None = None) -> None:
        """:param pid: QEMU's process id, where it is known."""
        self._monitor = monitor
        self._pid = pid
        self._since = monitor.mark()
        #: Whether QEMU was given the command, so that there may be something to cancel.
        self.started = False
        #: Whether QEMU writes, so that it has something to clean up afterwards.
        self.is_outgoing = False

    def adopt(self, *, outgoing: bool) -> None:
        """Take over what an earlier process may have started."""
        self.started, self.is_outgoing = True, outgoing

    async def start_outgoing(self, uri: str) -> None:
        """Let QEMU write its state to the URI.

        :raises MigrationError: QEMU refused at once.
        """
        self.is_outgoing = True
        await self._start("migrate", {"uri": uri})

    async def start_incoming(self, uri: str) -> None:
        """Let a QEMU that waits for it read its state from the URI.

        A failure leaves QEMU alive so that the error can be asked for, where it knows how (``exit-on-error``, from 9.1
        on). Another refuses the command before it begins anything, and is told again without; to ask for that
        beforehand would take as long as all other questions together, as its schema has 200 KiB.

        :raises MigrationError: QEMU refused at once.
        """
        try:
            await self._start("migrate-incoming", {"uri": uri, "exit-on-error": False})
        except MigrationError:
            await self._start("migrate-incoming", {"uri": uri})

    async def _start(self, command: str, arguments: dict[str, t.Any]) -> None:
        self._since = self._monitor.mark()
        self.started = True
        try:
            await self._monitor.execute(command, arguments)
        except CommandError as exc:
            raise MigrationError(exc.what) from exc

    async def wait(self) -> dict[str, t.Any]:
        """Wait for the run's end, by QEMU's MIGRATION events.

        :returns: the last ``query-migrate``.
        :raises MigrationError: it failed or was cancelled, with QEMU's reason.
        :raises MonitorError: QEMU ended meanwhile, or neither answers nor works any more.
        """
        state = await self._state()
        while state["status"] not in TERMINAL_STATES:
            # A QEMU that hangs sends no event, and its connection does not end.
            with contextlib.suppress(asyncio.TimeoutError):
                await within(LOOK_INTERVAL, self._monitor.wait_for_event(_is_terminal, self._since))
            state = await self._state()
        if state["status"] != "completed":
            reason = state.get("error-desc") or "QEMU gave no reason"
            raise MigrationError(f"QEMU's migration {state['status']}: {reason}")
        return state

    async def _state(self) -> dict[str, t.Any]:
        """``query-migrate``, for whose answer a QEMU that works may take its time.

        While it loads a state, QEMU (10.0.2) does nothing else: it answers only when all is loaded. While it saves
        one, it may do so in the last step, for as long as the storage takes.
        """
        return await query_state(self._monitor, lambda: work_done(self._pid) if self._pid else None)

    async def memory_done(self) -> tuple[int, int]:
        """Bytes of the guest's memory that an outgoing run has dealt with, and all; raises as Monitor.execute."""
        ram = (await self._state()).get("ram", {})
        total = int(ram.get("total", 0))
        return total - int(ram.get("remaining", total)), total

    async def is_active(self) -> bool:
        """Whether the run is still going."""
        return self.started and (await query_state(self._monitor))["status"] not in IDLE_STATES

    async def cancel(self) -> None:
        """Stop a run that is still going and wait until QEMU is rid of it; quiet where there is none."""
        if not await self.is_active():
            return
        bandwidth = (await self._monitor.execute("query-migrate-parameters"))["max-bandwidth"]
        await self._let_channels_rest()
        await self._monitor.execute("migrate_cancel")
        with contextlib.suppress(asyncio.TimeoutError):
            await within(_END_TIMEOUT, self._monitor.wait_for_event(_is_terminal, self._since))
        await self._monitor.execute("migrate-set-parameters", {"max-bandwidth": bandwidth})

    async def settle(self) -> None:
        """Wait until QEMU has cleaned up after a run that is over; only then may its settings be changed.

        A channel that fails makes the run a failed one while its thread still works. What QEMU (10.0.2) has to clean up
        then it sees by the capabilities: switched off too early, multifd leaves its channels and their descriptors
        behind, and at the next migration QEMU dies of SIGSEGV (3 of 80 saves on a full disk, measured). That a
        migration can still be yanked means that this is not done.

        :raises MonitorError: it was not done within half a minute; as :meth:`Monitor.execute`.
        """
        deadline = time.monotonic() + _END_TIMEOUT
        # QEMU before 6.0 has no such command.
        with contextlib.suppress(CommandError):
            while any(instance["type"] == "migration" for instance in await self._monitor.execute("query-yank")):
                if time.monotonic() > deadline:
                    raise MonitorError(f"QEMU has not cleaned up after its migration within {_END_TIMEOUT:g} seconds")
                await asyncio.sleep(_SETTLE_INTERVAL)

    async def _let_channels_rest(self) -> None:
        """Wait for a moment in which no channel has a page to write.

        When a mapped-ram migration is cancelled, QEMU (10.0.2) frees the bitmap of the pages in the file before it
        joins the channels' threads: a channel that just takes up a job then writes into freed memory, and the guest
        dies of SIGSEGV (2 of 400 cancellations with O_DIRECT, measured). At the lowest bandwidth QEMU hands out a
        few pages at the start of every 100 ms and nothing in the rest, which is where the cancellation belongs.
        """
        await self._monitor.execute("migrate-set-parameters", {"max-bandwidth": _RESTING_BANDWIDTH})
        transferred, seen_burst, quiet = -1, False, 0
        deadline = time.monotonic() + _REST_TIMEOUT
        while time.monotonic() < deadline and not (seen_burst and quiet >= 2):
            state = await query_state(self._monitor)
            if state["status"] in IDLE_STATES:
                return
            now = state.get("ram", {}).get("transferred", 0)
            seen_burst = seen_burst or now != transferred != -1
            quiet = quiet + 1 if now == transferred else 0
            transferred = now
            await asyncio.sleep(_REST_INTERVAL)


def _is_terminal(event: Event) -> bool:
    return event["event"] == "MIGRATION" and event["data"]["status"] in TERMINAL_STATES
