# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import errno
import fcntl
import os

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_lock import image_lock


@pytest.fixture
def locked_with(monkeypatch):
    """How each file was open that was locked."""
    modes = {}
    real = fcntl.flock

    def flock(descriptor, operation):
        modes[os.readlink(f"/proc/self/fd/{descriptor}")] = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    return modes


def test_image_is_locked_as_nfs_wants_it(builder, locked_with):
    """Open for writing: else NFS has no exclusive lock of it, and two hosts restore it at once."""
    path = str(builder.write())
    with image_lock(path):
        assert locked_with[path] == os.O_RDWR


def test_image_that_may_only_be_read_is_locked_so(builder, locked_with, monkeypatch):
    path = str(builder.write())
    real = os.open

    def read_only(name, flags, *rest, **more):
        if name == path and flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(name, flags, *rest, **more)

    monkeypatch.setattr(os, "open", read_only)
    with image_lock(path):
        assert locked_with[path] == os.O_RDONLY
