# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What stands between a running VM and its return: each thing that was found, and whether it blocks.

A problem that blocks is one with which a restore by the recorded start would be refused, would fail, or would bring
back another machine than the one that was saved. The others are what is lost on the way without harm to the guest's
data, and what cannot be known.
"""

from __future__ import annotations

import dataclasses
import typing as t


@dataclasses.dataclass(frozen=True)
class Problem:
    """One thing that was found."""

    #: A word that a program can read, such as ``disk_replaced``; the documentation of ``qemu_vm_info`` lists them.
    kind: str
    #: What was found, as a clause that can follow a colon: it names the device, the file, or the process.
    what: str
    #: What to do about it, as a full sentence without the final full stop.
    cure: str
    #: Whether a restore by the recorded start would be refused, would fail, or would be of another machine.
    blocks: bool = True
    #: Whether an operator who knows how the VM comes back may have it saved all the same; not where the save itself
    #: would fail, or lose what the guest has written.
    can_be_overridden: bool = True

    def as_result(self) -> dict[str, t.Any]:
        """An element of the ``problems`` return value."""
        return {"kind": self.kind, "what": self.what, "cure": self.cure, "blocks": self.blocks}


def blocking(problems: t.Iterable[Problem]) -> list[Problem]:
    """Those that block."""
    return [problem for problem in problems if problem.blocks]


def warnings_of(problems: t.Iterable[Problem], label: str) -> list[str]:
    """A sentence for each that does not block.

    :param label: the VM as messages name it.
    """
    return [f"{label}: {problem.what} ({problem.cure})" for problem in problems if not problem.blocks]
