# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How far a save or a restore has come, published by itself in a small file while it works.

QEMU's monitor serves one client, which is the operation: nobody else can ask. One JSON file for each VM, replaced
atomically (``progress_path``). It goes with the operation; what a killed one left is known by its process id.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import time
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._bounded_read import read_bounded
from ansible_collections.vmops.qemu.plugins.module_utils._errors import MonitorError
from ansible_collections.vmops.qemu.plugins.module_utils._proc import birth_of
from ansible_collections.vmops.qemu.plugins.module_utils._run_directory import progress_path, progress_paths

#: Seconds between two looks at how far it has come.
INTERVAL = 1.0

#: Bytes of such a file that are read at most; it has some hundred, and the VM's name.
_MAX_SIZE = 64 * 1024

#: Bytes done so far, and bytes to do in all (0 where that is not known).
Measure = t.Callable[[], t.Awaitable[t.Tuple[int, int]]]


class Published(t.Protocol):
    """What any run publishes of its process: its id, and when it began, in the kernel's ticks."""

    @property
    def pid(self) -> int: ...

    @property
    def birth(self) -> int: ...


_Published = t.TypeVar("_Published", bound=Published)


@dataclasses.dataclass(frozen=True)
class Progress:
    """What is published; times are seconds since the epoch, ``rate`` is bytes a second since the last look."""

    vm: str
    #: ``save`` or ``restore``.
    operation: str
    #: What it is busy with: ``start``, ``memory`` while QEMU writes or reads, ``flush``, ``check``, ``checksum``.
    phase: str
    #: The image's path.
    image: str
    pid: int
    started: float
    updated: float
    bytes_done: int = 0
    bytes_total: int = 0
    rate: int = 0
    #: When the process ``pid`` began, in the kernel's ticks, which tells it from a later one of the same number.
    birth: int = 0

    @property
    def percent(self) -> int | None:
        """How much of the memory is done; None where the whole is not known."""
        return min(100, 100 * self.bytes_done // self.bytes_total) if self.bytes_total else None

    @property
    def seconds_left(self) -> int | None:
        """Seconds until the memory is done, at the present rate; None where that cannot be told."""
        if not self.bytes_total or not self.rate:
            return None
        return max(0, self.bytes_total - self.bytes_done) // self.rate

    def as_result(self) -> dict[str, t.Any]:
        """The return value."""
        told = {key: value for key, value in dataclasses.asdict(self).items() if key != "birth"}
        return {**told, "percent": self.percent, "seconds_left": self.seconds_left}


class Publisher:
    """Publishes one operation's progress. It must never fail or hold up the operation, so errors are dropped."""

    def __init__(self, vm: str, operation: str, image: str) -> None:
        """:param operation: ``save`` or ``restore``. :param image: the image's path."""
        now = time.time()
        self._now = Progress(vm, operation, "start", image, os.getpid(), now, now, birth=birth_of(os.getpid()) or 0)
        self._path = ""

    def __enter__(self) -> Publisher:
        # Nothing is published where there is no place for it.
        with contextlib.suppress(OSError):
            self._path = progress_path(self._now.vm)
            self._write()
        return self

    def __exit__(self, *_exc_info: object) -> None:
        if self._path:
            with contextlib.suppress(OSError):
                os.unlink(self._path)

    def phase(self, phase: str) -> None:
        """Say what the operation is busy with from now on."""
        self._now = dataclasses.replace(self._now, phase=phase, updated=time.time(), rate=0)
        self._write()

    @contextlib.asynccontextmanager
    async def following(self, measure: Measure) -> t.AsyncIterator[None]:
        """Publish what ``measure`` says, every second, while the body runs."""
        self.phase("memory")
        task = asyncio.ensure_future(self._follow(measure))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _follow(self, measure: Measure) -> None:
        last, seen = time.monotonic(), 0
        while True:
            await asyncio.sleep(INTERVAL)
            try:
                done, total = await measure()
            except (MonitorError, OSError):  # whoever waits for the migration meets the reason, too
                return
            now = time.monotonic()
            rate = int(max(0, done - seen) / (now - last))
            last, seen = now, done
            self._now = dataclasses.replace(
                self._now, bytes_done=done, bytes_total=total, rate=rate, updated=time.time()
            )
            self._write()

    def _write(self) -> None:
        if self._path:
            publish(self._path, dataclasses.asdict(self._now))


def publish(path: str, content: dict[str, t.Any]) -> None:
    """Write a JSON file that others read at any moment; quiet where that fails.

    A full or missing /run is no reason to disturb a save.

    :param content: with the ``pid`` of this process.
    """
    fresh = f"{path}.{content['pid']}"
    with contextlib.suppress(OSError):
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(fresh, flags, 0o600)
        try:
            os.write(descriptor, json.dumps(content).encode())
        finally:
            os.close(descriptor)
        os.replace(fresh, path)


def read_progress() -> list[Progress]:
    """What the operations of this user publish just now, by VM; what a killed one left is removed."""
    return read_published(Progress, progress_paths, _MAX_SIZE)


def read_published(kind: t.Callable[..., _Published], paths: t.Callable[[], list[str]], most: int) -> list[_Published]:
    """What runs of this user publish just now; what a killed one left is removed.

    :param kind: makes it of the file's content, which has ``pid`` and ``birth``.
    :param paths: gives the files.
    :param most: bytes of such a file that are read at most.
    """
    found = []
    with contextlib.suppress(OSError):
        for path in paths():
            # A file may go, or be another version's, at any moment.
            with contextlib.suppress(OSError, TypeError, ValueError):
                published = kind(**json.loads(read_bounded(path, most)))
                if published.birth == (birth_of(int(published.pid)) or 0) != 0:
                    found.append(published)
                else:
                    os.unlink(path)  # were it another run's by now, that would write it again in a second
    return found
