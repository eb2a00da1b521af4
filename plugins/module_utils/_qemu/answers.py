# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What QEMU's answers and events must have in them.

A monitor that answers with something else is no QEMU's, or one that is broken. It is found here, where the answer
comes in, so that whoever asked may rely on what QEMU's documentation says.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
import typing as t

#: A message's bytes at most. QEMU's longest answer is its schema (some 200 KiB), and of a thousand disks 1 MiB.
MAX_MESSAGE = 4 * 1024 * 1024

#: Values in a message at most, each of which takes some 60 bytes of memory for as little as two. The schema has 50 000.
_MAX_VALUES = 500_000

#: How deep values may lie inside each other.
_MAX_DEPTH = 100

#: What is in no string of QEMU's, which are C's and are told as UTF-8, and in no path or XML.
_NO_TEXT = re.compile("[\0\ud800-\udfff]")

#: Digits in a row that no number of QEMU's has. Before Python 3.11, reading a number takes the square of its length.
_LONG_NUMBER = re.compile(rb"[0-9.]{1000}")


@dataclasses.dataclass(frozen=True)
class Number:
    """A whole number in a range."""

    least: int
    most: int


@dataclasses.dataclass(frozen=True)
class Text:
    """A string of so many characters at most."""

    most: int


class Either:
    """One of two shapes, of different types."""

    def __init__(self, *shapes: Shape) -> None:
        self.shapes = shapes


#: Bytes or the like, of which QEMU has 64 bits.
_SIZE = Number(0, 2**63 - 1)
#: Bytes of memory: more than an x86 host can address.
_MEMORY = Number(0, 2**56)
#: What is shown to people, or compared with such: names, versions, states.
_WORD = Text(4096)
_PATH = Text(64 * 1024)

#: A type; a number in a range; a text; one of several; a list of one shape; or keys and their shapes, those that may be
#: missing with a question mark.
Shape = t.Union[type, Number, Text, "Either", t.List["Shape"], t.Dict[str, "Shape"]]

_PCI_DEVICE: t.Dict[str, Shape] = {"qdev_id": _WORD, "slot": Number(0, 31), "function": Number(0, 7)}
_PCI_DEVICE["pci_bridge?"] = {"devices?": [_PCI_DEVICE]}

#: More than any machine type has.
_CPUS = Number(0, 2**20)

_CPUID_WORD: t.Dict[str, Shape] = {
    "cpuid-register": Text(16),
    "cpuid-input-eax": Number(0, 2**32 - 1),
    "cpuid-input-ecx?": Number(0, 2**32 - 1),
    "features": Number(0, 2**32 - 1),
}

#: By command, the parts of the answer that are used. All other commands answer with an object in which nothing is.
_ANSWERS: dict[str, Shape] = {
    "add-fd": {"fdset-id": Number(0, 2**63 - 1)},
    "human-monitor-command": str,
    # A type, a path, whether it was plugged in, an address; the bits of CPUID, and the numbers of -smp.
    "qom-get": Either(_WORD, bool, Number(0, 2**32), [_CPUID_WORD], {"cpus": _CPUS, "maxcpus": _CPUS}),
    "qom-list": [{"name": _WORD, "type": _WORD}],
    "query-block": [
        {
            "device": _WORD,
            "qdev?": _WORD,
            "inserted?": {
                "node-name": _WORD,
                "ro": bool,
                "image?": {"filename?": _PATH},
                **dict.fromkeys(("bps?", "bps_rd?", "bps_wr?", "iops?", "iops_rd?", "iops_wr?"), _SIZE),
                "write_threshold?": _SIZE,
            },
        }
    ],
    "query-block-exports": [{"id": _WORD, "type": _WORD, "node-name": _WORD}],
    "query-chardev": [{"label": _WORD, "filename": _PATH, "frontend-open?": bool}],
    "query-cpus-fast": [{"qom-path": _WORD}],
    "query-fdsets": [
        {"fdset-id": Number(0, 2**63 - 1), "fds": [{"fd": Number(0, 2**31 - 1), "opaque?": _PATH}]},
    ],
    "query-display-options": {"type": _WORD},
    "query-iothreads": [dict],
    "query-jobs": [{"id": _WORD, "type": _WORD, "status": _WORD}],
    "query-kvm": {"enabled": bool},
    "query-memdev": [{"id?": _WORD, "prealloc": bool}],
    "query-memory-devices": [
        {"type": _WORD, "data": {"id?": _WORD, "memdev?": _WORD, "size?": _MEMORY, "memaddr?": _MEMORY}},
    ],
    "query-memory-size-summary": {"base-memory": _MEMORY, "plugged-memory?": _MEMORY},
    "query-migrate": {
        "status?": _WORD,
        "error-desc?": _PATH,
        "blocked-reasons?": [_PATH],
        "ram?": {"total?": _SIZE, "remaining?": _SIZE, "transferred?": _SIZE, "normal?": _SIZE, "normal-bytes?": _SIZE},
        "total-time?": _SIZE,
        "setup-time?": _SIZE,
    },
    "query-migrate-capabilities": [{"capability": _WORD, "state": bool}],
    "query-migrate-parameters": {"max-bandwidth": Number(0, 2**64 - 1), "multifd-channels": Number(1, 255)},
    "query-name": {"name?": _WORD},
    "query-named-block-nodes": [
        {
            "node-name": _WORD,
            "drv": _WORD,
            "file": _PATH,
            "dirty-bitmaps?": [{"name?": _WORD, "persistent": bool}],
            "children?": [{"child": _WORD, "node-name": _WORD}],
        }
    ],
    "query-pci": [{"devices": [_PCI_DEVICE]}],
    "query-status": {"status": _WORD},
    "query-target": {"arch": _WORD},
    "query-uuid": {"UUID": _WORD},
    "query-version": {"qemu": {"major": Number(0, 9999), "minor": Number(0, 9999), "micro": Number(0, 9999)}},
    "query-yank": [{"type": _WORD}],
    "x-debug-query-block-graph": {
        "nodes": [{"id": _SIZE, "type": _WORD, "name": _WORD}],
        "edges": [{"parent": _SIZE, "child": _SIZE, "name": _WORD}],
    },
    "x-query-ramblock": {"human-readable-text": str},
}

#: Seconds by which an event's time may differ from the time at which it came: more is no clock's.
_EVENT_DELAY = 300

#: From 1970 to 2106. QEMU's clock is this host's, or that of another one.
_EVENT: Shape = {"event": _WORD, "timestamp": {"seconds": Number(0, 2**32), "microseconds": Number(0, 999_999)}}
_MIGRATION_EVENT: Shape = {"data": {"status": _WORD}}


def message_problem(data: bytes) -> str:
    """Why the bytes of a message are not even to be parsed, as a clause, or the empty string."""
    if len(data) > MAX_MESSAGE:
        return f"it has more than {MAX_MESSAGE >> 20} MiB"
    opening = data.count(b"[") + data.count(b"{")
    if data.count(b",") + opening > _MAX_VALUES:
        return f"it has more than {_MAX_VALUES} values"
    if opening > _MAX_DEPTH and _depth(data) > _MAX_DEPTH:
        return f"its values lie more than {_MAX_DEPTH} deep inside each other"
    if _LONG_NUMBER.search(data):
        return "it has a number of more than 1000 digits"
    return ""


_TEXT = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = dict(zip(b"[{]}", (1, 1, -1, -1)))


def _depth(data: bytes) -> int:
    # Every other part is a text's where no quotation mark is escaped, which is the usual thing, and much faster.
    outside = _TEXT.sub(b"", data) if b"\\" in data else b"".join(data.split(b'"')[::2])
    brackets = outside.translate(None, _NO_BRACKETS)
    return max(itertools.accumulate(map(_STEPS.__getitem__, brackets)), default=0)


def answer_problem(command: str, answer: object) -> str:
    """What is wrong with the answer to a command, as a clause, or the empty string."""
    return _answer_check(command)(answer, "it")


def event_problem(event: t.Mapping[str, t.Any]) -> str:
    """What is wrong with an event, as a clause, or the empty string."""
    return _EVENT_CHECK(event, "it") or (_MIGRATION_CHECK(event, "it") if event["event"] == "MIGRATION" else "")


def with_believable_time(event: dict[str, t.Any], now: float) -> dict[str, t.Any]:
    """The event; with the time at which it came, where it tells another one (a clock that was set, or a lie).

    Its time goes into results, and from there into sums and pictures of many VMs.

    :param now: seconds since the epoch.
    """
    stamp = event["timestamp"]
    if abs(stamp["seconds"] - now) <= _EVENT_DELAY and 0 <= stamp["microseconds"] < 1_000_000:
        return event
    return {**event, "timestamp": {"seconds": int(now), "microseconds": int(now % 1 * 1_000_000)}}


#: Of a value, and what it is: what is wrong with it, as a clause, or the empty string.
_Check = t.Callable[[object, str], str]


@functools.cache
def _answer_check(command: str) -> _Check:
    return _checked(_ANSWERS.get(command, dict))


def _checked(shape: Shape) -> _Check:
    if isinstance(shape, dict):
        return _Fields(shape)
    if isinstance(shape, Either):
        checks = [_checked(each) for each in shape.shapes]
        return lambda value, place: _one_of([check(value, place) for check in checks])
    if isinstance(shape, list):
        item = _checked(shape[0])
        return lambda value, place: (
            _wrong_type(value, list, place)
            or _first(item(each, f"an item of {place}") for each in t.cast("list[object]", value))
        )
    if isinstance(shape, Number):
        return lambda value, place: _wrong_type(value, int, place) or _outside(t.cast(int, value), shape, place)
    most = shape.most if isinstance(shape, Text) else MAX_MESSAGE
    kind = str if isinstance(shape, Text) else shape
    if kind is str:
        return lambda value, place: _wrong_type(value, str, place) or _no_text(t.cast(str, value), most, place)
    return lambda value, place: _wrong_type(value, kind, place)


class _Fields:
    """The check of an object; of what may lie in itself, as a bus behind a bridge, so it is made when it is needed."""

    def __init__(self, shape: dict[str, Shape]) -> None:
        self._shape = shape
        self._fields: list[tuple[str, bool, _Check]] = []

    def __call__(self, value: object, place: str) -> str:
        if not isinstance(value, dict):
            return _wrong_type(value, dict, place)
        if not self._fields:
            self._fields = [(key.rstrip("?"), key[-1] != "?", _checked(inner)) for key, inner in self._shape.items()]
        for name, needed, check in self._fields:
            if name in value:
                problem = check(value[name], name)
                if problem:
                    return problem
            elif needed:
                return f"{place} has no {name}"
        return ""


def _first(problems: t.Iterable[str]) -> str:
    return next(filter(None, problems), "")


def _one_of(problems: list[str]) -> str:
    return "" if "" in problems else problems[0]


def _wrong_type(value: object, kind: type, place: str) -> str:
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return ""
    return f"{place} is of the type {type(value).__name__}, not {kind.__name__}"


def _outside(value: int, shape: Number, place: str) -> str:
    if shape.least <= value <= shape.most:
        return ""
    digits = str(value)
    shown = digits if len(digits) <= 24 else f"{digits[:4]}… ({len(digits)} digits)"
    return f"{place} is {shown}, not from {shape.least} to {shape.most}"


def _no_text(value: str, most: int, place: str) -> str:
    if len(value) > most:
        return f"{place} has {len(value)} characters, more than {most}"
    return f"{place} has a NUL, or half of a character" if _NO_TEXT.search(value) else ""


_EVENT_CHECK = _checked(_EVENT)
_MIGRATION_CHECK = _checked(_MIGRATION_EVENT)
