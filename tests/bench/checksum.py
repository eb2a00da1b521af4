# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a checksum costs: of a save that records it, and of a restore that verifies it.

    .venv/bin/python tests/bench/checksum.py [--memory MIB] [--rounds N] [--directory DIR]

Saves and restores with and without it take turns in each round. Printed are the medians of the modules' own
``duration`` in seconds, and their ratio to the same without a checksum; of the saves, also the share that is the
checksum's own (``checksum_ms`` of ``duration``). Restores are from a cold cache where the kernel lets it be dropped.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.channels import drop_caches, run_module

from support import CounterGuest

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("sparse, O_DIRECT", {"bypass_cache": True}),
    ("sparse, buffered", {"bypass_cache": False}),
    ("raw", {"format": "raw"}),
]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure what a checksum costs.")
    parser.add_argument("--memory", type=int, default=2048, help="MiB that the guest fills with data")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", default="/var/tmp", help="where the images go")
    arguments = parser.parse_args()
    times: dict[tuple[str, str, bool], list[float]] = {}
    shares: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(dir=arguments.directory) as place:
        image = os.path.join(place, "bench.save")
        guest = CounterGuest(
            os.path.join(place, "guest"), "bench", memory_mib=arguments.memory + 256, block_mib=arguments.memory
        )
        with guest:
            guest.start()
            for _round in range(arguments.rounds):
                for variant, options in VARIANTS:
                    for checksum in (False, True):
                        saved = run_module("qemu_save", name="bench", path=image, checksum=checksum, **options)
                        drop_caches()
                        cached = {key: value for key, value in options.items() if key == "bypass_cache"}
                        verify = "full" if checksum else "structure"
                        restored = run_module("qemu_restore", name="bench", path=image, verify=verify, **cached)
                        guest.wait_restarted()
                        times.setdefault(("save", variant, checksum), []).append(saved["duration"])
                        times.setdefault(("restore", variant, checksum), []).append(restored["duration"])
                        if checksum:
                            shares.setdefault(variant, []).append(saved["checksum_ms"] / 1000 / saved["duration"])
    print(f"{arguments.memory} MiB of data, {arguments.rounds} rounds, {os.cpu_count()} CPUs")
    for what in ("save", "restore"):
        for variant, _options in VARIANTS:
            plain, summed = (statistics.median(times[what, variant, checksum]) for checksum in (False, True))
            share = f", checksum {statistics.median(shares[variant]):.0%} of it" if what == "save" else ""
            print(f"{what:8} {variant:17} {plain:6.2f} s, with checksum {summed:6.2f} s, {summed / plain:5.2f}{share}")


if __name__ == "__main__":
    main()
