# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which is the later one: the shutdown of which something is kept, or an image of that VM.

Memory that is older than the shutdown does not fit the VM's disks any more, and disks that are older than an image do
not fit its memory. What cannot be known is neither: the times are those of the host's clock, which may have been set,
and an image that cannot be read, or for which nobody vouches, may be of any time.

As everywhere, what is of one user's VM says nothing against another's, who could have the same name.
"""

from __future__ import annotations

import enum
import os
import time
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._image.lookup import target_of
from ansible_collections.vmops.qemu.plugins.module_utils._image.names import vm_label
from ansible_collections.vmops.qemu.plugins.module_utils._image.record import seconds_of
from ansible_collections.vmops.qemu.plugins.module_utils._shutdown.record import ShutDownVm

#: An image, as ``directory_info`` and ``image_info`` return it.
Image = t.Mapping[str, t.Any]


class Relation(enum.Enum):
    """How an image stands to the shutdown of its VM."""

    #: The VM ran on after this save, until it was asked to shut down.
    OLDER = "older"
    #: The VM ran again after its shutdown, and was saved.
    LATER = "later"
    UNKNOWN = "unknown"


def relation(vm: ShutDownVm, image: Image) -> Relation | None:
    """How an image stands to a VM's shutdown; None where it is another VM's."""
    if not _is_of(vm, image):
        return None
    saved = seconds_of(image.get("saved_at") or "")
    if saved is not None and max(saved, vm.at) > time.time():
        saved = None
    if saved is not None and saved <= vm.at and _counts_against(vm, image):
        return Relation.OLDER
    if _uid_of(image) not in (None, 0, vm.launch.uid):
        return None
    if saved is not None and saved > vm.at and image["state"] in ("complete", "archived") and image.get("vouched"):
        return Relation.LATER
    return Relation.UNKNOWN


def why_not_restored(vm: ShutDownVm, image: Image) -> str:
    """Why no run over all VMs restores an image beside what is kept of a shutdown; empty where it may."""
    found = relation(vm, image)
    if found is Relation.OLDER:
        return f"{vm.name} ran on after this save, until it was asked to shut down ({vm.when})"
    if found is Relation.UNKNOWN and image["state"] == "complete" and _counts_against(vm, image):
        return f"it is not known whether {vm.name} was saved so before or after it was asked to shut down ({vm.when})"
    return ""


def later_image(vm: ShutDownVm, images: t.Iterable[Image]) -> str:
    """The path of an image of a VM that ran again after its shutdown, and was saved; empty where there is none."""
    return next((image["path"] for image in images if relation(vm, image) is Relation.LATER), "")


def doubtful_image(vm: ShutDownVm, images: t.Iterable[Image]) -> Image | None:
    """An image that may be of a later state of a VM than its disks, or not; None where there is none."""
    return next((image for image in images if relation(vm, image) is Relation.UNKNOWN), None)


def _is_of(vm: ShutDownVm, image: Image) -> bool:
    """Whether an image is of a VM: by what it says or, where that cannot be read, by the name of its file."""
    if not image.get("name"):
        target = target_of(image)
        return os.path.basename(target) == f"{vm_label(target, vm.name)}.save"
    if image.get("uuid") and vm.uuid:
        return bool(image["uuid"] == vm.uuid)
    return bool(image["name"] == vm.name)


def _counts_against(vm: ShutDownVm, image: Image) -> bool:
    """Whether the shutdown of this user's VM can mean anything for an image."""
    return vm.launch.uid == 0 or _uid_of(image) in (None, vm.launch.uid)


def _uid_of(image: Image) -> int | None:
    """The user as whom an image's VM ran, where it records that."""
    return (image.get("launch") or {}).get("uid")
