# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Monitors that send what no QEMU sends: time and memory are bounded, and the other VMs are seen and saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

import pytest

from support import CounterGuest
from support.attacker import Attacker

#: What a fake does, how its VM is then shown, and what the reason says. All else they answer as a QEMU does.
FAKES = {
    "nothing-wrong": ("answers", ""),
    "events": ("busy", "did not answer within"),
    "endless-greeting": ("invalid", "is not a QMP server"),
    "slow-greeting": ("busy", "did not greet within"),
    "endless-answer": ("invalid", "chunk exceed the limit"),
    "millions-of-values": ("invalid", "more than 500000 values"),
    "deep": ("invalid", "deep inside each other"),
    "long-number": ("invalid", "more than 1000 digits"),
    "late-event": ("invalid", "seconds is 1000"),
    "early-event": ("invalid", "seconds is -1"),
    "negative-memory": ("invalid", "base-memory is -1"),
    "absurd-memory": ("invalid", "plugged-memory is 1000"),
    "more-pmem-than-memory": ("invalid", "more memory than the VM"),
    "no-channels": ("invalid", "is -5"),
    "long-name": ("invalid", "name has 1000000 characters"),
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
    state, reason = FAKES[kind]
    assert shown[fake.pid]["monitor"] == state or (kind, shown[fake.pid]["monitor"]) == ("events", "lost")
    assert reason in shown[fake.pid]["reason"] or kind == "events", shown[fake.pid]
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


def test_monitor_without_a_capability(attacker: Attacker, run_bounded: Callable[..., Any], image: Path) -> None:
    socket = attacker.home / "qmp"
    attacker.python("fake_qemu.py", "no-events", "-name", "fake", "-qmp", f"unix:{socket},server=on", named="kvm")
    result, _seconds = run_bounded("qemu_save", name="fake", path=str(image), format="raw", require_restorable=False)
    assert result["error"] == "UnsupportedByQemuError", result["msg"]
    assert "events" in result["msg"]
    assert list(image.parent.iterdir()) == []


#: As FAKES, of human monitors.
HUMAN_FAKES = {
    "silent": ("busy", "did not show its prompt within"),
    "one-by-one": ("busy", "did not show its prompt within"),
    "endless": ("invalid", "writes on and on"),
    "hangs-up": ("lost", "ended"),
    "mute": ("busy", "did not answer info"),
    "obeys": ("none", "opens no QMP monitor"),
    "talks": ("none", "opens no QMP monitor"),
}


@pytest.mark.parametrize("kind", HUMAN_FAKES)
def test_human_monitor_that_is_none(
    attacker: Attacker, guest: CounterGuest, run_bounded: Callable[..., Any], kind: str
) -> None:
    socket = attacker.home / "human"
    fake = attacker.python(
        "fake_human.py", kind, "-name", "fake", "-monitor", f"unix:{socket},server=on", named="qemu-system-x86_64"
    )
    result, seconds = run_bounded("qemu_vm_info", name=["fake", guest.name])
    assert not result.get("failed"), result["msg"]
    shown = {vm["pid"]: vm for vm in result["vms"]}
    assert shown[guest.pid]["monitor"] == "answers"
    state, reason = HUMAN_FAKES[kind]
    assert shown[fake.pid]["monitor"] == state, shown[fake.pid]
    assert reason in shown[fake.pid]["reason"], shown[fake.pid]
    assert len(shown[fake.pid]["reason"]) < 2000
    assert seconds < 25
