# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What stands before the modules that need qemu.qmp: it brings the library along where the host has none."""

from __future__ import annotations

import typing as t

from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible_collections.vmops.qemu.plugins.plugin_utils.library import run_with_copy


class LibraryAction(ActionBase):  # type: ignore[misc]  # ansible-core has no types
    """Runs the module of the task's own name."""

    _supports_async = True
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """Run it; with the library only where it is asked for after a first try, as most hosts need none or have it."""
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        module, arguments, variables = self._task.action, dict(self._task.args), task_vars or {}
        in_background = bool(self._task.async_val)
        bundle = boolean(arguments.get("bundle_library", True), strict=False)
        if bundle and in_background:
            # What it lacks would be known only when nobody waits any more.
            result.update(run_with_copy(self, module, arguments, variables, wrap_async=True))
            return result
        answer = self._execute_module(
            module_name=module, module_args=arguments, task_vars=variables, wrap_async=in_background
        )
        if bundle and answer.get("missing_library"):
            answer = run_with_copy(self, module, arguments, variables, wrap_async=False)
        result.update(answer)
        return result
