# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Saving all VMs of a host, or some of them: all are planned before one guest is touched."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import time
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._errors import HostRunError, UnitError, one_line
from ansible_collections.vmops.qemu.plugins.module_utils._host.journal import Journal
from ansible_collections.vmops.qemu.plugins.module_utils._host.rates import keep_rate, read_rates, seconds_for
from ansible_collections.vmops.qemu.plugins.module_utils._host.result import (
    Clock,
    count,
    host_result,
    names_not_done,
    state_of,
)
from ansible_collections.vmops.qemu.plugins.module_utils._host.run_lock import (
    Others,
    host_run_lock,
    restores_elsewhere,
    single_operations,
    would_wait,
)
from ansible_collections.vmops.qemu.plugins.module_utils._host.space import shortages
from ansible_collections.vmops.qemu.plugins.module_utils._host.turns import (
    Turns,
    have_threads_for,
    outcome_of,
    to_the_end,
)
from ansible_collections.vmops.qemu.plugins.module_utils._host.unsaved import GONE, Unsaved
from ansible_collections.vmops.qemu.plugins.module_utils._host.words import selection_of
from ansible_collections.vmops.qemu.plugins.module_utils._image.names import image_path
from ansible_collections.vmops.qemu.plugins.module_utils._names import VmNames, is_selected, label_of_unit, options_of
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.identity import is_trusted
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import (
    QemuProcess,
    list_doubtful,
    list_processes,
    read_process,
)
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.selection import distinct_names, names_of
from ansible_collections.vmops.qemu.plugins.module_utils._restore.operation import RestoreOperation
from ansible_collections.vmops.qemu.plugins.module_utils._restore.request import RestoreRequest
from ansible_collections.vmops.qemu.plugins.module_utils._save.ending import unit_of
from ansible_collections.vmops.qemu.plugins.module_utils._save.operation import SaveOperation
from ansible_collections.vmops.qemu.plugins.module_utils._save.request import SaveRequest
from ansible_collections.vmops.qemu.plugins.module_utils._situation import Situation
from ansible_collections.vmops.qemu.plugins.module_utils._user import user_name

#: VMs that are planned at a time: a plan waits for QEMU, not for the disk.
_PLANNED_AT_A_TIME = 8

#: How a guest is that does not run, by the word for it (``_situation``).
_GUEST_NOW = {"paused": "is paused", "saved": "is saved", "ended": "has ended"}


@dataclasses.dataclass(frozen=True)
class HostSaveRequest:
    """The options of ``qemu_managed_save``, as its documentation describes them."""

    vms: list[str]
    include: list[str]
    exclude: list[str]
    save_dir: str
    parallel: int
    on_error: str
    unsaved: str
    #: Seconds that a VM may take to shut down.
    shutdown_timeout: float
    #: The fields of a ``SaveRequest`` for all VMs, and those that are others for some, as
    #: ``options_of`` takes them; ``timeout`` is among them, in seconds.
    common: dict[str, t.Any]
    by_vm: dict[str, dict[str, t.Any]]
    check_mode: bool

    def of(self, names: VmNames, check_mode: bool, **chosen: t.Any) -> SaveRequest:
        """What is asked for of one VM.

        :param chosen: the fields of the request that say which one.
        """
        options = options_of(names, self.common, self.by_vm)
        del options["timeout"]
        quits = options["after_save"] == "quit"
        return SaveRequest(
            qmp_socket=None,
            path=None,
            save_dir=self.save_dir,
            managed=quits,
            check_mode=check_mode,
            **{"name": None, **chosen, **options},
        )

    def timeout_of(self, names: VmNames) -> float:
        """Seconds for one VM."""
        return float(options_of(names, self.common, self.by_vm)["timeout"])


@dataclasses.dataclass(frozen=True)
class _Target:
    """One VM that may be saved; or several that nothing tells apart."""

    names: VmNames
    #: The fields of the request that say which one.
    chosen: dict[str, t.Any]
    #: Its QEMU, where one ran when the run began.
    found: tuple[QemuProcess, ...] = ()


class HostSaveOperation:
    """All saves of one run; ``situation`` says at any time how the guests are."""

    def __init__(self, request: HostSaveRequest, journal: Journal, has_lock: bool = False) -> None:
        """:param has_lock: whether this process has the lock already that keeps other runs away (``host_run_lock``)."""
        self.request = request
        self._has_lock = has_lock
        self.subject = "the VMs of this host"
        self.situation = Situation("No VM was touched")
        self._journal = journal
        self._turns: Turns | None = None
        self._warnings: list[str] = []
        #: Of what else is at work, where this run does not wait for it.
        self._at_work: list[str] = []
        #: The VMs to save, by what no other one is called.
        self._targets: dict[str, _Target] = {}
        #: What became of each of them, likewise, in the order in which they were found.
        self._vms: dict[str, dict[str, t.Any]] = {}
        self._unsaved = Unsaved(request.unsaved, request.shutdown_timeout, request.save_dir, journal)
        self._predicted: dict[str, t.Any] = {}
        self._interrupted = ""
        self._clock = Clock()

    async def run(self) -> dict[str, t.Any]:
        """Do it.

        :returns: the module's return values.
        :raises HostRunError: not all could be saved; what became of each is in its result.
        :raises BusyError: another run over VMs is at work; nothing was touched.
        """
        return await to_the_end(self._run(), self.stop)

    def stop(self, by: str) -> None:
        """Give up the saves that are at work, whose guests go on, and begin no further one.

        :param by: what asks for it, such as the name of a signal.
        """
        self._interrupted = self._interrupted or by
        if self._turns:
            self._turns.stop(by)

    async def _run(self) -> dict[str, t.Any]:
        have_threads_for(max(self.request.parallel, _PLANNED_AT_A_TIME))
        save_dir, timeout = self.request.save_dir, self.request.common["timeout"]
        async with contextlib.AsyncExitStack() as stack:
            if self.request.check_mode:
                self._at_work = would_wait(save_dir, self._restores_of_others())
            elif not self._has_lock:
                lock = host_run_lock(
                    save_dir, timeout, self._journal, lambda: self._interrupted, self._restores_of_others
                )
                await stack.enter_async_context(lock)
            return await self._save_all()

    def _restores_of_others(self) -> Others:
        """Those that this run is to wait for, beside the runs in its directory: what they bring back runs only then."""
        others = single_operations("restore", self.request.save_dir)
        return others if self.request.vms else {**others, **restores_elsewhere(self.request.save_dir)}

    async def _save_all(self) -> dict[str, t.Any]:
        await self._plan()
        self._require_all()
        if self.request.check_mode:
            return self._result(self._prediction())
        for name, vm in self._vms.items():
            if vm["failed"]:
                self._journal.complain(f"{name}: {vm['msg']}")
        names = [name for name, vm in self._vms.items() if not vm["failed"]]
        self._turns = Turns(self.request.parallel)
        saving = time.monotonic()
        if self._interrupted:  # between the plan and the first save
            self._turns.stop(self._interrupted)
        await asyncio.gather(*(self._save(name) for name in names))
        took = time.monotonic() - saving
        names = [name for name in names if name in self._vms]
        failed = names_not_done(self._vms[name] for name in names)
        # Last, as it is the one thing that a rollback cannot undo as if it had not been.
        still_on = [] if failed else await self._unsaved.shut_down(self._turns)
        if not failed and not still_on:
            if all(self._vms[name]["changed"] for name in names):
                keep_rate("save", self._predicted["bytes"], took)
            return self._result(self._success(names, took))
        consequence = ""
        if self.request.on_error == "rollback":
            consequence = await self._roll_back(names, bool(still_on))
        elif self.request.on_error == "stop" and any(self._vms[name]["state"] == "saved" for name in names):
            consequence = "The VMs that were saved stay saved; qemu_managed_restore brings them back"
        elif self.request.on_error == "continue":
            consequence = "The others were saved"
        raise HostRunError(
            self._what_failed(failed, still_on, len(names)),
            cure="",
            situation=Situation(consequence, self._guests()),
            result={**self._result(""), "cure": self._vms[failed[0]].get("cure", "") if failed else ""},
        )

    def _what_failed(self, failed: list[str], still_on: list[str], number: int) -> str:
        """:param still_on: why VMs could not be shut down. :param number: how many were to be saved."""
        if not failed:
            return f"{count(len(still_on))} could not be shut down: {'; '.join(why.rstrip('.') for why in still_on)}"
        first = self._vms[failed[0]]["msg"].rstrip(".")
        return f"{len(failed)} of {number} VMs could not be saved ({', '.join(failed)}). {failed[0]}: {first}"

    # --- before a guest is touched ---

    async def _plan(self) -> None:
        """Find the VMs, and have each one's save checked."""
        processes = list_processes()
        self._warnings += [f"Not every VM may be found: {process}" for process in list_doubtful()]
        running = await self._running(processes)
        self._targets = {
            target.names.own: target
            for target in self._asked_for(running)
            if is_selected(target.names, self.request.include, self.request.exclude)
        }
        names = list(self._targets)
        chosen = {process.pid for target in self._targets.values() for process in target.found}
        without_name = {process.pid for process in processes} - {
            each.pid for target in running for each in target.found
        }
        for process in processes:
            if process.pid not in chosen:
                nameless = process.pid in without_name
                self._unsaved.add(process, self._why_not(process, nameless), nameless=nameless)
        turns = self._turns = Turns(_PLANNED_AT_A_TIME)
        plans = await asyncio.gather(*(self._plan_one(turns, name) for name in names))
        for name, plan in zip(names, plans):
            if self._is_put_aside(name, plan):
                continue
            state = "failed" if plan["failed"] else "predicted" if plan["changed"] else "saved"
            self._vms[name] = {**plan, "name": name, "state": state}
        await self._unsaved.plan(turns, collections.Counter(process.name for process in processes))
        size = sum(plan.get("space_needed") or 0 for plan in plans)
        rates = read_rates()
        self._predicted = {
            "bytes": size,
            "save_seconds": seconds_for(size, rates.get("save")),
            "restore_seconds": seconds_for(size, rates.get("restore")),
        }

    async def _running(self, processes: list[QemuProcess]) -> list[_Target]:
        """The VMs that run, without those that have nothing by which they could be found again."""
        targets = []
        own_names = distinct_names(processes)
        alike: dict[str, list[QemuProcess]] = {}
        for process in processes:
            own, name = own_names[process.pid], process.name
            if name and not own:
                alike.setdefault(name, []).append(process)
                continue
            unit = await self._unit_of(process) if not own else ""
            own = own or label_of_unit(unit)
            # The process alone where nothing else tells it: what is started anew in its place is not known then.
            pid = None if process.uuid or unit else process.pid
            chosen = {"name": name or None, "uuid": process.uuid or None, "unit": unit or None, "pid": pid}
            if own:
                chosen = {"name": name} if own == name else {**chosen, "image_name": own}
                targets.append(_Target(names_of(process, own), chosen, (process,)))
        taken = {target.names.own for target in targets}
        for name, group in alike.items():
            own = name if name not in taken else f"{name} ({len(group)} VMs)"
            targets.append(_Target(VmNames(own, name), {"name": name}, tuple(group)))
        return sorted(targets, key=lambda target: target.names.own)

    @staticmethod
    async def _unit_of(process: QemuProcess) -> str:
        """The unit that starts a VM; empty where none does, or systemd cannot be asked."""
        with contextlib.suppress(UnitError):
            return await unit_of(process)
        return ""

    def _asked_for(self, running: list[_Target]) -> list[_Target]:
        """The VMs that are asked for, each once, whether they run or not."""
        if not self.request.vms:
            return [target for target in running if any(each.is_in_charge for each in target.found)]
        targets: list[_Target] = []
        for word in dict.fromkeys(self.request.vms):
            # What only one VM is called means that one, although another one has it as its name. Another user's may say
            # that it is called so.
            found = [target for target in running if target.names.own == word]
            found = found or [target for target in running if target.names.is_called(word)]
            trusted = [target for target in found if all(is_trusted(each.uid, None) for each in target.found)]
            targets += trusted or found or [self._not_running(word)]
        return targets

    def _not_running(self, word: str) -> _Target:
        """A VM that is asked for and does not run: it may be saved already."""
        selection = selection_of(word, self.request.save_dir)
        names = VmNames(word, selection.name or word, selection.uuid, selection.unit)
        chosen = {key: getattr(selection, key) or None for key in ("name", "uuid", "unit")}
        return _Target(names, chosen)

    async def _plan_one(self, turns: Turns, name: str) -> dict[str, t.Any]:
        return await outcome_of(turns.take(lambda: self._operation(name, True), self._timeout_of(name)), "")

    def _timeout_of(self, name: str) -> float:
        return self.request.timeout_of(self._targets[name].names)

    def _operation(self, name: str, check_mode: bool) -> SaveOperation:
        """The save of a VM, of those processes that were found at the run's begin while they are still there.

        A look at all processes for each VM takes longer than the save of a small one, where there are many. So one of
        the same name that was started since is not seen: what was planned is saved.
        """
        target = self._targets[name]
        are_same = bool(target.found) and all(read_process(process.pid) == process for process in target.found)
        request = self.request.of(target.names, check_mode, **target.chosen)
        return SaveOperation(request, target.found if are_same else None)

    def _is_put_aside(self, name: str, result: dict[str, t.Any]) -> bool:
        """Whether it is no failure that a VM was refused; it is then listed among the unsaved alone."""
        target = self._targets[name]
        error = result.get("error", "unexpected")
        is_asked_for = any(target.names.is_called(word) for word in self.request.vms)
        if not result["failed"] or not target.found or (error == GONE and is_asked_for):
            return False
        return self._unsaved.add(target.found[-1], result["msg"], error)

    def _why_not(self, process: QemuProcess, nameless: bool) -> str:
        """Why a VM that runs is not to be saved, as a clause."""
        if not process.is_in_charge:
            return f"it is another user's ({user_name(process.uid)}), who saves it himself, or root does"
        if nameless:
            return "it has no name, uuid or unit of its own by which it could be saved and found again"
        return "it is excluded" if not self.request.vms else "it is not among the VMs that are asked for"

    def _require_all(self) -> None:
        """:raises HostRunError: the host cannot be saved as it was asked for; nothing was touched."""
        told = []
        failed = [name for name, vm in self._vms.items() if vm["failed"]]
        if failed and (self.request.on_error != "continue" or self._interrupted):
            told += [f"{name}: {self._vms[name]['msg'].rstrip('.')}" for name in failed]
        if self.request.on_error != "continue":  # as many as there is room for; each looks for itself
            told += shortages(self._vms.values())
        told += self._unsaved.problems()
        if self.request.unsaved != "ignore":
            told += self._warnings
        elif not self.request.vms and "*" in self.request.include:
            told += [
                f"A QEMU without a name or uuid (pid {process.pid}) runs here and would not be saved: start it with"
                " -name, end it, or list the VMs to save"
                for process in self._unsaved.nameless
                if process.is_in_charge
            ]
        if told:
            raise HostRunError(
                ". ".join(told),
                cure="Remove the reason, or leave the VM out, and run the task again",
                situation=self.situation,
                result=self._result(""),
            )

    # --- the saves ---

    async def _save(self, name: str) -> None:
        """One VM's save, when its turn comes."""
        turns = t.cast(Turns, self._turns)
        self.situation = Situation("Some of the VMs may have been saved")
        result = await outcome_of(turns.take(lambda: self._operation(name, False), self._timeout_of(name)), "")
        if result.get("error") == GONE and self._is_put_aside(name, result):
            # It has shut down since the plan.
            del self._vms[name]
            self._journal.say(f"{name}: {result['msg']}")
            return
        self._vms[name] = {**result, "name": name, "state": state_of(result, "saved")}
        if result["failed"]:
            self._journal.complain(f"{name}: {result['msg']}")
            if self.request.on_error != "continue":
                turns.close(f"{name} could not be saved")
        else:
            self._journal.say(f"{name}: {result['msg']}")

    async def _roll_back(self, names: list[str], may_shut_down: bool) -> str:
        """Start those that this run has shut down, and restore those that it has saved; what was reached, in words.

        :param may_shut_down: whether a VM was asked to shut down in vain, and may still do so.
        """
        saved = [name for name in names if self._is_to_be_put_back(self._vms[name])]
        turns = t.cast(Turns, self._turns)
        turns.reopen()
        off = await self._unsaved.start_again(turns)
        await asyncio.gather(*(self._put_back(turns, name) for name in saved))
        told = []
        left = [name for name in saved if self._vms[name]["rollback"]["failed"]]
        if left:
            reasons = "; ".join(f"{name}: {self._vms[name]['rollback']['msg'].rstrip('.')}" for name in left)
            told.append(f"Not all that were saved could be put back, and their images are kept: {reasons}")
        elif saved:
            told.append(f"The {count(len(saved))} that {_was(saved)} saved before {_was(saved)} put back")
        else:
            told.append("No other VM had been saved")
        if off:
            reasons = "; ".join(why.rstrip(".") for why in off)
            told.append(f"Not all that were shut down could be started again: {reasons}")
        elif self._unsaved.touched:
            told.append(f"The {count(self._unsaved.touched)} that had shut down: started again, from the disks")
        others = [
            f"{name} itself {_GUEST_NOW.get(vm['guest'], 'is not known to run')}"
            for name in names
            if (vm := self._vms[name])["failed"] and name not in saved and vm["guest"] != "running"
        ]
        if not (left or others or may_shut_down or self._unsaved.touched):
            told[-1] += ", the host is as it was"
        told += others
        return ". ".join(told)

    def _is_to_be_put_back(self, vm: dict[str, t.Any]) -> bool:
        """Whether a guest is in its image by this run, also where its save has failed after that."""
        if vm["failed"]:
            return vm.get("guest") in ("saved", "paused") and vm["image"]["state"] == "complete"
        return vm["state"] == "saved" and bool(vm["changed"])

    async def _put_back(self, turns: Turns, name: str) -> None:
        path = self._vms[name]["image"].get("path") or image_path(None, self.request.save_dir, name)
        chosen = self._targets[name].chosen
        request = RestoreRequest(
            name=chosen.get("name"),
            uuid=chosen.get("uuid"),
            unit=chosen.get("unit"),
            qmp_socket=None,
            path=path,
            save_dir=self.request.save_dir,
        )
        result = await outcome_of(
            turns.take(lambda: RestoreOperation(request), self._timeout_of(name)), f"{name} is back"
        )
        self._vms[name]["rollback"] = result
        if result["failed"]:
            self._journal.complain(f"{name}: {result['msg']}")
        else:
            if not self._vms[name]["failed"]:
                self._vms[name]["state"] = "restored"
            self._journal.say(f"{name}: {result['msg']}")

    # --- the result ---

    def _guests(self) -> str:
        """The word for how all guests are, where it is one."""
        words = {
            vm["guest"] if vm["failed"] else {"saved": "saved", "restored": "running"}.get(vm["state"], "unknown")
            for vm in self._vms.values()
        }
        return words.pop() if len(words) == 1 else "unknown"

    def _prediction(self) -> str:
        """Check mode's message."""
        size = self._predicted["bytes"]
        known = [
            f"about {seconds:g} s to {word} them"
            for word in ("save", "restore")
            if (seconds := self._predicted[f"{word}_seconds"]) is not None
        ]
        left = sum(vm["failed"] for vm in self._vms.values())
        return (
            f"{count(len(self._vms) - left)} would be saved, {size / 2**20:.0f} MiB at most,"
            f" {', '.join(known) or 'nothing was measured yet to predict seconds'}"
            + (f"; {count(self._unsaved.to_go)} would be shut down" if self._unsaved.to_go else "")
            + (f"; {count(left)} cannot be saved" if left else "")
        )

    def _success(self, names: list[str], took: float) -> str:
        changed = [name for name in names if self._vms[name]["changed"]]
        size = sum(self._vms[name]["image"]["allocated"] or 0 for name in changed)
        left = len(self._vms) - len(names)
        if not names:
            what = "No VM is to be saved"
        elif not changed:
            what = f"{count(len(names))} {_was(names)} saved already"
        else:
            what = f"{count(len(changed))} {_was(changed)} saved in {took:.1f} s, {size / 2**20:.0f} MiB on disk"
        gone = self._unsaved.to_go
        what += f"; {count(gone)} {'was' if gone == 1 else 'were'} shut down" if gone else ""
        return what + (f"; {count(left)} could not be saved" if left else "")

    def _result(self, msg: str) -> dict[str, t.Any]:
        result = host_result(list(self._vms.values()), self._clock)
        return {
            **result,
            "changed": result["changed"] or self._unsaved.changes(self.request.check_mode),
            "msg": one_line(msg),
            "unsaved": self._unsaved.as_result(),
            "predicted": self._predicted,
            "warnings": list(dict.fromkeys([*self._at_work, *self._warnings, *result["warnings"]])),
        }


def _was(names: t.Sized) -> str:
    return "was" if len(names) == 1 else "were"
