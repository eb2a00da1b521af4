#!/usr/bin/python
# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: qemu_save
short_description: Save a running QEMU VM into a save image
version_added: 1.0.0
description:
  - Writes the memory and the device state of a running QEMU VM into a save image and lets QEMU quit when the image is
    safely on disk. M(vmops.qemu.qemu_restore) brings the VM back exactly as it was.
  - The image has libvirt's layout. In the V(sparse) format, every page has a fixed place in the file (QEMU's
    mapped-ram), several channels write at the same time, and the pages can bypass the page cache.
  - The save is a transaction. QEMU writes to a temporary file beside the image. The module flushes this file, checks
    it, marks it as complete and renames it; only then does QEMU quit. On any failure, timeout or signal before that,
    the guest goes on as before, QEMU's migration settings are put back, and an existing image is left untouched.
  - The image's header and the state of the VM together decide whether there is anything to do, see the notes.
options:
  name:
    description:
      - The VM's name, as in QEMU's C(-name) option.
      - The module finds the VM's QMP socket in the command lines of the running QEMU processes (C(-qmp), C(-mon),
        C(-chardev socket), C(-object monitor-qmp)), unless O(qmp_socket) is given. With QEMU 11.1 or later a human
        monitor at a socket (C(-monitor)) will do.
      - Of a VM without a name it is the name that the image gets, so that it is restored by that.
      - One of O(name), O(uuid), O(unit), O(pid) and O(qmp_socket) is needed. If several are given, all must be true of
        the VM. If several VMs are meant, or none, the error lists those from which one can be chosen.
  uuid:
    description:
      - The VM's UUID, as in QEMU's C(-uuid) option; capital letters and missing dashes do not matter.
      - A VM that is saved already is found by it among the images in O(save_dir).
  unit:
    description:
      - The systemd unit that runs the VM, such as C(qemu@web1.service). C(.service) may be left out.
      - A VM that is saved already is found by it among the images in O(save_dir), if the unit started it.
  pid:
    description:
      - The process id of the VM's QEMU.
      - By this alone, a VM that is saved already is not found.
  qmp_socket:
    description:
      - The path of the VM's QMP socket, or C(host:port); with QEMU 11.1 or later also that of its human monitor.
      - The module passes file descriptors to QEMU over it, which works over a UNIX socket only. With C(host:port), the
        save fails with an error that says so, unless a human monitor listens there.
    type: str
  path:
    description:
      - The save image. It must be a regular file or must not exist yet; symbolic links are not followed.
      - The default is the VM's name with C(.save) in O(save_dir).
      - If the VM is not chosen by its name alone, and another VM of that name runs, it is the name with the UUID, such
        as C(web1-1b4e28ba-2fa1-41d2-883f-b9a761bde3fb.save), or with eight digits where it has no UUID.
      - A VM without a name has O(name), its UUID, or the unit that starts it, in the place of its name. If it has none
        of these, O(path) is needed.
  save_dir:
    description:
      - The directory of the save images. It is not used when O(path) is given.
      - The default depends on the user as whom the module runs on the host. For root it is C(/var/lib/vmops/save), for
        any other user C($XDG_STATE_HOME/vmops/save), or, where that variable is not set, C(~/.local/state/vmops/save).
      - If it does not exist, it is created with mode C(0700).
  image_version:
    default: 3
  vm_state:
    description:
      - The state in which a restore leaves the VM. V(as_is) is the state that the VM has now.
    choices: [as_is, running, paused]
    default: as_is
  domain_xml:
    description:
      - The libvirt domain XML to store in the image, for example from C(virsh dumpxml --migratable).
      - By default, a minimal one is generated from what QEMU reports.
      - In both cases, the image records in C(<metadata>) how to start this QEMU again.
  timeout:
    description:
      - The number of seconds after which the module gives up the save and the guest goes on. V(0) means no limit.
      - Keep it shorter than C(async) and the task's C(timeout), which leave the module no time to clean up.
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: partial
    details:
      - A VM that is saved is not saved again.
      - With O(after_save=resume), the VM runs on, and the second run finds it running beside its image. It fails, or
        saves again with O(force=true).
  platform:
    platforms: posix
extends_documentation_fragment:
  - vmops.qemu._attributes
  - vmops.qemu._attributes.actiongroup_qemu
  - vmops.qemu._image_location
  - vmops.qemu._vm_choice
  - vmops.qemu._save_dir
  - vmops.qemu._image_head
  - vmops.qemu._saving
  - vmops.qemu._access
  - vmops.qemu._timeout
notes:
  - If there is a complete image of this VM, and the VM does not run, nothing is done (RV(ignore:changed=false)).
  - If an interrupted save has written a complete image of this VM and left the VM paused, the image is not written
    again. The module only does what O(after_save) asks for.
  - If a save was killed and QEMU went on writing the image, the module waits for QEMU and completes the save. Any other
    partial image of a running VM is a leftover and is replaced.
  - If there is a complete image of a VM that runs, or an image of another VM, the module fails with an error that names
    O(force).
  - The image holds the guest's memory and therefore the guest's secrets. Keep the image and its directory private.
seealso:
  - module: vmops.qemu.qemu_restore
  - module: vmops.qemu.qemu_save_image_info
author:
  - vmops.qemu contributors (@vmops)
"""

EXAMPLES = r"""
- name: Save web1 before the host goes down
  vmops.qemu.qemu_save:
    name: web1

- name: Save a VM by its socket, in an image that libvirt can restore
  vmops.qemu.qemu_save:
    qmp_socket: /run/vm/db1.qmp
    path: /srv/save/db1.save
    image_version: 2
    format: sparse
    domain_xml: "{{ lookup('ansible.builtin.file', 'db1.xml') }}"
    require_restorable: false # it is a domain of libvirt, which will restore it

- name: Save one of two VMs of the same name
  vmops.qemu.qemu_save:
    uuid: 1b4e28ba-2fa1-41d2-883f-b9a761bde3fb

- name: Save whatever VM a service runs, also if it has no name
  vmops.qemu.qemu_save:
    unit: windows-test.service

- name: Save a VM whose image will be copied to another host
  vmops.qemu.qemu_save:
    name: web2
    checksum: true

- name: Take a checkpoint of a guest that should be paused as briefly as possible
  vmops.qemu.qemu_save:
    name: build7
    path: /srv/checkpoint/build7.save
    live: true
    after_save: resume
    force: true
"""

RETURN = r"""
msg:
  description: What was done, or why nothing was done.
  type: str
  returned: always
  sample: web1 was saved in /var/lib/vmops/save/web1.save, 612 MiB on disk, in 3.1 s; QEMU has quit
image:
  description:
    - The image, as M(vmops.qemu.qemu_save_image_info) returns it, without its long parts.
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
      sample: ended
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
duration:
  description: The duration of the whole operation in seconds.
  type: float
  returned: when the VM was saved
pause_ms:
  description:
    - How long the guest was paused, in milliseconds, from QEMU's STOP event to its RESUME or SHUTDOWN event.
    - V(0) if it was already paused before the save.
  type: int
  returned: when the VM was saved
stopped_at:
  description:
    - When QEMU paused the guest for this save, in seconds since the epoch, according to the host's clock.
    - V(null) if it was already paused before the save.
  type: float
  returned: when the VM was saved
space_needed:
  description: The maximum number of bytes that the save will need.
  type: int
  returned: in check mode, when the VM would be saved
space_free:
  description:
    - The number of free bytes in the file system of O(save_dir) or O(path).
    - V(null) if the file system does not report it.
  type: int
  returned: in check mode, when the VM would be saved
file_system:
  description: The mount point of that file system.
  type: str
  returned: in check mode, when the VM would be saved
checksum_ms:
  description: The part of RV(duration) that the checksum took, in milliseconds; V(null) without O(checksum=true).
  type: int
  returned: when the VM was saved
bytes_written:
  description: The number of bytes that QEMU wrote, according to QEMU.
  type: int
  returned: when the VM was saved
throughput:
  description: Bytes per second, from the start of writing to the end of the flush.
  type: int
  returned: when the VM was saved
parallel_channels:
  description: The number of channels that wrote the memory; V(null) for a plain stream.
  type: int
  returned: when the VM was saved
bypass_cache:
  description: Whether the memory bypassed the page cache.
  type: bool
  returned: when the VM was saved
launch:
  description: How M(vmops.qemu.qemu_restore) will start the VM again, according to what the image records.
  type: dict
  returned: when the VM was saved, or would be
  contains:
    how:
      description:
        - V(unit) means by its systemd unit, V(command) with its command line, and V(none) that it cannot be started
          again.
      type: str
    unit:
      description: The systemd unit that will start it.
      type: str
      sample: qemu@web1.service
    reason:
      description: Why C(how) is not V(unit), or a limitation to be aware of.
      type: str
problems:
  description:
    - What prevents or impairs a restore of the VM. The documentation of M(vmops.qemu.qemu_vm_info) lists all kinds.
    - The image records them, see C(restore_problems) in RV(vmops.qemu.qemu_save_image_info#module:images).
  type: list
  elements: dict
  returned: when the VM was saved, or would be, or was refused for one of them
  contains:
    kind:
      description: The kind of the problem, for programs.
      type: str
      sample: disk_replaced
    what:
      description: What was found.
      type: str
    cure:
      description: How to solve it.
      type: str
    blocks:
      description: Whether the save is refused because of it with O(require_restorable=true).
      type: bool
reasons:
  description: For options that were not given, why their values were chosen.
  type: dict
  returned: when the VM was saved
  sample:
    format: QEMU 10.0.2 has mapped-ram
    bypass_cache: the file system takes O_DIRECT
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
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vmops.qemu.plugins.module_utils._image.domain_xml import redact
from ansible_collections.vmops.qemu.plugins.module_utils._module import (
    parse_saving,
    run_operation,
    show_without_secrets,
)
from ansible_collections.vmops.qemu.plugins.module_utils._options import (
    ACCESS,
    IMAGE_HEAD,
    IMAGE_LOCATION,
    SAVE_DIR,
    SAVING,
    TIMEOUT,
    VM_CHOICE,
    changed,
    without,
)
from ansible_collections.vmops.qemu.plugins.module_utils._save.operation import SaveOperation
from ansible_collections.vmops.qemu.plugins.module_utils._save.request import SaveRequest


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **IMAGE_LOCATION,
            **VM_CHOICE,
            **SAVE_DIR,
            **changed(
                IMAGE_HEAD,
                image_version={"default": 3},
                vm_state={"choices": ["as_is", "running", "paused"], "default": "as_is"},
            ),
            **SAVING,
            **ACCESS,
            **TIMEOUT,
            "qmp_socket": {"type": "str"},
        },
        required_one_of=[("name", "qmp_socket", "uuid", "unit", "pid")],
        supports_check_mode=True,
    )
    show_without_secrets(module, [module.params["domain_xml"] or ""], redact)

    def make() -> SaveOperation:
        options = parse_saving(without(module.params, TIMEOUT))
        return SaveOperation(SaveRequest(check_mode=module.check_mode, **options))

    run_operation(module, make, module.params["timeout"])


if __name__ == "__main__":
    main()
