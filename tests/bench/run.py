# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Saves and restores by our modules, by libvirt, by QEMU alone, and the disk's limit, in turns on one machine.

    make bench [QUICK=1] [SIZES=1,4] [ROUNDS=5] [BENCH_DIR=build/bench] [DOCS=1]

A save counts from the start of its process until the image is durable (whoever wrote it, the file is flushed then) and
QEMU is gone; a restore, of an image that is not in the page cache, until the process says that the guest runs. The
image's removal is measured apart. Figures go to build/bench.json, build/bench.md and build/bench.svg; with --docs also
into docs/performance.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Optional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import disk
from bench.chart import chart
from bench.figures import Figures, as_json, between_markers, table
from bench.fill import Fill
from bench.sides import Bare, Module, Side, Virsh, run_module

from support import CounterGuest, qmp
from support.guest import COLLECTIONS, REPOSITORY
from support.libvirt import Libvirt, LibvirtError, LibvirtGuest

_REACH = 3072  # MiB that the counter guest reaches of a larger one
_ALONE_FROM = 4096  # MiB; larger guests are filled from outside beyond that reach, and run one at a time
_SETTLE = 6  # seconds in which a virtual machine gives freed memory back to its own host
_FIRMWARE = 2  # MiB of the counter guest's memory that are not its block


def cold_cache() -> None:
    """Have what is read next come from the disk. Raises OSError without root."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def flush(image: Path) -> None:
    """Have the image on the disk, with its name."""
    for path in (image, image.parent):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def one_round(side: Side, image: Path, figures: Figures) -> None:
    """Save and restore once."""
    side.warm()
    started = time.monotonic()
    side.save(image)
    side.guest.wait_exit(60)
    flush(image)
    figures.add("save", time.monotonic() - started)
    cold_cache()
    side.warm()
    # What a QEMU has freed is soon given back (free page reporting), and to get 3 GiB again takes up to two seconds:
    # who starts a moment sooner would seem to be much faster.
    time.sleep(_SETTLE)
    started = time.monotonic()
    side.restore(image)
    figures.add("restore", time.monotonic() - started)
    side.guest.wait_restarted()
    side.guest.wait_for_counter((side.guest.counters() or [-1])[-1])  # it does run
    if side.pause is not None:
        figures.add("pause", side.pause)
    figures.peak_kib = max(figures.peak_kib, side.peak_kib)
    started = time.monotonic()
    image.unlink()
    flush(image.parent)
    figures.add("removal", time.monotonic() - started)


def disk_round(image: Path, mib: int, threads: int, figures: Figures) -> None:
    """Write as much as the guest has data, and read it."""
    figures.add("save", disk.write(image, mib, threads))
    cold_cache()
    figures.add("restore", disk.read(image, mib, threads))
    image.unlink()


def module_sides(guest: CounterGuest, which: str) -> list[Side]:
    """Our modules: in "all" ways, in the most telling "few", or in those that go past the page cache ("direct")."""
    sides: list[Side] = [Module("default", guest, {}, {})]
    for channels in (1, 2, 4, 8) if which == "all" else (4,):
        how = {"format": "sparse", "bypass_cache": True, "parallel_channels": channels}
        again = {"bypass_cache": True, "parallel_channels": channels}
        sides.append(Module(f"sparse, O_DIRECT, {channels} channels", guest, how, again))
    sides.append(Module("live", guest, {"live": True}, {}))
    sides.append(Module("with checksum", guest, {"checksum": True}, {"verify": "full"}))
    if which == "direct":
        return sides
    sides.append(
        Module("sparse, buffered", guest, {"format": "sparse", "bypass_cache": False}, {"bypass_cache": False})
    )
    sides.append(Module("raw", guest, {"format": "raw"}, {}))
    for tool in ("zstd", "lzop"):
        if shutil.which(tool):
            sides.append(Module(tool, guest, {"format": tool}, {}))
    return sides


def virsh_sides(guest: LibvirtGuest, which: str) -> list[Side]:
    """libvirt's default, and its best flags; "direct" leaves the default out, which goes through the page cache."""
    bypass = ["--bypass-cache"]
    parallel = [*bypass, "--parallel-channels", "4"]
    return [
        *([] if which == "direct" else [Virsh("raw, default", guest, [], [])]),
        Virsh("raw, bypass", guest, bypass, bypass),
        Virsh("sparse, bypass, 4 channels", guest, ["--image-format", "sparse", *parallel], parallel),
    ]


@contextlib.contextmanager
def standing_still(idle: set[CounterGuest]) -> Iterator[None]:
    """Have these guests take no CPU from the side whose turn it is."""
    for guest in idle:
        qmp(guest.qmp_socket, "stop")
    yield
    for guest in idle:
        qmp(guest.qmp_socket, "cont")


def measure(kind: str, place: Path, libvirt: Optional[Libvirt], rounds: int, few: bool, **guest: Any) -> list[Figures]:
    """All sides, or a few, in turns on guests of one kind.

    high_mib is what the guest has beyond the reach of its program, and is filled from outside. Such guests are started
    anew in each round, one at a time, as the machine has not the memory for two.
    """
    high_mib = guest.pop("high_mib", 0)
    fill = Fill(guest["memory_mib"], guest["memory_mib"] - high_mib) if high_mib else None
    data_mib = guest["block_mib"] + guest.get("dirty_mib", 0) + _FIRMWARE + high_mib
    which = "direct" if fill else "few" if few else "all"
    own = CounterGuest(place / "own", f"bench-own-{os.getpid()}", line_ms=500, **guest)
    with contextlib.ExitStack() as stack:
        turns: list[tuple[CounterGuest, list[Side]]] = []
        bare = [Bare(own, channels) for channels in ((1, 4, 8) if which == "all" else (4,))]
        turns.append((stack.enter_context(own), [*module_sides(own, which), *bare]))
        if libvirt:
            other = LibvirtGuest(libvirt, place / "libvirt", f"bench-libvirt-{os.getpid()}", line_ms=500, **guest)
            turns.append((stack.enter_context(other), virsh_sides(other, which)))
        if not fill:
            for each, _sides in turns:
                boot(each, dirties=bool(guest.get("dirty_mib")))
        rows = {side: Figures(kind, side.name) for _guest, sides in turns for side in sides}
        limits = [(threads, Figures(kind, f"disk, O_DIRECT, {threads} threads")) for threads in (1, 2, 4, 8)]
        for number in range(rounds):
            for current, sides in turns:
                if fill:
                    boot(current)
                    fill.write(current.pid or 0)
                with standing_still({each for each, _sides in turns if each is not current and not fill}):
                    for side in sides:
                        print(f"{kind}, round {number + 1} of {rounds}: {side.name}", file=sys.stderr, flush=True)
                        one_round(side, place / "bench.save", rows[side])
                        if fill:
                            fill.require(current.pid or 0)
                if fill:
                    current.end()
            with standing_still({each for each, _sides in turns if not fill}):
                for threads, figures in limits:
                    disk_round(place / "bench.disk", data_mib, threads, figures)
    return [*rows.values(), *(figures for _threads, figures in limits)]


def boot(guest: CounterGuest, dirties: bool = False) -> None:
    """Start it; a large one takes its time to fill its block."""
    guest.boot_timeout = 300  # type: ignore[misc]
    guest.start()
    if dirties:
        guest.dirty(True)


def timed(function: Callable[[], Any]) -> float:
    """Seconds that it takes."""
    started = time.monotonic()
    function()
    return time.monotonic() - started


def ad_hoc(module: str, **options: Any) -> float:
    """Seconds of an ad-hoc ansible with this module."""
    command = ["ansible", "localhost", "-c", "local", "-m", module, *(["-a", json.dumps(options)] if options else [])]
    command += ["-e", f"ansible_python_interpreter={sys.executable}"]
    environment = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS), "ANSIBLE_LOCALHOST_WARNING": "false"}

    def run() -> None:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)

    return timed(run)


def fixed_costs(place: Path, rounds: int, images: int, vms: int) -> dict[str, Any]:
    """A small guest by ansible, info over many images, and over many VMs: medians' rounds, and peaks in KiB."""
    found: dict[str, Any] = {"images": images, "vms": vms, "rounds": {}, "peak_kib": {}}

    def note(what: str, seconds: float) -> None:
        found["rounds"].setdefault(what, []).append(seconds)

    name = f"bench-small-{os.getpid()}"
    image = place / f"{name}.save"
    with CounterGuest(place / "small", name, memory_mib=16, block_mib=1) as guest:
        guest.start()
        for _round in range(rounds):
            note("ping", ad_hoc("ansible.builtin.ping"))
            note("save of 16 MiB", ad_hoc("vmops.qemu.qemu_save", name=name, path=str(image)))
            note("restore of 16 MiB", ad_hoc("vmops.qemu.qemu_restore", name=name, path=str(image)))
            guest.wait_restarted()
        run_module("qemu_save", name=name, path=str(image))
        many = place / "images"
        many.mkdir()
    copied = 0
    for wanted in sorted({max(1, images // 100), max(1, images // 10), images}):  # how the peak grows with them
        for number in range(copied, wanted):
            subprocess.run(["cp", "--sparse=always", str(image), str(many / f"vm{number}.save")], check=True)
        copied = wanted
        what = f"info of {wanted} images"
        for _round in range(rounds):
            started = time.monotonic()
            _result, peak = run_module("qemu_save_image_info", path=str(many))
            note(what, time.monotonic() - started)
            found["peak_kib"][what] = peak
    shutil.rmtree(many)
    with contextlib.ExitStack() as stack:
        for number in range(vms):
            small = CounterGuest(place / f"vm{number}", f"{name}-{number}", memory_mib=16, block_mib=1, line_ms=5000)
            stack.enter_context(small).start()
        for _round in range(rounds):
            started = time.monotonic()
            _result, peak = run_module("qemu_vm_info")
            note("info of the VMs", time.monotonic() - started)
            found["peak_kib"]["info of the VMs"] = peak
    return found


def fixed_table(found: dict[str, Any]) -> str:
    """Markdown of fixed_costs()."""
    figures = Figures("", "", found["rounds"])
    lines = [f"### Fixed costs ({found['images']} images, {found['vms']} VMs)", ""]
    lines += ["| What | Seconds | Peak (MiB) |", "| --- | --- | --- |"]
    for what in figures.seconds:
        peak = found["peak_kib"].get(what)
        lines.append(f"| {what} | {figures.shown(what)} | {f'{peak / 1024:.0f}' if peak else ''} |")
    return "\n".join(lines) + "\n"


def guests(sizes: list[int], left_out: list[str], free_mib: int) -> Iterator[tuple[str, dict[str, int]]]:
    """The guests of these sizes in MiB that fit, and two special ones of the first size.

    Two run side by side, but for those of which only one fits.
    """
    memory_mib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
    for size in sizes:
        total = size + 64
        beside = 1 if size > _ALONE_FROM else 2
        if beside * total > memory_mib * 3 // 4 or beside * total > free_mib:
            left_out.append(f"{size} MiB: not enough memory or disk here")
            continue
        block = min(size, _REACH - 64)
        high = {"high_mib": total - _REACH} if size > _ALONE_FROM else {}
        random = block + high.get("high_mib", 0)
        yield (
            f"{size} MiB guest, {random} MiB of random data",
            {"memory_mib": total, "block_mib": block, **high},
        )
    if len(sizes) == 1 and sizes[0] <= 64:
        return
    first = min(sizes[0], 1024)
    yield f"{first} MiB guest, mostly zeros", {"memory_mib": first + 64, "block_mib": max(1, first // 16)}
    dirty = {"dirty_mib": first // 4, "dirty_rate_mib": max(1, first // 8)}
    yield f"{first} MiB guest that dirties its memory", {"memory_mib": first + 64, "block_mib": first // 2, **dirty}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description="Compare saves and restores.")
    parser.add_argument("--sizes", default="1,4", help="GiB of the guests")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path, default=REPOSITORY / "build" / "bench")
    parser.add_argument("--quick", action="store_true", help="256 MiB, one round, the most telling sides")
    parser.add_argument(
        "--smoke", action="store_true", help="one guest of 64 MiB, one round, the most telling sides, no small costs"
    )
    parser.add_argument("--docs", action="store_true", help="write the figures into docs/performance.md")
    options = parser.parse_args()
    # Ended by a signal, it ends what it has started, too.
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit("ended by SIGTERM"))
    few = options.quick or options.smoke
    sizes = (
        [64] if options.smoke else [256] if options.quick else [int(size) * 1024 for size in options.sizes.split(",")]
    )
    rounds = 1 if few else options.rounds
    if os.geteuid():
        sys.exit("The benchmark needs root, to have restores read from a cold cache.")
    options.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    left_out: list[str] = []
    rows: list[Figures] = []
    small: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        place = Path(directory)
        libvirt: Optional[Libvirt] = None
        try:
            libvirt = Libvirt(place / "libvirtd")
        except LibvirtError as error:
            left_out.append(f"virsh: {error}")
        try:
            free_mib = shutil.disk_usage(place).free >> 20
            planned = list(guests(sizes, left_out, free_mib))
            # Of which all is measured, and drawn.
            largest = max(guest["memory_mib"] for _kind, guest in planned if "high_mib" not in guest)
            for number, (kind, guest) in enumerate(planned):
                where = place / str(number)
                where.mkdir()
                rows += measure(kind, where, libvirt, rounds, few or guest["memory_mib"] < largest, **guest)
                shutil.rmtree(where)
            if not options.smoke:
                small = fixed_costs(place, rounds, 50 if few else 1000, 8 if few else 100)
        finally:
            if libvirt:
                libvirt.close()
    qemu = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True).stdout
    about = f"{qemu.splitlines()[0]}, Linux {platform.release()}, {os.cpu_count()} CPUs, TCG, rounds: {rounds}."
    text = "\n".join([about, "", table(rows), fixed_table(small) if small else ""])
    text += "".join(f"\nLeft out: {what}\n" for what in left_out)
    picture = chart(rows, next(kind for kind, guest in planned if guest["memory_mib"] == largest))
    build = REPOSITORY / "build"
    known = {"about": about, "rows": as_json(rows), "fixed": small, "left_out": left_out}
    (build / "bench.json").write_text(json.dumps(known, indent=1))
    (build / "bench.md").write_text(text)
    (build / "bench.svg").write_text(picture)
    if options.docs:
        document = REPOSITORY / "docs" / "performance.md"
        shown = "![Seconds of saves and restores](pictures/performance.svg)\n\n" + text
        document.write_text(between_markers(document.read_text(), shown))
        (document.parent / "pictures" / "performance.svg").write_text(picture)
    print(text)


if __name__ == "__main__":
    main()
