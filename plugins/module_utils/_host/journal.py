# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where a run over a host's VMs tells, line by line, what becomes of each."""

from __future__ import annotations

import typing as t


class Journal(t.Protocol):
    """A place for such lines."""

    def say(self, text: str) -> None:
        """Tell what was done, or left alone."""

    def complain(self, text: str) -> None:
        """Tell what went wrong."""
