# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is known of a save image, as modules return it."""

from __future__ import annotations

import contextlib
import functools
import os
import pwd
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    ImageError,
    ImageNotFoundError,
    RequestError,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image import domain_xml
from ansible_collections.vmops.qemu.plugins.module_utils._image.archive_reader import read_archive_head
from ansible_collections.vmops.qemu.plugins.module_utils._image.archive_record import unfinished_archive
from ansible_collections.vmops.qemu.plugins.module_utils._image.compressed_head import read_compressed_head
from ansible_collections.vmops.qemu.plugins.module_utils._image.digest import digest_problems_of
from ansible_collections.vmops.qemu.plugins.module_utils._image.edit import has_journal
from ansible_collections.vmops.qemu.plugins.module_utils._image.head import ImageHead
from ansible_collections.vmops.qemu.plugins.module_utils._image.header import (
    MAGIC_COMPLETE,
    MAGIC_PARTIAL,
    ImageFormat,
    SaveImageHeader,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_errors import image_errors
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_file import ImageFile, read_image_head
from ansible_collections.vmops.qemu.plugins.module_utils._image.last_save import (
    Save,
    copies,
    newer_save,
    superseding,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.names import (
    archive_path,
    find_archives,
    is_journal,
    split_archive_path,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.record import SaveFacts
from ansible_collections.vmops.qemu.plugins.module_utils._image.stream import read_stream_of
from ansible_collections.vmops.qemu.plugins.module_utils._image.verify import (
    domain_problems,
    head_problems,
    stream_problems,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.vouching import why_not_vouched
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.command_line import redact_argument
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.cpu import Cpu
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.record import Surroundings

_PARTIAL_PROBLEM = "the image is partial: its save never finished, or is still being written"
_EDIT_PROBLEM = (
    "the image is partial: a change of its head was interrupted (vmops.qemu.qemu_save_image puts it back, without any"
    " option but the image's path)"
)
#: What would bury the rest of the result of a save or a restore.
_LONG = frozenset(("domain_xml", "cookie", "disks", "cpu", "restore_problems", "launch"))
_UNKNOWN: dict[str, t.Any] = dict.fromkeys(
    (
        "complete",
        "checkpoint",
        "superseded_by",
        "copy_of",
        "version",
        "format",
        "vm_state",
        "byte_order",
        "name",
        "uuid",
        "memory",
        "vcpus",
        "machine",
        "domain_xml",
        "cookie",
        "size",
        "allocated",
        "stream_offset",
        "saved_at",
        "qemu_version",
        "checksum",
        "managed",
        "mode",
        "owner",
        "mtime",
    )
)


def image_info(path: str, stream: bool = False, verify: bool = False, others: bool = False) -> dict[str, t.Any]:
    """Everything about one image; never fails, as what is wrong with it is in ``problems``.

    The keys are those that ``qemu_save_image_info`` documents, always all of them (``stream`` only when asked for);
    what is not known is None. Sizes and offsets are bytes, ``mtime`` is seconds since the epoch.

    :param stream: read the QEMU stream's facts too.
    :param verify: check that the file holds what its header, stream and bitmaps promise and, where a checksum of the
        stream is recorded, that it has not changed since; that reads all of it.
    :param others: look for a later save of the VM in the same directory (``superseded_by``), which looks into each
        image there.
    """
    info, save = _look_at(path, stream, verify)
    if others and save:
        with contextlib.suppress(ImageError):  # a directory that cannot be listed
            info["superseded_by"] = newer_save(save)
    return info


def image_state(path: str) -> str:
    """What is at the path: ``absent``, ``partial``, ``complete``, or ``invalid``, which may be anything else."""
    try:
        return "complete" if read_image_head(path).header.complete else "partial"
    except ImageNotFoundError:
        return "absent"
    except ImageError:
        return "invalid"


def image_word(path: str) -> str:
    """The word for what is at the path, as a situation has it: see ``_situation``."""
    state = image_state(path)
    if state == "absent" and find_archives(path):
        return "archived"
    return "unknown" if state == "invalid" else state


def image_result(path: str) -> dict[str, t.Any]:
    """The ``image`` return value: all of :func:`image_info` but the long parts, which would bury the rest."""
    return {key: value for key, value in image_info(path).items() if key not in _LONG}


def _look_at(path: str, stream: bool, verify: bool) -> tuple[dict[str, t.Any], Save | None]:
    """What ``image_info`` returns, and which save it is, where that can be read."""
    info: dict[str, t.Any] = {
        "path": path,
        "exists": True,
        "state": "invalid",
        **_UNKNOWN,
        "archive": None,
        "features": [],
        "launch_recorded": False,
        "vouched": None,
        "launch": None,
        "restorable": None,
        "restore_problems": None,
        "disks": None,
        "cpu": None,
        "readable_by": [],
        "problems": [],
    }
    if stream:
        info["stream"] = None
    try:
        if split_archive_path(path)[1]:
            return _archive_info(info)
        image = ImageFile.open(path)
    except ImageNotFoundError:
        archives = find_archives(path)
        if archives:
            return _archive_info({**info, "path": archive_path(path, archives[0])})
        return {**info, "exists": False, "state": "absent"}, None
    except ImageError as error:
        return {**info, "problems": [error.problem]}, None
    save = None
    problems: list[str] = info["problems"]
    try:
        head = image.head()
        info.update(_head_info(head))
        if verify:
            problems += head_problems(image, head)
        try:
            domain, shown_xml = head.domain_and_shown_xml()
            info.update(_domain_info(domain, shown_xml))
            save = Save.of(head, domain, bool(info["vouched"]))
        except ImageError as error:
            problems.append(error.problem)
        if stream or verify:
            facts = read_stream_of(image, head.header)
            if facts and verify and info["name"]:
                problems += domain_problems(head.domain(), facts.machine, facts.memory)
            if stream:
                shown = facts
                # Without its tool, nothing of a compressed stream is known.
                with contextlib.suppress(RequestError):
                    shown = facts or read_compressed_head(path, head.header)
                info["stream"] = shown.as_result() if shown else None
            if facts and verify:
                problems += stream_problems(image, facts)
        if verify and info["checksum"] and head.header.complete and not problems:
            problems += digest_problems_of(image, info["checksum"])
    except ImageError as error:
        problems.append(error.problem)
    finally:
        why_partial = _why_partial(image) if info["complete"] is False else ""
        image.close()
    if why_partial:
        info["state"] = "partial"
        problems.insert(0, why_partial)
    elif not problems:
        info["state"] = "complete"
        info["readable_by"] = _readers(head.header)
    return info, save


def directory_info(directory: str, stream: bool = False, verify: bool = False) -> list[dict[str, t.Any]]:
    """``image_info`` of each image in a directory, by name; with ``superseded_by`` and ``copy_of``.

    An image is a regular file that begins with either magic, or whose name ends in ``.save``, or that of an archive of
    such a file; symbolic links and all other files are left out.

    :raises ImageAccessError: the directory cannot be read.
    :raises ImageNotFoundError: it does not exist.
    """
    with image_errors(directory, "list the directory"), os.scandir(directory) as entries:
        paths = sorted(entry.path for entry in entries if entry.is_file(follow_symlinks=False))
    images, saves = [], []
    for path in paths:
        if split_archive_path(path)[0].endswith(".save") or (_has_magic(path) and not is_journal(path)):
            image, save = _look_at(path, stream, verify)
            images.append(image)
            saves += [(image, save)] if save else []
    superseded = superseding((save for _image, save in saves), [save for image, save in saves if image["complete"]])
    copied = copies(save for image, save in saves if image["state"] == "complete")
    for image in images:
        last = superseded.get(image["path"])
        image["superseded_by"] = copied.get(last, last) if last else None
        image["copy_of"] = copied.get(image["path"])
    return images


def describe(image: dict[str, t.Any]) -> str:
    """One line about an image, for people; ``image`` is what ``image_info`` returned."""
    label = image["name"] or image["path"]
    if image["name"] and os.path.basename(split_archive_path(image["path"])[0]) != f"{label}.save":
        label = f"{label} ({os.path.basename(image['path'])})"
    if image["state"] == "absent":
        return f"{label}: there is no image"
    if image["state"] == "invalid" or image["size"] is None:
        return f"{label}: {image['state']}, {'; '.join(image['problems'])}"
    state = f"archived ({image['archive']})" if image["state"] == "archived" else image["state"]
    more = ", checkpoint" if image["checkpoint"] else ""
    if image["superseded_by"]:
        more += f", superseded by {os.path.basename(image['superseded_by'])}"
    more += ", not vouched for" if image["vouched"] is False else ""
    return (
        f"{label}: {state} {image['format']} image, version {image['version']},"
        f" {_human(image['memory'] or 0)} memory, {_human(image['allocated'])} on disk{more}"
    )


def _archive_info(info: dict[str, t.Any]) -> tuple[dict[str, t.Any], Save | None]:
    """What is known of an image from its archive, without expanding more than the head."""
    image_format = split_archive_path(info["path"])[1]
    info = {**info, "archive": image_format.label if image_format else None}
    try:
        head = read_archive_head(info["path"])
        domain, shown_xml = head.domain_and_shown_xml()
        info = {**info, **_head_info(head), **_domain_info(domain, shown_xml), "state": "archived"}
        return info, Save.of(head, domain, bool(info["vouched"]))
    except ImageNotFoundError:
        return {**info, "exists": False, "state": "absent", "archive": None}, None
    except ImageError as error:
        return {**info, "problems": [error.problem]}, None
    except RequestError as error:  # no tool to look into it
        return {**info, "state": "archived", "problems": [error.what]}, None


def _why_partial(image: ImageFile) -> str:
    if has_journal(image):
        return _EDIT_PROBLEM
    left = None
    with contextlib.suppress(ImageError):
        left = unfinished_archive(image)
    if left:
        return (
            "the image is partial: its archiving was interrupted, or goes on (vmops.qemu.qemu_save_image finishes it"
            f" with archive: {left.format}, and makes the image whole again with archive: none)"
        )
    return _PARTIAL_PROBLEM


def _head_info(head: ImageHead) -> dict[str, t.Any]:
    header = head.header
    return {
        "complete": header.complete,
        "checkpoint": header.checkpoint,
        "version": header.version,
        "format": header.format.label,
        "features": ["mapped-ram"] if header.features else [],
        "vm_state": "running" if header.was_running else "paused",
        "byte_order": header.byte_order,
        "cookie": head.cookie,
        "size": head.size,
        "allocated": head.allocated,
        "stream_offset": header.stream_offset,
        "mode": f"{head.mode:04o}",
        "owner": _owner(head.uid),
        "mtime": head.mtime,
    }


def _domain_info(domain: domain_xml.ParsedDomain, shown_xml: str) -> dict[str, t.Any]:
    return {
        "domain_xml": shown_xml,
        "name": domain.name,
        "uuid": domain.uuid,
        "memory": domain.memory,
        "vcpus": domain.vcpus,
        "machine": domain.machine,
        "launch_recorded": domain.launch is not None,
        **_launch_info(domain),
        **_surroundings_info(domain.save_facts),
        **_cpu_info(domain.save_facts),
        "saved_at": domain.save_facts.saved_at if domain.save_facts else None,
        "qemu_version": domain.save_facts.qemu_version if domain.save_facts else None,
        "checksum": (domain.save_facts.digest or None) if domain.save_facts else None,
        "managed": bool(domain.save_facts and domain.save_facts.managed),
    }


def _launch_info(domain: domain_xml.ParsedDomain) -> dict[str, t.Any]:
    """How a restore would start the VM, and whether it may."""
    record = domain.launch
    if domain.save_facts is None:
        return {}
    reason = why_not_vouched(domain)
    info: dict[str, t.Any] = {"vouched": not reason}
    if record is None:
        return info
    if reason:
        reason = f"nobody vouches for its record: {reason}"
    elif not record.replayable:
        reason = record.reason or "no reason is known"
    return {
        **info,
        "restorable": not reason,
        "launch": {
            "how": "none" if reason else "unit" if record.unit else "command",
            "reason": reason,
            "command": [redact_argument(word) for word in record.argv],
            "program": record.executable,
            "directory": record.cwd,
            "uid": record.uid,
            "gid": record.gid,
            "umask": record.umask,
            "unit": record.unit or None,
        },
    }


def _surroundings_info(facts: SaveFacts | None) -> dict[str, t.Any]:
    """What the image records of what surrounded its VM, with secrets hidden; nothing where it cannot be read."""
    try:
        if facts is None or not facts.surroundings:
            return {}
        surroundings = Surroundings.parse(redact_argument(facts.surroundings))
    except ValueError:
        return {}
    return {
        "restore_problems": [problem.as_result() for problem in surroundings.problems],
        "disks": [medium.as_result() for medium in surroundings.media],
    }


def _cpu_info(facts: SaveFacts | None) -> dict[str, t.Any]:
    """What the image records of the guest's CPUs; nothing where it cannot be read."""
    try:
        return {"cpu": Cpu.parse(facts.cpu).as_result()} if facts and facts.cpu else {}
    except ValueError:
        return {}


def _readers(header: SaveImageHeader) -> list[str]:
    """Who reads an image with this header: libvirt no version 3."""
    readers = ["vmops.qemu"]
    if header.version == 2:
        readers.append("libvirt >= 11.2" if header.format is ImageFormat.SPARSE else "libvirt")
    return readers


def _has_magic(path: str) -> bool:
    try:
        with ImageFile.open(path) as image:
            return image.magic() in (MAGIC_COMPLETE, MAGIC_PARTIAL)
    except ImageError:
        return False


@functools.lru_cache(maxsize=64)  # a directory server may be asked for it
def _owner(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _human(size: int) -> str:
    """Bytes in the unit that people read, such as ``612 MiB`` or ``2.0 GiB``."""
    if size < 1 << 20:
        return f"{size / 1024:.0f} KiB"
    return f"{size / (1 << 20):.0f} MiB" if size < 1 << 30 else f"{size / (1 << 30):.1f} GiB"
