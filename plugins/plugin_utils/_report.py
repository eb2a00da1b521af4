# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the report of a maintenance tells, checked and reckoned: all that its template needs but the markup.

What hosts have said comes in as any JSON. What goes out has the types below: figures that can be, texts of one line and
of bounded length, and bounded numbers of VMs. All times are seconds since the epoch, all sizes bytes, all durations
seconds.
"""

from __future__ import annotations

import datetime
import reprlib
import typing as t
from dataclasses import dataclass

from ansible_collections.vmops.qemu.plugins.module_utils._errors import one_line
from ansible_collections.vmops.qemu.plugins.plugin_utils._figures import LATEST, MOST, OF_HOST, OF_VM, figures

Data = t.Mapping[str, t.Any]

#: Bounds of what one host brings to the page: VMs, and characters of a name and of a message.
_MOST_VMS = 1000
_MOST_IN_NAME = 200
_MOST_IN_MESSAGE = 1000

#: The largest process ID of Linux.
_MOST_PID = 2**22

#: How a host's, and a VM's, state is to be taken; any other one is neither good nor bad.
_GRADES_OF_HOST = {"done": "good", "failed": "bad", "rolled back": "bad", "begun": "bad", "unreachable": "bad"}
_GRADES_OF_VM = {"restored": "good", "saved": "bad", "failed": "bad"}

#: The states of a host whose VMs are as they are told of: it has come to its end, or nothing more is known of it.
_OVER = ("done", "failed", "rolled back", "unreachable")
#: Those in which a VM that is not saved is no fault yet.
_NOT_BEGUN = ("not reached", "predicted", "begun")

#: What can become of a VM that was not saved.
FATES = ("ignored", "no guest", "shut down", "started again", "not started again")


@dataclass(frozen=True)
class Vm:
    """A VM as a host has told of it."""

    name: str
    state: str
    grade: str
    is_bad: bool
    msg: str
    #: The message, or nothing where the other fields tell it all.
    note: str
    written: bool
    bytes: float | None
    throughput: float | None
    save_seconds: float | None
    restore_seconds: float | None
    stopped_at: float | None
    running_at: float | None
    pause: float | None
    disbelieved: list[str]


@dataclass(frozen=True)
class Unsaved:
    """A VM that ran and was not saved, and what became of it: one of ``FATES``, or nothing where that is not known."""

    name: str
    pid: int | None
    reason: str
    fate: str
    is_bad: bool


@dataclass(frozen=True)
class LeftAlone:
    """An image that was not restored, as it is not the state in which its VM was last."""

    name: str
    path: str
    saved_at: str
    why: str


@dataclass(frozen=True)
class Host:
    """A host; of its VMs no more than are shown."""

    name: str
    state: str
    grade: str
    is_bad: bool
    msg: str
    vm_count: int
    vms: list[Vm]
    unsaved: list[Unsaved]
    left_alone: list[LeftAlone]
    save_seconds: float | None
    work_seconds: float | None
    restore_seconds: float | None
    predicted_bytes: float | None
    predicted_save_seconds: float | None
    predicted_restore_seconds: float | None
    disbelieved: list[str]


@dataclass(frozen=True)
class Wrong:
    """One thing that an operator must know first: of a host, or of a VM of it."""

    host: str
    vm: str
    state: str
    msg: str


@dataclass(frozen=True)
class Totals:
    """Sums over all hosts."""

    hosts: int
    hosts_done: int
    hosts_failed: int
    vms_restored: int
    vms_still_saved: int
    vms_unsaved: int
    bytes_written: int
    bytes_predicted: int
    longest_pause: float | None


@dataclass(frozen=True)
class Bar:
    """A part of a VM's row: ``saving``, ``saved``, ``restoring``, ``still-saved`` or ``unknown``."""

    kind: str
    x: float
    width: float


@dataclass(frozen=True)
class Row:
    """A VM in the picture, and where what is told of it stands."""

    vm: Vm
    y: int
    bars: list[Bar]
    end: float
    #: Whether it began before the picture, or went on after it.
    from_before: bool
    goes_on: bool


@dataclass(frozen=True)
class Group:
    """The VMs of a host in the picture, by the time when they were stopped, below a line with its name."""

    host: Host
    y: int
    rows: list[Row]


@dataclass(frozen=True)
class Tick:
    """A mark of the axis."""

    x: float
    at: float


@dataclass(frozen=True)
class Picture:
    """When each VM stood still; lengths in units of the picture's own."""

    width: int
    height: int
    left: int
    right: int
    row_height: int
    begin: float
    step: int
    ticks: list[Tick]
    #: Where the times of the ticks stand, from above: at both ends, and between the hosts of a long picture.
    axes: list[int]
    groups: list[Group]


@dataclass(frozen=True)
class Report:
    """All of it."""

    title: str
    check_mode: bool
    started_at: float | None
    ended_at: float | None
    hosts: list[Host]
    wrong: list[Wrong]
    totals: Totals
    #: None where no VM was stopped.
    picture: Picture | None


def checked_report(data: Data) -> Report:
    """The report, of what ``host_maintenance`` has collected."""
    times = figures(data, {"started_at": LATEST, "ended_at": LATEST})[0]
    hosts = [_host(host) for host in _mappings(data.get("hosts"))]
    return Report(
        title=_cut(data.get("title"), _MOST_IN_MESSAGE) or "Host maintenance",
        check_mode=bool(data.get("check_mode")),
        started_at=times["started_at"],
        ended_at=times["ended_at"],
        hosts=hosts,
        wrong=_wrong(hosts),
        totals=_totals(hosts),
        picture=_picture(hosts, times["started_at"], times["ended_at"]),
    )


# --- what a host has told -----------------------------------------------------------------------------------------


def _host(host: Data) -> Host:
    known, wrong = figures(host, OF_HOST)
    predicted = host.get("predicted")
    guesses, wrong_guesses = figures(
        predicted if isinstance(predicted, t.Mapping) else {},
        {"bytes": MOST, "save_seconds": LATEST, "restore_seconds": LATEST},
    )
    entries = _mappings(host.get("vms"))
    left_out = f"only {_MOST_VMS} of its {len(entries)} VMs are shown" if len(entries) > _MOST_VMS else ""
    state = _cut(host.get("state"), _MOST_IN_NAME)
    grade = _GRADES_OF_HOST.get(state, "")
    disbelieved = [_cut(name, 40) for name in sorted({*wrong, *wrong_guesses})]
    return Host(
        name=_cut(host.get("host"), _MOST_IN_NAME),
        state=state,
        grade=grade,
        is_bad=grade == "bad" or bool(disbelieved),
        msg=_joined(_cut(host.get("msg"), _MOST_IN_MESSAGE), _told(disbelieved), left_out),
        vm_count=len(entries),
        vms=[_vm(vm) for vm in entries[:_MOST_VMS]],
        unsaved=[_unsaved(vm) for vm in _mappings(host.get("unsaved"))[:_MOST_VMS]],
        left_alone=[_left_alone(image) for image in _mappings(host.get("left_alone"))[:_MOST_VMS]],
        save_seconds=known["save_seconds"],
        work_seconds=known["work_seconds"],
        restore_seconds=known["restore_seconds"],
        predicted_bytes=guesses["bytes"],
        predicted_save_seconds=guesses["save_seconds"],
        predicted_restore_seconds=guesses["restore_seconds"],
        disbelieved=disbelieved,
    )


def _vm(vm: Data) -> Vm:
    known, names = figures(vm, OF_VM)
    wrong = [_cut(name, 40) for name in names]
    state = _cut(vm.get("state"), _MOST_IN_NAME)
    grade = _GRADES_OF_VM.get(state, "")
    msg = _joined(_told(wrong), _cut(vm.get("msg"), _MOST_IN_MESSAGE))
    stopped, running = known["stopped_at"], known["running_at"]
    pause = None if stopped is None or running is None else max(0.0, float(running) - float(stopped))
    quiet = not wrong and (state == "predicted" or (state == "restored" and pause is not None))
    return Vm(
        **known,
        name=_cut(vm.get("name"), _MOST_IN_NAME),
        state=state,
        grade=grade,
        is_bad=grade == "bad" or bool(wrong),
        msg=msg,
        note="" if quiet else msg,
        written=bool(vm.get("written")),
        pause=pause,
        disbelieved=wrong,
    )


def _unsaved(vm: Data) -> Unsaved:
    known, wrong = figures({"pid": vm.get("pid")}, {"pid": _MOST_PID})
    said = _cut(vm.get("fate"), _MOST_IN_NAME)
    fate = said if said in FATES else ""
    return Unsaved(
        name=_cut(vm.get("name"), _MOST_IN_NAME),
        pid=None if known["pid"] is None else int(known["pid"]),
        reason=_joined(_told(wrong), _cut(vm.get("reason"), _MOST_IN_MESSAGE)),
        fate=fate,
        # What was told and is none of them may be anything.
        is_bad=fate == "not started again" or bool(said and not fate),
    )


def _left_alone(image: Data) -> LeftAlone:
    return LeftAlone(
        name=_cut(image.get("name"), _MOST_IN_NAME),
        path=_cut(image.get("path"), _MOST_IN_MESSAGE),
        saved_at=_cut(image.get("saved_at"), _MOST_IN_NAME),
        why=_cut(image.get("why"), _MOST_IN_MESSAGE),
    )


def _mappings(value: t.Any) -> list[Data]:
    return [entry for entry in value if isinstance(entry, t.Mapping)] if isinstance(value, (list, tuple)) else []


def _cut(value: t.Any, most: int) -> str:
    """Others' words in one line, of about so many characters; what is no text is named by its beginning."""
    if value is None:
        return ""
    try:
        # A plain text: one of a class of its own could claim to be markup already.
        text = str.__str__(value) if isinstance(value, str) else reprlib.repr(value)
    except ValueError:  # a number of more digits than Python writes
        text = type(value).__name__
    return one_line(text if len(text) <= most else f"{text[:most]}…")


def _told(wrong: list[str]) -> str:
    return f"it reported figures that cannot be right ({', '.join(wrong)})" if wrong else ""


def _joined(*words: str) -> str:
    return "; ".join(filter(None, words))


# --- what is reckoned of it ---------------------------------------------------------------------------------------


def _wrong(hosts: list[Host]) -> list[Wrong]:
    """Hosts first, then what is wrong of VMs."""
    return [
        *(Wrong(host.name, "", host.state, host.msg) for host in hosts if host.is_bad),
        *(
            Wrong(host.name, vm.name, vm.state, vm.msg)
            for host in hosts
            for vm in host.vms
            if vm.disbelieved or (vm.grade == "bad" and host.state not in _NOT_BEGUN)
        ),
        *(
            Wrong(
                host.name,
                vm.name,
                "unsaved",
                _joined(f"it was not saved, and {vm.fate or 'what became of it is not known'}", vm.reason),
            )
            for host in hosts
            for vm in host.unsaved
            if vm.is_bad
        ),
    ]


def _totals(hosts: list[Host]) -> Totals:
    vms = [(host, vm) for host in hosts for vm in host.vms]
    return Totals(
        hosts=len(hosts),
        hosts_done=sum(host.state == "done" for host in hosts),
        hosts_failed=sum(host.grade == "bad" for host in hosts),
        vms_restored=sum(vm.state == "restored" for _host, vm in vms),
        vms_still_saved=sum(_is_still_saved(host, vm) for host, vm in vms),
        vms_unsaved=sum(len(host.unsaved) for host in hosts),
        bytes_written=sum(int(vm.bytes or 0) for _host, vm in vms if vm.written),
        bytes_predicted=sum(int(host.predicted_bytes or 0) for host in hosts),
        longest_pause=max((vm.pause for _host, vm in vms if vm.pause is not None), default=None),
    )


def _is_still_saved(host: Host, vm: Vm) -> bool:
    return vm.state == "saved" and host.state in _OVER


# --- the picture --------------------------------------------------------------------------------------------------

#: In its own units: its width, the room for names and for what is told, and the height of a row and of an axis.
_WIDTH = 1180
_LEFT = 300
_RIGHT = 160
_ROW = 20
_AXIS = 24
_GAP = 8
#: How long it may become before the axis comes once more.
_BETWEEN_AXES = 40 * _ROW
#: The least that a bar is wide, to be seen.
_THINNEST = 1.5
#: Seconds between two ticks of the axis, of which the first is taken that gives few enough.
_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800)
_MOST_TICKS = 8
#: Seconds by which a host's clock may differ from the controller's without a bar being cut off.
_SKEW = 900


@dataclass(frozen=True)
class _Scale:
    """The time that the picture shows, and where each moment of it is."""

    begin: float
    until: float
    step: int
    #: To when what has no known end is drawn: the report's end.
    end: float

    def within(self, moment: float) -> float:
        """The moment, or the one of the picture that is next to it."""
        return min(max(moment, self.begin), self.until)

    def x(self, moment: float) -> float:
        """Where a moment is; one outside of the picture is at its edge."""
        share = (self.within(moment) - self.begin) / (self.until - self.begin)
        return round(_LEFT + share * (_WIDTH - _LEFT - _RIGHT), 1)


def _picture(hosts: list[Host], started: float | None, ended: float | None) -> Picture | None:
    """One row for each VM that was stopped, from then to when it ran again; those that are still saved to the end.

    The picture is that of the maintenance, by the controller's clock: a bar from before it or until after it is cut
    off, so that one VM's time does not make the others' bars vanish.
    """
    shown: list[tuple[Host, list[Vm]]] = []
    for host in hosts:
        vms = [vm for vm in host.vms if vm.stopped_at is not None or _is_still_saved(host, vm)]
        if vms:
            shown.append((host, sorted(vms, key=lambda vm: vm.stopped_at or 0.0)))
    scale = _scale([vm for _host, vms in shown for vm in vms], started, ended)
    if scale is None:
        return None
    groups: list[Group] = []
    axes = [0]
    y = _AXIS
    for host, vms in shown:
        if y - axes[-1] > _BETWEEN_AXES:
            axes.append(y + _GAP)
            y += _GAP + _AXIS
        top = y + (_GAP if groups else 0)
        groups.append(Group(host, top, [_row(vm, top + place * _ROW, scale) for place, vm in enumerate(vms, 1)]))
        y = top + (1 + len(vms)) * _ROW
    axes.append(y)
    moments = [scale.begin + tick * scale.step for tick in range(int((scale.until - scale.begin) / scale.step) + 1)]
    return Picture(
        width=_WIDTH,
        height=y + _AXIS,
        left=_LEFT,
        right=_WIDTH - _RIGHT,
        row_height=_ROW,
        begin=scale.begin,
        step=scale.step,
        ticks=[Tick(scale.x(moment), moment) for moment in moments],
        axes=axes,
        groups=groups,
    )


def _scale(vms: list[Vm], started: float | None, ended: float | None) -> _Scale | None:
    """What of the time is shown; None where no time is known."""
    moments = [float(moment) for vm in vms for moment in (vm.stopped_at, vm.running_at) if moment is not None]
    if any(vm.running_at is None for vm in vms):
        moments += [float(moment) for moment in (ended,) if moment is not None]
    if any(vm.stopped_at is None for vm in vms):
        moments += [float(moment) for moment in (started,) if moment is not None]
    if not moments:
        return None
    if started is not None and ended is not None:
        earliest, latest = started - _SKEW, max(ended, started) + _SKEW
        # What began long before shall not push the others' bars into a corner.
        moments = [m for m in moments if earliest <= m <= latest] or [min(max(m, earliest), latest) for m in moments]
    first, last = min(moments), max(moments)
    # Without the controller's clock a span may be of any length.
    step = next(
        (step for step in _STEPS if (last - first) / step <= _MOST_TICKS), int((last - first) / _MOST_TICKS) + 1
    )
    begin = first - first % step
    return _Scale(begin, begin + max(last - begin, float(step)), step, last)


def _row(vm: Vm, y: int, scale: _Scale) -> Row:
    start = scale.begin if vm.stopped_at is None else float(vm.stopped_at)
    end = max(scale.end if vm.running_at is None else float(vm.running_at), start)
    saved = min(start + float(vm.save_seconds or 0), end) if vm.stopped_at is not None else start
    loaded = end if vm.running_at is None else max(end - float(vm.restore_seconds or 0), saved)
    without_end = "still-saved" if vm.state == "saved" else "unknown"
    between = without_end if vm.running_at is None else "saved"
    return Row(
        vm=vm,
        y=y,
        bars=[
            Bar(kind, scale.x(left), max(round(scale.x(right) - scale.x(left), 1), _THINNEST))
            for left, right, kind in ((start, saved, "saving"), (saved, loaded, between), (loaded, end, "restoring"))
            # What is still so is never left out, however short it has been so.
            if scale.within(right) > scale.within(left) or kind == "still-saved"
        ],
        end=scale.x(end),
        from_before=vm.stopped_at is None or start < scale.begin,
        goes_on=vm.running_at is None or end > scale.until,
    )


# --- filters of the template --------------------------------------------------------------------------------------


def time(value: float | None) -> str:
    """Seconds since the epoch as a date and a time, UTC."""
    if value is None:
        return "–"
    return datetime.datetime.fromtimestamp(float(value), datetime.timezone.utc).strftime("%Y-%m-%d %H:%M:%S")


def clock(value: float, step: float = 1) -> str:
    """The time at a tick, UTC, as exact as the ticks are, which are ``step`` seconds apart."""
    pattern = "%H:%M:%S" if step < 60 else "%H:%M" if step < 43200 else "%d %b %H:%M"
    return datetime.datetime.fromtimestamp(value, datetime.timezone.utc).strftime(pattern)


def seconds(value: float | None) -> str:
    """A duration in the units that one would say it in."""
    if value is None:
        return "–"
    if value < 120:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 120:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def size(value: float | None) -> str:
    """Bytes as MiB, GiB or TiB."""
    if not value:
        return "–"
    if value < 2**30:
        return f"{value / 2**20:.0f} MiB"
    return f"{value / 2**30:.1f} GiB" if value < 2**40 else f"{value / 2**40:.1f} TiB"


def rate(value: float | None) -> str:
    """Bytes a second as MiB/s."""
    return f"{value / 2**20:.0f} MiB/s" if value else "–"


def shorten(text: str, room: int) -> str:
    """A name that must find room; where there is none its middle goes, as names differ at their ends."""
    return text if len(text) <= room else f"{text[: room // 2 - 1]}…{text[-(room // 2) :]}"


#: By the name that a template calls each by.
FORMATS: t.Mapping[str, t.Callable[..., str]] = {
    "time": time,
    "clock": clock,
    "seconds": seconds,
    "size": size,
    "rate": rate,
    "shorten": shorten,
}
