# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether descriptors can be taken from other processes here."""

from __future__ import annotations

import contextlib
import os

from ansible_collections.vmops.qemu.plugins.module_utils._process_handle import open_pidfd, take_descriptor


def _copies_descriptors() -> bool:
    with contextlib.suppress(OSError):
        process = open_pidfd(os.getpid())
        try:
            os.close(take_descriptor(process, process))
        finally:
            os.close(process)
        return True
    return False


#: Whether a descriptor can be taken from another process here: the filters of some containers forbid it even to root.
COPIES_DESCRIPTORS = _copies_descriptors()
