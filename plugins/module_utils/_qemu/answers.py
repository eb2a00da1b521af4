# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What QEMU's answers and events must have in them.

A monitor that answers with something else is no QEMU's, or one that is broken. It is found here, where the answer
comes in, so that whoever asked may rely on what QEMU's documentation says.
"""

from __future__ import annotations

import typing as t

#: A type; a list of one shape; or keys and their shapes, those that may be missing with a question mark.
Shape = t.Union[type, t.List["Shape"], t.Dict[str, "Shape"]]

#: By command, the parts of the answer that are used. All other commands answer with an object in which nothing is.
_ANSWERS: dict[str, Shape] = {
    "add-fd": {"fdset-id": int},
    "qom-get": str,  # of the one property that is asked for, a type
    "qom-list": [{"name": str, "type": str}],
    "query-block": [{"device?": str, "qdev?": str, "inserted?": {"image?": {"filename?": str}}}],
    "query-cpus-fast": [dict],
    "query-fdsets": [{"fdset-id": int, "fds": [{"opaque?": str}]}],
    "query-kvm": {"enabled": bool},
    "query-memory-size-summary": {"base-memory": int, "plugged-memory?": int},
    "query-migrate": {
        "status?": str,
        "error-desc?": str,
        "blocked-reasons?": [str],
        "ram?": {"total?": int, "remaining?": int, "transferred?": int},
    },
    "query-migrate-capabilities": [{"capability": str, "state": bool}],
    "query-migrate-parameters": {"max-bandwidth": int, "multifd-channels": int},
    "query-name": {"name?": str},
    "query-qmp-schema": [{"name": str, "arg-type?": str, "members?": [{"name?": str}]}],
    "query-status": {"status": str},
    "query-target": {"arch": str},
    "query-uuid": {"UUID": str},
    "query-version": {"qemu": {"major": int, "minor": int, "micro": int}},
    "query-yank": [{"type": str}],
    "x-query-ramblock": {"human-readable-text": str},
}

#: Beyond the numbers that QEMU's sizes and identifiers are, of 64 bits without a sign.
_TOO_LARGE = 2**64

#: Seconds by which an event's time may differ from the time at which it came: more is no clock's.
_EVENT_DELAY = 300

_EVENT: Shape = {"event": str, "timestamp": {"seconds": int, "microseconds": int}}
_MIGRATION_EVENT: Shape = {"data": {"status": str}}


def answer_problem(command: str, answer: object) -> str:
    """What is wrong with the answer to a command, as a clause, or the empty string."""
    return _problem(answer, _ANSWERS.get(command, dict), "it")


def event_problem(event: t.Mapping[str, t.Any]) -> str:
    """What is wrong with an event, as a clause, or the empty string."""
    return _problem(event, _EVENT, "it") or (
        _problem(event, _MIGRATION_EVENT, "it") if event["event"] == "MIGRATION" else ""
    )


def with_believable_time(event: dict[str, t.Any], now: float) -> dict[str, t.Any]:
    """The event; with the time at which it came, where it tells another one (a clock that was set, or a lie).

    Its time goes into results, and from there into sums and pictures of many VMs.

    :param now: seconds since the epoch.
    """
    stamp = event["timestamp"]
    if abs(stamp["seconds"] - now) <= _EVENT_DELAY and 0 <= stamp["microseconds"] < 1_000_000:
        return event
    return {**event, "timestamp": {"seconds": int(now), "microseconds": int(now % 1 * 1_000_000)}}


def _problem(value: object, shape: Shape, place: str) -> str:
    kind = shape if isinstance(shape, type) else type(shape)
    if not isinstance(value, kind):
        return f"{place} is of the type {type(value).__name__}, not {kind.__name__}"
    # -1 is QEMU's word for a time that it does not know, the only number below 0 in what is used of it.
    if kind is int and isinstance(value, int) and (isinstance(value, bool) or not -1 <= value < _TOO_LARGE):
        return f"{place} is a number that cannot be"
    if isinstance(shape, list) and isinstance(value, list):
        parts = [(item, shape[0], f"an item of {place}") for item in value]
    elif isinstance(shape, dict) and isinstance(value, dict):
        parts = []
        for key, inner in shape.items():
            name = key.rstrip("?")
            if name in value:
                parts.append((value[name], inner, name))
            elif name == key:
                return f"{place} has no {name}"
    else:
        return ""
    return next((problem for problem in (_problem(*part) for part in parts) if problem), "")
