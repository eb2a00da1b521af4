# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What it costs to look at what surrounds a VM: in milliseconds, and as a share of the save.

    .venv/bin/python tests/bench/surroundings.py [--memory MIB] [--disks N] [--rounds N] [--directory DIR]

The guest has N disks: a raw one that it boots from, and qcow2 ones over a common raw one. In each round it is looked at
as a save does before it touches the guest (``survey``) and after QEMU has written everything (``read_all_media``), and
as a restore does before it starts anything (``changed_media``) and when QEMU has opened its disks (``other_media``);
then it is saved and goes on.
Printed are medians, and the share of the sum of the save's two looks in the save's own ``duration``.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "build" / "collections"))
sys.path.insert(0, str(REPOSITORY / "tests"))

from ansible_collections.vmops.qemu.plugins.module_utils._qemu.monitor import Monitor  # noqa: E402
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import read_process  # noqa: E402
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.unit import read_vm_unit  # noqa: E402
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.media_changes import (  # noqa: E402
    changed_media,
    other_media,
)
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.survey import (  # noqa: E402
    read_all_media,
    survey,
)
from bench.channels import run_module  # noqa: E402

from support import CounterGuest  # noqa: E402


async def timed(times: list[float], work: Awaitable[Any]) -> Any:
    """Its result; its milliseconds are appended."""
    started = time.perf_counter()
    result = await work
    times.append((time.perf_counter() - started) * 1000)
    return result


async def look(guest: CounterGuest, times: dict[str, list[float]]) -> None:
    """One look of each kind."""
    process = read_process(guest.pid or 0)
    assert process is not None
    unit = await read_vm_unit(process)
    async with await Monitor.connect(str(guest.qmp_socket)) as monitor:
        await timed(times["survey"], survey(monitor, process, unit, sparse=True))
        media = await timed(times["read_all_media"], read_all_media(monitor, process))
    started = time.perf_counter()
    assert not [problem for problem in changed_media(media) if problem.blocks]
    times["changed_media"].append((time.perf_counter() - started) * 1000)
    started = time.perf_counter()
    assert not [problem for problem in other_media(media, media, "bench") if problem.blocks]
    times["other_media"].append((time.perf_counter() - started) * 1000)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What it costs to look at what surrounds a VM.")
    parser.add_argument("--memory", type=int, default=1024, help="MiB that the guest fills with data")
    parser.add_argument("--disks", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", default="/var/tmp", help="where image and disks go")
    arguments = parser.parse_args()
    times: dict[str, list[float]] = {
        name: [] for name in ("survey", "read_all_media", "changed_media", "other_media", "save")
    }
    with tempfile.TemporaryDirectory(dir=arguments.directory) as place:
        base = os.path.join(place, "base.img")
        subprocess.run(["qemu-img", "create", "-q", "-f", "raw", base, "64M"], check=True)
        words = []
        for number in range(1, arguments.disks):
            disk = os.path.join(place, f"disk{number}.qcow2")
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, disk], check=True)
            words += ["-drive", f"if=none,id=d{number},format=qcow2,file={disk}"]
            words += ["-device", f"virtio-blk-pci,drive=d{number},id=disk{number}"]
        guest = CounterGuest(
            os.path.join(place, "guest"),
            "bench",
            memory_mib=arguments.memory + 256,
            block_mib=arguments.memory,
            extra_args=words,
        )
        with guest:
            guest.start()
            for _round in range(arguments.rounds):
                asyncio.run(look(guest, times))
                image = os.path.join(place, "bench.save")
                saved = run_module("qemu_save", name="bench", path=image, after_save="resume", force=True)
                times["save"].append(saved["duration"] * 1000)
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"{arguments.memory} MiB of data, {arguments.disks} disks, {arguments.rounds} rounds, {os.cpu_count()} CPUs")
    for name, median in medians.items():
        print(f"{name:16} {median:8.1f} ms (from {min(times[name]):.1f} to {max(times[name]):.1f})")
    share = (medians["survey"] + medians["read_all_media"]) / medians["save"]
    print(f"share of the save: {share:.1%}")


if __name__ == "__main__":
    main()
