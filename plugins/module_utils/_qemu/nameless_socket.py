# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Reaching a QEMU whose QMP socket has lost its name.

A second QEMU that is started with the same words takes the names of the first one's sockets before it finds that the
disks are locked, and ends. The first one listens on, where no path leads: what has the path is another socket, of
nobody any more, or of the second QEMU. The kernel gives root the way back: from QEMU's own descriptor to the file to
which its socket is bound, and to that one can connect.

Sources: pidfd_getfd(2), unix(7), linux/sockios.h (SIOCUNIXFILE, Linux 4.2), proc_net(5).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import socket
import stat
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._bounded_read import read_up_to
from ansible_collections.vmops.qemu.plugins.module_utils._proc import descriptors_of, proc_path
from ansible_collections.vmops.qemu.plugins.module_utils._process_handle import open_pidfd, take_descriptor

#: An ioctl of UNIX sockets (linux/un.h).
_SIOCUNIXFILE = 0x89E0

#: What a line of /proc/net/unix says of a socket that listens (SO_ACCEPTCON), and bytes of it that are read.
_LISTENS = "00010000"
_MAX_TABLE = 16 * 1024 * 1024

#: Descriptors of a process that are looked at.
_MAX_DESCRIPTORS = 65536


class NamelessSocketError(Exception):
    """It cannot be reached; the text says why, as a clause."""

    def __init__(self, reason: str, sockets: int = 0) -> None:
        super().__init__(reason)
        #: How many sockets listen that were bound to its path and may be the process's; one may have the path still.
        self.sockets = sockets


@contextlib.contextmanager
def name_of_listener(pid: int, address: str, directory: str) -> t.Iterator[str]:
    """A path by which one can connect to the socket on which a process listens, whoever has its own path by now.

    Whoever connects must still see who answers there (:mod:`socket_end`): the process may have got the socket from
    another one.

    :param address: the absolute path to which the process bound it.
    :param directory: the directory from which the process counted relative paths.
    :raises NamelessSocketError: there is none, it has its own path still, or this user may not reach it.
    """
    number = _descriptor_of(pid, address, directory)
    copy = -1
    file = -1
    try:
        copy = _copy_of(pid, number)
        file = _file_of(copy)
    except OSError as exc:
        reason = "only root may reach it" if exc.errno in (errno.EPERM, errno.EACCES) else exc.strerror or str(exc)
        raise NamelessSocketError(reason, 1) from exc
    finally:
        if copy >= 0:
            os.close(copy)
    try:
        if _has_path(file, address):
            raise NamelessSocketError("it has its path")
        yield proc_path("self", f"fd/{file}")
    finally:
        os.close(file)


def _has_path(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError:
        return False


def _descriptor_of(pid: int, address: str, directory: str) -> int:
    """The process's descriptor of the socket; raises NamelessSocketError."""
    bound: set[int] = set()
    try:
        bound = {inode for inode, path in _listening(pid).items() if os.path.join(directory, path) == address}
        for link in descriptors_of(pid)[:_MAX_DESCRIPTORS]:
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                found = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(link))
                if found and int(found.group(1)) in bound:
                    return int(os.path.basename(link))
    except OSError as exc:
        reason = "only root may look for it" if exc.errno in (errno.EPERM, errno.EACCES) else exc.strerror or str(exc)
        raise NamelessSocketError(reason, len(bound)) from exc
    raise NamelessSocketError("it does not listen there any more")


def _listening(pid: int) -> dict[int, str]:
    """The UNIX sockets that listen in a process's network namespace: the paths they were bound to, by their inodes."""
    descriptor = os.open(proc_path(pid, "net/unix"), os.O_RDONLY | os.O_CLOEXEC)
    try:
        table = os.fsdecode(read_up_to(descriptor, _MAX_TABLE))
    finally:
        os.close(descriptor)
    found = {}
    for line in table.split("\n"):
        words = line.split(None, 7)
        if len(words) == 8 and words[3] == _LISTENS and words[6].isdigit():
            found[int(words[6])] = words[7]
    return found


def _copy_of(pid: int, number: int) -> int:
    """A copy of a process's descriptor; raises OSError."""
    process = open_pidfd(pid)
    try:
        return take_descriptor(process, number)
    finally:
        os.close(process)


def _file_of(descriptor: int) -> int:
    """A descriptor (O_PATH) of the file to which a UNIX socket is bound; raises OSError.

    The number of the request means another thing to what is no such socket, so that is seen to first.
    """
    if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK))
    own = socket.socket(fileno=os.dup(descriptor))
    try:
        if own.family != socket.AF_UNIX:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        return fcntl.ioctl(own.fileno(), _SIOCUNIXFILE)
    finally:
        own.close()
