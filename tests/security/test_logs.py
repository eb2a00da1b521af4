# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The log of a restored QEMU is where nobody else can change a name, and is opened once."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.launch_log import LaunchLog, is_usable

from support import CounterGuest
from support.attacker import Attacker
from support.observe import VM

PLANTED: dict[str, Callable[[Path, Path], object]] = {
    "nothing": lambda log, victim: None,
    "fifo": lambda log, victim: os.mkfifo(log),
    "link": lambda log, victim: log.symlink_to(victim),
    "second-name": lambda log, victim: os.link(victim, log),
}


@pytest.mark.parametrize("plant", PLANTED.values(), ids=PLANTED.keys())
def test_directory_of_his(
    attacker: Attacker,
    guest: CounterGuest,
    save: Any,
    run_module: Any,
    image: Path,
    plant: Callable[[Path, Path], object],
) -> None:
    """Of the image in it root's QEMU loads nothing; whatever is there in the place of its log is left alone."""
    save(name=VM, path=str(image))
    victim = attacker.programs / "victim"
    victim.write_text("precious")
    moved = attacker.home / "web1.save"
    shutil.move(image, moved)
    log = Path(f"{moved}.log")
    plant(log, victim)
    log_of_root = Path("/var/log/vmops.qemu", f"{VM}.log")
    log_of_root.unlink(missing_ok=True)
    started = time.monotonic()
    # Not with bounded memory, which the QEMU that it starts would inherit.
    result = run_module("qemu_restore", path=str(moved), launch="command", command=guest.argv())
    assert result["error"] == "ImageUnsafeError", result["msg"]
    assert victim.read_text() == "precious"
    assert time.monotonic() - started < 40
    # Nor would its QEMU write there, whatever an image records.
    assert not is_usable(str(log))
    written = LaunchLog(VM)
    for descriptor in written.open():
        os.close(descriptor)
    assert Path(written.path) == log_of_root
    written.close()
    assert (log_of_root.stat().st_uid, log_of_root.stat().st_mode & 0o777) == (0, 0o600)
    assert log_of_root.parent.stat().st_mode & 0o777 == 0o700
    log_of_root.unlink()


def test_log_that_is_put_aside_while_qemu_runs(attacker: Attacker) -> None:
    path = attacker.home / "console.log"
    path.touch()
    log = LaunchLog(VM, str(path), str(path))
    stdout, stderr = log.open()
    os.write(stdout, b"said\n")
    path.unlink()
    os.mkfifo(path)
    assert log.tail() == "said"
    for descriptor in (stdout, stderr):
        os.close(descriptor)
    log.close()
