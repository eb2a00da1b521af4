#!/usr/bin/python
# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: qemu_progress
short_description: Report the progress of saves and restores of QEMU VMs
version_added: 0.1.0
description:
  - Reads what running M(vmops.qemu.qemu_save) and M(vmops.qemu.qemu_restore) tasks on this host publish about
    themselves, whoever started them. QEMU is not queried.
  - M(vmops.qemu.qemu_parallel) uses this module to follow its runs.
options:
  jobs:
    description:
      - Ids of background jobs (C(ansible_job_id)) whose results are to be returned, too.
    type: list
    elements: str
    default: []
  async_dir:
    description:
      - The directory in which Ansible keeps the results of background jobs.
    type: path
    default: ~/.ansible_async
  wait:
    description:
      - The maximum number of seconds to wait for one of the O(jobs) to end before reporting.
    type: float
    default: 0
  forget:
    description:
      - Ids of background jobs whose results are no longer needed and are removed.
    type: list
    elements: str
    default: []
attributes:
  platform:
    platforms: posix
extends_documentation_fragment:
  - vmops.qemu._attributes
  - vmops.qemu._attributes.info_module
seealso:
  - module: vmops.qemu.qemu_parallel
author:
  - vmops.qemu contributors (@vmops)
"""

EXAMPLES = r"""
- name: See which VMs are being saved or restored
  vmops.qemu.qemu_progress:
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
    - {vm: web1, operation: save, phase: memory, percent: 42, bytes_done: 904396800, bytes_total: 2153316352,
       rate: 314572800, seconds_left: 3, pid: 4711, started: 1764000000.0, updated: 1764000003.0}
jobs:
  description: The results of those O(jobs) that have ended, keyed by id.
  type: dict
  returned: success
library:
  description: Whether Python on this host has C(qemu.qmp).
  type: bool
  returned: success
"""

import contextlib
import importlib.util
import json
import os
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vmops.qemu.plugins.module_utils._errors import tellable
from ansible_collections.vmops.qemu.plugins.module_utils._progress import read_progress


def ended_jobs(directory: str, jobs: list[str]) -> dict[str, t.Any]:
    """The results of the jobs that have ended, by id."""
    ended = {}
    for job in jobs:
        try:
            with open(os.path.join(directory, os.path.basename(job)), encoding="utf-8") as handle:
                result = json.load(handle)
        except (OSError, ValueError):  # not there yet, or just being written
            continue
        # A result without this key is the module's own; Ansible writes the others before the module has ended.
        if result.get("finished", 1):
            ended[job] = result
    return ended


def has_library() -> bool:
    """Whether qemu.qmp can be imported."""
    try:
        return importlib.util.find_spec("qemu.qmp") is not None
    except ImportError:
        return False


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "jobs": {"type": "list", "elements": "str", "default": []},
            "async_dir": {"type": "path", "default": "~/.ansible_async"},
            "wait": {"type": "float", "default": 0},
            "forget": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    directory, jobs = module.params["async_dir"], module.params["jobs"]
    deadline = time.monotonic() + module.params["wait"]
    ended = ended_jobs(directory, jobs)
    while jobs and not ended and time.monotonic() < deadline:
        time.sleep(0.1)
        ended = ended_jobs(directory, jobs)
    for job in module.params["forget"]:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(directory, os.path.basename(job)))
    module.exit_json(
        changed=False,
        operations=tellable([progress.as_result() for progress in read_progress()]),
        jobs=ended,
        library=has_library(),
    )


if __name__ == "__main__":
    main()
