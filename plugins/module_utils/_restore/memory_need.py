# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How much of the host's memory a restore takes at once, and whether that can be had.

What the image holds of the guest's memory becomes resident as it is loaded, and QEMU takes some for itself; where QEMU
allocates in advance, or locks its memory, that is all of it. What the guest may write to later is not counted: hosts
give their VMs more memory than they have, and that is their operators' decision.

Memory in huge pages comes from their pool, and memory in a file of a disk is written back to it: neither is counted
here.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._errors import HostMemoryError, UnitError
from ansible_collections.vmops.qemu.plugins.module_utils._file_system import lasting
from ansible_collections.vmops.qemu.plugins.module_utils._host_memory import free_huge_pages, mib, own_limit
from ansible_collections.vmops.qemu.plugins.module_utils._image.head import ImageHead
from ansible_collections.vmops.qemu.plugins.module_utils._image.stream import MappedRamBlock, StreamFacts
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import manager, systemd
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.command_line import MemoryBackend, memory_backends
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.configuration import read_configuration
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.launch import Launch

#: Bytes that a QEMU takes for itself: its heap, its threads' stacks, what it has of its program in memory.
_OF_QEMU = 32 * 1024 * 1024

_CURE = "Give it more, or use memory: ignore if you know that it is enough"


@dataclasses.dataclass(frozen=True)
class MemoryNeed:
    """What a restore takes, in bytes."""

    #: Of the host's memory. Of an image that does not tell how much it holds, no more than is known for sure.
    ordinary: int
    #: Of huge pages, by the size of a page; None for the usual one.
    huge: t.Mapping[int | None, int]


def memory_need(head: ImageHead, memory: int, stream: StreamFacts | None, how: Launch | None = None) -> MemoryNeed:
    """What the restore of an image takes.

    :param memory: bytes of the guest's memory, by the domain XML; 0 where that does not say it.
    :param stream: what the image's stream tells.
    :param how: the QEMU's start; None where it is started by others.
    """
    total = stream.memory if stream and stream.ram_blocks else memory
    if head.header.mapped_ram and stream:
        blocks = [block for block in stream.ram_blocks if isinstance(block, MappedRamBlock)]
        present = sum(block.present_pages * block.page_size for block in blocks)
    else:
        facts = head.domain().save_facts
        in_file = max(0, head.size - head.header.stream_offset)
        present = min(total, facts.memory_written if facts and facts.memory_written else in_file)
    elsewhere = at_once = 0
    huge: dict[int | None, int] = {}
    if how:
        words = read_configuration(how.argv, how.cwd).words
        for backend in memory_backends(words, total):
            kind = _kind_of(backend)
            if kind == "huge":
                huge[backend.page_size] = huge.get(backend.page_size, 0) + backend.size
            if kind in ("huge", "disk"):
                elsewhere += backend.size
            elif backend.prealloc:
                at_once += backend.size
    return MemoryNeed(max(present - elsewhere, at_once, 0) + _OF_QEMU, huge)


def _kind_of(backend: MemoryBackend) -> str:
    """``huge``, ``disk`` or ``memory``."""
    if backend.hugetlb:
        return "huge"
    if not backend.path:
        return "memory"
    place = lasting(backend.path)
    if place.kind == "hugetlbfs":
        return "huge"
    # What is written to a private mapping is in no file.
    return "disk" if backend.shared and place.kind and place.lasts is not False else "memory"


async def require_within_limits(need: MemoryNeed, how: Launch, subject: str) -> None:
    """Refuse what the host has memory for, but not the VM's own place in it.

    :param subject: what it is for, as a noun.
    :raises HostMemoryError: the limit of a control group, or the pool of huge pages, is too small.
    """
    for size, needed in need.huge.items():
        free = free_huge_pages(size)
        if needed > free:
            raise HostMemoryError(
                f"{subject} needs {mib(needed)} of huge pages, but {mib(free)} of them are free on this host",
                cure=f"Provide more (vm.nr_hugepages). {_CURE}",
            )
    limit = await _limit_of(how)
    if limit is not None and need.ordinary > limit:
        who = f"{how.unit} may have" if how.unit else "the control group of this task leaves"
        raise HostMemoryError(
            f"{subject} needs {mib(need.ordinary)} of memory, but {who} {mib(limit)} alone", cure=_CURE
        )


async def _limit_of(how: Launch) -> int | None:
    """Bytes that the QEMU may have; None where that is not limited, or not known."""
    if not how.unit:
        # A transient unit is a child of systemd's, not of this process.
        return None if manager.starter() else own_limit()
    try:
        said = await systemd.control(how.unit, "show", "--property=MemoryMax,EffectiveMemoryMax")
    except UnitError:
        return None
    limits = [int(line.partition("=")[2]) for line in said.splitlines() if line.partition("=")[2].isdecimal()]
    return min((limit for limit in limits if limit < 2**63), default=None)
