# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which images of a directory are restored, in which order, and which are not."""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._host.words import selection_of
from ansible_collections.vmops.qemu.plugins.module_utils._image.last_save import why_left_alone
from ansible_collections.vmops.qemu.plugins.module_utils._image.lookup import target_of, unit_of
from ansible_collections.vmops.qemu.plugins.module_utils._image.names import image_path, vm_label
from ansible_collections.vmops.qemu.plugins.module_utils._names import (
    VmNames,
    group_of,
    is_selected,
    label_of_unit,
    options_of,
)
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.selection import Selection
from ansible_collections.vmops.qemu.plugins.module_utils._restore.request import RestoreRequest
from ansible_collections.vmops.qemu.plugins.module_utils._shutdown.record import ShutDownVm
from ansible_collections.vmops.qemu.plugins.module_utils._shutdown.relation import later_image, why_not_restored


@dataclasses.dataclass(frozen=True)
class HostRestoreRequest:
    """The options of ``qemu_managed_restore``, as its documentation describes them."""

    save_dir: str
    vms: list[str]
    include: list[str]
    exclude: list[str]
    #: ``managed`` or ``all``.
    images: str
    #: The groups, each as the shell patterns of its VMs' names; VMs that match none come last, together.
    order: list[list[str]]
    parallel: int
    #: The fields of a ``RestoreRequest`` for all VMs, and those that are others for some, as
    #: ``options_of`` takes them; among them are ``timeout`` and ``health_check_timeout``, in seconds, and
    #: ``health_check``.
    common: dict[str, t.Any]
    by_vm: dict[str, dict[str, t.Any]]
    check_mode: bool

    def option(self, names: VmNames, option: str) -> t.Any:
        """One option of one VM."""
        return options_of(names, self.common, self.by_vm)[option]

    def of(self, task: RestoreTask) -> RestoreRequest:
        """What is asked for of one VM."""
        options = options_of(task.names, self.common, self.by_vm)
        for of_the_host in ("timeout", "health_check", "health_check_timeout"):
            del options[of_the_host]
        return RestoreRequest(
            name=task.chosen.name or None,
            uuid=task.chosen.uuid or None,
            unit=task.chosen.unit or None,
            qmp_socket=None,
            path=task.path,
            save_dir=self.save_dir,
            check_mode=self.check_mode,
            **options,
        )


@dataclasses.dataclass(frozen=True)
class RestoreTask:
    """One VM to restore, and its image."""

    #: What the image at the path must hold: that which it says.
    chosen: Selection
    path: str
    #: Its own is the VM in messages and results.
    names: VmNames


@dataclasses.dataclass(frozen=True)
class Choice:
    """What is to be restored, and what is not."""

    #: What is restored, and what is started again, in this order; none is empty.
    groups: list[list[RestoreTask | ShutDownVm]]
    #: Images that are not the state in which a VM was last, or are not asked for, each with ``path``, ``name``,
    #: ``saved_at`` and ``why``.
    left_alone: list[dict[str, t.Any]]
    #: Images from which nothing can be restored, each with ``path``, ``name``, ``state`` and ``problems``.
    unusable: list[dict[str, t.Any]]
    #: What is kept of VMs that ran again since they were shut down, each with the image in which that VM was saved.
    outdated: list[tuple[ShutDownVm, str]] = dataclasses.field(default_factory=list)


def choose(
    images: t.Iterable[dict[str, t.Any]],
    shut_down: t.Iterable[ShutDownVm],
    request: HostRestoreRequest,
    runs: t.Callable[[dict[str, t.Any]], bool],
    is_held: t.Callable[[dict[str, t.Any]], bool],
) -> Choice:
    """Choose each VM's last save, and the VMs that were shut down: of one VM, whichever of the two is later.

    :param images: those of the directory, as ``directory_info`` returns them.
    :param runs: whether there is a QEMU of an image's VM: the guest of a save that was cut off may stand in it still.
    :param is_held: whether a QEMU has an image open: the guest of a restore that was cut off may stand in it.
    """
    groups: list[list[RestoreTask | ShutDownVm]] = [[] for _group in range(len(request.order) + 1)]
    choice = Choice(groups, [], [])
    found: list[VmNames] = []
    images, shut_down = list(images), list(shut_down)

    def add(chosen: Selection, path: str, names: VmNames) -> None:
        groups[group_of(names, request.order)].append(RestoreTask(chosen, path, names))
        found.append(names)

    def leave(image: dict[str, t.Any], why: str) -> None:
        choice.left_alone.append({**{key: image[key] for key in ("path", "name", "saved_at")}, "why": why})

    # Where there is a complete image, a partial one beside it is an older leftover.
    for image in sorted(images, key=lambda image: bool(image["state"] != "complete")):
        name, path, names = image["name"] or "", target_of(image), image_names(image)
        # Archives were made on purpose.
        if image["state"] == "archived" or not _is_wanted(names, request):
            continue
        why = _why_left_alone(image, names, request, shut_down, is_held)
        if why:
            leave(image, why)
        elif image["state"] == "complete":
            add(Selection(name), image["path"], names)
        elif image["state"] == "partial" and any(_are_same(names, other) for other in found):
            leave(image, f"it is partial, a leftover of an interrupted save of {name}")
        elif image["state"] == "partial" and name and runs(image):
            add(Selection(name), path, names)
        else:
            choice.unusable.append({key: image[key] for key in ("path", "name", "state", "problems")})
    for vm in shut_down:
        names, later = names_of_shut_down(vm), later_image(vm, images)
        if not _is_wanted(names, request):
            continue
        if later:
            choice.outdated.append((vm, later))
        else:
            groups[group_of(names, request.order)].append(vm)
            found.append(names)
    for word in request.vms:
        if not any(names.is_called(word) for names in found):
            chosen = selection_of(word, request.save_dir)
            names = VmNames(word, chosen.name or word, chosen.uuid, chosen.unit)
            if _is_wanted(names, request):
                add(chosen, image_path(None, request.save_dir, label_of_unit(word) if chosen.unit else word), names)
    groups[:] = [group for group in groups if group]
    return choice


def image_names(image: t.Mapping[str, t.Any]) -> VmNames:
    """By what the VM of an image is called; by the image's path where that does not say it."""
    name = image["name"] or ""
    own = vm_label(target_of(image), name) if name else str(image["path"])
    return VmNames(own, name, image.get("uuid") or "", unit_of(image))


def names_of_shut_down(vm: ShutDownVm) -> VmNames:
    """By what a VM is called that was shut down."""
    return VmNames(vm.name, vm.name, vm.uuid, vm.launch.unit)


def _are_same(one: VmNames, other: VmNames) -> bool:
    """Whether these are of one VM."""
    if one.uuid and other.uuid:
        return one.uuid == other.uuid
    return bool(one.name) and one.name == other.name


def _is_wanted(names: VmNames, request: HostRestoreRequest) -> bool:
    if not names.name:  # it may be any VM's
        return not request.vms and "*" in request.include
    is_asked_for = not request.vms or any(names.is_called(word) for word in request.vms)
    return is_asked_for and is_selected(names, request.include, request.exclude)


def _why_left_alone(
    image: dict[str, t.Any],
    names: VmNames,
    request: HostRestoreRequest,
    shut_down: t.Iterable[ShutDownVm],
    is_held: t.Callable[[dict[str, t.Any]], bool],
) -> str:
    # A restore marks the image before it lets the guest go on, and has it open until it is done with it.
    goes_on = image["state"] == "complete" and image.get("checkpoint") and is_held(image)
    why = "" if goes_on else why_left_alone(image)
    why = why or next(filter(None, (why_not_restored(vm, image) for vm in shut_down)), "")
    by_name = any(names.is_called(word) for word in request.vms)
    asked_for = request.images == "all" or image["managed"] or by_name
    if not why and image["state"] == "complete" and not asked_for:
        return "it was not saved by a run over the whole host; name its VM (vms), or use images: all"
    return why
