#!/usr/bin/python
# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: qemu_vm_info
short_description: List the QEMU VMs that run on a host
version_added: 1.0.0
description:
  - Lists every running QEMU of the host with its VM, whether it can be saved, how M(vmops.qemu.qemu_restore) would
    start it again, and its save image.
  - The module finds the VMs among the running processes and queries all of them at the same time over QMP. A VM that
    cannot be queried, because its monitor is busy or missing, is listed with the reason and with what its command line
    says. That does not make the task fail.
options:
  name:
    description:
      - List only the VMs of these names (QEMU's C(-name)). Names of VMs that do not run are ignored.
      - If several of O(name), O(uuid), O(unit), O(pid) and O(qmp_socket) are given, each must be true of a VM that is
        listed. If none is listed, RV(msg) names those that run.
    type: list
    elements: str
  uuid:
    description:
      - List only the VMs with these UUIDs; capital letters and missing dashes do not matter.
    type: list
    elements: str
  unit:
    description:
      - List only the VMs in these systemd units. C(.service) may be left out.
      - Units of other users' own systemd (C(systemctl --user)) are given as RV(vms[].unit) has them.
    type: list
    elements: str
  pid:
    description:
      - List only the VMs with these process ids.
    type: list
    elements: int
  qmp_socket:
    description:
      - List only the VMs whose configuration opens a QMP server at one of these paths, or C(host:port).
    type: list
    elements: str
  save_dir:
    description:
      - The directory in which the module looks for the VMs' save images.
      - The default depends on the user as whom the module runs on the host. For root it is C(/var/lib/vmops/save), for
        any other user C($XDG_STATE_HOME/vmops/save), or, where that variable is not set, C(~/.local/state/vmops/save).
  timeout:
    description:
      - The number of seconds after which VMs that have not answered are listed without an answer.
      - If another client uses a monitor, the module waits 3 seconds for it.
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
notes:
  - A QEMU monitor serves one client at a time. Other clients have to wait while this module uses it (less than a
    second).
  - A user other than root can only query their own VMs.
  - A process that claims to be a QEMU but executes another program is not listed as a VM; a warning names it.
seealso:
  - module: vmops.qemu.qemu_save
  - module: vmops.qemu.qemu_restore
  - module: vmops.qemu.qemu_save_image_info
author:
  - vmops.qemu contributors (@vmops)
"""

EXAMPLES = r"""
- name: List the VMs of the host
  vmops.qemu.qemu_vm_info:
  register: found

- name: Save all of them, also those without a name, and several of one name
  vmops.qemu.qemu_save:
    pid: "{{ item.pid }}"
  loop: "{{ found.vms }}"
  loop_control:
    label: "{{ item.name }}"

- name: Make sure that all of them can be saved and started again
  vmops.qemu.qemu_vm_info:
  register: found
  failed_when: >-
    found.vms | rejectattr('monitor', 'in', ['answers', 'human']) | length > 0
    or found.vms | map(attribute='blockers') | flatten | length > 0
    or found.vms | selectattr('launch.how', 'equalto', 'none') | length > 0
"""

RETURN = r"""
msg:
  description: A summary of the VMs in one line.
  type: str
  returned: always
  sample: "3 VMs: db1 cannot be asked (busy), web1 running, web2 paused"
vms:
  description: The VMs, sorted by name. A value that is not known is V(null).
  type: list
  elements: dict
  returned: success
  contains:
    name:
      description: Its name; empty if QEMU was started without one.
      type: str
    uuid:
      description: Its UUID; empty if QEMU was started without one.
      type: str
    pid:
      description: The process id of its QEMU.
      type: int
    user:
      description: The user as whom its QEMU runs.
      type: str
    run_state:
      description: QEMU's run state.
      type: str
      sample: running
    memory:
      description: Its memory in bytes, including hot-plugged memory.
      type: int
    resident:
      description: The bytes of memory that its QEMU uses. An image needs no more space than this, or than C(memory).
      type: int
    vcpus:
      description: The number of its CPUs.
      type: int
    machine:
      description: The machine type. It is taken from the command line if the VM cannot be queried.
      type: str
      sample: pc-q35-10.0
    qemu_version:
      description: The version of its QEMU.
      type: str
      sample: 10.0.2
    qmp_socket:
      description: The QMP server that answered, or else the first one on its command line; null with V(human).
      type: str
    monitor:
      description:
        - Whether its monitor can be used. V(answers), V(busy) (another client uses it, or QEMU hangs), V(missing)
          (nothing listens at its path), V(none) (its command line opens no monitor that can be used), V(denied) (the
          task's user may not use it), V(foreign) (another process answers there, or it is not known which process
          does), V(invalid) (what answers does not speak QMP) or V(lost) (QEMU ended in the meantime).
        - V(human) means that the VM has a human monitor, through which its QEMU opens a QMP monitor for each run. Such
          a VM is saved and restored as any other.
      type: str
    reason:
      description:
        - Why the VM cannot be queried, and, if it has no monitor, how to give it one; or how it was, if C(monitor) is
          V(human). Empty if it was queried as usual.
      type: str
    unit:
      description:
        - The systemd unit in whose control group its QEMU runs. It may be that of a session or a container.
        - A unit of a user's own systemd (C(systemctl --user)) has the service in which that systemd runs before its
          name, as in V(user@1000.service/web1.service).
      type: str
      sample: qemu@web1.service
    launch:
      description: How M(vmops.qemu.qemu_restore) will start the VM again, according to what the image records.
      type: dict
      contains:
        how:
          description:
            - V(unit) means by its systemd unit, V(command) with its command line, and V(none) that it cannot be started
              again.
          type: str
        unit:
          description: The systemd unit that will start it.
          type: str
        reason:
          description: Why C(how) is not V(unit), or a limitation to be aware of.
          type: str
    save_support:
      description: What its QEMU supports.
      type: dict
      contains:
        mapped_ram:
          description: Whether it supports the V(ignore:sparse) format.
          type: bool
        direct_io:
          description: Whether it can bypass the page cache.
          type: bool
        suspended:
          description: Whether the guest can be saved while it sleeps (S3, RV(ignore:run_state=suspended)).
          type: bool
        formats:
          description:
            - The formats in which M(vmops.qemu.qemu_save) can save it on this host. Empty if its monitor is not a UNIX
              socket.
          type: list
          elements: str
          sample: [sparse, raw, gzip, zstd]
    blockers:
      description: Why it cannot be saved, in QEMU's own words; empty if it can.
      type: list
      elements: str
    problems:
      description:
        - What prevents or impairs a restore of the VM after a save; V(null) if the VM cannot be queried.
        - If one of them blocks, M(vmops.qemu.qemu_save) refuses to save the VM, unless it is told otherwise
          (O(vmops.qemu.qemu_save#module:require_restorable)).
      type: list
      elements: dict
      contains:
        kind:
          description:
            - The kind of the problem, for programs. The following kinds block.
            - Its disks are not those that a restore would open - V(disk_replaced), V(disk_chain), V(disk_added),
              V(disk_missing), V(disk_unknown). With V(disk_name_lost) a save would fail.
            - Its machine differs from its configuration - V(device_plugged), V(device_unplugged), V(cpu_added),
              V(memory_added), V(configuration_unknown).
            - Its start cannot be repeated - V(inherited_descriptor), V(temporary_disks), V(preconfig),
              V(user_unknown), V(program_unsafe), V(process_unknown), V(image_unsafe),
              V(image_unvouched), V(unit_changed), V(unit_command_unknown), V(unit_user).
            - A restore starts it as the user as whom it runs now, with the permissions that it has now, which are not
              enough to start it - V(opened_as_root), V(working_directory).
            - Its confinement would not be the same again - V(seccomp_filter), V(security_label).
            - It runs in another environment than a restore would start it in - V(mount_namespace),
              V(network_namespace), V(user_namespace), V(process_namespace), V(root_directory).
            - Something may start it beside its image, or change its disks - V(supervisor), V(unit_restarts),
              V(unit_helper), V(unit_of_user).
            - Something works with its disks - V(block_job_fatal), V(block_filter), V(block_job),
              V(export).
            - Its memory is stored where it outlives QEMU - V(memory_file), V(memory_read_only), V(memory_disk_lost).
            - Something that it needs to be started is missing, or has changed - V(start_file_missing),
              V(firmware_changed), V(session_display), V(session_terminal), V(session_sound), V(tpm_lost),
              V(server_state), V(need_unrecorded), V(need_unknown).
            - Its guest would be in another network - V(tap_vlans), V(tap_vrf).
            - The following kinds do not block. Something is lost - V(vnc_password), V(spice_password), V(host_forward),
              V(throttle), V(write_threshold), V(object_added), V(netdev_added), V(dirty_bitmap), V(finished_job),
              V(cpu_affinity), V(priority), V(resource_limits), V(oom_score), V(memory_policy), V(control_group),
              V(log_begun_anew), V(groups), V(capabilities), V(bridge_lost), V(ends_with_starter), V(pid_file),
              V(no_lingering), V(tap_addresses), V(tap_master).
            - Something has to be there at the restore that the restore does not see to - V(server_needed),
              V(tap_needed), V(session_directory), V(on_tmpfs), V(image_on_tmpfs).
            - Something cannot be known - V(supervisor_unknown), V(unit_helper_unknown), V(memory_disk_unwatched).
            - Other processes work with its memory - V(memory_shared).
            - Only a restore returns V(disk_written), V(disk_gone) and V(disk_unchecked).
          type: str
          sample: disk_replaced
        what:
          description: What was found.
          type: str
        cure:
          description: How to solve it.
          type: str
        blocks:
          description: Whether a restore would be refused, would fail, or would restore a different machine.
          type: bool
    image:
      description:
        - Its save image in O(save_dir), or that of its last save if there are several; V(null) if there is none.
      type: dict
      contains:
        path:
          description: The file.
          type: str
        state:
          description: V(complete), V(partial), V(archived) or V(invalid), as in M(vmops.qemu.qemu_save_image_info).
          type: str
        saved_at:
          description: When the VM was saved, ISO 8601 in UTC; only for images of this collection.
          type: str
        checkpoint:
          description: Whether the VM went on after that save, as in M(vmops.qemu.qemu_save_image_info).
          type: bool
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
from ansible_collections.vmops.qemu.plugins.module_utils._module import run_operation
from ansible_collections.vmops.qemu.plugins.module_utils._options import SAVE_DIR, TIMEOUT, changed
from ansible_collections.vmops.qemu.plugins.module_utils._vm_info import VmInfoOperation, VmInfoRequest


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "list", "elements": "str"},
            "qmp_socket": {"type": "list", "elements": "str"},
            "uuid": {"type": "list", "elements": "str"},
            "unit": {"type": "list", "elements": "str"},
            "pid": {"type": "list", "elements": "int"},
            **SAVE_DIR,
            **changed(TIMEOUT, timeout={"default": 10}),
        },
        supports_check_mode=True,
    )
    options = dict(module.params)
    # The time is the operation's own, which lists what it has when it is over.
    run_operation(module, lambda: VmInfoOperation(VmInfoRequest(**options)), 0)


if __name__ == "__main__":
    main()
