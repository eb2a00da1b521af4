# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The directory of what runs share until the host's reboot: locks, progress, logs.

C(/run/vmops.qemu) for root; C($XDG_RUNTIME_DIR/vmops.qemu) for any other user, or, where there is none, as for a user
who has not logged in, C(/tmp/vmops.qemu-UID). It belongs to its user alone, who alone can look into it.
"""

from __future__ import annotations

import errno
import os
import stat

ROOT_DIRECTORY = "/run/vmops.qemu"


def run_directory(name: str = "") -> str:
    """The directory, or the one of this name in it, made where it is missing.

    :raises OSError: it cannot be made, or what is there may be someone else's.
    """
    path = base_directory()
    make_own_directory(path)
    if name:
        path = os.path.join(path, name)
        make_own_directory(path)
    return path


def base_directory() -> str:
    """Where it is, or would be."""
    if os.geteuid() == 0:
        return ROOT_DIRECTORY
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(runtime) and os.path.isdir(runtime):
        return os.path.join(runtime, "vmops.qemu")
    return f"/tmp/vmops.qemu-{os.geteuid()}"


def make_own_directory(path: str) -> None:
    """Make a directory of this user's alone, where it is missing.

    :raises OSError: it cannot be made, or what is there may be someone else's.
    """
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        # In /tmp anyone can have made it, or put a link there.
        facts = os.lstat(path)
        if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid() or stat.S_IMODE(facts.st_mode) & 0o022:
            raise OSError(errno.EPERM, "it is not a directory of this user's alone", path) from None
