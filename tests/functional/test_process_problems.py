# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who starts a VM, and where: what of that a restore would not give again is found before the VM is saved."""

from __future__ import annotations

import asyncio
import ctypes
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import resources
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import read_process
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.revival import boot_time, look_for_revival
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.process import process_problems
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.supervisor import waits_for

from support import find_qemu_pids
from support.observe import VM, Continuity, wait_until
from support.versions import OLD_QEMU, why_not_restored

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make namespaces")


@pytest.fixture
def start_by(make_guest, tmp_path):
    """Start a guest by somebody else: ``start_by(["taskset", "-c", "0"])``."""
    starters = []

    def start(prefix=(), script="", options=("-nic", "none"), cwd=None, suffix=(), argv=None):
        """``script``: the text of a shell script, in which QEMU stands for the command."""
        guest = make_guest(start=False, extra_args=options)
        guest.prepare()
        command = argv or [*prefix, *guest.argv(), *suffix]
        if script:
            path = tmp_path / "start-vm"
            path.write_text(script.replace("QEMU", shlex.join(guest.argv())))
            path.chmod(0o755)
            command = [*prefix, str(path)]
        starters.append(
            subprocess.Popen(command, stdin=subprocess.DEVNULL, cwd=cwd or guest.workdir, start_new_session=True)
        )
        guest.wait_restarted()
        guest.wait_for_counter()
        return guest

    yield start
    for starter in starters:
        # It would start the guest again.
        starter.kill()
        starter.wait()


def qemu_of(guest):
    process = read_process(guest.pid)
    assert process
    return process


def problems_of(guest, by_unit=False):
    return {problem.kind: problem for problem in process_problems(qemu_of(guest), by_unit)}


def kinds_of(guest):
    """All that is found beside the parent, which is the tests' Python."""
    return sorted(set(problems_of(guest)) - {"supervisor_unknown"})


# --- where it runs ---


def test_ordinary_guest(make_guest):
    """What the tests start themselves has a Python for its parent, of which nothing can be known."""
    guest = make_guest()
    problems = problems_of(guest)
    assert list(problems) == ["supervisor_unknown"]
    assert not problems["supervisor_unknown"].blocks
    assert f"(pid {os.getpid()})" in problems["supervisor_unknown"].what
    assert problems_of(guest, by_unit=True) == {}


def test_look_is_fast(make_guest):
    process = qemu_of(make_guest())
    started = time.monotonic()
    for _time in range(20):
        process_problems(process, False)
    assert (time.monotonic() - started) / 20 < 0.05


@only_root
def test_mount_namespace(start_by):
    guest = start_by(["unshare", "--mount"])
    problems = problems_of(guest)
    assert problems["mount_namespace"].blocks
    assert kinds_of(guest) == ["mount_namespace"]
    assert problems_of(guest, by_unit=True) == {}


@only_root
@pytest.mark.parametrize(
    ("options", "blocks"),
    [
        (["-nic", "none"], None),
        ([], None),  # the guest's command line has -nodefaults
        (["-netdev", "user,id=n0", "-device", "e1000,netdev=n0"], True),
        (["-nic", "user"], True),
        (["-net", "nic", "-net", "user"], True),
        (["-vnc", "127.0.0.1:77"], False),
        (["-chardev", "socket,id=c,host=127.0.0.1,port=0,server=on,wait=off"], False),
    ],
)
def test_network_namespace(start_by, options, blocks):
    script = 'ip link set lo up; exec "$@"'
    guest = start_by(["unshare", "--net", "sh", "-c", script, "sh"], options=options)
    problem = problems_of(guest).get("network_namespace")
    assert (problem and problem.blocks) == blocks
    assert kinds_of(guest) == ([] if blocks is None else ["network_namespace"])


@only_root
def test_named_network_namespace(start_by):
    """It is entered again; in another mount namespace than ip makes a path may be another file."""
    name = f"vmops-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        guest = start_by(["ip", "netns", "exec", name], options=["-nic", "user"])
        assert kinds_of(guest) == []
        guest.end()
        guest = start_by(["unshare", "--mount", "nsenter", f"--net=/run/netns/{name}"], options=["-nic", "user"])
        assert kinds_of(guest) == ["mount_namespace"]
        guest.end()
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


@only_root
def test_network_namespace_that_can_be_given_a_name(start_by):
    """As its cure says."""
    name = f"vmops-{os.getpid()}"
    guest = start_by(["unshare", "--net"], options=["-nic", "user"])
    assert f"ip netns attach NAME {guest.pid}" in problems_of(guest)["network_namespace"].cure
    subprocess.run(["ip", "netns", "attach", name, str(guest.pid)], check=True)
    try:
        assert kinds_of(guest) == []
        guest.end()
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


@only_root
def test_user_namespace(start_by):
    guest = start_by(["unshare", "--user", "--map-root-user"])
    assert kinds_of(guest) == ["user_namespace"]
    assert problems_of(guest)["user_namespace"].blocks


@only_root
@pytest.mark.parametrize("prefix", [["unshare", "--ipc"], ["unshare", "--pid", "--fork", "--kill-child"]])
def test_namespace_of_its_own_processes(start_by, prefix):
    problem = problems_of(start_by(prefix)).get("process_namespace")
    assert problem is not None
    assert problem.blocks


@only_root
def test_root_directory(start_by, tmp_path):
    jail = tmp_path / "jail"
    jail.mkdir()
    # In the same mount namespace, with all that QEMU needs.
    subprocess.run(["mount", "--rbind", "--make-rslave", "/", str(jail)], check=True)
    guest = None
    try:
        guest = start_by(["chroot", str(jail)])
        problems = problems_of(guest)
        assert problems["root_directory"].blocks
        assert str(jail) in problems["root_directory"].what
        assert kinds_of(guest) == ["root_directory"]
    finally:
        if guest:
            guest.end()
        subprocess.run(["umount", "--lazy", str(jail)], check=True)


@only_root
@pytest.mark.parametrize("relative", [False, True])
def test_jail_of_qemus_own(start_by, tmp_path, relative):
    jail = tmp_path / "jail"
    jail.mkdir()
    disk = tmp_path / "disk.raw"
    disk.write_bytes(bytes(2**20))
    name = disk.name if relative else str(disk)
    drive = f"if=none,id=d0,format=raw,file={name}"
    guest = start_by(options=["-nic", "none", "-run-with", f"chroot={jail}", "-drive", drive], cwd=tmp_path)
    assert kinds_of(guest) == []
    if relative:
        assert qemu_of(guest).cwd == str(tmp_path), "where it was started is known by what it has open"


@only_root
def test_jail_whose_directory_before_is_not_known(start_by, tmp_path):
    """Nothing that it has open tells where its relative names count from."""
    jail = tmp_path / "jail"
    jail.mkdir()
    chardev = "socket,id=c0,path=c.sock,server=on,wait=off"
    guest = start_by(options=["-nic", "none", "-run-with", f"chroot={jail}", "-chardev", chardev], cwd=tmp_path)
    assert kinds_of(guest) == ["root_directory"]
    problem = problems_of(guest)["root_directory"]
    assert "c.sock" in problem.what
    assert str(jail) in problem.what


@only_root
def test_process_that_may_not_be_looked_at(start_by, tmp_path):
    """By another user, in a process of that one's own."""
    guest = start_by()
    code = (
        "import sys; from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import read_process;"
        "from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.process import process_problems;"
        "print(*[(p.kind, p.blocks) for p in process_problems(read_process(int(sys.argv[1])), False)])"
    )
    collections = os.environ["ANSIBLE_COLLECTIONS_PATH"]
    readable = tmp_path / "collections"
    shutil.copytree(collections, readable, symlinks=True, ignore=shutil.ignore_patterns(".*", "tests"))
    for place in (tmp_path, *tmp_path.parents[:2]):
        place.chmod(0o755)
    done = subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "python3", "-c", code, str(guest.pid)],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{readable}:{':'.join(sys.path)}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "('process_unknown', True)" in done.stdout, done.stderr


# --- what is lost ---


def test_affinity_of_a_thread(start_by):
    """Who asks QEMU for the names of its threads knows which of them a later one has."""
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        pytest.skip("one CPU")
    guest = start_by()
    thread = guest.qmp("query-cpus-fast")[0]["thread-id"]
    assert kinds_of(guest) == []
    os.sched_setaffinity(thread, {cpus[0]})
    assert f"of the thread {thread} of" in problems_of(guest)["cpu_affinity"].what
    assert not problems_of(guest)["cpu_affinity"].blocks


@pytest.mark.parametrize(
    ("prefix", "tool", "kind", "said"),
    [
        (["taskset", "-c", "0"], "taskset", "cpu_affinity", "the CPUs 0 of"),
        (["nice", "-n", "7"], "renice", "priority", "nice value"),
        (["chrt", "--batch", "0"], "chrt", "priority", "batch"),
        (["prlimit", "--memlock=1048576"], "prlimit", "resource_limits", "locked memory 1048576"),
        (["prlimit", "--nofile=777"], "prlimit", "resource_limits", "open files 777"),
        (["prlimit", "--fsize=1099511627776"], "prlimit", "resource_limits", "file size"),
        (["choom", "-n", "300", "--"], "", "", ""),
    ],
)
def test_what_is_lost_where_a_tool_is_missing(start_by, monkeypatch, prefix, tool, kind, said):
    guest = start_by(prefix)
    assert kinds_of(guest) == []
    monkeypatch.setattr(resources, "find_tool", lambda name: "" if name == tool else f"/usr/bin/{name}")
    assert kinds_of(guest) == ([kind] if kind else [])
    if kind:
        problem = problems_of(guest)[kind]
        assert not problem.blocks
        assert said in problem.what


def test_memory_policy(start_by, monkeypatch):
    """As numactl sets it."""
    code = (
        "import ctypes, os, sys; libc = ctypes.CDLL(None, use_errno=True); nodes = ctypes.c_ulong(1);"
        "done = libc.syscall(238, 3, ctypes.byref(nodes), 64); os.execv(sys.argv[1 + bool(done)], sys.argv[1:])"
    )
    libc = ctypes.CDLL(None, use_errno=True)
    if os.uname().machine != "x86_64" or libc.syscall(239, None, None, 0, None, 0):
        pytest.skip("no NUMA policies here")
    guest = start_by([sys.executable, "-c", code])
    monkeypatch.setattr(resources, "find_tool", lambda name: f"/usr/bin/{name}")
    assert kinds_of(guest) == []
    monkeypatch.setattr(resources, "find_tool", lambda name: "" if name == "numactl" else f"/usr/bin/{name}")
    assert kinds_of(guest) == ["memory_policy"]
    assert "interleave:0" in problems_of(guest)["memory_policy"].what


def test_logs_that_begin_anew(start_by, tmp_path):
    log, trace, dump = (str(tmp_path / name) for name in ("log", "trace", "dump"))
    guest = start_by(
        options=[
            *("-D", log, "-trace", f"enable=qmp_enter*,file={trace}"),
            *("-netdev", "user,id=n", "-object", f"filter-dump,id=f,netdev=n,file={dump}"),
        ]
    )
    process = qemu_of(guest)
    found = [p for p in process_problems(process, False) if p.kind == "log_begun_anew"]
    assert [problem.what.split(" (")[0] for problem in found] == [log, trace, dump]
    assert not any(problem.blocks for problem in found)


# --- who waits for it ---


@pytest.mark.parametrize(
    "script",
    [
        "#!/bin/sh\nwhile :; do QEMU; sleep 1; done\n",
        "#!/bin/bash\nuntil QEMU\ndo\n  sleep 1\ndone\n",
        '#!/bin/bash\nset -- QEMU\nfor n in 1 2 3; do nice -n 0 "$@"; done\n',
    ],
)
def test_shell_that_runs_it_in_a_loop(start_by, script):
    guest = start_by(script=script)
    problem = problems_of(guest)["supervisor"]
    assert problem.blocks
    assert "start-vm (pid " in problem.what
    assert kinds_of(guest) == ["supervisor"]
    assert waits_for(guest.pid)


def test_command_of_a_shell_in_a_loop(start_by):
    guest = start_by(["sh", "-c", 'while :; do "$@"; sleep 1; done', "sh"])
    assert problems_of(guest)["supervisor"].blocks


def test_script_within_a_loop(start_by, tmp_path):
    outer = tmp_path / "always"
    outer.write_text('#!/bin/sh\nwhile :; do "$1"; sleep 1; done\n')
    outer.chmod(0o755)
    guest = start_by([str(outer)], script="#!/bin/sh\nQEMU\nexit 0\n")
    problem = problems_of(guest)
    assert "always (pid " in problem["supervisor"].what


def test_script_without_a_loop(start_by):
    guest = start_by(script="#!/bin/sh\nfor n in 1 2; do true; done\nQEMU\nexit 0\n")
    problem = problems_of(guest)["supervisor_unknown"]
    assert not problem.blocks
    assert "start-vm (pid " in problem.what
    assert waits_for(guest.pid)


@pytest.mark.parametrize("name", ["supervisord", "runsv", "monit", "tini"])
def test_programs_that_are_known(start_by, tmp_path, name):
    """By their own names, which is all that is looked at; supervisord is such a script, too."""
    program = tmp_path / name
    program.write_text(f"#!{sys.executable}\nimport subprocess, sys\nsubprocess.call(sys.argv[1:])\n")
    program.chmod(0o755)
    guest = start_by([str(program)])
    problem = problems_of(guest)["supervisor"]
    assert problem.blocks
    assert name in problem.what


def test_program_above_one_whose_intention_is_not_known(start_by, tmp_path):
    program = tmp_path / "supervisord"
    text = f"#!{sys.executable}\nimport subprocess, sys\nsubprocess.call(sys.argv[1:])\n"
    for place in (program, tmp_path / "panel"):
        place.write_text(text)
        place.chmod(0o755)
    guest = start_by([str(program), str(tmp_path / "panel")])
    assert not problems_of(guest)["supervisor_unknown"].blocks
    assert "panel" in problems_of(guest)["supervisor_unknown"].what


def test_nobody_waits_for_a_daemon(start_by):
    guest = start_by(suffix=["-daemonize"])
    wait_until(lambda: not waits_for(guest.pid))
    assert problems_of(guest) == {}


def test_shell_in_a_terminal(make_guest):
    """Somebody has typed the command: nothing is to be said, whatever runs the terminal."""
    guest = make_guest(start=False, extra_args=["-nic", "none"])
    guest.prepare()
    child, terminal = os.forkpty()
    if child == 0:
        os.environ["PS1"] = "$ "
        os.execv("/bin/bash", ["bash", "--norc", "-i"])
    try:
        os.write(terminal, f"{shlex.join(guest.argv())}\n".encode())
        guest.wait_restarted()
        assert problems_of(guest) == {}
        assert waits_for(guest.pid)
        guest.end()
        # A part of it that runs in the background waits for QEMU, and what it does then is not seen.
        os.write(terminal, f"( while :; do {shlex.join(guest.argv())}; done ) &\n".encode())
        guest.wait_restarted()
        assert not problems_of(guest)["supervisor_unknown"].blocks
    finally:
        for line in Path(f"/proc/{child}/task/{child}/children").read_text().split():
            os.kill(int(line), signal.SIGKILL)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(terminal)


def test_script_that_is_no_file_is_not_read(start_by, tmp_path):
    """Its name leads to a FIFO meanwhile."""
    guest = start_by(script="#!/bin/sh\nwhile :; do QEMU; done\n")
    (tmp_path / "start-vm").unlink()
    os.mkfifo(tmp_path / "start-vm")
    problem = problems_of(guest)["supervisor_unknown"]
    assert "cannot be read" in problem.what


# --- somebody has started it again ---


def test_started_again(start_by):
    guest = start_by(script="#!/bin/sh\nwhile :; do QEMU; sleep 0.3; done\n")
    process = qemu_of(guest)
    since = boot_time()
    guest.qmp("quit")
    found = asyncio.run(look_for_revival(VM, "", process, 5.0, since))
    assert found
    assert found.pid != process.pid
    assert find_qemu_pids(VM) == [found.pid]


def test_not_started_again(start_by, make_guest):
    """Another VM of that name that ran before does not count, nor one that is another by its UUID."""
    uuid = "6a1d9f9c-2a5b-4d0e-9a3e-1f2a3b4c5d6e"
    other = make_guest(uuid=uuid.replace("6", "7"))
    guest = start_by(options=["-uuid", uuid])
    process = qemu_of(guest)
    time.sleep(0.02)
    since = boot_time()
    guest.end()
    started = time.monotonic()
    assert asyncio.run(look_for_revival(VM, "", process, 0.3, since)) is None
    assert 0.3 <= time.monotonic() - started < 2
    assert asyncio.run(look_for_revival(VM, uuid, process, 0)) is None
    found = asyncio.run(look_for_revival(VM, "", process, 0))
    assert found
    assert found.pid == other.pid


# --- files to which QEMU writes on the host ---


@pytest.mark.parametrize("qemu", ["qemu-system-x86_64", str(OLD_QEMU)])
def test_console_keeps_its_history(make_guest, image, save, restore, tmp_path, qemu):
    """Twice, and whatever the form in which the file is named."""
    if qemu == str(OLD_QEMU) and why_not_restored():
        pytest.skip(why_not_restored())
    logs = {name: tmp_path / f"{name}, log" for name in ("short", "monitor", "chardev", "copy", "short-copy")}
    sockets = tmp_path / "sockets"
    sockets.mkdir()
    doubled = {name: str(path).replace(",", ",,") for name, path in logs.items()}
    words = [
        *("-serial", f"file:{logs['short']}"),
        *("-monitor", f"file:{logs['monitor']}"),
        *("-chardev", f"file,id=written,path={doubled['chardev']}", "-device", "isa-serial,chardev=written,index=2"),
        *("-chardev", f"null,id=copied,logfile={doubled['copy']}", "-device", "isa-serial,chardev=copied,index=3"),
        *("-monitor", f"unix:{sockets}/hmp,server=on,wait=off,logfile={doubled['short-copy']}"),
    ]
    guest = make_guest(extra_args=words, qemu=qemu, machine="pc-i440fx-7.2" if "7.2" in qemu else "pc")
    continuity = Continuity(guest)
    told = {path: f"what {name} had said\n" for name, path in logs.items()}
    for path, text in told.items():
        path.write_text(text)
    for _time in range(2):
        save(name=VM, path=str(image))
        guest.wait_exit()
        restore(name=VM, path=str(image))
        continuity.check()
        for path, text in told.items():
            assert path.read_text().startswith(text)
            # Through what QEMU has open now, and where its end is now.
            told[path] = path.read_text()
    argv = Path(f"/proc/{guest.pid}/cmdline").read_text().split("\0")
    assert len([word for word in argv if "append=on" in word]) == 6  # one of them is the guest's own


def test_console_shared_with_a_monitor_keeps_its_history(make_guest, image, save, restore, tmp_path):
    log = tmp_path / "console"
    guest = make_guest(extra_args=["-serial", f"mon:file:{log}"])
    continuity = Continuity(guest)
    log.write_text("what it had said\n")
    for _time in range(2):
        save(name=VM, path=str(image))
        restore(name=VM, path=str(image))
        continuity.check()
    assert log.read_text().startswith("what it had said\n")
    labels = {device["label"] for device in guest.qmp("query-chardev")}
    assert {"serial1", "serial1-base"} <= labels, "it is a multiplexer still"
