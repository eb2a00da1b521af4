# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How much a QEMU may write into an image, whatever it says: it runs as its own user, and the file is root's.

What a save needs is known before (the guest's memory, and what its process holds of it); a QEMU that writes more fills
a file system past all quotas, and holds the file after its removal. So the file is looked at while it writes:

- Within what the space check counted, nothing is done.
- Beyond that, there are saves that are right: memory that another process has touched, devices with a state of their
  own, pages that a running guest has changed again. They go on as long as some space stays free.
- Beyond twice the guest's memory and what devices may have, no save is right. A running guest's may be, as a stream
  has its changed pages once more: the guest is stopped then, and what remains is no more than its memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._errors import ImageError, ImageSpaceError
from ansible_collections.vmops.qemu.plugins.module_utils._file_system import file_system
from ansible_collections.vmops.qemu.plugins.module_utils._image.partial import PartialImage
from ansible_collections.vmops.qemu.plugins.module_utils._image.place import free_bytes

#: Seconds between two looks at the file.
_INTERVAL = 0.2

#: Bytes that are left free by a save that needs more than was counted.
_RESERVE = 256 * 1024 * 1024

#: Bytes that the state of devices may have; vGPUs have some GiB.
_DEVICES = 4 * 1024 * 1024 * 1024

_Result = t.TypeVar("_Result")


class WrittenBound:
    """Watches one partial image while QEMU writes to it."""

    def __init__(self, partial: PartialImage, label: str, needed: int, memory: int) -> None:
        """:param needed: bytes that the space check counted. :param memory: the guest's, in bytes."""
        self._partial = partial
        self._label = label
        self._needed = needed
        self._memory = memory
        self._limit = 2 * memory + _DEVICES
        self._emptying: asyncio.Future[None] | None = None

    async def guard(
        self, work: t.Coroutine[t.Any, t.Any, _Result], stop_guest: t.Callable[[], t.Awaitable[bool]]
    ) -> _Result:
        """The result of ``work``, during which QEMU writes.

        :param stop_guest: stops a guest that runs; whether it ran.
        :raises ImageSpaceError: it has written too much. The file is empty then, and is kept so until it is discarded.
        """
        task = asyncio.ensure_future(work)
        try:
            while not (await asyncio.wait({task}, timeout=_INTERVAL))[0]:
                if self._partial.written() > self._limit and await stop_guest():
                    self._needed = self._partial.written() + self._memory
                    self._limit = self._needed + _DEVICES
                self.check()
            result = task.result()
            self.check()
            return result
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    def check(self) -> None:
        """:raises ImageSpaceError: as :meth:`guard`."""
        written = self._partial.written()
        if written <= self._needed:
            return
        directory = os.path.dirname(self._partial.path)
        free = free_bytes(directory)
        if written <= self._limit and (free is None or free >= _RESERVE):
            return
        self._emptying = self._emptying or asyncio.ensure_future(self._keep_empty())
        raise ImageSpaceError(
            self._partial.target,
            f"QEMU has written {written >> 20} MiB of {self._label}, which may need {self._needed >> 20} MiB"
            + (f", and {file_system(directory)} is nearly full" if written <= self._limit else ""),
            cure="Find out whether its QEMU is what it should be; or free space there; then save again",
        )

    async def _keep_empty(self) -> None:
        """Whoever has it open may go on writing, also while the migration is being cancelled."""
        with contextlib.suppress(ImageError):
            while self._partial.empty():  # noqa: ASYNC110 - nobody tells of a write
                await asyncio.sleep(_INTERVAL)
