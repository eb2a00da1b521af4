# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Changing the head of a finished save image in place: version, state after a restore, domain XML, checkpoint.

The QEMU stream cannot be moved, so the head is written anew where it is, and an interruption at any point must leave
a whole image or one that is known not to be:

- What changes only the header's 92 bytes is one write inside one disk sector, which happens or does not.
- A new domain XML is many sectors. The old head is first put into a journal beside the image,
  ``.<file name>.<inode>.head``, with the partial magic, so that it is never taken for an image. Then: partial magic,
  flush, new text, flush, complete magic, flush, and the journal is removed. An image that is partial while its journal
  exists is put back as it was (``recover_head``), as it is when a step fails.

By hand, the journal is put back with ``dd conv=notrunc`` and the complete magic written over the first 16 bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import os
import signal
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._durable import scratch_path, write_durably
from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    ConflictError,
    ImageFormatError,
    ImageNotFoundError,
    ImagePartialError,
    RequestError,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image import domain_xml
from ansible_collections.vmops.qemu.plugins.module_utils._image.head import ImageHead, pack_head
from ansible_collections.vmops.qemu.plugins.module_utils._image.header import (
    HEADER_SIZE,
    MAGIC_COMPLETE,
    MAGIC_PARTIAL,
    MAGIC_SIZE,
    SaveImageHeader,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_errors import image_errors
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_file import ImageFile
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_lock import hold_image
from ansible_collections.vmops.qemu.plugins.module_utils._image.names import journal_path
from ansible_collections.vmops.qemu.plugins.module_utils._image.place import remove_image
from ansible_collections.vmops.qemu.plugins.module_utils._image.vouching import is_vouched, vouch
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.command_line import HIDDEN
from ansible_collections.vmops.qemu.plugins.module_utils._vouching_key import read_key


@contextlib.contextmanager
def open_for_edit(path: str) -> t.Iterator[ImageFile]:
    """Open a file for reading and writing, which nobody else has open or has locked; locked until the end.

    Others are found by ``flock``, and, on local file systems, by asking the kernel for a lease, which it refuses while
    another process has the file open (such as a QEMU that loads it).

    :raises BusyError: another run has the file.
    :raises LockHeldError: a process that is no run of this user's has locked it.
    :raises ImageNotFoundError: there is no file.
    :raises ImageFormatError: it is not a regular file.
    :raises ImageAccessError: it cannot be opened or locked; a symbolic link is not followed.
    """
    with image_errors(path, "open the image"):
        image = ImageFile.open_regular(path, os.O_RDWR | os.O_NOFOLLOW)
    with image, contextlib.ExitStack() as locks:
        hold_image(locks, image)
        with image_errors(path, "lock the image"):
            if not _is_alone(image.descriptor):
                raise ConflictError(
                    f"{path} is in use: another process restores, saves or changes it",
                    cure="Wait for its end (fuser shows who has the file open)",
                )
            if not image.is_at_its_path():
                raise ConflictError(f"{path} was replaced by another process just now", cure="Run the task again")
        yield image


def plan_head(
    head: ImageHead,
    new_xml: str | None = None,
    vm_state: str | None = None,
    image_version: int | None = None,
    key: bytes | None = None,
) -> ImageHead:
    """The head as it shall be; equal to ``head`` where nothing is to be changed. None leaves a part as it is.

    The collection's own record is taken from the image, whatever the new XML says of it: how the VM is started again
    must not depend on an XML that was shown (with secrets hidden) and edited.

    :param new_xml: a domain XML of the same VM.
    :param vm_state: ``running`` or ``paused``.
    :param key: vouch with this key for what the image records, where this user does not do so yet.
    :raises RequestError: the XML is none, is of another VM, has hidden secrets, or does not fit; or nothing is recorded
        for which one could vouch.
    """
    header = head.header
    if vm_state is not None:
        header = dataclasses.replace(header, was_running=vm_state == "running")
    if image_version is not None:
        header = dataclasses.replace(header, version=image_version)
    xml = head.xml if new_xml is None else _with_record(head, new_xml)
    if key is not None and not is_vouched(head.domain()):
        if head.domain().save_facts is None:
            raise RequestError(
                f"{head.path} records nothing of this collection for which one could vouch",
                cure="Restore it with launch: command or launch: attach",
            )
        xml = vouch(xml, key, head.path)
    if xml != head.xml:
        header = pack_head(head.path, header, xml, head.cookie)[0]
    return dataclasses.replace(head, header=header, xml=xml)


def write_head(image: ImageFile, old: ImageHead, new: ImageHead) -> None:
    """Bring a planned head onto the storage; afterwards the image is as before, or wholly changed.

    :param image: of ``open_for_edit``.
    :raises ImagePartialError: the image is not complete.
    :raises ImageAccessError: a step failed; the old head was put back, or its journal waits for ``recover_head``.
    """
    path = old.path
    if not old.header.complete:
        raise ImagePartialError(path, "the image is partial, so its head is not changed")
    if old.xml == new.xml:
        with image_errors(path, "write the image's header"):
            image.write(new.header.pack(), 0)
            image.flush()
        return
    _header, data = pack_head(path, new.header, new.xml, new.cookie)
    journal = _write_journal(image, old)
    try:
        with image_errors(path, "write the image's head"):
            image.write(MAGIC_PARTIAL, 0)
            image.flush()
            image.write(MAGIC_PARTIAL + data[MAGIC_SIZE:], 0)
            image.flush()
            image.write(MAGIC_COMPLETE, 0)
            image.flush()
    except BaseException:  # whatever it is, a signal, too: no half-changed head may stay
        with contextlib.suppress(OSError):  # the complete magic may be there already: then recovery would keep it
            image.write(MAGIC_PARTIAL, 0)
        recover_head(image)
        raise
    remove_image(journal)


def recover_head(image: ImageFile) -> bool:
    """Put the old head back where a change of it was cut off, and remove what is left of that change.

    :param image: of ``open_for_edit``.
    :returns: whether the image was partial and is whole again.
    :raises ImageFormatError: the journal is not that of this image.
    :raises ImageAccessError: a step failed; the journal stays.
    """
    path, journal = image.path, journal_of(image)
    _unlink(scratch_path(journal))
    recovered = False
    if not os.path.lexists(journal):
        return False
    header = SaveImageHeader.parse(image.read(HEADER_SIZE, 0), path)
    if not header.complete:
        data = _read_journal(path, journal, header)
        with image_errors(path, "put the image's head back"):
            image.write(data, 0)
            image.flush()
            image.write(MAGIC_COMPLETE, 0)
            image.flush()
        recovered = True
    remove_image(journal)
    return recovered


def mark_checkpoint(path: str, head: ImageHead) -> bool:
    """Say in a complete image that its guest goes on, on the storage, before it does; quiet where it says so already.

    For whoever holds the image's lock (``image_lock``, or that of a ``PartialImage``); a QEMU may have the file open.
    A kill at any moment leaves the image marked or not marked. The file's time of change stays: it tells when the
    stream was written, and is a part of the identity by which a run that was cut off knows the image.

    :param head: the image's head, as the caller has read it; only this image is marked. Links are followed, as they
        were on reading it.
    :returns: whether it did not say so yet.
    :raises ConflictError: another image is at the path by now.
    :raises ImageNotFoundError: there is no file.
    :raises ImagePartialError: it is not complete.
    :raises ImageAccessError: it cannot be opened for writing, or the storage failed.
    :raises ImageError: what is there is no image.
    """
    return _set_mark(path, head, True)


def unmark_checkpoint(path: str, head: ImageHead) -> None:
    """Take the mark back of an image whose guest did not go on after all; as :func:`mark_checkpoint`."""
    _set_mark(path, head, False)


def _set_mark(path: str, head: ImageHead, marked: bool) -> bool:
    """As :func:`mark_checkpoint`; whether it was set otherwise before."""
    with _open_for_mark(path) as image:
        now = image.head()
        if not now.header.complete:
            raise ImagePartialError(path, "the image is partial, so it is not marked as a checkpoint")
        if (dataclasses.replace(now.header, checkpoint=head.header.checkpoint), now.xml) != (head.header, head.xml):
            raise ConflictError(f"{path} was replaced by another process just now", cure="Run the task again")
        facts = image.facts()
        with image_errors(path, "mark the image as a checkpoint"):
            if now.header.checkpoint is not marked:
                image.write(dataclasses.replace(now.header, checkpoint=marked).pack(), 0)
                with contextlib.suppress(PermissionError):  # it may be written to, but is someone else's
                    os.utime(image.descriptor, ns=(facts.st_atime_ns, facts.st_mtime_ns))
            # Also where it is marked already: that run may have been cut off before its flush.
            image.flush()
        return now.header.checkpoint is not marked


def require_markable(path: str) -> None:
    """Check, without a change, that an image can be marked as a checkpoint.

    :raises ImageError: it cannot be opened for writing.
    """
    _open_for_mark(path).close()


def _open_for_mark(path: str) -> ImageFile:
    with image_errors(path, "open the image to mark it as a checkpoint"):
        return ImageFile.open_regular(path, os.O_RDWR)


def drop_journal(image: ImageFile) -> None:
    """Remove what is left of a change of the head, before the image is removed.

    :raises ImageAccessError: it cannot be removed.
    """
    journal = journal_of(image)
    for left in (journal, scratch_path(journal)):
        _unlink(left)


def has_journal(image: ImageFile) -> bool:
    """Whether a change of this image's head was cut off, so that ``recover_head`` can put it back."""
    return os.path.lexists(journal_of(image))


def journal_of(image: ImageFile) -> str:
    """Where the old head of an open image is kept during a change."""
    return journal_path(image.path, image.facts().st_ino)


def _with_record(head: ImageHead, new_xml: str) -> str:
    try:
        old = domain_xml.parse(head.xml, head.path)
        xml = new_xml
        if old.save_facts:
            xml = domain_xml.embed(new_xml, old.save_facts, old.launch, "domain_xml")
            xml = domain_xml.with_voucher(xml, old.voucher, "domain_xml")
        new = domain_xml.parse(xml, "domain_xml")
        key = read_key() if is_vouched(old) and not is_vouched(new) else None
        if key:  # a UUID was added
            xml = vouch(xml, key, "domain_xml")
    except ImageFormatError as error:
        raise RequestError(f"The domain XML cannot be put into {head.path}: {error}", cure="Correct it") from error
    for what, old_value, new_value in (("name", old.name, new.name), ("UUID", old.uuid, new.uuid)):
        if old_value and old_value != new_value:
            raise RequestError(
                f"The domain XML is of a VM with the {what} {new_value or '(none)'},"
                f" but {head.path} holds the one with {old_value}",
                cure=f"Give the XML of the saved VM: its {what} cannot be changed",
            )
    if new.memory > old.memory > 0:
        raise RequestError(
            f"The domain XML has {new.memory} bytes of memory, but {head.path} holds a VM of {old.memory}",
            cure="Give the XML of the saved VM: its memory cannot be changed",
        )
    if HIDDEN in xml and HIDDEN not in head.xml:
        raise RequestError(
            f"The domain XML has {HIDDEN} where {head.path} has a secret",
            cure="Put the secret in: what vmops.qemu.qemu_save_image_info shows has its secrets hidden",
        )
    return xml


def _write_journal(image: ImageFile, old: ImageHead) -> str:
    """Keep the image's first bytes as they are, but with the partial magic, under the journal's name; flushed."""
    journal = journal_of(image)
    data = image.read(old.header.stream_offset, 0)
    data = MAGIC_PARTIAL + data[MAGIC_SIZE:]
    with image_errors(journal, "write the journal"):
        write_durably(journal, data)
    return journal


def _unlink(path: str) -> None:
    with contextlib.suppress(ImageNotFoundError), image_errors(path, "remove the leftover"):
        os.unlink(path)


def _read_journal(path: str, journal: str, header: SaveImageHeader) -> bytes:
    with image_errors(journal, "read the journal"):
        # A FIFO would be waited for.
        source = ImageFile.open_regular(journal, os.O_RDONLY | os.O_NOFOLLOW)
    with source:
        facts = source.facts()
        data = source.read(header.stream_offset + 1, 0)
    if (
        facts.st_uid not in (os.geteuid(), 0)
        or len(data) != header.stream_offset
        or SaveImageHeader.parse(data, journal).data_length != header.data_length
    ):
        raise ImageFormatError(
            path,
            f"the image is partial, and {journal} is not its old head",
            cure="Look at both; remove the journal if it belongs to another image",
        )
    return data


def _is_alone(descriptor: int) -> bool:
    """Whether no other open file description of the file exists; true also where the file system cannot tell."""
    try:
        # Who opens the file in the next moment waits for us; the signal that tells of it must be one that is ignored.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError as error:
        return error.errno != errno.EAGAIN
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return True
