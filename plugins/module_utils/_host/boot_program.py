# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The restore of VMs at their host's boot, which ``vmops-restore.service`` runs without Ansible."""

from __future__ import annotations

import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._host.choice import HostRestoreRequest
from ansible_collections.vmops.qemu.plugins.module_utils._host.progress import HostProgress
from ansible_collections.vmops.qemu.plugins.module_utils._host.restore import HostRestoreOperation
from ansible_collections.vmops.qemu.plugins.module_utils._host.service import (
    StandardStreams,
    exit_status,
    read_settings,
    run_as_service,
)


def request_of(settings: t.Mapping[str, t.Any]) -> HostRestoreRequest:
    """What settings, as they stand in a file, ask for: all VMs that have an image.

    :param settings: ``save_dir``; ``order``, the groups, each as shell patterns; ``parallel``; ``timeout``, in
        seconds for each VM; and ``sync_time``, which older files lack.
    :raises KeyError: a setting is missing.
    :raises ValueError: one has a value that makes no sense, as TypeError.
    """
    return HostRestoreRequest(
        save_dir=str(settings["save_dir"]),
        vms=[],
        include=["*"],
        exclude=[],
        images="all",
        order=[[str(pattern) for pattern in patterns] for patterns in settings["order"]],
        parallel=int(settings["parallel"]),
        common={
            "timeout": float(settings["timeout"]),
            "health_check": [],
            "health_check_timeout": 0.0,
            "sync_time": _choice(settings.get("sync_time", "auto"), ("auto", "true", "false")),
        },
        by_vm={},
        check_mode=False,
    )


def _choice(value: object, choices: t.Sequence[str]) -> str:
    """:raises ValueError: it is none of them."""
    text = str(value).lower()
    if text not in choices:
        raise ValueError(f"{text!r} is none of {', '.join(choices)}")
    return text


def main(settings: str) -> int:
    """Restore what is saved on this host.

    :param settings: the path of a JSON file, as :func:`request_of` takes it.
    :returns: the exit status: 0 where nothing is left that should have been restored, else 1.
    """
    journal = StandardStreams()

    async def work() -> bool:
        request = read_settings(settings, request_of)
        with HostProgress("restore", request.save_dir, journal) as progress:
            await run_as_service(HostRestoreOperation(request, progress))
        return True

    return exit_status(work, journal)
