#!/usr/bin/python
# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: qemu_save_image_info
short_description: Read what save images of QEMU VMs hold
version_added: 1.0.0
description:
  - Reads the header and the domain XML of save images of M(vmops.qemu.qemu_save) and libvirt, without a running QEMU or
    libvirt.
  - With O(stream=true), the module also reads the machine type, the RAM blocks and the device sections from the QEMU
    stream. With O(verify=true), it checks that the file holds what its header and bitmaps promise. The guest's memory
    is read only to compare it with a checksum that the image records.
  - A bad image does not make the task fail. It is returned with its C(problems).
options:
  path:
    description:
      - A save image, or a directory of save images.
      - In a directory, the module reads the regular files that begin like a save image or are named C(*.save). It
        ignores other files and symbolic links.
      - It also reads the archives that M(vmops.qemu.qemu_save_image) has made of images named C(*.save).
  name:
    description:
      - The VM's name. Its image is the name with C(.save) in O(save_dir), or an archive of that.
      - If neither O(path) nor O(name) is given, all images in O(save_dir) are read.
      - If O(path) is an image, it must hold the VM of this name. If O(path) is a directory, only the images of this VM
        are returned.
  stream:
    description:
      - Also read the QEMU stream. C(stream) of each image has the result.
      - Reading the machine type and the RAM blocks of a compressed image requires the tool of its format.
    type: bool
    default: false
  verify:
    description:
      - Check the structure of each image. For example, its RAM blocks must not overlap, all pages that its bitmaps
        promise must have been written, and the stream must end where the file ends. C(problems) has what is wrong.
      - If the image has a C(checksum), the whole image is read and compared with it. Without a checksum, a change of
        the guest's memory is not detected.
      - Archives are not checked.
    type: bool
    default: false
attributes:
  platform:
    platforms: posix
extends_documentation_fragment:
  - vmops.qemu._attributes
  - vmops.qemu._attributes.info_module
  - vmops.qemu._attributes.actiongroup_qemu
  - vmops.qemu._image_location
  - vmops.qemu._save_dir
notes:
  - Passwords in the domain XML and in a recorded QEMU command line are hidden in the result.
seealso:
  - module: vmops.qemu.qemu_save
  - module: vmops.qemu.qemu_restore
  - module: vmops.qemu.qemu_save_image
author:
  - vmops.qemu contributors (@vmops)
"""

EXAMPLES = r"""
- name: See whether web1 is saved
  vmops.qemu.qemu_save_image_info:
    name: web1
  register: saved

- name: Restore it if it is
  vmops.qemu.qemu_restore:
    name: web1
  when: saved.image.state == 'complete'

- name: Check all images before the host's storage is moved
  vmops.qemu.qemu_save_image_info:
    path: /var/lib/libvirt/qemu/save
    verify: true
  register: found
  failed_when: found.images | map(attribute='problems') | flatten | length > 0

- name: Look into the QEMU stream
  vmops.qemu.qemu_save_image_info:
    path: /srv/save/db1.save
    stream: true
"""

RETURN = r"""
msg:
  description: A summary of the images in one line.
  type: str
  returned: always
  sample: "web1: complete sparse image, version 3, 2.0 GiB memory, 612 MiB on disk"
images:
  description: The images, sorted by path. A value that is not known is V(null).
  type: list
  elements: dict
  returned: success
  contains:
    path:
      description: The file.
      type: str
    exists:
      description: Whether the file exists.
      type: bool
    state:
      description:
        - V(complete), V(partial) (its save did not finish, or is still running), V(archived) (see C(archive)),
          V(invalid) (see C(problems)) or V(absent).
      type: str
    archive:
      description:
        - The format of the archive that M(vmops.qemu.qemu_save_image) has made of the image. C(path) is then the path
          of the archive, and C(size) is the size of the image in it.
      type: str
      sample: zstd
    complete:
      description: Whether the header's magic says that the save was completed.
      type: bool
    checkpoint:
      description:
        - Whether the guest went on after the image was complete, so that its disks may have changed since. The roles
          and the restore at boot do not restore such an image.
      type: bool
    superseded_by:
      description:
        - If this image is not the VM's last save, the path of the last save; else V(null). It is always V(null) in the
          results of other modules.
        - Two images are of the same VM if they have the same UUID or, if one of them has no UUID, the same name. The
          last save is the one with the latest C(saved_at) or, if that is V(null), the latest C(mtime). An image that is
          vouched for and is not a checkpoint counts as later than all images that are not vouched for, because their
          times may be forged.
        - Only images in the same directory are compared, including checkpoints and damaged or archived images, but not
          partial ones. Copies of one save do not supersede each other, and an image of one user's VM does not supersede
          an image of another user's VM.
      type: str
      sample: /var/lib/vmops/save/web1.save
    copy_of:
      description:
        - If a directory holds several images of the same save, the path of the one that the roles restore.
      type: str
    version:
      description: The header's version, V(2) or V(3).
      type: int
    format:
      description: How the QEMU stream is stored.
      type: str
      sample: sparse
    features:
      description: The features that a version 3 header names.
      type: list
      elements: str
      sample: [mapped-ram]
    vm_state:
      description: The state in which a restore leaves the VM, V(running) or V(paused).
      type: str
    byte_order:
      description: The byte order of the host of the save, V(little) or V(big).
      type: str
    name:
      description: The VM's name, from the domain XML.
      type: str
    uuid:
      description: The VM's UUID; empty if it has none.
      type: str
    memory:
      description: The VM's memory in bytes, from the domain XML; V(0) if the XML does not specify it.
      type: int
    vcpus:
      description: The number of the VM's CPUs, from the domain XML; V(0) if the XML does not specify it.
      type: int
    machine:
      description: The machine type, from the domain XML.
      type: str
      sample: pc-q35-10.0
    domain_xml:
      description: The domain XML, with secrets hidden.
      type: str
    cookie:
      description: What libvirt stores beside the domain XML; empty if there is nothing.
      type: str
    size:
      description: The file's size in bytes, including holes.
      type: int
    allocated:
      description: The number of bytes that the file occupies on disk.
      type: int
    stream_offset:
      description: The offset of the QEMU stream in the file, in bytes.
      type: int
    saved_at:
      description: When the VM was saved, ISO 8601 in UTC; only in images of this collection.
      type: str
      sample: "2026-03-01T09:30:00.250Z"
    qemu_version:
      description: The version of the QEMU that saved the VM; only in images of this collection.
      type: str
    checksum:
      description:
        - The checksum of the QEMU stream that M(vmops.qemu.qemu_save) has recorded; V(null) if there is none.
      type: str
      sample: sha256-tree:5f0c9c0b0ef1b2a3a1f4f7f0ea4b1d5a2ad1d3f7be9f0a5d0e5b7f1f0f9c2d11
    managed:
      description:
        - Whether M(vmops.qemu.qemu_managed_save) has saved the VM. M(vmops.qemu.qemu_managed_restore) restores it.
      type: bool
    launch_recorded:
      description: Whether the image records how its QEMU was started.
      type: bool
    vouched:
      description:
        - Whether the task's user vouches, on this host, for what the image records. This is so if the user's own save
          has made the record, which nobody has changed since, or if the user has vouched for it with
          O(vmops.qemu.qemu_save_image#module:vouch=true).
        - V(null) if the image has no record of this collection.
      type: bool
    launch:
      description:
        - How to start the VM's QEMU again, according to the image; V(null) if the image does not record it.
        - If C(vouched) is V(false), anyone who was ever able to write to the image may have written this, in particular
          the VM's own QEMU.
      type: dict
      contains:
        how:
          description:
            - How M(vmops.qemu.qemu_restore) would start it. V(unit) means by its systemd unit, V(command) with its
              command line, and V(none) not at all (see C(reason)).
          type: str
        reason:
          description: Why it would not be started.
          type: str
        command:
          description: QEMU's command line, with secrets hidden.
          type: list
          elements: str
        program:
          description: The file that was executed.
          type: str
        directory:
          description: The working directory.
          type: str
        uid:
          description: The numeric id of its user.
          type: int
        gid:
          description: The numeric id of its group.
          type: int
        umask:
          description: The file mode creation mask, octal; empty if it is not known.
          type: str
        unit:
          description: The systemd unit; V(null) if there is none.
          type: str
    restorable:
      description:
        - Whether M(vmops.qemu.qemu_restore) can start the VM again as the image records it
          (O(vmops.qemu.qemu_restore#module:launch=recorded)). This depends on what was found at the save, and on
          whether the record is vouched for.
        - V(null) if the image does not record it.
      type: bool
    restore_problems:
      description:
        - What was found at the save that prevents or impairs a restore, as C(problems) in
          RV(vmops.qemu.qemu_vm_info#module:vms); V(null) if the image does not record it.
      type: list
      elements: dict
    cpu:
      description:
        - The guest's CPU at the time of the save; V(null) if the image does not record it.
        - Before a restore, it is compared with the CPU of the QEMU that shall load the image.
      type: dict
      contains:
        accelerator:
          description: V(kvm), or V(tcg) for any other one.
          type: str
        type:
          description: QEMU's type of it.
          type: str
          sample: Haswell-x86_64-cpu
        topology:
          description: How many sockets, dies, cores, threads and so on there are, where there is more than one.
          type: dict
          sample: {cores: 4, maxcpus: 4}
        vendor:
          description: The vendor that the guest reads; as all that follows, V(null) if it is not an x86 CPU.
          type: str
        model_name:
          description: The name that the guest reads.
          type: str
        family:
          description: The number of its family.
          type: int
        model:
          description: The number of its model.
          type: int
        stepping:
          description: The number of its stepping.
          type: int
        physical_bits:
          description: How many bits an address of memory has.
          type: int
        features:
          description: Its features, by QEMU's names.
          type: list
          elements: str
        hyperv:
          description: What QEMU pretends to be of Hyper-V, by its own names; V(null) if it is without KVM.
          type: list
          elements: str
    disks:
      description:
        - The media of the guest's drives at the time of the save; V(null) if the image does not record them.
        - Before a restore, they are compared with the media that are present then.
      type: list
      elements: dict
      contains:
        backend:
          description: QEMU's name for the block backend.
          type: str
        qdev:
          description: The guest's device.
          type: str
        node:
          description: The name of the active block node.
          type: str
        read_only:
          description: Whether it is read-only for the guest.
          type: bool
        files:
          description: The files of the medium, from the active layer to the end of the backing chain.
          type: list
          elements: dict
          contains:
            path:
              description: The file, or QEMU's own name for something that is not a file.
              type: str
            format:
              description: The block driver that reads it.
              type: str
              sample: qcow2
            size:
              description: Its size in bytes.
              type: int
            mtime_ns:
              description: Its modification time, in nanoseconds since the epoch.
              type: int
            inode:
              description: Its inode.
              type: int
            device_number:
              description: The device number of its file system.
              type: int
            identity:
              description:
                - Which block device it is, by what that or the kernel says; empty for a file, and if nothing tells it.
              type: str
              sample: wwid naa.5000c500a1b2c3d4
            uncheckable:
              description: Why changes of it cannot be detected; empty if they can.
              type: str
    readable_by:
      description:
        - The software that can read an image with this header; empty if the image is not complete.
        - It does not tell whether the domain XML describes the VM well enough for libvirt to start it.
      type: list
      elements: str
      sample: [vmops.qemu, libvirt >= 11.2]
    problems:
      description: What is wrong with the image.
      type: list
      elements: str
    mode:
      description: The file's permission bits, octal.
      type: str
      sample: "0600"
    owner:
      description: The file's owner.
      type: str
    mtime:
      description: When the file was last written, in seconds since the epoch.
      type: float
    stream:
      description: The content of the QEMU stream; V(null) if it is compressed or cannot be read.
      type: dict
      returned: when O(stream=true)
      contains:
        machine:
          description: The machine type that a QEMU needs to load the stream.
          type: str
        capabilities:
          description: The migration capabilities that the stream records.
          type: list
          elements: str
        ram_blocks:
          description:
            - The guest's RAM blocks with C(name) and C(used_length) in bytes.
            - With mapped-ram also C(page_size), C(bitmap_offset), C(pages_offset), C(present_pages) and C(zero_pages).
          type: list
          elements: dict
        sections:
          description:
            - The devices with their C(name), C(instance) and C(version).
            - V(null) if the stream does not end with its description.
          type: list
          elements: dict
        end:
          description: The offset in the file at which the stream ends; V(null) if C(sections) is V(null).
          type: int
image:
  description:
    - The only element of RV(images).
    - Of a failed task only its C(state), as it is now, for programs.
      V(absent), V(partial), V(complete) or V(archived); V(kept), where it is that of a restore, which has not used it
      up; V(removed), where this task has removed it; V(unknown), where it was not looked at or is no image.
  type: dict
  returned: when one image was requested, and on failure
error:
  description: The kind of the error.
  type: str
  returned: failure
  sample: ImageNotFoundError
guest_state:
  description: Where the guest is, if it is known; empty, as nothing is touched.
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
cure:
  description: What to do.
  type: str
  returned: failure
"""

import contextlib
import os
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vmops.qemu.plugins.module_utils._errors import RequestError
from ansible_collections.vmops.qemu.plugins.module_utils._image.info import (
    describe,
    directory_info,
    image_info,
    image_word,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.names import image_path, require_image_of
from ansible_collections.vmops.qemu.plugins.module_utils._module import run_blocking
from ansible_collections.vmops.qemu.plugins.module_utils._options import IMAGE_LOCATION, SAVE_DIR
from ansible_collections.vmops.qemu.plugins.module_utils._situation import Situation


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **IMAGE_LOCATION,
            **SAVE_DIR,
            "stream": {"type": "bool", "default": False},
            "verify": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    options = module.params
    wanted = {"stream": options["stream"], "verify": options["verify"]}
    path = options["path"] or options["save_dir"]
    name = options["name"]
    one = not os.path.isdir(path) if options["path"] else bool(name)

    def situation() -> Situation:
        with contextlib.suppress(RequestError):  # a name that cannot stand in a path
            if one:
                return Situation(image=image_word(image_path(options["path"], options["save_dir"], name)))
        return Situation()

    def look() -> dict[str, t.Any]:
        if one:
            place = image_path(options["path"], options["save_dir"], name)
            image = image_info(place, others=True, **wanted)
            if image["name"] is not None:
                require_image_of(place, image["name"], name)
            return {"changed": False, "images": [image], "image": image, "msg": describe(image)}
        images = directory_info(path, **wanted) if os.path.exists(path) else []
        images = [image for image in images if name in (None, image["name"])]
        lines = [f"{len(images)} save image{'' if len(images) == 1 else 's'} in {path}", *map(describe, images)]
        return {"changed": False, "images": images, "msg": "; ".join(lines)}

    run_blocking(module, look, name or path, situation)


if __name__ == "__main__":
    main()
