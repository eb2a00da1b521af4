# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether a QEMU that runs may be that of the VM in an image, as far as it is said by what either is made of.

UUIDs decide where both have one. Else the name does, unless it is sure that these are two VMs of one name: no QMP
server of the one is one of the other, and the running one has none of the other's disks. A VM without a name is known
by its UUID, or by its QMP server. Whose QEMU it is decides ``_qemu.identity``.
"""

from __future__ import annotations

import contextlib

from ansible_collections.vmops.qemu.plugins.module_utils._image.domain_xml import ParsedDomain
from ansible_collections.vmops.qemu.plugins.module_utils._image.vouching import is_vouched
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import command_line
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.configuration import read_configuration
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import QemuProcess, has_open
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.record import Surroundings


def may_be_vm(process: QemuProcess, domain: ParsedDomain, as_recorded: bool) -> bool:
    """Whether a QEMU may be that of an image's VM.

    :param as_recorded: whether it could only have been started as the image records it: else it may have other
        monitors than the saved one.
    """
    if process.uuid and domain.uuid:
        return process.uuid == domain.uuid and process.name in ("", domain.name)
    if not process.name:
        return bool(_addresses(domain) & set(process.addresses))
    return process.name == domain.name and not (as_recorded and _is_another(process, domain))


def _addresses(domain: ParsedDomain) -> set[str]:
    """Of the monitors that the saved VM had, as far as it is recorded."""
    launch = domain.launch
    if not launch:
        return set()
    # Only what is vouched for names files that are read.
    words = read_configuration(launch.argv, launch.cwd).words if is_vouched(domain) else launch.argv
    return {*command_line.qmp_addresses(words, launch.cwd), *command_line.human_addresses(words, launch.cwd)}


def _is_another(process: QemuProcess, domain: ParsedDomain) -> bool:
    """Whether a QEMU of the same name is another VM's for sure."""
    ours, theirs = _addresses(domain), set(process.addresses)
    if not ours or not theirs or ours & theirs or not process.visible or not domain.save_facts:
        return False
    with contextlib.suppress(ValueError):
        media = Surroundings.parse(domain.save_facts.surroundings).media
        return not any(_uses(process, path) for medium in media for path in medium.own_files)
    return False


def _uses(process: QemuProcess, path: str) -> bool:
    """Whether a QEMU has a disk's file, or its words name it."""
    return has_open(process.pid, path) or any(path in word for word in process.configuration.words)
