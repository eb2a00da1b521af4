# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How a run over a host's VMs is started, followed and collected; what the host does is made up here."""

from __future__ import annotations

import json
import shlex
import subprocess
import threading
import time
import types
from collections.abc import Callable

import pytest
from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.vmops.qemu.plugins.plugin_utils import _host_run

SAVE = "vmops.qemu.qemu_managed_save"
LOOK = "vmops.qemu.qemu_progress_info"
DONE = {"changed": True, "msg": "1 VM was saved", "vms": [], "invocation": {"module_args": {}}}
AT_WORK = {
    "vm": "web1",
    "operation": "save",
    "phase": "memory",
    "percent": 42,
    "bytes_done": 1721 * 2**20,
    "bytes_total": 4096 * 2**20,
    "rate": 310 * 2**20,
    "seconds_left": 7,
}


STARTED = {"ansible_job_id": "j1", "started": True, "changed": True}


class Action(_host_run.HostRunAction):
    """The action of qemu_managed_save, on a host that answers what the test says."""

    operation = "save"

    def __init__(self, looks=(), started=None, answers=(), check=False, no_log=False, delegate_to=None, **options):
        self._task = types.SimpleNamespace(
            action=SAVE, args=options, async_val=0, check_mode=check, no_log=no_log, delegate_to=delegate_to
        )
        self.looks = list(looks)
        self.started = started or {**STARTED, "results_file": "/root/.jobs/j1"}
        self.answers = list(answers)  # of check mode
        self.limit = 0
        #: The modules that the host was asked.
        self.asked = []
        self.arguments = []
        self.waited = []
        self.cleaned = []
        self.clean: Callable[[], dict[str, object]] = dict

    def ask(self, module, arguments, task_vars, *, in_background=False):
        self.asked.append(module)
        self.arguments.append(arguments)
        if module == LOOK:
            return {"operations": [], "runs": [], **self.looks.pop(0)}
        if not in_background:
            return self.answers.pop(0)
        self.limit = self._task.async_val
        return self.started

    def _low_level_execute_command(self, command):
        if command.startswith("rm "):
            self.cleaned.append(command)
            return self.clean()
        self.waited.append(command)
        if self.looks and "job" not in self.looks[0]:
            return {"stdout": '{"ansible_job_id": "j1", "started": true, "finished": false}'}
        job = self.looks.pop(0)["job"]
        return {"stdout": job if isinstance(job, str) else json.dumps(job)}


def run_of(*lines, operation="save", pid=7):
    """A run of the host that has told these lines, each with its number."""
    told = [{"number": number, "text": text, "failed": False} for number, text in lines]
    return {"operation": operation, "save_dir": "/srv", "pid": pid, "started": 1.0, "lines": told}


@pytest.fixture(autouse=True)
def told(monkeypatch):
    """What was shown, without its indentation; all of it on standard error."""
    shown: list[str] = []

    def display(_self, text, *_args, stderr=False, **_keywords):
        assert stderr, text
        shown.append(text.strip())

    monkeypatch.setattr(Display, "display", display)
    monkeypatch.setattr(ActionBase, "run", lambda *_arguments: {})
    return shown


@pytest.fixture
def clock(monkeypatch):
    """Each look takes five seconds."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    ask = Action.ask

    def slow(self, module, *arguments, **keywords):
        now[0] += 5.0 * (module == LOOK)
        return ask(self, module, *arguments, **keywords)

    monkeypatch.setattr(Action, "ask", slow)
    return now


def run(action, host="hv1"):
    return action.run(task_vars={"inventory_hostname": host})


def test_result_is_that_of_the_job(told):
    action = Action(looks=[{"runs": [run_of()]}, {"job": DONE}])
    assert run(action) == {"changed": True, "msg": "1 VM was saved", "vms": []}
    assert action.asked == [SAVE, LOOK]
    assert action.arguments[1] == {}
    assert told == []


def test_jobs_file_is_cleaned_up():
    action = Action(looks=[{"job": DONE}])
    action.started = {**action.started, "results_file": "/root/it's/j1"}
    run(action)
    assert action.cleaned == ["rm -f -- '/root/it'\"'\"'s/j1'"]


@pytest.mark.parametrize("path", ["/etc/passwd", "/root/.jobs/j1/..", "", None])
def test_no_other_file_is_read_or_removed(path):
    action = Action(looks=[{"job": DONE}])
    action.started = {**action.started, "results_file": path}
    result = run(action)
    assert result["failed"]
    assert "did not say where the result of its background job j1 will be" in result["msg"]
    assert action.waited == action.cleaned == []


@pytest.mark.parametrize("seconds", [0.0, 0.5])
@pytest.mark.parametrize("false", ["0", "false"])
def test_what_waits_for_the_job_ends_with_it(tmp_path, seconds, false):
    """The command itself, by a shell: what Ansible's wrapper says of a job that is at work, and then its result."""
    file = tmp_path / "it's j1"
    file.write_text(f'{{"ansible_job_id": "j1", "finished": {false}}}')
    ended = tmp_path / "ended"
    ended.write_text('{"msg": "done"}')
    began = time.monotonic()
    timer = threading.Timer(seconds, ended.rename, (file,))
    timer.start()
    command = _host_run._WAIT_FOR.format(path=shlex.quote(str(file)))
    assert subprocess.run(["/bin/sh", "-c", command], capture_output=True, check=True).stdout == b'{"msg": "done"}'
    timer.join()
    assert seconds <= time.monotonic() - began < 4


@pytest.mark.parametrize("greeting", ["Welcome!\n", "{ 2026 }\n7 updates\n"])
def test_shell_that_greets(greeting):
    assert run(Action(looks=[{"job": greeting + json.dumps(DONE)}]))["msg"] == "1 VM was saved"


@pytest.mark.parametrize("printed", ["", "cat: j1: no such file", "2026\n7\n", "[" * 100_000])
def test_result_that_is_not_there_is_waited_for(printed):
    looks = [{"job": printed}, {"runs": [run_of()]}, {"job": DONE}]
    assert run(Action(looks=looks))["msg"] == "1 VM was saved"


def test_result_is_kept_where_the_jobs_file_cannot_be_removed():
    def lose():
        raise AnsibleConnectionFailure("the connection is gone")

    action = Action(looks=[{"job": DONE}])
    action.clean = lose
    assert run(action)["msg"] == "1 VM was saved"


def test_job_is_given_longer_than_its_vms_may_take():
    action = Action(looks=[{"job": DONE}], timeout=86400)
    run(action)
    assert action.limit >= 7 * 86400
    assert action._task.async_val == 0, "the looks are no background jobs"


def test_failed_start():
    action = Action(started={"failed": True, "msg": "no Python"})
    assert run(action) == {"failed": True, "msg": "no Python"}
    assert len(action.asked) == 1
    assert run(Action(started={"msg": "nothing was started"}))["failed"]


def test_failed_look():
    result = run(Action(looks=[{"runs": [run_of()]}, {"failed": True, "msg": "No space left."}]))
    assert result["failed"]
    assert result["msg"] == "No space left. The run on the host goes on; run the task again."


def test_job_whose_result_is_none():
    result = run(Action(looks=[{"job": {"msg": 7}}]))
    assert result["failed"]
    assert result["error"] == "AnswerError"


def test_failed_job():
    vms = [{"name": "web1", "state": "failed", "failed": True, "changed": False, "msg": "no"}]
    result = run(Action(looks=[{"job": {"failed": True, "msg": "web1: no", "vms": vms, "failures": ["web1"]}}]))
    assert result["failed"]
    assert (result["vms"], result["failures"]) == (vms, ["web1"])


# --- a job that is lost ---


@pytest.mark.parametrize("other", [[], [run_of(operation="restore")], ["save"]])
def test_lost_job_is_given_up(clock, other):
    """Neither its result nor its run is there: the host was restarted, or somebody has killed it."""
    action = Action(looks=[{"runs": [run_of()]}] * 10 + [{"runs": other}] * 100)
    result = run(action)
    assert result["failed"]
    assert result["msg"] == "The run on the host was lost (background job j1). Run the task again."
    assert (result["guest"], result["image"]) == ("unknown", {"state": "unknown"})
    assert 60 < clock[0] - 1050 <= 70, "a minute after it was seen last"


def test_run_that_is_there_is_waited_for(clock):
    action = Action(looks=[{"runs": [run_of()]}] * 1000 + [{"job": DONE}])
    assert run(action)["msg"] == "1 VM was saved"
    assert clock[0] > 5000


# --- what is shown ---


def test_each_line_is_shown_once(told):
    looks = [
        {"runs": [run_of((1, "web1: saved"))]},
        {"runs": [run_of((1, "web1: saved"), (2, "web2: saved"))]},
        {"runs": [run_of((2, "web2: saved"), (3, "web3: saved"))]},
        {"job": DONE},
    ]
    run(Action(looks=looks))
    assert told == [f"[hv1] web{number}: saved" for number in (1, 2, 3)]


def test_run_that_an_earlier_controller_has_left_hides_none(told):
    """This one's lines begin with 1 again."""
    earlier = run_of((1, "web1: saved"), (2, "web2: saved"))
    looks = [
        {"runs": [earlier]},
        {"runs": [earlier, run_of((1, "web1: saved already"), pid=8)]},
        {"runs": [run_of((1, "web1: saved already"), (2, "web2: saved already"), pid=8)]},
        {"job": DONE},
    ]
    run(Action(looks=looks))
    assert told == [
        "[hv1] web1: saved",
        "[hv1] web2: saved",
        "[hv1] web1: saved already",
        "[hv1] web2: saved already",
    ]


def test_what_went_wrong_is_marked(told):
    line = {"number": 1, "text": "web1: no space", "failed": True}
    run(Action(looks=[{"runs": [{**run_of(), "lines": [line]}]}, {"job": DONE}]))
    assert told == ["[hv1] FAILED: web1: no space"]


def test_lines_of_another_kind_of_run_are_not_shown(told):
    run(Action(looks=[{"runs": [run_of((1, "web1 is back"), operation="restore")]}, {"job": DONE}]))
    assert told == []


@pytest.mark.parametrize(("interval", "shown"), [(1, 12), (5, 12), ("10", 6), (12.0, 4)])
def test_interval_between_two_lines_of_a_vm(told, clock, interval, shown):
    run(Action(looks=[{"runs": [run_of()], "operations": [AT_WORK]}] * 12 + [{"job": DONE}], interval=interval))
    assert told == ["[hv1] web1: save 42 %, 1721 of 4096 MiB, 310 MiB/s, 7 s left"] * shown


def test_interval_is_that_of_each_vm(told, clock):
    at_work = [AT_WORK, {**AT_WORK, "vm": "web2"}]
    run(Action(looks=[{"runs": [run_of()], "operations": at_work}] * 2 + [{"job": DONE}], interval=60))
    assert [line.split(":")[0] for line in told] == ["[hv1] web1", "[hv1] web2"]


@pytest.mark.parametrize(
    "quiet", [{"interval": 0}, {"interval": "0"}, {"interval": -1}, {"interval": "x"}, {"no_log": True}]
)
def test_nothing_is_shown_where_it_is_not_wanted(told, quiet):
    looks = [{"runs": [run_of((1, "secret"))], "operations": [AT_WORK]}, {"job": DONE}]
    assert run(Action(looks=looks, **quiet))["msg"] == "1 VM was saved"
    assert told == []


def test_delegated_task_names_both_hosts(told):
    run(Action(looks=[{"runs": [run_of((1, "web1: saved"))]}, {"job": DONE}], delegate_to="hv2"))
    assert told == ["[hv1 -> hv2] web1: saved"]


def test_all_that_is_shown_is_one_line(told):
    lie = "\x1b[2J\nTASK [all is well]\u202e"
    looks = [
        {"runs": [run_of((1, lie))], "operations": [{**AT_WORK, "vm": lie, "operation": lie, "phase": lie}]},
        {"job": DONE},
    ]
    run(Action(looks=looks))
    assert len(told) == 2
    for line in told:
        assert line.isprintable()


def test_flood_has_bounds(told):
    looks = [
        {
            "runs": [run_of(*((number, "x" * 10**4) for number in range(1, 2000)), pid=pid) for pid in range(1, 20)],
            "operations": [{**AT_WORK, "vm": f"{number}{'x' * 10**4}"} for number in range(5000)],
        },
        {"job": DONE},
    ]
    run(Action(looks=looks))
    assert len(told) <= 2000
    assert max(map(len, told)) < 2100


@pytest.mark.parametrize(
    "look",
    [
        {"operations": [{"vm": ["x"]}, 7, None, {"vm": "web1", "operation": "save", "phase": "memory"}]},
        {"operations": [{**AT_WORK, "bytes_done": -1}, {**AT_WORK, "rate": float("inf")}]},
        {"operations": [{**AT_WORK, "percent": "most"}], "runs": [7, None, []]},
        {"runs": [{"operation": "save"}, {"operation": "save", "lines": 7}, {"operation": ["save"], "lines": []}]},
        {"runs": [{**run_of(), "lines": [7, {}, {"number": 1}, {"number": "2", "text": "x"}]}]},
        {"runs": [{**run_of(), "lines": [{"number": -1, "text": "x"}, {"number": True, "text": "x"}]}]},
        {"runs": [run_of((1, "x"), pid=["7"]), run_of((1, "x"), pid=None), run_of((1, "x"), pid=float("nan"))]},
        {"operations": None, "runs": None},
    ],
)
def test_look_of_another_kind_shows_nothing(told, look):
    assert run(Action(looks=[look, {"job": DONE}]))["msg"] == "1 VM was saved"
    assert told == []


def test_line_of_progress():
    line = _host_run.describe_progress
    assert line(AT_WORK) == "save 42 %, 1721 of 4096 MiB, 310 MiB/s, 7 s left"
    assert line({**AT_WORK, "seconds_left": None}).endswith("310 MiB/s")
    assert line({**AT_WORK, "phase": "flush"}) == "save, flush"
    assert line({**AT_WORK, "bytes_total": 0}) == "save, memory"


# --- check mode ---


def test_check_mode_runs_in_the_foreground(told):
    plan = {"changed": True, "msg": "would", "predicted": {"bytes": 1, "save_seconds": None}}
    action = Action(answers=[plan], check=True)
    assert run(action) == plan
    assert action.asked == [SAVE]
    assert action.cleaned == []


@pytest.mark.parametrize(
    "plan",
    [
        {"disbelieved": ["space_needed"]},
        {"predicted": {"bytes": -1}},
        {"predicted": {"save_seconds": "soon"}},
        {"predicted": {"restore_seconds": True}},
    ],
)
def test_plan_with_figures_that_cannot_be_has_failed(plan):
    result = run(Action(answers=[{"changed": True, "msg": "would", **plan}], check=True))
    assert result["failed"]
    assert "figures that cannot be right" in result["msg"]
    assert "Nothing was touched" in result["msg"]
    assert result["guest"] == "unknown"


def test_plan_that_has_failed_keeps_its_message():
    plan = {"failed": True, "msg": "no room", "disbelieved": ["space_needed"]}
    assert run(Action(answers=[plan], check=True)) == plan
