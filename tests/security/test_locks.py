# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Locks that an unprivileged user takes keep nobody waiting."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support import CounterGuest
from support.attacker import Attacker
from support.observe import VM


def kept_open(attacker: Attacker, path: Path, *more: str) -> Iterator[subprocess.Popen[str]]:
    """His process with a descriptor of root's file, as he has one of an image that his QEMU was handed; locked."""
    descriptor = os.open(path, os.O_WRONLY)
    os.set_inheritable(descriptor, True)
    try:
        script = attacker.programs / "hold_lock.py"
        script.write_bytes((Path(__file__).parent / "attackers" / "hold_lock.py").read_bytes())
        yield attacker.start(
            ["/usr/bin/python3", script, str(descriptor), *more], pass_fds=(descriptor,), start_new_session=True
        )
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("more", [[], ["orphan"]], ids=["himself", "left-to-a-child"])
def test_image_that_he_has_locked(
    attacker: Attacker, guest: CounterGuest, save: Any, run_bounded: Any, image: Path, more: list[str]
) -> None:
    save(name=VM, path=str(image))
    for holder in kept_open(attacker, image, *more):
        result, seconds = run_bounded("qemu_restore", name=VM, path=str(image))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(holder.pid, signal.SIGKILL)  # his own session, with the child
    assert result["error"] == "LockHeldError", "nothing that is tried again until the end of another run"
    assert "nobody" in result["msg"]
    assert more or f"pid {holder.pid}" in result["msg"]
    assert seconds < 10
    assert image.exists()


def test_leftover_that_he_has_locked_is_removed(
    attacker: Attacker, guest: CounterGuest, save: Any, image: Path
) -> None:
    leftover = image.with_name(f".{image.name}.0123456789abcdef.partial")
    leftover.write_bytes(b"LibvirtQemudPart")
    for _holder in kept_open(attacker, leftover):
        save(name=VM, path=str(image))
    assert sorted(os.listdir(image.parent)) == [image.name]


def test_directory_that_he_has_locked(attacker: Attacker, guest: CounterGuest, run_bounded: Any) -> None:
    shared = attacker.programs / "save"
    shared.mkdir(mode=0o755)
    descriptor = os.open(shared, os.O_RDONLY)
    os.set_inheritable(descriptor, True)
    script = attacker.programs / "hold_lock.py"
    script.write_bytes((Path(__file__).parent / "attackers" / "hold_lock.py").read_bytes())
    attacker.start(["/usr/bin/python3", script, str(descriptor)], pass_fds=(descriptor,))
    os.close(descriptor)
    result, _seconds = run_bounded("qemu_save", name=VM, path=str(shared / "web1.save"))
    assert not result.get("failed"), result["msg"]


def test_process_of_his_that_has_locked_itself(
    attacker: Attacker, guest: CounterGuest, save: Any, run_bounded: Callable[..., Any], image: Path
) -> None:
    """It has only the VM's name; it was taken for the VM, and its lock for another run's."""
    save(name=VM, path=str(image))
    attacker.python("hold_lock.py", "self", "-name", VM, named="qemu-system-x86_64")
    result, seconds = run_bounded("qemu_restore", name=VM, path=str(image), qmp_socket=str(guest.qmp_socket))
    assert "another run" not in result["msg"]
    assert seconds < 30


def test_own_qemu_that_has_locked_itself(
    attacker: Attacker, guest: CounterGuest, run_bounded: Callable[..., Any], image: Path
) -> None:
    """As the VM's user can through any process of his: /proc/PID/fd of his QEMU."""
    descriptor = os.open(f"/proc/{guest.pid}/fd", os.O_RDONLY)
    os.set_inheritable(descriptor, True)
    script = attacker.programs / "hold_lock.py"
    script.write_bytes((Path(__file__).parent / "attackers" / "hold_lock.py").read_bytes())
    attacker.start(["/usr/bin/python3", script, str(descriptor)], pass_fds=(descriptor,))
    os.close(descriptor)
    result, _seconds = run_bounded("qemu_save", name=VM, path=str(image))
    assert not result.get("failed"), result["msg"]


def test_lock_directory_is_roots_alone(guest: CounterGuest, save: Any, image: Path) -> None:
    save(name=VM, path=str(image), after_save="resume")
    facts = os.stat("/run/vmops.qemu/locks")
    assert (facts.st_uid, facts.st_mode & 0o777) == (0, 0o700)
