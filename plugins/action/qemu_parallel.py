# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Several saves or restores of one host at a time, followed by one cheap look at the host every few seconds."""

from __future__ import annotations

import time
import typing as t

from ansible.errors import AnsibleActionFail
from ansible.utils.display import Display
from ansible_collections.vmops.qemu.plugins.module_utils._errors import one_line
from ansible_collections.vmops.qemu.plugins.module_utils._options import TIMEOUT, Spec
from ansible_collections.vmops.qemu.plugins.module_utils._situation import Situation
from ansible_collections.vmops.qemu.plugins.plugin_utils._action import HostAction
from ansible_collections.vmops.qemu.plugins.plugin_utils._answer import ERROR, reduce_answer
from ansible_collections.vmops.qemu.plugins.plugin_utils._figures import is_figure

_COLLECTION = "vmops.qemu."

#: A test compares it with what is documented.
ARGUMENT_SPEC: Spec = {
    **TIMEOUT,
    "operation": {"type": "str", "required": True, "choices": ["save", "restore"]},
    "vms": {"type": "list", "elements": "dict", "required": True},
    "defaults": {"type": "dict", "default": {}},
    "parallel": {"type": "int", "default": 4},
    "on_error": {"type": "str", "choices": ["continue", "stop"], "default": "continue"},
    "interval": {"type": "float", "default": 5},
}

#: Seconds by which Ansible's limit for a background job is longer than the run's own timeout: it is killed by the
#: first and puts the guest back by the second.
_GRACE = 180

#: Seconds for which a host waits for the end of a run before it answers a look, at most.
_WAIT = 5.0


class ActionModule(HostAction):
    """Starts, follows and collects the runs."""

    _supports_async = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """Run all, and return what each returned."""
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        _validation, options = self.validate_argument_spec(argument_spec=ARGUMENT_SPEC)
        if options["parallel"] < 1 or options["timeout"] <= 0:
            raise AnsibleActionFail("parallel must be 1 at least, and timeout more than 0")
        runs = [_Run({**options["defaults"], "timeout": options["timeout"], **vm}) for vm in options["vms"]]
        unnamed = [run for run in runs if not run.name]
        if unnamed:
            raise AnsibleActionFail(f"every one of vms needs a name: {unnamed[0].options}")
        started = time.time()
        follower = _Follower(self, task_vars or {}, options, runs)
        if self._task.check_mode:
            follower.predict()
        else:
            follower.follow()
        failures = [run.name for run in runs if run.result.get("failed")]
        result.update(
            changed=any(run.result.get("changed") for run in runs),
            failed=bool(failures),
            failures=failures,
            vms=[{**run.result, "name": run.name} for run in runs],
            started_at=started,
            duration=round(time.time() - started, 3),
        )
        if failures:
            first = next(run for run in runs if run.result.get("failed"))
            result.update({key: first.result[key] for key in ERROR if key in first.result})
            result["msg"] = one_line(
                f"{len(failures)} of {len(runs)} failed ({', '.join(failures)});"
                f" {first.name}: {first.result.get('msg')}"
            )
        return result


class _Run:
    """One VM's run."""

    def __init__(self, options: dict[str, t.Any]) -> None:
        self.options = options
        self.name = str(options.get("name") or "")
        self.job = ""
        self.deadline = 0.0
        #: When it may begin, at the earliest, and until when it is begun again; both on the monotonic clock.
        self.not_before = 0.0
        self.begun_until = 0.0
        self.result: dict[str, t.Any] = {}
        #: When a line was shown last.
        self.shown = time.monotonic()


class _Follower:
    """Follows the runs of one host."""

    def __init__(
        self, action: ActionModule, task_vars: dict[str, t.Any], options: dict[str, t.Any], runs: list[_Run]
    ) -> None:
        self._action = action
        self._variables = task_vars
        self._options = options
        self._module = f"{_COLLECTION}qemu_{options['operation']}"
        self._runs = runs
        self._host = str(task_vars.get("inventory_hostname", ""))
        self._display = Display()
        self._library = True

    def predict(self) -> None:
        """Check mode: each VM's module says what it would do, one after the other."""
        self._wait_for_others()
        for run in self._runs:
            while True:
                run.result = _predicted(self._execute(run, in_background=False))
                if not self._may_begin_again(run):
                    break
                time.sleep(self._pause)

    def follow(self) -> None:
        """Run all to their end."""
        self._wait_for_others()
        waiting = list(self._runs)
        working: list[_Run] = []
        forget: list[str] = []
        while waiting or working:
            while len(working) < self._options["parallel"]:
                ready = [run for run in waiting if run.not_before <= time.monotonic()]
                if not ready:
                    break
                run = ready[0]
                waiting.remove(run)
                self._start(run)
                if run.job:
                    working.append(run)
                else:  # it did not even start
                    waiting = self._after_end(run, waiting)
            if not working:
                if waiting:  # for another run's end
                    time.sleep(1)
                continue
            look = self._look(working, forget)
            forget = []
            for run in list(working):
                if run.job in look["jobs"]:
                    run.result = self._ended(look["jobs"][run.job])
                elif time.monotonic() > run.deadline:
                    run.result = {
                        "failed": True,
                        "msg": f"The background job {run.job} was lost; run the task again",
                        **Situation().words(),
                    }
                else:
                    continue
                forget.append(run.job)
                working.remove(run)
                waiting = self._after_end(run, waiting)
            self._show(working, look["operations"])
        if forget:
            self._look([], forget)

    @property
    def _pause(self) -> float:
        """Seconds between two looks at a host where nothing else is to be done."""
        return float(min(_WAIT, self._options["interval"]))

    def _may_begin_again(self, run: _Run) -> bool:
        """Whether a run that has ended met another one at work (a service, another controller), and may try again.

        What is at work publishes itself only from some moment on, so the look before the start may have missed it.
        """
        if run.result.get("error") != "BusyError":
            return False
        now = time.monotonic()
        run.begun_until = run.begun_until or now + self._options["timeout"]
        run.not_before = now + self._pause
        return now < run.begun_until

    def _wait_for_others(self) -> None:
        """Wait for the runs that an earlier controller started, as long as any may take; see what the host has."""
        names = {run.name for run in self._runs}
        deadline = time.monotonic() + self._options["timeout"]
        while True:
            look = self._look([], [])
            self._library = look["library"]
            others = [operation for operation in look["operations"] if operation["vm"] in names]
            if not others or time.monotonic() > deadline:
                return
            for operation in others:
                self._say(f"{operation['vm']}: an earlier run is at work: {_line(operation)}")
            time.sleep(self._pause)

    def _start(self, run: _Run) -> None:
        run.deadline = time.monotonic() + run.options["timeout"] + 2 * _GRACE
        answer = self._execute(run, in_background=True)
        run.job = str(answer.get("ansible_job_id") or "")
        if run.job:
            self._say(f"{run.name}: {self._options['operation']} begins")
        else:
            run.result = answer if answer.get("failed") else {**answer, "failed": True}

    def _execute(self, run: _Run, in_background: bool) -> dict[str, t.Any]:
        task = self._action._task
        task.async_val = int(run.options["timeout"]) + _GRACE if in_background else 0
        try:
            return self._action.ask(
                self._module,
                run.options,
                self._variables,
                in_background=in_background,
                with_copy=not self._library and bool(run.options.get("bundle_library", True)),
            )
        finally:
            task.async_val = 0

    def _look(self, working: list[_Run], forget: list[str]) -> dict[str, t.Any]:
        arguments = {
            "jobs": [run.job for run in working],
            "async_dir": self._action.get_shell_option("async_dir", default="~/.ansible_async"),
            "wait": self._pause if working else 0,
            "forget": forget,
        }
        answer = self._action.ask(f"{_COLLECTION}qemu_progress", arguments, self._variables)
        if answer.get("failed"):
            raise AnsibleActionFail(one_line(f"qemu_progress failed: {answer.get('msg')}"))
        return {
            "jobs": answer.get("jobs") or {},
            "operations": [entry for entry in answer.get("operations") or () if _is_operation(entry)],
            "library": bool(answer.get("library")),
        }

    def _ended(self, answer: t.Any) -> dict[str, t.Any]:
        """What is let in of a background job's result."""
        result, warnings = reduce_answer(self._module, answer)
        for warning in warnings:
            self._display.warning(warning)
        result.pop("invocation", None)
        return result

    def _after_end(self, run: _Run, waiting: list[_Run]) -> list[_Run]:
        """Say how a run ended; the runs that may still begin."""
        if self._may_begin_again(run):
            self._say(f"{run.name}: waiting for another run: {run.result['msg']}")
            run.job = ""
            return [*waiting, run]
        self._say(f"{run.name}: {'FAILED: ' if run.result.get('failed') else ''}{run.result.get('msg', 'ended')}")
        if run.result.get("failed") and self._options["on_error"] == "stop":
            for skipped in waiting:
                skipped.result = {"skipped": True, "msg": f"not begun, since {run.name} failed"}
            return []
        return waiting

    def _show(self, working: list[_Run], operations: list[dict[str, t.Any]]) -> None:
        known = {operation["vm"]: operation for operation in operations}
        now = time.monotonic()
        for run in working:
            if run.name in known and now - run.shown >= self._options["interval"]:
                run.shown = now
                self._say(f"{run.name}: {_line(known[run.name])}")

    def _say(self, text: str) -> None:
        # Names and messages are others' words.
        self._display.display(one_line(f"  [{self._host}] {text}"))


def _line(operation: dict[str, t.Any]) -> str:
    """How far an operation has come, in a line."""
    done = operation["bytes_done"] / 2**20
    if operation["phase"] != "memory" or not operation["bytes_total"]:
        return f"{operation['operation']}, {operation['phase']}"
    left = "" if operation["seconds_left"] is None else f", {operation['seconds_left']} s left"
    return (
        f"{operation['operation']} {operation['percent']} %, {done:.0f} of {operation['bytes_total'] / 2**20:.0f} MiB,"
        f" {operation['rate'] / 2**20:.0f} MiB/s{left}"
    )


def _predicted(result: dict[str, t.Any]) -> dict[str, t.Any]:
    """A prediction, which has failed where its figures are not to be believed: nothing can be reckoned with them."""
    if result.get("failed") or not result.get("disbelieved"):
        return result
    wrong = ", ".join(result["disbelieved"])
    return {
        **Situation().words(),
        **result,
        "failed": True,
        "msg": one_line(
            f"The host reports figures that cannot be right ({wrong}). Nothing was touched. Look at the host and"
            " the VM first."
        ),
    }


def _is_operation(entry: t.Any) -> bool:
    """Whether what a host says of one that is at work is of the kind that qemu_progress tells."""
    return (
        isinstance(entry, dict)
        and all(isinstance(entry.get(key), str) for key in ("vm", "operation", "phase"))
        and all(is_figure(entry.get(key)) for key in ("bytes_done", "bytes_total", "rate"))
        and all(entry.get(key) is None or is_figure(entry[key]) for key in ("percent", "seconds_left"))
    )
