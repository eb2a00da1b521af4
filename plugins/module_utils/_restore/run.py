# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What all steps of one restore know, and what it says of itself."""

from __future__ import annotations

import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._image.file import ImageHead, image_path
from ansible_collections.vmops.qemu.plugins.module_utils._image.info import image_result, image_state
from ansible_collections.vmops.qemu.plugins.module_utils._operation import Locks, ended_vm
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.session import VmSession
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.vm import RunningVm
from ansible_collections.vmops.qemu.plugins.module_utils._restore.request import RestoreRequest
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.record import Surroundings


class RestoreRun:
    """One restore; ``guest_state`` says at any time, in a sentence, how the guest is."""

    def __init__(self, request: RestoreRequest) -> None:
        self.request = request
        self.path = image_path(request.path, request.save_dir, request.name)
        self.subject = request.name or self.path
        self.guest_state = "The guest was not touched"
        self.reasons: dict[str, str] = {}
        self.locks = Locks()
        #: The VM's QEMU, where there is one, as soon as it is known.
        self.session: VmSession | None = None
        #: What surrounded the VM when it was saved, where the image records it and it is to be compared.
        self.surroundings: Surroundings | None = None
        #: What is to be known of how it went, and of what could not be compared.
        self.warnings: list[str] = []
        #: How image and VM were found, for diff mode.
        self.before = {"image": image_state(self.path), "vm": "ended"}

    def wants_running(self, head: ImageHead) -> bool:
        """Whether the guest runs after it."""
        return head.header.was_running if self.request.state == "as_saved" else self.request.state == "running"

    def outcome(self, running: bool) -> dict[str, str]:
        """How image and VM are after a restore, for diff mode."""
        return {
            "image": "absent" if self.request.remove_image else "complete",
            "vm": "running" if running else "paused",
        }

    def result(self, msg: str, vm: RunningVm | None, after: dict[str, str] | None = None) -> dict[str, t.Any]:
        """The return values of a run that loaded nothing; with ``after``, of one that changed, or would change."""
        image = image_result(self.path)
        done = self.before if after is None or self.request.check_mode else after
        return {
            "changed": after is not None,
            "msg": msg,
            "image": image,
            "vm": vm.as_result(done["vm"]) if vm else ended_vm(self.subject, image["uuid"]),
            "diff": {"before": self.before, "after": after or self.before},
            "warnings": self.warnings,
        }
