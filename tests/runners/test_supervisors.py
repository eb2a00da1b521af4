# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""VMs that a supervisor starts again as soon as QEMU ends: the save is refused, unless it was told to let go."""

from __future__ import annotations

import shlex

import pytest
from runners.programs import program, tool, words_of

from support import find_qemu_pids
from support.observe import VM, Continuity, wait_until


@pytest.fixture
def supervised(make_guest, tmp_path):
    """A guest that a supervisor shall start, and its command line."""
    guest = make_guest(start=False)
    guest.prepare()
    return guest


def check_refused(run_module, guest, image, label):
    result = run_module("qemu_save", name=VM, path=str(image))
    assert result["error"] == "NotRestorableError", result["msg"]
    (problem,) = [problem for problem in result["problems"] if problem["kind"] == "supervisor"]
    assert problem["blocks"]
    assert label in problem["what"]
    assert "run the VM as the main process of a systemd unit" in result["cure"]
    assert not image.exists()
    assert guest.alive()


class Supervisord:
    """One of its own, with one program."""

    def __init__(self, tmp_path, start_runner, run_runner, command, **settings):
        self.configuration = tmp_path / "supervisord.conf"
        socket = tmp_path / "supervisor.sock"
        lines = "".join(f"{key}={value}\n" for key, value in settings.items())
        self.configuration.write_text(
            f"[supervisord]\nnodaemon=true\nlogfile={tmp_path}/supervisord.log\npidfile={tmp_path}/supervisord.pid\n"
            "user=root\n"
            f"[unix_http_server]\nfile={socket}\n[rpcinterface:supervisor]\n"
            "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface\n"
            f"[supervisorctl]\nserverurl=unix://{socket}\n"
            f"[program:web1]\ncommand={command.replace('%', '%%')}\nautostart=true\nstartsecs=0\n{lines}"
        )
        self._run = run_runner
        start_runner(program("supervisor", "supervisord"), "-c", self.configuration)

    def control(self, *words, **options):
        return self._run(program("supervisor", "supervisorctl"), "-c", self.configuration, *words, **options)


def test_supervisord(supervised, tmp_path, start_runner, run_runner, image, run_module):
    Supervisord(tmp_path, start_runner, run_runner, shlex.join(supervised.argv()), autorestart="true")
    supervised.wait_restarted()
    check_refused(run_module, supervised, image, "supervisord (pid ")


def test_supervisord_whose_operator_knows_that_it_does_not(
    supervised, tmp_path, start_runner, run_runner, image, save, restore
):
    """It has the VM for one that has exited, and starts it when it is told to."""
    supervisor = Supervisord(
        tmp_path, start_runner, run_runner, shlex.join(supervised.argv()), autorestart="unexpected"
    )
    supervised.wait_restarted()
    supervised.wait_for_counter()
    continuity = Continuity(supervised)
    save(name=VM, path=str(image), require_restorable=False)
    wait_until(lambda: "EXITED" in supervisor.control("status", status=3))
    restore(name=VM, path=str(image), launch="command", command=supervised.argv())
    continuity.check()


def test_supervisord_and_a_vm_without_a_monitor(
    supervised, tmp_path, start_runner, run_runner, image, run_module, end_later
):
    argv = [*supervised.argv()[:3], "-machine", "pc", "-display", "none", *words_of(supervised, monitor=False)]
    Supervisord(tmp_path, start_runner, run_runner, shlex.join(argv), autorestart="true")
    wait_until(lambda: find_qemu_pids(VM))
    end_later(find_qemu_pids(VM)[0])
    result = run_module("qemu_save", name=VM, path=str(image))
    assert f"Add -qmp unix:/run/{VM}.qmp,server=on,wait=off to command= in its section [program:web1]" in result["cure"]


def test_loop_of_a_shell(supervised, tmp_path, start_runner, image, run_module):
    script = tmp_path / "always"
    script.write_text(f"#!/bin/sh\nwhile :; do\n  {shlex.join(supervised.argv())}\n  sleep 1\ndone\n")
    script.chmod(0o755)
    start_runner(script)
    supervised.wait_restarted()
    check_refused(run_module, supervised, image, "runs it in a loop")


def make_service(guest, tmp_path):
    """A directory with the script `run`, as runit and s6 want it."""
    service = tmp_path / "web1"
    service.mkdir()
    run = service / "run"
    run.write_text(f"#!/bin/sh\nexec {shlex.join(guest.argv())}\n")
    run.chmod(0o755)
    return service


def check_let_go(guest, image, save, restore, is_down):
    """What is saved and restored after its supervisor was told not to start it again.

    is_down: whether the supervisor has the service for one that is down, and nothing is left for it to do.
    """
    guest.wait_for_counter()
    continuity = Continuity(guest)
    save(name=VM, path=str(image), require_restorable=False)
    wait_until(is_down)
    assert find_qemu_pids(VM) == []
    restored = restore(name=VM, path=str(image), launch="command", command=guest.argv())
    continuity.check()
    assert is_down()
    assert find_qemu_pids(VM) == [restored["vm"]["pid"]]


def test_runit(supervised, tmp_path, start_runner, image, run_module):
    start_runner(program("runit", "runsv"), make_service(supervised, tmp_path))
    supervised.wait_restarted()
    check_refused(run_module, supervised, image, "runsv (pid ")


def test_runit_that_was_told_once(supervised, tmp_path, start_runner, run_runner, image, save, restore):
    service = make_service(supervised, tmp_path)
    start_runner(program("runit", "runsv"), service)
    supervised.wait_restarted()
    run_runner(*tool("runit", "sv"), "once", service)
    status = service / "supervise" / "stat"
    check_let_go(supervised, image, save, restore, lambda: status.read_text().startswith("down"))


def test_s6(supervised, tmp_path, start_runner, image, run_module):
    start_runner(program("s6", "s6-supervise"), make_service(supervised, tmp_path))
    supervised.wait_restarted()
    check_refused(run_module, supervised, image, "s6-supervise (pid ")


def test_s6_that_was_told_once(supervised, tmp_path, start_runner, run_runner, image, save, restore):
    service = make_service(supervised, tmp_path)
    start_runner(program("s6", "s6-supervise"), service)
    supervised.wait_restarted()
    run_runner(*tool("s6", "s6-svc"), "-O", service)
    status = [*tool("s6", "s6-svstat"), "-o", "up", service]
    check_let_go(supervised, image, save, restore, lambda: run_runner(*status).strip() == "false")


def test_parent_that_is_not_known(supervised, tmp_path, start_runner, image, run_module):
    """It is not taken for harmless: it is said, and the VM that it starts again is found."""
    keeper = tmp_path / "keeper.py"
    keeper.write_text(
        "import subprocess, sys, time\nfor _time in range(2):\n"
        "    subprocess.run(sys.argv[1:], stdin=subprocess.DEVNULL)\ntime.sleep(600)\n"
    )
    start_runner("/usr/bin/python3", keeper, *supervised.argv(), cwd=supervised.workdir)
    supervised.wait_restarted()
    supervised.wait_for_counter()
    (vm,) = run_module("qemu_vm_info", name=[VM])["vms"]
    (problem,) = [problem for problem in vm["problems"] if problem["kind"] == "supervisor_unknown"]
    assert "cannot be known" in problem["what"]
    result = run_module("qemu_save", name=VM, path=str(image))
    assert result["error"] == "ConflictError", result["msg"]
    assert "was started again, from its disks" in result["msg"]
    assert result["image"]["state"] == "complete"
