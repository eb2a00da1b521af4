# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a process may do, as the kernel tells of it: its user, groups and capabilities; and a start with no more.

The words of a process are what it says of itself, and its status is what the kernel says of it. So a recorded command
is run with what the process had when it was saved, whatever its words ask for.

Sources: credentials(7), capabilities(7), proc_pid_status(5), setpriv(1), env(1).
"""

from __future__ import annotations

import dataclasses
import os
import pwd
import re
import shutil
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._bounded_read import read_bounded
from ansible_collections.vmops.qemu.plugins.module_utils._errors import LaunchError
from ansible_collections.vmops.qemu.plugins.module_utils._proc import read_status

_MAX_GROUPS = 65536

#: The user or group id (uid_t)-1, with which setreuid changes nothing: root would stay root.
_NO_CHANGE = 2**32 - 1

#: Where the tools are looked for.
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"

_CAPABILITY_KEYS = {"permitted": "CapPrm", "inheritable": "CapInh", "bounding": "CapBnd", "ambient": "CapAmb"}
_GROUPS = re.compile(r"[0-9]{1,10}(?: [0-9]{1,10})*")


@dataclasses.dataclass(frozen=True)
class Capabilities:
    """A process's sets, as masks with one bit for each capability."""

    permitted: int
    inheritable: int
    bounding: int
    ambient: int

    def __str__(self) -> str:
        """As :func:`parse_capabilities` reads it."""
        return " ".join(f"{name}={getattr(self, name):x}" for name in _CAPABILITY_KEYS)


def parse_capabilities(text: str) -> Capabilities | None:
    """What ``str()`` has made of them; None where it has not."""
    words = dict(word.partition("=")[::2] for word in text.split(" "))
    if words.keys() != _CAPABILITY_KEYS.keys() or not all(re.fullmatch("[0-9a-f]{1,16}", w) for w in words.values()):
        return None
    return Capabilities(**{name: int(word, 16) for name, word in words.items()})


@dataclasses.dataclass(frozen=True)
class Rights:
    """As whom a process runs, and with what; or, for a start, as whom it shall run.

    Groups or capabilities that are None are not known: then they are those of the user's account, and of a plain start.
    """

    uid: int
    gid: int
    #: The supplementary groups, without the primary one, sorted.
    groups: tuple[int, ...] | None = None
    no_new_privileges: bool = False
    capabilities: Capabilities | None = None
    #: Whether its real, effective and saved ids are one user, and one group.
    one_user: bool = True
    #: How many seccomp filters it has; None where the kernel does not count them (before Linux 5.9) and there are some.
    filters: int | None = 0

    @property
    def named_groups(self) -> str:
        """The supplementary groups as a record has them: numbers, joined by blanks."""
        return " ".join(map(str, self.groups or ()))


def parse_groups(text: str) -> tuple[int, ...] | None:
    """Numbers that are joined by blanks; None for what is no such list."""
    if not text:
        return ()
    if not _GROUPS.fullmatch(text):
        return None
    groups = tuple(sorted({int(word) for word in text.split(" ")}))
    return groups if len(groups) <= _MAX_GROUPS and groups[-1] < _NO_CHANGE else None


def rights_of(status: t.Mapping[str, str]) -> Rights | None:
    """What a process may do, by its status; None where the kernel does not say all of it."""
    try:
        uids, gids = ([int(word) for word in status[key].split()] for key in ("Uid", "Gid"))
        capabilities = {name: int(status[key], 16) for name, key in _CAPABILITY_KEYS.items()}
        count = status.get("Seccomp_filters")
        return Rights(
            uid=uids[1],
            gid=gids[1],
            groups=tuple(sorted({int(word) for word in status["Groups"].split()} - {gids[1]})),
            no_new_privileges=status["NoNewPrivs"] != "0",  # from Linux 4.10 on
            capabilities=Capabilities(**capabilities),
            one_user=len(set(uids)) == len(set(gids)) == 1,
            filters=int(count) if count is not None else 0 if status.get("Seccomp", "0") == "0" else None,
        )
    except (KeyError, ValueError, IndexError):
        return None


def read_rights(pid: int | str) -> Rights | None:
    """What a process may do; None where it has ended, or the kernel does not say all of it."""
    try:
        return rights_of(read_status(pid))
    except OSError:
        return None


def start_words(wanted: Rights | None, starter: Rights | None, cwd: str) -> list[str]:
    """The words before a program with which it is executed with these rights and no more; none where it is so already.

    The directory is entered as the user whom it shall run as, whose permission it is that counts.

    :param wanted: None for those of whoever starts it.
    :param starter: what whoever executes these words may do; None where that is not known, so that all is set.
    :param cwd: where it is started; the empty string for where its starter is.
    :raises LaunchError: there is no such user, or a tool is missing.
    """
    options = _options(wanted, starter) if wanted is not None else []
    if not options:
        return []
    setpriv, env = (_find_tool(name) for name in ("setpriv", "env"))
    # The second one changes nothing: env would take a program with an equals sign for a variable.
    directory = [env, f"--chdir={cwd}", setpriv, "--"] if cwd else []
    return [setpriv, *options, "--", *directory]


def access_words(rights: Rights) -> list[str]:
    """The words before a program that is run by root with a user's and its groups' permissions; raises LaunchError."""
    return [_find_tool("setpriv"), *_identity(rights), "--"]


def _find_tool(name: str) -> str:
    path = shutil.which(name, path=_PATH)
    if path is None:
        raise LaunchError(
            f"{name} is not on this host, and without it a QEMU cannot be started with its own rights alone",
            cure="Install util-linux and coreutils; or give the VM's command in launch: command",
        )
    return path


def _options(wanted: Rights, starter: Rights | None) -> list[str]:
    """setpriv's options from what the starter has to what is wanted."""
    options = []
    if starter is None or (starter.uid == 0 and _identity_of(wanted) != _identity_of(starter)):
        options += _identity(wanted)
    if wanted.no_new_privileges and not (starter and starter.no_new_privileges):
        options.append("--no-new-privs")
    if wanted.capabilities is not None:
        by_root = starter is None or starter.uid == 0
        options += _capability_options(wanted, wanted.capabilities, starter.capabilities if starter else None, by_root)
    return options


def _identity_of(rights: Rights) -> tuple[int, int, tuple[int, ...]]:
    return rights.uid, rights.gid, _groups(rights)


def _identity(rights: Rights) -> list[str]:
    numbers = _identity_of(rights)
    if not all(0 <= number < _NO_CHANGE for number in (*numbers[:2], *numbers[2])):
        raise LaunchError(
            f"The recorded user {rights.uid} or group {rights.gid} could not be one, so nothing is started as them",
            cure="The image is damaged or forged: restore an intact copy, or start the VM from its disks",
        )
    groups = f"--groups={','.join(map(str, numbers[2]))}" if numbers[2] else "--clear-groups"
    return [f"--reuid={rights.uid}", f"--regid={rights.gid}", groups]


def _groups(rights: Rights) -> tuple[int, ...]:
    """Its supplementary groups; those of the user's account where they are not known."""
    if rights.groups is not None:
        return rights.groups
    try:
        entry = pwd.getpwuid(rights.uid)
    except (KeyError, OverflowError):
        return ()
    return tuple(sorted({*os.getgrouplist(entry.pw_name, entry.pw_gid)} - {rights.gid}))


def _capability_options(wanted: Rights, sets: Capabilities, starter: Capabilities | None, by_root: bool) -> list[str]:
    """What takes away, and for the ambient set gives, what differs.

    A program that root executes is permitted what its bounding and inheritable sets have. So those of a root that has
    dropped a capability must be without it. One that another user executes is permitted what is ambient, and the
    set-user-ID programs that it runs what is in the bounding set.

    :param by_root: whether the starter is root, who alone can take from the bounding set, and give.
    """
    keep = sets.bounding & sets.permitted if wanted.uid == 0 else sets.bounding
    inheritable = sets.inheritable & sets.permitted if wanted.uid == 0 else sets.inheritable
    ambient = sets.ambient
    had = starter or Capabilities(-1, -1, _all_capabilities(), -1)
    options = []
    if by_root and had.bounding & ~keep:
        options.append(f"--bounding-set={','.join(f'-cap_{number}' for number in _bits(had.bounding & ~keep))}")
    if not by_root:
        inheritable, ambient = inheritable & had.inheritable, ambient & had.ambient
    if (by_root and ambient) or had.inheritable & ~inheritable:
        options.append(f"--inh-caps={_exactly(inheritable)}")
    # Those of root go with a change to another user.
    if (by_root and ambient) or had.ambient & ~ambient:
        options.append(f"--ambient-caps={_exactly(ambient)}")
    return options


def _exactly(mask: int) -> str:
    return ",".join(["-all", *(f"+cap_{number}" for number in _bits(mask))])


def _bits(mask: int) -> list[int]:
    return [number for number in range(64) if mask >> number & 1]


def _all_capabilities() -> int:
    """Those that this kernel knows."""
    try:
        return (2 << int(read_bounded("/proc/sys/kernel/cap_last_cap", 64))) - 1
    except (OSError, ValueError):
        return (1 << 41) - 1
