# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The words of a process are run with no more rights than the process has, inside what confines it.

A QEMU that was taken over writes its own words in its memory; here root does that for it, with /proc/PID/mem.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from support import CounterGuest
from support.attacker import Attacker
from support.observe import VM, Continuity
from support.process import rewrite_words
from support.versions import OLD_QEMU

#: Room in a command line for other words: the guest does not look at it.
ROOM = ["-fw_cfg", f"name=opt/room,string={'r' * 400}"]

BECOMES_NOBODY = {"run-with": ["-run-with", "user=nobody"], "runas": ["-runas", "nobody"]}


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _colon, value in (line.partition(":") for line in lines)}


@pytest.fixture
def make_his(attacker: Attacker, make_guest: Any) -> Iterator[Callable[..., CounterGuest]]:
    """Make a guest whose files are nobody's: ``make_his(["-sandbox", "on"], prefix=["setpriv", ...])``."""
    started: list[subprocess.Popen[bytes]] = []

    def make(
        options: Sequence[str] = (),
        prefix: Sequence[str] = (),
        qemu: str = "qemu-system-x86_64",
        cwd: str = "",
        **more: Any,
    ) -> CounterGuest:
        guest: CounterGuest = make_guest(
            start=False, workdir=str(attacker.home / "guest"), extra_args=options, qemu=qemu, block_mib=1, **more
        )
        guest.prepare()
        own(guest, attacker)
        started.append(subprocess.Popen([*prefix, *guest.argv()], cwd=cwd or guest.workdir, stdin=subprocess.DEVNULL))
        guest.wait_restarted()
        guest.wait_for_counter()
        own(guest, attacker)
        return guest

    yield make
    for process in started:
        process.kill()
        process.wait()


def own(guest: CounterGuest, attacker: Attacker) -> None:
    for place in (guest.workdir, *guest.workdir.iterdir(), guest.qmp_socket.parent):
        os.chown(place, attacker.uid, attacker.gid)


def as_nobody(*options: str) -> list[str]:
    return ["setpriv", "--reuid=nobody", "--regid=nogroup", *(options or ["--clear-groups"])]


# --- root that was given up ---


def qemu_for(how: str) -> str:
    if how == "runas" and not OLD_QEMU.exists():
        pytest.skip("QEMU 7.2 is not set up")
    return str(OLD_QEMU) if how == "runas" else "qemu-system-x86_64"


@pytest.mark.parametrize("how", BECOMES_NOBODY)
@pytest.mark.parametrize("hidden", [False, True], ids=["said", "hidden"])
def test_qemu_that_gave_root_up_does_not_get_it_back(
    attacker: Attacker, make_his: Any, save: Any, run_module: Any, image: Path, how: str, hidden: bool
) -> None:
    """Root started it, and listens at its socket, as the kernel has it; its words are its own by now."""
    victim = attacker.programs / "victim"
    change = BECOMES_NOBODY[how]
    guest = make_his([*ROOM, *change], qemu=qemu_for(how))
    assert os.stat(f"/proc/{guest.pid}").st_uid == attacker.uid
    if hidden:
        rewrite_words(guest.pid, [*ROOM, *change], ["-no-reboot", "-pidfile", str(victim)])
    else:
        rewrite_words(guest.pid, ROOM, ["-pidfile", str(victim)])
    save(name=VM, path=str(image))
    result = run_module("qemu_restore", name=VM, path=str(image))
    assert not victim.exists(), "root's directory"
    assert result["error"] == "LaunchError"
    assert "victim" in result["msg"], "its own words, refused to its own user"
    assert image.exists()


@pytest.mark.parametrize("how", BECOMES_NOBODY)
def test_qemu_that_gave_root_up_is_restored_as_who_it_is(
    attacker: Attacker, make_his: Any, save: Any, restore: Any, image: Path, how: str
) -> None:
    guest = make_his(BECOMES_NOBODY[how], qemu=qemu_for(how))
    before = status_of(guest.pid)
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    pid = restore(name=VM, path=str(image))["vm"]["pid"]
    after = status_of(pid)
    for key in ("Uid", "Gid", "CapPrm", "NoNewPrivs"):
        assert after[key] == before[key], key
    assert "nobody" not in Path(f"/proc/{pid}/cmdline").read_text()
    continuity.check()


def test_what_root_had_opened_is_named_before_the_save(
    attacker: Attacker, make_his: Any, run_module: Any, save: Any, image: Path
) -> None:
    guest = make_his(BECOMES_NOBODY["run-with"])
    os.chown(guest.boot_image, 0, 0)
    guest.boot_image.chmod(0o600)
    sockets = guest.qmp_socket.parent
    os.chown(sockets, 0, 0)
    sockets.chmod(0o755)
    refused = run_module("qemu_save", name=VM, path=str(image))
    assert refused["error"] == "NotRestorableError"
    assert [problem["kind"] for problem in refused["problems"] if problem["blocks"]] == ["opened_as_root"]
    assert str(guest.boot_image) in refused["msg"]
    assert f" {sockets}, " in refused["msg"].replace(". ", ", ")
    assert "nobody" in refused["cure"]
    assert guest.counters()
    own(guest, attacker)
    save(name=VM, path=str(image))


def test_jail_of_a_root_that_was_given_up(attacker: Attacker, make_his: Any, run_module: Any, image: Path) -> None:
    make_his(["-run-with", f"chroot={attacker.home},user=nobody"])
    refused = run_module("qemu_save", name=VM, path=str(image))
    assert "root_directory" in [problem["kind"] for problem in refused["problems"] if problem["blocks"]]


# --- what it has ---


@pytest.mark.parametrize(
    "options",
    [
        ["--groups=12,34"],
        ["--clear-groups"],
        ["--clear-groups", "--no-new-privs"],
        ["--clear-groups", "--bounding-set=-all"],
        ["--clear-groups", "--inh-caps=-all,+net_bind_service", "--ambient-caps=-all,+net_bind_service"],
    ],
    ids=["groups", "no-groups", "no-new-privileges", "bounding-set", "ambient"],
)
def test_rights_are_as_they_were(make_his: Any, save: Any, restore: Any, image: Path, options: list[str]) -> None:
    guest = make_his(prefix=as_nobody(*options))
    before = status_of(guest.pid)
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    after = status_of(restore(name=VM, path=str(image))["vm"]["pid"])
    for key in ("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs"):
        assert after[key] == before[key], key
    continuity.check()


def test_root_that_has_dropped_capabilities_has_no_more(make_his: Any, save: Any, restore: Any, image: Path) -> None:
    """Of the bounding set it could have dropped none: what it is permitted is what counts."""
    keep = "-all,+dac_override,+fowner,+chown"
    guest = make_his(prefix=["setpriv", f"--bounding-set={keep}", "--inh-caps=-all"])
    before = status_of(guest.pid)
    assert int(before["CapPrm"], 16) == 0b1011
    save(name=VM, path=str(image))
    after = status_of(restore(name=VM, path=str(image))["vm"]["pid"])
    assert after["Uid"] == before["Uid"]
    assert int(after["CapPrm"], 16) == int(after["CapBnd"], 16) == 0b1011


# --- what confines it ---


def test_sandbox_that_its_words_do_not_say_any_more(make_his: Any, run_module: Any, image: Path) -> None:
    guest = make_his(["-sandbox", "on"], prefix=as_nobody())
    rewrite_words(guest.pid, ["-sandbox", "on"], ["--no-reboot"])
    refused = run_module("qemu_save", name=VM, path=str(image))
    assert refused["error"] == "NotRestorableError"
    assert [problem["kind"] for problem in refused["problems"] if problem["blocks"]] == ["seccomp_filter"]


#: Puts a filter that allows everything around what it executes.
FILTERED = """
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
allow = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0x7FFF0000))
program = struct.pack("HxxxxxxQ", 1, ctypes.addressof(allow))
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, program, 0, 0) == 0
os.execvp(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.parametrize("options", [[], ["-sandbox", "on"]], ids=["alone", "beside-its-own"])
def test_filter_of_who_started_it(make_his: Any, run_module: Any, image: Path, options: list[str]) -> None:
    make_his(options, prefix=[*as_nobody(), "/usr/bin/python3", "-c", FILTERED])
    refused = run_module("qemu_save", name=VM, path=str(image))
    assert [problem["kind"] for problem in refused["problems"] if problem["blocks"]] == ["seccomp_filter"]


def test_its_own_sandbox_is_made_again(make_his: Any, save: Any, restore: Any, image: Path) -> None:
    guest = make_his(["-sandbox", "on,spawn=deny"], prefix=as_nobody())
    before = status_of(guest.pid)
    continuity = Continuity(guest)
    for _time in range(2):
        save(name=VM, path=str(image))
        after = status_of(restore(name=VM, path=str(image))["vm"]["pid"])
        assert [after[key] for key in ("Seccomp", "Seccomp_filters", "NoNewPrivs")] == ["2", "1", "1"]
    assert before["Seccomp_filters"] == "1"
    continuity.check()


# --- where it is started ---


def test_directory_that_is_closed_to_him(
    attacker: Attacker, make_his: Any, save: Any, run_module: Any, image: Path
) -> None:
    """The recorded directory is a string of his: below it, root would find for him what he may not look for."""
    work = attacker.home / "work"
    work.mkdir()
    os.chown(work, attacker.uid, attacker.gid)
    make_his(prefix=as_nobody(), cwd=str(work))
    save(name=VM, path=str(image))
    closed = attacker.programs / "closed"
    (closed / "inner").mkdir(parents=True)
    closed.chmod(0o700)
    work.rmdir()
    work.symlink_to(closed / "inner")
    result = run_module("qemu_restore", name=VM, path=str(image))
    assert result["error"] == "LaunchError"
    assert str(work) in result["msg"]
    assert "Permission denied" in result["msg"]
    assert image.exists()
    work.unlink()
    work.mkdir()
    assert not run_module("qemu_restore", name=VM, path=str(image)).get("failed")


def test_directory_that_he_could_not_enter_is_said_before_the_save(
    attacker: Attacker, make_his: Any, run_module: Any, image: Path
) -> None:
    closed = attacker.programs / "closed"
    closed.mkdir(mode=0o700)
    make_his(prefix=as_nobody(), cwd=str(closed))
    refused = run_module("qemu_save", name=VM, path=str(image))
    assert [problem["kind"] for problem in refused["problems"] if problem["blocks"]] == ["working_directory"]
    assert str(closed) in refused["msg"]
