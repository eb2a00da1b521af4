# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The network namespace in which a QEMU runs: whether it outlives QEMU, by which name, and how it is entered again.

A namespace outlives its processes where it is mounted, as ``ip netns`` does it in ``/run/netns``, and others elsewhere.
Such a name means the same network after the host's reboot, when whoever makes the network has made it again. What
``ip netns exec`` runs has mounts of its own, too, which it makes each time: a ``/sys`` that shows the namespace, and
the files of ``/etc/netns/NAME`` in the place of those of ``/etc``.

Sources: network_namespaces(7), proc_pid_mountinfo(5), ip-netns(8), nsenter(1), unshare(1); iproute2's lib/namespace.c.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._errors import LaunchError
from ansible_collections.vmops.qemu.plugins.module_utils._proc import Pid, descriptors_of, proc_path, read_proc
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.resources import find_tool
from ansible_collections.vmops.qemu.plugins.module_utils._safe_path import why_unsafe

#: In the place of a path: a network namespace of QEMU's own, without any network.
FRESH = "none"

_NAMED = "/run/netns"

#: Where programs and their data are, of which a process does not say what it has read.
_SYSTEM = ("/usr", "/etc", "/lib", "/bin", "/sbin", "/opt", "/dev", "/proc", "/var", "/boot", "/nix", "/snap")

#: Where nothing of that is: what containers of others and tests mount comes and goes.
_PASSING = ("/var/tmp/", "/var/lib/docker/", "/var/lib/containers/")

#: Bytes of a list of mounts.
_MAX_MOUNTS = 4 * 1024 * 1024


@dataclasses.dataclass(frozen=True)
class _Mount:
    parent: str
    device: str
    root: str
    point: str
    kind: str


def name_of(pid: int, starter: int) -> str:
    """Where a process's network namespace is mounted, so that it outlives the process; the empty string for nowhere.

    :param starter: a process whose mounts are those of whoever will start it again.
    """
    try:
        number = os.stat(proc_path(pid, "ns/net")).st_ino
        mounts = _mounts(starter)
    except OSError:
        return ""
    held = [mount.point for mount in mounts.values() if (mount.kind, mount.root) == ("nsfs", f"net:[{number}]")]
    safe = [point for point in held if not _why_not_usable(point)]
    return min(safe, key=lambda point: (os.path.dirname(point) != _NAMED, point), default="")


def has_mounts_of_ip(pid: int, starter: int, namespace: str, words: t.Sequence[str]) -> bool:
    """Whether a process's mounts differ from the usual ones by nothing but what ``ip netns exec`` makes.

    What was mounted since where none of its files are is no difference: where mounts are not shared, it is not told.

    :param namespace: where its network namespace is mounted.
    :param words: its configuration.
    """
    if os.path.dirname(namespace) != _NAMED:
        return False
    try:
        own, usual = _mounts(pid), _mounts(starter)
        numbers: dict[t.Any, int] = {}
        own_places, usual_places = _places(own, numbers), _places(usual, numbers)
        differing = own_places ^ usual_places
        by_number = {number: place for place, number in numbers.items()}
        if not any(by_number[number][0] == "/sys" for number in differing):
            return False
        files = f"/etc/netns/{os.path.basename(namespace)}"
        for number in differing:
            point = by_number[number][0]
            if point == "/sys" or point.startswith("/sys/"):
                continue
            if number in usual_places and not _is_of_use(pid, point, words):
                continue
            name = os.path.basename(point)
            if os.path.dirname(point) != "/etc" or not os.path.samestat(
                os.stat(proc_path(pid, f"root{point}")), os.stat(f"{files}/{name}")
            ):
                return False
    except (OSError, ValueError):
        return False
    return True


def _is_of_use(pid: int, point: str, words: t.Sequence[str]) -> bool:
    """Whether a program, or what a process has open or is told of, may be below a directory; raises OSError."""
    if point.rstrip("/") in ("", "/tmp", "/home", "/srv", "/mnt", "/run"):
        return True
    if point.startswith(_SYSTEM) and not point.startswith(_PASSING):
        return True
    links = [os.readlink(proc_path(pid, name)) for name in ("cwd", "exe")]
    for place in descriptors_of(pid):
        with contextlib.suppress(FileNotFoundError):  # it was just closed
            links.append(os.readlink(place))
    below = tuple(link for link in links if f"{link}/".startswith(f"{point}/"))
    # Whatever else leads there, by a link say, has the same file as its end, which is open.
    return bool(below) or any(point in word for word in words)


def _mounts(pid: Pid) -> dict[str, _Mount]:
    """The mounts that a process sees, by their numbers; raises OSError."""
    found = {}
    for line in read_proc(pid, "mountinfo", _MAX_MOUNTS).decode("utf-8", "surrogateescape").splitlines():
        fields, _dash, rest = line.partition(" - ")
        words = fields.split(" ")
        if len(words) >= 5 and rest:
            found[words[0]] = _Mount(words[1], words[2], _plain(words[3]), _plain(words[4]), rest.split(" ")[0])
    return found


def _plain(text: str) -> str:
    """A path without the kernel's escapes of blanks."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found.group(1), 8)), text)


def _places(mounts: t.Mapping[str, _Mount], numbers: dict[t.Any, int]) -> set[int]:
    """A number for each mount with all that it is mounted on: the same for mounts by which a path is the same file.

    :param numbers: those that were given already, by what they stand for.
    """
    known: dict[str, int] = {}

    def number_of(key: str) -> int:
        chain = []
        while key in mounts and key not in known:
            chain.append(key)
            known[key] = 0
            key = mounts[key].parent
        below = known.get(key, 0)
        for each in reversed(chain):
            mount = mounts[each]
            place = (mount.point, mount.root, mount.device, below)
            below = known[each] = numbers.setdefault(place, len(numbers) + 1)
        return below

    # Namespaces that are mounted have no files.
    return {number_of(key) for key, mount in mounts.items() if mount.kind != "nsfs"}


def _why_not_usable(path: str) -> str:
    """Why nothing may be started in what is mounted there, as a clause; or the empty string."""
    try:
        reason = why_unsafe(path, {0})
        if not reason and os.stat(path).st_dev != os.stat(proc_path("self", "ns/net")).st_dev:
            reason = "it is no namespace any more"
    except (OSError, ValueError) as exc:
        return f"it is not there ({getattr(exc, 'strerror', None) or exc})"
    return reason


def namespace_words(path: str, mounts: bool) -> list[str]:
    """The words before a program with which root executes it in a network namespace; none for that of the host.

    :param path: where it is mounted, or ``FRESH``; the empty string for that of the host.
    :param mounts: whether with the mounts that ``ip netns exec`` makes.
    :raises LaunchError: it is not there, or cannot be entered.
    """
    if not path:
        return []
    if os.geteuid() != 0:
        raise LaunchError(
            f"The VM ran in a network namespace of its own ({path}), which only root can enter again",
            cure="Run the task as root (become)",
        )
    if path == FRESH:
        return [_tool("unshare"), "--net", "--"]
    reason = _why_not_usable(path)
    if reason:
        name = os.path.basename(path)
        raise LaunchError(
            f"The VM ran in the network namespace {name}, and nothing is started in {path}: {reason}",
            cure=f"Make it again with its interfaces (ip netns add {name}), then restore",
        )
    if mounts and os.path.dirname(path) == _NAMED:
        return [_tool("ip"), "netns", "exec", os.path.basename(path)]
    return [_tool("nsenter"), f"--net={path}", "--"]


def _tool(name: str) -> str:
    found = find_tool(name)
    if not found:
        raise LaunchError(
            f"{name} is not on this host, and without it nothing is started in another network namespace",
            cure="Install iproute2 and util-linux",
        )
    return found
