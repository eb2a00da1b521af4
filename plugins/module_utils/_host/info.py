# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What stands in the way of saving and restoring the VMs of this host, and how to remove it.

Nothing is found out here that a save, a restore or a look at the VMs does not know; it is put together.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._cancellation import in_thread
from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    ConflictError,
    ImageError,
    ImageNotFoundError,
    UnitError,
)
from ansible_collections.vmops.qemu.plugins.module_utils._file_system import file_system, lasting
from ansible_collections.vmops.qemu.plugins.module_utils._host.own_services import (
    BOOT_RESTORE,
    SHUTDOWN_SAVE,
    is_installed,
    is_to_be_stopped,
    restore_has_failed,
    starts_at_boot,
)
from ansible_collections.vmops.qemu.plugins.module_utils._host.shut_down import still_down, still_on
from ansible_collections.vmops.qemu.plugins.module_utils._host.table import problem_table
from ansible_collections.vmops.qemu.plugins.module_utils._image.info import directory_info
from ansible_collections.vmops.qemu.plugins.module_utils._image.place import (
    free_bytes,
    nearest_existing,
    require_writable_directory,
)
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import systemd
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.manager import HOST, Manager, shown
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import QemuProcess, list_processes
from ansible_collections.vmops.qemu.plugins.module_utils._safe_path import why_unsafe_directory
from ansible_collections.vmops.qemu.plugins.module_utils._shutdown.record import ShutDownVm, read_all
from ansible_collections.vmops.qemu.plugins.module_utils._situation import Situation
from ansible_collections.vmops.qemu.plugins.module_utils._user import user_name
from ansible_collections.vmops.qemu.plugins.module_utils._vm_info import VmInfoOperation, VmInfoRequest

#: By the state of a VM's monitor, how one gets to talk to it.
_MONITOR_CURES: t.Mapping[str, str] = {
    "busy": "Disconnect the other client of its monitor, or give its QEMU a second QMP server for this collection",
    "missing": "Start its QEMU with -qmp unix:PATH,server=on,wait=off, at a path that nobody removes while it runs",
    "none": "Start its QEMU with -qmp unix:PATH,server=on,wait=off",
    "denied": "Run the task as root (become)",
    "foreign": "See which process answers at its socket, and give each QEMU a path of its own",
    "invalid": "See what listens at its socket: it must be a server of -qmp, not of -monitor or -serial",
    "lost": "It has ended in the meantime: look again",
}

#: The services of the role ``host_setup``: kind, what it means that one is missing, and the variable that installs it.
_SERVICES = (
    (
        BOOT_RESTORE,
        "boot_restore",
        "nothing restores saved VMs when the host boots: they stay saved until a task restores them",
        "host_setup_boot_restore",
    ),
    (
        SHUTDOWN_SAVE,
        "shutdown_save",
        "nothing saves the running VMs when the host shuts down by itself",
        "host_setup_shutdown_save",
    ),
)


@dataclasses.dataclass(frozen=True)
class HostInfoRequest:
    """The options of ``qemu_host_info``, as its documentation describes them."""

    save_dir: str
    timeout: float = 10.0


@dataclasses.dataclass(frozen=True)
class HostProblem:
    """One thing that stands in the way."""

    #: The VM's name, the path of an image or directory, or a service; ``host`` where it is none of these.
    subject: str
    #: A word that a program can read; the documentation of ``qemu_host_info`` lists them.
    kind: str
    #: What was found, as a clause.
    what: str
    #: What to do about it, as a full sentence without the final full stop.
    cure: str
    #: Whether a save or a restore would be refused or fail, or what was saved could be lost.
    blocks: bool = True


class HostInfoOperation:
    """One look at the host; nothing is touched."""

    def __init__(self, request: HostInfoRequest) -> None:
        self.request = dataclasses.replace(request, save_dir=os.path.abspath(request.save_dir))
        self.situation = Situation("No guest was touched")
        self.subject = "this host"

    async def run(self) -> dict[str, t.Any]:
        """Look.

        :returns: the module's return values.
        """
        save_dir = self.request.save_dir
        look = VmInfoOperation(VmInfoRequest(None, save_dir, timeout=self.request.timeout))
        vms = (await look.run())["vms"]
        images, problems = await in_thread(lambda: _images(save_dir))
        place = await in_thread(lambda: _place(save_dir))
        needed = sum(_most_needed(vm) for vm in vms)
        found = [
            *_user_problems(),
            *(problem for vm in vms for problem in vm_problems(vm)),
            *problems,
            *image_problems(images, {vm[key] for vm in vms for key in ("name", "uuid")}),
            *await in_thread(lambda: shut_down_problems(list_processes(), images)),
            *place.problems,
            *space_problems(save_dir, place.free, needed),
            *await _ask_services(),
        ]
        # What stands in the way comes first, and then VM by VM as it was found.
        found.sort(key=lambda problem: not problem.blocks)
        blocking = sum(problem.blocks for problem in found)
        return {
            "changed": False,
            "ready": not blocking,
            "problems": [dataclasses.asdict(problem) for problem in found],
            "table": problem_table([dataclasses.asdict(problem) for problem in found]),
            "host": {
                "python": platform.python_version(),
                "qemu_versions": sorted({vm["qemu_version"] for vm in vms if vm["qemu_version"]}),
                "vms": len(vms),
                "images": len(images),
                "save_dir": save_dir,
                "file_system": place.file_system,
                "file_system_type": place.file_system_type,
                "space_free": place.free,
                "space_needed": needed,
            },
            "msg": _describe(len(vms), len(images), blocking, len(found) - blocking),
            "warnings": look.warnings,
        }


# --- VMs ----------------------------------------------------------------------------------------------------------


def vm_problems(vm: t.Mapping[str, t.Any]) -> list[HostProblem]:
    """What stands in the way of a VM that runs.

    :param vm: an element of the ``vms`` of ``qemu_vm_info``.
    """
    subject = vm["name"] or f"pid {vm['pid']}"
    found = []
    if not (vm["name"] or vm["uuid"] or (vm["unit"] and vm["launch"].get("how") != "command")):
        found.append(
            HostProblem(
                subject,
                "name",
                "its QEMU has no name, uuid or unit of its own, by which its image would be known again",
                "Start its QEMU with -name or -uuid",
            )
        )
    if vm["run_state"] is None:
        cure = _MONITOR_CURES.get(vm["monitor"], "See why its monitor does not answer")
        found.append(HostProblem(subject, "monitor", f"it cannot be asked ({vm['monitor']}): {vm['reason']}", cure))
    found += [
        HostProblem(subject, "blocker", f"its QEMU refuses to save it: {blocker}", "Remove what QEMU names from the VM")
        for blocker in vm["blockers"] or ()
    ]
    found += [HostProblem(subject, **problem) for problem in vm["problems"] or ()]
    if vm["run_state"] == "suspended" and not vm["save_support"]["suspended"]:
        found.append(
            HostProblem(
                subject,
                "sleeping",
                f"its guest sleeps (S3), and QEMU {vm['qemu_version']} does not keep that in an image",
                "Wake the guest (system_wakeup), and have it not sleep before a save",
            )
        )
    formats = (vm["save_support"] or {"formats": None})["formats"]
    if formats == []:
        found.append(
            HostProblem(
                subject,
                "monitor_remote",
                "its monitor is no UNIX socket, over which QEMU could be given an image",
                "Start its QEMU with -qmp unix:PATH,server=on,wait=off",
            )
        )
    elif formats and "sparse" not in formats:
        found.append(
            HostProblem(
                subject,
                "no_mapped_ram",
                f"its QEMU {vm['qemu_version']} cannot write the sparse format: it is saved in the raw one, slower",
                "Start the VM with QEMU 9.1 or later",
                blocks=False,
            )
        )
    image = vm["image"] or {}
    if image.get("state") == "complete" and vm["run_state"] in ("running", "suspended"):
        what = (
            f"its checkpoint {image['path']} lies where its next save would be, which does not replace it"
            if image["checkpoint"]
            else f"it runs beside its image {image['path']}, which a save does not replace, and a restore refuses"
        )
        cure = "Remove the image (qemu_save_image with state: absent), or save with force"
        found.append(HostProblem(subject, "image_beside", what, cure))
    return found


def _most_needed(vm: t.Mapping[str, t.Any]) -> int:
    """The bytes that a VM's image takes at most."""
    return min((size for size in (vm["memory"], vm["resident"]) if size), default=0)


def _user_problems() -> list[HostProblem]:
    if os.geteuid() == 0:
        return []
    return [
        HostProblem(
            "host",
            "user",
            f"it was looked at as {user_name(os.geteuid())}, who can ask and save his own VMs alone",
            "Run the task as root (become), unless these are all that matter",
            blocks=False,
        )
    ]


# --- images -------------------------------------------------------------------------------------------------------


def _images(save_dir: str) -> tuple[list[dict[str, t.Any]], list[HostProblem]]:
    """What is in the directory, and why that is not known."""
    try:
        return directory_info(save_dir), []
    except ImageNotFoundError:
        return [], []
    except ImageError as error:
        return [], [HostProblem(save_dir, "save_dir_unreadable", error.what, error.cure or "Run the task as root")]


def image_problems(images: t.Iterable[t.Mapping[str, t.Any]], running: t.Container[str]) -> list[HostProblem]:
    """What stands in the way of restoring what is saved.

    :param images: those of a directory, as ``directory_info`` returns them.
    :param running: the names of VMs that have a QEMU.
    """
    found = []
    for image in images:
        subject, name = image["path"], image["name"] or "a VM whose name is not known"
        if image["superseded_by"]:
            found.append(
                HostProblem(
                    subject,
                    "image_superseded",
                    f"it is an older save of {name}, and no restore uses it ({image['superseded_by']} is the last one)",
                    "Remove it when you do not need it any more",
                    blocks=False,
                )
            )
        elif image["copy_of"]:
            continue
        elif image["state"] == "invalid":
            found.append(
                HostProblem(
                    subject,
                    "image_invalid",
                    f"nothing can be restored from it: {'; '.join(image['problems'])}",
                    "Look at it with qemu_save_image_info, and remove it if its VM is started from its disks",
                )
            )
        elif image["state"] == "partial":
            if image["name"] not in running:
                found.append(
                    HostProblem(
                        subject,
                        "image_partial",
                        f"the save of {name} never came to its end, and no QEMU holds its guest any more",
                        "Remove it if its VM is started from its disks",
                    )
                )
        elif image["state"] == "complete" and image["restorable"] is False:
            found += _not_restorable(image)
    return found


def _not_restorable(image: t.Mapping[str, t.Any]) -> list[HostProblem]:
    """A complete image from which its VM cannot be started as it is recorded."""
    blocking = [problem for problem in image["restore_problems"] or () if problem["blocks"]]
    if not blocking:
        why = (image["launch"] or {}).get("reason") or "it does not record how its QEMU is started"
        cure = (
            "Look at what it records, and vouch for it (qemu_save_image with vouch: true)"
            if image["vouched"] is False
            else "Start a QEMU for it by hand, and restore with launch: attach"
        )
        return [HostProblem(image["path"], "image_not_restorable", why, cure)]
    return [
        HostProblem(image["path"], "image_not_restorable", f"{problem['kind']}: {problem['what']}", problem["cure"])
        for problem in blocking
    ]


# --- VMs that were shut down --------------------------------------------------------------------------------------


def shut_down_problems(
    processes: t.Sequence[QemuProcess], images: t.Sequence[t.Mapping[str, t.Any]]
) -> list[HostProblem]:
    """The VMs that a run over all VMs of the host has shut down, and that nothing has started again.

    The parameters are those of ``still_down``.
    """
    try:
        kept = read_all()
        down = [_shut_down(vm) for vm in still_down(kept, processes, images)]
        return down + [_still_on(vm) for vm in still_on(kept, processes)]
    except ConflictError as error:
        return [HostProblem("host", "shut_down", error.what, error.cure, blocks=False)]


def _shut_down(vm: ShutDownVm) -> HostProblem:
    what = f"it was shut down with its host in mind ({vm.when}) and was not started again"
    cure = "Run qemu_managed_restore, which starts it"
    if not vm.ended:
        what = f"it was asked to shut down ({vm.when}), does not run, and the run that asked has not seen its end"
        cure = "Start it by hand if it is to run here, which no run does by itself"
    return HostProblem(vm.name, "shut_down", what, f"{cure}; or remove {vm.path} if it is to stay off", blocks=False)


def _still_on(vm: ShutDownVm) -> HostProblem:
    return HostProblem(
        vm.name,
        "shutdown_pending",
        f"it was asked to shut down ({vm.when}) and still runs; if it shuts down yet, no run starts it again",
        f"See whether it is shutting down; remove {vm.path} if it is to go on",
        blocks=False,
    )


# --- where they lie -----------------------------------------------------------------------------------------------


@dataclasses.dataclass
class _Place:
    """What is known of the directory for images, or of that in which it would be made."""

    file_system: str = ""
    file_system_type: str = ""
    free: int | None = None
    problems: list[HostProblem] = dataclasses.field(default_factory=list)


def _place(save_dir: str) -> _Place:
    place = _Place()

    def add(kind: str, what: str, cure: str, blocks: bool = True) -> None:
        place.problems.append(HostProblem(save_dir, kind, what, cure, blocks))

    existing = nearest_existing(save_dir)
    fate = lasting(existing)
    place.file_system, place.file_system_type = file_system(existing), fate.kind
    if existing != save_dir:
        add(
            "save_dir_missing",
            "the directory for save images is not there; the first save makes it, wherever that is mounted then",
            "Run the role host_setup, with host_setup_save_mount where it is to lie on a file system of its own",
            blocks=False,
        )
    try:
        place.free = free_bytes(existing)
        require_writable_directory(save_dir, may_be_made=True)
    except ImageError as error:
        add("save_dir_closed", error.what, error.cure or "See that the directory can be written to")
    try:
        unsafe = why_unsafe_directory(existing, {0, os.geteuid()})
    except OSError as error:
        unsafe = f"it cannot be looked at: {error.strerror}"
    if unsafe:
        add(
            "save_dir_unsafe",
            f"others could put images there, and nothing is restored from it: {unsafe}",
            "Give it and all directories above it to root, with no right to write for others, or choose another one",
        )
    if fate.lasts is False:
        add(
            "save_dir_volatile",
            f"it lies in memory ({fate.kind}, mounted on {fate.place}): a reboot loses all images",
            "Choose a directory on a disk (vmops_qemu_save_dir)",
        )
    elif fate.lasts is None:
        add(
            "save_dir_uncertain",
            f"whether a reboot keeps what is in it is not known ({fate.kind or 'a file system that cannot be told'},"
            f" mounted on {fate.place}): what that writes to is out of sight",
            "See that it is on a disk, or mount one there, or choose a directory on one (vmops_qemu_save_dir)",
            blocks=fate.is_refused,
        )
    return place


def space_problems(save_dir: str, free: int | None, needed: int) -> list[HostProblem]:
    """Whether the images of all VMs that run fit."""
    if free is None or needed <= free:
        return []
    return [
        HostProblem(
            save_dir,
            "space",
            f"{free // 2**20} MiB are free, and the images of all VMs that run may take {needed // 2**20} MiB",
            f"Free {-(-(needed - free) // 2**20)} MiB, or choose another directory (vmops_qemu_save_dir)",
        )
    ]


# --- services -----------------------------------------------------------------------------------------------------


async def _ask_services() -> list[HostProblem]:
    """What the services of the role ``host_setup`` leave to be done."""
    if not systemd.is_running():
        return []
    whose = Manager(os.geteuid()) if os.geteuid() else HOST
    try:
        units = await systemd.read_units(*(whose.named(name) for name, _kind, _what, _variable in _SERVICES))
    except UnitError as error:
        return [
            HostProblem("host", "systemd", f"systemd cannot be asked: {error.what}", "See why", blocks=False),
        ]
    return service_problems(units.values())


def service_problems(units: t.Iterable[systemd.Unit]) -> list[HostProblem]:
    """What these services, in the order of ``_SERVICES``, leave to be done."""
    found = []
    for unit, (name, kind, what, variable) in zip(units, _SERVICES):

        def add(state: str, what: str, cure: str, name: str = name, kind: str = kind) -> None:
            found.append(HostProblem(name, f"{kind}_{state}", what, cure, blocks=False))

        if not is_installed(unit):
            add("missing", what, f"Set {variable}: true for the role host_setup, if that is wanted")
            continue
        if unit.active_state == "failed" or (name == BOOT_RESTORE and restore_has_failed(unit, images_known=True)):
            add(
                "failed",
                "its last run did not do all that it should"
                if unit.active_state == "failed"
                else "this boot did not begin it: what it needs, such as a mount, was not there",
                f"Read what it says ({shown(unit.name, '-u', 'journalctl')}), remove the reason, and start it again",
            )
        elif name == SHUTDOWN_SAVE and not is_to_be_stopped(unit):
            state = unit.active_state if unit.load_state == "loaded" else unit.load_state
            add(
                "inactive",
                f"it does not run ({state}), and {what}",
                f"Start it ({shown(unit.name, 'start')}), or run the role host_setup again",
            )
        if not starts_at_boot(unit):
            add(
                "disabled",
                f"it is {unit.file_state or unit.load_state}, and not started at the next boot: from then on {what}",
                f"Set {variable}: true for the role host_setup, and run it again; or remove it with {variable}: false",
            )
    return found


def _describe(vms: int, images: int, blocking: int, others: int) -> str:
    """It in a line for people."""

    def count(number: int, thing: str) -> str:
        return f"{number} {thing}{'' if number == 1 else 's'}"

    told = f"{count(vms, 'VM')} and {count(images, 'image')}: "
    if not blocking:
        return told + "nothing stands in the way" + (f"; {count(others, 'remark')}" if others else "")
    return told + count(blocking, "problem") + " in the way" + (f", and {count(others, 'remark')}" if others else "")
