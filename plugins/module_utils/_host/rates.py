# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How fast this host has saved and restored its VMs, kept from one run to the next, so that time can be predicted.

A rate is the bytes that images may take, as predicted, or do take, over the seconds that all runs of a host took
together. So the prediction for the same VMs is the time of the last run. They are in ``rates.json`` of the state
directory: a JSON object with ``save`` and ``restore`` in bytes a second.
"""

from __future__ import annotations

import json
import math
import os

from ansible_collections.vmops.qemu.plugins.module_utils._bounded_read import read_bounded
from ansible_collections.vmops.qemu.plugins.module_utils._durable import write_durably
from ansible_collections.vmops.qemu.plugins.module_utils._safe_path import why_unsafe
from ansible_collections.vmops.qemu.plugins.module_utils._state_directory import make_state_directory, state_path

_NAME = "rates.json"

#: Bytes of the file that are read at most.
_MAX_SIZE = 4096


def read_rates() -> dict[str, float]:
    """What is known, in bytes a second, by ``save`` and ``restore``; nothing where that cannot be read."""
    path = state_path(_NAME)
    try:
        if why_unsafe(path, {0, os.geteuid()}):
            return {}
        found = json.loads(read_bounded(path, _MAX_SIZE))
        return {kind: float(found[kind]) for kind in ("save", "restore") if _is_rate(found.get(kind))}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}


def keep_rate(kind: str, size: int, seconds: float) -> None:
    """Keep what was just measured, for the next prediction; quiet where that cannot be done.

    :param kind: ``save`` or ``restore``.
    :param size: bytes.
    """
    if size <= 0 or seconds <= 0:
        return
    try:
        rates = {**read_rates(), kind: size / seconds}
        make_state_directory()
        write_durably(state_path(_NAME), f"{json.dumps(rates)}\n".encode())
    except OSError:
        return


def seconds_for(size: int, rate: float | None) -> float | None:
    """Seconds that so many bytes take at a rate; None where that is not known."""
    return round(size / rate, 1) if rate else None


def _is_rate(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= 1
