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

from ansible_collections.vmops.qemu.plugins.module_utils._bounded_read import TooLongError
from ansible_collections.vmops.qemu.plugins.module_utils._proc import all_pids, descriptors_of, read_proc
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.socket_end import unix_peer

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


def leads_to(path: str, bound: str) -> bool:
    """Whether a socket that was bound to one name may be the one at an absolute path."""
    if not os.path.isabs(bound):
        return path == bound or path.endswith("/" + os.path.normpath(bound).lstrip("./"))
    return path == bound or os.path.realpath(path) == os.path.realpath(bound)


def servers_behind(pid: int) -> dict[str, int]:
    """The processes at the other ends of a process's connections, by the paths to which they had bound their sockets.

    Only those that this user may look at, in the same network namespace.
    """
    paths = {entry.inode: entry.path for entry in read_unix_sockets(pid)}
    peers = {peer for peer in map(unix_peer, socket_inodes(pid)) if peer in paths}
    found: dict[str, int] = {}
    if not peers:
        return found
    for other in all_pids():
        if other != pid:
            for inode in peers & socket_inodes(other):
                found.setdefault(paths[inode], other)
    return found


def listeners_at(path: str) -> list[int]:
    """The processes that hold a socket which waits for connections at a path, as far as this user sees them."""
    wanted = {entry.inode for entry in read_unix_sockets() if entry.listens and leads_to(path, entry.path)}
    return [pid for pid in all_pids() if wanted & socket_inodes(pid)] if wanted else []


def is_listened_at(path: str) -> bool:
    """Whether somebody in this network namespace waits for connections at a path."""
    return any(entry.listens and leads_to(path, entry.path) for entry in read_unix_sockets())
