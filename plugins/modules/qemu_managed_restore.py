#!/usr/bin/python
# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: qemu_managed_restore
short_description: Restore the saved QEMU VMs of a host
version_added: 1.0.0
description:
  - Restores the VMs that M(vmops.qemu.qemu_managed_save) has saved on a host, in one run on the host, several at the
    same time. Each is restored as by M(vmops.qemu.qemu_restore).
  - VMs that M(vmops.qemu.qemu_managed_save) has shut down (O(vmops.qemu.qemu_managed_save#module:unsaved=shutdown)) are
    started again, in the same groups. One that runs already is left as it is. One that has a later image is restored
    from that; an image that is older than the shutdown is left alone. A VM is named and not started if the run that
    asked it to shut down has not seen its end, or if an image may have a later state of it than its disks.
  - Each VM is restored once, from its last save in O(save_dir). Older saves, copies, checkpoints, archives, and images
    that were saved for another reason are left alone and listed in RV(left_alone).
  - A VM that cannot be restored keeps its image and is named; the others go on.
  - Other runs over the VMs of O(save_dir), and saves of single VMs, are waited for if they are still at work.
options:
  images:
    description:
      - V(managed) restores the VMs that M(vmops.qemu.qemu_managed_save) has saved, and those that O(vms) names.
      - V(all) restores every VM that has an image in O(save_dir), whoever saved it.
    type: str
    choices: [managed, all]
    default: managed
  order:
    description:
      - Groups of VMs that are restored one after the other. Each group is a list of shell patterns of names, UUIDs or
        units.
      - A VM belongs to the first group with a pattern that matches its name. VMs that match no pattern come last.
    type: list
    elements: list
    default: []
  health_check:
    description:
      - A command that is run on the host for each VM that was restored, as a list of words without a shell. C({name})
        stands for the VM's name. It is repeated every two seconds until it succeeds.
      - The next group of O(order) begins after the checks of a group.
      - A VM whose check does not succeed within O(health_check_timeout) stays as it is, and the module fails in
        the end.
    type: list
    elements: str
    default: []
  health_check_timeout:
    description:
      - The number of seconds for all tries of a VM's O(health_check).
    type: float
    default: 60
  timeout:
    description:
      - The number of seconds after which the restore of a VM is given up. Its image is kept.
      - Other runs that are at work are waited for as long, counted anew whenever one of them has come further.
  launch:
    choices: [recorded, attach]
attributes:
  check_mode:
    support: full
    details:
      - In check mode, the module returns its plan. It does not wait for other runs, but warns of them.
  diff_mode:
    support: full
  idempotent:
    support: full
  platform:
    platforms: posix
extends_documentation_fragment:
  - vmops.qemu._attributes
  - vmops.qemu._attributes.actiongroup_qemu
  - vmops.qemu._selection
  - vmops.qemu._save_dir
  - vmops.qemu._restoring
  - vmops.qemu._access
  - vmops.qemu._timeout
notes:
  - The module runs as a background job on the host, and the controller follows it. If the controller or the connection
    is lost, the run goes on to its end. The same task, run again, waits for it and goes on from there.
  - C(async) cannot be used with this module.
  - Runs follow one another, as M(vmops.qemu.qemu_managed_save) describes.
seealso:
  - module: vmops.qemu.qemu_managed_save
  - module: vmops.qemu.qemu_restore
author:
  - vmops.qemu contributors (@vmops)
"""

EXAMPLES = r"""
- name: Bring all VMs back after the host's reboot
  vmops.qemu.qemu_managed_restore:

- name: Databases first, and go on when they answer
  vmops.qemu.qemu_managed_restore:
    order: [["db*"], ["app*"]]
    by_vm:
      db1: {health_check: [pg_isready, --host, "{name}"], health_check_timeout: 120}

- name: Restore two VMs, whoever saved them
  vmops.qemu.qemu_managed_restore:
    vms: [web1, 1b4e28ba-2fa1-41d2-883f-b9a761bde3fb]
"""

RETURN = r"""
msg:
  description: What was done, or would be done.
  type: str
  returned: always
  sample: 3 VMs were restored in 2.4 s
table:
  description: What became of each VM, as lines for people.
  type: list
  elements: str
  returned: always
vms:
  description:
    - What became of each VM. Each element has the return values of M(vmops.qemu.qemu_restore), and the keys below.
  type: list
  elements: dict
  returned: always
  contains:
    name:
      description: The VM's name, or the path of its image, if the image does not tell the name.
      type: str
    path:
      description: The path of its image.
      type: str
    state:
      description:
        - V(restored), also if it ran already; V(failed); V(skipped), if its restore did not begin because the run was
          interrupted; V(predicted) in check mode.
      type: str
    changed:
      description: Whether this run has restored it.
      type: bool
    failed:
      description: Whether its restore has failed.
      type: bool
    msg:
      description: What was done, or why it failed.
      type: str
    health_check:
      description: V(passed), or why its O(health_check) did not succeed. Not returned if there is none.
      type: str
    image_bytes:
      description: The number of bytes that its image took.
      type: int
started:
  description: What became of each VM that had been shut down and was to be started again.
  type: list
  elements: dict
  returned: always
  contains:
    name:
      description: The VM's name.
      type: str
    state:
      description:
        - V(started), also if it ran already, or runs on although it was asked to shut down; V(failed); V(skipped), if
          its start did not begin because the run was interrupted; V(predicted) in check mode.
      type: str
    changed:
      description: Whether this run has started it.
      type: bool
    failed:
      description: Whether its start has failed.
      type: bool
    msg:
      description: What was done, or why it failed.
      type: str
    health_check:
      description: V(passed), or why its O(health_check) did not succeed. Not returned if there is none.
      type: str
failures:
  description: The names of the VMs that were not restored, or not started again.
  type: list
  elements: str
  returned: always
running:
  description: The VMs that run on the host when the run ends, whoever started them.
  type: list
  elements: dict
  returned: always
  contains:
    name:
      description: The VM's name; an empty string if it has none.
      type: str
    own_name:
      description:
        - What tells it from other VMs of its name, as M(vmops.qemu.qemu_managed_save) calls it if there are some.
      type: str
    pid:
      description: The process id of its QEMU.
      type: int
unhealthy:
  description: The names of the VMs that were restored and whose O(health_check) did not succeed.
  type: list
  elements: str
  returned: always
unusable:
  description: The images from which nothing can be restored, each with C(path), C(name), C(state) and C(problems).
  type: list
  elements: dict
  returned: always
left_alone:
  description: The images that are not to be restored, each with C(path), C(name), C(saved_at) and C(why).
  type: list
  elements: dict
  returned: always
save_dir_volatile:
  description:
    - Where the file system of O(save_dir) is mounted, if a reboot of the host empties it (tmpfs, also as the upper
      layer of an overlay), or if the upper layer of an overlay cannot be found on a host that is not a container; else
      an empty string.
  type: str
  returned: always
  sample: ""
started_at:
  description: When the run began, in seconds since the epoch.
  type: float
  returned: always
duration:
  description: The number of seconds that the run took.
  type: float
  returned: always
error:
  description: The kind of the error.
  type: str
  returned: failure
  sample: HostRunError
guest_state:
  description: How the guests are now; RV(vms) has it for each.
  type: str
  returned: failure
guest:
  description:
    - How the guest is now, for programs.
    - V(running) or V(paused) in a QEMU; V(saved), where only its image has it; V(ended), where no QEMU has it and no
      image is known to be its last state; V(unknown), where it was not looked for or could not be reached any more.
  type: str
  returned: failure
  sample: running
image:
  description:
    - Of a failed task only its C(state), as it is now, for programs.
      V(absent), V(partial), V(complete) or V(archived); V(kept), where it is that of a restore, which has not used it
      up; V(removed), where this task has removed it; V(unknown), where it was not looked at or is no image.
  type: dict
  returned: failure
cure:
  description: What to do.
  type: str
  returned: failure
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vmops.qemu.plugins.module_utils._host.choice import HostRestoreRequest
from ansible_collections.vmops.qemu.plugins.module_utils._host.progress import HostProgress
from ansible_collections.vmops.qemu.plugins.module_utils._host.restore import HostRestoreOperation
from ansible_collections.vmops.qemu.plugins.module_utils._module import parse_by_vm, parse_parallel, run_operation
from ansible_collections.vmops.qemu.plugins.module_utils._options import (
    ACCESS,
    RESTORING,
    SAVE_DIR,
    SELECTION,
    TIMEOUT,
    Spec,
    changed,
)

#: What can be asked for of each VM.
OF_A_VM: Spec = {
    **changed(RESTORING, launch={"choices": ["recorded", "attach"]}),
    **ACCESS,
    **TIMEOUT,
    "health_check": {"type": "list", "elements": "str", "default": []},
    "health_check_timeout": {"type": "float", "default": 60},
}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **OF_A_VM,
            **SELECTION,
            **SAVE_DIR,
            "images": {"type": "str", "choices": ["managed", "all"], "default": "managed"},
            "order": {"type": "list", "elements": "list", "default": []},
        },
        supports_check_mode=True,
    )
    options = module.params

    with HostProgress("restore", options["save_dir"], plans_only=module.check_mode) as journal:

        def make() -> HostRestoreOperation:
            request = HostRestoreRequest(
                common={name: options[name] for name in OF_A_VM},
                by_vm=parse_by_vm(options["by_vm"], OF_A_VM),
                parallel=parse_parallel(options["parallel"]),
                order=[[str(pattern) for pattern in group] for group in options["order"]],
                check_mode=module.check_mode,
                **{name: options[name] for name in ("vms", "include", "exclude", "save_dir", "images")},
            )
            return HostRestoreOperation(request, journal)

        # Each VM has a time limit of its own.
        run_operation(module, make, 0)


if __name__ == "__main__":
    main()
