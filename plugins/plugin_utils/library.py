# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The controller's copy of qemu.qmp, brought to a host that has none, for one run of one module."""

from __future__ import annotations

import importlib.util
import io
import typing as t
import zipfile
from pathlib import Path

from ansible.plugins.action import ActionBase

#: Names the copy's path for the module (C(_qemu/monitor)).
_VARIABLE = "VMOPS_QEMU_QMP"

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
    """A zip archive from which Python imports C(qemu.qmp); None where the controller has no such library."""
    files = library_files()
    if not files:
        return None
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("qemu/", "")  # by which Python before 3.13 knows a namespace package in an archive
        for name, path in files.items():
            archive.write(path, name)
    return buffer.getvalue()


def run_with_copy(
    action: ActionBase, module: str, arguments: dict[str, t.Any], task_vars: dict[str, t.Any], wrap_async: bool
) -> dict[str, t.Any]:
    """Run a module that finds the controller's copy, where the host has no library of its own.

    The copy lies in the run's own temporary directory and goes with it. A controller without one runs the module as
    it is, which then says what it lacks.

    :param wrap_async: start the module in the background.
    """
    copy = controllers_copy()
    task = action._task
    before = task.environment
    try:
        if copy is not None:
            path = _bring(action, copy)
            task.environment = [*(before or []), {_VARIABLE: path}]
        return t.cast(
            "dict[str, t.Any]",
            action._execute_module(
                module_name=module, module_args=arguments, task_vars=task_vars, wrap_async=wrap_async
            ),
        )
    finally:
        task.environment = before


def _bring(action: ActionBase, copy: bytes) -> str:
    shell = action._connection._shell
    if shell.tmpdir is None:
        action._make_tmp_path()
    path = shell.join_path(shell.tmpdir, "qemu_qmp.zip")
    action._transfer_data(path, copy)
    action._fixup_perms2([shell.tmpdir, path])
    return str(path)
