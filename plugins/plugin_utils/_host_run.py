# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A run over a host's VMs, as a background job of the host, followed by one look every few seconds.

The job's result is read by a command of the shell: a run of a module takes as long as a short save of all VMs.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import time
import typing as t

from ansible.errors import AnsibleError
from ansible.utils.display import Display
from ansible_collections.vmops.qemu.plugins.module_utils._errors import one_line
from ansible_collections.vmops.qemu.plugins.module_utils._options import SELECTION
from ansible_collections.vmops.qemu.plugins.module_utils._situation import Situation
from ansible_collections.vmops.qemu.plugins.plugin_utils._action import HostAction
from ansible_collections.vmops.qemu.plugins.plugin_utils._answer import reduce_answer
from ansible_collections.vmops.qemu.plugins.plugin_utils._figures import is_figure, number

_LOOK = "vmops.qemu.qemu_progress_info"

#: Seconds that Ansible gives the background job: the run ends by the time limits of its VMs.
_LIMIT = 30 * 86400

#: Waits on the host for the job's end, three seconds at most, and prints what Ansible's wrapper keeps of it: its
#: result, or that it has not ended.
_WAIT_FOR = (
    "tries=30; while [ $tries -gt 0 ] && grep -qE '\"finished\": ?(0|false)' {path}; do sleep 0.1;"
    " tries=$((tries - 1)); done; cat {path}"
)

#: Seconds for which nothing is known of a job and its run, after which it is given up: its host was restarted, or
#: somebody has killed it.
_LOST = 60.0

#: What is shown of one look at most, of lines and of VMs: no host has more to tell in a few seconds.
_MOST_SHOWN = 1000

Look = t.Dict[str, t.Any]


class HostRunAction(HostAction):
    """Starts the module of the task's own name on the host, follows it and collects its result."""

    _supports_async = False
    _supports_check_mode = True
    #: ``save`` or ``restore``.
    operation = ""

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """Run it."""
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        if self._task.check_mode:
            result.update(_believed(self.ask(self._task.action, self._task.args, variables)))
        else:
            result.update(self._follow(variables))
        return result

    def _follow(self, variables: dict[str, t.Any]) -> dict[str, t.Any]:
        """Start the job, show how far it has come, and return its result."""
        lines = _Lines(self._place(variables), self._interval())
        started = self._start(variables)
        job = str(started.get("ansible_job_id") or "")
        if not job:
            return started if started.get("failed") else {**started, "failed": True}
        file = str(started.get("results_file") or "")
        if os.path.basename(file) != job:
            return {
                "failed": True,
                "msg": f"The host did not say where the result of its background job {job} will be. The run on it goes"
                " on; see why, and run the task again.",
                **Situation().words(),
            }
        seen = time.monotonic()
        while True:
            ended, result = self._wait_for(file)
            if ended:
                break
            look = self.ask(_LOOK, {}, variables)
            if look.get("failed"):
                return {**look, "msg": f"{look.get('msg')} The run on the host goes on; run the task again."}
            lines.show(look, self.operation)
            if any(run.get("operation") == self.operation for run in _dictionaries(look.get("runs"))):
                seen = time.monotonic()
            elif time.monotonic() - seen > _LOST:
                return {
                    "failed": True,
                    "msg": f"The run on the host was lost (background job {job}). Run the task again.",
                    **Situation().words(),
                }
        self._forget(file)
        answer, warnings = reduce_answer(self._task.action, result)
        for warning in warnings:
            Display().warning(warning)
        answer.pop("invocation", None)
        lines.end(answer)
        return answer

    def _start(self, variables: dict[str, t.Any]) -> dict[str, t.Any]:
        """Start the job; what Ansible says of it."""
        self._task.async_val = _LIMIT
        try:
            return self.ask(self._task.action, self._task.args, variables, in_background=True)
        finally:
            self._task.async_val = 0

    def _wait_for(self, file: str) -> tuple[bool, t.Any]:
        """Wait some seconds for the job's end: whether it has ended, and its result.

        :param file: where that will be.
        """
        printed = self._low_level_execute_command(_WAIT_FOR.format(path=shlex.quote(file))).get("stdout", "")
        # A shell may greet before it does what it is told.
        for text in (printed, *printed.splitlines()[::-1]):
            with contextlib.suppress(ValueError, RecursionError):
                result = json.loads(text)
                if isinstance(result, dict):
                    return bool(result.get("finished", True)), result
                if text is printed:
                    return True, result
        return False, None

    def _forget(self, file: str) -> None:
        """Remove the file with the job's result, which is here; that it stays is no reason to fail."""
        # Also where the connection is lost just now.
        with contextlib.suppress(AnsibleError):
            self._low_level_execute_command(f"rm -f -- {shlex.quote(file)}")

    def _interval(self) -> float:
        """Seconds between two lines for a VM; 0 where none are to be shown."""
        if self._task.no_log:
            return 0.0
        value = number(self._task.args.get("interval", SELECTION["interval"]["default"]))
        return float(value) if is_figure(value) else 0.0

    def _place(self, variables: dict[str, t.Any]) -> str:
        """The host, as Ansible shows it."""
        host = str(variables.get("inventory_hostname", ""))
        return f"{host} -> {self._task.delegate_to}" if self._task.delegate_to else host


class _Lines:
    """What is shown of a run. It goes to standard error, as standard output may be JSON that others read."""

    def __init__(self, place: str, interval: float) -> None:
        """:param interval: seconds between two lines for a VM; 0 where none are to be shown."""
        self._place = place
        self._interval = interval
        #: By the process id of a run, the number of the last of its lines that was shown: beside this task's run there
        #: may be one that an earlier controller has left.
        self._told: dict[float, float] = {}
        self._shown: dict[str, float] = {}

    def show(self, look: Look, operation: str) -> None:
        """Show what is new, and how far each VM has come."""
        if self._interval <= 0:
            return
        runs = [run for run in _dictionaries(look.get("runs")) if run.get("operation") == operation]
        lines = [(run.get("pid"), line) for run in runs for line in _dictionaries(run.get("lines"))]
        for pid, line in lines[-_MOST_SHOWN:]:
            self._show_line(pid, line)
        now = time.monotonic()
        for progress in _dictionaries(look.get("operations"))[:_MOST_SHOWN]:
            if _is_progress(progress) and now - self._shown.get(progress["vm"], 0) >= self._interval:
                self._shown[progress["vm"]] = now
                self._say(f"{progress['vm']}: {describe_progress(progress)}")

    def end(self, answer: dict[str, t.Any]) -> None:
        """Show what became of all."""
        table = answer.get("table")
        if self._interval > 0 and isinstance(table, list):
            for line in table[:_MOST_SHOWN]:
                self._say(str(line))

    def _show_line(self, pid: t.Any, line: dict[str, t.Any]) -> None:
        number: t.Any = line.get("number")
        if not (is_figure(pid) and is_figure(number) and isinstance(line.get("text"), str)):
            return
        if number > self._told.get(pid, 0):
            self._told[pid] = number
            self._say(f"{'FAILED: ' if line.get('failed') else ''}{line['text']}")

    def _say(self, text: str) -> None:
        # Names and messages are others' words.
        Display().display(one_line(f"  [{self._place}] {text[:2000]}"), stderr=True)


def describe_progress(progress: dict[str, t.Any]) -> str:
    """How far a save or a restore has come, in a line."""
    done = progress["bytes_done"] / 2**20
    if progress["phase"] != "memory" or not progress["bytes_total"]:
        return f"{progress['operation']}, {progress['phase']}"
    left = "" if progress["seconds_left"] is None else f", {progress['seconds_left']} s left"
    return (
        f"{progress['operation']} {progress['percent']} %, {done:.0f} of {progress['bytes_total'] / 2**20:.0f} MiB,"
        f" {progress['rate'] / 2**20:.0f} MiB/s{left}"
    )


def _believed(plan: dict[str, t.Any]) -> dict[str, t.Any]:
    """What check mode has returned; it has failed where figures are not to be believed: nothing is begun on them."""
    if plan.get("failed"):
        return plan
    predicted = plan.get("predicted") or {}
    wrong = [
        *plan.get("disbelieved", ()),
        *(key for key, value in predicted.items() if value is not None and not is_figure(value)),
    ]
    if not wrong:
        return plan
    return {
        **Situation().words(),
        **plan,
        "failed": True,
        "msg": one_line(
            f"The host reports figures that cannot be right ({', '.join(wrong)}). Nothing was touched. Look at the host"
            " and its VMs first."
        ),
    }


def _dictionaries(value: t.Any) -> list[dict[str, t.Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _is_progress(entry: dict[str, t.Any]) -> bool:
    """Whether what a host says of one that is at work is of the kind that qemu_progress_info tells."""
    return (
        all(isinstance(entry.get(key), str) for key in ("vm", "operation", "phase"))
        and all(is_figure(entry.get(key)) for key in ("bytes_done", "bytes_total", "rate"))
        and all(entry.get(key) is None or is_figure(entry[key]) for key in ("percent", "seconds_left"))
    )
