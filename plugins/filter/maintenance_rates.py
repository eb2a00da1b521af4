# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How fast hosts saved and restored, from one report to the next."""

from __future__ import annotations

import json
import typing as t

from ansible_collections.vmops.qemu.plugins.plugin_utils._figures import is_figure, number

DOCUMENTATION = r"""
name: maintenance_rates
short_description: Get the rates at which hosts saved and restored in a maintenance
version_added: 0.1.0
description:
  - Takes the JSON report of the playbook C(vmops.qemu.host_maintenance), and returns the rates in it. A
    report that cannot be read is treated as if there were none.
  - A rate is the number of bytes that were predicted for a host, divided by the seconds that all its saves or restores
    then took together, including those that ran at the same time. So the prediction for the same VMs equals the time of
    the last run.
positional: hosts
options:
  _input:
    description: The text of the report, or an empty string.
    type: str
    required: true
  hosts:
    description: The C(hosts) of a report that is being written. Their new rates replace those of the older report.
    type: list
    elements: dict
    default: []
author:
  - vmops.qemu contributors (@vmops)
"""

EXAMPLES = r"""
- name: Show what a host has reached
  ansible.builtin.debug:
    msg: "{{ (lookup('ansible.builtin.file', 'host-maintenance.json') | vmops.qemu.maintenance_rates).hv1.save }}"
"""

RETURN = r"""
_value:
  description: For each host, C(save) and C(restore) in bytes per second, as far as they are known.
  type: dict
"""

Host = t.Mapping[str, t.Any]


def maintenance_rates(report: str, hosts: t.Iterable[Host] = ()) -> dict[str, dict[str, int]]:
    """By host, what is known."""
    known = _earlier(report)
    for host in hosts:
        fresh = _measured(host)
        if fresh:
            known[str(host["host"])] = {**known.get(str(host["host"]), {}), **fresh}
    return known


def _earlier(report: str) -> dict[str, dict[str, int]]:
    try:
        rates = json.loads(report)["rates"]
        known = {
            str(host): {kind: int(figure) for kind in ("save", "restore") if (figure := _figure(rate.get(kind))) >= 1}
            for host, rate in rates.items()
        }
        return {host: rate for host, rate in known.items() if rate}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}


def _measured(host: Host) -> dict[str, int]:
    """What one host has measured; nothing where not all that it counts is known."""
    rates = {}
    size = _figure((host.get("predicted") or {}).get("bytes"))
    vms = host.get("vms") or ()
    # What an earlier run had saved was not in the prediction.
    if host.get("state") != "done" or not size or not all(vm.get("written") for vm in vms):
        return {}
    for kind, done in (("save", True), ("restore", all(vm.get("restore_seconds") for vm in vms))):
        took = _figure(host.get(f"{kind}s_took"))
        if done and took > 0 and is_figure(size / took):
            rates[kind] = int(size / took)
    return rates


def _figure(value: t.Any) -> float:
    """A number; 0 for what cannot be."""
    value = number(value)
    return float(value) if is_figure(value) else 0.0


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """The filters by name."""
        return {"maintenance_rates": maintenance_rates}
