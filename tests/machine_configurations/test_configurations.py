# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""VM configurations, each with a real QEMU: saved and restored, or refused, as the table says.

What was found is recorded for docs/machines.md.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from typing import Any

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._file_system import volatile_mount

from machine_configurations.cases import CASES, NOT_SAVED, REFUSED, RESTORED, SAID, Case
from machine_configurations.place import FirmwareGuest, MachineGuest, Place, Skip, observe
from support.machine_table import record


@pytest.fixture
def place(tmp_path):
    place = Place(tmp_path / "place")
    yield place
    place.close()


def make_guest(case: Case, place: Place):
    words = [str(word) for word in case.words(place)]
    if shutil.which(case.qemu) is None:
        raise Skip(f"no {case.qemu}")
    options: dict[str, Any] = {
        "memory_mib": case.memory_mib,
        "extra_args": words,
        "qemu": case.qemu,
        "machine": case.machine,
    }
    name = case.name or f"web1-{os.getpid()}"
    guest = (
        MachineGuest(place / "guest", name, block_mib=2, boot=case.boot, **options)
        if case.boot
        else FirmwareGuest(place / "guest", name, **options)
    )
    guest.rewrite = lambda argv: [*place.prefix, *rewritten(case, argv)]
    return guest


def rewritten(case: Case, argv: list[str]) -> list[str]:
    """The command line as the case wants it: its name, and what it does with the rest."""
    if case.name is None:
        argv = [argv[0], *argv[3:]]
    elif case.name:
        argv = [*argv[:2], case.name.replace(",", ",,"), *argv[3:]]
        if "=" in case.name:
            argv[2] = f"guest={argv[2]}"
    return case.rewrite(argv) if case.rewrite else argv


def parameter(case: Case) -> Any:
    marks = pytest.mark.xfail(reason=case.pending) if case.pending else ()
    return pytest.param(case, id=case.id, marks=marks)


@pytest.mark.parametrize("case", [parameter(case) for case in CASES])
def test_configuration(case, place, run_module):
    try:
        guest = make_guest(case, place)
    except Skip as reason:
        pytest.skip(str(reason))
    try:
        guest.start()
        if case.boot:
            guest.wait_for_counter()
        try_it(case, place, guest, run_module)
    finally:
        guest.adopt_restarted()
        guest.close()


def own(problem: dict[str, Any]) -> bool:
    """Whether it is one of the tests' own place, where that is on a tmpfs."""
    return bool(volatile_mount(tempfile.gettempdir())) and problem["kind"] in ("on_tmpfs", "image_on_tmpfs")


def try_it(case, place, guest, run_module):
    if case.change:
        case.change(guest, place)
    seen = observe(guest, case.memory_at) if case.outcome in (RESTORED, SAID) and not case.paused else None
    address = case.address(guest) if case.address else {"name": guest.name}
    saves = place / "save"
    saves.mkdir(mode=0o700, exist_ok=True)
    image = saves / "image.save"
    saved = run_module("qemu_save", **address, **{**case.save, "path": str(image)})
    problems = [problem for problem in saved.get("problems", []) if problem["kind"] in case.kinds or not own(problem)]
    if case.cure:
        assert case.cure in saved["cure"], saved["msg"]
        (vm,) = run_module("qemu_vm_info", **{key: [value] for key, value in address.items()})["vms"]
        assert case.cure in vm["reason"], vm
    if case.outcome == NOT_SAVED:
        assert saved.get("failed"), saved["msg"]
        assert [saved["error"]] == list(case.kinds), saved["msg"]
        assert not image.exists()
        assert guest.alive()
        return record(case, "refused", saved["msg"], guest)
    if case.outcome == REFUSED:
        assert saved.get("failed"), saved["msg"]
        assert saved["error"] == "NotRestorableError", saved["msg"]
        kinds = {problem["kind"] for problem in problems if problem["blocks"]}
        assert kinds == set(case.kinds), saved["msg"]
        assert not image.exists()
        assert guest.qmp("query-status")["status"] == "running"
        return record(case, "refused", "; ".join(problem["what"] for problem in problems if problem["blocks"]), guest)
    assert not saved.get("failed"), saved["msg"]
    assert {problem["kind"] for problem in problems} == (set(case.kinds) if case.outcome == SAID else set()), problems
    guest.wait_exit()
    if case.meanwhile:
        case.meanwhile(guest, place)
    restored = run_module("qemu_restore", **address, path=str(image))
    assert not restored.get("failed"), restored["msg"]
    if seen:
        seen.check()
    elif case.paused:
        guest.wait_restarted()
        assert guest.qmp("query-status")["status"] == "paused"
        last = guest.counters()[-1]
        guest.qmp("cont")
        guest.wait_for_counter(last)
    assert not image.exists()
    return record(case, "restored", "; ".join(problem["what"] for problem in problems), guest)


def test_table_is_large_enough():
    """And no two configurations have one name, as they would share a row."""
    assert len(CASES) >= 100
    assert len({case.id for case in CASES}) == len(CASES)
