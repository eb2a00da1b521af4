# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Problems, and that what a program can be told of them is documented."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import yaml
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.verdict import (
    Problem,
    blocking,
    warnings_of,
)

PLUGINS = Path(__file__).resolve().parents[5] / "plugins"
LOST = Problem("vnc_password", "its VNC password is lost", "Set it again", blocks=False)
GONE = Problem("disk_gone", "the disk d0 is gone", "Bring it back")


def test_what_blocks():
    assert blocking([LOST, GONE]) == [GONE]
    assert warnings_of([LOST, GONE], "web1") == ["web1: its VNC password is lost (Set it again)"]
    assert GONE.as_result() == {
        "kind": "disk_gone",
        "what": "the disk d0 is gone",
        "cure": "Bring it back",
        "blocks": True,
    }


def kinds_in(path: Path) -> Iterator[str]:
    """The kinds of the problems that a file makes, where it writes them out."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Problem" and node.args:
            kind = node.args[0]
            if isinstance(kind, ast.Constant) and isinstance(kind.value, str):
                yield kind.value


def test_every_kind_is_documented():
    module = (PLUGINS / "modules" / "qemu_vm_info.py").read_text()
    (text,) = re.findall(r'RETURN = r"""(.*?)"""', module, re.DOTALL)
    returned = yaml.safe_load(text)
    description = " ".join(returned["vms"]["contains"]["problems"]["contains"]["kind"]["description"])
    documented = set(re.findall(r"V\((\w+)\)", description))
    made = {kind for path in (PLUGINS / "module_utils").rglob("*.py") for kind in kinds_in(path)}
    assert len(made) > 30
    assert made - documented == set()
