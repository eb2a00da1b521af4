# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Files and directories that other users may read, write or enter."""

from __future__ import annotations

import contextlib
import os
import pwd
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

#: A user whose processes attack, with an account.
NOBODY = pwd.getpwnam("nobody").pw_uid
#: A user without an account.
STRANGER = 12345
#: What to start a command of nobody's with.
AS_NOBODY = ["setpriv", "--reuid", "nobody", "--regid", str(pwd.getpwnam("nobody").pw_gid), "--clear-groups"]


def _acl(*entries: tuple[int, int, int]) -> bytes:
    """A POSIX ACL as the kernel keeps it: entries of tag, permissions, and identifier (linux/posix_acl_xattr.h)."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def grant(path: Path, permissions: int) -> None:
    """Let a stranger have these permissions by an ACL, with a mask that allows them."""
    bits = stat.S_IMODE(path.stat().st_mode)
    none = 0xFFFFFFFF
    value = _acl(
        (0x01, bits >> 6, none),  # the owner
        (0x02, permissions, STRANGER),  # a named user
        (0x04, bits >> 3 & 7, none),  # the group
        (0x10, permissions | bits >> 3 & 7, none),  # the mask
        (0x20, bits & 7, none),  # others
    )
    try:
        os.setxattr(path, "system.posix_acl_access", value)
    except OSError as error:
        pytest.skip(f"no ACLs in the file system of {path}: {error.strerror}")


def give_to_stranger(path: Path) -> None:
    """Let it belong to the stranger."""
    os.chown(path, STRANGER, -1)


@contextlib.contextmanager
def reachable_by_nobody(*places: Path) -> Iterator[None]:
    """Let others look into these directories and those above them."""
    changed = []
    for place in places:
        for directory in (place, *place.parents):
            mode = stat.S_IMODE(directory.stat().st_mode)
            if mode & 0o005 != 0o005:
                directory.chmod(mode | 0o055)
                changed.append((directory, mode))
    try:
        yield
    finally:
        for directory, mode in changed:
            directory.chmod(mode)
