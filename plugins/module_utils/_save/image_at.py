# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is at the path of a save: whether it is an image, and of which VM."""

from __future__ import annotations

import contextlib
import datetime
import os

from ansible_collections.vmops.qemu.plugins.module_utils._errors import DiskMismatchError
from ansible_collections.vmops.qemu.plugins.module_utils._image import domain_xml
from ansible_collections.vmops.qemu.plugins.module_utils._image.head import ImageHead
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_file import read_image_head
from ansible_collections.vmops.qemu.plugins.module_utils._image.vouching import is_vouched
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.configuration import read_configuration
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.door import doors
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.media_changes import changed_media
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.record import Surroundings
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.verdict import Problem, blocking


def existing_image(path: str) -> ImageHead | None:
    """The head of the image at the path; None where there is no file, or no path.

    :raises ImageError: what is there cannot be read as an image.
    """
    if not path or not os.path.lexists(path):
        return None
    return read_image_head(path)


def is_image_of(head: ImageHead, name: str | None, uuid: str, qmp_socket: str | None) -> bool:
    """Whether the image holds the VM: by uuid where both have one, else by name, else by its recorded socket."""
    domain = head.domain()
    if uuid and domain.uuid:
        return uuid == domain.uuid
    if name:
        return name == domain.name
    launch = domain.launch
    if not qmp_socket or not launch:
        return False
    # Only what is vouched for names files that are read.
    words = read_configuration(launch.argv, launch.cwd).words if is_vouched(domain) else launch.argv
    return os.path.abspath(qmp_socket) in {door.address for door in doors(words, launch.cwd)}


def recorded_surroundings(domain: domain_xml.ParsedDomain) -> Surroundings:
    """What an image records of what surrounded its VM; nothing where that cannot be read."""
    with contextlib.suppress(ValueError):
        if domain.save_facts:
            return Surroundings.parse(domain.save_facts.surroundings)
    return Surroundings((), ())


def require_not_gone_on_elsewhere(head: ImageHead, label: str) -> None:
    """Of a guest that stands still in the QEMU that wrote its image; looks at its disks, which may block.

    Nothing keeps another QEMU from these disks: who runs from them, or from the image, writes to them. Where the image
    is complete and a checkpoint, a guest was to go on from it: then what cannot be known counts, too.

    :param head: that of the image, which may be partial, but with its record.
    :param label: the VM as messages name it.
    :raises DiskMismatchError: it has, or that cannot be known of a checkpoint.
    """
    went_on = head.header.complete and head.header.checkpoint
    facts = head.domain().save_facts
    try:
        problems = changed_media(Surroundings.parse(facts.surroundings if facts else "").media)
    except ValueError:
        what = "it is not known whether its disks are as they were, as the image does not record them"
        problems = [Problem("disk_unchecked", what, "See where it ran", blocks=False)]
    refused = problems if went_on else blocking(problems)
    if refused:
        how = f"gone on from {head.path}, a checkpoint, in another one" if went_on else "run in another one since"
        raise DiskMismatchError(
            f"{label} stands still in its QEMU, and may have {how}: " + "; ".join(problem.what for problem in refused),
            cure="If it has run elsewhere since, end this QEMU; if it surely has not, let it go on with QMP cont",
            problems=[problem.as_result() for problem in problems],
        )


def image_owner(head: ImageHead) -> str:
    """The VM that an image holds, for messages."""
    domain = head.domain()
    return f"{domain.name}, {domain.uuid}" if domain.uuid else domain.name


def saved_at(head: ImageHead) -> str:
    """When it was saved, for messages: as it records, else by the time of its last change."""
    facts = head.domain().save_facts
    if facts and facts.saved_at:
        return facts.saved_at
    return datetime.datetime.fromtimestamp(head.mtime, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
