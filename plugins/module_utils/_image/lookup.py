# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The image of a VM that is chosen by its UUID or its unit: it is looked for in what the images of a directory say."""

from __future__ import annotations

import contextlib
import os
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    ConflictError,
    ImageNotFoundError,
    RequestError,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.info import directory_info
from ansible_collections.vmops.qemu.plugins.module_utils._image.names import split_archive_path, target_of_partial
from ansible_collections.vmops.qemu.plugins.module_utils._names import means_unit


def find_image(directory: str, name: str, uuid: str, unit: str, vouched: bool = False) -> str:
    """The path of the VM's last save, or of the image that an interrupted save would have made; empty where none is.

    Blocks for as long as it takes to read the head of each image there.

    :param name: and ``uuid`` and ``unit``: what is to be true of the VM; empty for any.
    :param vouched: that only those count for which this user vouches: a VM's user may have written any UUID into its
        own. A unit is believed of no other.
    :raises ConflictError: there are several, and none is the last one.
    :raises ImageAccessError: the directory cannot be read.
    """
    try:
        images = directory_info(os.path.abspath(directory))
    except ImageNotFoundError:
        return ""
    found = [
        image
        for image in images
        if name in ("", image["name"])
        and uuid in ("", image["uuid"])
        and (not unit or means_unit(unit, unit_of(image)))
        and (image["vouched"] or not vouched)
    ]
    last = [image for image in found if image["superseded_by"] is None and image["copy_of"] is None]
    for state in ("complete", "partial", "archived"):
        paths = sorted({target_of(image) for image in last if image["state"] == state})
        if len(paths) > 1:
            raise ConflictError(
                f"Several images are of {' and '.join(filter(None, (name, uuid, unit)))}: {', '.join(paths)}",
                cure="Give the path of the one that is meant",
            )
        if paths:
            return paths[0]
    older = [image for image in found if image["state"] == "complete"]
    return max(older, key=lambda image: float(image["mtime"] or 0))["path"] if older else ""


def unit_of(image: t.Mapping[str, t.Any]) -> str:
    """The unit that started an image's VM, where this user vouches for that; else the empty string."""
    return ((image.get("launch") or {}).get("unit") or "") if image.get("vouched") else ""


def target_of(image: t.Mapping[str, t.Any]) -> str:
    """The path that an image has, or that it had or will have when it is whole."""
    path = str(image["path"])
    with contextlib.suppress(RequestError):
        return target_of_partial(path)
    return split_archive_path(path)[0]
