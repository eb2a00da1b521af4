#!/usr/bin/python
# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: maintenance_report
short_description: Write the report of a maintenance
version_added: 1.0.0
description:
  - Writes what the role P(vmops.qemu.host_maintenance#role) has collected, as JSON and as an HTML page.
  - The page needs no other file and no script. It has a table of the hosts, a table of the VMs, and a diagram that
    shows when each VM was paused.
  - The page stays readable and small whatever values a host or a VM reports. An impossible value is omitted, and its VM
    is listed among those with errors. The diagram covers only the time of the maintenance. At most 1000 VMs of a host
    are shown.
  - The task runs on the controller, as the user who runs Ansible, whatever host it is for. Each file is replaced as a
    whole.
options:
  data:
    description:
      - The report. A file C(host-maintenance.json) that the module has written holds one.
    type: dict
    required: true
  directory:
    description:
      - The directory of the two files, on the controller, absolute or relative to the current directory. It is created
        with the mode V(0700) if it is missing.
    type: path
    required: true
  name:
    description:
      - The files' name, without C(.json) and C(.html).
    type: str
    default: host-maintenance
  template:
    description:
      - The path of a template of your own, on the controller. The default is the collection's own,
        C(roles/host_maintenance/templates/report.html.j2).
      - Jinja2 renders it in a sandbox, with C(autoescape), C(trim_blocks) and C(lstrip_blocks), and without Ansible. So
        it has neither Ansible's variables nor its filters and lookups, and what a host has said is never a template. A
        name that does not exist is an error.
      - It may include files that lie beside it or below, and V(vmops.qemu/report.html.j2), which is the collection's
        own. With C({% extends "vmops.qemu/report.html.j2" %}) it replaces single blocks of that, which are C(style),
        C(header), C(wrong), C(tiles), C(hosts), C(picture), C(vms), C(unsaved) and C(left_alone).
      - It gets one variable, C(report), with the fields below. Times are seconds since the epoch, durations seconds,
        sizes bytes. Texts have one line and a bounded length. A number that is not known is V(none).
      - "C(report): C(title) (str), C(check_mode) (bool), C(started_at) and C(ended_at) (float or none), C(hosts) (list
        of host), C(wrong) (list of wrong), C(totals) (totals), C(picture) (picture; none if no VM was stopped)."
      - "A host: C(name) (str), C(state) (str), C(grade) (str; V(good), V(bad) or empty, by the state), C(is_bad) (bool;
        also with impossible values), C(msg) (str), C(vm_count) (int; also of those that are not shown), C(vms) (list of
        VM), C(unsaved) (list of unsaved VM), C(left_alone) (list of image left alone), C(save_seconds),
        C(work_seconds), C(restore_seconds), C(predicted_bytes), C(predicted_save_seconds) and
        C(predicted_restore_seconds) (float or none), C(disbelieved) (list of str; the names of impossible values)."
      - "A VM: C(name), C(state), C(grade), C(is_bad), C(msg) and C(disbelieved) (as of a host), C(note) (str; the
        message, or empty if the other fields tell it all), C(written) (bool; whether this run has saved it), C(bytes),
        C(throughput) (in bytes per second), C(save_seconds), C(restore_seconds), C(stopped_at), C(running_at) and
        C(pause) (float or none; how long the guest was paused)."
      - "An unsaved VM, which ran and was not saved: C(name) (str), C(pid) (int or none), C(reason) (str), C(fate) (str;
        V(ignored), V(no guest), V(shut down), V(started again), V(not started again), or empty), C(is_bad) (bool)."
      - "An image left alone: C(name), C(path), C(saved_at) and C(why) (str)."
      - "A wrong, one thing that went wrong: C(host), C(vm) (str; empty if it is about the host), C(state) and C(msg)
        (str)."
      - "The totals: C(hosts), C(hosts_done), C(hosts_failed), C(vms_restored), C(vms_still_saved) and C(vms_unsaved)
        (int), C(bytes_written) and C(bytes_predicted) (int), C(longest_pause) (float or none)."
      - "A picture: C(width), C(height), C(left) and C(right) (int; where the bars' part begins and ends),
        C(row_height) (int), C(begin) (float; the time at C(left)), C(step) (int; seconds between ticks), C(ticks) (list
        of tick), C(axes) (list of int; where the times of the ticks are written, from above), C(groups) (list of
        group)."
      - "A tick: C(x) (float), C(at) (float; its time)."
      - "A group, the VMs of one host: C(host) (host), C(y) (int), C(rows) (list of row)."
      - "A row: C(vm) (VM), C(y) (int), C(bars) (list of bar), C(end) (float; the x of their end), C(from_before) and
        C(goes_on) (bool; whether it began before the picture, and goes on after it)."
      - "A bar: C(kind) (str; V(saving), V(saved), V(restoring), V(still-saved) or V(unknown)), C(x) and C(width)
        (float)."
      - "Besides those of Jinja2 it has the filters C(time) (date and time, UTC), C(clock(step)) (the time of a tick),
        C(seconds) (a duration), C(size) (bytes), C(rate) (bytes per second) and C(shorten(room)) (a text without its
        middle, if it is longer)."
    type: path
    default: ""
extends_documentation_fragment:
  - vmops.qemu._attributes
attributes:
  check_mode:
    support: full
    details:
      - The page is rendered, so that a broken template is found, and nothing is written.
  diff_mode:
    support: none
  idempotent:
    support: full
seealso:
  - name: Maintaining a fleet
    description: What the report is for.
    link: https://github.com/vmops/ansible-qemu/blob/main/docs/fleet-maintenance.md
author:
  - vmops.qemu contributors (@vmops)
"""

EXAMPLES = r"""
- name: Make the page anew from the data, with a template of your own
  vmops.qemu.maintenance_report:
    data: "{{ lookup('ansible.builtin.file', '/srv/ansible/reports/host-maintenance.json') | from_json }}"
    directory: /srv/ansible/reports
    template: /srv/ansible/report.html.j2
# with, for example, in /srv/ansible/report.html.j2
#
# <h1>{{ report.title }}</h1>
# {% for host in report.hosts if host.is_bad %}
# <p>{{ host.name }}: {{ host.msg }}, {{ host.vms | map(attribute="pause") | map("seconds") | join(", ") }}</p>
# {% endfor %}
"""

RETURN = r"""
msg:
  description: What was done.
  type: str
  returned: always
json:
  description: The path of the JSON file.
  type: str
  returned: always
page:
  description: The path of the page.
  type: str
  returned: always
"""

from ansible.module_utils.basic import AnsibleModule

ARGUMENTS = {
    "data": {"type": "dict", "required": True},
    "directory": {"type": "path", "required": True},
    "name": {"type": "str", "default": "host-maintenance"},
    "template": {"type": "path", "default": ""},
}


def main() -> None:
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    module.fail_json(msg="This is done on the controller, by the action plugin of this name")


if __name__ == "__main__":
    main()
