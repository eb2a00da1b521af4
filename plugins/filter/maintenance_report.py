# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The report of a maintenance as one self-contained HTML page."""

from __future__ import annotations

import datetime
import html
import reprlib
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._errors import one_line
from ansible_collections.vmops.qemu.plugins.plugin_utils._figures import LATEST, MOST, OF_HOST, OF_VM, figures

DOCUMENTATION = r"""
name: maintenance_report
short_description: Create an HTML page about a maintenance
version_added: 0.1.0
description:
  - Takes what the playbook C(vmops.qemu.host_maintenance) has collected, which it also writes as JSON.
  - The page needs no other file and no script. It has a table of the hosts, a table of the VMs, and a diagram that
    shows when each VM was paused.
  - The page stays readable and small whatever values a host or a VM reports. An impossible value is omitted, and its VM
    is listed among those with errors. The diagram covers only the time of the maintenance. At most 1000 VMs of a host
    are shown.
options:
  _input:
    description: The report's data.
    type: dict
    required: true
author:
  - vmops.qemu contributors (@vmops)
"""

EXAMPLES = r"""
- name: Make the page anew from the data
  ansible.builtin.copy:
    content: "{{ lookup('ansible.builtin.file', 'report.json') | from_json | vmops.qemu.maintenance_report }}"
    dest: report.html
    mode: "0600"
"""

RETURN = r"""
_value:
  description: The page.
  type: str
"""

Data = t.Mapping[str, t.Any]

_STYLE = """
:root { --line: #d5d8dc; --muted: #5d6670; --ok: #1e7a3a; --bad: #b3261e; --save: #e0a030; --still: #7f9fc9;
  --restore: #3b9b8f; --lost: #d9534f; }
* { box-sizing: border-box; }
body { font: 15px/1.45 system-ui, sans-serif; color: #1b1f24; background: #fff; max-width: 78rem; margin: 2rem auto;
  padding: 0 1.2rem; }
h1 { font-size: 1.6rem; margin: 0; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
p.sub { color: var(--muted); margin: .2rem 0 .6rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { text-align: left; padding: .35rem .8rem .35rem .4rem; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { color: var(--muted); font-weight: 600; border-bottom-width: 2px; white-space: nowrap; }
td.n, th.n { text-align: right; white-space: nowrap; } td.s { white-space: nowrap; }
td.t { overflow-wrap: anywhere; min-width: 13rem; } td.m { overflow-wrap: anywhere; min-width: 12rem; }
tr.bad td { background: #fdecea; } tr { break-inside: avoid; } thead { display: table-header-group; }
span.ok { color: var(--ok); font-weight: 600; } span.bad { color: var(--bad); font-weight: 700; }
span.none { color: var(--muted); }
.scroll { overflow-x: auto; }
svg { display: block; width: 100%; height: auto; min-width: 48rem; } svg text { font: 12px system-ui, sans-serif; }
svg text.b { font-weight: 700; } svg text.lost { font-weight: 700; fill: var(--bad); }
.tiles { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.2rem 0; }
.tile { border: 1px solid var(--line); border-radius: .5rem; padding: .5rem 1rem; min-width: 8.5rem; }
.tile b { display: block; font-size: 1.35rem; } .tile span { color: var(--muted); }
.tile.bad { border-color: var(--bad); background: #fdecea; } .tile.bad span { color: inherit; }
.wrong { border-left: 5px solid var(--bad); background: #fdecea; padding: .6rem 1rem; margin: 1.2rem 0; }
.wrong h2 { margin: 0 0 .3rem; } .wrong ul { margin: 0; padding-left: 1.2rem; } .wrong li { overflow-wrap: anywhere; }
.key { display: inline-block; width: .9em; height: .9em; border-radius: 2px; margin: 0 .3em 0 .9em;
  vertical-align: -.1em; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
@media print { body { margin: 0; max-width: none; font-size: 11px; } svg { min-width: 0; }
  .tile, .wrong, tr.bad td, svg { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""

_STATES = {
    "done": ("ok", "done"),
    "predicted": ("none", "predicted"),
    "failed": ("bad", "failed"),
    "rolled back": ("bad", "failed, put back"),
    "not reached": ("none", "not reached"),
    "begun": ("bad", "begun, not ended"),
}
_VM_STATES = {
    "restored": ("ok", "runs"),
    "saved": ("bad", "still saved"),
    "running": ("none", "runs, never saved"),
    "failed": ("bad", "not saved"),
    "predicted": ("none", "predicted"),
}

#: Characters of a name that is not broken into lines.
_SHORT_NAME = 28

#: How much of the list of what went wrong is shown; the tables have all.
_MOST_WRONG = 20


#: Bounds of what one host brings to the page: VMs, and characters of a name and of a message.
_MOST_VMS = 1000
_MOST_IN_NAME = 200
_MOST_IN_MESSAGE = 1000


def maintenance_report(data: Data) -> str:
    """The page."""
    hosts: list[Data] = [_host(host) for host in data.get("hosts", ()) if isinstance(host, t.Mapping)]
    vms = [(host, vm) for host in hosts for vm in host["vms"]]
    times = figures(data, {"started_at": LATEST, "ended_at": LATEST})[0]
    data = {**data, **times}
    title = _text(data.get("title") or "Host maintenance")
    kind = "Prediction of" if data.get("check_mode") else "From"
    parts = [
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>{title}</h1>"
        f"<p class='sub'>{kind} {_time(data.get('started_at'))} to {_time(data.get('ended_at'))} UTC</p>",
        _wrong(hosts, vms),
        _tiles(hosts, vms),
        "<h2>Hosts</h2>",
        _host_table(hosts),
        "<h2>When each VM stood still</h2>",
        _timeline(vms, times["started_at"], times["ended_at"]),
        "<h2>VMs</h2>",
        _vm_table(vms),
        _left_alone(hosts),
        "</body></html>\n",
    ]
    return "\n".join(parts)


def _host(host: Data) -> Data:
    """A host as it is shown: what it told is checked, and cut to its bounds."""
    known, wrong = figures(host, OF_HOST)
    predicted = host.get("predicted")
    guesses, wrong_guesses = figures(
        predicted if isinstance(predicted, t.Mapping) else {},
        {"bytes": MOST, "save_seconds": LATEST, "restore_seconds": LATEST},
    )
    vms = host.get("vms")
    entries = [vm for vm in vms if isinstance(vm, t.Mapping)] if isinstance(vms, (list, tuple)) else []
    left_out = f"only {_MOST_VMS} of its {len(entries)} VMs are shown" if len(entries) > _MOST_VMS else ""
    return {
        **known,
        "host": _cut(host.get("host"), _MOST_IN_NAME),
        "state": _cut(host.get("state"), _MOST_IN_NAME),
        "msg": "; ".join(
            filter(None, (_cut(host.get("msg"), _MOST_IN_MESSAGE), _told(wrong + wrong_guesses), left_out))
        ),
        "predicted": guesses,
        "vms": [_vm(vm) for vm in entries[:_MOST_VMS]],
        "left_alone": _images(host.get("left_alone")),
        "count": len(entries),
        "disbelieved": wrong + wrong_guesses,
    }


def _images(images: t.Any) -> list[dict[str, str]]:
    """The same of the images that were left alone."""
    entries = [image for image in images if isinstance(image, t.Mapping)] if isinstance(images, (list, tuple)) else []
    return [
        {
            **{key: _cut(image.get(key), _MOST_IN_NAME) for key in ("name", "saved_at")},
            **{key: _cut(image.get(key), _MOST_IN_MESSAGE) for key in ("path", "why")},
        }
        for image in entries[:_MOST_VMS]
    ]


def _vm(vm: Data) -> Data:
    """The same of a VM."""
    known, wrong = figures(vm, OF_VM)
    return {
        **known,
        "name": _cut(vm.get("name"), _MOST_IN_NAME),
        "state": _cut(vm.get("state"), _MOST_IN_NAME),
        "msg": "; ".join(filter(None, (_told(wrong), _cut(vm.get("msg"), _MOST_IN_MESSAGE)))),
        "written": bool(vm.get("written")),
        "disbelieved": wrong,
    }


def _cut(value: t.Any, most: int) -> str:
    """Others' words, of no more than so many characters; what is no text is named by its beginning."""
    if value is None:
        return ""
    try:
        text = value if isinstance(value, str) else reprlib.repr(value)
    except ValueError:  # a number of more digits than Python writes
        text = type(value).__name__
    return text if len(text) <= most else f"{text[:most]}…"


def _told(wrong: list[str]) -> str:
    return f"it reported figures that cannot be right ({', '.join(_cut(name, 40) for name in wrong)})" if wrong else ""


def _wrong(hosts: list[Data], vms: list[tuple[Data, Data]]) -> str:
    """What an operator must know first."""
    told = [f"<b>{_text(host.get('host'))}</b>: {_text(host.get('msg'))}" for host in hosts if _is_bad(_STATES, host)]
    told += [
        f"<b>{_text(vm.get('name'))}</b> on {_text(host.get('host'))}: {_text(vm.get('msg'))}"
        for host, vm in vms
        if vm["disbelieved"]
        or (_is_bad(_VM_STATES, vm) and host.get("state") not in ("not reached", "predicted", "begun"))
    ]
    if not told:
        return ""
    more = f"<li>and {len(told) - _MOST_WRONG} more, see below</li>" if len(told) > _MOST_WRONG else ""
    items = "".join(f"<li>{item}</li>" for item in told[:_MOST_WRONG])
    return f"<div class='wrong'><h2>What went wrong</h2><ul>{items}{more}</ul></div>"


def _tiles(hosts: list[Data], vms: list[tuple[Data, Data]]) -> str:
    pauses = [pause for _host, vm in vms if (pause := _pause(vm)) is not None]
    failed = sum(_is_bad(_STATES, {**host, "disbelieved": []}) for host in hosts)
    still = sum(vm.get("state") == "saved" and _is_over(host) for host, vm in vms)
    predicted = sum(int((host.get("predicted") or {}).get("bytes") or 0) for host in hosts)
    written = sum(int(vm.get("bytes") or 0) for _host, vm in vms if vm.get("written"))
    tiles = [
        (f"{sum(host.get('state') == 'done' for host in hosts)} of {len(hosts)}", "hosts done", False),
        (str(failed), "hosts failed", failed > 0),
        (str(sum(vm.get("state") == "restored" for _host, vm in vms)), "VMs saved and back", False),
        (str(still), "VMs still saved", still > 0),
        (_size(written) if written else _size(predicted), "written" if written else "at most, predicted", False),
        (_seconds(max(pauses)) if pauses else "–", "longest pause", False),
    ]
    shown = "".join(
        f"<div class='tile{' bad' if bad else ''}'><b>{big}</b><span>{small}</span></div>" for big, small, bad in tiles
    )
    return f"<div class='tiles'>{shown}</div>"


def _host_table(hosts: list[Data]) -> str:
    rows = []
    for host in hosts:
        predicted = host.get("predicted") or {}
        guesses = {key: host.get(key) is None and predicted.get(key) for key in ("save_seconds", "restore_seconds")}
        times = {key: f"≈ {_seconds(guess)}" if guess else _seconds(host.get(key)) for key, guess in guesses.items()}
        rows.append(
            f"<tr{_row_class(_STATES, host)}>{_name_cell(host.get('host'))}"
            f"<td class='s'>{_state(_STATES, host)}</td>"
            f"<td class='n'>{host['count']}</td>"
            f"<td class='n'>{times['save_seconds']}</td>"
            f"<td class='n'>{_seconds(host.get('work_seconds'))}</td>"
            f"<td class='n'>{times['restore_seconds']}</td>"
            f"<td class='m'>{_text(host.get('msg'))}</td></tr>"
        )
    return _table(("Host", "State", "#VMs", "#Saves", "#Maintenance", "#Restores", "Note"), rows)


def _vm_table(vms: list[tuple[Data, Data]]) -> str:
    rows = [
        f"<tr{_row_class(_VM_STATES, vm)}>{_name_cell(host.get('host'))}{_name_cell(vm.get('name'))}"
        f"<td class='s'>{_state(_VM_STATES, vm)}</td>"
        f"<td class='n'>{_size(vm.get('bytes'))}</td><td class='n'>{_rate(vm.get('throughput'))}</td>"
        f"<td class='n'>{_seconds(vm.get('save_seconds'))}</td>"
        f"<td class='n'>{_seconds(vm.get('restore_seconds'))}</td>"
        f"<td class='n'>{_seconds(_pause(vm))}</td>"
        # What went as it should has said all that in the other columns.
        f"<td class='m'>{'' if _is_quiet(vm) else _text(vm.get('msg'))}</td></tr>"
        for host, vm in vms
    ]
    return _table(("Host", "VM", "State", "#Image", "#Rate", "#Save", "#Restore", "#Stood still", "Note"), rows)


def _left_alone(hosts: list[Data]) -> str:
    """The images that were not restored because they are not the state in which a VM was last."""
    rows = [
        f"<tr>{_name_cell(host.get('host'))}{_name_cell(image.get('name'))}{_name_cell(image.get('path'))}"
        f"<td class='s'>{_text(image.get('saved_at')) or '–'}</td><td class='m'>{_text(image.get('why'))}</td></tr>"
        for host in hosts
        for image in host["left_alone"]
    ]
    heads = ("Host", "VM", "Image", "Saved at", "Why")
    return f"<h2>Images that were left alone</h2>{_table(heads, rows)}" if rows else ""


def _table(heads: tuple[str, ...], rows: list[str]) -> str:
    cells = "".join(f"<th class='n'>{head[1:]}</th>" if head.startswith("#") else f"<th>{head}</th>" for head in heads)
    return f"<div class='scroll'><table><thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"


#: Of the picture, in its own units: the room for names and for durations, and the height of a VM's row.
_WIDTH = 1140
_LEFT = 300
_RIGHT = 120
_ROW = 20
#: Characters of a name that find room on the left.
_NAME_ROOM = 38
#: Seconds between two ticks of the axis, of which the first is taken that gives few enough.
_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800)
_MOST_TICKS = 8
#: Seconds by which a host's clock may differ from the controller's without a bar being cut off.
_SKEW = 900


def _timeline(vms: list[tuple[Data, Data]], started: float | None, ended: float | None) -> str:
    """One bar for each VM, from when it was stopped to when it ran again; a line of text above those of each host.

    The picture is that of the maintenance, by the controller's clock: a bar from before it or until after it is cut
    off, so that one VM's time does not make the others' bars vanish.
    """
    shown = [(host, vm) for host, vm in vms if vm.get("stopped_at")]
    if not shown:
        return "<p class='sub'>No VM was stopped.</p>"
    first = min(float(vm["stopped_at"]) for _host, vm in shown)
    last = max(float(vm.get("running_at") or vm["stopped_at"]) for _host, vm in shown)
    if started and ended:
        first = min(max(first, started - _SKEW), ended + _SKEW)
        last = max(min(last, ended + _SKEW), first)
    # Without the controller's clock a span may be of any length.
    step = next(
        (step for step in _STEPS if (last - first) / step <= _MOST_TICKS), int((last - first) / _MOST_TICKS) + 1
    )
    begin = first - first % step
    span = max(last - begin, float(step))
    scale = (_WIDTH - _LEFT - _RIGHT) / span
    rows: list[str] = []
    y, host_before = 26, None
    for host, vm in shown:
        if host is not host_before:
            host_before, y = host, y + (8 if rows else 0)
            name = _shortened(host.get("host"), 2 * _NAME_ROOM)
            rows.append(f"<text x='0' y='{y + 13}' class='b'>{name}</text>")
            y += _ROW
        rows.append(_bar(vm, y, begin, begin + span, last, scale))
        y += _ROW
    parts = [f"<svg viewBox='0 0 {_WIDTH} {y + 26}' role='img' aria-label='When each VM stood still'>"]
    for tick in range(int(span / step) + 1):
        x = _LEFT + tick * step * scale
        label = _clock(begin + tick * step, step)
        parts.append(f"<line x1='{x:.1f}' y1='20' x2='{x:.1f}' y2='{y + 4}' stroke='#d5d8dc'/>")
        for where in (13, y + 19):
            parts.append(f"<text x='{x:.1f}' y='{where}' text-anchor='middle' fill='#5d6670'>{label}</text>")
    legend = "".join(
        f"<span class='key' style='background:var(--{colour})'></span>{what}"
        for colour, what in (
            ("save", "being saved"),
            ("still", "saved"),
            ("restore", "being restored"),
            ("lost", "not known to run again"),
        )
    )
    return (
        f"<p class='sub'>{_time(begin)} and later, UTC, by each host's own clock;{legend}</p>"
        f"<div class='scroll'>{''.join(parts + rows)}</svg></div>"
    )


def _bar(vm: Data, y: int, begin: float, until: float, last: float, scale: float) -> str:
    """A VM's row in the picture, which shows the time from ``begin`` to ``until``."""
    start = float(vm["stopped_at"])
    back = vm.get("running_at")
    end = max(float(back), start) if back else max(last, start)
    name = _text(vm.get("name"))
    parts = [
        f"<text x='{_LEFT - 8}' y='{y + 13}' text-anchor='end'>{_shortened(vm.get('name'), _NAME_ROOM)}"
        f"<title>{name}</title></text>"
    ]
    saved = min(start + float(vm.get("save_seconds") or 0), end)
    loaded = max(end - float(vm.get("restore_seconds") or 0), saved) if back else end
    rest = "still" if back else "lost"
    told = _seconds(end - start) if back else ("by the host" if vm.get("state") == "restored" else "still saved")
    for left, right, colour in ((start, saved, "save"), (saved, loaded, rest), (loaded, end, "restore")):
        left, right = max(left, begin), min(right, until)
        if right > left:
            parts.append(
                f"<rect x='{_LEFT + (left - begin) * scale:.1f}' y='{y + 3}' height='13'"
                f" width='{max((right - left) * scale, 1.5):.1f}' fill='var(--{colour})'>"
                f"<title>{name}: {told}</title></rect>"
            )
    fill = "" if back or vm.get("state") == "restored" else " class='lost'"
    where = min(max(end, begin), until)
    parts.append(f"<text x='{_LEFT + (where - begin) * scale + 6:.1f}' y='{y + 13}'{fill}>{told}</text>")
    return "".join(parts)


def _pause(vm: Data) -> float | None:
    if vm.get("stopped_at") and vm.get("running_at"):
        return max(0.0, float(vm["running_at"]) - float(vm["stopped_at"]))
    return None


States = t.Mapping[str, t.Tuple[str, str]]


def _is_bad(states: States, thing: Data) -> bool:
    return bool(thing["disbelieved"]) or states.get(str(thing.get("state")), ("none", ""))[0] == "bad"


def _is_over(host: Data) -> bool:
    """Whether what is told of the host's VMs is how they are now."""
    return host.get("state") in ("done", "failed", "rolled back")


def _is_quiet(vm: Data) -> bool:
    if vm["disbelieved"]:
        return False
    return vm.get("state") == "predicted" or (vm.get("state") == "restored" and _pause(vm) is not None)


def _row_class(states: States, thing: Data) -> str:
    return " class='bad'" if _is_bad(states, thing) else ""


def _state(states: States, thing: Data) -> str:
    kind, text = states.get(str(thing.get("state")), ("none", str(thing.get("state") or "–")))
    return f"<span class='{kind}'>{_text(text)}</span>"


def _text(value: t.Any) -> str:
    """What others have named or said: no markup, and nothing that plays tricks with the direction of text."""
    return html.escape(one_line(str(value))) if value not in (None, "") else ""


def _name_cell(value: t.Any) -> str:
    """A cell with a name, in one line where it is short."""
    text = _text(value)
    return f"<td class='{'s' if len(text) <= _SHORT_NAME else 't'}'>{text}</td>"


def _shortened(value: t.Any, room: int) -> str:
    """A name that must find room; where there is none its middle goes, as names differ at their ends."""
    text = one_line(str(value or ""))
    if len(text) > room:
        text = f"{text[: room // 2 - 1]}…{text[-(room // 2) :]}"
    return html.escape(text)


def _time(value: t.Any) -> str:
    if not value:
        return "–"
    return datetime.datetime.fromtimestamp(float(value), datetime.timezone.utc).strftime("%Y-%m-%d %H:%M:%S")


def _clock(value: float, step: int) -> str:
    """The time at a tick, as exact as the ticks are."""
    pattern = "%H:%M:%S" if step < 60 else "%H:%M" if step < 43200 else "%d %b %H:%M"
    return datetime.datetime.fromtimestamp(value, datetime.timezone.utc).strftime(pattern)


def _seconds(value: t.Any) -> str:
    if value in (None, ""):
        return "–"
    seconds = float(value)
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = round(seconds) // 60
    if minutes < 120:
        return f"{minutes} min {round(seconds) % 60:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _size(value: t.Any) -> str:
    if not value:
        return "–"
    size = int(value)
    if size < 2**30:
        return f"{size / 2**20:.0f} MiB"
    return f"{size / 2**30:.1f} GiB" if size < 2**40 else f"{size / 2**40:.1f} TiB"


def _rate(value: t.Any) -> str:
    return f"{int(value) / 2**20:.0f} MiB/s" if value else "–"


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """The filters by name."""
        return {"maintenance_report": maintenance_report}
