# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How far a run over a host's VMs has come, published by itself in a small file while it works.

What each VM's own save or restore publishes of itself is beside it (``_progress``). The file goes with the run; what a
killed one left is known by its process id.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time

from ansible_collections.vmops.qemu.plugins.module_utils._errors import one_line
from ansible_collections.vmops.qemu.plugins.module_utils._host.journal import Journal
from ansible_collections.vmops.qemu.plugins.module_utils._proc import birth_of
from ansible_collections.vmops.qemu.plugins.module_utils._progress import publish, read_published
from ansible_collections.vmops.qemu.plugins.module_utils._run_directory import host_run_path, host_run_paths

#: Bytes of such a file that are read at most, and lines and characters of each that are in it.
_MAX_SIZE = 4 * 1024 * 1024
_MOST_LINES = 1000
_MOST_CHARACTERS = 500


@dataclasses.dataclass(frozen=True)
class HostRun:
    """What is published."""

    #: ``save`` or ``restore``.
    operation: str
    #: The directory of the images.
    save_dir: str
    pid: int
    #: In seconds since the epoch.
    started: float
    #: Each with ``number``, counted from 1, ``text``, and ``failed`` where it tells what went wrong.
    lines: list[dict[str, object]]
    #: When the process ``pid`` began, in the kernel's ticks, which tells it from a later one of the same number.
    birth: int = 0

    def as_result(self) -> dict[str, object]:
        """The return value."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key != "birth"}


class HostProgress:
    """A journal that others on this host can read. It must never fail or hold up the run, so errors are dropped."""

    def __init__(self, operation: str, save_dir: str, beside: Journal | None = None, plans_only: bool = False) -> None:
        """:param operation: ``save`` or ``restore``. :param save_dir: the directory of the images.

        :param beside: another journal that is told the same.
        :param plans_only: whether it touches no VM: nothing is published then, as nobody is to wait for its end.
        """
        self._beside = beside
        self._plans_only = plans_only
        pid = os.getpid()
        self._now = HostRun(operation, save_dir, pid, time.time(), [], birth_of(pid) or 0)
        self._path = ""

    def __enter__(self) -> HostProgress:
        if self._plans_only:
            return self
        # Nothing is published where there is no place for it.
        with contextlib.suppress(OSError):
            self._path = host_run_path(self._now.pid)
            self._publish()
        return self

    def __exit__(self, *_exc_info: object) -> None:
        if self._path:
            with contextlib.suppress(OSError):
                os.unlink(self._path)

    def say(self, text: str) -> None:
        """Publish what was done, or left alone."""
        if self._beside:
            self._beside.say(text)
        self._add(text, failed=False)

    def complain(self, text: str) -> None:
        """Publish what went wrong."""
        if self._beside:
            self._beside.complain(text)
        self._add(text, failed=True)

    def _add(self, text: str, failed: bool) -> None:
        number = int(str(self._now.lines[-1]["number"])) + 1 if self._now.lines else 1
        line = {"number": number, "text": one_line(text)[:_MOST_CHARACTERS], "failed": failed}
        self._now = dataclasses.replace(self._now, lines=[*self._now.lines, line][-_MOST_LINES:])
        self._publish()

    def _publish(self) -> None:
        if self._path:
            publish(self._path, dataclasses.asdict(self._now))


def read_host_runs() -> list[HostRun]:
    """What the runs of this user publish just now; what a killed one left is removed."""
    return read_published(HostRun, host_run_paths, _MAX_SIZE)
