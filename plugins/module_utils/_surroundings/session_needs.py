# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a QEMU has of the session of the user who started it: a display, a terminal, a sound server, its very starter.

A restored QEMU is nobody's child, without a terminal, and with an environment of its own (``LAUNCH_ENVIRONMENT``). One
that its own unit starts has what the unit gives it.
"""

from __future__ import annotations

import re
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._qemu.configuration import Configuration, Setting
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.monitor import Monitor
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.verdict import Problem

#: Displays that are windows of a session, and those that need a terminal.
_WINDOWS = frozenset(("gtk", "sdl", "cocoa", "default", "spice-app", "dbus"))
_TERMINALS = frozenset(("curses",))

#: Sound servers of a session; QEMU goes on without one where it cannot reach it (PulseAudio's) or ends.
_SOUND = frozenset(("pa", "pipewire", "jack", "sndio"))

#: Terminals by a number that is another's as soon as whoever has opened it is gone, or that of the session itself.
_TERMINAL = re.compile(r"/dev/(?:pts/\d+|tty)")
_CHARACTER_DEVICES = ("chardev", "serial", "parallel", "monitor", "qmp", "qmp-pretty", "debugcon")


async def display_of(monitor: Monitor) -> str:
    """The kind of a QEMU's display, also of one that it has chosen by itself; empty where it does not say.

    :raises MonitorError: QEMU cannot be asked.
    """
    answer = await monitor.execute_if_known("query-display-options")
    return str(answer["type"]) if answer else ""


def session_problems(configuration: Configuration, by_unit: bool, display: str = "") -> list[Problem]:
    """What of a session a restore by the recorded command would not give the VM.

    :param display: what :func:`display_of` has told.
    """
    if by_unit:
        return []
    return [
        *_displays(configuration, display),
        *_terminals(configuration),
        *_sound(configuration),
        *_parent(configuration),
    ]


def _displays(configuration: Configuration, display: str) -> t.Iterator[Problem]:
    given = [_display_of(setting) for setting in configuration.of("display", "sdl", "curses")]
    for kind in given[-1:] or [display]:  # the last one counts
        if kind in _WINDOWS | _TERMINALS:
            needs = "a terminal" if kind in _TERMINALS else "the windows of the session in which it was started"
            yield Problem(
                "session_display",
                f"its display ({kind}) needs {needs}, which a QEMU that a restore starts does not have",
                "Start the VM with a display that needs none (-vnc unix:PATH, -display none); or restore it with"
                " launch: attach, into a QEMU that you start in your session",
            )


def _display_of(setting: Setting) -> str:
    if setting.option == "display":
        kind, _comma, options = setting.argument.partition(",")
        # That of a bus which is named does not need the session's.
        return "" if kind == "dbus" and re.search(r"\baddr=|\bp2p\b", options) else kind
    return setting.option


def _terminals(configuration: Configuration) -> t.Iterator[Problem]:
    for setting in configuration.of(*_CHARACTER_DEVICES):
        # -serial /dev/pts/3, -serial file:/dev/pts/3, -chardev serial,id=c0,path=/dev/pts/3
        places = (setting.argument, setting.argument.partition(":")[2], *setting.keys.values())
        terminal = next((place for place in places if _TERMINAL.fullmatch(place)), "")
        if terminal:
            yield Problem(
                "session_terminal",
                f"its -{setting.option} is the terminal {terminal}, which ends with whoever has opened it; then this is"
                " nobody's, or another's",
                "Start the VM with a terminal of its own (pty), a socket or a file; or restore it with launch: attach,"
                " into a QEMU that you start with a terminal",
            )


def _sound(configuration: Configuration) -> t.Iterator[Problem]:
    for setting in configuration.of("audiodev", "audio"):
        kind = setting.keys.get("driver", "")
        if kind in _SOUND:
            yield Problem(
                "session_sound",
                f"its sound goes to the session in which it was started ({kind}), which a QEMU that a restore starts"
                " does not reach",
                "Start it with a sound server that is there without a session, or restore it with launch: attach",
                blocks=kind != "pa",
            )


def _parent(configuration: Configuration) -> t.Iterator[Problem]:
    for setting in configuration.of("run-with"):
        if setting.keys.get("exit-with-parent") in ("on", "yes", "true", "y"):
            yield Problem(
                "ends_with_starter",
                "its QEMU ends with whoever has started it (-run-with exit-with-parent=on), and one that a restore"
                " starts does not",
                "Start it again by what shall end it, from its disks, or with launch: attach",
                blocks=False,
            )
