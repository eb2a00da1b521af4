# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""That a load has begun which writes a disk anew, so that the next run does not take that for somebody's write.

The file of an nvdimm is guest memory: the image holds what was in it, and a load empties and writes it. A load that is
cut off leaves it incomplete, with the image as the only whole copy. So before the first byte is written a file for that
save is made in ``loading/`` of the state directory, where nobody but its user can write: a JSON object with ``image``,
its path, and ``checkpoint``, its mark then. The mark that an image gets when it is loaded ends the note's force; it is
removed when the guest goes on, or before where the image cannot be marked. It belongs to the save and not to the file:
it holds of a copy, after a move, and after an edit of the image.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._bounded_read import read_bounded
from ansible_collections.vmops.qemu.plugins.module_utils._durable import (
    flush_directory,
    make_directories,
    write_durably,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.head import ImageHead
from ansible_collections.vmops.qemu.plugins.module_utils._safe_path import why_unsafe
from ansible_collections.vmops.qemu.plugins.module_utils._save.image_at import recorded_surroundings
from ansible_collections.vmops.qemu.plugins.module_utils._state_directory import state_path
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.media import Medium

_DIRECTORY = "loading"

#: Bytes of a note that are read at most; a path may take six for each of its 4096.
_MAX_SIZE = 65536


@dataclasses.dataclass(frozen=True)
class LoadNote:
    """The note of one image's load; found by :meth:`of`."""

    path: str
    image: str
    checkpoint: bool
    #: The disks of which the image holds the contents, as messages name them.
    disks: tuple[str, ...]
    #: Whether a load of it has begun, and has not come to its end.
    stands: bool = False

    @classmethod
    def of(cls, head: ImageHead) -> LoadNote:
        """That of an image, made or not; it looks at a file."""
        domain = head.domain()
        disks = tuple(medium.label for medium in recorded_surroundings(domain).media if medium.is_memory)
        facts = domain.save_facts
        save = json.dumps([facts.saved_at, facts.migration, facts.surroundings] if facts else [])
        name = hashlib.sha256(save.encode()).hexdigest()
        note = cls(os.path.join(state_path(_DIRECTORY), f"{name}.json"), head.path, head.header.checkpoint, disks)
        return dataclasses.replace(note, stands=bool(disks) and note._is_there())

    @property
    def warning(self) -> str:
        """What is to be known while it stands, as the end of a sentence; else the empty string."""
        return f" (the disk {', '.join(self.disks)} is incomplete until it is restored: keep it)" if self.stands else ""

    @property
    def cure(self) -> str:
        """What to do about disks that are not as they were, where the image holds what is on one; else nothing."""
        if not self.disks:
            return ""
        return (
            "Put the disks back as they were when the VM was saved, and keep the image: it holds what was on"
            f" {', '.join(self.disks)}, and after a restore that was cut off nothing else does; with disks=ignore that"
            " is written anew and the guest restored all the same, which may destroy the file systems of other disks"
        )

    def forgive(self, media: t.Iterable[Medium]) -> tuple[Medium, ...]:
        """Recorded media, of which a load that has begun has changed the time."""
        return tuple(
            dataclasses.replace(each, is_rewritten=True) if self.stands and each.is_memory else each for each in media
        )

    def write(self) -> LoadNote:
        """The load begins; in force on return.

        :raises OSError: it cannot be written.
        """
        if self.disks and not self.stands:
            make_directories(os.path.dirname(self.path), 0o700)
            values = {"image": self.image, "checkpoint": self.checkpoint}
            write_durably(self.path, f"{json.dumps(values)}\n".encode())
        return dataclasses.replace(self, stands=bool(self.disks))

    def remove(self) -> None:
        """The guest is loaded.

        :raises OSError: it cannot be removed.
        """
        if self.disks:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)
                flush_directory(os.path.dirname(self.path))

    def _is_there(self) -> bool:
        try:
            if why_unsafe(self.path, {0, os.geteuid()}):
                return False
            found = json.loads(read_bounded(self.path, _MAX_SIZE))
        except (OSError, ValueError, RecursionError):
            return False
        return isinstance(found, dict) and found.get("checkpoint") is self.checkpoint
