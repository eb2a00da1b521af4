# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""UNIX sockets as the kernel lists them: who listens at a path, and who holds the other end of a process's connections.

Nobody is connected to in order to find that out: a server for one client ends with its first one (swtpm, qemu-nbd).

Sources: unix(7), proc_pid_net(5), sock_diag(7).
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import re
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._bounded_read import TooLongError
from ansible_collections.vmops.qemu.plugins.module_utils._proc import all_pids, descriptors_of, read_proc
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.socket_end import bound_file, unix_peer

#: Bytes of the list of UNIX sockets.
_MAX_SOCKETS = 4 * 1024 * 1024

#: Descriptors of a process that are looked at; one that wants to keep us busy has more.
_MAX_DESCRIPTORS = 16384

#: Of a socket that waits for connections (__SO_ACCEPTCON), in /proc/net/unix.
_LISTENS = 0x10000

_SOCKET = re.compile(r"socket:\[(\d+)\]")


@dataclasses.dataclass(frozen=True)
class UnixSocket:
    """A UNIX socket that is bound to a path."""

    inode: int
    #: As whoever bound it has given it: it may be relative to a directory that is not known.
    path: str
    listens: bool


def read_unix_sockets(pid: int | str = "self") -> list[UnixSocket]:
    """Those with a path in the network namespace of a process; none where they cannot be read."""
    try:
        text = read_proc(pid, "net/unix", _MAX_SOCKETS)
    except TooLongError as exc:
        text = exc.beginning
    except OSError:
        return []
    found = []
    for line in text.decode("utf-8", "surrogateescape").split("\n")[1:]:
        fields = re.split(" +", line, maxsplit=7)
        if len(fields) == 8 and not fields[7].startswith("@"):
            with contextlib.suppress(ValueError):
                found.append(UnixSocket(int(fields[6]), fields[7], bool(int(fields[3], 16) & _LISTENS)))
    return found


def socket_inodes(pid: int) -> set[int]:
    """The sockets that a process has open; none where that cannot be told."""
    found = set()
    with contextlib.suppress(OSError):
        for place in itertools.islice(descriptors_of(pid), _MAX_DESCRIPTORS):
            with contextlib.suppress(OSError):  # closed meanwhile
                match = _SOCKET.fullmatch(os.readlink(place))
                if match:
                    found.add(int(match.group(1)))
    return found


def leads_to(path: str, bound: UnixSocket) -> bool:
    """Whether a socket is the one at an absolute path: whoever bound it may have given it another name.

    It is told by the file; by the names only where the kernel does not say that.
    """
    file = bound_file(bound.inode)
    if file is None:
        return os.path.isabs(bound.path) and os.path.realpath(path) == os.path.realpath(bound.path)
    try:
        facts = os.stat(path)
    except (OSError, ValueError):
        return False
    return file == (facts.st_dev, facts.st_ino & 0xFFFFFFFF)


def servers_behind(pid: int) -> list[tuple[UnixSocket, int]]:
    """The other ends of a process's connections, where they have a path, and the processes that hold them.

    Only those that this user may look at, in the same network namespace.
    """
    sockets = {entry.inode: entry for entry in read_unix_sockets(pid)}
    peers = {peer for peer in map(unix_peer, socket_inodes(pid)) if peer in sockets}
    found: dict[int, int] = {}
    for other in all_pids() if peers else []:
        if other != pid:
            for inode in peers & socket_inodes(other):
                found.setdefault(inode, other)
    return [(sockets[inode], other) for inode, other in found.items()]


def server_at(path: str, behind: t.Iterable[tuple[UnixSocket, int]]) -> int | None:
    """Which of the processes that :func:`servers_behind` gives serves at a path."""
    return next((pid for entry, pid in behind if leads_to(path, entry)), None)


def listeners_at(path: str) -> list[int]:
    """The processes that hold a socket which waits for connections at a path, as far as this user sees them."""
    wanted = {entry.inode for entry in _listening_at(path)}
    return [pid for pid in all_pids() if wanted & socket_inodes(pid)] if wanted else []


def is_listened_at(path: str) -> bool:
    """Whether somebody in this network namespace waits for connections at a path."""
    return bool(_listening_at(path))


def _listening_at(path: str) -> list[UnixSocket]:
    # What is not even bound to the same last name is another one, unless a link leads to it.
    names = {os.path.basename(path), os.path.basename(os.path.realpath(path))}
    candidates = [entry for entry in read_unix_sockets() if entry.listens and os.path.basename(entry.path) in names]
    return [entry for entry in candidates if leads_to(path, entry)]
