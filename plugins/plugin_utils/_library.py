# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The controller's copy of qemu.qmp, for hosts that have none."""

from __future__ import annotations

import importlib.util
import io
import zipfile
from pathlib import Path

#: Parts of qemu.qmp that no module imports: programs for people, and what is not LGPL.
_LEFT_OUT = frozenset(("legacy.py", "qmp_shell.py", "qmp_tui.py"))


def library_files() -> dict[str, Path]:
    """The files of the controller's qemu.qmp by their names in an archive; empty where it has no such library."""
    try:
        found = importlib.util.find_spec("qemu.qmp")
    except ImportError:
        return {}
    if found is None or not found.submodule_search_locations:
        return {}
    root = Path(next(iter(found.submodule_search_locations)))
    return {
        f"qemu/qmp/{path.relative_to(root).as_posix()}": path
        for path in sorted(root.rglob("*.py"))
        if path.name not in _LEFT_OUT
    }


def controllers_copy() -> bytes | None:
    """A zip archive from which Python imports ``qemu.qmp``; None where the controller has no such library."""
    files = library_files()
    if not files:
        return None
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("qemu/", "")  # by which Python before 3.13 knows a namespace package in an archive
        for name, path in files.items():
            archive.write(path, name)
    return buffer.getvalue()
