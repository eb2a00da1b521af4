# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How the guest and its image are, in a sentence for people and in words for programs.

============ ==========================================================================================================
``guest``
``running``  it runs in a QEMU, or sleeps there (S3)
``paused``   a QEMU has it, and it stands still
``saved``    no QEMU has it, its image has: it can be restored
``ended``    no QEMU has it, and no image is known to be its last state
``unknown``  it was not looked for, or could not be reached any more
``image``    of what is at the image's path
``absent``   nothing
``partial``  an image that is not whole
``complete`` an image
``archived`` nothing, but an archive of the image lies beside it
``kept``     the image of a restore, which has not used it up
``removed``  nothing any more: this run has removed it
``unknown``  it was not looked for, or it cannot be read, or it is no image
============ ==========================================================================================================
"""

from __future__ import annotations

import dataclasses
import typing as t

GUEST_WORDS = ("running", "paused", "saved", "ended", "unknown")
IMAGE_WORDS = ("absent", "partial", "complete", "archived", "kept", "removed", "unknown")

#: QEMU's run states in which it has no guest, or only a part of one.
_NO_GUEST_YET = frozenset(("inmigrate", "restore-vm"))


@dataclasses.dataclass(frozen=True)
class Situation:
    """How the guest and its image are. What nobody has looked at is ``unknown``."""

    #: A full sentence without the final full stop; empty where there is nothing to say.
    sentence: str = ""
    #: One of ``GUEST_WORDS``, and one of ``IMAGE_WORDS``.
    guest: str = "unknown"
    image: str = "unknown"

    def words(self) -> dict[str, t.Any]:
        """The keys of a failed module's result that programs read."""
        # The other results have there a dictionary, too, with its state.
        return {"guest": self.guest, "image": {"state": self.image}}


def guest_in(run_state: str, before_load: str = "unknown") -> str:
    """The word for a guest whose QEMU is in a run state.

    :param run_state: as QEMU says it.
    :param before_load: the word for the guest of a QEMU that waits for it.
    """
    if run_state in _NO_GUEST_YET:
        return before_load
    # Nobody has stopped one that sleeps, and what wakes it is not the operator's cont.
    return "running" if run_state in ("running", "suspended") else "paused"
