# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The VMs that a run over all VMs of the host has shut down, and that are nowhere since, or was to."""

from __future__ import annotations

import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import QemuProcess
from ansible_collections.vmops.qemu.plugins.module_utils._shutdown.record import ShutDownVm
from ansible_collections.vmops.qemu.plugins.module_utils._shutdown.relation import later_image


def still_down(
    kept: t.Iterable[ShutDownVm], processes: t.Sequence[QemuProcess], images: t.Sequence[t.Mapping[str, t.Any]]
) -> list[ShutDownVm]:
    """Those that neither run nor were saved since they were shut down.

    :param processes: the QEMUs that run.
    :param images: those of the save directory, as ``directory_info`` returns them.
    """
    return [vm for vm in kept if not has_qemu(vm.name, vm.launch.uid, processes) and not later_image(vm, images)]


def still_on(kept: t.Iterable[ShutDownVm], processes: t.Sequence[QemuProcess]) -> list[ShutDownVm]:
    """Those that were asked to shut down, and run since before that.

    :param processes: the QEMUs that run.
    """
    return [vm for vm in kept if any(process.name == vm.name and vm.was_asked(process) for process in processes)]


def has_qemu(name: str | None, uid: int | None, processes: t.Iterable[QemuProcess]) -> bool:
    """Whether a VM has a QEMU; anyone's may have the name.

    :param uid: the user as whom it ran; None where that is not known.
    """
    return any(process.name == name and (process.uid in (0, uid) or uid is None) for process in processes)
