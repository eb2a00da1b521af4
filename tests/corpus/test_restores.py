# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Spoilt images are restored into a real QEMU: a clear failure that leaves nothing behind, or the right guest.

The third outcome, another guest, is possible where no structure tells of it: then the digest must.
"""

from __future__ import annotations

import collections
import os
import random

from ansible_collections.vmops.qemu.plugins.module_utils import _errors
from ansible_collections.vmops.qemu.plugins.module_utils._image.verify import structure_problems

from corpus.digest import HAS_DIGEST
from corpus.images import SpoiltImage
from corpus.mutations import KINDS, Expect
from corpus.run import RESTORES, SEED
from support import GuestError, Monitor, find_qemu_pids, gaps
from support.observe import VM

ERRORS = {name for name, error in vars(_errors).items() if isinstance(error, type)}


def spoilt_images(layouts, place):
    """Kind, name of the good image, and one that was spoilt so; every other one is refused by its structure."""
    copies = {name: SpoiltImage(layout, place / f"{name}.save") for name, layout in layouts.items()}
    rng = random.Random(f"{SEED}:restores")
    kinds: dict[bool, list] = {True: [], False: []}
    refused = True
    while True:
        if not kinds[refused]:
            kinds[refused] = [each for each in KINDS if not refused or each.expect is not Expect.SILENT]
            rng.shuffle(kinds[refused])
        kind = kinds[refused].pop()
        name = rng.choice(sorted(layouts))
        mutation = kind.make(rng, layouts[name])
        if mutation is None:
            continue
        path = copies[name].spoil(mutation)
        if bool(structure_problems(str(path))) is refused:
            yield kind, name, path
            refused = not refused
        copies[name].mend(copy=True)


def right_guest(images, run_state, first_counter):
    """Whether the guest that was restored goes on where it was, with its memory as it was."""
    guest = images.guest
    guest.wait_restarted()
    if run_state != "running":
        with Monitor(guest.qmp_socket) as monitor:
            monitor.execute("cont")
    try:
        guest.wait_for_counter(first_counter + 2, timeout=20)
        checksum = guest.checksum(timeout=20)
    except GuestError:
        return False
    counters = guest.counters()
    return (checksum, counters[0], gaps(counters), guest.boots()) == (images.checksum, first_counter, [], 0)


def first_counter_of(images, path, run_module):
    """The first counter that the guest in a good image tells after its restore."""
    images.guest.serial_log.write_bytes(b"")
    result = run_module("qemu_restore", name=VM, path=str(path), remove_image=False)
    assert not result.get("failed"), result["msg"]
    try:
        images.guest.wait_restarted()
        images.guest.wait_for_counter()
        return images.guest.counters()[0]
    finally:
        images.guest.end()


def restore_spoilt(images, path, run_module, first_counter, **options):
    """Restore it, and look at what came of it: an error's class, ``right`` or ``wrong``."""
    images.guest.serial_log.write_bytes(b"")
    before = os.stat(path)
    # The good image lies beside it, and would be the last save: what is looked for here is what QEMU makes of it.
    result = run_module("qemu_restore", name=VM, path=str(path), timeout=60, disks="ignore", **options)
    try:
        if not result.get("failed"):
            assert not path.exists()
            return "right" if right_guest(images, result["vm"]["run_state"], first_counter) else "wrong"
        assert result["error"] in ERRORS, result
        assert result["guest_state"], result["msg"]
        assert result["cure"], result["msg"]
        assert find_qemu_pids(VM) == [], result["msg"]
        after = os.stat(path)
        assert (before.st_ino, before.st_size, before.st_mtime_ns) == (after.st_ino, after.st_size, after.st_mtime_ns)
        return result["error"]
    finally:
        images.guest.end()


def test_restores(own_images, own_layouts, tmp_path, run_module, summary):
    place = tmp_path / "spoilt"
    place.mkdir(mode=0o700)
    first_counters = {}
    for name, layout in own_layouts.items():
        whole = SpoiltImage(layout, place / f"{name}.save").path
        first_counters[name] = first_counter_of(own_images, whole, run_module)
        assert restore_spoilt(own_images, whole, run_module, first_counters[name]) == "right"

    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    wrong = []
    for _number, (kind, name, path) in zip(range(RESTORES), spoilt_images(own_layouts, place)):
        refused = bool(structure_problems(str(path)))
        full = restore_spoilt_full(own_images, path, run_module) if HAS_DIGEST and not refused else ""
        outcome = restore_spoilt(own_images, path, run_module, first_counters[name])
        shown = "another guest, which verify: full refuses" if outcome == "wrong" and full else outcome
        counts["refused by structure" if refused else "let pass"][shown] += 1
        if refused and outcome in ("right", "wrong"):
            wrong.append(f"{kind.name}: was restored")
        if outcome == "wrong" and (kind.expect is not Expect.SILENT or (HAS_DIGEST and not full)):
            wrong.append(f"{kind.name}: another guest came of it")
    for group, outcomes in sorted(counts.items()):
        shown = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
        summary.append(f"{outcomes.total()} spoilt images restored by a real QEMU, {group}: {shown}")
    assert wrong == []


def restore_spoilt_full(images, path, run_module):
    """What a restore with the digest says; never a restore of another guest."""
    result = run_module("qemu_restore", name=VM, path=str(path), verify="full", disks="ignore", check=True)
    return result["msg"] if result.get("failed") else ""
