#!/usr/bin/python
# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This is a virtual module that is entirely implemented as an action plugin and runs on the controller

from __future__ import annotations

DOCUMENTATION = r"""
module: qemu_parallel
short_description: Save or restore several VMs of a host at a time and show their progress
version_added: 0.1.0
description:
  - Runs M(vmops.qemu.qemu_save) or M(vmops.qemu.qemu_restore) for a list of VMs in the background of the host, several
    at a time. Every few seconds it shows a line for each VM with percentage, bytes, rate and remaining time.
  - If another run works on a VM (of another controller, or of a service of the host), the module waits for that run, at
    most for O(timeout).
  - If the connection is lost, the runs go on. When the same task is run again, it finds what they have reached.
options:
  operation:
    description:
      - What to run.
    type: str
    required: true
    choices: [save, restore]
  vms:
    description:
      - The options of each run, at least C(name), in the order in which the runs are started.
    type: list
    elements: dict
    required: true
  defaults:
    description:
      - Options for all runs. The options in O(vms) override them.
    type: dict
    default: {}
  parallel:
    description:
      - The number of VMs that are saved or restored at the same time.
    type: int
    default: 4
  on_error:
    description:
      - What to do when a run fails. V(continue) goes on with the other VMs, V(stop) starts no further run.
    type: str
    choices: [continue, stop]
    default: continue
  timeout:
    description:
      - The number of seconds after which each run gives up and puts the guest back.
      - Ansible's own limit for the background job is a little longer, because Ansible kills a job that exceeds it.
  interval:
    description:
      - The number of seconds between two lines for a VM.
    type: float
    default: 5
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
  platform:
    platforms: posix
extends_documentation_fragment:
  - vmops.qemu._attributes
  - vmops.qemu._timeout
seealso:
  - module: vmops.qemu.qemu_save
  - module: vmops.qemu.qemu_restore
  - module: vmops.qemu.qemu_progress
author:
  - vmops.qemu contributors (@vmops)
"""

EXAMPLES = r"""
- name: Save three VMs, two at a time
  vmops.qemu.qemu_parallel:
    operation: save
    parallel: 2
    vms:
      - name: db1
      - name: web1
      - name: web2
        live: true
"""

RETURN = r"""
vms:
  description:
    - What each run returned, in the order of O(vms), with the VM's C(name). Runs that were not started
      (O(on_error=stop)) have C(skipped).
  type: list
  elements: dict
  returned: always
failures:
  description: The names of the VMs whose runs failed.
  type: list
  elements: str
  returned: always
started_at:
  description: When the first run began, in seconds since the epoch, according to the controller's clock.
  type: float
  returned: always
duration:
  description: The total duration in seconds.
  type: float
  returned: always
error:
  description: The kind of the error.
  type: str
  returned: failure
  sample: MonitorBusyError
guest_state:
  description: How the guest is now.
  type: str
  returned: failure
  sample: web1 runs again
guest:
  description:
    - How the guest is now, for programs.
    - V(running) or V(paused) in a QEMU; V(saved), where only its image has it; V(ended), where no QEMU has it and no
      image is known to be its last state; V(unknown), where it was not looked for or could not be reached any more.
  type: str
  returned: failure
  sample: running
cure:
  description: What to do.
  type: str
  returned: failure
image:
  description:
    - The image of the first VM whose run failed, of which RV(error), RV(guest_state), RV(guest) and RV(cure) are, too.
    - Of a failed task only its C(state), as it is now, for programs.
      V(absent), V(partial), V(complete) or V(archived); V(kept), where it is that of a restore, which has not used it
      up; V(removed), where this task has removed it; V(unknown), where it was not looked at or is no image.
  type: dict
  returned: failure
"""
