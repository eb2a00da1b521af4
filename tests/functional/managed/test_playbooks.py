# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The runs over a host's VMs as a controller starts, follows and shows them, and what becomes of one without it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ansible_collections.vmops.qemu.plugins.module_utils._host.progress import read_host_runs

from support.observe import Continuity, run_state, wait_until

from .conftest import NAMES, files, states

DB1, WEB1 = NAMES[:2]
#: A guest whose memory takes some ten seconds like this, longer than the host waits for the end before it answers.
BIG = {"memory_mib": 192, "block_mib": 96, "observer": True}
SLOW = {"bandwidth": "5M", "parallel_channels": 1}
#: What a line of progress begins with.
PROGRESS = re.compile(r"^ *\[hv1[^\]]*\] ", re.MULTILINE)
#: All results as one document: what others read of standard output (as with ansible.posix.json).
CALLBACK = '''
DOCUMENTATION = """
name: whole_json
type: stdout
short_description: All results as one JSON document
description: [It is written at the end of the play.]
"""
import json
from ansible.plugins.callback import CallbackBase

class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "whole_json"
    results = []

    def v2_runner_on_ok(self, result):
        self.results.append(result._result)

    def v2_runner_on_failed(self, result, ignore_errors=False):
        self.results.append({**result._result, "failed": True})

    def v2_playbook_on_stats(self, stats):
        self._display.display(json.dumps(self.results, default=str))
'''


class Controller:
    """Ansible, which manages this host under two names."""

    def __init__(self, place: Path) -> None:
        self.place = place
        host = {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "ansible_remote_tmp": str(place / "remote"),
        }
        (place / "ansible.cfg").touch()
        (place / "callbacks").mkdir()
        (place / "callbacks" / "whole_json.py").write_text(CALLBACK)
        (place / "inventory.json").write_text(json.dumps({"all": {"hosts": {"hv1": host, "hv2": host}}}))
        #: What background jobs have left.
        self.jobs = place / "jobs"

    def start(self, program, *arguments, **settings):
        """Start one of Ansible's programs."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
        return subprocess.Popen(
            [str(Path(sys.executable).parent / program), "-i", str(self.place / "inventory.json"), *arguments],
            cwd=self.place,
            env={
                **environment,
                "ANSIBLE_COLLECTIONS_PATH": os.environ["ANSIBLE_COLLECTIONS_PATH"],
                "ANSIBLE_CALLBACK_PLUGINS": str(self.place / "callbacks"),
                "ANSIBLE_CONFIG": str(self.place / "ansible.cfg"),
                "ANSIBLE_LOCAL_TEMP": str(self.place / "local"),
                "ANSIBLE_ASYNC_DIR": str(self.jobs),
                "ANSIBLE_NOCOLOR": "1",
                **settings,
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def play(self, *tasks, arguments=(), **settings):
        """Start a playbook with these tasks on hv1."""
        play = self.place / "play.yml"
        play.write_text(json.dumps([{"hosts": "hv1", "gather_facts": False, "tasks": list(tasks)}]))
        return self.start("ansible-playbook", str(play), *arguments, **settings)

    def results(self, *tasks, arguments=()):
        """The results of a playbook's tasks, and what stood on standard error beside them."""
        output, errors = ended(self.play(*tasks, arguments=arguments, ANSIBLE_STDOUT_CALLBACK="whole_json"))
        return json.loads(output), errors

    def left(self):
        """The results of background jobs that nobody has removed."""
        return os.listdir(self.jobs) if self.jobs.exists() else []


def ended(process):
    """What a program has written to standard output and to standard error."""
    output, errors = process.communicate(timeout=240)
    assert "Traceback" not in output + errors, output + errors
    return output, errors


def kill_all_of(process):
    """SIGKILL the controller with all that it has started; what runs on the host as a daemon is no more its own."""
    doomed = [process.pid]
    for pid in doomed:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                doomed += map(int, (task / "children").read_text().split())
    for pid in doomed:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate()


@pytest.fixture
def controller(tmp_path):
    place = tmp_path / "controller"
    place.mkdir()
    return Controller(place)


@pytest.fixture
def managed(save_dir):
    """A task over the guests of these tests, and no other."""

    def task(module, *names, keywords=None, **options):
        known = {"vms": list(names), "save_dir": str(save_dir), "interval": 1}
        return {f"vmops.qemu.qemu_managed_{module}": {**known, **options}, **(keywords or {})}

    return task


def test_standard_output_is_json_and_progress_is_beside_it(make_guest, save_dir, controller, managed):
    continuities = [Continuity(make_guest(DB1, block_mib=2, observer=True)), Continuity(make_guest(WEB1, **BIG))]
    save, restore = managed("save", DB1, WEB1, by_vm={WEB1: SLOW}), managed("restore", DB1, WEB1)
    (saved, back), errors = controller.results(save, restore)
    assert not saved.get("failed"), saved["msg"]
    assert not back.get("failed"), back["msg"]
    assert states(saved) == {DB1: "saved", WEB1: "saved"}
    assert states(back) == {DB1: "restored", WEB1: "restored"}
    told = [line.strip() for line in errors.splitlines() if PROGRESS.match(line)]
    assert len([line for line in told if f"{DB1}: {DB1} was saved in" in line]) == 1, told
    assert [line for line in told if line.startswith(f"[hv1] {WEB1}: save")], told
    assert controller.left() == []
    assert files(save_dir) == []
    for continuity in continuities:
        continuity.check()


def test_result_is_shown_as_it_was_asked_for(make_guest, save_dir, controller, managed):
    """By Ansible's own callback, which has each result in one piece; a task for another host names both."""
    continuity = Continuity(make_guest(WEB1, **BIG))
    default = {"ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default"}
    save = managed("save", WEB1, by_vm={WEB1: SLOW}, keywords={"delegate_to": "{{ groups.all | last }}"})
    output, errors = ended(controller.play(save, arguments=["-v"], **default, ANSIBLE_CALLBACK_RESULT_FORMAT="json"))
    assert PROGRESS.findall(errors), errors
    assert {found.strip() for found in PROGRESS.findall(errors)} == {"[hv1 -> hv2]"}
    saved, _end = json.JSONDecoder().raw_decode(output[output.index("=> {") + 3 :])
    assert states(saved) == {WEB1: "saved"}
    assert not PROGRESS.findall(output)
    restore = managed("restore", WEB1)
    output, _errors = ended(
        controller.play(restore, arguments=["-v"], **default, ANSIBLE_CALLBACK_RESULT_FORMAT="yaml")
    )
    assert not PROGRESS.findall(output)
    shown = output[output.index("=>") + 2 :].partition("\n\n")[0]
    assert states(yaml.safe_load(shown)) == {WEB1: "restored"}
    continuity.check()


def test_one_command_prints_the_table(make_guest, save_dir, controller):
    """Without a playbook, by ansible's own callbacks for one command."""
    continuity = Continuity(make_guest(DB1, observer=True))
    options = json.dumps({"vms": [DB1], "save_dir": str(save_dir), "interval": 1})
    output, errors = ended(controller.start("ansible", "hv1", "-m", "vmops.qemu.qemu_managed_save", "-a", options))
    assert output.startswith("hv1 | CHANGED => {"), output + errors
    result = json.loads(output[output.index("{") :])
    head, row = result["table"]
    assert head.split() == ["VM", "STATE", "IMAGE", "TIME"]
    assert row.split()[:2] == [DB1, "saved"]
    # Both are lines of the output as they are.
    assert f'"{head}"' in output
    command = controller.start("ansible", "hv1", "-o", "-m", "vmops.qemu.qemu_managed_restore", "-a", options)
    output, _errors = ended(command)
    assert len(output.splitlines()) == 1
    assert json.loads(output[output.index("{") :])["table"][1].split()[:2] == [DB1, "restored"]
    assert controller.left() == []
    continuity.check()


def test_plan_and_refusal(make_guest, save_dir, controller, managed):
    """In check mode nothing is left, not even a job; what cannot be saved is told, with the table."""
    guest = make_guest(DB1, observer=True)
    ((plan,), errors) = controller.results(managed("save", DB1), arguments=["--check", "--diff"])
    assert states(plan) == {DB1: "predicted"}
    assert plan["diff"]["after"][DB1] == {"image": "complete", "vm": "ended"}
    assert not PROGRESS.findall(errors)
    assert files(save_dir) == []
    assert not controller.jobs.exists()
    (save_dir / f"{DB1}.save").write_bytes(b"of somebody else")
    ((refused,), _errors) = controller.results(managed("save", DB1))
    assert refused["failed"]
    assert "No VM was touched" in refused["msg"]
    assert refused["failures"] == [DB1]
    assert refused["table"][1].split()[:2] == [DB1, "failed"]
    assert controller.left() == []
    assert run_state(guest) == "running"


@pytest.mark.parametrize(
    ("asked", "told"),
    [([], "is not given"), (["-e", "host_maintenance_hosts=hv9"], "is hv9, which is no host of the inventory")],
)
def test_maintenance_of_no_host_fails(controller, asked, told):
    """Whoever mistypes a group is not told that all is well."""
    process = controller.start("ansible-playbook", "vmops.qemu.host_maintenance", *asked)
    output, _errors = ended(process)
    assert process.returncode != 0
    assert told in output


@pytest.mark.parametrize("at_once", [False, True], ids=["after its end", "at once"])
def test_run_goes_on_without_its_controller(make_guest, save_dir, controller, managed, at_once):
    """The controller is killed in the middle of a save; the same task, run again, ends with all saved."""
    continuities = [Continuity(make_guest(name, **BIG)) for name in (DB1, WEB1)]
    task = managed("save", DB1, WEB1, by_vm={WEB1: SLOW})
    first = controller.play(task)

    def is_begun():
        return any(name.startswith(f".{WEB1}") for name in os.listdir(save_dir))

    wait_until(lambda: is_begun() or first.poll() is not None, timeout=120)
    assert first.poll() is None, first.communicate()
    kill_all_of(first)

    def runs():
        return [run for run in read_host_runs() if run.save_dir == str(save_dir)]

    assert len(runs()) == 1, "it goes on"
    if not at_once:
        wait_until(lambda: not runs(), timeout=120)
        assert files(save_dir) == sorted(f"{name}.save" for name in (DB1, WEB1))
    ((again,), _errors) = controller.results(task)
    assert not again.get("failed"), again["msg"]
    assert states(again) == {DB1: "saved", WEB1: "saved"}
    assert again["failures"] == []
    if not at_once:
        assert again["msg"] == "2 VMs were saved already"
        assert not again["changed"]
    assert files(save_dir) == sorted(f"{name}.save" for name in (DB1, WEB1))
    ((back,), _errors) = controller.results(managed("restore", DB1, WEB1))
    assert states(back) == {DB1: "restored", WEB1: "restored"}
    for continuity in continuities:
        continuity.check()
