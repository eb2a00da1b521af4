# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which of several images of a VM is its last save; the others are superseded, and their disks have moved on.

Two images are of one VM where their UUIDs are the same or, where one of them has none, their names. Where both have
none, VMs of one name are two if they have neither a QMP server nor a disk in common. The later save is
the one with the later ``saved_at``; where an image does not record it (libvirt's do not), its file's time of change
stands for it. It is so whatever became of the later save: also a checkpoint, a damaged image and one in an archive
supersede an older one. A partial image supersedes none, as its save never came to its end. Copies of one save do not
supersede each other.

What an image records may have been written by its VM's user (``vouching``), who could give it another VM's name and any
time. So an image for which this user vouches, and which is no checkpoint, supersedes those of its VM for which he does
not, and never the reverse.

A user chooses the name and the UUID of his VMs: what was saved of them supersedes nothing that was saved of another
user's, root's among them. What was saved of root's, or does not record whose it was, may supersede all.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._errors import ConflictError, ImageError, RequestError
from ansible_collections.vmops.qemu.plugins.module_utils._image.archive_reader import read_archive_head
from ansible_collections.vmops.qemu.plugins.module_utils._image.domain_xml import ParsedDomain
from ansible_collections.vmops.qemu.plugins.module_utils._image.edit import mark_checkpoint
from ansible_collections.vmops.qemu.plugins.module_utils._image.head import ImageHead
from ansible_collections.vmops.qemu.plugins.module_utils._image.header import HEADER_SIZE, MAGIC_COMPLETE
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_errors import image_errors
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_file import ImageFile
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_lock import image_lock
from ansible_collections.vmops.qemu.plugins.module_utils._image.names import split_archive_path
from ansible_collections.vmops.qemu.plugins.module_utils._image.record import SaveFacts
from ansible_collections.vmops.qemu.plugins.module_utils._image.vouching import is_vouched
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.command_line import qmp_addresses
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.record import Surroundings

#: Bytes in which most domain XMLs end.
_FIRST_READ = 32 * 1024

#: Seconds by which a file server's clock may be behind that of the host that saved: no image that was changed so long
#: before another one was saved can be a later save, so it is not opened.
_CLOCK_DIFFERENCE = 86400.0


@dataclasses.dataclass(frozen=True)
class Save:
    """Of which VM an image is, and when it was saved, in seconds since the epoch; ``size`` is in bytes.

    ``record`` tells one save from another; it is empty where the image has none. ``vouched`` is whether this user
    vouches for all this: what a VM's user may have written into its image says nothing against another VM's. ``uid`` is
    the user as whom the VM ran, where the image records it. ``addresses`` are those of the QMP servers, and ``disks``
    the files that are written to, of a VM without a UUID, where they are known.
    """

    path: str
    name: str
    uuid: str
    saved: float
    mtime: float
    size: int
    record: tuple[str, str] | None
    vouched: bool = False
    checkpoint: bool = False
    uid: int | None = None
    addresses: frozenset[str] = frozenset()
    disks: frozenset[str] | None = None

    @classmethod
    def of(cls, head: ImageHead, domain: ParsedDomain, vouched: bool | None = None) -> Save:
        """From what is read of an image; ``vouched`` is given where it is known already."""
        facts = domain.save_facts
        saved = facts.saved_seconds if facts else None
        launch = domain.launch
        told_apart = launch is not None and not domain.uuid
        return cls(
            addresses=frozenset(qmp_addresses(launch.argv, launch.cwd) if launch and told_apart else ()),
            disks=_disks(facts) if told_apart else None,
            path=head.path,
            name=domain.name,
            uuid=domain.uuid,
            saved=head.mtime if saved is None else saved,
            mtime=head.mtime,
            size=head.size,
            record=(facts.saved_at, facts.migration) if facts and facts.migration else None,
            vouched=is_vouched(domain) if vouched is None else vouched,
            checkpoint=head.header.checkpoint,
            uid=domain.launch.uid if domain.launch else None,
        )

    def is_of_same_vm(self, other: Save) -> bool:
        """Whether both are of one VM."""
        if self.uuid and other.uuid:
            return self.uuid == other.uuid
        return self.name == other.name and not self._is_twin_of(other)

    def _is_twin_of(self, other: Save) -> bool:
        """Whether these are two VMs of one name for sure."""
        if not self.addresses or not other.addresses or self.disks is None or other.disks is None:
            return False
        return self.addresses.isdisjoint(other.addresses) and self.disks.isdisjoint(other.disks)

    def may_supersede(self, other: Save) -> bool:
        """Whether both are of one VM, and whose this was may say so."""
        return self.is_of_same_vm(other) and (not self.uid or self.uid == other.uid)

    def is_later_than(self, other: Save) -> bool:
        """Whether this is another save of the same VM and a later one, or the one for which this user vouches."""
        if not self.may_supersede(other) or (other.vouched and not self.vouched):
            return False
        if self.vouched and not other.vouched and not self.checkpoint:
            return True
        same_save = self.record is not None and self.record == other.record and self.vouched is other.vouched
        return not same_save and (self.saved, self.mtime) > (other.saved, other.mtime)


def _disks(facts: SaveFacts | None) -> frozenset[str] | None:
    with contextlib.suppress(ValueError):
        if facts:
            media = Surroundings.parse(facts.surroundings).media
            return frozenset(path for medium in media for path in medium.own_files)
    return None


def last_of(saves: t.Iterable[Save]) -> Save | None:
    """The last one; None where there is none."""
    return max(saves, key=_order, default=None)


def superseding(saves: t.Iterable[Save], among: t.Iterable[Save]) -> dict[str, str]:
    """By path, the path of the VM's last save, for each of ``saves`` that is not it.

    :param among: the saves that came to their end.
    """
    by_name, by_uuid = collections.defaultdict(list), collections.defaultdict(list)
    for other in _one_of_each(among):
        by_name[other.name].append(other)
        by_uuid[other.uuid].append(other)
    found = {}
    for save in saves:
        others = by_name[save.name] + (by_uuid[save.uuid] if save.uuid else [])
        last = last_of(other for other in others if other.is_later_than(save))
        if last:
            found[save.path] = last.path
    return found


def _one_of_each(saves: t.Iterable[Save]) -> t.Iterable[Save]:
    """The last of the copies of each save: later than another save is either this one or none of them."""
    by_record = collections.defaultdict(list)
    for save in saves:
        # By all that decides of it but the time of the file.
        alike = (save.record, save.vouched, save.checkpoint, save.uid, save.name, save.uuid, save.addresses, save.disks)
        by_record[alike if save.record else save.path].append(save)
    return (max(same, key=_order) for same in by_record.values())


def _order(save: Save) -> tuple[bool, float, float, str]:
    return save.vouched, save.saved, save.mtime, save.path


def copies(saves: t.Iterable[Save]) -> dict[str, str]:
    """By path, the path of the one to restore, for each further copy of a save.

    The one to restore is the longest, as a copy may have been cut off; else the one with the name that a save gives it.

    :param saves: those that came to their end, and lie there as images.
    """
    by_record = collections.defaultdict(list)
    for save in saves:
        if save.record:
            by_record[save.record, save.uuid or save.name, save.uid, save.vouched].append(save)
    found = {}
    for same in by_record.values():
        original = min(same, key=lambda one: (-one.size, os.path.basename(one.path) != f"{one.name}.save", one.path))
        found.update({save.path: original.path for save in same if save is not original})
    return found


def why_left_alone(image: t.Mapping[str, t.Any]) -> str:
    """Why a restore of all VMs of a host leaves an image alone, as a clause; empty where it does not.

    :param image: as ``directory_info`` returns it.
    """
    if image.get("superseded_by"):
        doubt = "" if image.get("vouched") else ", or one that is vouched for"
        return f"{image['superseded_by']} is a later save of {image['name']}{doubt}"
    if image.get("copy_of"):
        return f"it is a copy of {image['copy_of']}"
    if image.get("checkpoint") and image["state"] == "complete":
        return f"it is a checkpoint: {image['name']} went on after this save, and its disks may have moved on"
    return ""


def newer_image(path: str, head: ImageHead) -> str | None:
    """The path of the VM's last save in the directory of an image; None where the image is that itself.

    Blocks for as long as it takes to look at the first bytes of each image there.

    :param path: the image's path; where it is a link, the directory is the link's.
    :param head: its head.
    :raises ImageAccessError: the directory cannot be read.
    :raises ImageFormatError: the image's domain XML makes no sense.
    """
    return newer_save(dataclasses.replace(Save.of(head, head.domain()), path=path))


def newer_save(save: Save) -> str | None:
    """The path of the VM's last save in the directory of this one; None where this one is it.

    :raises ImageAccessError: the directory cannot be read.
    """
    later = []
    # One that is vouched for stands above one that is not, however old it is.
    for candidate in _files_beside(save.path, save.saved - _CLOCK_DIFFERENCE if save.vouched else None):
        head = _read_head_of(candidate, save)
        other = Save.of(head, head.domain()) if head else None
        if other and other.is_later_than(save):
            later.append(other)
    last = last_of(later)
    return copies(later).get(last.path, last.path) if last else None


def mark_superseded(path: str, head: ImageHead) -> list[str]:
    """Mark all other saves of a VM as checkpoints, with the one from which its guest goes on: their disks move on now.

    Also later ones, after whose moment the disks were put back; else one of them would be the VM's last save as soon
    as this image is removed. Blocks as ``newer_image`` does, but looks into each image, however old.

    :param path: the image from which the guest goes on, which is left as it is.
    :param head: its head.
    :returns: a sentence for each that could not be marked.
    :raises ImageAccessError: the directory cannot be read.
    :raises ImageFormatError: the image's domain XML makes no sense.
    """
    save = dataclasses.replace(Save.of(head, head.domain()), path=path)
    problems = []
    for candidate in _files_beside(path):
        other = None if split_archive_path(candidate)[1] else _read_head_of(candidate, save)
        if other is None or other.header.checkpoint:
            continue
        found = Save.of(other, other.domain())
        if save.may_supersede(found) and (save.vouched or not found.vouched):
            try:
                with image_lock(candidate):
                    mark_checkpoint(candidate, other)
            except (ConflictError, ImageError) as error:
                problems.append(f"{candidate} is an outdated save of {save.name}, and could not be marked so: {error}")
    return problems


def _files_beside(path: str, changed_after: float | None = None) -> list[str]:
    """The other files in a file's directory, links left out.

    :raises ImageAccessError: it cannot be read.
    """
    directory = os.path.dirname(os.path.abspath(path))
    found = []
    with image_errors(directory, "list the directory"), os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):  # it is gone by now
                if (
                    entry.is_file(follow_symlinks=False)
                    and (changed_after is None or entry.stat(follow_symlinks=False).st_mtime > changed_after)
                    and not (os.path.exists(path) and os.path.samefile(entry.path, path))
                ):
                    found.append(entry.path)
    return sorted(found)


def _read_head_of(path: str, wanted: Save) -> ImageHead | None:
    """The head of the image in this file; None where none came to its end there, or it is of another VM for sure."""
    # What cannot be read, or has no tool to look into it, is not known to be a save of this VM.
    with contextlib.suppress(ImageError, RequestError):
        if split_archive_path(path)[1]:
            head = read_archive_head(path)
            head.domain()
            return head
        with ImageFile.open(path) as image:
            if _may_be_of(image.read(HEADER_SIZE + _FIRST_READ, 0), wanted):
                head = image.head()
                head.domain()
                return head
    return None


def _may_be_of(data: bytes, wanted: Save) -> bool:
    """Whether a file that begins so may be a complete image of a VM; to read an XML takes ten times as long."""
    if not data.startswith(MAGIC_COMPLETE):
        return False
    text, end, _rest = data[HEADER_SIZE:].partition(b"\0")
    # A name stands there as it is, unless it is written with references or as CDATA.
    return (
        not end
        or b"&" in text
        or b"<![" in text
        or wanted.name.encode("utf-8", "surrogateescape") in text
        or (wanted.uuid != "" and wanted.uuid.replace("-", "").encode() in text.lower().replace(b"-", b""))
    )
