# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The failure of a run over a host's VMs, which tells what became of each."""

from __future__ import annotations

import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._errors import VmopsError
from ansible_collections.vmops.qemu.plugins.module_utils._situation import Situation


class HostRunError(VmopsError):
    """Not all of a host's VMs are as was asked for.

    :param result: the other return values of the module, as of a run that succeeded.
    """

    def __init__(self, what: str, *, cure: str, situation: Situation, result: dict[str, t.Any]) -> None:
        super().__init__(what, cure=cure, situation=situation)
        self.result = result

    def as_result(self) -> dict[str, t.Any]:
        """The keys that a failed module returns for this error."""
        return {**self.result, **super().as_result()}
