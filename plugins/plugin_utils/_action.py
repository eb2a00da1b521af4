# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What stands between the controller and the modules: it believes a host no more than it must."""

from __future__ import annotations

import contextlib
import json
import re
import typing as t

from ansible.module_utils.json_utils import _filter_non_json_lines
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.vmops.qemu.plugins.plugin_utils._answer import reduce_answer

#: Control characters and marks of direction. A module prints JSON in ASCII; what is not JSON is shown as it is.
_NOT_PRINTED = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)

#: Keys on which Ansible acts; what it removes of them it shows before.
_INTERNAL = re.compile(r"_ansible_|ansible_(?!job_id$)|add_host$|add_group$|deprecations$")

#: Under which a module's warnings pass Ansible, which from 2.21 on shows them as they are when it takes a result apart.
_WARNINGS = "module_warnings"


def _without_internal(printed: str) -> str:
    """What a module has printed, without keys on which Ansible acts: some versions show what they remove of them."""
    text, _junk = _filter_non_json_lines(printed, objects_only=True)
    answer = json.loads(text)
    answer = {_WARNINGS if key == "warnings" else key: answer[key] for key in answer if key != _WARNINGS}
    kept = json.dumps({key: value for key, value in answer.items() if not _INTERNAL.match(key)})
    return printed.replace(text, kept, 1) if text in printed else kept


class HostAction(ActionBase):  # type: ignore[misc]  # ansible-core has no types
    """Asks modules, and lets in of their answers what they document."""

    def _parse_returned_data(self, res: dict[str, t.Any], *profile: t.Any) -> t.Any:
        """What a module has printed; without what Ansible would show as it is while it takes it for a result.

        Ansible's own class for it, which differs between its versions, is left to Ansible.
        """
        printed = _NOT_PRINTED.sub(lambda found: f"\\u{ord(found.group()):04x}", str(res.get("stdout", "")))
        with contextlib.suppress(ValueError, RecursionError):  # Ansible says what is wrong with it
            printed = _without_internal(printed)
        return super()._parse_returned_data({**res, "stdout": printed}, *profile)

    def ask(
        self,
        module: str,
        arguments: t.Mapping[str, t.Any],
        task_vars: dict[str, t.Any],
        *,
        in_background: bool = False,
    ) -> dict[str, t.Any]:
        """Run a module on the host; what is let in of its result.

        :param in_background: only start it.
        """
        answer = self._execute_module(
            module_name=module, module_args=dict(arguments), task_vars=task_vars, wrap_async=in_background
        )
        if _WARNINGS in answer:
            answer["warnings"] = answer.pop(_WARNINGS)
        result, warnings = reduce_answer(module, answer, in_background)
        for warning in warnings:
            Display().warning(warning)
        # Which Python Ansible has found there. Ansible puts it in after it has removed what the host says of that.
        found = {
            key: value
            for key, value in (answer.get("ansible_facts") or {}).items()
            if key == getattr(self, "_discovered_interpreter_key", None)
        }
        if found:
            result["ansible_facts"] = found
        return result


class ModuleAction(HostAction):
    """Runs the module of the task's own name."""

    _supports_async = True
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """Run it."""
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        in_background = bool(self._task.async_val)
        result.update(self.ask(self._task.action, self._task.args, task_vars or {}, in_background=in_background))
        return result
