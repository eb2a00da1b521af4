# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is taken for an answer or an event of QEMU's."""

from __future__ import annotations

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.answers import (
    answer_problem,
    event_problem,
    with_believable_time,
)

TIME = {"seconds": 1, "microseconds": 2}


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("query-status", {"status": "running", "running": True}),
        ("query-name", {}),
        ("query-migrate", {}),
        ("query-migrate", {"status": "active", "ram": {"total": 1, "remaining": 0, "transferred": 1}}),
        ("query-fdsets", []),
        ("query-fdsets", [{"fdset-id": 0, "fds": [{"fd": 7}]}]),
        ("query-cpus-fast", [{"cpu-index": 0, "qom-path": "/machine/unattached/device[0]"}]),
        ("query-block", [{"device": "", "inserted": {"node-name": "#block1", "ro": False}}, {"device": "cd"}]),
        ("qom-get", "pc-i440fx-10.0-machine"),
        ("qom-get", False),
        ("qom-get", [{"cpuid-register": "EDX", "cpuid-input-eax": 1, "features": 7}]),
        ("qom-get", {"cores": 4, "threads": 1, "cpus": 4, "maxcpus": 4}),
        ("stop", {}),
        ("a command that nobody has heard of", {"what": 1}),
    ],
)
def test_answers(command, answer):
    assert answer_problem(command, answer) == ""


@pytest.mark.parametrize(
    ("command", "answer", "problem"),
    [
        ("query-status", {}, "it has no status"),
        ("query-status", {"status": 7}, "status is of the type int, not str"),
        ("query-status", [], "it is of the type list, not dict"),
        ("query-migrate", {"status": None}, "status is of the type NoneType, not str"),
        ("query-migrate", {"ram": {"total": "many"}}, "total is of the type str, not int"),
        ("query-fdsets", [{"fdset-id": 0}], "an item of it has no fds"),
        ("query-fdsets", [{"fdset-id": 0, "fds": [[]]}], "an item of fds is of the type list, not dict"),
        ("query-memory-size-summary", {"base-memory": -(2**20)}, f"base-memory is {-(2**20)}, not from 0 to {2**56}"),
        ("query-memory-size-summary", {"base-memory": 2**64}, f"base-memory is {2**64}, not from 0 to {2**56}"),
        ("query-memory-size-summary", {"base-memory": True}, "base-memory is of the type bool, not int"),
        (
            "query-migrate",
            {"ram": {"transferred": 10**400}},
            f"transferred is 1000… (401 digits), not from 0 to {2**63 - 1}",
        ),
        ("query-status", {"status": "run\0ning"}, "status has a NUL, or half of a character"),
        ("qom-list", [{"name": "\ud800", "type": "x"}], "name has a NUL, or half of a character"),
        ("qom-get", "\udcff", "it has a NUL, or half of a character"),
        ("query-cpus-fast", [7], "an item of it is of the type int, not dict"),
        # Without these a drive would be taken for an empty one.
        ("query-block", [{"what": 1}], "an item of it has no device"),
        ("query-block", [{"device": "a", "inserted": {}}], "inserted has no node-name"),
        ("query-named-block-nodes", [{"drv": "raw", "file": "a"}], "an item of it has no node-name"),
        ("query-memdev", [{"what": 1}], "an item of it has no prealloc"),
        ("x-debug-query-block-graph", {"what": 1}, "it has no nodes"),
        ("stop", [7], "it is of the type list, not dict"),
        ("quit", None, "it is of the type NoneType, not dict"),
    ],
)
def test_what_is_no_answer(command, answer, problem):
    assert answer_problem(command, answer) == problem


def test_events():
    assert event_problem({"event": "STOP", "timestamp": TIME}) == ""
    assert event_problem({"event": "MIGRATION", "timestamp": TIME, "data": {"status": "active"}}) == ""


@pytest.mark.parametrize(
    "event",
    [
        {"event": 7, "timestamp": TIME},
        {"event": "STOP"},
        {"event": "STOP", "timestamp": {"seconds": 1}},
        {"event": "MIGRATION", "timestamp": TIME},
        {"event": "MIGRATION", "timestamp": TIME, "data": {"status": 7}},
    ],
)
def test_what_is_no_event(event):
    assert event_problem(event)


NOW = 1764000000.25


@pytest.mark.parametrize(
    ("seconds", "microseconds"),
    [(10**19, 0), (253402300799, 0), (0, 0), (-1, -1), (1764000000 + 301, 0), (1764000000, 10**18), (1764000000, -1)],
)
def test_time_of_an_event_that_no_clock_tells(seconds, microseconds):
    """Then the time counts at which it came."""
    event = {"event": "STOP", "timestamp": {"seconds": seconds, "microseconds": microseconds}}
    assert with_believable_time(event, NOW) == {
        "event": "STOP",
        "timestamp": {"seconds": 1764000000, "microseconds": 250000},
    }


@pytest.mark.parametrize("seconds", [1764000000, 1764000000 - 299])
def test_time_of_an_event_is_qemus_own(seconds):
    event = {"event": "STOP", "timestamp": {"seconds": seconds, "microseconds": 5}}
    assert with_believable_time(event, NOW) is event
