# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Connecting to the socket of a monitor, at a path, in the abstract namespace or at a port."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    MonitorBusyError,
    MonitorError,
    MonitorMissingError,
    MonitorProtocolError,
)
from ansible_collections.vmops.qemu.plugins.module_utils._proc import proc_path
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.nameless_socket import NamelessSocketError
from ansible_collections.vmops.qemu.plugins.module_utils._safe_path import open_in_root

Reach = t.Callable[[], t.ContextManager[str]]
"""Gives a path by which one can connect to a UNIX socket to which its own does not lead from here."""


async def open_socket(
    address: str,
    timeout: float,
    busy: MonitorBusyError,
    noun: str = "QMP socket",
    reach: Reach | None = None,
    where: str = "",
) -> socket.socket:
    """A connected, non-blocking socket.

    :param busy: the error where others wait for it already.
    :param noun: what it is, for messages.
    :param reach: what gives another path for a UNIX socket, as one that leads to it; None for its own.
    :param where: what is to be added to its path in messages.
    :raises MonitorMissingError: nothing listens there.
    :raises MonitorProtocolError: it is no socket.
    :raises MonitorError: it may not be used.
    """
    host, colon, port = address.rpartition(":")
    if "/" in address or address.startswith("\0") or not (colon and port.isdigit()):
        return _open_unix_socket(address, busy, noun, reach, where)
    loop = asyncio.get_running_loop()
    missing = MonitorMissingError(
        f"Nothing answers at the {noun} {address}",
        cure="Check that the VM runs and that its command line names this address",
    )
    try:
        infos = await loop.getaddrinfo(host.strip("[]") or "localhost", int(port), type=socket.SOCK_STREAM)
    except OSError as exc:
        raise missing from exc
    problem: Exception | None = None
    # A name may stand for several addresses (localhost for ::1 and 127.0.0.1), of which QEMU listens at one.
    for family, _type, _protocol, _name, place in infos:
        connection = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        connection.setblocking(False)
        try:
            await asyncio.wait_for(loop.sock_connect(connection, place), timeout)
            return connection
        except (OSError, asyncio.TimeoutError) as exc:
            problem = exc
            connection.close()
        except BaseException:  # a cancellation, too: the connection is nobody's yet
            connection.close()
            raise
    raise missing from problem


def _open_unix_socket(path: str, busy: MonitorBusyError, noun: str, reach: Reach | None, where: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    connection.setblocking(False)
    shown = shown_address(path) + where
    try:
        # A UNIX connect either succeeds at once or fails at once: EAGAIN is a full backlog, which on a monitor
        # means that others wait already. (asyncio's sock_connect takes EAGAIN for "in progress".)
        with reach() if reach else reachable(path) as name:
            connection.connect(name)
    except NamelessSocketError:
        connection.close()
        raise
    except OSError as exc:
        connection.close()
        if exc.errno == errno.EAGAIN:
            raise busy from exc
        if exc.errno in (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR):
            what = "does not exist" if exc.errno != errno.ECONNREFUSED else "has no QEMU behind it any more"
            raise MonitorMissingError(
                f"The {noun} {shown} {what}",
                cure="Check that the VM runs and that its command line names this path",
            ) from exc
        if exc.errno in (errno.EACCES, errno.EPERM):
            raise MonitorError(
                f"This user may not use the {noun} {shown}",
                cure="Run the task as root or as the VM's user (become)",
            ) from exc
        raise MonitorProtocolError(
            f"{shown} is not a socket of a monitor ({exc.strerror or exc})", cure="Name the VM's QMP socket"
        ) from exc
    return connection


@contextlib.contextmanager
def reachable(path: str, root_of: int | None = None) -> t.Iterator[str]:
    """A name for the socket that fits sun_path (108 bytes), also for a long path.

    :param root_of: the process in whose root directory, rather than ours, the path is looked for.
    """
    if root_of is not None and not path.startswith("\0"):
        found = open_in_root(proc_path(root_of, "root"), path)
    elif len(os.fsencode(path)) < 108:
        yield path
        return
    else:
        found = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{found}"
    finally:
        os.close(found)


def shown_address(address: str) -> str:
    """The address for messages: one of the abstract namespace begins with "@", as in ss and /proc/net/unix."""
    return address.replace("\0", "@")
