# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What all steps of one restore know, and what it says of itself."""

from __future__ import annotations

import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._host_memory import MemoryLedger
from ansible_collections.vmops.qemu.plugins.module_utils._image.head import ImageHead
from ansible_collections.vmops.qemu.plugins.module_utils._image.info import image_result
from ansible_collections.vmops.qemu.plugins.module_utils._image.names import image_path
from ansible_collections.vmops.qemu.plugins.module_utils._operation import Run, ended_vm
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.selection import Selection
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.vm import RunningVm
from ansible_collections.vmops.qemu.plugins.module_utils._restore.guest_clock import GuestClock
from ansible_collections.vmops.qemu.plugins.module_utils._restore.load_note import LoadNote
from ansible_collections.vmops.qemu.plugins.module_utils._restore.request import RestoreRequest
from ansible_collections.vmops.qemu.plugins.module_utils._situation import Situation
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.provision import Provision
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.record import Surroundings


class RestoreRun(Run):
    """One restore."""

    kind = "restore"

    def __init__(self, request: RestoreRequest, memory: MemoryLedger | None = None) -> None:
        """:param memory: what the other restores of this run take of the host's memory."""
        #: The VM in the image, and the QEMU that is to load it.
        self.selection = Selection.of(request.name, request.uuid, request.unit, None)
        self.at_hand = Selection.of(None, None, None, request.pid)
        # That of a VM which is chosen by more than its name is looked for.
        path = ""
        if request.path or self.selection.is_by_name or not self.selection:
            path = image_path(request.path, request.save_dir, request.name)
        super().__init__(path, self.selection.label if self.selection else path)
        self.request = request
        self.memory = memory or MemoryLedger()
        self.reasons: dict[str, str] = {}
        #: Whether this run has marked the image as one whose guest goes on, and whether it has removed it.
        self.marked = False
        self.removed = False
        #: The clock of the guest, where it runs again.
        self.clock: GuestClock | None = None
        #: What surrounded the VM when it was saved, where the image records it and it is to be compared.
        self.surroundings: Surroundings | None = None
        #: The note of the image's load; None where there is no image, or it was not looked at.
        self.load_note: LoadNote | None = None
        #: What is seen to before QEMU is started by its recorded start; None where it is not.
        self.provision: Provision | None = None

    @property
    def is_planned(self) -> bool:
        """Whether it is only to be told what it would do."""
        return self.request.check_mode

    def _ended(self) -> Situation:
        image = "removed already" if self.removed else "kept"
        # One that may have gone on since is in no image.
        guest = "saved" if self.situation.guest == "saved" else "ended"
        return Situation(f"{self.subject} is not running, as its QEMU has ended; its image was {image}", guest)

    def _image_word(self) -> str:
        word = super()._image_word()
        if word == "absent" and self.removed:
            return "removed"
        return "kept" if word == "complete" else word

    @property
    def untouched(self) -> str:
        """That the image is as it was, as a clause, and what depends on it."""
        return f"its image is untouched{self.load_note.warning if self.load_note else ''}"

    def word_for(self, head: ImageHead | None) -> str:
        """The word for a guest that no QEMU has, by its image."""
        # What the guest of a checkpoint did since is in no image.
        return "saved" if head and head.header.complete and not head.header.checkpoint else "ended"

    def wants_running(self, head: ImageHead) -> bool:
        """Whether the guest runs after it."""
        return head.header.was_running if self.request.state == "as_saved" else self.request.state == "running"

    def was_suspended(self, head: ImageHead) -> bool:
        """Whether the guest slept when it was saved (S3), as far as the image says it."""
        facts = head.domain().save_facts
        return facts is not None and facts.suspended

    def outcome(self, running: bool, suspended: bool = False) -> dict[str, str]:
        """How image and VM are after a restore, for diff mode.

        :param running: whether the guest is let go. :param suspended: whether it sleeps then.
        """
        return {
            "image": "absent" if self.request.remove_image else "complete",
            "vm": "paused" if not running else "suspended" if suspended else "running",
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
