#!/usr/bin/python
# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: qemu_managed_save
short_description: Save all running QEMU VMs of a host
version_added: 1.0.0
description:
  - Saves all VMs that run on a host, or some of them, in one run on the host, several at the same time. Each is saved
    as by M(vmops.qemu.qemu_save), in C(<name>.save) in O(save_dir).
  - Two VMs of one name are two. Each is called by its name with its UUID, such as
    C(web1-1b4e28ba-2fa1-41d2-883f-b9a761bde3fb), or with eight digits where it has no UUID, in the results and in the
    name of its image. Only a VM of root's, or of the task's user, whose name no other one of theirs has, keeps its name
    if another user's VM has it, too.
  - A VM without a name is called by its UUID, or else by the unit that starts it.
  - For another user than root, all VMs are those of that user. VMs of others are left out, unless O(vms) names them.
  - All saves are planned before one guest is touched. If a VM cannot be saved, could not be restored from its image, or
    if the images do not fit together on the file system, the module fails and nothing has changed.
  - If a save fails after that, the VMs that were saved before are restored on the host (O(on_error=rollback)), also if
    the controller or the connection is gone.
  - M(vmops.qemu.qemu_managed_restore) brings the VMs back.
options:
  on_error:
    description:
      - What to do if a VM cannot be saved.
      - With V(rollback), no further save begins, and the VMs that this run has saved are restored, so that the host is
        as it was.
      - With V(stop), no further save begins, and the saved VMs stay saved.
      - With V(continue), all others are saved, or as many as there is room for. VMs that cannot be saved are named in
        RV(unsaved) and RV(failures).
      - With V(rollback) and V(stop), nothing is saved if it is known before that a VM cannot be saved.
      - The module fails in all cases in which a VM could not be saved, unless it was known before and V(continue) was
        given.
    type: str
    choices: [rollback, stop, continue]
    default: rollback
  unsaved:
    description:
      - What to do if VMs run on the host that this run does not save, because they are left out, cannot be saved, or
        have neither a name nor a UUID or unit of their own.
      - V(fail) fails before a guest is touched. V(ignore) only lists them in RV(unsaved).
      - V(shutdown) shuts them down by ACPI, as their power buttons would, after all others are saved. It is kept on
        the host how they were started, and M(vmops.qemu.qemu_managed_restore) starts those again that have shut down
        within O(shutdown_timeout). A VM that could not be started again, is paused, or belongs to libvirt is an error
        before a guest is touched.
      - With V(shutdown), a VM whose save is refused (a device or a setting blocks it, or it could not be restored) is
        shut down instead, whatever O(on_error) says.
      - A VM that has neither a name nor a UUID nor a unit that starts it is an error in any case if all VMs are to be
        saved.
      - A guest that has shut down or crashed while its QEMU is still there is listed, and no reason to fail, unless it
        is among O(vms).
    type: str
    choices: [fail, shutdown, ignore]
    default: ignore
  shutdown_timeout:
    description:
      - The number of seconds that a guest may take to shut down with O(unsaved=shutdown). V(0) means no limit.
      - If a guest takes longer, the run has failed, and O(on_error) says what becomes of the others.
    type: float
    default: 300
  timeout:
    description:
      - The number of seconds after which the save of a VM is given up and its guest goes on.
      - Other runs that are at work are waited for as long, counted anew whenever one of them has come further.
  image_version:
    description:
      - The version of the images' headers. V(3) marks mapped-ram in its C(features), V(2) is what libvirt reads.
    type: int
    choices: [2, 3]
    default: 3
  vm_state:
    description:
      - The state in which a restore leaves the VMs. V(as_is) is the state that each VM has now.
    type: str
    choices: [as_is, running, paused]
    default: as_is
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
  - vmops.qemu._saving
  - vmops.qemu._access
  - vmops.qemu._timeout
notes:
  - The module runs as a background job on the host, and the controller follows it. If the controller or the connection
    is lost, the run goes on to its end. The same task, run again, waits for it and goes on from there.
  - C(async) cannot be used with this module.
  - Runs of M(vmops.qemu.qemu_managed_save) and M(vmops.qemu.qemu_managed_restore), and of the services of the role
    P(vmops.qemu.host_setup#role), follow one another if they are of one user and one O(save_dir), also if they are
    asked for different VMs. The VMs are listed when all that began before have ended. If all VMs are to be saved,
    restores from other directories are waited for, too.
  - If a run waits longer than O(timeout) for others that come no further, it fails with C(BusyError), and no VM was
    touched.
seealso:
  - module: vmops.qemu.qemu_managed_restore
  - module: vmops.qemu.qemu_save
author:
  - vmops.qemu contributors (@vmops)
"""

EXAMPLES = r"""
- name: Save all VMs of the host before it goes down
  vmops.qemu.qemu_managed_save:

- name: Save all VMs but the test machines, the databases while they run on
  vmops.qemu.qemu_managed_save:
    exclude: ["test*"]
    parallel: 2
    by_vm:
      db1: {live: true, timeout: 7200}
      db2: {live: true, timeout: 7200}

- name: Save all VMs but the test machines, and shut these down
  vmops.qemu.qemu_managed_save:
    exclude: ["test*"]
    unsaved: shutdown

- name: Show what would be saved, and how long it would take
  vmops.qemu.qemu_managed_save:
  check_mode: true
  register: plan
"""

RETURN = r"""
msg:
  description: What was done, or would be done.
  type: str
  returned: always
  sample: 3 VMs were saved in 2.1 s, 1204 MiB on disk
table:
  description: What became of each VM, as lines for people.
  type: list
  elements: str
  returned: always
  sample:
    - VM    STATE    IMAGE   TIME
    - web1  saved  612 MiB  1.4 s  web1 was saved in /var/lib/vmops/save/web1.save, 612 MiB on disk, in 1.4 s
vms:
  description:
    - What became of each VM. Each element has the return values of M(vmops.qemu.qemu_save), and the keys below.
  type: list
  elements: dict
  returned: always
  contains:
    name:
      description: The VM's name.
      type: str
    state:
      description:
        - V(saved); V(failed), if it could not be saved; V(skipped), if its save did not begin because another one had
          failed; V(restored), if it was saved and restored again because of that; V(predicted) in check mode.
      type: str
    changed:
      description: Whether this run has saved it.
      type: bool
    failed:
      description: Whether its save has failed.
      type: bool
    msg:
      description: What was done, or why it failed.
      type: str
    rollback:
      description: The return values of M(vmops.qemu.qemu_restore), if the VM was restored again.
      type: dict
failures:
  description: The names of the VMs that could not be saved, and of those whose saves did not begin.
  type: list
  elements: str
  returned: always
unsaved:
  description: The VMs that run on the host and are not saved by this run.
  type: list
  elements: dict
  returned: always
  contains:
    name:
      description: The VM's name, which may be empty.
      type: str
    pid:
      description: The process id of its QEMU.
      type: int
    reason:
      description: Why it is not saved.
      type: str
    fate:
      description:
        - What became of it. V(ignored); V(no guest), if it has shut down or crashed and only its QEMU is left, for
          which no run fails; V(shut down); V(started again) or V(not started again), if it was shut down and another VM
          failed after that; or empty.
      type: str
predicted:
  description: What was predicted before the first save.
  type: dict
  returned: always
  contains:
    bytes:
      description: The number of bytes that all images may take.
      type: int
    save_seconds:
      description: The number of seconds for all saves, as fast as the last run on this host; V(null) if not known.
      type: float
    restore_seconds:
      description: The number of seconds for all restores, as fast as the last run on this host; V(null) if not known.
      type: float
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
from ansible_collections.vmops.qemu.plugins.module_utils._host.progress import HostProgress
from ansible_collections.vmops.qemu.plugins.module_utils._host.save import HostSaveOperation, HostSaveRequest
from ansible_collections.vmops.qemu.plugins.module_utils._module import (
    parse_by_vm,
    parse_parallel,
    parse_saving,
    run_operation,
)
from ansible_collections.vmops.qemu.plugins.module_utils._options import (
    ACCESS,
    SAVE_DIR,
    SAVING,
    SELECTION,
    TIMEOUT,
    Spec,
)

#: What can be asked for of each VM.
OF_A_VM: Spec = {
    **SAVING,
    **ACCESS,
    **TIMEOUT,
    "image_version": {"type": "int", "choices": [2, 3], "default": 3},
    "vm_state": {"type": "str", "choices": ["as_is", "running", "paused"], "default": "as_is"},
}

SELECTED = ("vms", "include", "exclude")


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **OF_A_VM,
            **SELECTION,
            **SAVE_DIR,
            "on_error": {"type": "str", "choices": ["rollback", "stop", "continue"], "default": "rollback"},
            "unsaved": {"type": "str", "choices": ["fail", "shutdown", "ignore"], "default": "ignore"},
            "shutdown_timeout": {"type": "float", "default": 300},
        },
        supports_check_mode=True,
    )
    options = module.params

    with HostProgress("save", options["save_dir"], plans_only=module.check_mode) as journal:

        def make() -> HostSaveOperation:
            by_vm = parse_by_vm(options["by_vm"], OF_A_VM)
            request = HostSaveRequest(
                common=parse_saving({name: options[name] for name in OF_A_VM}),
                by_vm={name: parse_saving(of_vm) for name, of_vm in by_vm.items()},
                parallel=parse_parallel(options["parallel"]),
                check_mode=module.check_mode,
                **{name: options[name] for name in (*SELECTED, "save_dir", "on_error", "unsaved", "shutdown_timeout")},
            )
            return HostSaveOperation(request, journal)

        # Each VM has a time limit of its own.
        run_operation(module, make, 0)


if __name__ == "__main__":
    main()
