#!/usr/bin/python
# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: qemu_save_image
short_description: Change, archive or remove the save image of a QEMU VM
version_added: 1.0.0
description:
  - Manages the file of a finished save image of M(vmops.qemu.qemu_save) or libvirt, without a running QEMU or libvirt.
    The module can store another domain XML, choose whether the guest runs after a restore, convert the version of the
    header, compress the image into an archive and expand it again, and remove it.
  - Nothing is lost if the module is interrupted at any point, even by SIGKILL. The next run of the task finds what the
    interrupted run has left, and completes or undoes it.
options:
  path:
    description:
      - The save image, or its archive. It must be a regular file; symbolic links are not followed.
      - The default is O(name) with C(.save) in O(save_dir).
  state:
    description:
      - V(present) changes the image as the other options ask for. The image must exist.
      - V(absent) removes the image, whether it is complete, partial or damaged, and its archive. The VM's saved state
        is lost. A file that is not a save image is not removed.
    type: str
    choices: [present, absent]
    default: present
  domain_xml:
    description:
      - The libvirt domain XML that replaces the one in the image. It must describe the same VM (name and UUID), and it
        must fit into the space before the QEMU stream. New images have 64 KiB more space than they need.
      - What this collection has recorded in the image (how QEMU was started) is kept, whatever the XML says about it.
      - The XML must contain its secrets. An XML with asterisks in their places, as M(vmops.qemu.qemu_save_image_info)
        returns it, is refused.
  image_version:
    description:
      - The version of the image's header. V(3) marks mapped-ram in its C(features), V(2) is what libvirt reads.
      - Only the header is converted, so the conversion is quick.
  archive:
    description:
      - Compress the image into an archive with the tool of this format, or expand its archive with V(none).
      - The archive is a tar file with one sparse member. It lies beside the image and is named like it, with
        V(.tar.gz), V(.tar.bz2), V(.tar.xz), V(.tar.lzo) or V(.tar.zst) appended. It replaces the image.
        C(tar --sparse -xf) can expand it, too.
      - An archive cannot be restored from. An expanded image has the same bytes and the same holes as before.
      - An image with a compressed stream is refused.
      - By default, the image is neither archived nor expanded.
    type: str
    choices: [none, gzip, bzip2, xz, lzop, zstd]
  space:
    description:
      - How much space archiving may take. With V(whole), the image is kept until its archive is complete and flushed,
        and has been compared with the image.
      - With V(tight), the image is compressed in pieces of 256 MiB, and each piece is punched out of the image as soon
        as it is safely in the archive. Image and archive together never take more space than the image and one piece.
        Until the end, the image is marked as partial. After an interruption, the same task continues, and
        O(archive=none) makes the image whole again, provided that neither file was changed.
      - Expanding always keeps the archive until the image is whole, and needs space for both.
    type: str
    choices: [whole, tight]
    default: whole
  vouch:
    description:
      - With V(true), vouch for what the image now records about how its VM is started, so that
        M(vmops.qemu.qemu_restore) uses it (O(vmops.qemu.qemu_restore#module:launch=recorded)). A save vouches for its
        own record. This option is needed for an image from another host or of an older version of this collection, or
        if the record was changed after the save.
      - B(Look at the record first.) By vouching for a command line you allow it to be run as the user that the record
        names, which may be C(root). C(launch) in RV(vmops.qemu.qemu_save_image_info#module:images) has the record, and
        C(--check --diff) shows it, too.
      - The image must belong to root or to the task's user, and nobody else may be able to write to its directory.
      - V(false) does not revoke anything.
    type: bool
    default: false
attributes:
  check_mode:
    support: full
    details:
      - An image that does not exist is only warned of in check mode, as a task before this one may create it.
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
  - vmops.qemu._save_dir
  - vmops.qemu._image_head
requirements:
  - For O(archive), the tool of that format (gzip, bzip2, xz, lzop or zstd) on the host of the image
notes:
  - An image that another process has open, such as a QEMU that loads it, is not changed (on file systems that can
    tell). A copy of it can be changed.
  - O(domain_xml), O(vm_state) and O(image_version) also change an archived image if O(archive) is given. The image is
    then expanded, changed, and archived again.
seealso:
  - module: vmops.qemu.qemu_save
  - module: vmops.qemu.qemu_restore
  - module: vmops.qemu.qemu_save_image_info
author:
  - vmops.qemu contributors (@vmops)
"""

EXAMPLES = r"""
- name: Leave web1 paused after its restore
  vmops.qemu.qemu_save_image:
    name: web1
    vm_state: paused

- name: Convert an image so that libvirt can restore it
  vmops.qemu.qemu_save_image:
    path: /srv/save/db1.save
    image_version: 2
    domain_xml: "{{ lookup('ansible.builtin.file', 'db1.xml') }}"

- name: Compress an image on a disk that is nearly full
  vmops.qemu.qemu_save_image:
    name: build7
    archive: zstd
    space: tight

- name: Expand it
  vmops.qemu.qemu_save_image:
    name: build7
    archive: none

- name: See how a VM would be started from an image of another host
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
  description: What was done, or would be done in check mode.
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
from ansible_collections.vmops.qemu.plugins.module_utils._options import IMAGE_HEAD, IMAGE_LOCATION, SAVE_DIR
from ansible_collections.vmops.qemu.plugins.module_utils._save_image import SaveImageOperation, SaveImageRequest
from ansible_collections.vmops.qemu.plugins.module_utils._situation import Situation


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **IMAGE_LOCATION,
            **SAVE_DIR,
            **IMAGE_HEAD,
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
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
