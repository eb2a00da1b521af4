# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The functional tests of systemd units, on a machine that systemd runs: this host may have another init."""

from __future__ import annotations

import os
import re

import pytest

from support.machine_tool import UNAVAILABLE

pytestmark = pytest.mark.skipif(bool(UNAVAILABLE), reason=UNAVAILABLE)

#: More arguments of pytest on the machine, such as ``-k shutdown``.
CHOSEN = os.environ.get("UNITS_ARGS", "")


def test_units(machine, capsys):
    machine.unpack()
    closing = machine.pytest(f"tests/functional/units {CHOSEN}")
    with capsys.disabled():
        print(f"\ntests of units on a machine of their own: {closing}")
    passed = re.match(r"(\d+) passed", closing)
    assert passed, closing
    assert CHOSEN or int(passed[1]) > 50
