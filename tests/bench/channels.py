# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Compare numbers of parallel channels, with and without the page cache, for saving and restoring one guest.

    .venv/bin/python tests/bench/channels.py [--memory MIB] [--rounds N] [--directory DIR]

All variants take turns in each round, so that what the machine does meanwhile hits all of them. Printed are the
medians of the modules' own ``duration`` in seconds, and their ratio to the default variant's. Restores are from a cold
cache where the kernel lets it be dropped (root).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "tests"))

from support import CounterGuest  # noqa: E402

VARIANTS = [(False, 1), (False, 4), (True, 1), (True, 2), (True, 4), (True, 8)]


def run_module(module: str, **options: Any) -> dict[str, Any]:
    """Run a module of the staged collection; its result."""
    done = subprocess.run(
        [sys.executable, "-m", f"ansible_collections.vmops.qemu.plugins.modules.{module}"],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": options}),
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "build" / "collections")},
        capture_output=True,
        text=True,
        check=False,
    )
    result: dict[str, Any] = json.loads(done.stdout)
    if result.get("failed"):
        sys.exit(result["msg"])
    return result


def drop_caches() -> None:
    """Have what is read next come from the disk, where the kernel lets us (root)."""
    os.sync()
    with contextlib.suppress(OSError), open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as drop:
        drop.write("3")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Compare numbers of parallel channels.")
    parser.add_argument("--memory", type=int, default=2048, help="MiB that the guest fills with data")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", default="/var/tmp", help="where the images go")
    arguments = parser.parse_args()
    times: dict[tuple[str, bool, int], list[float]] = {}
    with tempfile.TemporaryDirectory(dir=arguments.directory) as place:
        image = os.path.join(place, "bench.save")
        guest = CounterGuest(
            os.path.join(place, "guest"), "bench", memory_mib=arguments.memory + 256, block_mib=arguments.memory
        )
        with guest:
            guest.start()
            for _round in range(arguments.rounds):
                for bypass_cache, channels in VARIANTS:
                    how = {"path": image, "bypass_cache": bypass_cache, "parallel_channels": channels}
                    saved = run_module("qemu_save", name="bench", **how)
                    drop_caches()
                    restored = run_module("qemu_restore", name="bench", **how)
                    guest.wait_restarted()
                    times.setdefault(("save", bypass_cache, channels), []).append(saved["duration"])
                    times.setdefault(("restore", bypass_cache, channels), []).append(restored["duration"])
    print(f"{arguments.memory} MiB of data, {arguments.rounds} rounds, {os.cpu_count()} CPUs")
    for what in ("save", "restore"):
        base = statistics.median(times[what, True, 4])
        for bypass_cache, channels in VARIANTS:
            seconds = statistics.median(times[what, bypass_cache, channels])
            cache = "O_DIRECT" if bypass_cache else "buffered"
            print(f"{what:8} {cache:9} {channels} channels: {seconds:6.2f} s, {seconds / base:5.2f}")


if __name__ == "__main__":
    main()
