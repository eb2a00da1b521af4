# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is left of a command in logs, results and messages: no secrets, no planted files, no forged lines."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import struct
import threading
from pathlib import Path
from typing import Any

import pytest

from support.canary import check_refused
from support.observe import VM, Continuity

QEMU = shutil.which("qemu-system-x86_64") or ""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of other users")


# --- what is left in logs and results ---


@pytest.fixture
def log():
    """Where QEMU's output goes that goes to no file which an image records."""
    path = Path("/var/log/vmops.qemu", f"{VM}.log")
    path.unlink(missing_ok=True)
    yield path
    path.unlink(missing_ok=True)


LOGS = {
    "link": lambda planted, victim: planted.symlink_to(victim),
    "second-name": lambda planted, victim: os.link(victim, planted),
    "fifo": lambda planted, victim: os.mkfifo(planted),
    "directory": lambda planted, victim: planted.mkdir(),
    "device": lambda planted, victim: os.mknod(planted, stat.S_IFCHR | 0o600, os.makedev(1, 5)),
}


@pytest.mark.parametrize("plant", LOGS.values(), ids=LOGS.keys())
def test_planted_log(forge, canary, run_module, tmp_path, log, plant):
    """In the place of the file to which the saved QEMU wrote, and of the one that this run makes."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    planted = tmp_path / "planted"
    plant(planted, victim)
    with open(canary.program, "a") as program:
        program.write("echo said\n")
    argv = [str(canary.program), "-name", VM, "-qmp", f"unix:{canary.file.parent}/qmp,server=on"]
    image = forge(argv=argv, executable=str(canary.program), stdout=str(planted), stderr=str(planted))
    result = run_module("qemu_restore", name=VM, path=str(image))
    assert "said" in result["msg"]
    assert log.read_text() == "said\n"
    assert victim.read_text() == "precious"
    log.unlink()
    if plant is not LOGS["directory"]:
        plant(log, victim)
        run_module("qemu_restore", name=VM, path=str(image))
        assert log.read_text() == "said\n"
        assert victim.read_text() == "precious"


def test_log_that_cannot_be_made(forged, canary, run_module, log):
    log.mkdir(parents=True)
    command = [str(canary.program), "-qmp", "unix:/x,server=on"]
    try:
        result = run_module("qemu_restore", name=VM, path=str(forged), launch="command", command=command)
        check_refused(result, "LaunchError", str(log), image=forged, canary=canary)
    finally:
        log.rmdir()


def test_log_is_its_owners_alone(forge, canary, run_module, log):
    log.parent.mkdir(mode=0o700, exist_ok=True)
    log.write_text("earlier\n")
    log.chmod(0o644)
    with open(canary.program, "a") as program:
        program.write("echo said\n")
    argv = [str(canary.program), "-name", VM, "-qmp", f"unix:{canary.file.parent}/qmp,server=on"]
    image = forge(argv=argv, executable=str(canary.program), stdout="", stderr="")
    result = run_module("qemu_restore", name=VM, path=str(image))
    assert "said" in result["msg"]
    assert "earlier" not in result["msg"], "what an earlier one said is no reason for this failure"
    assert log.read_text() == "said\n"
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert list(image.parent.iterdir()) == [image]


SECRET = "hunter2hunter2"

WITH_SECRET = ["-object", f"secret,id=s0,data={SECRET}"]


@pytest.fixture
def host_log(tmp_path):
    """A list of what is written to the host's log, and a prefix for the module that shall write there."""
    received = []
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    place = tmp_path / "log"
    listener.bind(str(place))

    def serve():
        while True:
            data = listener.recv(1 << 20)
            if data == b"end":
                return
            received.append(data.decode(errors="replace"))

    thread = threading.Thread(target=serve)
    thread.start()
    # Mounted where only the module sees it, whether the host has such a socket or not.
    made = not os.path.lexists("/dev/log")
    if made:
        Path("/dev/log").touch()
    yield received, ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /dev/log && exec "$@"', str(place)]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        client.sendto(b"end", str(place))
    thread.join()
    listener.close()
    if made:
        os.unlink("/dev/log")


def test_secrets_of_a_command_are_in_no_result_and_no_log(make_guest, image, start_module, host_log, log):
    said, prefix = host_log
    guest = make_guest(extra_args=WITH_SECRET)
    continuity = Continuity(guest)
    xml = f"<domain type='qemu'><name>{VM}</name><devices><graphics passwd='{SECRET}'/></devices></domain>"
    runs: list[tuple[str, dict[str, Any]]] = [
        # From the mount namespace of the log, QEMU looks like one elsewhere.
        ("qemu_save", {"name": VM, "path": str(image), "domain_xml": xml, "require_restorable": False}),
        ("qemu_save_image_info", {"path": str(image), "stream": True, "verify": True}),
        ("qemu_save_image", {"path": str(image), "domain_xml": xml.replace("><devices", ">\n<devices")}),
        ("qemu_restore", {"path": str(image), "launch": "command", "command": guest.argv()}),
        ("qemu_save", {"name": VM, "path": str(image), "require_restorable": False}),
        ("qemu_restore", {"path": str(image), "launch": "command", "command": guest.argv()}),
    ]
    for module, options in runs:
        result = start_module(module, diff=True, prefix=prefix, **options).result()
        assert not result.get("failed"), result["msg"]
        assert SECRET not in json.dumps(result), module
    assert len([line for line in said if "Invoked with" in line]) == len(runs)
    assert SECRET not in "".join(said)
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    continuity.check()


def test_the_rest_of_a_command_is_seen(forge, canary, run_module):
    """Hidden are the words with secrets in them; the VM's name, which is a word too, is not."""
    image = forge()
    command = [str(canary.program), "-name", VM, *WITH_SECRET]
    result = run_module("qemu_restore", path=str(image), launch="command", command=command)
    shown = result["invocation"]["module_args"]["command"]
    assert shown[:-1] == command[:-1]
    assert "secret" not in shown[-1]
    assert VM in result["msg"]
    xml = f"<domain type='qemu'><name>{VM}</name></domain>"
    result = run_module("qemu_save_image", path=str(image), domain_xml=xml)
    assert result["invocation"]["module_args"]["domain_xml"] == xml


@pytest.mark.parametrize("launch", ["recorded", "command"])
def test_secrets_that_qemu_repeats_at_its_start_are_hidden(forge, saved_launch, run_module, log, launch):
    """QEMU quotes the words that it does not like, and the message quotes QEMU."""
    argv = [*saved_launch.argv, "-object", f"secret,id=s0,data={SECRET},format=nonsense"]
    image = forge(argv=argv, stdout="", stderr="")
    command = {"command": argv} if launch == "command" else {}
    result = run_module("qemu_restore", path=str(image), launch=launch, **command)
    check_refused(result, "LaunchError", "nonsense", image=image)
    assert SECRET in log.read_text(), "QEMU did repeat it"
    assert SECRET not in json.dumps(result)


@pytest.mark.parametrize("launch", ["recorded", "command"])
def test_secrets_that_qemu_repeats_while_it_loads_are_hidden(forge, saved_launch, run_module, tmp_path, log, launch):
    program = tmp_path / "qemu-system-x86_64"
    program.write_text(f'#!/bin/sh\necho "$@" >&2\nexec {QEMU} "$@"\n')
    program.chmod(0o755)
    argv = [str(program), *saved_launch.argv[1:], *WITH_SECRET]
    image = forge(argv=argv, executable=str(program), stdout="", stderr="")
    image.write_bytes(image.read_bytes()[:-100_000])
    command = {"command": argv} if launch == "command" else {}
    result = run_module("qemu_restore", path=str(image), launch=launch, verify="none", **command)
    check_refused(result, "MigrationError", "QEMU said", image=image)
    assert SECRET in log.read_text()
    assert SECRET not in json.dumps(result)


# --- words of others in messages ---


TRICKS = "a\nTASK [all is well]\r\x1b[31m\x1b]0;title\x07\x7f\x85\u202egnp"


def check_plain(result):
    """No text for people has a character that breaks a line, moves a cursor, or turns the text around."""
    for text in (result["msg"], result.get("cure", ""), result.get("guest_state", ""), *result.get("warnings", [])):
        assert text.isprintable(), text


def test_names_in_images_forge_no_lines(run_module, tmp_path):
    image = tmp_path / "web1.save"
    name = "".join(f"&#{ord(character)};" for character in TRICKS if character not in "\x1b\x07")
    xml = f"<domain type='qemu'><name>{name}</name></domain>\0".encode()
    image.write_bytes(struct.pack("=16s6I52x", b"LibvirtQemudSave", 2, 65444, 1, 0, 0, 0) + xml.ljust(65444, b"\0"))
    for module, options in [
        ("qemu_restore", {"name": VM}),
        ("qemu_restore", {}),
        ("qemu_save", {"name": VM}),
        ("qemu_save_image_info", {}),
        ("qemu_save_image", {"vm_state": "paused"}),
    ]:
        result = run_module(module, path=str(image), **options)
        check_plain(result)
    assert run_module("qemu_save_image_info", path=str(image))["image"]["name"].startswith("a\nTASK"), "data is exact"


def test_names_of_vms_and_paths_forge_no_lines(make_guest, run_module, tmp_path):
    guest = make_guest(start=False, extra_args=["-name", f"guest={TRICKS}"])
    guest.start()
    place = tmp_path / f"dir{TRICKS}"
    place.mkdir()
    xml = f"<domain type='qemu'><name>{VM}</name></domain>"
    for options in (
        {"qmp_socket": str(guest.qmp_socket), "path": str(place / "x.save")},
        {"qmp_socket": str(guest.qmp_socket), "path": str(place / "x.save"), "domain_xml": xml},
        {"qmp_socket": str(guest.qmp_socket), "path": str(place / "missing" / "x.save")},
        {"qmp_socket": str(place / "missing.sock"), "path": str(place / "x.save")},
        {"name": VM, "qmp_socket": str(guest.qmp_socket), "path": str(place / "x.save")},
        {"name": TRICKS + "none"},
    ):
        result = run_module("qemu_save", **options)
        assert result["failed"]
        check_plain(result)
    assert guest.alive()


def test_lines_of_qemu_are_one_in_the_message(forged, canary, run_module):
    with open(canary.program, "a") as program:
        program.write(r"printf 'one\n\n  two\r\n\033[31mthree\n'")
    result = run_module("qemu_restore", name=VM, path=str(forged))
    assert r"one; two; \x1b[31mthree" in result["msg"]
    check_plain(result)
