# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether the QEMU that waits has the CPUs that the guest of an image found when it booted.

What it lacks is refused: the guest has seen the feature once and uses it, and is ended by the first instruction that
the CPU does not have any more. So is another vendor, family or model, by which a kernel chooses the registers that it
writes to, and another topology. What there is more, no guest uses before it boots again.
"""

from __future__ import annotations

import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._errors import ImageFormatError, MismatchError
from ansible_collections.vmops.qemu.plugins.module_utils._image import domain_xml
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.cpu import Cpu, read_cpu
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.cpu_features import feature_names
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.migration import query_version
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.session import VmSession
from ansible_collections.vmops.qemu.plugins.module_utils._restore.run import RestoreRun

#: Names of features in a message at most.
_MAX_NAMES = 20

_CURE = (
    "Start QEMU with the saved VM's own CPU and accelerator (-cpu, -accel, -smp), by the QEMU and on a host that have"
    " these features; or remove the image and start the VM from its disks. With cpu: ignore the guest is restored all"
    " the same, and may crash"
)


async def require_same_cpu(run: RestoreRun, session: VmSession, domain: domain_xml.ParsedDomain) -> None:
    """Compare the CPUs of the QEMU that waits with those of the saved VM.

    :raises MismatchError: the guest would miss something, or be on another CPU.
    :raises ImageFormatError: the record makes no sense.
    """
    if run.request.cpu == "ignore":
        return
    facts, vm = domain.save_facts, session.vm
    if facts is None or not facts.cpu:
        run.warnings.append(
            f"It is not known whether the CPU of {run.subject} is as it was when it was saved, as {run.path} does not"
            " record it"
        )
        return
    try:
        old = Cpu.parse(facts.cpu)
    except ValueError as exc:
        raise ImageFormatError(
            run.path,
            f"its record of the VM's CPU cannot be read: {exc}",
            cure="If you know that it is as it was at the save, use cpu: ignore",
        ) from exc
    new = await read_cpu(session.monitor, vm.architecture, vm.accelerator)
    missing = cpu_differences(old, new)
    if missing:
        raise MismatchError(
            f"{run.path} was not loaded into {vm.label}, as its CPU is not the one on which the guest ran:"
            f" {'; '.join(missing)}",
            cure=_CURE,
        )
    more = cpu_additions(old, new)
    if more:
        run.warnings.append(
            f"The CPU of {run.subject} is not quite the one on which the guest ran, which does no harm before the guest"
            f" boots again: {'; '.join(more)}"
        )
    # Those of the names of a model have what the name says; these two have what QEMU and the host can.
    if (old.features is None or new.features is None) and new.type.startswith(("host-", "max-")):
        version = await query_version(session.monitor)
        if version != facts.qemu_version or new.type.startswith("host-"):
            run.warnings.append(
                f"It is not known whether the CPU of {run.subject} has all features that it had when it was saved, as"
                f" QEMU does not tell them of {new.type}"
            )


def cpu_differences(old: Cpu, new: Cpu) -> list[str]:
    """What the guest would miss, as clauses; what is not known on both sides is left out."""
    found = []
    if old.accelerator and old.accelerator != new.accelerator:
        found.append(f"the accelerator was {old.accelerator}, and is {new.accelerator} now")
    # Of x86 the features are known, and a model has several names.
    if old.features is None and new.features is None and old.type and new.type and old.type != new.type:
        found.append(f"it was of the type {old.type}, and is a {new.type} now")
    lost = _more(old, new)
    if lost:
        found.append(f"it lacks {_listed(lost)}")
    for name in ("vendor", "family", "model"):
        before, now = getattr(old, name), getattr(new, name)
        if before not in (None, "") and now not in (None, "") and before != now:
            found.append(f"its {name} was {before}, and is {now} now")
    if old.physical_bits and new.physical_bits and new.physical_bits < old.physical_bits:
        found.append(f"addresses of memory had {old.physical_bits} bits, and have {new.physical_bits} now")
    if old.topology is not None and new.topology is not None and old.topology != new.topology:
        found.append(f"there were {_topology(old.topology)}, and there are {_topology(new.topology)} now")
    return found


def cpu_additions(old: Cpu, new: Cpu) -> list[str]:
    """What else is not as it was, as clauses."""
    found = []
    gained = _more(new, old)
    if gained:
        found.append(f"it has {_listed(gained)}, too")
    for name, label in (("stepping", "stepping"), ("model_name", "name")):
        before, now = getattr(old, name), getattr(new, name)
        if before not in (None, "") and now not in (None, "") and before != now:
            found.append(f"its {label} was {before}, and is {now} now")
    if old.physical_bits and new.physical_bits and new.physical_bits > old.physical_bits:
        found.append(f"addresses of memory had {old.physical_bits} bits, and have {new.physical_bits} now")
    return found


def _more(one: Cpu, other: Cpu) -> list[str]:
    """The features that one has and the other has not, by name, as far as both are known."""
    names: list[str] = []
    if one.features is not None and other.features is not None:
        for register, bits in sorted(one.features.items()):
            names += feature_names(register, bits & ~other.features.get(register, 0))
    if one.hyperv is not None and other.hyperv is not None:
        names += [name for name in one.hyperv if name not in other.hyperv]
    return list(dict.fromkeys(names))


def _listed(names: list[str]) -> str:
    more = len(names) - _MAX_NAMES
    return ", ".join(names[:_MAX_NAMES]) + (f" and {more} more" if more > 0 else "")


def _topology(levels: t.Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in levels.items()) or "one CPU"
