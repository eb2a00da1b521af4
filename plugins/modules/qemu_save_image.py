#!/usr/bin/python
# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: qemu_save_image
short_description: Change, archive or remove the save image of a QEMU VM
version_added: 0.1.0
description:
  - Manages the file of a finished save image, that of M(vmops.qemu.qemu_save) or of libvirt, without a running QEMU or
    libvirt. It can store another domain XML, choose whether a restore lets the VM run, convert the header's version,
    compress the image into an archive and expand it again, and remove it.
  - An interruption at any point, also by SIGKILL, loses nothing. The next run of the task finds what was left, and
    finishes it or puts it back.
options:
  name:
    description:
      - The VM's name; its image is the name with C(.save) in O(save_dir).
      - With O(path), the VM that the image must hold.
      - One of O(name) and O(path) is needed.
    type: str
  path:
    description:
      - The save image, or its archive. It must be a regular file; symbolic links are not followed.
    type: path
  save_dir:
    description:
      - The directory for save images when O(path) is not given.
    type: path
    default: /var/lib/vmops/save
  state:
    description:
      - V(present) changes the image in the ways that the other options ask for; it must be there.
      - V(absent) removes the image, complete, partial or damaged, and its archive. The VM's saved state is lost. A file
        that is not a save image is not removed.
    type: str
    choices: [present, absent]
    default: present
  domain_xml:
    description:
      - The libvirt domain XML to store instead of the one in the image. It must be of the same VM (name and UUID), and
        it must fit into the room before the QEMU stream, of which new images have 64 KiB more than they need.
      - What the image has recorded of this collection (how QEMU was started) is kept, whatever the XML says of it.
      - Secrets must be in it. An XML with asterisks in their places, as M(vmops.qemu.qemu_save_image_info) shows it, is
        refused.
    type: str
  vm_state:
    description:
      - In which state a restore leaves the VM.
    type: str
    choices: [running, paused]
  image_version:
    description:
      - The version of the image's header. V(3) marks mapped-ram in its C(features), V(2) is what libvirt reads.
      - Only the header is converted, so it takes no time.
    type: int
    choices: [2, 3]
  archive:
    description:
      - Compress the image into an archive, with the tool of this format, or with V(none) expand its archive.
      - The archive is a tar file with one sparse member, beside the image, named like it with V(.tar.gz), V(.tar.bz2),
        V(.tar.xz), V(.tar.lzo) or V(.tar.zst) appended. It takes the image's place. C(tar --sparse -xf) expands it,
        too.
      - An archive cannot be restored from. Expanded, the image has the same bytes and the same holes as before.
      - An image whose stream is compressed already is refused.
      - When it is not given, the image stays as it is.
    type: str
    choices: [none, gzip, bzip2, xz, lzop, zstd]
  space:
    description:
      - How much space archiving may take. With V(whole) the image stays whole until its archive is complete, flushed
        and has been compared with it.
      - With V(tight) what was compressed is punched out of the image, 256 MiB at a time, when it is safely in the
        archive. Both never take more space than the image and one such piece. Until the end the image says that it is
        partial. After an interruption, the same task goes on with it and O(archive=none) makes the image whole again,
        as long as neither file was touched.
      - Expanding always keeps the archive until the image is whole, and needs the space for both.
    type: str
    choices: [whole, tight]
    default: whole
  vouch:
    description:
      - With V(true), vouch for what the image records of how its VM is started, as it stands there now, so that
        M(vmops.qemu.qemu_restore) uses it (O(vmops.qemu.qemu_restore#module:launch=recorded)). A save does so by
        itself. It is needed for an image from another host, of an older version of this collection, or whose record
        was changed since its save.
      - B(Look at it first.) Whoever vouches for words has them run as the user that they name, which may be C(root).
        RV(vmops.qemu.qemu_save_image_info#module:images) has them in C(launch), and C(--check --diff) shows them, too.
      - The image must belong to root or the caller, in a directory to which nobody else can write.
      - Nothing is taken back with V(false).
    type: bool
    default: false
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
requirements:
  - For O(archive), the tool of that name (gzip, bzip2, xz, lzop or zstd) on the host with the image
notes:
  - An image that another process has open, such as a QEMU that loads it, is not touched (on file systems that can
    tell). A copy of it can be.
  - O(domain_xml), O(vm_state) and O(image_version) change an archived image, too, if O(archive) is given. It is
    expanded for that, and archived again.
seealso:
  - module: vmops.qemu.qemu_save
  - module: vmops.qemu.qemu_restore
  - module: vmops.qemu.qemu_save_image_info
author:
  - vmops.qemu contributors (@vmops)
"""

EXAMPLES = r"""
- name: Have web1 paused after its restore
  vmops.qemu.qemu_save_image:
    name: web1
    vm_state: paused

- name: Make an image one that libvirt restores
  vmops.qemu.qemu_save_image:
    path: /srv/save/db1.save
    image_version: 2
    domain_xml: "{{ lookup('ansible.builtin.file', 'db1.xml') }}"

- name: Compress an image that is kept, on a disk that is nearly full
  vmops.qemu.qemu_save_image:
    name: build7
    archive: zstd
    space: tight

- name: Expand it
  vmops.qemu.qemu_save_image:
    name: build7
    archive: none

- name: See how a VM would be started whose image came from another host
  vmops.qemu.qemu_save_image:
    name: web1
    vouch: true
  check_mode: true
  diff: true

- name: Vouch for that
  vmops.qemu.qemu_save_image:
    name: web1
    vouch: true

- name: Give up a saved state
  vmops.qemu.qemu_save_image:
    name: build7
    state: absent
"""

RETURN = r"""
msg:
  description: What was done, or would be in check mode.
  type: str
  returned: always
  sample: /var/lib/vmops/save/web1.save was set to be paused after a restore
image:
  description:
    - The image, as M(vmops.qemu.qemu_save_image_info) returns it, without its long parts.
    - Of a failed task only its C(state), as it is now, for programs.
      V(absent), V(partial), V(complete) or V(archived); V(kept), where it is that of a restore, which has not used it
      up; V(removed), where this task has removed it; V(unknown), where it was not looked at or is no image.
  type: dict
  returned: always
error:
  description: The kind of the error.
  type: str
  returned: failure
  sample: ConflictError
guest_state:
  description: Where the guest's saved state is, if it is not whole in one file.
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

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vmops.qemu.plugins.module_utils._image.domain_xml import redact
from ansible_collections.vmops.qemu.plugins.module_utils._module import run_blocking, show_without_secrets
from ansible_collections.vmops.qemu.plugins.module_utils._save_image import SaveImageOperation, SaveImageRequest
from ansible_collections.vmops.qemu.plugins.module_utils._situation import Situation


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str"},
            "path": {"type": "path"},
            "save_dir": {"type": "path", "default": "/var/lib/vmops/save"},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "domain_xml": {"type": "str", "no_log": True},
            "vm_state": {"type": "str", "choices": ["running", "paused"]},
            "image_version": {"type": "int", "choices": [2, 3]},
            "archive": {"type": "str", "choices": ["none", "gzip", "bzip2", "xz", "lzop", "zstd"]},
            "space": {"type": "str", "choices": ["whole", "tight"], "default": "whole"},
            "vouch": {"type": "bool", "default": False},
        },
        required_one_of=[("name", "path")],
        supports_check_mode=True,
    )
    show_without_secrets(module, [module.params["domain_xml"] or ""], redact)
    request = SaveImageRequest(check_mode=module.check_mode, **module.params)
    operation: list[SaveImageOperation] = []

    def work() -> dict[str, t.Any]:
        operation.append(SaveImageOperation(request))
        return operation[0].run()

    run_blocking(
        module,
        work,
        request.name or request.path or "the image",
        lambda: operation[0].situation if operation else Situation(),
    )


if __name__ == "__main__":
    main()
