# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The edge between the restore at boot and systemd: settings in, lines for the journal and an exit status out.

``vmops-restore.service`` runs it without Ansible. SIGTERM, SIGINT and SIGHUP stop the restores.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys

from ansible_collections.vmops.qemu.plugins.module_utils._errors import VmopsError, one_line
from ansible_collections.vmops.qemu.plugins.module_utils._host.boot import BootRestoreOperation, BootRestoreRequest
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


def read_settings(path: str) -> BootRestoreRequest:
    """The settings; what others could have written is not followed.

    :raises VmopsError: they cannot be read, or are not safe.
    """
    try:
        reason = why_unsafe(path, {0, os.geteuid()})
        if reason:
            raise VmopsError(f"{path} is not safe: {reason}")
        with open(path, encoding="utf-8") as handle:
            return BootRestoreRequest.of(json.load(handle))
    except (OSError, ValueError) as error:
        raise VmopsError(f"The settings {path} cannot be read: {error}") from error


async def _run(request: BootRestoreRequest, journal: StandardStreams) -> bool:
    operation = BootRestoreOperation(request, journal)
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, operation.stop, number.name)
    return await operation.run()


def main(settings: str) -> int:
    """Restore what is saved on this host.

    :param settings: the path of a JSON file with the fields of :class:`BootRestoreRequest`.
    :returns: the exit status: 0 where nothing is left that should have been restored, else 1.
    """
    journal = StandardStreams()
    try:
        return int(not asyncio.run(_run(read_settings(settings), journal)))
    except VmopsError as error:
        journal.complain(str(error))
        return 1
