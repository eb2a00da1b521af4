# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Monitors that send what no QEMU sends: time and memory are bounded, and the other VMs are seen and saved."""

from __future__ import annotations

from typing import Any, Callable

import pytest
from security.conftest import Attacker

from support import CounterGuest

#: What a fake does, and how its VM is then shown.
FAKES = {
    "events": ("busy", "lost"),
    "endless-greeting": ("invalid",),
    "slow-greeting": ("busy",),
    "endless-answer": ("invalid",),
    "millions-of-values": ("invalid",),
    "deep": ("invalid",),
    "long-number": ("invalid",),
    "late-event": ("invalid",),
    "early-event": ("invalid",),
    "negative-memory": ("invalid",),
    "absurd-memory": ("invalid",),
    "no-channels": ("invalid",),
    "long-name": ("invalid",),
}


@pytest.mark.parametrize("kind", FAKES)
def test_monitor_that_is_none(
    attacker: Attacker, guest: CounterGuest, run_bounded: Callable[..., Any], kind: str
) -> None:
    socket = attacker.home / "qmp"
    fake = attacker.python(
        "fake_qemu.py", kind, "-name", "fake", "-qmp", f"unix:{socket},server=on", named="qemu-system-x86_64"
    )
    result, seconds = run_bounded("qemu_vm_info", name=["fake", guest.name])
    assert not result.get("failed"), result["msg"]
    shown = {vm["pid"]: vm for vm in result["vms"]}
    assert shown[guest.pid]["monitor"] == "answers"
    assert shown[fake.pid]["monitor"] in FAKES[kind], shown[fake.pid]
    assert shown[fake.pid]["memory"] is None or shown[fake.pid]["memory"] >= 0
    assert len(shown[fake.pid]["reason"]) < 2000
    assert seconds < 25


def test_line_that_takes_a_pattern_for_ever(attacker: Attacker, run_bounded: Callable[..., Any]) -> None:
    socket = attacker.home / "qmp"
    attacker.python("fake_qemu.py", "long-line", "-name", "fake", "-qmp", f"unix:{socket},server=on", named="kvm")
    path = attacker.programs / "fake.save"
    result, seconds = run_bounded(
        "qemu_save", name="fake", path=str(path), domain_xml="<domain type='kvm'><name>fake</name></domain>"
    )
    assert result.get("failed")
    assert seconds < 25
