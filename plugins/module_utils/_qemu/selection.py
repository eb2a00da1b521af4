# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which VM is meant: by its name, its UUID, its systemd unit, the process id of its QEMU, or several of these.

Name and UUID are words of a process, which any user's may say: whose QEMU it is decides :mod:`identity`. The unit and
the process id are the kernel's words.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import re
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._errors import MismatchError, RequestError
from ansible_collections.vmops.qemu.plugins.module_utils._names import VmNames, means_unit
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import systemd
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.identity import is_trusted
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.manager import is_unit, plain_name
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import QemuProcess, list_processes
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.vm import RunningVm

#: Units of one name that are told.
_MAX_UNITS = 5

_UUID = re.compile(r"([0-9a-f]{8})-?([0-9a-f]{4})-?([0-9a-f]{4})-?([0-9a-f]{4})-?([0-9a-f]{12})")


def parse_uuid(text: str) -> str:
    """A UUID in the usual form, with dashes and small letters; empty where it is none, or the one of zeros.

    Zeros are what QEMU says of a VM that has none.
    """
    match = _UUID.fullmatch(text.strip().lower())
    return "-".join(match.groups()) if match and set("".join(match.groups())) != {"0"} else ""


@dataclasses.dataclass(frozen=True)
class Selection:
    """What a VM is chosen by: all that is given must be true of it. What is empty, or None, was not given."""

    name: str = ""
    #: In the usual form.
    uuid: str = ""
    unit: str = ""
    pid: int | None = None

    @classmethod
    def of(cls, name: str | None, uuid: str | None, unit: str | None, pid: int | None) -> Selection:
        """From the options of a module.

        :raises RequestError: one of them can be true of no VM.
        """
        return cls(name or "", _required_uuid(uuid), _required_unit(unit), _required_pid(pid))

    @classmethod
    def of_word(cls, word: str) -> Selection:
        """From what a list of VMs has, where it is not said what it is: a UUID, a service, else a name."""
        uuid = parse_uuid(word)
        unit = word if not uuid and word.endswith(".service") and is_unit(word) else ""
        return cls(uuid=uuid, unit=unit, name="" if uuid or unit else word)

    def __bool__(self) -> bool:
        return bool(self.name or self.uuid or self.unit or self.pid)

    @property
    def is_by_name(self) -> bool:
        """Whether nothing but the name was given."""
        return bool(self.name) and not (self.uuid or self.unit or self.pid)

    @property
    def is_the_kernels(self) -> bool:
        """Whether no other user's process can pretend to be meant."""
        return bool(self.unit or self.pid)

    @property
    def label(self) -> str:
        """The VM as messages name it."""
        given = [
            self.uuid and f"uuid {self.uuid}",
            self.unit and f"unit {self.unit}",
            self.pid and f"QEMU's pid {self.pid}",
        ]
        others = ", ".join(str(part) for part in given if part)
        return f"{self.name} ({others})" if self.name and others else self.name or f"the VM with the {others}"

    def predicate(self, plural: bool = False) -> str:
        """What must be true of the VM, as the end of a sentence."""
        is_, has = ("are", "have") if plural else ("is", "has")
        parts = [
            f"{is_} named {self.name}" if self.name else "",
            f"{has} the uuid {self.uuid}" if self.uuid else "",
            f"{is_} in the unit {self.unit}" if self.unit else "",
            f"{has} the pid {self.pid}" if self.pid else "",
        ]
        return " and ".join(part for part in parts if part)

    def find(self, among: t.Iterable[QemuProcess] | None = None) -> list[QemuProcess]:
        """The QEMUs of which it is true.

        A VM without a name is taken for one of any name, where more than the name was given, and none has that name.

        :param among: None for all of this host.
        """
        processes = list_processes() if among is None else among
        found = [process for process in processes if self._is_of(process)]
        if self.is_by_name:
            return [process for process in found if process.name == self.name]
        named = [process for process in found if process.name == self.name]
        return named if self.name and named else found

    def cure(self) -> str:
        """What to do where it is true of no VM that runs, as far as the units that run tell; or the empty string.

        A unit of another user's own systemd is another one than the host's or the caller's of that name.
        """
        units = {systemd.unit_of_process(process.pid) for process in list_processes()} if self.unit else set()
        found = sorted(unit for unit in units if unit != self.unit and plain_name(unit) == self.unit)
        if not found:
            return ""
        shown = " or ".join(found[:_MAX_UNITS]) + (" or …" if len(found) > _MAX_UNITS else "")
        return f"{self.unit} alone means no unit of another user's own systemd: for one of those, give unit as {shown}"

    def _is_of(self, process: QemuProcess) -> bool:
        return (
            self.pid in (None, process.pid)
            and process.name in ((self.name, "") if self.name else (process.name,))
            and self.uuid in ("", process.uuid)
            and (not self.unit or means_unit(self.unit, systemd.unit_of_process(process.pid)))
        )

    def require(self, vm: RunningVm, address: str) -> None:
        """See that a VM that answered is the one that is meant.

        :param address: where it answered.
        :raises MismatchError: it is another one, or that cannot be known.
        """
        pid = vm.process.pid if vm.process else None
        unit = systemd.unit_of_process(pid) if self.unit and pid else ""
        unit = self.unit if means_unit(self.unit, unit) else unit
        wrong = [
            f"{runs}, not {wanted}"
            for wanted, found, runs in (
                (self.name, vm.name or self.name, f"runs {vm.name}"),
                (self.uuid, vm.uuid, f"has {f'the uuid {vm.uuid}' if vm.uuid else 'no uuid'}"),
                (self.unit, unit, f"is in {f'the unit {unit}' if unit else 'no unit that is known'}"),
                (self.pid, pid, f"{'is not known' if pid is None else f'has the pid {pid}'}"),
            )
            if wanted and wanted != found
        ]
        if wrong:
            given = [key for key in ("name", "uuid", "unit", "pid") if getattr(self, key)]
            raise MismatchError(
                f"The QEMU at {address} {' and '.join(wrong)}", cure=f"Correct {', '.join(given)} or qmp_socket"
            )


def _required_uuid(text: str | None) -> str:
    if not text:
        return ""
    uuid = parse_uuid(text)
    if not uuid:
        raise RequestError(
            f"{text!r} is not the uuid of a VM",
            cure="Write it as QEMU has it (-uuid), 32 hexadecimal digits, not all 0",
        )
    return uuid


def _required_unit(text: str | None) -> str:
    if not text:
        return ""
    name = text if text.endswith((".service", ".scope")) else f"{text}.service"
    if is_unit(name):
        return name
    raise RequestError(f"{text!r} is not the name of a systemd unit", cure="Write it as systemctl has it: web1.service")


def _required_pid(pid: int | None) -> int | None:
    if pid is not None and pid < 1:
        raise RequestError(f"{pid} is not the id of a process", cure="Give the pid of the VM's QEMU")
    return pid


# --- names that tell VMs apart ----------------------------------------------------------------------------------


def own_name(process: QemuProcess) -> str:
    """What tells a VM from others of its name, before and after its restore; empty where nothing does.

    It is the name with the UUID or, where it has none, with a digest of where it answers. A VM without a name and a
    UUID has none, as it could not be found again.
    """
    if process.uuid or not process.name:
        return f"{process.name}-{process.uuid}" if process.name else process.uuid
    told = "\n".join(sorted(process.addresses) or process.argv)
    return f"{process.name}-{hashlib.sha256(told.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"


def names_of(process: QemuProcess, own: str) -> VmNames:
    """All by which a VM is called.

    :param own: what no other VM is called.
    """
    return VmNames(own, process.name, process.uuid, systemd.unit_of_process(process.pid))


def distinct_names(processes: t.Sequence[QemuProcess]) -> dict[int, str]:
    """By process id, a name that no other of these VMs has; empty where there is none.

    It is the VM's name where no other one has it. Another user's QEMU can have any name: it takes none away from a VM
    of root's or the caller's. A VM without a name has its UUID.
    """
    groups = collections.defaultdict(list)
    for process in processes:
        groups[process.name].append(process)
    found: dict[int, str] = {}
    for name, group in groups.items():
        trusted = [process for process in group if is_trusted(process.uid, None)] or group
        plain = trusted[0] if name and len(trusted) == 1 else None
        found.update({process.pid: name if process is plain else own_name(process) for process in group})
    owners = collections.defaultdict(list)
    for process in processes:
        owners[found[process.pid]].append(process)
    for name, group in owners.items():
        trusted = [process for process in group if is_trusted(process.uid, None)]
        keeper = group[0] if len(group) == 1 else trusted[0] if len(trusted) == 1 else None
        found.update({process.pid: name if process is keeper else "" for process in group})
    return found
