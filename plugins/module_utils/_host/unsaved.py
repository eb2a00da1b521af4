# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The VMs of a host that a run over all does not save: whether they may be left, and what becomes of them."""

from __future__ import annotations

import asyncio
import dataclasses
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._errors import ConflictError
from ansible_collections.vmops.qemu.plugins.module_utils._host.journal import Journal
from ansible_collections.vmops.qemu.plugins.module_utils._host.turns import Turns, outcome_of
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import QemuProcess
from ansible_collections.vmops.qemu.plugins.module_utils._shutdown.operation import ShutdownOperation
from ansible_collections.vmops.qemu.plugins.module_utils._shutdown.record import read_all
from ansible_collections.vmops.qemu.plugins.module_utils._shutdown.start import START_TIMEOUT, StartOperation

#: Seconds for which another run that is at work on a VM is waited for.
_BUSY_TIMEOUT = 60.0

#: The kind of error that says that there is no guest any more: nothing is lost, whatever becomes of its QEMU.
GONE = "GuestGoneError"

#: The kinds of errors that say that a VM cannot be saved, whenever it is tried.
_BLOCKED = frozenset(("NotRestorableError", "UnsupportedByQemuError"))


@dataclasses.dataclass
class _Vm:
    process: QemuProcess
    #: Why it is not saved, as a clause or a sentence.
    reason: str
    #: Whether its save was planned and refused, for this kind of error; empty where it was left out.
    error: str = ""
    #: Whether it has nothing by which it could be saved.
    nameless: bool = False
    #: What became of it; empty where that was not asked for.
    fate: str = ""
    #: Why it could not be shut down, or not be started again.
    problem: str = ""

    @property
    def label(self) -> str:
        return f"{self.process.name or 'A QEMU'} (pid {self.process.pid})"


class Unsaved:
    """They are found by the plan of the saves. ``what`` is the option ``unsaved``: fail, shutdown, ignore."""

    def __init__(self, what: str, timeout: float, save_dir: str, journal: Journal) -> None:
        """:param timeout: seconds that each may take to shut down. :param save_dir: where the images are."""
        self._what = what
        self._timeout = timeout
        self._save_dir = save_dir
        self._journal = journal
        self._vms: list[_Vm] = []

    def add(self, process: QemuProcess, reason: str, error: str = "", nameless: bool = False) -> bool:
        """One that runs and is not saved; whether that its save was refused is no failure.

        :param error: the kind of the error with which its save was refused.
        :param nameless: whether it has nothing by which it could be saved.
        """
        fate = "no guest" if error == GONE else "ignored" if self._what == "ignore" else ""
        vm = _Vm(process, reason, error, nameless, fate)
        self._vms.append(vm)
        return error == GONE or self._is_to_go(vm)

    async def plan(self, turns: Turns, names: t.Mapping[str, int]) -> None:
        """See whether those that are to be shut down can be.

        :param names: how many VMs of the host have each name, those that are saved, too.
        """
        gone = [vm for vm in self._vms if self._is_to_go(vm)]
        await asyncio.gather(*(self._shut_down(turns, vm, True) for vm in gone))
        for vm in gone:
            if names[vm.process.name] > 1:  # what is kept of them is kept by the name
                vm.problem = vm.problem or "another QEMU has its name, too"

    @property
    def to_go(self) -> int:
        """How many are to be shut down, or were."""
        return sum(self._is_to_go(vm) for vm in self._vms)

    def changes(self, check_mode: bool) -> bool:
        """Whether one was shut down, or would be."""
        return bool(self.to_go if check_mode else self.touched)

    @property
    def touched(self) -> int:
        """How many have shut down."""
        return sum(vm.fate not in ("", "ignored", "no guest") for vm in self._vms)

    def problems(self) -> list[str]:
        """Why the run must not begin, as sentences; of a VM whose save was refused that is said elsewhere."""
        if self._what == "shutdown":
            return [
                f"{vm.label} runs here and would not be saved ({vm.reason.rstrip('.')}), nor can it be shut down:"
                f" {vm.problem or 'it has no name by which it could be started again'}"
                for vm in self._vms
                if vm.problem or not vm.process.name
            ]
        if self._what == "fail":
            return [f"{vm.label} runs here and would not be saved: {vm.reason}" for vm in self._vms if not vm.error]
        return []

    @property
    def nameless(self) -> list[QemuProcess]:
        """Those that have nothing by which they could be saved."""
        return [vm.process for vm in self._vms if vm.nameless]

    async def shut_down(self, turns: Turns) -> list[str]:
        """Shut down those that are to be; why it came to nothing, as sentences."""
        await asyncio.gather(*(self._shut_down(turns, vm, False) for vm in self._vms if self._is_to_go(vm)))
        return [vm.problem for vm in self._vms if vm.problem]

    async def start_again(self, turns: Turns) -> list[str]:
        """Start those that were shut down; why that came to nothing, as sentences."""
        gone = [vm for vm in self._vms if vm.fate == "shut down"]
        await asyncio.gather(*(self._start(turns, vm) for vm in gone))
        return [vm.problem for vm in gone if vm.fate == "not started again"]

    def as_result(self) -> list[dict[str, t.Any]]:
        """The return value ``unsaved``."""
        return [
            {"name": vm.process.name, "pid": vm.process.pid, "reason": vm.reason, "fate": vm.fate} for vm in self._vms
        ]

    def _is_to_go(self, vm: _Vm) -> bool:
        """Whether it is to be shut down: nothing else says so."""
        if self._what != "shutdown" or not vm.process.name:
            return False
        return not vm.error or vm.error in _BLOCKED

    async def _shut_down(self, turns: Turns, vm: _Vm, check_mode: bool) -> None:
        # It sees to its own time; this bounds the wait for another run that is at work on the VM.
        limit = self._timeout + _BUSY_TIMEOUT if self._timeout else 0
        result = await outcome_of(
            turns.take(lambda: ShutdownOperation(vm.process, self._timeout, check_mode), limit), ""
        )
        vm.problem = result["msg"] if result["failed"] or result.get("skipped") else ""
        if check_mode or result.get("skipped"):
            return
        if vm.problem:
            self._journal.complain(vm.problem)
        else:
            vm.fate = "shut down"
            self._journal.say(result["msg"])

    async def _start(self, turns: Turns, vm: _Vm) -> None:
        result = await outcome_of(self._started(turns, vm.process.name), "")
        vm.fate = "not started again" if result["failed"] else "started again"
        vm.problem = result["msg"] if result["failed"] else ""
        (self._journal.complain if vm.problem else self._journal.say)(result["msg"])

    async def _started(self, turns: Turns, name: str) -> dict[str, t.Any] | None:
        kept = next((kept for kept in read_all() if kept.name == name), None)
        if kept is None:
            raise ConflictError(f"How {name} is started again is not known any more", cure="Start it by hand")
        return await turns.take(lambda: StartOperation(kept, self._save_dir), START_TIMEOUT)
