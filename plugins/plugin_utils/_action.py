# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What stands between the controller and the modules: it believes a host no more than it must.

It also brings the library that some modules need along, where the host has none.
"""

from __future__ import annotations

import re
import typing as t

from ansible.errors import AnsibleActionFail
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.vmops.qemu.plugins.plugin_utils._answer import reduce_answer
from ansible_collections.vmops.qemu.plugins.plugin_utils._library import controllers_copy

#: Names the copy's path for the module (``_qemu/monitor``).
_VARIABLE = "VMOPS_QEMU_QMP"

#: What a temporary directory of Ansible's is called like. A host that says something else is not asked further.
_DIRECTORY = re.compile(r"/[A-Za-z0-9._/~@+-]{1,1023}")

#: Control characters and marks of direction. A module prints JSON in ASCII; what is not JSON is shown as it is.
_NOT_PRINTED = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)

#: Keys on which Ansible acts; what it removes of them it shows before.
_INTERNAL = re.compile(r"_ansible_|ansible_(?!job_id$)|add_host$|add_group$")


class HostAction(ActionBase):  # type: ignore[misc]  # ansible-core has no types
    """Asks modules, and lets in of their answers what they document."""

    #: The copy's path on the host, as the host has told it. It is kept here, and goes into the command's environment
    #: as it is: what stands in the task's own environment is taken for a template by ansible-core before 2.19, so that
    #: a host would run code on the controller by the name of a directory.
    _copy_path = ""

    def _compute_environment_string(self, raw_environment_out: dict[str, t.Any] | None = None) -> str:
        """The command's environment, as the shell wants it; the copy's path is only quoted."""
        environment = str(super()._compute_environment_string(raw_environment_out))
        if not self._copy_path:
            return environment
        return f"{environment} {self._connection._shell.env_prefix(**{_VARIABLE: self._copy_path})}".strip()

    def _parse_returned_data(self, res: dict[str, t.Any], *profile: t.Any) -> dict[str, t.Any]:
        """What a module has printed; without what Ansible would show as it is while it takes it for a result."""
        printed = _NOT_PRINTED.sub(lambda found: f"\\u{ord(found.group()):04x}", str(res.get("stdout", "")))
        answer: dict[str, t.Any] = super()._parse_returned_data({**res, "stdout": printed}, *profile)
        return {key: value for key, value in answer.items() if key == "_ansible_parsed" or not _INTERNAL.match(key)}

    def ask(
        self,
        module: str,
        arguments: t.Mapping[str, t.Any],
        task_vars: dict[str, t.Any],
        *,
        in_background: bool = False,
        with_copy: bool = False,
    ) -> dict[str, t.Any]:
        """Run a module on the host; what is let in of its result.

        :param in_background: only start it.
        :param with_copy: bring the controller's copy of qemu.qmp along. It lies in the run's own temporary directory,
          and goes with that. A controller without one runs the module as it is, which then says what it lacks.
        :raises AnsibleActionFail: the host's temporary directory has a name that none has.
        """
        copy = controllers_copy() if with_copy else None
        try:
            if copy is not None:
                self._copy_path = self._bring(copy)
            answer = self._execute_module(
                module_name=module, module_args=dict(arguments), task_vars=task_vars, wrap_async=in_background
            )
        finally:
            self._copy_path = ""
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

    def ask_with_library(
        self, module: str, arguments: t.Mapping[str, t.Any], task_vars: dict[str, t.Any]
    ) -> dict[str, t.Any]:
        """As :meth:`ask`; with the copy only where it is asked for after a first try: most hosts have the library."""
        answer = self.ask(module, arguments, task_vars)
        if answer.get("missing_library") and self.wants_library(arguments):
            answer = self.ask(module, arguments, task_vars, with_copy=True)
        return answer

    def wants_library(self, arguments: t.Mapping[str, t.Any]) -> bool:
        """Whether the controller's copy may be brought along."""
        return bool(boolean(arguments.get("bundle_library", True), strict=False))

    def _bring(self, copy: bytes) -> str:
        """Put the copy into the run's temporary directory; its path on the host."""
        shell = self._connection._shell
        if shell.tmpdir is None:
            self._make_tmp_path()
        if not _DIRECTORY.fullmatch(str(shell.tmpdir)):
            raise AnsibleActionFail(
                "The host names a temporary directory that cannot be one, with other characters than letters, digits"
                " and ._/~@+-. Nothing was begun. Set ansible_remote_tmp to a directory with a plain name, and see why"
                " the host says so."
            )
        path = str(shell.join_path(shell.tmpdir, "qemu_qmp.zip"))
        self._transfer_data(path, copy)
        self._fixup_perms2([shell.tmpdir, path])
        return path


class ModuleAction(HostAction):
    """Runs the module of the task's own name."""

    _supports_async = True
    _supports_check_mode = True
    #: Whether the module needs qemu.qmp.
    needs_library = False

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """Run it; with the library only where it is asked for after a first try, as most hosts need none or have it."""
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        module, arguments, variables = self._task.action, dict(self._task.args), task_vars or {}
        if not self.needs_library:
            result.update(self.ask(module, arguments, variables, in_background=bool(self._task.async_val)))
        elif self._task.async_val:
            # What a background job lacks would be known only when nobody waits any more.
            with_copy = self.wants_library(arguments)
            result.update(self.ask(module, arguments, variables, in_background=True, with_copy=with_copy))
        else:
            result.update(self.ask_with_library(module, arguments, variables))
        return result
