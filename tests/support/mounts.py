# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""File systems that are made and mounted for a test, as root."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
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


#: The user for whom a file server takes root.
SQUASHED = 65534


@contextlib.contextmanager
def shown_by_server(below: Path, place: Path, *options: str, squash: bool = True) -> Iterator[Optional[str]]:
    """Show the directory ``below`` at place, which is made, as a file server does; by bindfs, which has these options.

    squash: that root is taken for nobody: what root makes there belongs to nobody, and root may do no more there than
    nobody may. Of the process that does all of it nothing but the right to mount is root's then.
    Yields why it cannot be done, or None.
    """
    bindfs = shutil.which("bindfs")
    if bindfs is None or not os.path.exists("/dev/fuse"):
        yield "no bindfs or no /dev/fuse"
        return
    place.mkdir()
    user = ["setpriv", f"--reuid={SQUASHED}", f"--regid={SQUASHED}", "--clear-groups"]
    user += [f"--{which}=-all,+sys_admin" for which in ("inh-caps", "ambient-caps", "bounding-set")]
    command = [*(user if squash else []), bindfs, "-f", "-o", "allow_other", *options, str(below), str(place)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as server:
        try:
            deadline = time.monotonic() + 20
            while not os.path.ismount(place):
                if server.poll() is not None or time.monotonic() > deadline:
                    server.kill()
                    yield f"this host cannot mount by FUSE: {server.communicate()[1].strip()}"
                    return
                time.sleep(0.01)
            yield None
        finally:
            if os.path.ismount(place):
                subprocess.run(["umount", "--lazy", place], check=True)
            try:
                server.communicate(timeout=20)
            except subprocess.TimeoutExpired:  # somebody still has a file open there
                server.kill()
