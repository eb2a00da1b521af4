# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The names of images, of their archives, and of all that runs keep beside them for a while.

An image is ``web1.save``. Beside it there may be, of the same directory and so of the same file system:

- ``.web1.save.<16 digits>.partial``: an image in the making (``partial``)
- ``.web1.save.<inode>.head``: the old head, during a change of it (``edit``)
- ``web1.save.tar.zst`` and so on: an archive of it (``archive``), which is ``.web1.save.tar.zst.partial`` in the making
- ``.web1.save.archiving``: how far archiving went that punches holes into the image (``archive_record``)
- ``web1.save.log``: what a QEMU says into which an earlier version of this collection restored the image
- ``.web1.save.expanding``: the image, while its archive is expanded (``expand``)
"""

from __future__ import annotations

import os
import re
import secrets

from ansible_collections.vmops.qemu.plugins.module_utils._errors import ImageFormatError, MismatchError, RequestError
from ansible_collections.vmops.qemu.plugins.module_utils._image.header import ImageFormat

SUFFIXES = {
    ImageFormat.GZIP: ".tar.gz",
    ImageFormat.BZIP2: ".tar.bz2",
    ImageFormat.XZ: ".tar.xz",
    ImageFormat.LZOP: ".tar.lzo",
    ImageFormat.ZSTD: ".tar.zst",
}
"""What the name of an archive has after that of its image."""

_PARTIAL = r"[0-9a-f]{16}\.partial"
#: What tells a VM from others of its name: its UUID, or a digest of where it answers.
_OWN = r"([0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{8})"
_JOURNAL = re.compile(r"\..+\.[0-9a-f]+\.head(\.new)?", re.DOTALL)


def image_path(path: str | None, save_dir: str, name: str | None) -> str:
    """The image's absolute path: as given, or ``<save_dir>/<name>.save``.

    :raises RequestError: neither a path nor a name that can stand in a file name.
    """
    if path:
        return os.path.abspath(path)
    if not name:
        raise RequestError("Neither path nor name says which image is meant", cure="Give one of them")
    if "/" in name or "\0" in name or name in (".", ".."):
        raise RequestError(
            f"The VM's name {name!r} cannot stand in a file name", cure="Give the image's path in the path option"
        )
    return os.path.join(os.path.abspath(save_dir), f"{name}.save")


def vm_label(path: str, name: str) -> str:
    """A VM's name; or that of its image, where it got one that tells it from others of its name.

    :param path: the image's.
    """
    stem = os.path.basename(path)[: -len(".save")] if path.endswith(".save") else ""
    return stem if re.fullmatch(rf"{re.escape(name)}-{_OWN}", stem) else name


def launch_log_path(path: str) -> str:
    """Where earlier versions of this collection had a restored QEMU write, for all its life."""
    return f"{path}.log"


def require_image_of(path: str, found: str, name: str | None) -> None:
    """Check that an image holds the VM for which it is used, where both are said.

    :param found: the name of the VM that it holds.
    :raises MismatchError: it holds another one.
    """
    if name and found != name:
        raise MismatchError(f"{path} holds {found or 'a VM without a name'}, not {name}", cure="Correct name or path")


# --- an image in the making ---


def new_partial_name(target: str) -> str:
    """A new name, without its directory, for an image in the making."""
    return f".{os.path.basename(target)}.{secrets.token_hex(8)}.partial"


def is_partial_name(name: str, target: str) -> bool:
    """Whether an image in the making for this target may have this name."""
    return re.fullmatch(re.escape("." + os.path.basename(target)) + r"\." + _PARTIAL, name) is not None


def target_of_partial(path: str) -> str:
    """The final path of the image that is made in a temporary file.

    :raises RequestError: the path is not that of a temporary file of ours.
    """
    directory, name = os.path.split(os.path.abspath(path))
    match = _partial_name(name)
    if not match:
        raise RequestError(f"{path} is not a partial image of this collection", cure="Give the image's own path")
    return os.path.join(directory, match.group(1))


def has_partial_name(path: str) -> bool:
    """Whether it is named as an image in the making."""
    return _partial_name(os.path.basename(path)) is not None


def _partial_name(name: str) -> re.Match[str] | None:
    """The target's name is its only group."""
    return re.fullmatch(rf"\.(.+)\.{_PARTIAL}", name, re.DOTALL)


# --- a change of the head ---


def journal_path(path: str, inode: int) -> str:
    """Where the old head is kept during a change; the inode in it tells the image from one that replaced it."""
    return _beside(path, f"{inode:x}.head")


def is_journal(path: str) -> bool:
    """Whether it has the name of an old head."""
    return _JOURNAL.fullmatch(os.path.basename(path)) is not None


# --- archives ---


def archive_path(path: str, image_format: ImageFormat) -> str:
    """The archive of an image, with the suffix of the compressed format."""
    return path + SUFFIXES[image_format]


def all_forms(path: str) -> list[str]:
    """Where an image's memory may be: at its own path, and in each archive of it."""
    return [path, *(archive_path(path, image_format) for image_format in SUFFIXES)]


def find_archives(path: str) -> list[ImageFormat]:
    """The formats in which there are archives of this image (beside it, by name)."""
    return [image_format for image_format in SUFFIXES if os.path.isfile(archive_path(path, image_format))]


def split_archive_path(path: str) -> tuple[str, ImageFormat | None]:
    """The image's path and the archive's format, from either's path; the format is None for an image's own path."""
    for image_format, suffix in SUFFIXES.items():
        if path.endswith(suffix) and os.path.basename(path) != suffix:
            return path[: -len(suffix)], image_format
    return path, None


def image_of_archive(path: str) -> tuple[str, ImageFormat]:
    """The image's path and the archive's format, from the archive's path.

    :raises ImageFormatError: it is not the name of an archive.
    """
    image, image_format = split_archive_path(path)
    if image_format is None:
        raise ImageFormatError(path, "not the name of an archive of this collection")
    return image, image_format


def archive_partial_path(path: str, image_format: ImageFormat) -> str:
    """Where an image's archive is made."""
    return _beside(archive_path(path, image_format), "partial")


def archive_record_path(path: str) -> str:
    """Where it stands how far archiving has punched holes into an image."""
    return _beside(path, "archiving")


def expanding_path(path: str) -> str:
    """Where an image is made from its archive."""
    return _beside(path, "expanding")


def _beside(path: str, end: str) -> str:
    """A hidden name beside a file."""
    directory, name = os.path.split(path)
    return os.path.join(directory, f".{name}.{end}")
