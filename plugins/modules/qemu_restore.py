#!/usr/bin/python
# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: qemu_restore
short_description: Restore a QEMU VM from a save image
version_added: 0.1.0
description:
  - Loads a save image, made by M(vmops.qemu.qemu_save) or by libvirt, into a QEMU that waits for it, or into one that
    it starts with the command line that the image records. The VM goes on exactly where it was saved.
  - The image's structure is checked, and its machine type and memory are compared with those of the QEMU, before QEMU
    reads a byte, since QEMU loads some images that do not fit and reports success.
  - A QEMU that was started outlives the module and the connection. It has no terminal. What it writes goes into a log
    beside the image, with C(.log) appended to its name, or into C(/var/log/vmops.qemu) where others can change names in
    the image's directory, or where its systemd service has it go.
  - The image is removed only when the VM is where it should be. On any failure it is kept, and a QEMU that failed to
    load is ended.
options:
  name:
    description:
      - The VM's name, as in QEMU's C(-name) option and in the image.
      - One of O(name) and O(path) is needed.
    type: str
  path:
    description:
      - The save image. The default is O(name) with C(.save) in O(save_dir).
    type: path
  save_dir:
    description:
      - The directory for save images when O(path) is not given.
    type: path
    default: /var/lib/vmops/save
  qmp_socket:
    description:
      - The path of the QMP socket of the QEMU that waits for the image, or that is started for it.
      - When it is not given, it is found through the command line.
    type: str
  state:
    description:
      - Whether the guest runs or is paused after the restore. V(as_saved) is what the image says.
    type: str
    choices: [as_saved, running, paused]
    default: as_saved
  launch:
    description:
      - V(recorded) starts QEMU as the image records it. A VM that was the main process of a systemd service is started
        by that service again, with the service's own user, limits and helpers. Any other VM is started with its command
        line, in a transient unit of its own; where systemd does not run the host, or the task is not root's, as a
        daemon.
      - For V(recorded) the image, its directory and those above must belong to root or to the user of the task, and
        nobody else may be able to write to them. And the user of the task must vouch for what is recorded, as
        M(vmops.qemu.qemu_save) did on this host. An image from elsewhere is vouched for with
        O(vmops.qemu.qemu_save_image#module:vouch).
      - V(command) starts QEMU with O(command), in a transient unit or as a daemon, too.
      - For V(command) and V(attach) the image may belong to the user as whom QEMU runs, too.
      - V(attach) expects a QEMU that waits already (C(-incoming defer)), or that someone else starts within
        O(attach_timeout). A QEMU of this name that waits is taken by the other values, too.
      - C(-incoming), C(-S), C(-loadvm) and C(-daemonize) of a command line are replaced by what a restore needs.
    type: str
    choices: [recorded, command, attach]
    default: recorded
  attach_timeout:
    description:
      - Seconds to wait, with O(launch=attach), for a QEMU that someone else starts; V(0) expects it to be there.
      - A unit that O(vmops.qemu.qemu_save#module:cold_boot_guard) keeps from starting does not start then, either.
    type: float
    default: 0
  command:
    description:
      - The command line that starts QEMU, as a list. It needs a QMP server on a UNIX socket.
      - It is run as it is, without a shell. It is not logged on the host, and words with passwords in them are hidden
        in the results.
    type: list
    elements: str
  verify:
    description:
      - V(structure) checks that all that the image promises is in the file, without reading the guest's pages. A bit
        that was flipped in the guest's memory is not found, and neither does QEMU find it; the compressed formats have
        checksums of their own.
      - V(full) also reads all of the image, before QEMU is started, and compares it with the checksum that
        M(vmops.qemu.qemu_save) recorded with O(vmops.qemu.qemu_save#module:checksum=true). An image without one is
        refused.
      - V(none) leaves both out.
      - The checksum finds damage, not forgery. Who can write the image can record another one.
    type: str
    choices: [full, structure, none]
    default: structure
  remove_image:
    description:
      - Remove the image after the restore. From then on the VM's disks move on, and a second restore from the same
        image would not fit to them.
    type: bool
    default: true
  disks:
    description:
      - With V(check), the VM's disks and other media are compared with what the image records of them, file by file
        down each backing chain, before anything is started, and again when QEMU has opened them. A disk that was
        written to since the save, or is another one, is refused. Its file system would be destroyed by the memory of
        another moment.
      - A copy of a disk passes if it keeps size and time of change (C(cp --preserve), C(rsync --times)). Disks that
        cannot be compared, such as block devices and network storage, are named in a warning.
      - An image whose guest went on after the save (C(checkpoint) in RV(vmops.qemu.qemu_save_image_info#module:images))
        is restored only where all disks can be compared and are as they were.
      - An image that is not the VM's last save in its directory is refused.
      - V(ignore) leaves all of this out. Say so only if you know that the disks are those of the save.
    type: str
    choices: [check, ignore]
    default: check
  parallel_channels:
    description:
      - How many channels read the memory at the same time (sparse images only). It need not be the number that wrote
        it. The default is two for each CPU of the host, from 2 to 8.
    type: int
  bypass_cache:
    description:
      - Whether the memory is read past the host's page cache (O_DIRECT; sparse images only). When it is not given,
        O_DIRECT is used where the file system takes it.
    type: bool
  timeout:
    description:
      - Seconds until the restore is given up; V(0) for no limit.
    type: float
    default: 3600
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
  platform:
    platforms: posix
extends_documentation_fragment:
  - vmops.qemu._attributes
  - vmops.qemu._attributes.actiongroup_qemu
  - vmops.qemu._library
requirements:
  - qemu.qmp >= 0.0.3 (Python library on the host with the VM)
notes:
  - When the VM runs, its systemd service may start it from its disks again
    (O(vmops.qemu.qemu_save#module:cold_boot_guard)).
  - A VM that runs already is left alone (RV(ignore:changed=false)) where there is no image, or where the image is a
    checkpoint from which it went on. Beside a complete image that is no checkpoint it was started from its disks, which
    is an error.
  - A VM whose save was interrupted before its QEMU had ended goes on in that QEMU, whether the image was complete by
    then or not.
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

- name: Restore an image that was copied from another host, if nothing in it has changed
  vmops.qemu.qemu_restore:
    name: web2
    verify: full

- name: Restore into a QEMU that another tool starts meanwhile
  vmops.qemu.qemu_restore:
    name: db1
    launch: attach
    attach_timeout: 120

- name: Restore an image of libvirt's into a QEMU with the same devices
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
  description: What was done, or why nothing was.
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
      description: Its UUID, empty where QEMU was started without one.
      type: str
    run_state:
      description: QEMU's run state now, or V(ended).
      type: str
      sample: running
    memory:
      description: Its memory in bytes, with what was hot-plugged.
      type: int
    vcpus:
      description: Its CPUs.
      type: int
    machine:
      description: The machine type.
      type: str
      sample: pc-q35-10.0
    pid:
      description: The process id of its QEMU; V(null) where QEMU has ended, or does not run on this host.
      type: int
launched:
  description: Whether QEMU was started for the restore.
  type: bool
  returned: when the VM was restored
running_at:
  description:
    - When the guest ran again, in seconds since the epoch, by the host's clock; V(null) where it was left paused.
  type: float
  returned: when the VM was restored
unit:
  description: The systemd unit in whose control group the VM runs, V(null) where there is none.
  type: str
  returned: when the VM was restored
  sample: qemu@web1.service
duration:
  description: Seconds that the whole operation took.
  type: float
  returned: when the VM was restored
parallel_channels:
  description: Channels that read the memory; none for a plain stream.
  type: int
  returned: when the VM was restored
bypass_cache:
  description: Whether the memory was read past the page cache.
  type: bool
  returned: when the VM was restored
reasons:
  description: Why the options that were not given got their values.
  type: dict
  returned: when the VM was restored
problems:
  description: What is not as it was at the save, as in M(vmops.qemu.qemu_vm_info).
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
from ansible_collections.vmops.qemu.plugins.module_utils._restore.operation import RestoreOperation
from ansible_collections.vmops.qemu.plugins.module_utils._restore.request import RestoreRequest


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str"},
            "path": {"type": "path"},
            "save_dir": {"type": "path", "default": "/var/lib/vmops/save"},
            "qmp_socket": {"type": "str"},
            "state": {"type": "str", "choices": ["as_saved", "running", "paused"], "default": "as_saved"},
            "launch": {"type": "str", "choices": ["recorded", "command", "attach"], "default": "recorded"},
            "attach_timeout": {"type": "float", "default": 0},
            "command": {"type": "list", "elements": "str", "no_log": True},
            "disks": {"type": "str", "choices": ["check", "ignore"], "default": "check"},
            "verify": {"type": "str", "choices": ["full", "structure", "none"], "default": "structure"},
            "remove_image": {"type": "bool", "default": True},
            "parallel_channels": {"type": "int"},
            "bypass_cache": {"type": "bool"},
            "timeout": {"type": "float", "default": 3600},
            "bundle_library": {"type": "bool", "default": True},
        },
        required_one_of=[("name", "path")],
        required_if=[("launch", "command", ["command"])],
        supports_check_mode=True,
    )
    show_without_secrets(module, module.params["command"] or [])

    def make() -> RestoreOperation:
        options = {key: value for key, value in module.params.items() if key not in ("timeout", "bundle_library")}
        return RestoreOperation(RestoreRequest(check_mode=module.check_mode, **options))

    run_operation(module, make, module.params["timeout"])


if __name__ == "__main__":
    main()
