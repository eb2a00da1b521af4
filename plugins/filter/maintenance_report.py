# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The report of a maintenance as one self-contained HTML page."""

from __future__ import annotations

import datetime
import html
import typing as t

DOCUMENTATION = r"""
name: maintenance_report
short_description: Make an HTML page of what a maintenance did
version_added: 0.1.0
description:
  - Takes what the playbook C(vmops.qemu.host_maintenance) has collected, which it also writes as JSON.
  - The page needs no other file and no script. It has a table of the hosts, a table of the VMs, and a picture of when
    each VM stood still.
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
:root { color-scheme: light dark; --line: #8884; --muted: #777; --ok: #2a7f3f; --bad: #c0392b; --save: #d98e04;
  --still: #4a78b5; --restore: #3b9b8f; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p.sub { color: var(--muted); margin-top: .2rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .35rem .7rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--muted); font-weight: 600; } td.n, th.n { text-align: right; }
.ok { color: var(--ok); font-weight: 600; } .bad { color: var(--bad); font-weight: 600; } .none { color: var(--muted); }
.scroll { overflow-x: auto; } svg { width: 100%; height: auto; min-width: 44rem; }
svg text { font: 12px system-ui, sans-serif; fill: currentColor; }
.tiles { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1.2rem 0; }
.tile { border: 1px solid var(--line); border-radius: .5rem; padding: .6rem 1rem; min-width: 8rem; }
.tile b { display: block; font-size: 1.4rem; } .tile span { color: var(--muted); }
"""

_STATES = {
    "done": ("ok", "done"),
    "predicted": ("none", "predicted"),
    "failed": ("bad", "failed"),
    "rolled back": ("bad", "failed, put back"),
    "not reached": ("none", "not reached"),
    "restored": ("ok", "runs"),
    "saved": ("bad", "still saved"),
    "running": ("ok", "runs, never saved"),
}


def maintenance_report(data: Data) -> str:
    """The page."""
    hosts = list(data.get("hosts", ()))
    vms = [(host, vm) for host in hosts for vm in host.get("vms", ())]
    title = html.escape(str(data.get("title") or "Host maintenance"))
    parts = [
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>{title}</h1><p class='sub'>{_time(data.get('started_at'))} to {_time(data.get('ended_at'))} (UTC)</p>",
        _tiles(hosts, vms),
        "<h2>Hosts</h2>",
        _host_table(hosts),
        "<h2>When each VM stood still</h2>",
        _timeline(vms),
        "<h2>VMs</h2>",
        _vm_table(vms),
        "</body></html>\n",
    ]
    return "\n".join(parts)


def _tiles(hosts: list[Data], vms: list[tuple[Data, Data]]) -> str:
    pauses = [pause for _host, vm in vms if (pause := _pause(vm)) is not None]
    failed = sum(host.get("state") in ("failed", "rolled back") for host in hosts)
    tiles = [
        (f"{sum(host.get('state') == 'done' for host in hosts)} of {len(hosts)}", "hosts done"),
        (str(failed), "hosts failed"),
        (str(sum(vm.get("state") == "restored" for _host, vm in vms)), "VMs saved and restored"),
        (_size(sum(int(vm.get("bytes") or 0) for _host, vm in vms)), "memory saved"),
        (_seconds(max(pauses)) if pauses else "–", "longest pause"),
    ]
    shown = "".join(f"<div class='tile'><b>{big}</b><span>{small}</span></div>" for big, small in tiles)
    return f"<div class='tiles'>{shown}</div>"


def _host_table(hosts: list[Data]) -> str:
    rows = [
        f"<tr><td>{_text(host.get('host'))}</td><td>{_state(host)}</td>"
        f"<td class='n'>{len(host.get('vms', ()))}</td>"
        f"<td class='n'>{_seconds(host.get('save_seconds'))}</td>"
        f"<td class='n'>{_seconds(host.get('work_seconds'))}</td>"
        f"<td class='n'>{_seconds(host.get('restore_seconds'))}</td>"
        f"<td>{_text(host.get('msg'))}</td></tr>"
        for host in hosts
    ]
    return _table(("Host", "State", "#VMs", "#Save", "#Maintenance", "#Restore", "Note"), rows)


def _vm_table(vms: list[tuple[Data, Data]]) -> str:
    rows = [
        f"<tr><td>{_text(host.get('host'))}</td><td>{_text(vm.get('name'))}</td><td>{_state(vm)}</td>"
        f"<td class='n'>{_size(vm.get('bytes'))}</td><td class='n'>{_rate(vm.get('throughput'))}</td>"
        f"<td class='n'>{_seconds(vm.get('save_seconds'))}</td>"
        f"<td class='n'>{_seconds(vm.get('restore_seconds'))}</td>"
        f"<td class='n'>{_seconds(_pause(vm))}</td><td>{_text(vm.get('msg'))}</td></tr>"
        for host, vm in vms
    ]
    return _table(("Host", "VM", "State", "#Image", "#Rate", "#Save", "#Restore", "#Stood still", "Note"), rows)


def _table(heads: tuple[str, ...], rows: list[str]) -> str:
    cells = "".join(f"<th class='n'>{head[1:]}</th>" if head.startswith("#") else f"<th>{head}</th>" for head in heads)
    return f"<div class='scroll'><table><thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"


_LEFT = 220
_RIGHT = 80
_ROW = 22


def _timeline(vms: list[tuple[Data, Data]]) -> str:
    """One bar for each VM, from when it was stopped to when it ran again."""
    shown = [(host, vm) for host, vm in vms if vm.get("stopped_at")]
    if not shown:
        return "<p class='sub'>No VM was stopped.</p>"
    first = min(float(vm["stopped_at"]) for _host, vm in shown)
    last = max(float(vm.get("running_at") or vm["stopped_at"]) for _host, vm in shown)
    span = max(last - first, 1.0)
    width, height = 1000, _ROW * len(shown) + 40
    scale = (width - _LEFT - _RIGHT) / span
    parts = [f"<svg viewBox='0 0 {width} {height}' role='img' aria-label='When each VM stood still'>"]
    for tick in range(6):
        x = _LEFT + span * scale * tick / 5
        parts.append(f"<line x1='{x:.1f}' y1='14' x2='{x:.1f}' y2='{height - 24}' stroke='var(--line)'/>")
        parts.append(f"<text x='{x:.1f}' y='{height - 8}' text-anchor='middle'>{_seconds(span * tick / 5)}</text>")
    for number, (host, vm) in enumerate(shown):
        y = 18 + number * _ROW
        start = float(vm["stopped_at"])
        end = float(vm.get("running_at") or last)
        label = _text(f"{host.get('host')} / {vm.get('name')}")
        parts.append(f"<text x='{_LEFT - 10}' y='{y + 11}' text-anchor='end'>{label}</text>")
        saved = min(start + float(vm.get("save_seconds") or 0), end)
        loaded = max(end - float(vm.get("restore_seconds") or 0), saved) if vm.get("running_at") else end
        for begin, until, colour in ((start, saved, "save"), (saved, loaded, "still"), (loaded, end, "restore")):
            if until > begin:
                parts.append(
                    f"<rect x='{_LEFT + (begin - first) * scale:.1f}' y='{y}' height='14' rx='2'"
                    f" width='{max((until - begin) * scale, 1):.1f}' fill='var(--{colour})'>"
                    f"<title>{label}: {_seconds(end - start)}</title></rect>"
                )
        text = _seconds(end - start) if vm.get("running_at") else "still saved"
        parts.append(f"<text x='{_LEFT + (end - first) * scale + 6:.1f}' y='{y + 11}'>{text}</text>")
    parts.append("</svg>")
    legend = "".join(
        f"<span style='color:var(--{colour})'>&#9632;</span> {what} &nbsp; "
        for colour, what in (("save", "being saved"), ("still", "saved"), ("restore", "being restored"))
    )
    return f"<p class='sub'>{legend} seconds since {_time(first)} (UTC)</p><div class='scroll'>{''.join(parts)}</div>"


def _pause(vm: Data) -> float | None:
    if vm.get("stopped_at") and vm.get("running_at"):
        return float(vm["running_at"]) - float(vm["stopped_at"])
    return None


def _state(thing: Data) -> str:
    kind, text = _STATES.get(str(thing.get("state")), ("none", str(thing.get("state") or "–")))
    return f"<span class='{kind}'>{html.escape(text)}</span>"


def _text(value: t.Any) -> str:
    return html.escape(str(value)) if value not in (None, "") else ""


def _time(value: t.Any) -> str:
    if not value:
        return "–"
    return datetime.datetime.fromtimestamp(float(value), datetime.timezone.utc).strftime("%Y-%m-%d %H:%M:%S")


def _seconds(value: t.Any) -> str:
    if value in (None, ""):
        return "–"
    seconds = float(value)
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"


def _size(value: t.Any) -> str:
    if not value:
        return "–"
    return f"{int(value) / 2**20:.0f} MiB" if int(value) < 2**30 else f"{int(value) / 2**30:.1f} GiB"


def _rate(value: t.Any) -> str:
    return f"{int(value) / 2**20:.0f} MiB/s" if value else "–"


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """The filters by name."""
        return {"maintenance_report": maintenance_report}
