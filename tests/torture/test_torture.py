# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Saves and restores that are killed at random moments; then the same task runs again and must end right.

``TORTURE_KILLS`` says how often (50 without it), ``TORTURE_SEED`` which sequence of choices; what a moment hits differs
from run to run. One guest lives through all of it: its counter never jumps and the checksum of its memory, computed
inside, stays what it was.
"""

from __future__ import annotations

import collections
import os
import random
import signal
import time
from collections.abc import Collection
from pathlib import Path

import pytest

from support import CounterGuest
from support.observe import VM, check_back, settings
from support.preloaded import PreloadedModules

KILLS = int(os.environ.get("TORTURE_KILLS") or 50)
SEED = int(os.environ.get("TORTURE_SEED") or time.time_ns() % 10**6)
CHECKSUM_EVERY = 10
FORMATS = ("sparse", "sparse", "sparse", "raw", "raw", "zstd")
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Torture:
    """One guest, one image, and what befalls them."""

    def __init__(self, guest: CounterGuest, image: Path, modules: PreloadedModules, choices: random.Random) -> None:
        self.guest = guest
        self.image = image
        self.modules = modules
        self.choices = choices
        self.counts: collections.Counter[str] = collections.Counter()
        #: How long each kind of run takes when nobody disturbs it, in seconds.
        self.durations: dict[str, float] = {}
        self.settings = settings(guest)
        self.checksum = guest.checksum()
        self.story = ""

    def run(self, module: str, **options: object) -> dict[str, object]:
        """Run to the end; it must succeed."""
        self.modules.start(module, name=VM, path=str(self.image), **options)
        result = self.modules.wait()
        assert result is not None
        assert not result.get("failed"), f"{self.story}: {result['msg']}"
        return result

    def disturb(self, module: str, kind: str, **options: object) -> None:
        """Run, and end it by a signal at a random moment; then say what holds at any moment."""
        number = self.choices.choice(SIGNALS)
        moment = self.choices.uniform(0, 1.1 * self.durations[kind])
        self.story = f"{kind} ended by {number.name} after {moment:.3f} s"
        self.modules.start(module, name=VM, path=str(self.image), **options)
        time.sleep(moment)
        self.modules.send_signal(number)
        result = self.modules.wait()
        if result is None:
            outcome = "killed"
        elif result.get("error") == "InterruptedOperationError":
            outcome = "interrupted"
        else:
            assert not result.get("failed"), f"{self.story}: {result['msg']}"
            outcome = "too late"
        self.counts[f"{kind}, {outcome}"] += 1
        self.check_one_truth(outcome, module)

    def check_one_truth(self, outcome: str, module: str) -> None:
        """The guest is in a QEMU or in a complete image; a run that could, put it back at once."""
        alive = self.guest.adopt_restarted()
        complete = self.image.exists() and self.image.read_bytes()[:16] == b"LibvirtQemudSave"
        assert alive or complete, f"{self.story}: the guest is lost"
        if outcome == "interrupted":
            # Back where it was: no image of a save, no QEMU of a restore, and nothing set differently.
            assert (alive, complete) == ((True, False) if module == "qemu_save" else (False, True)), self.story
            if alive:
                assert settings(self.guest) == self.settings, self.story
            assert self.leftovers() == set(), self.story

    def leftovers(self) -> set[str]:
        return set(os.listdir(self.image.parent)) - {self.image.name}

    def round(self) -> None:
        """A save that is disturbed and done again, then a restore likewise."""
        image_format = self.choices.choice(FORMATS)
        live = self.choices.random() < 0.4
        saving = {"format": image_format, "live": live}
        kind = f"save {image_format}{' live' if live else ''}"
        if kind not in self.durations:
            started = time.monotonic()
            self.run("qemu_save", **saving)
            self.durations[kind] = time.monotonic() - started
            started = time.monotonic()
            self.run("qemu_restore")
            self.durations[f"restore {image_format}"] = time.monotonic() - started
        self.disturb("qemu_save", kind, **saving)
        if self.choices.random() < 0.15:
            # The operator thinks again: not saved after all.
            self.run("qemu_restore")
            self.counts["saves that were called off by a restore"] += 1
            # The head of an image that QEMU was not told of yet stays until the next save.
            self.check_running(self.leftovers())
        if "earlier run" in str(self.run("qemu_save", **saving)["msg"]):
            self.counts["saves of a killed run that were adopted"] += 1
        self.check_saved()
        self.disturb("qemu_restore", f"restore {image_format}")
        if "earlier run" in str(self.run("qemu_restore")["msg"]):
            self.counts["restores of a killed run that were adopted"] += 1
        self.check_running()

    def check_saved(self) -> None:
        self.guest.wait_exit()
        assert not self.guest.adopt_restarted(), f"{self.story}: a QEMU runs beside the image"
        assert self.leftovers() == set(), self.story

    def check_running(self, leftovers: Collection[str] = ()) -> None:
        assert not self.image.exists(), f"{self.story}: the image is still there beside the guest"
        assert self.leftovers() == set(leftovers), self.story
        check_back(self.guest, self.settings, self.story)


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    choices = random.Random(SEED)
    directory = tmp_path / "save"
    directory.mkdir(mode=0o700)
    started = time.monotonic()
    with CounterGuest(tmp_path / "guest", VM, block_mib=24, line_ms=20, observer=True) as guest:
        guest.start()
        with PreloadedModules() as modules:
            torture = Torture(guest, directory / "web1.save", modules, choices)
            rounds = 0
            while sum(count for what, count in torture.counts.items() if "," in what) < KILLS:
                torture.round()
                rounds += 1
                if rounds % CHECKSUM_EVERY == 0:
                    assert guest.checksum() == torture.checksum, torture.story
            assert guest.checksum() == torture.checksum
    with capsys.disabled():
        lines = [f"  {count:5d}  {what}" for what, count in sorted(torture.counts.items())]
        seconds = time.monotonic() - started
        print(f"\ntorture, seed {SEED}: {rounds} rounds of save and restore in {seconds:.0f} s, all ended right")
        print("\n".join(lines))
