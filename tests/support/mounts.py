# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""File systems that are made and mounted for a test."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Optional


@contextlib.contextmanager
def mounted(place: Path, kind: str, size_mib: int = 600) -> Iterator[Optional[str]]:
    """Mount a new file system of this kind at place, which is made; yields why it cannot be done, or None."""
    mkfs = shutil.which(f"mkfs.{kind}", path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")
    if kind != "tmpfs" and mkfs is None:
        yield f"no mkfs.{kind}"
        return
    place.mkdir()
    disk = place.with_suffix(".disk")
    argv = ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "none", str(place)]
    if kind != "tmpfs":
        with disk.open("wb") as handle:
            handle.truncate(size_mib << 20)
        subprocess.run([str(mkfs), "-q", str(disk)], check=True, stdout=subprocess.DEVNULL)
        argv = ["mount", "-t", kind, "-o", "loop", str(disk), str(place)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        yield f"this host cannot mount {kind}: {done.stderr.strip()}"
        return
    try:
        yield None
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)
        disk.unlink(missing_ok=True)
