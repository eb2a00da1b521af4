# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""By what a run knows the image again that an earlier run, which was cut off, has noted."""

from __future__ import annotations

import dataclasses
import hashlib

from ansible_collections.vmops.qemu.plugins.module_utils._errors import ImageError
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_file import file_identity, read_image_head


@dataclasses.dataclass(frozen=True)
class ImageIdentity:
    """What tells an image from any other that was or will be at its path."""

    #: :func:`file_identity`: device, inode, time of change; empty where there is no file.
    file: str
    #: A digest of the image's head without its mark as a checkpoint; empty where it has none that can be read.
    head: str
    #: Whether it has that mark.
    marked: bool = False

    @classmethod
    def of(cls, path: str) -> ImageIdentity:
        """That of the image at a path; links are followed."""
        file = file_identity(path)
        try:
            head = read_image_head(path)
        except ImageError:
            return cls(file, "")
        unmarked = dataclasses.replace(head.header, checkpoint=False).pack()
        digest = hashlib.sha256(unmarked + head.xml.encode("utf-8", "surrogateescape")).hexdigest()
        return cls(file, digest, head.header.checkpoint)

    def is_that_of(self, path: str) -> bool:
        """Whether the image at the path is the one that had this identity.

        The mark as a checkpoint is set, and then the time of change put back: a run that is killed between the two
        leaves the image with the mark and another time.
        """
        now = ImageIdentity.of(path)
        if not self.file or not now.file:
            return False
        if now.file == self.file:
            return True
        same_inode = now.file.rpartition(":")[0] == self.file.rpartition(":")[0]
        return bool(self.head) and now.marked and same_inode and now.head == self.head
