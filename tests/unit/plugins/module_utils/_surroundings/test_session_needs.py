# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a QEMU has of the session of the user who started it."""

from __future__ import annotations

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.configuration import read_configuration
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.session_needs import session_problems


def problems(*words, by_unit=False):
    found = session_problems(read_configuration(["qemu-system-x86_64", "-no-user-config", *words]), by_unit)
    return [(problem.kind, problem.blocks) for problem in found]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-display", "gtk,gl=on"], [("session_display", True)]),
        (["-display", "sdl"], [("session_display", True)]),
        (["-display", "curses"], [("session_display", True)]),
        (["-curses"], [("session_display", True)]),
        (["-display", "none"], []),
        (["-display", "vnc=unix:/s"], []),
        (["-display", "spice-app"], [("session_display", True)]),
        (["-display", "egl-headless"], []),
        (["-display", "dbus"], [("session_display", True)]),
        (["-display", "dbus,p2p=on"], []),
        (["-display", "none", "-display", "curses"], [("session_display", True)]),
        (["-nographic"], []),
        (["-chardev", "serial,id=c0,path=/dev/pts/3"], [("session_terminal", True)]),
        (["-chardev", "tty,path=/dev/pts/12,id=c0"], [("session_terminal", True)]),
        (["-chardev", "file,id=c0,path=/dev/pts/3"], [("session_terminal", True)]),
        (["-serial", "/dev/pts/3"], [("session_terminal", True)]),
        (["-serial", "file:/dev/tty"], [("session_terminal", True)]),
        (["-monitor", "/dev/pts/0"], [("session_terminal", True)]),
        (["-chardev", "serial,id=c0,path=/dev/ttyS0"], []),
        (["-serial", "pty"], []),
        (["-serial", "file:/dev/pts/3.log"], []),
        (["-audiodev", "pa,id=a0"], [("session_sound", False)]),
        (["-audiodev", '{"driver":"pipewire","id":"a0"}'], [("session_sound", True)]),
        (["-audio", "driver=pa,model=hda"], [("session_sound", False)]),
        (["-audiodev", "none,id=a0"], []),
        (["-run-with", "exit-with-parent=on"], [("ends_with_starter", False)]),
        (["-run-with", "exit-with-parent=off"], []),
    ],
)
def test_what_needs_a_session(words, expected):
    assert problems(*words) == expected
    assert problems(*words, by_unit=True) == []


def test_display_that_it_has_chosen_by_itself():
    found = read_configuration(["qemu-system-x86_64", "-no-user-config"])
    assert [problem.kind for problem in session_problems(found, False, "gtk")] == ["session_display"]
    assert session_problems(found, False, "none") == []
