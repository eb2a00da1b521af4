# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who could have put a file where it is: what an image says, or a program that it names, is run only from a safe path.

A path is walked as the kernel walks it, symbolic links included, since whoever can change one step of it decides what
stands at its end. A POSIX ACL needs no look of its own where the group may not write: what it grants to anyone beside
the owner is bounded by its mask, which the mode shows in the place of the group's bits (acl(5)).
"""

from __future__ import annotations

import errno
import os
import stat
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._private_group import may_write_by_group

#: As many symbolic links as the kernel follows in one path (path_resolution(7)).
_MAX_LINKS = 40


def why_unsafe(path: str, trusted: t.Collection[int]) -> str:
    """Why somebody else than the ``trusted`` users could have put the file there, as a clause; or the empty string.

    Every directory, symbolic link and the file itself must belong to a trusted user, and nobody else may write to
    them; a user's private group is nobody else. In a directory with the sticky bit (``/tmp``) others can add names,
    but not replace those of a trusted user; the file's own directory must not allow even that.

    :raises OSError: a part of the path is not there, or cannot be looked at.
    """
    reason, place = _walk(path, trusted)
    directory = os.path.dirname(place)
    return reason or _why_not_trusted(directory, os.lstat(directory), trusted, sticky=False)


def why_unsafe_directory(path: str, trusted: t.Collection[int]) -> str:
    """Why others than the ``trusted`` users could put a file into a directory, or another directory in its place.

    As a clause; or the empty string.

    :raises OSError: a part of the path is not there, or cannot be looked at.
    """
    reason, place = _walk(path, trusted)
    return reason or _why_not_trusted(place, os.lstat(place), trusted, sticky=False)


def why_replaceable(directory: str, trusted: t.Collection[int]) -> str:
    """Why somebody else than the ``trusted`` users could lead this path to another directory, as a clause; or nothing.

    What others can do in the directory itself is of no matter.

    :raises OSError: a part of the path is not there, or cannot be looked at.
    """
    reason, place = _walk(os.path.dirname(os.path.abspath(directory)), trusted)
    facts = os.lstat(directory)
    if reason or (facts.st_uid in trusted and not stat.S_ISLNK(facts.st_mode)):
        return reason
    if stat.S_ISLNK(facts.st_mode):
        return _walk(directory, trusted)[0]
    # In a directory of somebody trusted, which is no shared one, its owner cannot give its name to another one.
    return _why_not_trusted(place, os.lstat(place), trusted, sticky=False)


def open_in_root(root: str, path: str) -> int:
    """What is at a path for whoever has another root directory (``/proc/PID/root``); an O_PATH descriptor of it.

    What is in there may be others' making: its links are followed within that root, as the kernel does for its own.

    :raises OSError: there is nothing, or it may not be looked at.
    """
    flags = os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW
    places = [os.open(root, os.O_PATH | os.O_CLOEXEC | os.O_DIRECTORY)]
    waiting = path.split("/")[::-1]
    links = 0
    try:
        while waiting:
            name = waiting.pop()
            if name in ("", "."):
                continue
            if name == "..":
                if len(places) > 1:
                    os.close(places.pop())
                continue
            place = os.open(name, flags, dir_fd=places[-1])
            places.append(place)
            if not stat.S_ISLNK(os.fstat(place).st_mode):
                continue
            links += 1
            if links > _MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            target = os.readlink("", dir_fd=place)
            os.close(places.pop())
            if target.startswith("/"):
                while len(places) > 1:
                    os.close(places.pop())
            waiting.extend(target.split("/")[::-1])
        return os.dup(places[-1])
    finally:
        for place in places:
            os.close(place)


def _walk(path: str, trusted: t.Collection[int]) -> tuple[str, str]:
    """Why a step of the path is not to be trusted, or the empty string, and then the place where it ends."""
    place = "/"
    reason = _why_not_trusted(place, os.lstat(place), trusted)
    waiting = os.path.join(os.getcwd(), path).split("/")[::-1]
    links = 0
    while waiting and not reason:
        name = waiting.pop()
        if name in ("", "."):
            continue
        if name == "..":
            place = os.path.dirname(place)
            continue
        step = os.path.join(place, name)
        facts = os.lstat(step)
        reason = _why_not_trusted(step, facts, trusted)
        if not stat.S_ISLNK(facts.st_mode):
            place = step
            continue
        links += 1
        if links > _MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        target = os.readlink(step)
        place = "/" if target.startswith("/") else place
        waiting.extend(target.split("/")[::-1])
    return reason, place


def _why_not_trusted(place: str, facts: os.stat_result, trusted: t.Collection[int], sticky: bool = True) -> str:
    mode = stat.S_IMODE(facts.st_mode)
    if stat.S_ISLNK(facts.st_mode):  # whoever can replace it was found in its directory; its own mode says nothing
        return "" if facts.st_uid in trusted else f"the symbolic link {place} belongs to the user {facts.st_uid}"
    is_shared_safely = sticky and stat.S_ISDIR(facts.st_mode) and mode & stat.S_ISVTX
    if facts.st_uid in trusted and (not mode & 0o022 or is_shared_safely):
        return ""
    if facts.st_uid in trusted and not mode & 0o002 and not may_write_by_group(place, facts):
        return ""
    return f"{place} belongs to the user {facts.st_uid} and has the mode {mode:#o}"
