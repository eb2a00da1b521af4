# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a run over a host's VMs needs of systemd, which starts it without Ansible: settings in, lines and an exit status
out.

SIGTERM, SIGINT and SIGHUP stop it.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._errors import HostRunError, VmopsError, one_line
from ansible_collections.vmops.qemu.plugins.module_utils._safe_path import why_unsafe

#: What to do about settings that are of no use.
_SET_UP = "Run the role vmops.qemu.host_setup for this host again"

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_Request = t.TypeVar("_Request")


class HostOperation(t.Protocol):
    """A run over all VMs of a host."""

    async def run(self) -> dict[str, t.Any]:
        """Do it."""

    def stop(self, by: str) -> None:
        """Give up what is at work."""


class StandardStreams:
    """The journal, as systemd fills it with what a service prints."""

    def __init__(self) -> None:
        #: Whether anything went wrong that was told.
        self.has_complained = False

    def say(self, text: str) -> None:
        """A line of the usual priority."""
        sys.stdout.write(f"{one_line(text)}\n")
        sys.stdout.flush()

    def complain(self, text: str) -> None:
        """A line of the priority of errors (sd-daemon(3))."""
        self.has_complained = True
        sys.stderr.write(f"<3>{one_line(text)}\n")
        sys.stderr.flush()


def read_settings(path: str, parse: t.Callable[[t.Mapping[str, t.Any]], _Request]) -> _Request:
    """The settings in a JSON file; what others could have written is not followed.

    :param parse: makes a request of them, and may raise KeyError, ValueError and TypeError.
    :raises VmopsError: they cannot be read, or are not safe.
    """
    try:
        reason = why_unsafe(path, {0, os.geteuid()})
        if reason:
            raise VmopsError(f"{path} is not safe: {reason}", cure=_SET_UP)
        with open(path, encoding="utf-8") as handle:
            return parse(json.load(handle))
    except KeyError as error:
        raise VmopsError(f"The settings {path} cannot be read: {error.args[0]} is missing", cure=_SET_UP) from error
    except (OSError, ValueError, TypeError) as error:
        raise VmopsError(f"The settings {path} cannot be read: {error}", cure=_SET_UP) from error


async def run_as_service(operation: HostOperation) -> dict[str, t.Any]:
    """Run it; a signal stops it.

    :returns: what it returns.
    :raises VmopsError: what it raises.
    """
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, operation.stop, number.name)
    return await operation.run()


def exit_status(work: t.Callable[[], t.Coroutine[t.Any, t.Any, bool]], journal: StandardStreams) -> int:
    """Do the work of a service.

    :param work: whether nothing is left that should have been done.
    :returns: 0 where it is so, else 1.
    """
    try:
        return 0 if asyncio.run(work()) else 1
    except HostRunError as error:
        # Each VM was told already, but not what has kept the run from its begin.
        if not journal.has_complained:
            journal.complain(str(error))
    except VmopsError as error:
        journal.complain(str(error))
    return 1
