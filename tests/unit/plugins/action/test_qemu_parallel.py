# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How several runs are begun, followed and collected; what the host does is made up here."""

from __future__ import annotations

import time
import types

import pytest
from ansible_collections.vmops.qemu.plugins.action import qemu_parallel

BUSY = {"failed": True, "error": "BusyError", "msg": "it is being saved by another run (pid 7). Wait for its end."}


class Host:
    """A host on which each VM's runs give what the test says, one after the other; ``log`` has what was asked of it."""

    def __init__(self, outcomes, others=()):
        self._task = types.SimpleNamespace(async_val=0, environment=[], check_mode=False)
        self.outcomes = {name: list(results) for name, results in outcomes.items()}
        self.others = list(others)  # what earlier runs have at work, look after look
        self.jobs = {}
        self.told = set()
        self.log = []
        self.most = 0
        self.async_limits = set()

    def get_shell_option(self, _name, default=None):
        return default

    def ask(self, module, arguments, _task_vars, *, in_background=False, with_copy=False):
        if module == "vmops.qemu.qemu_progress":
            for job in arguments["forget"]:
                del self.jobs[job]
            operations = self.others.pop(0) if self.others else []
            ended = {job: self.jobs[job] for job in arguments["jobs"][:1] if self.jobs[job] is not None}
            self.told |= set(ended)
            return {"operations": operations, "jobs": ended, "library": True}
        name = arguments["name"]
        self.log.append(name)
        result = self.outcomes[name].pop(0)
        if not in_background:
            return result
        self.async_limits.add((self._task.async_val, arguments["timeout"]))
        job = f"j{len(self.log)}"
        self.jobs[job] = result
        self.most = max(self.most, len(set(self.jobs) - self.told))
        return {"ansible_job_id": job, "changed": True}


def run(host, check=False, **options):
    """What each run has returned."""
    known = {"operation": "save", "parallel": 2, "on_error": "continue", "timeout": 30.0, "interval": 0.01, **options}
    runs = [qemu_parallel._Run({"timeout": known["timeout"], "name": name}) for name in host.outcomes]
    follower = qemu_parallel._Follower(host, {"inventory_hostname": "hv1"}, known, runs)
    (follower.predict if check else follower.follow)()
    return {run.name: run.result for run in runs}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    return waited


def test_some_at_a_time_in_their_order():
    host = Host({name: [{"changed": True, "msg": name}] for name in "abcde"})
    results = run(host)
    assert host.log == list("abcde")
    assert host.most == 2
    assert {name: result["msg"] for name, result in results.items()} == {name: name for name in "abcde"}
    assert host.jobs == {}  # nothing of them is left on the host


def test_ansibles_limit_is_longer_than_the_runs_own():
    host = Host({"a": [{"msg": "done"}]})
    run(host, timeout=100.0)
    ((limit, timeout),) = host.async_limits
    assert timeout == 100.0
    assert limit >= timeout + 120
    assert host._task.async_val == 0


@pytest.mark.parametrize(("on_error", "begun"), [("continue", "abcd"), ("stop", "ab")])
def test_what_begins_after_a_failure(on_error, begun):
    outcomes = {name: [{"msg": name}] for name in "abcd"}
    host = Host({**outcomes, "a": [{"failed": True, "msg": "no"}]})
    results = run(host, on_error=on_error)
    assert "".join(host.log) == begun
    assert [name for name, result in results.items() if result.get("skipped")] == [
        name for name in "abcd" if name not in begun
    ]


@pytest.mark.parametrize("check", [False, True])
def test_vm_that_another_run_works_on_is_waited_for(check):
    host = Host({"a": [BUSY, BUSY, {"changed": False, "msg": "already saved"}], "b": [{"msg": "b"}]})
    assert run(host, check=check)["a"] == {"changed": False, "msg": "already saved"}
    assert host.log.count("a") == 3


def test_it_is_not_waited_for_for_ever(monkeypatch):
    now = iter(range(0, 100000, 10))
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    host = Host({"a": [BUSY] * 1000})
    assert run(host)["a"] == BUSY


def test_other_conflicts_are_failures():
    other = {"failed": True, "error": "ConflictError", "msg": "a runs although there is a complete image"}
    host = Host({"a": [other]})
    assert run(host)["a"] == other


@pytest.mark.parametrize("check", [False, True])
def test_what_an_earlier_controller_began_is_waited_for_first(check, no_waiting):
    at_work = {"vm": "a", "operation": "save", "phase": "flush", "bytes_done": 0, "bytes_total": 0, "rate": 0}
    host = Host({"a": [{"msg": "a"}]}, others=[[at_work], [at_work], [{**at_work, "vm": "of nobody here"}]])
    run(host, check=check)
    assert len(no_waiting) >= 2
    assert host.log == ["a"]


def test_line_of_progress():
    operation = {
        "operation": "save",
        "phase": "memory",
        "percent": 42,
        "bytes_done": 1721 * 2**20,
        "bytes_total": 4096 * 2**20,
        "rate": 310 * 2**20,
        "seconds_left": 7,
    }
    assert qemu_parallel._line(operation) == "save 42 %, 1721 of 4096 MiB, 310 MiB/s, 7 s left"
    assert qemu_parallel._line({**operation, "seconds_left": None}).endswith("310 MiB/s")
    assert qemu_parallel._line({**operation, "phase": "flush"}) == "save, flush"
