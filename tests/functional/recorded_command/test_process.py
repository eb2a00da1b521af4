# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the process that a recorded command starts is given: what it had before, and nothing of its caller's."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import stat
import threading
from pathlib import Path

import pytest

from support import find_qemu_pids
from support.access import NOBODY
from support.canary import check_refused
from support.observe import VM

QEMU = shutil.which("qemu-system-x86_64") or ""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of other users")


@pytest.mark.usefixtures("end_restored")
def test_caller_passes_nothing_on(image, saved_launch, forge, start_module, monkeypatch, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    for name in ("SSH_AUTH_SOCK", "AWS_SECRET_ACCESS_KEY", "ANSIBLE_VAULT_PASSWORD_FILE", "LD_LIBRARY_PATH", "IFS"):
        monkeypatch.setenv(name, "/nonexistent")
    forge()
    leak = ["sh", "-c", 'exec 8<"$0" 9>>"$0"; umask 0; exec "$@"', str(secret)]
    result = start_module("qemu_restore", name=VM, path=str(image), prefix=leak).result()
    assert not result.get("failed"), result["msg"]
    base = Path(f"/proc/{result['vm']['pid']}")
    variables = [entry.partition("=")[0] for entry in base.joinpath("environ").read_text().split("\0") if entry]
    assert sorted(variables) == ["LANG", "PATH"]
    assert str(secret) not in [os.readlink(entry) for entry in base.joinpath("fd").iterdir()]
    assert os.readlink(base / "cwd") == saved_launch.cwd


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o007])
def test_umask_is_the_saved_ones(make_guest, image, save, start_module, umask):
    """Who may use the monitor's socket is as it was, whatever umask the restore itself runs with."""
    guest = make_guest(start=False)
    before = os.umask(umask)
    try:
        guest.start()
    finally:
        os.umask(before)
    mode = stat.S_IMODE(guest.qmp_socket.stat().st_mode)
    assert mode == 0o777 & ~umask
    save(name=VM, path=str(image))
    start_module("qemu_restore", name=VM, path=str(image), prefix=["sh", "-c", 'umask 0; exec "$@"', "sh"]).result()
    assert guest.adopt_restarted()
    assert stat.S_IMODE(guest.qmp_socket.stat().st_mode) == mode


@pytest.mark.usefixtures("end_restored")
def test_without_a_recorded_umask_nobody_else_may_use_the_monitor(forge, saved_launch, start_module):
    image = forge(umask="")
    prefix = ["sh", "-c", 'umask 0; exec "$@"', "sh"]
    result = start_module("qemu_restore", name=VM, path=str(image), prefix=prefix).result()
    assert not result.get("failed"), result["msg"]
    path = next(word for word in saved_launch.argv if word.startswith("unix:"))[len("unix:") :].partition(",")[0]
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o755


def test_preloaded_library_is_not_passed_on(forge, canary, start_module):
    """A program of the linker's is run in every process that has LD_PRELOAD, before it begins."""
    canary.program.write_text(f"#!/bin/sh\nprintf 'LD_PRELOAD=%s\\0' \"$LD_PRELOAD\" >{canary.file}\n")
    image = forge(argv=[str(canary.program), "-name", VM, "-qmp", "unix:/x,server=on"], executable=str(canary.program))
    prefix = ["env", "LD_PRELOAD=libc.so.6"]
    start_module("qemu_restore", name=VM, path=str(image), prefix=prefix).result()
    assert canary.words == ["LD_PRELOAD="]


@pytest.mark.parametrize(
    ("cwd", "said"),
    [
        ("{0}/missing", "No such file"),
        ("{0}/save/web1.save", "Not a directory"),
        ("", "No such file"),
        ("/" + "d" * 300, "File name too long"),
    ],
)
def test_directory_that_is_not_there(forge, canary, run_module, tmp_path, cwd, said):
    argv = [str(canary.program), "-name", VM, "-qmp", "unix:/x,server=on"]
    image = forge(argv=argv, executable=str(canary.program), cwd=cwd.format(tmp_path))
    result = run_module("qemu_restore", name=VM, path=str(image))
    check_refused(result, "LaunchError", said, image=image, canary=canary)


@pytest.mark.parametrize("uid", [2**31, 2**32 - 1, 2**32, 2**64])
@pytest.mark.parametrize("field", ["uid", "gid"])
def test_user_that_cannot_be(forge, canary, run_module, uid, field):
    argv = [str(canary.program), "-name", VM, "-qmp", "unix:/x,server=on"]
    image = forge(argv=argv, executable=str(canary.program), **{"uid": NOBODY, "gid": NOBODY, field: uid})
    result = run_module("qemu_restore", name=VM, path=str(image))
    # The last number of 32 bits and all beyond mean nobody to the kernel (chown's -1), or are cut to others.
    if uid < 2**32 - 1:
        assert result["error"] == "LaunchError", result["msg"]
        assert not canary.run or canary.file.stat().st_uid == uid
        assert image.exists()
    else:
        check_refused(result, "ImageFormatError", f"impossible {field}: {uid}", image=image, canary=canary)


@pytest.mark.usefixtures("end_restored")
def test_someone_who_listens_at_the_socket_gets_nothing(image, saved_launch, forge, run_module):
    """The image's descriptors hold the guest's memory: they go to the QEMU that was started, and to no other."""
    path = next(word for word in saved_launch.argv if word.startswith("unix:"))[len("unix:") :].partition(",")[0]
    forge()
    greeting = (
        b'{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": ""}, "capabilities": []}}'
    )
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    heard = []
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()

    def serve():
        with contextlib.suppress(OSError):
            while True:
                client, _address = listener.accept()
                client.sendall(greeting + b"\r\n")
                heard.append(client.recv(65536))
                client.sendall(b'{"return": {}}\r\n')
                heard.append(client.recv(65536))
                client.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        result = run_module("qemu_restore", name=VM, path=str(image))
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
    assert not result.get("failed"), result["msg"]
    assert result["vm"]["pid"] in find_qemu_pids(VM)
    assert b"add-fd" not in b"".join(heard)
