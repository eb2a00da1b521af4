# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the tests look at: a guest that goes on, and a QEMU whose migration settings are as they were."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from .counter import CounterGuest
from .guest import Guest, gaps
from .monitor import Monitor

#: The tests' VM: a name that neither another run of the tests nor an operator's VM on this host has.
VM = f"web1-{os.getpid()}"
OTHER_VM = f"db1-{os.getpid()}"


def wait_until(reached: Callable[[], object], timeout: float = 20.0, interval: float = 0.01) -> None:
    """Wait up to timeout seconds until it is so, with interval seconds between two looks."""
    deadline = time.monotonic() + timeout
    while not reached():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(interval)


class Continuity:
    """Taken before a save: :meth:`check` then shows, from the guest's side, that it went on where it was."""

    def __init__(self, guest: CounterGuest) -> None:
        self.guest = guest
        self.checksum = guest.checksum()
        self.last = guest.counters()[-1]

    def check(self) -> None:
        """The same boot, no counter lost or repeated, and the same checksum of its memory, computed inside."""
        if not self.guest.alive():
            self.guest.wait_restarted()
        self.guest.wait_for_counter(self.guest.counters()[-1] + 2)
        assert self.guest.boots() == 1
        missing = gaps(self.guest.counters())
        assert not missing, missing
        assert self.guest.checksum() == self.checksum
        assert self.guest.counters()[-1] > self.last


def settings(guest: CounterGuest) -> dict[str, Any]:
    """QEMU's migration capabilities and parameters and its fdsets, through the observing monitor."""
    with Monitor(guest.observer_socket) as monitor:
        return {
            "capabilities": monitor.execute("query-migrate-capabilities"),
            "parameters": monitor.execute("query-migrate-parameters"),
            "fdsets": monitor.execute("query-fdsets"),
        }


def check_back(guest: CounterGuest, before: dict[str, Any], story: str) -> None:
    """A QEMU has the guest that never noticed a thing, and is set as it was before (:func:`settings`)."""
    assert guest.adopt_restarted(), f"{story}: no QEMU of {guest.name}"
    assert settings(guest) == before, story
    guest.wait_for_counter(guest.counters()[-1])
    assert gaps(guest.counters()) == [], story
    assert guest.boots() == 1, story


def words(result: dict[str, Any]) -> tuple[str, str]:
    """How guest and image are, as a failed run says it to programs."""
    return result["guest"], result["image"]["state"]


def run_state(guest: Guest) -> str:
    """QEMU's run state, through the observing monitor."""
    with Monitor(guest.observer_socket) as monitor:
        return str(monitor.execute("query-status")["status"])


def migration_is_active(guest: Guest) -> bool:
    """Whether QEMU writes or reads a stream, by the observing monitor."""
    with Monitor(guest.observer_socket) as monitor:
        return bool(monitor.execute("query-migrate").get("status") == "active")
