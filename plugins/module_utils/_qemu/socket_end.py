# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The other end of a connected socket: which user opened it, which process began to listen, and who holds it now.

Nothing of it is what the other side says of itself: the kernel tells. Where it does not tell (an old kernel, another
host, a PID namespace that is not ours) it is unknown, which is None.

Sources: unix(7), sock_diag(7), linux/unix_diag.h, linux/inet_diag.h.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import socket
import struct

from ansible_collections.vmops.qemu.plugins.module_utils._proc import descriptors_of, read_stat

#: SO_PEERPIDFD (Linux 6.5), which Python has no name for.
_SO_PEERPIDFD = 77

#: netlink(7) and sock_diag(7).
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST = 1
_ANY_COOKIE = (0xFFFFFFFF, 0xFFFFFFFF)
_ALL_STATES = 0xFFFFFFFF

#: Seconds for the kernel's answer, which is there at once.
_TIMEOUT = 1.0

_UDIAG_SHOW_VFS = 2
_UDIAG_SHOW_PEER = 4
_UNIX_DIAG_VFS = 1
_UNIX_DIAG_PEER = 2
_UNIX_ANSWER = struct.Struct("=4B3I")
_INET_ANSWER = struct.Struct("=4B48s5I")


@dataclasses.dataclass(frozen=True)
class SocketEnd:
    """The other end of a connection."""

    #: The process that began to listen, by its number, and its time of start (``birth_of``), where it still runs.
    listener: int | None = None
    listener_birth: int | None = None
    #: The user of whoever opened it: who began to listen on a UNIX socket, who accepted a connection over TCP.
    uid: int | None = None
    #: The inode by which ``/proc/PID/fd`` names this end in each process that holds it.
    inode: int | None = None

    def is_held_by(self, pid: int) -> bool | None:
        """Whether a process has this end open; None where that cannot be told."""
        if self.inode is None:
            return None
        wanted = f"socket:[{self.inode}]"
        try:
            links = descriptors_of(pid)
        except OSError:
            return None
        for link in links:
            with contextlib.suppress(OSError):  # closed meanwhile
                if os.readlink(link) == wanted:
                    return True
        return False


def other_end(connection: socket.socket) -> SocketEnd:
    """Ask the kernel of a connection that was accepted: before that, nobody holds its other end."""
    if connection.family != socket.AF_UNIX:
        uid, inode = _tcp_end(connection)
        return SocketEnd(uid=uid, inode=inode)
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII"))
    pid, uid, _gid = struct.unpack("iII", credentials)
    inode = unix_peer(os.fstat(connection.fileno()).st_ino)
    if not pid:  # of a PID namespace that is not ours
        return SocketEnd(uid=uid, inode=inode)
    return SocketEnd(pid, _birth(connection, pid), uid, inode)


def _birth(connection: socket.socket, pid: int) -> int | None:
    """When the process that began to listen was started, if it is alive: its number may be another one's by now."""
    try:
        descriptor = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError:
        return None
    try:
        birth = read_stat(pid).start_ticks
        # It is readable from its end on, and one that had ended may have left its number to the one looked at.
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return None if poll.poll(0) else birth
    except OSError:
        return None
    finally:
        os.close(descriptor)


def unix_peer(own_inode: int) -> int | None:
    """The inode of the UNIX socket that is connected to the one with this inode, in this network namespace."""
    found = _unix_attribute(own_inode, _UDIAG_SHOW_PEER, _UNIX_DIAG_PEER)
    return int(struct.unpack_from("=I", found)[0]) or None if len(found) >= 4 else None


def bound_file(inode: int) -> tuple[int, int] | None:
    """The file to which the UNIX socket with this inode was bound: its device, and the lower half of its inode."""
    found = _unix_attribute(inode, _UDIAG_SHOW_VFS, _UNIX_DIAG_VFS)
    if len(found) < 8:
        return None
    file, device = struct.unpack_from("=II", found)
    return os.makedev(device >> 20, device & 0xFFFFF), file  # as the kernel has it (MAJOR, MINOR in kdev_t.h)


def _unix_attribute(inode: int, show: int, wanted: int) -> bytes:
    """What the kernel says of a UNIX socket of this network namespace; empty where it does not."""
    answer = _ask(struct.pack("=BBHIIIII", socket.AF_UNIX, 0, 0, _ALL_STATES, inode, show, *_ANY_COOKIE))
    if len(answer) < _UNIX_ANSWER.size or _UNIX_ANSWER.unpack_from(answer)[4] != inode:
        return b""
    position = _UNIX_ANSWER.size
    while position + 4 <= len(answer):
        size, kind = struct.unpack_from("=HH", answer, position)
        if kind == wanted:
            return answer[position + 4 : position + size]
        position += max(4, (size + 3) & ~3)
    return b""


def _tcp_end(connection: socket.socket) -> tuple[int | None, int | None]:
    """User and inode of the other end, where it is on this host, in the same network namespace."""
    try:
        own, other = connection.getsockname(), connection.getpeername()
        hosts = [socket.inet_pton(connection.family, end[0].partition("%")[0]).ljust(16, b"\0") for end in (other, own)]
        ports = struct.pack("!HH", other[1], own[1])
    except (OSError, ValueError):
        return None, None
    head = struct.pack("=BBBBI", connection.family, socket.IPPROTO_TCP, 0, 0, _ALL_STATES)
    answer = _ask(head + ports + b"".join(hosts) + struct.pack("=III", 0, *_ANY_COOKIE))
    if len(answer) < _INET_ANSWER.size:
        return None, None
    *_head, place, _expires, _received, _sent, uid, inode = _INET_ANSWER.unpack_from(answer)
    if place[:4] != ports or not inode:
        return None, None
    return int(uid), int(inode)


def _ask(request: bytes) -> bytes:
    """The kernel's answer about one socket, without its header; empty where there is none."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as netlink:
            netlink.settimeout(_TIMEOUT)
            netlink.send(struct.pack("=IHHII", 16 + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 1, 0) + request)
            answer = netlink.recv(64 * 1024)
    except OSError:
        return b""
    return answer[16:] if len(answer) > 16 and struct.unpack_from("=IH", answer)[1] == _SOCK_DIAG_BY_FAMILY else b""
