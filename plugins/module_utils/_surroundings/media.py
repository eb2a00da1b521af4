# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The media of a VM: what its disks, CDs, floppies and flash chips are made of, as QEMU has it open."""

from __future__ import annotations

import dataclasses
import re
import typing as t


@dataclasses.dataclass(frozen=True)
class MediumFile:
    """One file, device or network resource that a medium is made of: a layer of its backing chain, or a data file.

    Where ``uncheckable`` is empty, ``size`` (bytes), ``mtime_ns``, ``inode`` and ``device_number`` are those of the
    very file that QEMU has open; else ``uncheckable`` says why not, as a clause, and they are 0. Of a block device all
    but ``mtime_ns`` are known nevertheless, the size where the kernel says it; a loop device has that of its file.
    """

    #: The absolute path by which this host reaches it, or QEMU's own name for what is no file (``nbd://…``).
    path: str
    #: The driver that reads it: ``qcow2``, ``raw``, ``luks`` …; where the drive is only a part of it, that follows, as
    #: in ``raw, 1048576 bytes from 512``.
    format: str
    size: int = 0
    mtime_ns: int = 0
    inode: int = 0
    device_number: int = 0
    uncheckable: str = ""
    #: Which device it is, by what that or the kernel says (``wwid naa.5000…``); empty for a file, and where unknown.
    identity: str = ""


@dataclasses.dataclass(frozen=True)
class Medium:
    """What is in one drive of the guest: its files from the active one down to the end of its backing chain."""

    #: QEMU's name for the block backend (``-drive id=``), or the empty string.
    backend: str
    #: The device's QOM path or id (``qdev`` in ``query-block``), or the empty string.
    qdev: str
    #: The name of the active node.
    node: str
    read_only: bool
    files: tuple[MediumFile, ...] = ()
    #: Where the guest finds its device: the address on its bus, and the bus where it has a name of its own; empty where
    #: unknown.
    place: str = ""
    #: Whether a load has begun to write it anew, so that the time of its last change says nothing; not recorded.
    is_rewritten: bool = False

    @property
    def is_memory(self) -> bool:
        """Whether it is guest memory as well (an nvdimm), so that the image holds what was in it."""
        # A drive has a node where it has a file, and what no image holds (virtio-pmem) is no memory block.
        return bool(self.backend and self.files and not self.node)

    @property
    def is_told_by_size(self) -> bool:
        """Whether another time of change does not make it another one."""
        return self.is_firmware or self.is_rewritten

    @property
    def is_firmware(self) -> bool:
        """Whether it is a flash chip that the guest only reads: QEMU has all of it in memory, which is saved."""
        if self.qdev:  # an id of -device may be any word, but is no path
            flash = re.fullmatch(r"/machine/[\w-]+\.flash[0-9]", self.qdev)
        else:
            flash = re.fullmatch(r"pflash\d+", self.backend)
        return self.read_only and flash is not None

    @property
    def label(self) -> str:
        """The drive as messages name it."""
        return self.backend or self.qdev or self.node or "a disk"

    @property
    def own_files(self) -> list[str]:
        """The names of what only one VM at a time can have open: what is written to."""
        return [] if self.read_only else [file.path for file in self.files[:1]]

    def as_result(self) -> dict[str, t.Any]:
        """An element of the ``disks`` return value."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key not in ("place", "is_rewritten")}
