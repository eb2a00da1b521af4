# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What confines a QEMU and cannot be put around it again, and what it could do only before it gave rights up.

Its user, groups, capabilities and the lock on new privileges are given again as the kernel tells of them. A seccomp
filter and the label of a security module are not: they are compared with what the recorded start would give. The words
of a process are no proof of either.

Sources: proc_pid_status(5), seccomp(2), unix(7), Linux's Documentation/networking/tuntap.rst.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import stat
import subprocess
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._bounded_read import read_bounded
from ansible_collections.vmops.qemu.plugins.module_utils._errors import LaunchError
from ansible_collections.vmops.qemu.plugins.module_utils._proc import descriptors_of, proc_path, read_proc
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import command_line
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.file_names import file_names
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.launch import LAUNCH_ENVIRONMENT
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.manager import starter_pid
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import QemuProcess
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.rights import Rights, access_words, read_rights
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.unit import VmUnit
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.unix_sockets import (
    read_unix_sockets,
    socket_inodes,
)
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.verdict import Problem
from ansible_collections.vmops.qemu.plugins.module_utils._user import user_name

_BY_UNIT = "Run the VM as the main process of a systemd unit that sets it, which a restore then starts"

#: Descriptors that are looked at. A QEMU has some hundreds at most; a process that wants to keep us busy has more.
_MAX_DESCRIPTORS = 16384

#: Files that are tried, and those of them that a message names.
_MAX_FILES = 512
_MAX_SHOWN = 5

#: Seconds that trying them may take: one may be on a server that is away.
_TRY_TIMEOUT = 10.0

#: Prints the number of each pair of permissions and path of which one is missing.
_TRY_SCRIPT = """
n=0
while test $# -gt 0; do
    n=$((n + 1)) missing=
    case $1 in *r*) test -r "$2" || missing=1 ;; esac
    case $1 in *w*) test -w "$2" || missing=1 ;; esac
    case $1 in *x*) test -x "$2" || missing=1 ;; esac
    test -z "$missing" || echo "$n"
    shift 2
done
"""

#: Of a network interface that stays when nobody has it open (IFF_PERSIST).
_PERSISTS = 0x800


def confinement_problems(
    process: QemuProcess, unit: VmUnit, peer_pid: int | None = None, peer_uid: int | None = None
) -> list[Problem]:
    """What of a QEMU's confinement its recorded start would not give again, and what it could not do within it.

    It reads a few small files in /proc. For a QEMU that root has started and that is another user's now it runs a shell
    as that user. Never raises.

    :param unit: its unit; one that starts QEMU itself confines it again.
    :param peer_pid: who listens at its QMP server.
    :param peer_uid: as whom that one began to listen.
    """
    rights = process.rights
    if (unit.starts_vm and not unit.starter) or not process.visible:
        return []
    if rights is None:
        return [
            Problem(
                "process_unknown",
                f"this kernel does not say what its QEMU (pid {process.pid}) may do, and a restore must not let it"
                " do more",
                "Run the VM as the main process of a systemd unit, or restore it with launch: command",
            )
        ]
    # As process_problems has it: systemd, where it is what starts the VM again.
    starter = starter_pid()
    problems = [*_filter_problems(process, rights, unit, starter), *_label_problems(process.pid, starter)]
    if os.geteuid() != 0:
        problems += _group_problems(process, rights)
    was_root = command_line.changes_user(process.configuration.words) or (peer_pid, peer_uid) == (process.pid, 0)
    if rights.uid != 0 and os.geteuid() == 0:
        problems += _directory_problems(process, rights)
        problems += _root_only_problems(process, rights) if was_root else []
    if rights.uid != 0 and rights.capabilities and rights.capabilities.permitted & ~rights.capabilities.ambient:
        problems.append(
            Problem(
                "capabilities",
                f"the capabilities of its QEMU (pid {process.pid}) would be lost at a restore, as they are not ambient",
                _BY_UNIT,
                blocks=False,
            )
        )
    return problems


# --- filters and labels -----------------------------------------------------------------------------------------


def _filter_problems(process: QemuProcess, rights: Rights, unit: VmUnit, starter: int) -> list[Problem]:
    """Filters that neither QEMU's own words bring about (``-sandbox on``) nor who starts it."""
    own = int(_has_sandbox(process))
    if unit.starts_vm and unit.facts and unit.facts.has_filters:
        # Each setting makes some, and how many is systemd's own affair.
        return []
    others = read_rights(starter)
    given = others.filters if others else 0
    explained = own + (given or 0)
    if rights.filters is None:  # how many there are is not counted by this kernel
        explained = 1 if own or given is None else 0
    if (1 if rights.filters is None else rights.filters) <= explained:
        return []
    return [
        Problem(
            "seccomp_filter",
            f"its QEMU (pid {process.pid}) has a filter of system calls (seccomp) that its words do not ask for, and"
            " that cannot be read; a restore would start it without",
            "Start it with -sandbox on, or as the main process of a systemd unit with SystemCallFilter=",
        )
    ]


def _has_sandbox(process: QemuProcess) -> bool:
    """Whether QEMU makes a filter by itself, which is one, whatever else it is told of it."""
    return any(setting.keys.get("enable") == "on" for setting in process.configuration.of("sandbox"))


def _label_problems(pid: int, starter: int) -> list[Problem]:
    """A profile or context of a security module that a program which is started from here would not have."""
    own = _label(pid)
    # What is not confined needs nothing, and a profile that is named by the program comes with it.
    if not own or "unconfined" in own or own in (_label(starter), _label(os.getpid())):
        return []
    with contextlib.suppress(OSError):
        if own.partition(" (")[0] == os.readlink(proc_path(pid, "exe")):
            return []
    return [
        Problem(
            "security_label",
            f"its QEMU (pid {pid}) is confined by {own[:200]!r} (AppArmor, SELinux), which a restore would not give it",
            "Run the VM as the main process of a systemd unit with AppArmorProfile= or SELinuxContext=",
        )
    ]


def _label(pid: int) -> str:
    with contextlib.suppress(OSError):
        label = read_proc(pid, "attr/current").rstrip(b"\0\n").decode("utf-8", "replace")
        return "".join(char if char.isprintable() else "?" for char in label)
    return ""


def _group_problems(process: QemuProcess, rights: Rights) -> list[Problem]:
    """Another user than root starts it with its own groups."""
    own = read_rights("self")
    if own is None or own.uid != rights.uid or (own.gid, own.groups) == (rights.gid, rights.groups):
        return []
    return [
        Problem(
            "groups",
            f"its QEMU (pid {process.pid}) has other groups than this task, and only root could give them again",
            "Run the task as root (become), or with these groups",
            blocks=False,
        )
    ]


def _directory_problems(process: QemuProcess, rights: Rights) -> list[Problem]:
    """It is started where it was started, if its user may go there."""
    places = [process.cwd]
    while places[-1] != os.path.dirname(places[-1]):
        places.append(os.path.dirname(places[-1]))
    try:
        if command_line.daemonizes(process.argv) or all(os.lstat(place).st_mode & stat.S_IXOTH for place in places):
            return []
        if not _missing({process.cwd: "x"}, rights):
            return []
    except (OSError, LaunchError, subprocess.SubprocessError, ValueError):
        pass  # what is not known is not said to be open
    name = user_name(rights.uid)
    return [
        Problem(
            "working_directory",
            f"its QEMU (pid {process.pid}) was started in {process.cwd}, which {name} may not enter, and a restore"
            f" starts it there as {name}",
            f"Let {name} enter that directory, or start the VM in another one",
        )
    ]


# --- what only root could open ----------------------------------------------------------------------------------


def _root_only_problems(process: QemuProcess, rights: Rights) -> list[Problem]:
    """What root opened for a QEMU that then gave root up, and its user may not."""
    needed = _needed_files(process)
    name = user_name(rights.uid)
    try:
        missing = _missing(needed, rights)
    except (OSError, LaunchError, subprocess.SubprocessError, ValueError) as exc:
        missing = [f"what it has open, of which this could not be found out ({exc})"]
    missing += _missing_interfaces(process, rights)
    if not missing:
        return []
    more = f" and {len(missing) - _MAX_SHOWN} more" if len(missing) > _MAX_SHOWN else ""
    return [
        Problem(
            "opened_as_root",
            f"its QEMU (pid {process.pid}) was started by root and is {name}'s now; a restore starts it as {name}, who"
            f" may not use what root had opened for it: {', '.join(missing[:_MAX_SHOWN])}{more}",
            f"Give that to {name} (chown, chgrp), or start the VM by a systemd unit with User={name}",
        )
    ]


def _needed_files(process: QemuProcess) -> dict[str, str]:
    """What the process has open, where it listens, and what its configuration names, and the permissions (``rwx``)."""
    found: dict[str, str] = {}
    sockets = socket_inodes(process.pid)
    with contextlib.suppress(OSError):
        for place in itertools.islice(descriptors_of(process.pid), _MAX_DESCRIPTORS):
            with contextlib.suppress(OSError):
                link, number = os.readlink(place), os.path.basename(place)
                # The first three are those of whoever starts it.
                if int(number) > 2 and link.startswith("/") and not re.match(r"/memfd:|/dev/(?:pts/|tty)", link):
                    facts = os.stat(place)
                    kinds = (stat.S_ISREG, stat.S_ISBLK, stat.S_ISCHR)
                    if any(kind(facts.st_mode) for kind in kinds) and facts.st_nlink:
                        found[link] = found.get(link, "") + _permissions(process.pid, number)
    for entry in read_unix_sockets(process.pid):
        if not entry.listens or entry.inode not in sockets:
            continue
        # QEMU removes the one that is there, and makes it anew.
        directory = os.path.dirname(os.path.join(process.cwd, entry.path))
        found[directory] = found.get(directory, "") + "wx"
    for name in file_names(process.configuration.words):
        path = os.path.join(process.cwd, name)
        if "\0" not in path and os.path.isfile(path):
            found.setdefault(path, "r")
    return found


def _permissions(pid: int, number: str) -> str:
    """Those with which a descriptor was opened."""
    flags = re.search(rb"^flags:\s*([0-7]+)", read_proc(pid, f"fdinfo/{number}"), re.MULTILINE)
    mode = int(flags.group(1), 8) & os.O_ACCMODE if flags else os.O_RDWR
    return {os.O_RDONLY: "r", os.O_WRONLY: "w"}.get(mode, "rw")


def _missing(needed: t.Mapping[str, str], rights: Rights) -> list[str]:
    """The paths for which the user lacks a permission; raises what a process does that cannot be run."""
    if len(needed) > _MAX_FILES:
        return [f"more than {_MAX_FILES} files"]
    pairs = [word for path, permissions in needed.items() for word in (permissions, path)]
    done = subprocess.run(
        [*access_words(rights), "/bin/sh", "-c", _TRY_SCRIPT, "sh", *pairs],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        cwd="/",
        env=LAUNCH_ENVIRONMENT,
        timeout=_TRY_TIMEOUT,
        check=True,
    )
    return [list(needed)[int(number) - 1] for number in done.stdout.split()]


def _missing_interfaces(process: QemuProcess, rights: Rights) -> list[str]:
    """Network interfaces that only root may make, or use, and scripts that root ran for them."""
    found = []
    names: set[str] = set()
    with contextlib.suppress(OSError):
        for entry in itertools.islice(os.listdir(proc_path(process.pid, "fdinfo")), _MAX_DESCRIPTORS):
            with contextlib.suppress(OSError):
                text = read_proc(process.pid, f"fdinfo/{entry}").decode("utf-8", "replace")
                names.update(re.findall(r"^iff:\s*([^\s/]+)$", text, re.MULTILINE))
    groups = {rights.gid, *(rights.groups or ())}
    for name in sorted(names):
        persists, owner, group = (_interface_number(name, key) for key in ("tun_flags", "owner", "group"))
        if not persists & _PERSISTS:
            found.append(f"the network interface {name}, which goes with QEMU, and which only root may make")
        elif owner not in (-1, rights.uid) or (group != -1 and group not in groups):
            found.append(f"the network interface {name}")
    for setting in process.configuration.of("netdev", "nic", "net"):
        keys = setting.keys
        if keys.get("type") == "tap" and keys.get("script") != "no" and not keys.keys() & {"fd", "fds", "helper"}:
            found.append(f"what the script {keys.get('script', '/etc/qemu-ifup')} does for its network")
    return found


def _interface_number(name: str, key: str) -> int:
    """What the kernel says of a tap interface; 0, which is root's, where it says nothing."""
    with contextlib.suppress(OSError, ValueError):
        return int(read_bounded(f"/sys/class/net/{name}/{key}", 64), 0)
    return 0
