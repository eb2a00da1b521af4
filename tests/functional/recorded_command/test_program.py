# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The recorded program is run only if it is a QEMU of this host that nobody else can have written."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import process as process_module

from support import Monitor, MonitorError
from support.access import AS_NOBODY, NOBODY, give_to_stranger, grant, reachable_by_nobody
from support.canary import check_refused, make_canary
from support.observe import VM, wait_until

QEMU = shutil.which("qemu-system-x86_64") or ""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of other users")


@pytest.mark.parametrize(
    ("argv0", "executable", "said"),
    [
        ("/bin/sh", "/bin/sh", "is not a QEMU"),
        ("/usr/bin/env", "/usr/bin/env", "is not a QEMU"),
        (QEMU, "/bin/sh", "is not a QEMU"),
        ("qemu-system-x86_64", "/bin/sh", "is not a QEMU"),
        ("", "", "is not a QEMU"),
        ("qemu-system-x86_64", "qemu-system-x86_64", "not an absolute path"),
        ("./qemu-system-x86_64", "./qemu-system-x86_64", "not an absolute path"),
        ("x", "../bin/qemu-system-x86_64", "not an absolute path"),
        ("/nonexistent/qemu-system-x86_64", "/nonexistent/qemu-system-x86_64", "No such file"),
        ("qemu", "/nonexistent/qemu", "No such file"),
    ],
)
def test_program_that_is_no_qemu_of_this_hosts(forge, canary, run_module, argv0, executable, said):
    """Also not in the directory that is recorded, where a program of this name lies ready."""
    words = ["-c", f"touch {canary.file}", "-name", VM, "-qmp", "unix:/x,server=on"]
    image = forge(argv=[argv0, *words], executable=executable, cwd=str(canary.program.parent))
    result = run_module("qemu_restore", name=VM, path=str(image))
    check_refused(result, "LaunchError", said, image=image, canary=canary)


def test_name_without_a_path_is_the_program_that_ran(forge, canary, run_module, tmp_path):
    trap = make_canary(tmp_path / "trap")
    argv = ["qemu-system-x86_64", "-name", VM, "-qmp", "unix:/x,server=on"]
    image = forge(argv=argv, executable=str(canary.program), cwd=str(trap.program.parent))
    run_module("qemu_restore", name=VM, path=str(image))
    assert canary.run
    assert not trap.run


UNSAFE_PROGRAM = {
    "writable": lambda program: program.chmod(0o775),
    "of-another": give_to_stranger,
    "directory-writable": lambda program: program.parent.chmod(0o777),
    "directory-of-another": lambda program: give_to_stranger(program.parent),
    "acl": lambda program: grant(program, 0o7),
}


@pytest.mark.parametrize("spoil", UNSAFE_PROGRAM.values(), ids=UNSAFE_PROGRAM.keys())
@pytest.mark.parametrize("uid", [0, NOBODY])
def test_program_that_others_could_have_written(forged, forge, canary, run_module, spoil, uid):
    spoil(canary.program)
    image = forge(argv=[str(canary.program), "-name", VM], executable=str(canary.program), uid=uid)
    result = run_module("qemu_restore", name=VM, path=str(image))
    check_refused(result, "LaunchError", "others could have written its program", image=image, canary=canary)


def test_program_of_the_user_as_whom_it_runs(forge, canary, run_module):
    """It can do no more than this user could without it."""
    for path in (canary.program.parent, canary.program):
        os.chown(path, NOBODY, -1)
    argv = [str(canary.program), "-name", VM, "-qmp", "unix:/x,server=on"]
    image = forge(argv=argv, executable=str(canary.program), uid=NOBODY, cwd="/")
    with reachable_by_nobody(canary.program.parent):
        run_module("qemu_restore", name=VM, path=str(image))
    assert canary.file.stat().st_uid == NOBODY


PAUSE = """
.globl _start
_start:
    mov $34, %eax  # pause, on x86_64
    syscall
    jmp _start
"""


@pytest.fixture
def pretender(tmp_path):
    """Start a program that does nothing, as nobody, with words of one's choice, after a QEMU's name."""
    place = tmp_path / "pretender"
    place.mkdir()
    source, program = place / "pause.s", place / "pause"
    source.write_text(PAUSE)
    subprocess.run(["as", "--64", "-o", place / "pause.o", source], check=True)
    subprocess.run(["ld", "-o", program, place / "pause.o"], check=True)
    started = []

    def start(argv, mode, name):
        target = place / name
        shutil.copy(program, target)
        target.chmod(mode)
        code = "import os, sys; os.execv(sys.argv[1], sys.argv[2:])"
        command = [*AS_NOBODY, sys.executable, "-c", code, str(target), *argv]
        started.append(subprocess.Popen(command, stdin=subprocess.DEVNULL))
        pid = started[-1].pid
        wait_until(lambda: os.readlink(f"/proc/{pid}/exe") == str(target))

        def is_seen():
            doubtful = [process.pid for process in process_module.list_doubtful()]
            return pid in doubtful or pid in [process.pid for process in process_module.list_processes()]

        wait_until(is_seen)
        return pid

    with reachable_by_nobody(place):
        yield start
    for process in started:
        process.kill()
        process.wait()


def greets(path: Path) -> bool:
    """Whether a QEMU answers there."""
    try:
        Monitor(path).close()
    except MonitorError:
        return False
    return True


@pytest.mark.parametrize("trick", ["set-user-id", "run-with"])
def test_user_of_the_host_does_not_become_root_by_a_save(tmp_path, pretender, image, run_module, trick):
    """Root saves and restores all VMs; one is a user's, who says of a process what it is not.

    A QEMU of the user's answers; its program is not called as one, so that the words which are found by the name are
    those of another process. That one belongs to root by the set-user-ID bit of a program of root's, or says that it
    was started by root (-run-with user=), as whom it would be started again. It is none, or not the one that answers.
    """
    run = tmp_path / "run"
    run.mkdir()
    os.chown(run, NOBODY, -1)
    program = shutil.copy(QEMU, tmp_path / "program")
    firmware = ["-L", "/usr/share/qemu", "-L", "/usr/share/seabios"]
    qmp = f"unix:{run}/qmp,server=on,wait=off"
    quiet = ["-nodefaults", "-display", "none", "-machine", "pc", "-m", "16", "-S"]
    victim = tmp_path / "victim"
    argv = [QEMU, "-name", VM, "-qmp", qmp, *quiet, "-pidfile", str(victim)]
    if trick == "run-with":
        argv += ["-run-with", "user=nobody"]
    with reachable_by_nobody(run):
        server = subprocess.Popen([*AS_NOBODY, program, *firmware, "-name", VM, "-qmp", qmp, *quiet])
        try:
            wait_until(lambda: greets(run / "qmp"))
            if trick == "set-user-id":
                pid = pretender(argv, 0o4755, "login")
                assert os.stat(f"/proc/{pid}").st_uid == 0
            else:
                pid = pretender(argv, 0o755, "qemu-system-x86_64")
            refused = run_module("qemu_save", name=VM, path=str(image), format="raw")
            expected = {"set-user-id": "VmNotFoundError", "run-with": "MonitorForeignError"}
            assert refused["error"] == expected[trick], refused["msg"]
            assert f"pid {pid}" in refused["msg"]
            # By its socket it is saved, but which process answers there is not guessed.
            options = {"qmp_socket": str(run / "qmp"), "path": str(image), "format": "raw"}
            result = run_module("qemu_save", require_restorable=False, **options)
            assert not result.get("failed"), result["msg"]
            os.kill(pid, signal.SIGKILL)
        finally:
            server.kill()
            server.wait()
    result = run_module("qemu_restore", name=VM, path=str(image))
    check_refused(result, "LaunchError", "does not record how", image=image)
    assert not victim.exists()


def test_process_cannot_hide_its_user(pretender):
    """What /proc shows in its files is root's where a process may not be looked into; its directory tells the truth."""
    pid = pretender([QEMU, "-name", VM], 0o711, "qemu-system-x86_64")  # a program that may not be read
    assert os.stat(f"/proc/{pid}/fd").st_uid == 0
    process = process_module.read_process(pid)
    assert process is not None
    assert process.uid == NOBODY
