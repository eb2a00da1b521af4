# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._shell_text import (
    command_text,
    split_commands,
    starts_in_a_loop,
)
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("argv", "found"),
    [
        (["sh", "-c", "qemu -m 1", "x"], ("qemu -m 1", None)),
        (["bash", "-ec", "text"], ("text", None)),
        (["bash", "-euo", "pipefail", "-c", "text"], ("text", None)),
        (["bash", "-o", "pipefail", "/s", "-c"], (None, "/s")),
        (["/bin/sh", "/usr/bin/start-vm", "web1"], (None, "/usr/bin/start-vm")),
        (["/bin/bash", "-e", "./s"], (None, "./s")),
        (["bash", "--norc", "--rcfile", "/x", "s"], (None, "s")),
        (["bash", "--", "s"], (None, "s")),
        (["-bash"], (None, None)),
        (["bash", "-i"], (None, None)),
        (["bash", "-s", "word"], (None, None)),
        ([], (None, None)),
        (["sh", "-c"], (None, None)),
    ],
)
def test_what_a_shell_runs(argv, found):
    assert command_text(argv) == found


@pytest.mark.parametrize(
    "text",
    [
        "while :; do qemu-system-x86_64 -m 1; done",
        "while true; do\n  /usr/bin/qemu-system-x86_64 \\\n    -m 1\n  sleep 1\ndone",
        "until qemu-system-x86_64 -m 1; do sleep 1; done",
        "while qemu-system-aarch64; do :; done",
        "for n in 1 2 3; do sudo -u vm nice -n 5 qemu-system-x86_64; done",
        "for ((;;)); do taskset -c 1 kvm; done",
        "while :\ndo\n  if test -e /x; then\n    qemu-kvm || exit\n  fi\ndone",
        "Q=/usr/bin/qemu-system-x86_64\nwhile :; do $Q -m 1; done",
        'CMD="qemu-system-x86_64 -m 1"\nwhile :; do eval "$CMD"; done',
        'args=(qemu-system-x86_64 -m 1)\nwhile :; do "${args[@]}"; done',
        'args=(\n  qemu-system-x86_64\n  -m 1\n)\nwhile :; do "${args[@]}"; done',
        "run() {\n  qemu-system-x86_64\n}\nwhile :; do run; done",
        "function run {\n  Q=qemu-system-x86_64; $Q\n}\nagain() { run; }\nwhile :; do again; done",
        'while :; do "$@"; done',
        "while :; do ./start-vm web1; done",
        "while :; do sh /opt/start-vm web1; done",
        "while :; do bash -c 'cd /vm && qemu-system-x86_64'; done",
        "while :; do FOO=bar qemu-system-x86_64; done",
        "while :; do qemu-system-x86_64 & wait; done",
        "while :; do qemu-system-x86_64 2>&1 | logger; done",
        "while :; do qemu-system-x86_64 >/dev/null 2>&1; done",
        'qemu-system-x86_64\nexec "$0" "$@"',
        "qemu-system-x86_64; exec $0",
    ],
)
def test_a_start_in_a_loop(text):
    assert starts_in_a_loop(text, ["start-vm"])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "qemu-system-x86_64 -m 1",
        "qemu-system-x86_64 -m 1; echo $?",
        'for disk in a b; do args="$args -drive file=$disk"; done\nqemu-system-x86_64 $args',
        "while getopts ab opt; do case $opt in a) x=1;; esac; done\nqemu-system-x86_64",
        "for vm in a b; do qemu-system-x86_64 -name $vm & done\nwait",
        "qemu-system-x86_64 &\nwhile pgrep qemu-system-x86_64; do sleep 1; done",
        "qemu-system-x86_64 &\nwhile kill -0 $!; do sleep 1; done",
        "while ! test -S /run/qemu.sock; do sleep 1; done\nqemu-system-x86_64",
        "# while :; do\nqemu-system-x86_64\n# done",
        "for d in a b; do qemu-img check $d; done\nqemu-system-x86_64",
        "while read line; do echo qemu-system-x86_64 $line; done\nqemu-system-x86_64",
    ],
)
def test_no_start_in_a_loop(text):
    assert not starts_in_a_loop(text, ["start-vm"])


def test_commands():
    assert split_commands("if test -e a && ! rm b 2>&1; then x=$(cat c | d) # e; f\nfi") == [
        "test -e a", "rm b 2>&1", "x=", "cat c", "d)", "fi",
    ]  # fmt: skip


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cs"])))
def test_any_text(text):
    starts_in_a_loop(text, ["x"])
    split_commands(text)
    command_text(text.split())
