# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who could have put an image where it is, or could lead its path elsewhere: what it may be trusted with for that."""

from __future__ import annotations

import errno
import os
import stat
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._errors import ImageUnsafeError
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_errors import image_errors
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_file import ImageFile
from ansible_collections.vmops.qemu.plugins.module_utils._image.place import nearest_existing
from ansible_collections.vmops.qemu.plugins.module_utils._safe_path import (
    why_replaceable,
    why_unsafe,
    why_unsafe_directory,
)
from ansible_collections.vmops.qemu.plugins.module_utils._user import user_name


def require_safe_image(path: str) -> None:
    """Check that nobody but root and the caller could have put the image there, so that what it says may be run.

    Only what is read after this check is covered by it. Who was handed a descriptor of it may have written to it all
    the same, which its voucher tells (:mod:`vouching`).

    :raises ImageUnsafeError: the file, a directory or a link on its way belongs to someone else, or may be written by
        others.
    :raises ImageError: one of them cannot be looked at.
    """
    _require_own_image(path, "could have written the image; the command that it records is not run")


def require_loadable_image(path: str, uid: int | None) -> None:
    """Check that nobody but root, the caller and QEMU's own user could have put the image there that QEMU will load.

    :param uid: the user as whom QEMU runs, where that is known.
    :raises ImageUnsafeError: another user could have.
    :raises ImageError: a part of its path cannot be looked at.
    """
    reason = _why_unsafe_image(path, (0, os.geteuid()) if uid is None else (0, os.geteuid(), uid))
    if reason:
        raise ImageUnsafeError(
            path,
            f"{reason}, so others could have written the image, and a QEMU"
            + ("" if uid is None else f" of the user {uid}")
            + " does not load it",
            cure="If it is the right one, copy it into a directory of root's, for root and with the mode 0600; or have"
            " QEMU run as the image's owner, and use launch: attach",
        )


def require_vouchable_image(path: str) -> None:
    """Check that nobody but root and the caller can put another image there than the one for which they vouch.

    :raises ImageUnsafeError: others can.
    :raises ImageError: a part of its path cannot be looked at.
    """
    _require_own_image(path, "can write the image, and it is not vouched for")


def _require_own_image(path: str, consequence: str) -> None:
    """As :func:`require_safe_image` and :func:`require_vouchable_image`.

    :param consequence: what others can do, and what is not done for that.
    """
    reason = _why_unsafe_image(path, (0, os.geteuid()))
    if reason:
        raise ImageUnsafeError(
            path,
            f"{reason}, so others {consequence}",
            cure="Copy it into a directory of root's, for root and with the mode 0600, and look at its launch there",
        )


def _why_unsafe_image(path: str, trusted: t.Collection[int]) -> str:
    with image_errors(path, "look at its owner"):
        return why_unsafe(path, trusted)


def why_unsafe_place(path: str, uid: int, mode: int) -> str:
    """Why the command in an image that is yet to be made would not be run by ``require_safe_image``, as a clause.

    :param path: the image's path; what of its directories is missing yet is made by the caller.
    :param uid: the owner that it shall have, -1 for the caller.
    :param mode: the permission bits that it shall have.
    :returns: the empty string where nothing forbids it.
    :raises ImageError: a directory cannot be looked at.
    """
    trusted = (0, os.geteuid())
    if uid not in (-1, *trusted):
        return f"the image shall belong to the user {uid}, who could write what a restore would run"
    if mode & 0o022:
        return f"the image shall have the mode {mode:04o}, with which others could write what a restore would run"
    directory = nearest_existing(os.path.dirname(path))
    with image_errors(directory, "look at its owner"):
        reason = why_unsafe_directory(directory, trusted)
        return reason and f"{reason}, so others could put another image there, whose command a restore would run"


def give_file(image: ImageFile, uid: int, gid: int) -> None:
    """Set owner and group of a file that was just made.

    Who can lead its path to another directory, such as one of programs that root runs, is not given a file there.

    :param uid: numeric owner, -1 for its own. :param gid: numeric group, -1 for its own.
    :raises ImageUnsafeError: the new owner, or another user, could have done that.
    :raises OSError: it cannot be set, or the file is not there any more.
    """
    directory = os.path.dirname(os.path.abspath(image.path))
    place = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        named = os.stat(os.path.basename(image.path), dir_fd=place, follow_symlinks=False)
        if not os.path.samestat(named, image.facts()):
            raise FileNotFoundError(errno.ENOENT, "removed or replaced by another process")
        if uid not in (-1, 0, os.geteuid(), os.fstat(place).st_uid):
            reason = why_replaceable(directory, (0, os.geteuid()))
            if reason:
                raise ImageUnsafeError(
                    image.path,
                    f"{reason}, so others could lead its path to any directory, and it is not given to the user {uid}",
                    cure="Give the path of a directory that only root can replace, or one of that user's own",
                )
        os.fchown(image.descriptor, uid, gid)
    finally:
        os.close(place)


def require_as_asked(image: ImageFile, uid: int, mode: int) -> None:
    """See that a file that was just made belongs to whom it shall, and is open to nobody else.

    A file server may take root for another user (root squash) and still say that a directory is root's; others give all
    their files one mode, and say nothing (CIFS, NTFS).

    :param uid: as in :func:`give_file`. :param mode: the permission bits that were set.
    :raises ImageUnsafeError: it is not so.
    :raises OSError: it cannot be looked at.
    """
    facts = image.facts()
    directory = os.path.dirname(os.path.abspath(image.path))
    trusted = (0, os.geteuid())
    owners = trusted if uid == -1 else (uid,)
    # Who saves into a directory of others all the same knows that they may write what is in it.
    if facts.st_uid not in owners and (uid != -1 or not why_unsafe_directory(directory, trusted)):
        raise ImageUnsafeError(
            image.path,
            f"a file that {user_name(os.geteuid())} makes there belongs to {user_name(facts.st_uid)}, who could write"
            " what a restore would run",
            cure="Save into a directory on a disk of this host, or have the file server leave root as it is"
            " (no_root_squash)",
        )
    given = stat.S_IMODE(facts.st_mode)
    if given & ~mode & 0o077:
        raise ImageUnsafeError(
            image.path,
            f"a file with the mode {mode:04o} has the mode {given:04o} there, with which others could read the guest's"
            " memory, or write it",
            cure="Save into a directory on another file system, or mount that one so that its files are for root alone"
            " (file_mode=, fmask=)",
        )
