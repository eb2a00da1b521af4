# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The VMs that run on this host, as far as each can be asked: all at the same time, and never longer than is allowed.

What a command line says is told of every one. A VM that cannot be asked is listed with the reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._cancellation import in_thread
from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    CommandError,
    ImageError,
    ImageNotFoundError,
    MonitorBusyError,
    MonitorError,
    MonitorForeignError,
    MonitorHumanError,
    MonitorLostError,
    MonitorMissingError,
    MonitorProtocolError,
    RequestError,
    UnitError,
    VmNotFoundError,
    VmopsError,
    one_line,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.compressor import COMPRESSORS, require_tool
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_file import read_image_head
from ansible_collections.vmops.qemu.plugins.module_utils._image.info import directory_info
from ansible_collections.vmops.qemu.plugins.module_utils._image.names import image_path
from ansible_collections.vmops.qemu.plugins.module_utils._launch import launch_record, launch_result, recorded_identity
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import command_line, systemd
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.identity import connect_by_process, details, is_trusted
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.migration import query_state, read_support
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.monitor import Monitor
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import (
    QemuProcess,
    list_doubtful,
    list_processes,
    resident_bytes,
    running_note,
)
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.runner import how_to_add_a_monitor
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.selection import Selection
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.unit import VmUnit, read_vm_unit
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.vm import read_vm
from ansible_collections.vmops.qemu.plugins.module_utils._situation import Situation
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.start import start_problems
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.survey import survey
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.verdict import Problem
from ansible_collections.vmops.qemu.plugins.module_utils._user import user_name

#: Seconds until a monitor must have greeted. A free one does at once; the others are busy for longer than this, too.
_GREETING_TIMEOUT = 3.0

#: How each error of a monitor is told. The more special ones come first.
_MONITOR_STATES = (
    (VmNotFoundError, "none"),
    (MonitorHumanError, "none"),
    (MonitorBusyError, "busy"),
    (MonitorMissingError, "missing"),
    (MonitorForeignError, "foreign"),
    (MonitorProtocolError, "invalid"),
    (MonitorLostError, "lost"),
    (CommandError, "answers"),
    (MonitorError, "denied"),
)


@dataclasses.dataclass(frozen=True)
class VmInfoRequest:
    """The options of ``qemu_vm_info``, as its documentation describes them."""

    name: list[str] | None
    save_dir: str
    qmp_socket: list[str] | None = None
    uuid: list[str] | None = None
    unit: list[str] | None = None
    pid: list[int] | None = None
    timeout: float = 10.0

    def is_asked_for(self, process: QemuProcess) -> bool:
        """Whether each filter lets a VM through.

        :raises RequestError: one of them can be true of no VM.
        """
        if self.name is not None and process.name not in self.name:
            return False
        addresses = [socket if ":" in socket else os.path.abspath(socket) for socket in self.qmp_socket or ()]
        if self.qmp_socket is not None and set(addresses).isdisjoint(process.addresses):
            return False
        filters: list[list[Selection]] = []
        if self.uuid is not None:
            filters.append([Selection.of(None, uuid, None, None) for uuid in self.uuid])
        if self.unit is not None:
            filters.append([Selection.of(None, None, unit, None) for unit in self.unit])
        if self.pid is not None:
            filters.append([Selection.of(None, None, None, pid) for pid in self.pid])
        return all(any(selection.find([process]) for selection in selections) for selections in filters)


class VmInfoOperation:
    """One look at the host; ``situation`` is what an error says of the guests, whatever each of them does."""

    def __init__(self, request: VmInfoRequest) -> None:
        self.request = request
        self.situation = Situation("No guest was touched")
        self.subject = "the VMs of this host"
        self.warnings: list[str] = []

    async def run(self) -> dict[str, t.Any]:
        """Look.

        :returns: the module's return values.
        """
        every = list_processes()
        processes = [process for process in every if self.request.is_asked_for(process)]
        self.warnings += [f"Not every VM may be listed: {process}" for process in list_doubtful()]
        images = await in_thread(self._read_images)
        units = await self._read_units(processes)
        vms = [_Vm(process, unit, images) for process, unit in zip(processes, units)]
        tasks = [asyncio.ensure_future(vm.ask()) for vm in vms]
        if tasks:
            _done, pending = await asyncio.wait(tasks, timeout=self.request.timeout)
            for task in pending:
                task.cancel()
            for vm, task, outcome in zip(vms, tasks, await asyncio.gather(*tasks, return_exceptions=True)):
                if task in pending and isinstance(outcome, asyncio.CancelledError):
                    vm.give_up(f"it did not answer within {self.request.timeout:g} seconds")
                elif isinstance(outcome, Exception):
                    vm.fail(outcome)
                elif isinstance(outcome, BaseException):
                    raise outcome
        results = sorted((vm.result for vm in vms), key=lambda result: (result["name"], result["pid"]))
        msg = _describe(results) if results or not every else f"{_describe(results)}. {running_note(details)}"
        return {"changed": False, "vms": results, "msg": msg, "warnings": self.warnings}

    def _read_images(self) -> list[dict[str, t.Any]]:
        """What is in the directory for save images; one that cannot be read is no reason not to list the VMs."""
        try:
            return directory_info(os.path.abspath(self.request.save_dir))
        except ImageNotFoundError:
            return []
        except ImageError as exc:
            self.warnings.append(f"The save images are not known: {exc.what}")
            return []

    async def _read_units(self, processes: list[QemuProcess]) -> list[VmUnit]:
        """The unit of each QEMU."""
        try:
            names = {systemd.unit_of_process(process.pid) for process in processes} if systemd.is_running() else set()
            known = await systemd.read_units(*sorted(names))
            return [await read_vm_unit(process, known) for process in processes]
        except UnitError as exc:
            self.warnings.append(f"The systemd units of the VMs are not known: {exc.what}")
            return [VmUnit("", "systemd could not be asked")] * len(processes)


class _Vm:
    """One VM, and what is known of it so far."""

    def __init__(self, process: QemuProcess, unit: VmUnit, images: list[dict[str, t.Any]]) -> None:
        self.process = process
        self.unit = unit
        self.images = images
        words = process.configuration.words
        #: The element of ``vms``; at first what the configuration and /proc say.
        self.result: dict[str, t.Any] = {
            "name": process.name,
            "uuid": process.uuid,
            "pid": process.pid,
            "user": user_name(process.uid),
            "run_state": None,
            "memory": command_line.memory_size(words),
            "resident": resident_bytes(process.pid),
            "vcpus": command_line.vcpu_count(words),
            "machine": command_line.machine_type(words) or None,
            "qemu_version": None,
            "qmp_socket": _shown(next(iter(process.qmp_addresses), None)),
            "monitor": "busy",
            "reason": "",
            "unit": unit.name or None,
            "launch": {},
            "problems": None,
            "save_support": None,
            "blockers": None,
            "image": None,
        }

    async def ask(self) -> None:
        """Ask QEMU for the rest."""
        self.result["launch"] = self._launch(start_problems(self.process, self.unit))
        self.result["image"] = self._find_image()
        try:
            monitor = await connect_by_process(self.process, _GREETING_TIMEOUT)
            async with monitor:
                self.result.update(await self._answers(monitor))
        except VmopsError as exc:
            states = (state for error, state in _MONITOR_STATES if isinstance(exc, error))
            self.result["monitor"] = next(states, "invalid")
            # Where it has no monitor, nothing but its cure is of use.
            advice = f"{exc.what}. {exc.cure}" if self.result["monitor"] == "none" else exc.what
            self.result["reason"] = one_line(advice)
        self.result["image"] = self._find_image()

    def give_up(self, reason: str) -> None:
        """It took too long."""
        self.result["monitor"], self.result["reason"] = "busy", reason

    def fail(self, error: Exception) -> None:
        """What nobody has thought of, which may be of its user's making, is told of it alone."""
        self.result["monitor"] = "invalid"
        self.result["reason"] = one_line(
            f"met an unexpected error, please report it: {type(error).__name__}: {str(error)[:300]}"
        )

    async def _answers(self, monitor: Monitor) -> dict[str, t.Any]:
        """What QEMU says of its VM."""
        vm = await read_vm(monitor)
        support = await read_support(monitor)
        state = await query_state(monitor)
        blockers = list(state.get("blocked-reasons", []))
        surroundings = await survey(monitor, vm.process, self.unit, support.mapped_ram)
        return {
            "name": vm.name,
            "uuid": vm.uuid,
            "run_state": vm.run_state,
            "memory": vm.memory,
            "vcpus": vm.vcpus,
            "machine": vm.machine,
            "qemu_version": support.version,
            "qmp_socket": None if monitor.is_temporary else _shown(monitor.address),
            "monitor": "human" if monitor.is_temporary else "answers",
            "reason": self._reason(monitor),
            "launch": self._launch(surroundings.problems),
            "problems": [problem.as_result() for problem in surroundings.problems],
            "save_support": {
                "mapped_ram": support.mapped_ram,
                "direct_io": support.direct_io,
                "suspended": support.suspended,
                "formats": _formats(support.mapped_ram) if monitor.passes_descriptors else [],
            },
            "blockers": blockers,
        }

    def _reason(self, monitor: Monitor) -> str:
        """What there is to say of a monitor that answers."""
        if monitor.is_temporary:
            return f"{monitor.shown_address} is a human monitor; a QMP monitor is opened through it for each run"
        if not monitor.passes_descriptors:
            advice = how_to_add_a_monitor(self.process)
            return one_line(f"no image can be passed through {monitor.shown_address}. {advice}")
        return ""

    def _launch(self, problems: t.Sequence[Problem]) -> dict[str, t.Any]:
        """The ``launch`` of the result."""
        return launch_result(launch_record(self.process, self.unit, problems), self.unit)

    def _find_image(self) -> dict[str, t.Any] | None:
        """The VM's image: by uuid where both have one, else by name; of several its last save.

        Of copies of that, and beside partial images, it is the one that a save would make.
        """
        name, uuid = self.result["name"], self.result["uuid"]
        found = [
            image
            for image in self.images
            if (image["uuid"] == uuid if uuid and image["uuid"] else bool(name) and image["name"] == name)
            and self._may_be_of_its_user(image)
        ]
        if not found:
            return None
        usual = ""
        with contextlib.suppress(RequestError):  # a name that cannot stand in a path
            usual = image_path(None, os.path.dirname(found[0]["path"]), name)
        image = max(
            found,
            key=lambda image: (
                image["superseded_by"] is None,
                image["path"].startswith(usual) and bool(usual),
                bool(image["complete"]),
                image["mtime"] or 0,
            ),
        )
        return {key: image[key] for key in ("path", "state", "saved_at", "checkpoint")}

    def _may_be_of_its_user(self, image: dict[str, t.Any]) -> bool:
        """Whether an image does not record that another user ran the VM: anyone's may have its name and UUID."""
        if not image["launch_recorded"] or is_trusted(self.process.uid, None):
            return True
        with contextlib.suppress(ImageError):
            return is_trusted(self.process.uid, recorded_identity(read_image_head(image["path"]).domain()))
        return False


def _formats(mapped_ram: bool) -> list[str]:
    """The formats in which it can be saved on this host."""
    formats = ["sparse", "raw"] if mapped_ram else ["raw"]
    for image_format in COMPRESSORS:
        with contextlib.suppress(RequestError):
            require_tool(image_format)
            formats.append(image_format.label)
    return formats


def _shown(address: str | None) -> str | None:
    """An address in a form that can be read: one of the abstract namespace begins with "@"."""
    return address.replace("\0", "@") if address else None


def _describe(results: list[dict[str, t.Any]]) -> str:
    """All of them in a line for people."""
    told = [
        f"{vm['name'] or 'pid ' + str(vm['pid'])} {vm['run_state'] or 'cannot be asked (' + vm['monitor'] + ')'}"
        for vm in results
    ]
    return f"{len(results)} VM{'' if len(results) == 1 else 's'}" + (f": {', '.join(told)}" if told else "")
