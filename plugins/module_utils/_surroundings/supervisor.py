# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who waits for a QEMU, and would start the VM from its disks, beside its image, as soon as QEMU quits.

The ancestors of QEMU are walked up to where nobody waits any more: init, systemd, a login. What they say of
themselves (their names, their scripts) is theirs, so whoever wants to can hide: a supervisor that is not known, or
pretends to be something else, is only seen afterwards (:mod:`_qemu.revival`).
"""

from __future__ import annotations

import os
import re

from ansible_collections.vmops.qemu.plugins.module_utils._bounded_read import read_bounded
from ansible_collections.vmops.qemu.plugins.module_utils._proc import proc_path, read_environment
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.ancestry import (
    Ancestor,
    ancestors_of,
    is_interpreter,
    printable,
    read_words,
)
from ansible_collections.vmops.qemu.plugins.module_utils._shell_text import (
    WRAPPERS,
    command_text,
    is_readable,
    starts_in_a_loop,
)
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.verdict import Problem

#: Programs that start again what has ended, or end the container of which somebody else does. The kernel cuts names
#: after 15 characters.
_SUPERVISORS = frozenset(
    (
        *("supervisord", "circusd", "runsv", "s6-supervise", "supervise", "supervise-daemon", "monit", "perpd"),
        *("immortal", "dinit", "finit", "god", "bluepill", "forever", "nodemon", "watchexec"),
        *("entr", "watch", "overmind", "pueued", "nomad", "respawn", "svscan", "s6-svscan", "runsvdir"),
        *("tini", "dumb-init", "docker-init", "catatonit", "conmon", "crio-conmon", "lxc-start"),
        *("containerd-shim", "containerd-shim-runc-v2", "containerd-shim-runc-v1", "containerd-shim-kata-v2"),
    )
)

#: Names that a program gives itself: ``PM2 v5.3.0: God Daemon (/root/.pm2)``.
_SUPERVISOR_TITLE = re.compile(r"PM2 v[\d.]+: God")

#: Programs with which nobody waits for QEMU: init, and what people log in with.
_NOBODY = frozenset(
    (
        *("init", "systemd", "sshd", "sshd-session", "sshd-auth", "login", "agetty", "getty", "tmux", "screen"),
        *("mosh-server", "dropbear", "in.telnetd", "xrdp-sesman", "crond", "cron", "atd", "launchd", "SCREEN"),
        *("gnome-terminal-server", "konsole", "xterm", "kitty", "alacritty", "foot", "wezterm-gui", "zellij"),
        *("tmux: server", "tmux: client"),
    )
)

#: Bytes of a script that are read.
_MAX_SCRIPT = 256 * 1024

_UNREADABLE = " (its script cannot be read)"


def supervisor_problem(pid: int) -> Problem | None:
    """Who would start the VM again when this QEMU quits, if somebody may; never raises."""
    ancestors, own_session = ancestors_of(pid)
    argv = read_words(pid)
    starters = [os.path.basename(argv[0])] if argv else []
    unknown = ""
    #: Whether what waits for QEMU is known to end with it, so that what stands above learns of it.
    transparent = True
    environment = None
    for number, ancestor in enumerate(ancestors):
        if ancestor.pid == 1 and (ancestor.session != own_session or ancestor.names & _NOBODY):
            break  # what is left behind becomes its child
        if _is_supervisor(ancestor):
            if transparent:
                return _supervised(ancestor, f"{ancestor.label} starts again what has ended")
            unknown = unknown or f"{ancestor.label} may start it again"
            break
        if ancestor.names & _NOBODY and not ancestor.is_shell:
            break
        if ancestor.is_shell:
            text, reason = _script(ancestor)
            if text is not None and transparent and starts_in_a_loop(text, starters):
                return _supervised(ancestor, f"{ancestor.label} runs it in a loop")
            if text is None and not reason:
                # An interactive shell; what a part of it runs in the background (( … ) &) is not seen.
                above = ancestors[number + 1] if number + 1 < len(ancestors) else None
                environment = _environment(ancestor.pid)
                if above and above.argv == ancestor.argv and environment and environment == _environment(above.pid):
                    unknown = unknown or f"a part of the shell {ancestor.label} waits for it"
                break
            unknown = unknown or f"{ancestor.label} waits for it{reason}"
        elif not ancestor.names & WRAPPERS:
            transparent = False
            unknown = unknown or f"{ancestor.label} has started it"
        starters += _words_of_a_start(ancestor)
    if not unknown:
        return None
    return Problem(
        "supervisor_unknown",
        f"{unknown}, and whether it starts the VM from its disks when QEMU (pid {pid}) quits cannot be known",
        "See that it does not, beside the image; or run the VM as the main process of a systemd unit",
        blocks=False,
    )


def waits_for(pid: int) -> bool:
    """Whether somebody may be waiting for this process who could start it again."""
    ancestors, _session = ancestors_of(pid)
    return bool(ancestors) and ancestors[0].pid != 1 and not ancestors[0].names & _NOBODY


def ends_with(pid: int, other: int) -> bool | None:
    """Whether a process above this one ends when it does; None where it is not above it at all.

    It is taken to, where there is nothing but shells and the like from there on.
    """
    ancestors, _session = ancestors_of(pid)
    transparent = True
    for ancestor in ancestors:
        transparent = transparent and (ancestor.is_shell or bool(ancestor.names & WRAPPERS))
        if ancestor.pid == other:
            return transparent
    return None


def _is_supervisor(ancestor: Ancestor) -> bool:
    """Whether it is known for starting things again."""
    cut = {name[:15] for name in _SUPERVISORS}
    known = ancestor.names & _SUPERVISORS or ancestor.comm in cut
    return bool(known) or any(_SUPERVISOR_TITLE.match(name) for name in (ancestor.comm, *ancestor.argv[:1]))


def _supervised(ancestor: Ancestor, what: str) -> Problem:
    return Problem(
        "supervisor",
        f"{what}, and would start the VM from its disks, beside its image, as soon as QEMU quits",
        f"Have {printable(ancestor.comm)} let go of the VM before it is saved, without ending QEMU; or run the VM as"
        " the main process of a systemd unit, which is kept from that",
    )


def _words_of_a_start(ancestor: Ancestor) -> list[str]:
    """The names by which a script above it would start this one: its script's, or its own."""
    if ancestor.is_shell:
        _text, path = command_text(list(ancestor.argv))
        return [os.path.basename(path)] if path else []
    return [name for name in sorted(ancestor.names) if not is_interpreter(name) and name not in WRAPPERS]


def _environment(pid: int) -> bytes | None:
    """What it was started with: a part of a shell, which executes nothing, has that of the shell."""
    try:
        return read_environment(pid)
    except OSError:
        return None


def _script(shell: Ancestor) -> tuple[str | None, str]:
    """What a shell runs; None for an interactive one, and where it cannot be read, with the reason as a clause."""
    text, path = command_text(list(shell.argv))
    if text is not None:
        return (text, "") if is_readable(text) else (None, _UNREADABLE)
    if path is None:
        path = proc_path(shell.pid, "fd/0")
        if shell.has_terminal and os.path.basename(_link(path)).isdigit():
            return None, ""  # /dev/pts/N, /dev/ttyN: somebody types
        if shell.has_terminal and "tty" in _link(path):
            return None, ""
    else:
        # As it finds the file itself, which may be in another namespace or root directory.
        path = os.path.join(proc_path(shell.pid, "root" if os.path.isabs(path) else "cwd"), path.lstrip("/"))
    try:
        text = read_bounded(path, _MAX_SCRIPT).decode("utf-8", "replace")
    except OSError:
        return None, _UNREADABLE
    return (text, "") if is_readable(text) else (None, _UNREADABLE)


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
