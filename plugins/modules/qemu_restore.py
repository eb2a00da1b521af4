#!/usr/bin/python
# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: qemu_restore
short_description: Restore a QEMU VM from a save image
version_added: 1.0.0
description:
  - Loads a save image, made by M(vmops.qemu.qemu_save) or by libvirt, into a QEMU that waits for it, or into a QEMU
    that the module starts with the command line that the image records. The VM goes on exactly where it was saved.
  - QEMU loads some images that do not match its configuration and reports success. So, before QEMU reads a byte, the
    module checks the image's structure and compares the image's machine type, memory and CPU with those of the QEMU.
  - A QEMU that the module starts keeps running after the module and the connection have ended. It has no terminal. Its
    output goes to the files to which the saved QEMU wrote, if nobody else could have put them there, or to where its
    systemd service sends it. Otherwise, it goes to the journal, or, without systemd, into a log of 1 MiB at most in
    C(/var/log/vmops.qemu). Nothing is written beside the image.
  - A QEMU that is started with the recorded command line has the network namespace, CPUs, priorities, limits, OOM
    score and umask that the saved one had.
  - The image is removed only when the VM is in the requested state. On any failure, the image is kept, and a QEMU that
    failed to load it is ended.
options:
  name:
    description:
      - The VM's name, as in QEMU's C(-name) option. Its image is the name with C(.save) in O(save_dir).
      - If O(path), O(uuid) or O(unit) is given, too, the image must hold the VM of this name.
      - One of O(name), O(path), O(uuid) and O(unit) is needed, and says which image is restored.
  uuid:
    description:
      - The VM's UUID; capital letters and missing dashes do not matter. Its last save is looked for in O(save_dir),
        whatever the image's name.
      - If O(path) is given, too, the image must hold the VM of this UUID.
  unit:
    description:
      - The systemd unit that started the VM, such as C(qemu@web1.service). Its last save is looked for in O(save_dir),
        among the images that are vouched for. C(.service) may be left out.
      - If O(path) is given, too, the image must record this unit.
  pid:
    description:
      - The process id of the QEMU that waits for the image. It does not choose an image.
  qmp_socket:
    description:
      - The path of the QMP socket of the QEMU that waits for the image, or that is started for it.
      - By default, the socket is taken from the command line.
    type: str
  command:
    description:
      - The command line that starts QEMU, as a list. It must open a QMP server on a UNIX socket, or, with QEMU 11.1 or
        later, a human monitor at a socket.
      - It is run as it is, without a shell. It is not logged on the host, and words that contain passwords are hidden
        in the results.
    type: list
    elements: str
attributes:
  check_mode:
    support: full
    details:
      - An image that does not exist is only warned of in check mode, as a task before this one may create it.
        The same applies to the QEMU of O(launch=attach).
  diff_mode:
    support: full
  idempotent:
    support: full
  platform:
    platforms: posix
extends_documentation_fragment:
  - vmops.qemu._attributes
  - vmops.qemu._attributes.actiongroup_qemu
  - vmops.qemu._image_location
  - vmops.qemu._vm_choice
  - vmops.qemu._save_dir
  - vmops.qemu._restoring
  - vmops.qemu._access
  - vmops.qemu._timeout
notes:
  - When the VM runs again, its systemd service is allowed to start it from its disks again
    (O(vmops.qemu.qemu_save#module:cold_boot_guard)).
  - If the VM already runs, nothing is done (RV(ignore:changed=false)) if there is no image, or if the image is a
    checkpoint after which the VM went on. If there is a complete image that is no checkpoint, the VM was started from
    its disks, which is an error.
  - If the VM is there but paused (QEMU's run state V(paused), as after a restore with O(state=paused)),
    O(state=running) lets it go on. A guest that stands still for another reason, such as an error of its disks, is left
    as it is, and one that runs is never paused by O(state=paused). In both cases, a warning says so.
  - If the save of a VM was interrupted before its QEMU had ended, the VM goes on in that QEMU, whether or not the image
    was complete by then.
seealso:
  - module: vmops.qemu.qemu_save
  - module: vmops.qemu.qemu_save_image_info
author:
  - vmops.qemu contributors (@vmops)
"""

EXAMPLES = r"""
- name: Bring web1 back after the host's reboot
  vmops.qemu.qemu_restore:
    name: web1

- name: Restore into a QEMU that was started with -incoming defer, and leave the guest paused
  vmops.qemu.qemu_restore:
    path: /srv/save/db1.save
    qmp_socket: /run/vm/db1.qmp
    launch: attach
    state: paused

- name: Let it go on, when somebody has looked at it
  vmops.qemu.qemu_restore:
    path: /srv/save/db1.save
    qmp_socket: /run/vm/db1.qmp
    state: running

- name: Restore one of two VMs of the same name
  vmops.qemu.qemu_restore:
    uuid: 1b4e28ba-2fa1-41d2-883f-b9a761bde3fb

- name: Restore an image that was copied from another host, if it is unchanged
  vmops.qemu.qemu_restore:
    name: web2
    verify: full

- name: Restore into a QEMU that another tool is about to start
  vmops.qemu.qemu_restore:
    name: db1
    launch: attach
    attach_timeout: 120

- name: Restore an image of libvirt into a QEMU with the same devices
  vmops.qemu.qemu_restore:
    path: /var/lib/libvirt/qemu/save/tiny.save
    launch: command
    command:
      - /usr/bin/qemu-system-x86_64
      - -name
      - tiny
      - -machine
      - pc-i440fx-10.0
      - -m
      - "256"
      - -display
      - none
      - -qmp
      - unix:/run/vm/tiny.qmp,server=on,wait=off
    remove_image: false
"""

RETURN = r"""
msg:
  description: What was done, or why nothing was done.
  type: str
  returned: always
  sample: web1 was restored from /var/lib/vmops/save/web1.save in 1.9 s and runs; the image was removed
image:
  description:
    - The image as it was restored, as M(vmops.qemu.qemu_save_image_info) returns it, without its long parts.
    - Its C(state) is V(absent) if it was removed.
    - Of a failed task only its C(state), as it is now, for programs.
      V(absent), V(partial), V(complete) or V(archived); V(kept), where it is that of a restore, which has not used it
      up; V(removed), where this task has removed it; V(unknown), where it was not looked at or is no image.
  type: dict
  returned: always
vm:
  description: The VM.
  type: dict
  returned: success
  contains:
    name:
      description: Its name.
      type: str
    uuid:
      description: Its UUID; empty if QEMU was started without one.
      type: str
    run_state:
      description: QEMU's run state at the end of the task, or V(ended).
      type: str
      sample: running
    memory:
      description: Its memory in bytes, including hot-plugged memory.
      type: int
    vcpus:
      description: The number of its CPUs.
      type: int
    machine:
      description: The machine type.
      type: str
      sample: pc-q35-10.0
    pid:
      description: The process id of its QEMU; V(null) if QEMU has ended or does not run on this host.
      type: int
launched:
  description: Whether QEMU was started for the restore.
  type: bool
  returned: when the VM was restored
running_at:
  description:
    - When the guest ran again, in seconds since the epoch, according to the host's clock; V(null) if it was left
      paused.
  type: float
  returned: when the VM was restored
time_sync:
  description:
    - What became of the guest's clock (O(sync_time)); V(null) if the guest does not run.
    - V(done); V(no agent), if no guest agent listens in the guest; V(off) with O(sync_time=false); otherwise C(failed)
      or C(left alone), with the reason after a colon.
  type: str
  returned: when the VM was restored
  sample: done
unit:
  description: The systemd unit in whose control group the VM runs; V(null) if there is none.
  type: str
  returned: when the VM was restored
  sample: qemu@web1.service
duration:
  description: The duration of the whole operation in seconds.
  type: float
  returned: when the VM was restored
parallel_channels:
  description: The number of channels that read the memory; V(null) for a plain stream.
  type: int
  returned: when the VM was restored
bypass_cache:
  description: Whether reading the memory bypassed the page cache.
  type: bool
  returned: when the VM was restored
reasons:
  description: For options that were not given, why their values were chosen.
  type: dict
  returned: when the VM was restored
problems:
  description: What has changed since the save, as in M(vmops.qemu.qemu_vm_info).
  type: list
  elements: dict
  returned: when the VM's disks were refused
error:
  description: The kind of the error.
  type: str
  returned: failure
  sample: MismatchError
guest_state:
  description: How the guest is now.
  type: str
  returned: failure
  sample: web1 is not running, and its image is untouched
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
from ansible_collections.vmops.qemu.plugins.module_utils._module import run_operation, show_without_secrets
from ansible_collections.vmops.qemu.plugins.module_utils._options import (
    ACCESS,
    IMAGE_LOCATION,
    RESTORING,
    SAVE_DIR,
    TIMEOUT,
    VM_CHOICE,
    without,
)
from ansible_collections.vmops.qemu.plugins.module_utils._restore.operation import RestoreOperation
from ansible_collections.vmops.qemu.plugins.module_utils._restore.request import RestoreRequest


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **IMAGE_LOCATION,
            **VM_CHOICE,
            **SAVE_DIR,
            **RESTORING,
            **ACCESS,
            **TIMEOUT,
            "qmp_socket": {"type": "str"},
            "command": {"type": "list", "elements": "str", "no_log": True},
        },
        required_one_of=[("name", "path", "uuid", "unit")],
        required_if=[("launch", "command", ["command"])],
        supports_check_mode=True,
    )
    show_without_secrets(module, module.params["command"] or [])

    def make() -> RestoreOperation:
        options = without(module.params, TIMEOUT)
        return RestoreOperation(RestoreRequest(check_mode=module.check_mode, **options))

    run_operation(module, make, module.params["timeout"])


if __name__ == "__main__":
    main()
