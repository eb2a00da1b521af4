# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The operator's check of a VM: a real command, which must succeed in time, and which a VM's name cannot turn."""

from __future__ import annotations

import asyncio
import shlex
import time
from pathlib import Path

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._host import health_check
from ansible_collections.vmops.qemu.plugins.module_utils._host.health_check import why_check_fails

from support.observe import wait_until


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    """Seldom two tries in two seconds."""
    monkeypatch.setattr(health_check, "_INTERVAL", 0.05)


def check(command, name="web1", timeout=30.0):
    return asyncio.run(why_check_fails(command, name, timeout))


def shell(script):
    return ["sh", "-c", script]


def is_gone(pid):
    """Ended, also where nobody has collected it yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_that_passes():
    assert check(["true"]) == ""


def test_names_the_vm():
    assert check(["test", "{name}", "=", "web1"]) == ""


def test_name_inside_a_word():
    assert check(["test", "a{name}b{name}c", "=", "aweb1bweb1c"]) == ""


def test_name_is_one_word_and_no_shell_sees_it(tmp_path):
    """Whatever it is: no word is split, and a name that has the mark in it is not filled in again."""
    owned = tmp_path / "owned"
    for name in (f"$(touch {owned})", f"a; touch {owned}", "a b", "{name}", "", "\n", "ü"):
        assert check(["test", "{name}x", "=", f"{name}x"], name) == ""
    assert not owned.exists()


@pytest.mark.parametrize("word", ["{name}", "x{name}", "--host={name}"])
def test_name_that_would_be_an_option_of_the_check(tmp_path, word):
    """Also behind other text: what a check makes of a word is not known."""
    owned = tmp_path / "owned"
    for name in (f"-oProxyCommand=touch {owned}", "-n", "--", "-"):
        assert check(["sh", "-c", f"touch {shlex.quote(str(owned))}", word], name) == (
            "the VM's name would be an option of the check"
        )
    assert not owned.exists()


def test_name_that_would_be_an_option_of_a_check_that_does_not_name_it():
    assert check(["true"], "-n") == ""


def test_name_with_a_nul():
    """The kernel knows of none; a program would be told another name."""
    assert check(["test", "{name}"], "web1\0x", timeout=0.1).startswith("it cannot be run: ")


def test_that_fails_says_its_status():
    assert check(shell("exit 3"), timeout=0.1) == "its exit status is 3"


def test_that_is_ended_by_a_signal():
    assert check(shell("kill -9 $$"), timeout=0.1) == "its exit status is -9"


def test_that_passes_at_a_second_try(tmp_path):
    mark = shlex.quote(str(tmp_path / "tried"))
    assert check(shell(f"test -e {mark} || {{ touch {mark}; exit 1; }}")) == ""


def test_is_tried_until_the_time_is_over(tmp_path):
    tries = tmp_path / "tries"
    started = time.monotonic()
    assert check(shell(f"echo x >> {shlex.quote(str(tries))}; exit 1"), timeout=1.0) == "its exit status is 1"
    assert time.monotonic() - started < 5
    assert len(tries.read_text().splitlines()) > 1


@pytest.mark.parametrize("how", ["", "trap '' TERM INT HUP;"])
def test_that_hangs_is_killed(tmp_path, how):
    """Also one that ends by no other signal."""
    pid = tmp_path / "pid"
    script = f"{how} echo $$ > {shlex.quote(str(pid))}; while :; do sleep 0.1; done"
    assert check(shell(script), timeout=1.0) == "it did not end in time"
    assert is_gone(int(pid.read_text()))


def test_what_a_check_has_started_is_killed_with_it(tmp_path):
    """Such as the ssh of a script."""
    pid = tmp_path / "pid"
    script = f"sleep 100 & echo $! > {shlex.quote(str(pid))}; wait"
    assert check(shell(script), timeout=1.0) == "it did not end in time"
    wait_until(lambda: is_gone(int(pid.read_text())))


def test_is_ended_with_the_run(tmp_path):
    """A run that is interrupted leaves no check behind."""
    pid = tmp_path / "pid"

    async def interrupted():
        command = shell(f"echo $$ > {shlex.quote(str(pid))}; exec sleep 100")
        task = asyncio.ensure_future(why_check_fails(command, "web1", 100.0))
        await asyncio.get_running_loop().run_in_executor(None, wait_until, lambda: pid.exists() and pid.read_text())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(interrupted())
    assert is_gone(int(pid.read_text()))


@pytest.mark.parametrize("program", ["/nonexistent/check", "no-such-check-anywhere", "/", "/etc/passwd", ""])
def test_that_cannot_be_executed(program):
    assert check([program], timeout=0.1).startswith("it cannot be run: ")


def test_that_prints_without_end_is_not_held_up():
    """Nobody reads what it says; it is not kept, either."""
    assert check(shell("head -c 1000000 /dev/zero; head -c 1000000 /dev/zero >&2")) == ""


def test_that_reads_gets_nothing():
    assert check(["cat"]) == ""
