# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The VMs of hypervisors as hosts of an inventory: what each is, and what it is called.

A hypervisor is believed of its own VMs alone. What it says becomes values of variables of fixed names, and names of
hosts and groups of fixed characters; a name that something else in the inventory has is given to no VM.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import re
import typing as t

from ansible_collections.vmops.qemu.plugins.plugin_utils._figures import MOST, is_figure

Answer = t.Mapping[str, t.Any]

#: VMs of a hypervisor, and problems of a VM, that are believed; characters of a text, and of a part of a host's name.
_MOST_VMS = 10_000
_MOST_PROBLEMS = 100
_MOST_IN_TEXT = 4096
_MOST_IN_NAME = 128

#: What Ansible takes for the controller itself, or for all hosts.
_RESERVED = frozenset(("localhost", "127.0.0.1", "::1", "all", "ungrouped"))

#: Between the hypervisor's and the VM's name: what neither a VM's part nor a host pattern has.
_SEPARATOR = "+"


class UnbelievableError(Exception):
    """An answer is none that a hypervisor gives."""


@dataclasses.dataclass(frozen=True)
class Vm:
    """A VM of one hypervisor."""

    hypervisor: str
    #: Its name as a part of a host's name.
    label: str
    #: The variables, all of which begin with ``qemu_``.
    variables: dict[str, t.Any]

    @property
    def groups(self) -> list[str]:
        """What it belongs to; the names have other characters than a group's may have."""
        known = self.variables
        names = ["qemu_vms", f"qemu_{known['qemu_state']}", f"qemu_on_{self.hypervisor}"]
        if known["qemu_superseded_images"]:
            names.append("qemu_superseded")
        if known["qemu_restorable"] is False:
            names.append("qemu_not_restorable")
        if known["qemu_unit"]:
            names.append(f"qemu_unit_{known['qemu_unit'][:_MOST_IN_NAME]}")
        return names


def read_vms(hypervisor: str, running: Answer, images: Answer) -> list[Vm]:
    """The VMs of a hypervisor, by name.

    :param running: the result of ``qemu_vm_info``.
    :param images: the result of ``qemu_save_image_info``, of a directory.
    :raises UnbelievableError: it has too many, or they are no such results.
    """
    saves = _by_save(_dictionaries(images, "images"))
    of_path = {image["path"]: save for save in saves for image in save}
    vms = []
    seen: set[str] = set()
    for vm in _dictionaries(running, "vms"):
        # Which image is its own the hypervisor has found out, by more than the name.
        own = of_path.get(_path_of(vm.get("image")) or "", [])
        seen.update(image["path"] for image in own)
        vms.append(_running(hypervisor, vm, own))
    left = [save for save in saves if save[0]["path"] not in seen and save[0]["state"] != "absent"]
    vms += [_saved(hypervisor, save) for save in left if save[0]["state"] != "partial"]
    names = {vm.variables["qemu_name"] for vm in vms}
    # Beside its VM, a partial image is what an interrupted save has left.
    vms += [
        _saved(hypervisor, save)
        for save in left
        if save[0]["state"] == "partial" and (_text(save[0].get("name")) or "") not in names
    ]
    return sorted(vms, key=lambda vm: (vm.label, vm.variables["qemu_name"], str(vm.variables["qemu_image"])))


def host_names(vms: t.Iterable[Vm], is_taken: t.Callable[[str], bool], *, with_hypervisor: bool) -> dict[str, Vm]:
    """A name for each, which no other host has.

    A VM has its own name; with its hypervisor's before it where several VMs would have that name, or where it is taken.

    :param is_taken: whether something that is no VM has a name.
    :param with_hypervisor: put it before each.
    """
    vms = list(vms)
    count = collections.Counter(vm.label for vm in vms)
    named: dict[str, Vm] = {}
    for vm in vms:
        name = vm.label
        if with_hypervisor or count[name] > 1 or name in _RESERVED or is_taken(name):
            name = f"{vm.hypervisor}{_SEPARATOR}{vm.label}"
        plain, number = name, 1
        while name in named or is_taken(name):
            number += 1
            name = f"{plain}{_SEPARATOR}{number}"
        named[name] = vm
    return named


# --- one VM -------------------------------------------------------------------------------------------------------


def _running(hypervisor: str, vm: Answer, images: list[dict[str, t.Any]]) -> Vm:
    """A VM with a QEMU.

    :param images: what is saved of it, its last save first.
    """
    run_state, monitor = _text(vm.get("run_state")), _text(vm.get("monitor")) or "invalid"
    problems = [
        *_problems(vm.get("problems")),
        *(_problem("blocker", text, True) for text in _texts(vm.get("blockers"))),
        *([] if run_state else [_problem("monitor", _text(vm.get("reason")) or monitor, True)]),
    ]
    restorable = not any(problem["blocks"] for problem in problems) if run_state else None
    state = "running" if run_state in ("running", "suspended") else "paused" if run_state else "unknown"
    return _vm(
        hypervisor,
        vm,
        _text(vm.get("name")) or _text(vm.get("uuid")) or f"pid-{_number(vm.get('pid'))}",
        images,
        qemu_state=state,
        qemu_run_state=run_state,
        qemu_restorable=restorable,
        qemu_problems=problems[:_MOST_PROBLEMS],
        qemu_unit=_text(vm.get("unit")),
        qemu_pid=_number(vm.get("pid")),
        qemu_user=_text(vm.get("user")),
        qemu_monitor=monitor,
        qemu_qmp_socket=_text(vm.get("qmp_socket")),
    )


def _saved(hypervisor: str, images: list[dict[str, t.Any]]) -> Vm:
    """A VM that has no QEMU."""
    last = images[0]
    launch = last.get("launch")
    problems = [
        *_problems(last.get("restore_problems")),
        *(_problem("image", text, True) for text in _texts(last.get("problems"))),
    ]
    usable = last["state"] in ("complete", "archived") and not _texts(last.get("problems"))
    restorable = last.get("restorable") if usable and isinstance(last.get("restorable"), bool) else None
    state = "saved" if last["state"] == "complete" else last["state"]
    if state in ("saved", "archived") and last.get("checkpoint") is True:
        state = "checkpoint"
    return _vm(
        hypervisor,
        last,
        _text(last.get("name")) or os.path.basename(last["path"]).split(".save")[0],
        images,
        qemu_state=state,
        qemu_run_state=None,
        qemu_restorable=restorable if usable else False,
        qemu_problems=problems[:_MOST_PROBLEMS],
        qemu_unit=_text(launch.get("unit")) if isinstance(launch, t.Mapping) else None,
        qemu_pid=None,
        qemu_user=None,
        qemu_monitor=None,
        qemu_qmp_socket=None,
    )


def _vm(hypervisor: str, facts: Answer, called: str, images: list[dict[str, t.Any]], **variables: t.Any) -> Vm:
    last: Answer = images[0] if images else {}
    managed = last.get("managed")
    return Vm(
        hypervisor,
        _label(called),
        {
            "qemu_hypervisor": hypervisor,
            "qemu_name": _text(facts.get("name")) or "",
            "qemu_uuid": _text(facts.get("uuid")) or "",
            "qemu_memory": _number(facts.get("memory")),
            "qemu_vcpus": _number(facts.get("vcpus")),
            "qemu_machine": _text(facts.get("machine")),
            "qemu_version": _text(facts.get("qemu_version")),
            "qemu_image": last.get("path"),
            "qemu_saved_at": _text(last.get("saved_at")),
            "qemu_managed": managed if isinstance(managed, bool) else None,
            "qemu_superseded_images": sorted(image["path"] for image in images if image["superseded"]),
            **variables,
        },
    )


def _by_save(images: t.Iterable[Answer]) -> list[list[dict[str, t.Any]]]:
    """The images of each VM, its last save first: the hypervisor has told which image supersedes which."""
    known: dict[str, dict[str, t.Any]] = {}
    for image in images:
        path, state = _text(image.get("path")), _text(image.get("state"))
        if not path:
            raise UnbelievableError("an image has no path")
        states = ("complete", "partial", "archived", "invalid", "absent")
        superseded = bool(_text(image.get("superseded_by")))
        known[path] = {
            **image,
            "path": path,
            "state": state if state in states else "invalid",
            "superseded": superseded,
            "of": _text(image.get("superseded_by")) or _text(image.get("copy_of")),
        }
    saves: dict[str, list[dict[str, t.Any]]] = {}
    for path, image in known.items():
        first = path
        # A superseded copy is one of another, and so on; a liar's may be one of itself.
        for _step in range(8):
            if known[first]["of"] not in known:
                break
            first = known[first]["of"]
        saves.setdefault(first, []).append(image)
    return [sorted(save, key=lambda image: image["path"] != first) for first, save in saves.items()]


def _path_of(image: t.Any) -> str | None:
    return _text(image.get("path")) if isinstance(image, t.Mapping) else None


# --- what a hypervisor may say -------------------------------------------------------------------------------------


def _dictionaries(answer: Answer, key: str) -> list[Answer]:
    found = answer.get(key)
    if not isinstance(found, list) or not all(isinstance(entry, t.Mapping) for entry in found):
        raise UnbelievableError(f"{key} is no list of dictionaries")
    if len(found) > _MOST_VMS:
        raise UnbelievableError(f"{key} has more than {_MOST_VMS} elements")
    return found


def _text(value: t.Any) -> str | None:
    """A text that has a usual length, without halves of characters, which nothing can print; else None."""
    if not isinstance(value, str) or not value or len(value) > _MOST_IN_TEXT:
        return None
    return value.encode("utf-8", "backslashreplace").decode()


def _texts(value: t.Any) -> list[str]:
    found = [_text(entry) for entry in value[:_MOST_PROBLEMS]] if isinstance(value, list) else []
    return [entry for entry in found if entry]


def _number(value: t.Any) -> int | None:
    return int(value) if is_figure(value, MOST) else None


def _problem(kind: str, what: str, blocks: bool, cure: str = "") -> dict[str, t.Any]:
    return {"kind": kind, "what": what, "cure": cure, "blocks": blocks}


def _problems(value: t.Any) -> list[dict[str, t.Any]]:
    """As ``qemu_vm_info`` and images tell them."""
    found = (
        [entry for entry in value[:_MOST_PROBLEMS] if isinstance(entry, t.Mapping)] if isinstance(value, list) else []
    )
    return [
        _problem(
            _text(entry.get("kind")) or "unknown",
            _text(entry.get("what")) or "",
            entry.get("blocks") is not False,
            _text(entry.get("cure")) or "",
        )
        for entry in found
    ]


def _label(name: str) -> str:
    """A VM's name as a part of a host's: what is special in host patterns, shells and templates is replaced."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name[:_MOST_IN_NAME]).lstrip("-.") or "_"
