# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The modules of qemu.qmp in the collection are those of its release."""

from __future__ import annotations

from pathlib import Path

import pytest
import qemu.qmp  # type: ignore[import-untyped,unused-ignore]
from ansible_collections.vmops.qemu.plugins.module_utils import _qemu_qmp

OURS = Path(next(iter(_qemu_qmp.__path__)))
RELEASED = Path(next(iter(qemu.qmp.__path__)))


@pytest.mark.parametrize("name", sorted(path.name for path in OURS.glob("*.py")))
def test_nothing_is_changed(name):
    """Whoever needs another behaviour changes it there, or in ``_qemu/monitor``."""
    if name == "__init__.py":
        assert (OURS / name).read_bytes() == b""
    else:
        assert (OURS / name).read_bytes() == (RELEASED / name).read_bytes()


def test_nothing_of_another_licence_is_taken():
    assert not {path.name for path in OURS.iterdir()} & {"legacy.py", "qmp_shell.py", "qmp_tui.py"}
