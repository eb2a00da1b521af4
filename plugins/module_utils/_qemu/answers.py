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
    "human-monitor-command": str,
    "qom-get": str,  # of the one property that is asked for, a type
    "qom-list": [{"name": str, "type": str}],
    "query-block": [
        {
            "device?": str,
            "qdev?": str,
            "inserted?": {
                "node-name?": str,
                "ro?": bool,
                "image?": {"filename?": str},
                **dict.fromkeys(("bps?", "bps_rd?", "bps_wr?", "iops?", "iops_rd?", "iops_wr?"), int),
                "write_threshold?": int,
            },
        }
    ],
    "query-block-exports": [{"id": str, "type": str, "node-name": str}],
    "query-block-jobs": [{"device": str, "type": str}],
    "query-cpus-fast": [dict],
    "query-fdsets": [{"fdset-id": int, "fds": [{"fd?": int, "opaque?": str}]}],
    "query-jobs": [{"id": str, "type": str, "status": str}],
    "query-kvm": {"enabled": bool},
    "query-memdev": [{"id?": str, "prealloc?": bool}],
    "query-memory-devices": [
        {"type": str, "data": {"id?": str, "memdev?": str, "size?": int}},
    ],
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
    "query-named-block-nodes": [
        {
            "node-name?": str,
            "drv": str,
            "file": str,
            "dirty-bitmaps?": [{"name?": str, "persistent": bool}],
            "children?": [{"child": str, "node-name": str}],
        }
    ],
    "query-qmp-schema": [{"name": str, "arg-type?": str, "members?": [{"name?": str}]}],
    "query-status": {"status": str},
    "query-target": {"arch": str},
    "query-uuid": {"UUID": str},
    "query-version": {"qemu": {"major": int, "minor": int, "micro": int}},
    "query-yank": [{"type": str}],
    "x-debug-query-block-graph": {
        "nodes": [{"id": int, "type": str, "name": str}],
        "edges": [{"parent": int, "child": int, "name": str}],
    },
    "x-query-ramblock": {"human-readable-text": str},
}

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


def _problem(value: object, shape: Shape, place: str) -> str:
    kind = shape if isinstance(shape, type) else type(shape)
    if not isinstance(value, kind):
        return f"{place} is of the type {type(value).__name__}, not {kind.__name__}"
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
