#!/usr/bin/python
# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: qemu_save
short_description: Save a running QEMU VM into a save image
version_added: 0.1.0
description:
  - Writes the memory and the device state of a running QEMU VM into a save image and, when the image is safely on
    disk, lets QEMU quit. M(vmops.qemu.qemu_restore) brings the VM back exactly where it was.
  - The image has libvirt's layout. In the V(sparse) format every page has a fixed place in the file (QEMU's
    mapped-ram), several channels write at the same time, and pages can go past the page cache.
  - The save is a transaction. QEMU writes to a temporary file beside the image, which is flushed, checked, marked as
    complete and renamed; only then does QEMU quit. On any failure, timeout or signal before that, the guest goes on as
    it was, QEMU's migration settings are as they were, and an image that was there is untouched.
  - Whether there is anything to do is decided by the image's header and the VM together, see the notes.
options:
  name:
    description:
      - The VM's name, as in QEMU's C(-name) option.
      - Its QMP socket is found through the command lines of the running QEMU processes (C(-qmp), C(-mon),
        C(-chardev socket)), unless O(qmp_socket) names it.
      - One of O(name) and O(qmp_socket) is needed.
    type: str
  qmp_socket:
    description:
      - The path of the VM's QMP socket, or C(host:port).
      - Descriptors are passed to QEMU over it, which only a UNIX socket can do; with C(host:port) the save fails and
        says so.
    type: str
  path:
    description:
      - The save image. It must be a regular file or not there yet; symbolic links are not followed.
      - The default is the VM's name with C(.save) in O(save_dir).
    type: path
  save_dir:
    description:
      - The directory for save images when O(path) is not given. It is made, with mode C(0700), where it is missing.
    type: path
    default: /var/lib/vmops/save
  image_version:
    description:
      - The version of the image's header. V(3) marks mapped-ram in its C(features), V(2) is what libvirt reads.
    type: int
    choices: [2, 3]
    default: 3
  format:
    description:
      - V(sparse) has the guest's pages at fixed places, with holes for zero pages; it needs QEMU 9.1 or later.
      - V(raw) is QEMU's plain stream.
      - V(gzip), V(bzip2), V(xz), V(lzop) and V(zstd) are that stream, compressed by the tool of that name while QEMU
        writes; V(xz) and V(zstd) use all CPUs. The tool must be installed on the host with the VM.
      - The default is V(sparse) where QEMU can write it, else V(raw) with a warning; with O(image_version=2) it is
        V(raw), as in libvirt.
    type: str
    choices: [sparse, raw, gzip, bzip2, xz, lzop, zstd]
  parallel_channels:
    description:
      - How many channels write the memory at the same time (V(sparse) only).
      - The default is two for each CPU of the host, from 2 to 8.
    type: int
  bypass_cache:
    description:
      - Whether the memory goes past the host's page cache (O_DIRECT; V(sparse) only).
      - When it is not given, O_DIRECT is used where the file system takes it.
      - V(true) fails where that is not possible, V(false) never uses it.
    type: bool
  live:
    description:
      - Let the guest run while its memory is written, so that it stands still only for the end of the save.
      - Pages that the guest changes meanwhile are written again.
    type: bool
    default: false
  live_timeout:
    description:
      - Seconds after which a guest with O(live=true), which changes its memory faster than it can be written, is
        stopped so that the save comes to its end.
    type: float
    default: 60
  vm_state:
    description:
      - In which state a restore leaves the VM. V(as_is) is the state in which it is saved.
    type: str
    choices: [as_is, running, paused]
    default: as_is
  domain_xml:
    description:
      - The libvirt domain XML to store in the image, for example from C(virsh dumpxml --migratable).
      - When it is not given, a minimal one is made from what QEMU says.
      - How to start this QEMU again is recorded in its C(<metadata>) in either case.
    type: str
  after_save:
    description:
      - What becomes of the VM when the image is complete. V(quit) ends QEMU, V(pause) leaves it stopped, V(resume)
        lets it run on if it ran.
      - After V(resume) the VM's disks move on while the image does not. Restore such an image only together with
        disks from the same moment.
    type: str
    choices: [quit, pause, resume]
    default: quit
  cold_boot_guard:
    description:
      - Keep the VM's systemd service from starting it from its disks while its image is there, after the host's reboot
        too, and also where the service restarts by itself (C(Restart=always)). The memory in the image would not fit
        to the disks any more.
      - This is a file in C(/etc/systemd/system) with a condition on the image. M(vmops.qemu.qemu_restore) removes it;
        without the image it has no effect.
      - Only the service whose main process QEMU is can be kept from it. After O(after_save=resume) nothing is.
      - It takes root. With V(false) see yourself that nothing starts the VM.
    type: bool
    default: true
  require_restorable:
    description:
      - Refuse, before the guest is touched, a save whose image M(vmops.qemu.qemu_restore) could not restore with
        O(vmops.qemu.qemu_restore#module:launch=recorded), or only as another machine. The reasons are in RV(problems).
      - With V(false) they are warnings. Say so only if you know how the VM comes back. What would fail the save itself,
        or lose what the guest has written, is refused all the same.
    type: bool
    default: true
  force:
    description:
      - Replace a complete image although the VM runs, or an image of another VM.
    type: bool
    default: false
  bandwidth:
    description:
      - The most that is written in a second, such as V(200M) or V(1G) (powers of 1024, at least V(1M)).
      - QEMU meters it coarsely; with several channels a low value can be overshot by three quarters.
      - The default is no limit.
    type: str
  checksum:
    description:
      - Record a checksum of the QEMU stream in the image. With it, O(vmops.qemu.qemu_restore#module:verify=full) and
        O(vmops.qemu.qemu_save_image_info#module:verify=true) find every change of the guest's memory and device state
        that the image suffers later, of a single bit, too.
      - All that was written is read again for it, past the page cache where it was written past it. So the save takes
        longer, see RV(checksum_ms), and a guest that goes on with O(after_save=resume) stands still for longer.
      - An image that is complete already is not given one later.
    type: bool
    default: false
  timeout:
    description:
      - Seconds until the save is given up and the guest runs again; V(0) for no limit.
      - Keep it shorter than C(async) and the task's C(timeout), which do not give the module time to clean up.
    type: float
    default: 3600
  mode:
    description:
      - The image's permission bits, as a quoted octal number. The image holds the guest's memory, so nothing may be
        given to others.
    type: raw
    default: "0600"
  owner:
    description:
      - The user who shall own the image.
    type: str
  group:
    description:
      - The group that shall own the image.
    type: str
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
  - A complete image of this VM, which does not run, is left alone (RV(ignore:changed=false)).
  - A complete image of this VM, which an interrupted save left stopped, is not written again; only what
    O(after_save) asks for is done.
  - A save that QEMU carried on after its run was killed is waited for and finished. Any other partial image of a VM
    that runs is a leftover and is replaced.
  - A complete image of a VM that runs, and any image of another VM, is an error that names O(force).
  - The image holds the guest's memory and with it the guest's secrets. Keep it and its directory private.
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

- name: Save a VM by its socket, in an image that libvirt restores
  vmops.qemu.qemu_save:
    qmp_socket: /run/vm/db1.qmp
    path: /srv/save/db1.save
    image_version: 2
    format: sparse
    domain_xml: "{{ lookup('ansible.builtin.file', 'db1.xml') }}"
    require_restorable: false # of a domain of libvirt's: libvirt brings it back

- name: Save a VM whose image is going to be copied to another host
  vmops.qemu.qemu_save:
    name: web2
    checksum: true

- name: Take a checkpoint of a guest that should stand still as shortly as possible
  vmops.qemu.qemu_save:
    name: build7
    path: /srv/checkpoint/build7.save
    live: true
    after_save: resume
    force: true
"""

RETURN = r"""
msg:
  description: What was done, or why nothing was.
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
      description: Its UUID, empty where QEMU was started without one.
      type: str
    run_state:
      description: QEMU's run state now, or V(ended).
      type: str
      sample: ended
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
duration:
  description: Seconds that the whole operation took.
  type: float
  returned: when the VM was saved
pause_ms:
  description:
    - Milliseconds for which the guest stood still, from QEMU's own STOP event to its RESUME or SHUTDOWN event.
    - V(0) if it was paused before.
  type: int
  returned: when the VM was saved
stopped_at:
  description:
    - When QEMU stopped the guest for this save, in seconds since the epoch, by the host's clock.
    - V(null) where it was stopped before.
  type: float
  returned: when the VM was saved
space_needed:
  description: Bytes that the save takes at most.
  type: int
  returned: in check mode, when the VM would be saved
space_free:
  description:
    - Bytes that are free in O(save_dir)'s, or O(path)'s, file system.
    - V(null) where it does not say so.
  type: int
  returned: in check mode, when the VM would be saved
file_system:
  description: The mount point of that file system.
  type: str
  returned: in check mode, when the VM would be saved
checksum_ms:
  description: Milliseconds of RV(duration) that the checksum took; V(null) without O(checksum=true).
  type: int
  returned: when the VM was saved
bytes_written:
  description: Bytes that QEMU wrote, by its own account.
  type: int
  returned: when the VM was saved
throughput:
  description: Bytes a second from the start of the writing to the end of the flush.
  type: int
  returned: when the VM was saved
parallel_channels:
  description: Channels that wrote the memory; none for a plain stream.
  type: int
  returned: when the VM was saved
bypass_cache:
  description: Whether the memory went past the page cache.
  type: bool
  returned: when the VM was saved
launch:
  description: How M(vmops.qemu.qemu_restore) will start it again, by what the image records.
  type: dict
  returned: when the VM was saved, or would be
  contains:
    how:
      description:
        - V(unit), by its systemd unit; V(command), with its command line; V(none), not at all, as it cannot be done.
      type: str
    unit:
      description: That unit.
      type: str
      sample: qemu@web1.service
    reason:
      description: Why it is not V(unit), or what to be aware of.
      type: str
problems:
  description:
    - What stands between the VM and its return, as in M(vmops.qemu.qemu_vm_info), whose documentation lists all kinds.
    - The image keeps them, see C(restore_problems) in RV(vmops.qemu.qemu_save_image_info#module:images).
  type: list
  elements: dict
  returned: when the VM was saved, or would be, or was refused for one of them
  contains:
    kind:
      description: A word that a program can read.
      type: str
      sample: disk_replaced
    what:
      description: What was found.
      type: str
    cure:
      description: What to do about it.
      type: str
    blocks:
      description: Whether it is refused with O(require_restorable=true).
      type: bool
reasons:
  description: Why the options that were not given got their values.
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
    parse_bandwidth,
    parse_mode,
    parse_owner,
    run_operation,
    show_without_secrets,
)
from ansible_collections.vmops.qemu.plugins.module_utils._save.operation import SaveOperation
from ansible_collections.vmops.qemu.plugins.module_utils._save.request import SaveRequest


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str"},
            "qmp_socket": {"type": "str"},
            "path": {"type": "path"},
            "save_dir": {"type": "path", "default": "/var/lib/vmops/save"},
            "image_version": {"type": "int", "choices": [2, 3], "default": 3},
            "format": {"type": "str", "choices": ["sparse", "raw", "gzip", "bzip2", "xz", "lzop", "zstd"]},
            "parallel_channels": {"type": "int"},
            "bypass_cache": {"type": "bool"},
            "live": {"type": "bool", "default": False},
            "live_timeout": {"type": "float", "default": 60},
            "vm_state": {"type": "str", "choices": ["as_is", "running", "paused"], "default": "as_is"},
            "domain_xml": {"type": "str", "no_log": True},
            "after_save": {"type": "str", "choices": ["quit", "pause", "resume"], "default": "quit"},
            "cold_boot_guard": {"type": "bool", "default": True},
            "require_restorable": {"type": "bool", "default": True},
            "force": {"type": "bool", "default": False},
            "bandwidth": {"type": "str"},
            "checksum": {"type": "bool", "default": False},
            "timeout": {"type": "float", "default": 3600},
            "mode": {"type": "raw", "default": "0600"},
            "owner": {"type": "str"},
            "group": {"type": "str"},
            "bundle_library": {"type": "bool", "default": True},
        },
        required_one_of=[("name", "qmp_socket")],
        supports_check_mode=True,
    )
    show_without_secrets(module, [module.params["domain_xml"] or ""], redact)

    def make() -> SaveOperation:
        options = dict(module.params)
        uid, gid = parse_owner(options.pop("owner"), options.pop("group"))
        return SaveOperation(
            SaveRequest(
                mode=parse_mode(options.pop("mode")),
                bandwidth=parse_bandwidth(options.pop("bandwidth")),
                uid=uid,
                gid=gid,
                check_mode=module.check_mode,
                **{key: value for key, value in options.items() if key not in ("timeout", "bundle_library")},
            )
        )

    run_operation(module, make, module.params["timeout"])


if __name__ == "__main__":
    main()
