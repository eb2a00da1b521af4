# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A machine of a test's own, which systemd runs: this host may have another init."""

from __future__ import annotations

import pytest

from support.machine_run import HostMachine
from support.machine_tool import finish, start


@pytest.fixture
def machine(tmp_path):
    """A Debian with systemd, sshd and QEMU, and nothing of this collection."""
    directory = tmp_path / "machines"
    finish(start("create", str(directory), "hv1"))
    try:
        yield HostMachine(directory, "hv1")
    finally:
        finish(start("destroy", str(directory)))
