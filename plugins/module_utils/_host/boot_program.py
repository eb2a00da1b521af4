# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The edge between the restore of VMs at their host's boot and systemd: settings in, lines and an exit status out.

``vmops-restore.service`` runs it without Ansible. SIGTERM, SIGINT and SIGHUP stop the restores.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._errors import HostRunError, VmopsError, one_line
from ansible_collections.vmops.qemu.plugins.module_utils._host.choice import HostRestoreRequest
from ansible_collections.vmops.qemu.plugins.module_utils._host.journal import Journal
from ansible_collections.vmops.qemu.plugins.module_utils._host.restore import HostRestoreOperation
from ansible_collections.vmops.qemu.plugins.module_utils._safe_path import why_unsafe

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StandardStreams:
    """The journal, as systemd fills it with what a service prints."""

    def say(self, text: str) -> None:
        """A line of the usual priority."""
        sys.stdout.write(f"{one_line(text)}\n")
        sys.stdout.flush()

    def complain(self, text: str) -> None:
        """A line of the priority of errors (sd-daemon(3))."""
        sys.stderr.write(f"<3>{one_line(text)}\n")
        sys.stderr.flush()


def request_of(settings: t.Mapping[str, t.Any]) -> HostRestoreRequest:
    """What settings, as they stand in a file, ask for: all VMs that have an image.

    :param settings: ``save_dir``; ``order``, the groups, each as shell patterns; ``parallel``; and ``timeout``, in
        seconds for each VM.
    :raises ValueError: a setting is missing, or has a value of another type.
    """
    try:
        return HostRestoreRequest(
            save_dir=str(settings["save_dir"]),
            vms=[],
            include=["*"],
            exclude=[],
            images="all",
            order=[[str(pattern) for pattern in patterns] for patterns in settings["order"]],
            parallel=int(settings["parallel"]),
            common={"timeout": float(settings["timeout"]), "health_check": [], "health_check_timeout": 0.0},
            by_vm={},
            check_mode=False,
        )
    except KeyError as exc:
        raise ValueError(f"{exc.args[0]} is missing") from exc
    except TypeError as exc:
        raise ValueError(str(exc)) from exc


def read_settings(path: str) -> HostRestoreRequest:
    """The settings; what others could have written is not followed.

    :raises VmopsError: they cannot be read, or are not safe.
    """
    try:
        reason = why_unsafe(path, {0, os.geteuid()})
        if reason:
            raise VmopsError(f"{path} is not safe: {reason}")
        with open(path, encoding="utf-8") as handle:
            return request_of(json.load(handle))
    except (OSError, ValueError) as error:
        raise VmopsError(f"The settings {path} cannot be read: {error}") from error


async def _run(request: HostRestoreRequest, journal: Journal) -> None:
    operation = HostRestoreOperation(request, journal)
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, operation.stop, number.name)
    await operation.run()


def main(settings: str) -> int:
    """Restore what is saved on this host.

    :param settings: the path of a JSON file, as :func:`request_of` takes it.
    :returns: the exit status: 0 where nothing is left that should have been restored, else 1.
    """
    journal = StandardStreams()
    try:
        asyncio.run(_run(read_settings(settings), journal))
    except HostRunError:  # each VM was told already
        return 1
    except VmopsError as error:
        journal.complain(str(error))
        return 1
    return 0
