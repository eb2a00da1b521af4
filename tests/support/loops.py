# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Loop devices, which stand for disks of the host."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Union

import pytest


@contextlib.contextmanager
def loop_device(file: Union[str, Path], *words: str) -> Iterator[str]:
    """A loop device over a file, for the body; skips the test where there are none."""
    if os.geteuid() != 0:
        pytest.skip("only root can make loop devices")
    done = subprocess.run(
        ["losetup", "--find", "--show", *words, str(file)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no loop devices here: {done.stderr.strip()}")
    device = done.stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def put_behind(device: str, file: Union[str, Path]) -> None:
    """Have a loop device be one over another file, as a device's name is another disk's after a reboot."""
    subprocess.run(["losetup", "--detach", device], check=True)
    subprocess.run(["losetup", device, str(file)], check=True)
