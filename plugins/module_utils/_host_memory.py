# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The memory of this host: how much of it can be had without taking it from others, and who has asked for it.

Sources: proc_meminfo(5), the kernel's admin-guide/cgroup-v2.rst and admin-guide/mm/hugetlbpage.rst.
"""

from __future__ import annotations

import contextlib
import os
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._bounded_read import read_bounded
from ansible_collections.vmops.qemu.plugins.module_utils._errors import HostMemoryError
from ansible_collections.vmops.qemu.plugins.module_utils._proc import read_proc

_SMALL = 64 * 1024

_CGROUPS = "/sys/fs/cgroup"
_HUGE_PAGES = "/sys/kernel/mm/hugepages"


def available_memory() -> int | None:
    """Bytes that programs can have before the kernel ends one, swap included; None where the kernel does not say."""
    figures = _meminfo()
    if "MemAvailable" not in figures:
        return None
    return figures["MemAvailable"] + figures.get("SwapFree", 0)


def own_limit() -> int | None:
    """Bytes that this process's control group, and those above it, leave to it and what it starts; None for no limit.

    What they keep of files can be dropped for that, and is not counted.
    """
    try:
        lines = read_proc("self", "cgroup").decode().splitlines()
    except (OSError, ValueError):
        return None
    left: list[int] = []
    for line in lines:
        number, _colon, rest = line.partition(":")
        if number == "0":
            path = rest.lstrip(":")
            while True:
                group = _CGROUPS + path.rstrip("/")
                with contextlib.suppress(OSError, ValueError):  # a group without a limit says "max", which is no number
                    limit = int(_read(f"{group}/memory.max"))
                    files = _figures(_read(f"{group}/memory.stat")).get("inactive_file", 0)
                    left.append(max(0, limit - int(_read(f"{group}/memory.current")) + files))
                if path in ("", "/"):
                    break
                path = os.path.dirname(path)
    return min(left, default=None)


def free_huge_pages(size: int | None = None) -> int:
    """Bytes of huge pages that are free and that nobody has reserved, or that may be made.

    :param size: bytes of a page; None for the usual one.
    """
    size = size or _meminfo().get("Hugepagesize", 2 << 20)
    directory = f"{_HUGE_PAGES}/hugepages-{size >> 10}kB"
    try:
        counts = {
            name: int(_read(f"{directory}/{name}_hugepages")) for name in ("free", "resv", "nr_overcommit", "surplus")
        }
    except (OSError, ValueError):
        return 0
    more = max(0, counts["nr_overcommit"] - counts["surplus"])
    return max(0, counts["free"] - counts["resv"] + more) * size


def _meminfo() -> dict[str, int]:
    try:
        text = _read("/proc/meminfo")
    except OSError:
        return {}
    return {name.rstrip(":"): number * 1024 for name, number in _figures(text).items()}


def _figures(text: str) -> dict[str, int]:
    """The numbers of lines of a name and a number each."""
    found = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) > 1 and words[1].isdecimal():
            found[words[0]] = int(words[1])
    return found


def _read(path: str) -> str:
    return read_bounded(path, _SMALL).decode("ascii", "replace").strip()


class MemoryLedger:
    """What the restores of one run have asked for, of which the kernel does not know until they have loaded it.

    Where no restore is at work, the kernel is asked; what is claimed from then on, until none is at work again, is
    taken from its answer.
    """

    def __init__(self) -> None:
        self._available: int | None = None
        self._claimed = 0
        self._at_work = 0

    def claim(self, needed: int, subject: str) -> None:
        """Ask for memory, to be given back by :meth:`end`; without that it counts for all that follow (check mode).

        :param needed: bytes. :param subject: what it is for, as a noun.
        :raises HostMemoryError: there is not so much.
        """
        if not self._at_work:
            self._available, self._claimed = available_memory(), 0
        if self._available is not None and needed > self._available - self._claimed:
            others = f", and {mib(self._claimed)} of them are for other VMs of this run" if self._claimed else ""
            raise HostMemoryError(
                f"{subject} needs {mib(needed)} of memory, but this host has {mib(self._available)} available, with"
                f" its swap{others} ({mib(needed - self._available + self._claimed)} are missing)",
                cure="Free memory (move or end other VMs), or use memory: ignore if you know that it is enough",
            )
        self._claimed += needed
        self._at_work += 1

    def end(self, needed: int, used: bool) -> None:
        """The work is done for which memory was claimed. :param used: whether it has been taken."""
        self._at_work -= 1
        if not used:
            self._claimed -= needed

    @contextlib.contextmanager
    def claimed(self, needed: int, subject: str) -> t.Iterator[None]:
        """As :meth:`claim`, for the body, which uses it if it comes to its end."""
        self.claim(needed, subject)
        used = False
        try:
            yield
            used = True
        finally:
            self.end(needed, used)


def mib(size: int) -> str:
    """A size for people."""
    return f"{-(-size // 2**20)} MiB"
