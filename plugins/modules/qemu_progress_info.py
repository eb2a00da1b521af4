#!/usr/bin/python
# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: qemu_progress_info
short_description: Report the progress of saves and restores of QEMU VMs
version_added: 1.0.0
description:
  - Reads what running saves and restores on this host publish about themselves, whoever started them. QEMU is not
    queried.
  - M(vmops.qemu.qemu_managed_save) and M(vmops.qemu.qemu_managed_restore) use this module to follow their runs.
options: {}
attributes:
  platform:
    platforms: posix
extends_documentation_fragment:
  - vmops.qemu._attributes
  - vmops.qemu._attributes.info_module
seealso:
  - module: vmops.qemu.qemu_managed_save
  - module: vmops.qemu.qemu_managed_restore
author:
  - vmops.qemu contributors (@vmops)
"""

EXAMPLES = r"""
- name: See which VMs are being saved or restored
  vmops.qemu.qemu_progress_info:
  register: progress
"""

RETURN = r"""
operations:
  description: The saves and restores that are running, sorted by VM.
  type: list
  elements: dict
  returned: success
  contains:
    vm:
      description: The VM's name.
      type: str
    operation:
      description: V(save) or V(restore).
      type: str
    phase:
      description: V(start), V(memory) (QEMU writes or reads the memory), V(flush), V(check) or V(checksum).
      type: str
    image:
      description: The path of the image.
      type: str
    percent:
      description: The percentage of the memory that is done; V(null) if it is not known.
      type: int
    bytes_done:
      description: The number of bytes of memory that are done.
      type: int
    bytes_total:
      description: The total number of bytes of memory; V(0) if it is not known.
      type: int
    rate:
      description: The current rate in bytes per second.
      type: int
    seconds_left:
      description: Seconds until the memory is done at this rate; V(null) if it cannot be estimated.
      type: int
    pid:
      description: The run's process id.
      type: int
    started:
      description: When the run began, in seconds since the epoch.
      type: float
    updated:
      description: When the run published these values, in seconds since the epoch.
      type: float
  sample:
    - {vm: web1, operation: save, phase: memory, image: /var/lib/vmops/save/web1.save, percent: 42,
       bytes_done: 904396800, bytes_total: 2153316352, rate: 314572800, seconds_left: 3, pid: 4711,
       started: 1764000000.0, updated: 1764000003.0}
runs:
  description:
    - The runs of M(vmops.qemu.qemu_managed_save) and M(vmops.qemu.qemu_managed_restore), and of the services of the
      role P(vmops.qemu.host_setup#role), that are at work, or wait for each other.
  type: list
  elements: dict
  returned: success
  contains:
    operation:
      description: V(save) or V(restore).
      type: str
    save_dir:
      description: The directory of the images.
      type: str
    pid:
      description: The run's process id.
      type: int
    started:
      description: When the run began, in seconds since the epoch.
      type: float
    lines:
      description: What became of each VM so far, each with its C(number), C(text), and whether it has C(failed).
      type: list
      elements: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vmops.qemu.plugins.module_utils._errors import tellable
from ansible_collections.vmops.qemu.plugins.module_utils._host.progress import read_host_runs
from ansible_collections.vmops.qemu.plugins.module_utils._progress import read_progress


def main() -> None:
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    module.exit_json(
        changed=False,
        operations=tellable([progress.as_result() for progress in read_progress()]),
        runs=tellable([run.as_result() for run in read_host_runs()]),
    )


if __name__ == "__main__":
    main()
