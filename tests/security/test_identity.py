# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A user's processes that have another VM's name, name its sockets, or answer in its place: none is taken for it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
from ansible_collections.vmops.qemu.plugins.lookup.restore_program import make_program
from ansible_collections.vmops.qemu.plugins.module_utils._image.identity import ImageIdentity
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_file import file_identity

from support import CounterGuest
from support.attacker import Attacker
from support.boot_program import BOOT_PROGRAM
from support.monitor import Monitor, MonitorError, qmp
from support.observe import OTHER_VM, VM, Continuity, run_state, wait_until

MakeGuest = Callable[..., CounterGuest]
Module = Callable[..., dict[str, Any]]


class Twin:
    """A QEMU of another user's that is as like a guest as its user can make it."""

    def __init__(self, attacker: Attacker, name: str, *more: str, user: str = "nobody", place: str = "twin") -> None:
        entry = pwd.getpwnam(user)
        self.guest = CounterGuest(attacker.home / place, name, block_mib=8)
        self.guest.prepare()
        for path in (self.guest.workdir, *self.guest.workdir.iterdir()):
            os.chown(path, entry.pw_uid, entry.pw_gid)
        self.uid = entry.pw_uid
        self.process = subprocess.Popen(
            [*self.guest.argv(), *more],
            user=entry.pw_uid,
            group=entry.pw_gid,
            extra_groups=[],
            cwd=self.guest.workdir,
            stdin=subprocess.DEVNULL,
        )
        try:
            wait_until(self.answers)
        except BaseException:
            self.close()
            raise

    @property
    def socket(self) -> Path:
        return self.guest.qmp_socket

    def answers(self) -> bool:
        with contextlib.suppress(MonitorError):
            return bool(self.state())
        return False

    def state(self) -> str:
        return str(qmp(self.socket, "query-status")["status"])

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def twin(attacker: Attacker) -> Iterator[Callable[..., Twin]]:
    twins: list[Twin] = []

    def make(*more: str, name: str = VM, **options: Any) -> Twin:
        twins.append(Twin(attacker, name, *more, place=f"twin-{len(twins)}", **options))
        return twins[-1]

    yield make
    for each in twins:
        each.close()


WAITS = ("-incoming", "defer")
#: How it is, and what QEMU calls that.
STATES = {"waits": (WAITS, "inmigrate"), "runs": ((), "running"), "is paused": (("-S",), "prelaunch")}


def check_left_alone(twin: Twin, state: str) -> None:
    assert twin.process.poll() is None
    assert twin.state() == state


# --- a QEMU that has the name ---


@pytest.mark.parametrize("kind", STATES)
def test_restore_takes_no_notice_of_another_users_qemu_of_that_name(
    guest: CounterGuest, twin: Any, save: Module, restore: Module, image: Path, kind: str
) -> None:
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    words, state = STATES[kind]
    other = twin(*words)
    result = restore(name=VM, path=str(image))
    assert result["launched"]
    assert result["vm"]["pid"] != other.process.pid
    assert f"pid {other.process.pid} of the user nobody" in str(result["warnings"])
    continuity.check()
    check_left_alone(other, state)
    # The VM that runs is still found, and saved, beside it.
    result = save(name=VM, path=str(image))
    assert result["vm"]["pid"] is None
    assert f"pid {other.process.pid}" in str(result["warnings"])
    check_left_alone(other, state)


def test_boot_program_takes_no_notice_of_it(
    guest: CounterGuest, twin: Any, save: Module, image: Path, tmp_path: Path
) -> None:
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    other = twin(*WAITS)
    program = tmp_path / "program"
    program.mkdir(mode=0o755)
    with (program / "restore.pyz").open("wb") as archive:
        make_program(BOOT_PROGRAM, archive)
    settings = program / "settings.json"
    settings.write_text(json.dumps({"save_dir": str(image.parent), "order": [], "parallel": 2, "timeout": 60}))
    run = subprocess.run(
        [sys.executable, "-I", str(program / "restore.pyz"), str(settings)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        cwd="/",
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"pid {other.process.pid} of the user nobody" in run.stderr
    continuity.check()
    check_left_alone(other, "inmigrate")


@pytest.mark.parametrize("kind", STATES)
def test_saved_vm_is_saved_although_another_users_qemu_has_its_name(
    guest: CounterGuest, twin: Any, save: Module, image: Path, kind: str
) -> None:
    save(name=VM, path=str(image))
    before = file_identity(str(image))
    words, state = STATES[kind]
    other = twin(*words)
    for options in ({}, {"force": True}):
        result = save(name=VM, path=str(image), **options)
        assert not result["changed"]
        assert "already saved" in result["msg"]
        assert f"pid {other.process.pid}" in str(result["warnings"])
        assert file_identity(str(image)) == before
    check_left_alone(other, state)


def test_another_users_save_supersedes_no_image(
    make_guest: MakeGuest, twin: Any, save: Module, run_module: Module, restore: Module, image: Path
) -> None:
    """His VM has the UUID of the saved one, which stands in that one's words."""
    uuid = "3f0c1a52-9a39-4f3e-9d0e-6a4b7f0a1c11"
    guest = make_guest(uuid=uuid, observer=True)
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    other = twin("-uuid", uuid, name=OTHER_VM)
    shown = {vm["pid"]: vm for vm in run_module("qemu_vm_info", save_dir=str(image.parent))["vms"]}
    assert shown[other.process.pid]["image"] is None
    his = image.with_name("his.save")
    save(name=OTHER_VM, path=str(his))
    found = run_module("qemu_save_image_info", path=str(image.parent))["images"]
    assert {entry["path"]: entry["superseded_by"] for entry in found} == {str(image): None, str(his): None}
    # By the UUID alone it is not known which is meant, and none is taken.
    for module in ("qemu_restore", "qemu_save"):
        several = run_module(module, uuid=uuid, save_dir=str(image.parent))
        assert several["error"] == "ConflictError", several["msg"]
        assert f"Several images are of {uuid}: {his}, {image}" in several["msg"]
    result = restore(name=OTHER_VM, path=str(his))
    try:
        restore(name=VM, path=str(image))
        continuity.check()
    finally:
        os.kill(result["vm"]["pid"], signal.SIGKILL)


def test_uuid_of_another_users_qemu_is_taken_for_no_other_vm(
    make_guest: MakeGuest, twin: Any, save: Module, restore: Module, image: Path
) -> None:
    """Chosen by its UUID, the VM is root's while it runs, and is the saved one when it does not run."""
    uuid = "3f0c1a52-9a39-4f3e-9d0e-6a4b7f0a1c12"
    guest = make_guest(uuid=uuid, observer=True)
    continuity = Continuity(guest)
    other = twin("-uuid", uuid)
    warned = f"pid {other.process.pid} of the user nobody"
    place = {"uuid": uuid, "save_dir": str(image.parent)}
    saved = save(**place)
    assert saved["image"]["path"] == str(image.with_name(f"{VM}.save"))
    assert warned in str(saved["warnings"])
    guest.wait_exit()
    again = save(**place)
    assert (again["changed"], warned in str(again["warnings"])) == (False, True)
    result = restore(**place)
    assert result["launched"]
    assert warned in str(result["warnings"])
    continuity.check()
    check_left_alone(other, "running")


def test_name_of_another_users_qemu_takes_no_name_away(
    make_guest: MakeGuest, twin: Any, run_module: Module, image: Path
) -> None:
    """Saved with all of the host's, root's VM has its own name in its image's; his has one of its own."""
    guest = make_guest(observer=True)
    continuity = Continuity(guest)
    other = twin()
    options = {"include": [VM], "save_dir": str(image.parent)}
    planned = run_module("qemu_managed_save", check=True, **options)
    assert {vm["vm"]["pid"]: vm["name"] == VM for vm in planned["vms"]} == {
        guest.pid: True,
        other.process.pid: False,
    }
    # Who asks for it by its name gets root's alone.
    saved = run_module("qemu_managed_save", vms=[VM], save_dir=str(image.parent))
    assert not saved.get("failed"), saved["msg"]
    assert [vm["name"] for vm in saved["vms"]] == [VM]
    assert os.listdir(image.parent) == [f"{VM}.save"]
    back = run_module("qemu_managed_restore", save_dir=str(image.parent))
    assert not back.get("failed"), back["msg"]
    continuity.check()
    check_left_alone(other, "running")


@pytest.mark.parametrize("by", ["name", "socket"])
def test_image_is_not_loaded_into_another_users_qemu(
    guest: CounterGuest, twin: Any, save: Module, run_module: Module, image: Path, by: str
) -> None:
    save(name=VM, path=str(image))
    other = twin(*WAITS)
    options = {"name": VM} if by == "name" else {"qmp_socket": str(other.socket)}
    result = run_module("qemu_restore", path=str(image), launch="attach", disks="ignore", **options)
    assert result["error"] == ("VmNotFoundError" if by == "name" else "ForeignQemuError"), result["msg"]
    assert by == "name" or "nobody" in result["msg"]
    assert result["cure"]
    assert image.exists()
    check_left_alone(other, "inmigrate")


def test_users_own_vm_is_saved_and_restored_by_root(twin: Any, save: Module, restore: Module, image: Path) -> None:
    vm = twin()
    result = save(name=VM, path=str(image))
    assert vm.process.wait(10) == 0
    result = restore(name=VM, path=str(image))
    pid = result["vm"]["pid"]
    try:
        assert os.stat(f"/proc/{pid}").st_uid == vm.uid
        # What its user starts to be restored into is used, too.
        result = save(name=VM, path=str(image))
        waiting = twin(*WAITS)
        result = restore(path=str(image), launch="attach", qmp_socket=str(waiting.socket), disks="ignore")
        assert result["vm"]["pid"] == waiting.process.pid
        assert waiting.state() == "running"
    finally:
        if os.path.exists(f"/proc/{pid}"):
            os.kill(pid, signal.SIGKILL)


def test_two_other_users_vms_of_one_name(twin: Any, run_module: Module, image: Path) -> None:
    first, second = twin(user="nobody"), twin(user="daemon")
    result = run_module("qemu_save", name=VM, path=str(image))
    assert result["error"] == "VmAmbiguousError", result["msg"]
    for other, user in ((first, "nobody"), (second, "daemon")):
        assert f"pid {other.process.pid} of the user {user}" in result["msg"]
        check_left_alone(other, "running")
    assert "qmp_socket" in result["cure"]


# --- words that name another VM's socket ---


def nameless(make_guest: MakeGuest) -> CounterGuest:
    """Root's VM, which has no name."""
    guest = make_guest(start=False, observer=True)
    words = guest.argv()
    assert words[1] == "-name"
    setattr(guest, "argv", lambda _incoming=False: [words[0], *words[3:]])  # noqa: B010 - mypy takes no other way
    guest.start()
    return guest


@pytest.mark.parametrize("program", ["sleep", "qemu-system-x86_64"])
def test_words_that_name_a_socket_of_roots(
    attacker: Attacker, make_guest: MakeGuest, run_module: Module, image: Path, program: str
) -> None:
    victim = nameless(make_guest)
    words = ["-name", "x", "-qmp", f"unix:{victim.qmp_socket},server=on,wait=off"]
    liar = renamed(attacker, words) if program == "sleep" else attacker.python("sleep_as.py", *words, named=program)
    result = run_module("qemu_save", name="x", path=str(image))
    assert result["error"] == ("VmNotFoundError" if program == "sleep" else "MonitorForeignError"), result["msg"]
    assert f"pid {liar.pid}" in result["msg"]
    assert victim.alive()
    assert run_state(victim) == "running"
    assert not image.exists()
    shown = {vm["pid"]: vm for vm in run_module("qemu_vm_info")["vms"]}
    assert shown[victim.pid]["monitor"] == "answers"
    assert program == "sleep" or shown[liar.pid]["monitor"] == "foreign"
    assert program != "sleep" or liar.pid not in shown


def sleeper(attacker: Attacker) -> Path:
    script = attacker.programs / "sleep_as.py"
    shutil.copyfile(Path(__file__).parent / "attackers" / "sleep_as.py", script)
    script.chmod(0o644)
    return script


def renamed(attacker: Attacker, words: list[str]) -> subprocess.Popen[str]:
    """The host's interpreter, whose first word is a QEMU's."""
    return attacker.start(["qemu-system-x86_64", sleeper(attacker), *words], executable="/usr/bin/python3")


def test_set_user_id_program_is_nobodys_qemu(attacker: Attacker, run_module: Module, image: Path) -> None:
    """Whoever executes it gives it its words, although it is root's process, and its file may have any name."""
    program = attacker.compile("pause.c", "qemu-system-x86_64")
    program.chmod(0o4755)
    liar = attacker.start([program, "-name", "x", "-qmp", "unix:/nonexistent,server=on"])
    assert os.stat(f"/proc/{liar.pid}").st_uid == 0
    result = run_module("qemu_save", name="x", path=str(image))
    assert result["error"] == "VmNotFoundError", result["msg"]
    assert f"pid {liar.pid}" in result["msg"]
    assert "set-user-ID" in result["msg"]
    assert f"pid {liar.pid}" in str(run_module("qemu_vm_info")["warnings"])


# --- a monitor with another's name and a forged note ---


def restore_note(image: Path) -> str:
    record = {
        "image": str(image),
        "identity": dataclasses.asdict(ImageIdentity.of(str(image))),
        "expanded": True,
        "capabilities": {},
        "parameters": {},
    }
    return "vmops.qemu restore " + json.dumps(record)


def save_note(partial: Path) -> str:
    record: dict[str, Any] = {
        "partial": str(partial),
        "run_state": "running",
        "capabilities": {},
        "parameters": {},
        "parallel_channels": None,
        "bypass_cache": False,
    }
    return "vmops.qemu save " + json.dumps(record)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.mark.parametrize("kind", ["unix", "tcp"])
@pytest.mark.parametrize("name", ["", VM])
@pytest.mark.parametrize("with_image", [True, False], ids=["image", "no-image"])
def test_forged_note_of_a_restore_ends_no_other_vm(
    attacker: Attacker,
    make_guest: MakeGuest,
    save: Module,
    run_module: Module,
    image: Path,
    kind: str,
    name: str,
    with_image: bool,
) -> None:
    victim = make_guest(observer=True) if name else nameless(make_guest)
    if with_image:
        save(qmp_socket=str(victim.qmp_socket), path=str(image), after_save="resume")
    address = str(attacker.home / "qmp") if kind == "unix" else f"127.0.0.1:{free_port()}"
    attacker.python("forged_qmp.py", address, name, restore_note(image), "inmigrate")
    result = run_module("qemu_restore", path=str(image), qmp_socket=address)
    assert result.get("failed"), result["msg"]
    assert victim.alive()
    assert run_state(victim) == "running"
    assert image.exists() == with_image


def test_note_that_names_another_vms_partial_image(
    twin: Any, guest: CounterGuest, save: Module, run_module: Module, image: Path
) -> None:
    """His own QEMU says that it was being saved into what is another VM's: QEMU has it not open."""
    save(name=VM, path=str(image))
    partial = image.with_name(f".{image.name}.0123456789abcdef.partial")
    data = image.read_bytes().replace(b"LibvirtQemudSave", b"LibvirtQemudPart", 1)
    partial.write_bytes(data)
    partial.chmod(0o600)
    other = twin(name=OTHER_VM)
    with open("/dev/null", "wb") as handle, Monitor(other.socket) as monitor:
        monitor.execute("add-fd", {"opaque": save_note(partial)}, fd=handle.fileno())
    result = run_module("qemu_save", name=OTHER_VM, path=str(image.with_name("other.save")))
    assert not result.get("failed"), result["msg"]
    assert partial.read_bytes() == data
    assert image.exists()
