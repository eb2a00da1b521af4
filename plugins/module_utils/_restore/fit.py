# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether a QEMU that waits is one into which the image may be loaded: whose it is, which VM, and what machine."""

from __future__ import annotations

from ansible_collections.vmops.qemu.plugins.module_utils._errors import ForeignQemuError, MismatchError
from ansible_collections.vmops.qemu.plugins.module_utils._image import domain_xml
from ansible_collections.vmops.qemu.plugins.module_utils._image.head import ImageHead
from ansible_collections.vmops.qemu.plugins.module_utils._image.stream import StreamFacts
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.identity import RecordedIdentity, why_not_to_load
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.session import VmSession
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.vm import RunningVm, read_ram_blocks

_ROM_CURE = (
    "Put the firmware's file back as it was, from the package of then; or name a copy of that on the VM's command line"
    " (-bios, romfile=)"
)


def require_trusted(path: str, session: VmSession, recorded: RecordedIdentity | None) -> None:
    """Refuse to give the guest's memory to a user who may not have it, or to believe him.

    :raises ForeignQemuError: this QEMU is such a user's.
    """
    reason = why_not_to_load(session.monitor, session.process, recorded)
    if reason:
        raise ForeignQemuError(
            f"{path} is not loaded into another user's QEMU: {reason}",
            cure="Start the QEMU as that user, as the caller, or as root, which may become another user (-run-with"
            " user=); or name another qmp_socket",
        )


def require_same_vm(vm: RunningVm, name: str | None, domain: domain_xml.ParsedDomain | None) -> None:
    """:raises MismatchError: it has another name than was asked for, or another name or UUID than the saved VM."""
    expected = name or (domain.name if domain else "")
    if vm.name and expected and vm.name != expected:
        raise MismatchError(
            f"The QEMU at hand runs {vm.name}, but the restore is of {expected}", cure="Correct name or qmp_socket"
        )
    if domain and vm.uuid and domain.uuid and vm.uuid != domain.uuid:
        raise MismatchError(
            f"The QEMU at hand has the uuid {vm.uuid}, the image holds {domain.uuid}",
            cure="Start QEMU with the uuid of the saved VM (-uuid), or name the right image",
        )


async def require_fit(
    session: VmSession, head: ImageHead, domain: domain_xml.ParsedDomain, stream: StreamFacts | None
) -> None:
    """Refuse an image that this QEMU must not load, although it might try.

    :raises MismatchError: the machine type or a RAM block differs.
    """
    vm = session.vm
    cure = "Start QEMU with the saved VM's own command line (machine type, memory, devices)"
    machine = stream.machine if stream and stream.machine else domain.machine
    if machine and machine != vm.machine:
        raise MismatchError(f"{head.path} is of the machine type {machine}, but {vm.label} has {vm.machine}", cure=cure)
    cpus = sum(section.name == "cpu_common" for section in (stream.sections if stream else None) or ())
    if cpus and cpus != vm.vcpus:
        raise MismatchError(f"{head.path} holds {cpus} CPUs, but {vm.label} has {vm.vcpus}", cure=cure)
    blocks = {block.name: block for block in await read_ram_blocks(session.monitor)}
    if stream and stream.ram_blocks and blocks:
        for saved in stream.ram_blocks:
            block = blocks.get(saved.name)
            if block is None:
                raise MismatchError(
                    f"{head.path} has the RAM block {saved.name}, which {vm.label} lacks: a device is missing",
                    cure=cure,
                )
            # Some blocks of firmware tables may be resized on loading; all others must be the same.
            resizable = block.maximum > block.used
            if saved.used_length > block.maximum or (not resizable and saved.used_length != block.used):
                rom = saved.name.endswith((".rom", ".bios"))
                raise MismatchError(
                    f"{head.path} has {_size(saved.used_length)} in the RAM block {saved.name}, but {vm.label} has"
                    f" {_size(block.used)}: {'the file of that firmware or ROM' if rom else 'its memory'} differs",
                    cure=_ROM_CURE if rom else cure,
                )
        missing = [name for name in blocks if name not in {saved.name for saved in stream.ram_blocks}]
        if missing:
            raise MismatchError(
                f"{vm.label} has the RAM block {missing[0]}, which {head.path} lacks: there is a device too many",
                cure=cure,
            )
    elif domain.memory and domain.memory != vm.memory:
        raise MismatchError(
            f"{head.path} holds {_size(domain.memory)} of memory, but {vm.label} has {_size(vm.memory)}", cure=cure
        )


def _size(size: int) -> str:
    return f"{size / 2**20:g} MiB"
