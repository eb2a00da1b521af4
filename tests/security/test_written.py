# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is written into an image is bounded: its QEMU, and whoever copied its descriptor, are their own users."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import CounterGuest
from support.attacker import ATTACKERS, Attacker
from support.observe import VM, run_state


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 600 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600m,mode=0700", "small", str(place)], check=True)
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def used(place: Path) -> int:
    facts = os.statvfs(place)
    return (facts.f_blocks - facts.f_bfree) * facts.f_frsize


def partial_of(place: Path) -> Path:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for path in place.glob(".*.partial"):
            if path.stat().st_size > 200_000:
                return path
        time.sleep(0.02)
    raise AssertionError("there is no partial image")


def write_more(attacker: Attacker, path: Path, mebibytes: int, program: str = "write_more.py") -> None:
    """As he can with the descriptor that his QEMU was handed."""
    script = attacker.programs / program
    shutil.copyfile(ATTACKERS / program, script)
    descriptor = os.open(path, os.O_WRONLY)
    os.set_inheritable(descriptor, True)
    attacker.start(["/usr/bin/python3", script, str(descriptor), str(mebibytes)], pass_fds=(descriptor,))
    os.close(descriptor)


@pytest.mark.parametrize("program", ["write_more.py", "allocate_more.py"])
@pytest.mark.parametrize("image_format", ["raw", "sparse"])
def test_more_than_was_promised(
    attacker: Attacker, make_guest: Any, small: Path, start_module: Any, image_format: str, program: str
) -> None:
    guest = make_guest(observer=True, block_mib=40)  # so that the save takes its time
    run = start_module("qemu_save", name=VM, path=str(small / "web1.save"), format=image_format, bandwidth="1M")
    write_more(attacker, partial_of(small), 400, program)
    result = run.result()
    assert result["error"] == "ImageSpaceError", result["msg"]
    assert "which may need" in result["msg"]
    assert result["guest"] == "running"
    assert run_state(guest) == "running"
    assert list(small.iterdir()) == []
    assert used(small) < 1 << 20, "he has it open, but there is nothing in it"


def test_file_of_a_save_that_failed_is_emptied_though_he_has_it_open(
    attacker: Attacker, guest: CounterGuest, small: Path, start_module: Any
) -> None:
    run = start_module("qemu_save", name=VM, path=str(small / "web1.save"), format="raw", bandwidth="2M")
    write_more(attacker, partial_of(small), 5)
    run.process.terminate()
    assert run.result()["error"] == "InterruptedOperationError"
    assert list(small.iterdir()) == []
    assert used(small) < 1 << 20


def test_leftover_is_emptied_though_he_has_it_open(
    attacker: Attacker, guest: CounterGuest, small: Path, save: Any
) -> None:
    leftover = small / ".web1.save.0123456789abcdef.partial"
    leftover.write_bytes(b"LibvirtQemudPart" + bytes(300_000))
    write_more(attacker, leftover, 100)
    save(name=VM, path=str(small / "web1.save"), after_save="resume")
    assert used(small) < 80 << 20


def test_live_save_that_writes_pages_again_is_none_of_that(guest: CounterGuest, image: Path, save: Any) -> None:
    guest.dirty(True)
    save(name=VM, path=str(image), format="raw", live=True, live_timeout=3, bandwidth="30M")
