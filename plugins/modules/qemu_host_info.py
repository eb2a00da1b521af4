#!/usr/bin/python
# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: qemu_host_info
short_description: Find what prevents QEMU VMs of a host from being saved and restored
version_added: 1.0.0
description:
  - Looks at all running VMs of a host, at the save images in its directory, at that directory and its file system, and
    at the services of the role P(vmops.qemu.host_setup#role). It returns what prevents or impairs saves and restores,
    each with what to do about it.
  - The playbook C(vmops.qemu.doctor) shows the result for many hosts.
  - Problems do not make the task fail.
options:
  save_dir:
    description:
      - The directory of the save images.
      - The default depends on the user as whom the module runs on the host. For root it is C(/var/lib/vmops/save), for
        any other user C($XDG_STATE_HOME/vmops/save), or, where that variable is not set, C(~/.local/state/vmops/save).
  timeout:
    description:
      - The number of seconds after which VMs that have not answered are listed without an answer.
    default: 10
attributes:
  platform:
    platforms: posix
extends_documentation_fragment:
  - vmops.qemu._attributes
  - vmops.qemu._attributes.info_module
  - vmops.qemu._attributes.actiongroup_qemu
  - vmops.qemu._save_dir
  - vmops.qemu._timeout
seealso:
  - module: vmops.qemu.qemu_vm_info
  - module: vmops.qemu.qemu_save_image_info
author:
  - vmops.qemu contributors (@vmops)
"""

EXAMPLES = r"""
- name: See whether all VMs of the host could be saved and restored
  vmops.qemu.qemu_host_info:
  register: found

- name: Show what is in the way
  ansible.builtin.debug:
    msg: "{{ found.table }}"
  when: not found.ready
"""

RETURN = r"""
msg:
  description: A summary in one line.
  type: str
  returned: always
  sample: "3 VMs and 1 image: 1 problem in the way, and 2 remarks"
ready:
  description: Whether none of RV(problems) blocks.
  type: bool
  returned: success
problems:
  description: What was found. What blocks comes first.
  type: list
  elements: dict
  returned: success
  contains:
    subject:
      description: The VM's name, the path of an image or a directory, or the name of a service; else V(host).
      type: str
    kind:
      description:
        - The kind of the problem, for programs.
        - Of a VM, all kinds of C(problems) in RV(vmops.qemu.qemu_vm_info#module:vms), and V(name) (nothing names it),
          V(monitor) (it cannot be queried), V(monitor_remote) (its monitor is not a UNIX socket), V(blocker) (its QEMU
          refuses), V(sleeping) (its QEMU cannot save a guest that sleeps), V(image_beside) (it runs, and its complete
          image or checkpoint is where the next save would be), V(no_mapped_ram) (its QEMU is older than 9.1; does not
          block), V(shut_down) (M(vmops.qemu.qemu_managed_save) has shut it down, or asked it to, and it was not started
          again; does not block) and V(shutdown_pending) (it was asked to shut down and still runs; does not block).
        - Of an image, V(image_invalid), V(image_partial), V(image_not_restorable), and V(image_superseded) (does not
          block).
        - Of the directory, V(save_dir_unreadable), V(save_dir_closed) (no image can be made in it), V(save_dir_unsafe)
          (other users can write to it), V(save_dir_volatile) (its files are lost at a reboot), V(save_dir_uncertain)
          (whether a reboot keeps its files is not known, as of an overlay whose upper layer cannot be found, or of
          FUSE; blocks if it is an overlay and the host is not a container), V(space) (the images of all running VMs do
          not fit), and V(save_dir_missing) (does not block).
        - The following do not block. V(boot_restore_missing) and V(shutdown_save_missing) (the services of the role are
          not installed), V(boot_restore_failed) and V(shutdown_save_failed) (their last run failed, or the boot did not
          begin it), V(shutdown_save_inactive) (it does not run, so the next shutdown saves nothing),
          V(boot_restore_disabled) and V(shutdown_save_disabled) (the next boot does not start them), V(systemd) (it
          cannot be queried), V(user) (the task's user is not root).
      type: str
      sample: save_dir_volatile
    what:
      description: What was found.
      type: str
    cure:
      description: How to solve it.
      type: str
    blocks:
      description:
        - Whether a save or a restore would be refused or would fail, or what was saved could be lost.
      type: bool
table:
  description: RV(problems) as the lines of a table; empty if there are none.
  type: list
  elements: str
  returned: success
host:
  description: What was looked at.
  type: dict
  returned: success
  contains:
    python:
      description: The version of the Python that ran the module.
      type: str
    qemu_versions:
      description: The versions of the QEMUs that run.
      type: list
      elements: str
    vms:
      description: The number of VMs that run.
      type: int
    images:
      description: The number of images in the directory.
      type: int
    save_dir:
      description: The directory of the save images.
      type: str
    file_system:
      description: Where its file system is mounted.
      type: str
    file_system_type:
      description: The type of its file system; empty if it is not known.
      type: str
      sample: ext4
    space_free:
      description: The bytes that are free in it; V(null) if that is not known.
      type: int
    space_needed:
      description: The bytes that the images of all running VMs take at most.
      type: int
error:
  description: The kind of the error.
  type: str
  returned: failure
  sample: RequestError
guest_state:
  description: That no guest was touched.
  type: str
  returned: failure
image:
  description:
    - That no image was looked at.
    - Of a failed task only its C(state), as it is now, for programs.
      V(absent), V(partial), V(complete) or V(archived); V(kept), where it is that of a restore, which has not used it
      up; V(removed), where this task has removed it; V(unknown), where it was not looked at or is no image.
  type: dict
  returned: failure
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
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vmops.qemu.plugins.module_utils._host.info import HostInfoOperation, HostInfoRequest
from ansible_collections.vmops.qemu.plugins.module_utils._module import run_operation
from ansible_collections.vmops.qemu.plugins.module_utils._options import SAVE_DIR, TIMEOUT, changed


def main() -> None:
    module = AnsibleModule(
        argument_spec={**SAVE_DIR, **changed(TIMEOUT, timeout={"default": 10})}, supports_check_mode=True
    )
    # The time is the operation's own, which tells what it has when it is over.
    run_operation(module, lambda: HostInfoOperation(HostInfoRequest(**module.params)), 0)


if __name__ == "__main__":
    main()
