# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""docs/save-and-restore.md has a row for every kind of error that a task can fail with, and for no other."""

from __future__ import annotations

import re
from pathlib import Path

from ansible_collections.vmops.qemu.plugins.module_utils import _errors
from ansible_collections.vmops.qemu.plugins.plugin_utils._answer import AnswerError

ROOT = Path(__file__).resolve().parents[2]
#: The kinds of which only narrower ones are raised by what a module does.
BASES = {"VmopsError", "ImageError"}
#: Those that are told in the result of a task that succeeds.
TOLD = {"GuestAgentError"}
#: Those of the controller, of what a host answers.
OF_CONTROLLER = {AnswerError.__name__}


def test_each_kind_has_its_row():
    text = (ROOT / "docs" / "save-and-restore.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+Error)` \| \S", text, re.MULTILINE)
    kinds = {
        name for name, kind in vars(_errors).items() if isinstance(kind, type) and issubclass(kind, _errors.VmopsError)
    }
    assert sorted(rows) == sorted((kinds | OF_CONTROLLER) - BASES - TOLD)
