# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What all steps of one save know, and what it says of itself."""

from __future__ import annotations

import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._image.head import ImageHead
from ansible_collections.vmops.qemu.plugins.module_utils._image.info import image_result
from ansible_collections.vmops.qemu.plugins.module_utils._image.names import image_path
from ansible_collections.vmops.qemu.plugins.module_utils._operation import Run, ended_vm
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.selection import Selection
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.vm import RunningVm
from ansible_collections.vmops.qemu.plugins.module_utils._save.image_at import is_image_of
from ansible_collections.vmops.qemu.plugins.module_utils._save.request import SaveRequest
from ansible_collections.vmops.qemu.plugins.module_utils._situation import Situation


class SaveRun(Run):
    """One save."""

    kind = "save"

    def __init__(self, request: SaveRequest) -> None:
        self.selection = Selection.of(request.name, request.uuid, request.unit, request.pid)
        super().__init__(
            _known_path(request, self.selection),
            self.selection.label if self.selection else request.qmp_socket or "the VM",
        )
        self.request = request
        #: The name under which the image has the VM; empty where it is not known yet.
        self.name_in_image = request.name or ""
        #: Whether the image is complete.
        self.written = False

    @property
    def is_planned(self) -> bool:
        """Whether it is only to be told what it would do."""
        return self.request.check_mode

    def is_image_of(self, head: ImageHead, vm: RunningVm) -> bool:
        """Whether an image holds this VM that runs."""
        return is_image_of(head, self.name_in_image or vm.name, vm.uuid, None)

    def _ended(self) -> Situation:
        if self.written and self.request.after_save != "resume":
            return Situation(f"{self.subject} has ended and the image {self.path} is complete", "saved")
        return Situation(f"{self.subject} has ended", "ended")

    def outcome(self) -> dict[str, str]:
        """How image and VM are after a save, for diff mode."""
        run_states = {"quit": "ended", "pause": "postmigrate", "resume": "running"}
        return {"image": "complete", "vm": run_states[self.request.after_save]}

    def result(self, msg: str, vm: RunningVm | None, after: dict[str, str] | None = None) -> dict[str, t.Any]:
        """The return values of a run that wrote nothing.

        :param after: how image and VM are, where this run changed them, or would change them.
        """
        image = image_result(self.path)
        warnings = list(self.warnings)
        if self.request.checksum and not self.request.check_mode and image["checksum"] is None:
            warnings.append(f"{image['path']} has no checksum: the run that saved it was not asked for one")
        return {
            "changed": after is not None,
            "msg": msg,
            "image": image,
            "vm": vm.as_result() if vm else ended_vm(image["name"], image["uuid"]),
            "diff": {"before": self.before, "after": after or self.before},
            "warnings": warnings,
        }


def _known_path(request: SaveRequest, selection: Selection) -> str:
    """The image's path, where the options say it; else the empty string: it depends on the VM."""
    if request.path or request.image_name or selection.is_by_name:
        return image_path(request.path, request.save_dir, request.image_name or request.name)
    return ""
