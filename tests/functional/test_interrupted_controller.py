# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The controller is killed, its connection dropped, its patience at an end: the same play, run again, ends right.

What becomes of the module then differs: it dies with its controller, or goes on alone, or is told to end. While it
goes on, a second run gets a clear error at once; when nothing is at work any more, a run ends with the guest saved or
running: never neither, never both.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._proc import birth_of
from ansible_collections.vmops.qemu.plugins.module_utils._run_directory import run_directory

from support import Monitor, find_qemu_pids, observe, ssh
from support.observe import VM, Continuity, run_state

#: How often the controller is killed; each time once in a save and once in a restore.
KILLS = int(os.environ.get("CONTROLLER_KILLS", "2"))
SEED = int(os.environ.get("CONTROLLER_SEED", "1"))
#: The rest of the ways in which a connection or a task's patience ends; what runs always has one of each.
all_ways = pytest.mark.skipif("CONTROLLER_KILLS" not in os.environ, reason="run by make test-controller")
_TOKEN = "VMOPS_TEST_PLAY"
COMPLETE = b"LibvirtQemudSave"


# --- plays ---


class PlayRun:
    """An ansible-playbook that runs."""

    def __init__(self, command, environment, token):
        self.token = token
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            text=True,
            start_new_session=True,
        )

    def modules(self):
        """The processes of the module on the managed host, wherever their controller is."""
        return [pid for pid in processes_with(self.token) if os.path.basename(argv0(pid)).startswith("python")]

    def wait_module(self):
        wait_until(lambda: self.modules() or self.process.poll() is not None)
        assert self.process.poll() is None, self.process.communicate()[0]

    def kill(self, everything):
        """SIGKILL the controller's first process, or all that belongs to it, the module too."""
        doomed = [self.process.pid]
        if everything:
            doomed += descendants(self.process.pid) + processes_with(self.token)
        for pid in doomed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()

    def result(self, timeout=240):
        """What the task returned."""
        output, _errors = self.process.communicate(timeout=timeout)
        assert "Traceback" not in output, output
        assert "=> {" in output, output
        result, _end = json.JSONDecoder().raw_decode(output[output.index("=> {") + 3 :])
        result["failed"] = self.process.returncode != 0
        return result


def processes_with(token):
    """The processes whose environment has the play's token; QEMU, which gets none, is not among them."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                if f"{_TOKEN}={token}".encode() in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
                    found.append(int(entry))
    return found


def argv0(pid):
    with contextlib.suppress(OSError):
        return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0])
    return ""


def descendants(pid):
    found = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += [int(child), *descendants(int(child))]
    return found


class Play:
    """A playbook with one task; ``start`` runs it, as often as one likes."""

    def __init__(self, place, module, options, keywords, variables, settings, prefix):
        self.token = f"{os.getpid()}-{module}-{random.getrandbits(32):08x}"
        self.prefix = prefix
        self.files = [place / f"{self.token}.inventory.json", place / f"{self.token}.yml"]
        host = {"ansible_python_interpreter": sys.executable, "ansible_remote_tmp": str(place / "remote"), **variables}
        task = {f"vmops.qemu.{module}": options, "environment": {_TOKEN: self.token}, **keywords}
        self.files[0].write_text(json.dumps({"all": {"hosts": {"host": host}}}))
        self.files[1].write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": [task]}]))
        (place / "ansible.cfg").touch()
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")},
            "ANSIBLE_COLLECTIONS_PATH": os.environ["ANSIBLE_COLLECTIONS_PATH"],
            "ANSIBLE_CONFIG": str(place / "ansible.cfg"),
            "ANSIBLE_LOCAL_TEMP": str(place / "local"),
            "ANSIBLE_ASYNC_DIR": str(place / "async"),
            "ANSIBLE_STDOUT_CALLBACK": "minimal",
            "ANSIBLE_NOCOLOR": "1",
            **settings,
        }

    def start(self):
        command = [*self.prefix, "ansible-playbook", "-i", str(self.files[0]), str(self.files[1])]
        return PlayRun(command, self.environment, self.token)

    def run(self):
        return self.start().result()

    def run_again(self, *tolerated):
        """Run it until it succeeds: it may fail only while something of an earlier run is still at work.

        tolerated: parts of messages that may come, too, because of how the play is made. Gives all results.
        """
        results: list[dict[str, Any]] = []
        deadline = time.monotonic() + 240
        while not results or results[-1]["failed"]:
            assert time.monotonic() < deadline, results
            results.append(self.run())
            result = results[-1]
            if result["failed"] and not any(text in result["msg"] for text in tolerated):
                assert result["error"] == "BusyError", result["msg"]
        return results


@pytest.fixture
def make_play(tmp_path):
    """Make plays; what is left of them is ended after the test."""
    plays = []

    def make(module, variables=None, settings=None, prefix=(), keywords=None, **options):
        plays.append(
            Play(
                tmp_path,
                module,
                options,
                keywords or {},
                variables or {"ansible_connection": "local"},
                settings or {},
                list(prefix),
            )
        )
        return plays[-1]

    yield make
    for play in plays:
        for pid in processes_with(play.token):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


#: With short intervals, so that what is to be disturbed is met at its beginning.
wait_until = functools.partial(observe.wait_until, timeout=60, interval=0.002)


# --- how it must end ---


def is_complete(image):
    with contextlib.suppress(FileNotFoundError), image.open("rb") as handle:
        return handle.read(len(COMPLETE)) == COMPLETE
    return False


def check_one_of_both(image):
    """At any time there is a QEMU with the guest, or a complete image."""
    alive = find_qemu_pids(VM)  # looked at first: what ends just now has left an image
    assert len(alive) <= 1
    assert alive or is_complete(image)


def check_saved(guest, image):
    """The image is complete, nothing is beside it, and no QEMU is left."""
    guest.wait_exit(30)
    assert find_qemu_pids(VM) == []
    assert is_complete(image)
    assert os.listdir(image.parent) == [image.name]


def check_restored(guest, image, continuity):
    """One guest runs, has missed nothing, and there is no image that could be restored a second time."""
    assert len(find_qemu_pids(VM)) == 1
    guest.adopt_restarted()
    assert run_state(guest) == "running"
    assert not image.exists()
    with Monitor(guest.observer_socket) as monitor:
        assert monitor.execute("query-fdsets") == []
    continuity.check()


# --- SIGKILL ---


def duration_of(play, prepare):
    """Seconds from the module's first moment to its end."""
    prepare()
    run = play.start()
    run.wait_module()
    started = time.monotonic()
    while run.modules():
        time.sleep(0.002)
    assert not run.result()["failed"]
    return time.monotonic() - started


@pytest.mark.slow
def test_controller_killed_at_any_moment(big_guest, image, make_play):
    """SIGKILL of ansible-playbook, alone or with all that it has started, at random moments of save and restore."""
    continuity = Continuity(big_guest)
    dice = random.Random(SEED)
    save = make_play("qemu_save", name=VM, path=str(image))
    restore = make_play("qemu_restore", name=VM, path=str(image))
    durations = {save: duration_of(save, lambda: None), restore: duration_of(restore, big_guest.wait_exit)}
    check_restored(big_guest, image, continuity)
    seen = {"killed": 0, "module went on": 0, "conflicts": 0, "done by then": 0}
    for number in range(KILLS):
        for play in (save, restore):
            everything = (number + (play is restore)) % 2 == 0
            after = dice.uniform(0, durations[play])
            run = play.start()
            run.wait_module()
            time.sleep(after)
            run.kill(everything)
            check_one_of_both(image)
            seen["killed"] += 1
            seen["module went on"] += bool(run.modules())
            print(f"{play.token}: killed after {after:.3f} s, {'all' if everything else 'the controller alone'}")
            results = play.run_again()
            seen["conflicts"] += len(results) - 1
            seen["done by then"] += not results[-1]["changed"]
            check_one_of_both(image)
            if play is save:
                check_saved(big_guest, image)
            else:
                check_restored(big_guest, image, continuity)
    print(f"controller: {seen}, seed {SEED}")
    assert seen["killed"] == 2 * KILLS


def test_vm_that_ends_while_its_lock_is_awaited(guest, image, save, start_module):
    """The other run was just about to end it: that is no error, the VM is saved."""
    save(name=VM, path=str(image), after_save="pause")
    birth = str(birth_of(guest.pid))
    path = os.path.join(run_directory("locks"), f"vm-{guest.pid}-{birth}")
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run = start_module("qemu_save", name=VM, path=str(image))
        wait_until(lambda: has_open(run.process.pid, path) or run.process.poll() is not None)
        assert run.process.poll() is None, run.result()
        guest.end()
    finally:
        os.close(lock)
    result = run.result()
    assert not result.get("failed"), result["msg"]
    assert "already saved" in result["msg"]


def has_open(pid, path):
    with contextlib.suppress(OSError):
        return path in [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
    return False


# --- limits of the task ---


@all_ways
@pytest.mark.slow
def test_async_limit(make_guest, image, make_play):
    """A task past its async limit is ended by SIGKILL; QEMU goes on, and the next run takes over."""
    guest = make_guest(memory_mib=512, block_mib=300, observer=True)
    continuity = Continuity(guest)
    limit = {"async": 4, "poll": 1}
    play = make_play("qemu_save", name=VM, path=str(image), bandwidth="20M", keywords=limit)
    # Ansible's words where the controller or the wrapper on the host is the first to notice.
    past_limit = ("async task did not complete", "Timeout exceeded")
    result = play.run()
    assert result["failed"]
    assert result["msg"].startswith(past_limit), result["msg"]
    check_one_of_both(image)
    play.run_again(*past_limit)
    check_saved(guest, image)
    restore = make_play("qemu_restore", name=VM, path=str(image), keywords={"async": 120, "poll": 1})
    restore.run_again()
    check_restored(guest, image, continuity)


@pytest.mark.slow
def test_task_timeout(make_guest, image, make_play):
    """A task past its timeout has failed, but its module goes on: the next run waits for it in vain, or is done."""
    guest = make_guest(memory_mib=512, block_mib=300, observer=True)
    continuity = Continuity(guest)
    play = make_play("qemu_save", name=VM, path=str(image), bandwidth="30M", keywords={"timeout": 5})
    result = play.run()
    assert result["failed"]
    assert "Timed out" in result["msg"], result["msg"]
    check_one_of_both(image)
    play.run_again("Timed out")
    check_saved(guest, image)
    make_play("qemu_restore", name=VM, path=str(image)).run_again()
    check_restored(guest, image, continuity)


# --- SSH ---


@pytest.fixture
def server(tmp_path):
    """An SSH server that only these tests can reach."""
    problem = ssh.missing()
    if problem:
        pytest.skip(problem)
    server = ssh.SshServer(tmp_path / "ssh")
    yield server
    server.close()


def over_ssh(server, pipelining):
    """What make_play needs for a play over SSH.

    Without pipelining the module gets a terminal, and a SIGHUP when that is gone; with it, it learns of nothing.
    """
    variables = {
        "ansible_connection": "ssh",
        "ansible_host": "127.0.0.1",
        "ansible_port": ssh.PORT,
        "ansible_user": "root",
        "ansible_ssh_private_key_file": str(server.key),
    }
    settings = {
        "ANSIBLE_PIPELINING": str(pipelining),
        "ANSIBLE_SSH_TRANSFER_METHOD": "piped",
        "ANSIBLE_SSH_ARGS": f"-F none -o ControlMaster=no -o UserKnownHostsFile={server.known_hosts}"
        " -o ServerAliveInterval=1 -o ServerAliveCountMax=3",
    }
    return {"variables": variables, "settings": settings, "prefix": server.inside}


def kill_client(server, run):
    """The controller's ssh dies."""
    for pid in descendants(run.process.pid):
        if os.path.basename(argv0(pid)) in ("ssh", "ssh:"):
            os.kill(pid, signal.SIGKILL)


def kill_session(server, run):
    """The managed host's sshd dies, as far as it serves this connection."""
    for session in server.sessions():
        session.kill()


def cut_network(server, run):
    """No packet comes through any more; both ends learn of it only by the silence."""
    server.network(on=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "drop", "pipelining"),
    [
        pytest.param("qemu_save", kill_client, True, marks=all_ways),
        ("qemu_save", kill_session, False),
        pytest.param("qemu_save", cut_network, False, marks=all_ways),
        pytest.param("qemu_restore", kill_client, False, marks=all_ways),
        pytest.param("qemu_restore", kill_session, True, marks=all_ways),
        ("qemu_restore", cut_network, True),
    ],
    ids=lambda value: getattr(value, "__name__", {True: "pipelined", False: "terminal"}.get(value, value)),
)
def test_connection_dropped(make_guest, image, make_play, server, module, drop, pipelining):
    guest = make_guest(memory_mib=512, block_mib=300, observer=True)
    continuity = Continuity(guest)
    how = over_ssh(server, pipelining)
    # Three seconds or, where both ends have to find out by themselves, fifteen.
    slowly = {"bandwidth": "20M" if drop is cut_network else "100M", "parallel_channels": 1}
    save = make_play("qemu_save", name=VM, path=str(image), **(slowly if module == "qemu_save" else {}), **how)
    restore = make_play("qemu_restore", name=VM, path=str(image), **how)
    if module == "qemu_save":
        play = save
    else:
        assert not save.run()["failed"]
        guest.wait_exit()
        play = restore
    run = play.start()
    wait_until(
        lambda: (os.listdir(image.parent) if play is save else find_qemu_pids(VM)) or run.process.poll() is not None
    )
    drop(server, run)
    check_one_of_both(image)
    run.process.communicate(timeout=120)
    assert run.process.returncode != 0, "the controller has noticed"
    check_one_of_both(image)
    if drop is cut_network:
        server.network(on=True)
    if not pipelining:
        wait_until(lambda: not run.modules())
        # SIGHUP made it put back what it had begun.
        assert [name for name in os.listdir(image.parent) if name.endswith(".partial")] == []
        assert find_qemu_pids(VM) == ([] if play is restore else [guest.pid])
        assert is_complete(image) == (play is restore)
        assert play is restore or run_state(guest) == "running"
    play.run_again()
    if play is save:
        check_saved(guest, image)
        guest.wait_exit()
        restore.run_again()
    check_restored(guest, image, continuity)
