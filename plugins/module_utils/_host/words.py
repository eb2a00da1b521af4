# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which VM a word in a list of VMs means, where none that runs or is saved is called so: what it looks like."""

from __future__ import annotations

import contextlib

from ansible_collections.vmops.qemu.plugins.module_utils._errors import ImageError, RequestError
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_file import read_image_head
from ansible_collections.vmops.qemu.plugins.module_utils._image.names import image_path
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.selection import Selection


def selection_of(word: str, save_dir: str) -> Selection:
    """A UUID or a service, where it looks like one, unless an image says that it is a name; else a name."""
    with contextlib.suppress(ImageError, RequestError):
        if read_image_head(image_path(None, save_dir, word)).domain().name == word:
            return Selection(word)
    return Selection.of_word(word)
