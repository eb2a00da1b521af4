# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The names of files on a QEMU's command line, and the directory from which the relative ones count.

That is the one in which QEMU was started. One that goes into the background (``-daemonize``) or into a jail
(``-run-with chroot=``) has left it. It is found again by what QEMU has open: of a file ``disk.qcow2`` the kernel says
``/vm/disk.qcow2``.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import stat
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._proc import descriptors_of, without_deleted
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import command_line

#: Descriptors that are looked at; a process that wants to keep us busy has more.
_MAX_DESCRIPTORS = 16384


def left_directory(argv: t.Sequence[str]) -> bool:
    """Whether a QEMU leaves the directory in which it is started, although its command line has names in it."""
    return bool((command_line.daemonizes(argv) or own_jail(argv)) and relative_names(argv))


def start_directory(pid: int, argv: t.Sequence[str]) -> str:
    """Where a QEMU was started, by the files that it has open under relative names; empty where that cannot be told."""
    wanted = {os.path.normpath(name) for name in relative_names(argv)}
    found = set()
    with contextlib.suppress(OSError):
        for link in itertools.islice(descriptors_of(pid), _MAX_DESCRIPTORS):
            with contextlib.suppress(OSError, ValueError):
                facts = os.stat(link)
                place = without_deleted(os.readlink(link))
                if stat.S_ISREG(facts.st_mode):
                    for name in wanted:
                        if place.endswith(f"/{name}") and os.path.samestat(facts, os.stat(place)):
                            found.add(place[: -len(name) - 1] or "/")
    return found.pop() if len(found) == 1 else ""


def own_jail(argv: t.Sequence[str]) -> str:
    """The directory into which QEMU goes by itself when it is up (``-run-with chroot=``, ``-chroot``)."""
    jail = ""
    for option in command_line.options(argv):
        if option.name == "chroot":
            jail = option.argument or ""
        elif option.name == "run-with":
            jail = command_line.parse_option_string(option.argument or "").get("chroot", jail)
    return jail


#: Options whose argument is the name of a file, and keys of others whose value is one.
_FILE_OPTIONS = frozenset(
    (
        *("hda", "hdb", "hdc", "hdd", "cdrom", "fda", "fdb", "mtdblock", "sd", "pflash", "kernel", "initrd", "dtb"),
        *("bios", "readconfig", "pidfile", "D", "L"),
    )
)
_FILE_KEYS = frozenset(
    (
        *("file", "filename", "file.filename", "path", "mem-path", "logfile", "romfile", "cert", "keyfile", "dir"),
        *("tls-creds-dir", "script", "downscript", "file.file.filename", "backing.file.filename", "pmem", "rrfile"),
    )
)
_IMPLIED = {"drive": "file", "qmp": "", "serial": "", "monitor": ""}


def relative_names(argv: t.Sequence[str]) -> list[str]:
    """The names of files on a command line that count from the directory in which QEMU was started."""
    # A name with a colon before any slash is a protocol (nbd:…).
    return [name for name in file_names(argv) if not re.match(r"/|[\w+.-]+:", name)]


def file_names(argv: t.Sequence[str]) -> list[str]:
    """The names of files on a command line, and of other things that QEMU opens (``nbd:…``)."""
    found = []
    for option in command_line.options(argv):
        argument = option.argument or ""
        if option.name in _FILE_OPTIONS:
            found.append(argument)
        elif argument.startswith("{"):
            found += re.findall(r'"(?:filename|path|mem-path|romfile)"\s*:\s*"((?:[^"\\]|\\.)*)"', argument)
        elif argument.startswith(("unix:", "file:", "pipe:")):
            rest = argument.partition(":")[2]
            found.append(command_line.parse_option_string(rest, "path").get("path", ""))
        elif option.name not in ("name", "append", "uuid"):
            keys = command_line.parse_option_string(argument, "file" if option.name == "drive" else "implied")
            if keys.get("abstract") != "on":
                found += [keys[key] for key in sorted(_FILE_KEYS & keys.keys())]
    return [name for name in found if name and name != "no"]
