# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""maintenance_report, which writes on the controller: as JSON first, so that a broken template costs the page alone."""

from __future__ import annotations

import contextlib
import json
import os
import typing as t
from pathlib import Path

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.vmops.qemu.plugins.module_utils._bounded_read import read_bounded
from ansible_collections.vmops.qemu.plugins.module_utils._durable import write_durably
from ansible_collections.vmops.qemu.plugins.modules.maintenance_report import ARGUMENTS
from ansible_collections.vmops.qemu.plugins.plugin_utils._report_page import ReportTemplateError, report_page

#: Bytes of an old file that are compared with the new ones at most; a longer one is replaced.
_MOST_COMPARED = 64 * 2**20


class ActionModule(ActionBase):  # type: ignore[misc]  # ansible-core has no types
    """Writes the two files."""

    _requires_connection = False
    _supports_async = False
    _supports_check_mode = True
    _supports_diff = False

    def run(self, tmp: t.Any = None, task_vars: t.Any = None) -> dict[str, t.Any]:
        """What the module returns."""
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        _checked, options = self.validate_argument_spec(ARGUMENTS)
        if os.path.basename(options["name"]) != options["name"] or not options["name"]:
            raise AnsibleActionFail(f"name is {options['name']!r}, which is no name of a file")
        place = Path(options["directory"]).absolute()
        paths = {kind: place / f"{options['name']}.{kind}" for kind in ("json", "html")}
        # Control characters of hosts are escaped in JSON, and so is what no UTF-8 can hold.
        text = json.dumps(options["data"], indent=4, sort_keys=True)
        changed = self._write(paths["json"], f"{text}\n")
        try:
            page = report_page(options["data"], options["template"])
        except ReportTemplateError as error:
            raise AnsibleActionFail(str(error)) from error
        changed = self._write(paths["html"], page) or changed
        told = {"changed": changed, "msg": f"The report is in {paths['html']}"}
        return {**result, **told, "json": str(paths["json"]), "page": str(paths["html"])}

    def _write(self, path: Path, text: str) -> bool:
        """Whether that changes the file."""
        data = text.encode("utf-8", "backslashreplace")
        with contextlib.suppress(OSError):
            if read_bounded(str(path), _MOST_COMPARED) == data:
                return False
        if not self._task.check_mode:
            try:
                if not path.parent.is_dir():
                    path.parent.mkdir(mode=0o700, parents=True)
                write_durably(str(path), data)
            except OSError as error:
                raise AnsibleActionFail(f"{path} cannot be written: {error.strerror}") from error
        return True
