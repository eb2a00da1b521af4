# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What both runs over a host's VMs return, from what became of each VM."""

from __future__ import annotations

import time
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._host.table import table

Vm = t.Mapping[str, t.Any]


class Clock:
    """When a run began."""

    def __init__(self) -> None:
        self._started = time.time()
        self._clock = time.monotonic()

    def as_result(self) -> dict[str, t.Any]:
        """The return values: when it began, in seconds since the epoch, and the seconds that it has taken."""
        return {"started_at": round(self._started, 3), "duration": round(time.monotonic() - self._clock, 3)}


def host_result(vms: t.Collection[Vm], clock: Clock, others: t.Collection[Vm] = ()) -> dict[str, t.Any]:
    """The return values, with the warnings and differences of each VM put together.

    :param vms: each with ``name``, ``state``, ``changed`` and the return values of its own run.
    :param others: likewise, those that count and have a list of their own.
    """
    every = [*vms, *others]
    diffs = {vm["name"]: vm["diff"] for vm in vms if vm.get("diff")}
    return {
        "changed": any(vm["changed"] for vm in every),
        "table": table(every),
        "vms": [{key: value for key, value in vm.items() if key not in ("warnings", "diff")} for vm in vms],
        "failures": names_not_done(every),
        **clock.as_result(),
        "diff": {side: {name: diff[side] for name, diff in diffs.items()} for side in ("before", "after")},
        "warnings": list(dict.fromkeys(warning for vm in every for warning in vm.get("warnings", ()))),
    }


def state_of(result: Vm, done: str) -> str:
    """What became of a VM, in a word: ``failed``, ``skipped`` where its run did not begin, or else ``done``."""
    return "failed" if result["failed"] else "skipped" if result.get("skipped") else done


def is_not_done(vm: Vm) -> bool:
    """Whether a VM's run has failed, or did not begin."""
    return vm["state"] in ("failed", "skipped")


def names_not_done(vms: t.Iterable[Vm]) -> list[str]:
    """The names of those whose run has failed, or did not begin."""
    return [vm["name"] for vm in vms if is_not_done(vm)]


def count(number: int) -> str:
    """A number of VMs, for messages."""
    return f"{number} VM{'' if number == 1 else 's'}"
