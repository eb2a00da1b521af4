# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a managed host has answered, reduced to what the controller lets in.

A module's result comes from a process on the host, whose root, Python and shell may lie. Ansible acts on keys that no
module of this collection returns: ``ansible_facts`` would override the variables of a playbook, ``ansible_stats`` and
others reach further. So only documented keys come in, with values of their types, in a bounded amount.
"""

from __future__ import annotations

import math
import re
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._errors import one_line
from ansible_collections.vmops.qemu.plugins.module_utils._situation import Situation
from ansible_collections.vmops.qemu.plugins.plugin_utils._figures import LATEST, MOST, is_figure

Result = t.Dict[str, t.Any]

#: What every failed task returns besides its message.
ERROR: t.Mapping[str, str] = {"error": "str", "guest_state": "str", "cure": "str", "guest": "str", "image": "dict"}

#: What a run over a host's VMs returns besides.
_HOST_RUN: t.Mapping[str, str] = {
    "msg": "str",
    "table": "list",
    "vms": "list",
    "failures": "list",
    "started_at": "float",
    "duration": "float",
}

#: By module the documented keys and their types, as in its RETURN; a test compares them.
RETURNED: t.Mapping[str, t.Mapping[str, str]] = {
    "qemu_save": {
        **ERROR,
        "msg": "str",
        "vm": "dict",
        "duration": "float",
        "pause_ms": "int",
        "stopped_at": "float",
        "space_needed": "int",
        "space_free": "int",
        "file_system": "str",
        "checksum_ms": "int",
        "bytes_written": "int",
        "throughput": "int",
        "parallel_channels": "int",
        "bypass_cache": "bool",
        "launch": "dict",
        "problems": "list",
        "reasons": "dict",
    },
    "qemu_restore": {
        **ERROR,
        "msg": "str",
        "vm": "dict",
        "launched": "bool",
        "running_at": "float",
        "time_sync": "str",
        "problems": "list",
        "unit": "str",
        "duration": "float",
        "parallel_channels": "int",
        "bypass_cache": "bool",
        "reasons": "dict",
    },
    "qemu_vm_info": {**ERROR, "msg": "str", "vms": "list"},
    "qemu_host_info": {**ERROR, "msg": "str", "ready": "bool", "problems": "list", "table": "list", "host": "dict"},
    "qemu_save_image_info": {**ERROR, "msg": "str", "images": "list"},
    "qemu_save_image": {**ERROR, "msg": "str"},
    "qemu_managed_save": {**ERROR, **_HOST_RUN, "unsaved": "list", "predicted": "dict"},
    "qemu_managed_restore": {
        **ERROR,
        **_HOST_RUN,
        "started": "list",
        "unhealthy": "list",
        "unusable": "list",
        "left_alone": "list",
        "running": "list",
        "save_dir_volatile": "str",
    },
    "qemu_progress_info": {"operations": "list", "runs": "list"},
}

#: By module, of whose results its ``vms`` are, and what each has besides.
_OF_A_VM: t.Mapping[str, tuple[str, t.Mapping[str, str]]] = {
    "qemu_managed_save": ("qemu_save", {"name": "str", "state": "str", "rollback": "dict"}),
    "qemu_managed_restore": (
        "qemu_restore",
        {"name": "str", "state": "str", "path": "str", "health_check": "str", "image_bytes": "int"},
    ),
}

#: What every failed module of this collection, and Ansible where a module has crashed, may tell besides.
_ALWAYS = {
    **ERROR,
    "msg": "str",
    "changed": "flag",
    "failed": "flag",
    "skipped": "flag",
    "module_stdout": "str",
    "module_stderr": "str",
    "outdata": "str",
    "stderr": "str",
    "rc": "int",
    "invocation": "dict",
}

#: What Ansible's wrapper tells of a background job.
_JOB = {"ansible_job_id": "str", "results_file": "str", "started": "flag", "finished": "flag"}

_TYPES: t.Mapping[str, t.Tuple[type, ...]] = {
    "str": (str,),
    "dict": (dict,),
    "list": (list,),
    "bool": (bool,),
    "flag": (bool, int),
    "int": (int,),
    "float": (int, float),
}

#: Keys with a time in seconds since the epoch.
_TIMES = ("stopped_at", "running_at")

#: Bounds of an answer: characters in all, of a message, values in all, values in values, warnings.
_MOST_CHARACTERS = 32 * 2**20
_MOST_IN_MESSAGE = 4096
_MOST_VALUES = 1_000_000
_DEEPEST = 24
_MOST_WARNINGS = 20

_JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class AnswerError(Exception):
    """An answer is none that a module of ours gives."""


def reduce_answer(module: str, answer: t.Any, in_background: bool = False) -> tuple[Result, list[str]]:
    """What is let in of a module's result, and the warnings to be shown with it.

    A figure that cannot be (no finite number, negative, a time after 2099) is left out, and ``disbelieved`` has its
    key. An answer that is out of all bounds, or of other types, becomes a failure that says so.

    :param module: its name, with or without the collection's.
    :param in_background: whether it was only started there.
    """
    name = module.rsplit(".", 1)[-1]
    try:
        return _reduced(name, answer, in_background)
    except AnswerError as exc:
        return (
            {
                "failed": True,
                "changed": False,
                "error": "AnswerError",
                **Situation().words(),
                "msg": one_line(
                    f"The host did not answer with a result of {name}: {exc}. What it has done is not known. Look at"
                    " the host before the task is run again, as something there does not tell the truth."
                ),
            },
            [],
        )


def _reduced(name: str, answer: t.Any, in_background: bool) -> tuple[Result, list[str]]:
    if not isinstance(answer, t.Mapping):
        raise AnswerError("it is not a dictionary")
    wanted = {**_ALWAYS, **RETURNED[name], **(_JOB if in_background else {})}
    return _reduced_to(wanted, name, answer, in_background, _Plain())


def _reduced_to(
    wanted: t.Mapping[str, str], name: str, answer: t.Mapping[str, t.Any], in_background: bool, plain: _Plain
) -> tuple[Result, list[str]]:
    """What is let in of an answer, or of a part of one: these keys."""
    before = len(plain.disbelieved)
    disbelieved: list[str] = []
    result: Result = {}
    for key, kind in wanted.items():
        value = answer.get(key)
        if value is None:
            if key in answer:
                result[key] = None
            continue
        if kind in ("int", "float") and key != "rc":
            if is_figure(value, LATEST if key in _TIMES else MOST):
                result[key] = int(value) if kind == "int" else value
            else:
                disbelieved.append(key)
            continue
        if not isinstance(value, _TYPES[kind]) or (kind == "int" and isinstance(value, bool)):
            raise AnswerError(f"{key} is a {type(value).__name__} and not a {kind}")
        if kind == "flag":
            result[key] = bool(value)
        elif key == "vms" and name in _OF_A_VM:
            result[key] = [_of_a_vm(name, entry, plain, disbelieved) for entry in answer[key]]
        else:
            result[key] = plain.value(value, key)
    for key in ("msg", *ERROR):
        if isinstance(result.get(key), str):
            result[key] = sentence(result[key])
    if isinstance(result.get("table"), list):
        result["table"] = [sentence(str(line)) for line in result["table"]]
    for key in ("module_stdout", "module_stderr", "outdata", "stderr"):
        if isinstance(result.get(key), str):
            result[key] = text(result[key])
    if in_background and not _JOB_ID.fullmatch(str(result.get("ansible_job_id", "")) or "-"):
        result.pop("ansible_job_id", None)
        if not result.get("failed"):
            raise AnswerError("it names no background job")
    if answer.get("exception"):
        result["exception"] = text(_traceback(answer["exception"]))
    if isinstance(answer.get("diff"), t.Mapping):
        result["diff"] = _diff(plain.value(answer["diff"], "diff"))
    disbelieved += plain.disbelieved[before:]
    if disbelieved:
        result["disbelieved"] = sorted(set(disbelieved))
    return result, _warnings(answer.get("warnings"))


def _of_a_vm(module: str, entry: t.Any, plain: _Plain, disbelieved: list[str]) -> Result:
    """What is let in of what became of a VM."""
    if not isinstance(entry, t.Mapping) or not isinstance(entry.get("name"), str):
        raise AnswerError("vms has an element without a name")
    name, more = _OF_A_VM[module]
    result, _warnings = _reduced_to({**_ALWAYS, **RETURNED[name], **more}, name, entry, False, plain)
    disbelieved += result.get("disbelieved", ())
    return result


class _Plain:
    """Copies values of JSON, and counts them."""

    def __init__(self) -> None:
        self._characters = 0
        self._values = 0
        #: Where a number could not be, by key.
        self.disbelieved: list[str] = []

    def value(self, value: t.Any, key: str, depth: int = 0) -> t.Any:
        """A copy without numbers that cannot be."""
        self._values += 1
        if depth > _DEEPEST or self._values > _MOST_VALUES:
            raise AnswerError("it has too many values")
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            self._characters += len(value)
            if self._characters > _MOST_CHARACTERS:
                raise AnswerError(f"it is longer than {_MOST_CHARACTERS // 2**20} MiB")
            return value
        if isinstance(value, (int, float)):
            if abs(value) <= 2 * MOST + 1 and math.isfinite(value):  # QEMU's and the kernel's numbers are of 64 bits
                return value
            self.disbelieved.append(key)
            return None
        if isinstance(value, t.Mapping):
            return {
                self.value(str(inner), key, depth + 1): self.value(content, str(inner)[:64], depth + 1)
                for inner, content in value.items()
            }
        if isinstance(value, (list, tuple)):
            return [self.value(content, key, depth + 1) for content in value]
        raise AnswerError(f"{key} has a {type(value).__name__}")


def sentence(words: str) -> str:
    """A host's words in one line of bounded length, without anything that a terminal would obey."""
    return one_line(words if len(words) <= _MOST_IN_MESSAGE else f"{words[:_MOST_IN_MESSAGE]}…")


def text(words: str) -> str:
    """A host's words in lines; of many, the end, where a traceback says what it is about."""
    return "\n".join(one_line(line) for line in words[-4 * _MOST_IN_MESSAGE :].splitlines())


def _traceback(value: t.Any) -> str:
    if isinstance(value, str):
        return value
    # ansible-core 2.19 and later make an object of it.
    return str(getattr(getattr(value, "event", None), "formatted_traceback", None) or "(traceback unavailable)")


def _warnings(value: t.Any) -> list[str]:
    if not isinstance(value, (list, tuple)):
        return []
    # ansible-core 2.19 and later make objects of them.
    words = [item if isinstance(item, str) else getattr(getattr(item, "event", None), "msg", None) for item in value]
    return [sentence(word) for word in words if isinstance(word, str)][:_MOST_WARNINGS]


def _diff(diff: Result) -> Result:
    """The two sides, whose text is shown as it is."""
    return {
        key: text(diff[key]) if isinstance(diff[key], str) else diff[key]
        for key in ("before", "after", "before_header", "after_header")
        if isinstance(diff.get(key), (str, dict) if key in ("before", "after") else str)
    }
