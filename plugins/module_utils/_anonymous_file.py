# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A file without a name, for what is read like a file and is none."""

from __future__ import annotations

import contextlib
import os
import tempfile


def anonymous_file(name: str) -> int:
    """A descriptor of an empty one, in memory where Python and the kernel can have it there.

    Builds of Python for old C libraries (conda's, uv's) have no ``os.memfd_create``.

    :param name: what /proc shows of it.
    :raises OSError: there is no room for a temporary file.
    """
    if hasattr(os, "memfd_create"):
        with contextlib.suppress(OSError):  # a kernel, or a filter of system calls, that does not know it
            return os.memfd_create(name, os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
