# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs over all VMs of a host that are ended at random moments; then the same task runs again and must end right.

They are ended a fifth as often as ``TORTURE_KILLS`` says (10 times without it); ``TORTURE_SEED`` says which sequence of
choices. Three guests live through all of it. One that is told to end puts back what it has done; of one that is killed
each guest is in a QEMU, or in a complete image.
"""

from __future__ import annotations

import collections
import os
import random
import signal
import time
from pathlib import Path
from typing import Any, Optional

import pytest

from support import CounterGuest
from support.observe import check_back, settings
from support.preloaded import PreloadedModules

KILLS = int(os.environ.get("TORTURE_KILLS") or 50) // 5
SEED = int(os.environ.get("TORTURE_SEED") or time.time_ns() % 10**6)
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
CHECKSUM_EVERY = 5
#: Others' guests run on this host: only these are saved.
NAMES = [f"{name}-{os.getpid()}" for name in ("db1", "web1", "web2")]


class HostTorture:
    """The guests, the directory with their images, and what befalls them."""

    def __init__(
        self, guests: list[CounterGuest], directory: Path, modules: PreloadedModules, choices: random.Random
    ) -> None:
        self.guests = guests
        self.directory = directory
        self.modules = modules
        self.choices = choices
        self.counts: collections.Counter[str] = collections.Counter()
        self.settings = [settings(guest) for guest in guests]
        self.checksums = [guest.checksum() for guest in guests]
        self.story = ""
        self.durations = {module: self.measure(module) for module in ("qemu_managed_save", "qemu_managed_restore")}

    def start(self, module: str, parallel: int = 3) -> None:
        self.modules.start(module, vms=NAMES, save_dir=str(self.directory), parallel=parallel)

    def measure(self, module: str) -> float:
        """Seconds that an undisturbed run takes."""
        started = time.monotonic()
        self.succeed(module)
        return time.monotonic() - started

    def succeed(self, module: str) -> None:
        self.start(module)
        result = self.modules.wait()
        assert result is not None
        assert not result.get("failed"), f"{self.story}: {result['msg']}"

    def disturb(self, module: str) -> None:
        """Run, and end it by a signal at a random moment; then say what holds at any moment."""
        number = self.choices.choice(SIGNALS)
        parallel = self.choices.randint(1, 3)
        # One after the other they take longer.
        moment = self.choices.uniform(0, (2.5 - 0.5 * parallel) * self.durations[module])
        self.story = f"{module}, {parallel} at a time, ended by {number.name} after {moment:.3f} s"
        self.start(module, parallel)
        time.sleep(moment)
        self.modules.send_signal(number)
        result = self.modules.wait()
        outcome = "killed" if result is None else "interrupted" if result.get("failed") else "too late"
        self.counts[f"{module}, {outcome}"] += 1
        self.check_one_truth(module, result)

    def check_one_truth(self, module: str, result: Optional[dict[str, Any]]) -> None:
        for guest in self.guests:
            alive, complete = guest.adopt_restarted(), self.has_image(guest)
            assert alive or complete, f"{self.story}: {guest.name} is lost"
            if result is None or not result.get("failed"):
                continue
            # It was at work on a VM, or between two of them.
            words = ("was interrupted by a signal", "a signal came before")
            assert any(word in result["msg"] for word in words), f"{self.story}: {result['msg']}"
            if module == "qemu_managed_save":
                assert (alive, complete) == (True, False), f"{self.story}: {guest.name} is not back: {result['msg']}"
            else:
                assert alive != complete, f"{self.story}: {guest.name} is in both: {result['msg']}"

    def has_image(self, guest: CounterGuest) -> bool:
        path = self.directory / f"{guest.name}.save"
        return path.exists() and path.read_bytes()[:16] == b"LibvirtQemudSave"

    def round(self) -> None:
        """All are saved, disturbed and again; then all are restored likewise."""
        self.disturb("qemu_managed_save")
        self.succeed("qemu_managed_save")
        for guest in self.guests:
            guest.wait_exit()
            assert not guest.adopt_restarted(), f"{self.story}: a QEMU of {guest.name} runs beside its image"
            assert self.has_image(guest), self.story
        self.disturb("qemu_managed_restore")
        self.succeed("qemu_managed_restore")
        left = os.listdir(self.directory)
        assert left == [], self.story
        for guest, before in zip(self.guests, self.settings):
            check_back(guest, before, self.story)

    def check_memory(self) -> None:
        assert [guest.checksum() for guest in self.guests] == self.checksums, self.story


@pytest.mark.slow
def test_runs_over_a_host_that_are_ended_at_any_moment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    choices = random.Random(SEED)
    directory = tmp_path / "save"
    directory.mkdir(mode=0o700)
    started = time.monotonic()
    guests = [CounterGuest(tmp_path / name, name, block_mib=8, line_ms=20, observer=True) for name in NAMES]
    try:
        for guest in guests:
            guest.start()
            guest.wait_for_counter()
        with PreloadedModules() as modules:
            torture = HostTorture(guests, directory, modules, choices)
            rounds = 0
            while sum(torture.counts.values()) < KILLS:
                torture.round()
                rounds += 1
                if rounds % CHECKSUM_EVERY == 0:
                    torture.check_memory()
            torture.check_memory()
    finally:
        for guest in guests:
            guest.adopt_restarted()
            guest.close()
    with capsys.disabled():
        seconds = time.monotonic() - started
        print(f"\ntorture of a host, seed {SEED}: {rounds} rounds of all its VMs in {seconds:.0f} s, all ended right")
        print("\n".join(f"  {count:5d}  {what}" for what, count in sorted(torture.counts.items())))
