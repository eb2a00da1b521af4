# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which images of a directory are restored, in which order, and which are not."""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._image.last_save import why_left_alone
from ansible_collections.vmops.qemu.plugins.module_utils._image.names import image_path
from ansible_collections.vmops.qemu.plugins.module_utils._names import group_of, is_selected, options_of
from ansible_collections.vmops.qemu.plugins.module_utils._restore.request import RestoreRequest
from ansible_collections.vmops.qemu.plugins.module_utils._shutdown.record import ShutDownVm


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

    def option(self, name: str, option: str) -> t.Any:
        """One option of one VM."""
        return options_of(name, self.common, self.by_vm)[option]

    def of(self, name: str, path: str) -> RestoreRequest:
        """What is asked for of one VM.

        :param name: empty where the image does not say it.
        """
        options = options_of(name, self.common, self.by_vm)
        for of_the_host in ("timeout", "health_check", "health_check_timeout"):
            del options[of_the_host]
        return RestoreRequest(
            name=name or None,
            qmp_socket=None,
            path=path,
            save_dir=self.save_dir,
            check_mode=self.check_mode,
            **options,
        )


@dataclasses.dataclass(frozen=True)
class RestoreTask:
    """One VM to restore, and its image."""

    #: Empty where the image does not say it.
    name: str
    path: str

    @property
    def label(self) -> str:
        """The VM, for messages."""
        return self.name or self.path


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


def choose(
    images: t.Iterable[dict[str, t.Any]],
    shut_down: t.Iterable[ShutDownVm],
    request: HostRestoreRequest,
    runs: t.Callable[[str], bool],
) -> Choice:
    """Choose each VM's last save, and the VMs that were shut down.

    :param images: those of the directory, as ``directory_info`` returns them.
    :param runs: whether a QEMU has this name: the guest of a save that was cut off may stand in it still.
    """
    groups: list[list[RestoreTask | ShutDownVm]] = [[] for _group in range(len(request.order) + 1)]
    choice = Choice(groups, [], [])
    names: set[str] = set()

    def add(name: str, path: str) -> None:
        groups[group_of(name, request.order)].append(RestoreTask(name, path))
        names.add(name)

    def leave(image: dict[str, t.Any], why: str) -> None:
        choice.left_alone.append({**{key: image[key] for key in ("path", "name", "saved_at")}, "why": why})

    # Where there is a complete image, a partial one beside it is an older leftover.
    for image in sorted(images, key=lambda image: bool(image["state"] != "complete")):
        name = image["name"] or ""
        # Archives were made on purpose.
        if image["state"] == "archived" or not _is_wanted(name, request):
            continue
        why = _why_left_alone(image, request)
        if why:
            leave(image, why)
        elif image["state"] == "complete":
            add(name, image["path"])
        elif image["state"] == "partial" and name in names:
            leave(image, f"it is partial, a leftover of an interrupted save of {name}")
        elif image["state"] == "partial" and name and runs(name):
            add(name, image_path(None, request.save_dir, name))
        else:
            choice.unusable.append({key: image[key] for key in ("path", "name", "state", "problems")})
    for vm in shut_down:
        if _is_wanted(vm.name, request):
            groups[group_of(vm.name, request.order)].append(vm)
            names.add(vm.name)
    for name in request.vms:
        if name not in names and _is_wanted(name, request):
            add(name, image_path(None, request.save_dir, name))
    groups[:] = [group for group in groups if group]
    return choice


def _is_wanted(name: str, request: HostRestoreRequest) -> bool:
    if not name:  # it may be any VM's
        return not request.vms and "*" in request.include
    return (not request.vms or name in request.vms) and is_selected(name, request.include, request.exclude)


def _why_left_alone(image: dict[str, t.Any], request: HostRestoreRequest) -> str:
    why = why_left_alone(image)
    asked_for = request.images == "all" or image["managed"] or image["name"] in request.vms
    if not why and image["state"] == "complete" and not asked_for:
        return "it was not saved by a run over the whole host; name its VM (vms), or use images: all"
    return why
