# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the roles have reached on a host, as the report tells it."""

from __future__ import annotations

import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._image.names import has_partial_name, target_of_partial
from ansible_collections.vmops.qemu.plugins.plugin_utils._answer import sentence
from ansible_collections.vmops.qemu.plugins.plugin_utils._figures import OF_VM, figures

DOCUMENTATION = r"""
name: maintenance_host
short_description: Combine the results of a host's saves and restores
version_added: 1.0.0
description:
  - Combines C(managed_save_result) and C(managed_restore_result) into what the report says of a host.
  - The values that a host has reported are checked. An impossible value (not a finite number, negative, or a time after
    2099) is omitted, and its name is returned.
positional: restored
options:
  _input:
    description: C(managed_save_result), or nothing.
    type: dict
    required: true
  restored:
    description:
      - C(managed_restore_result), or nothing. A VM that runs at its end without having been restored by it was restored
        by the host itself when it booted.
    type: dict
    default: {}
author:
  - vmops.qemu contributors (@vmops)
"""

EXAMPLES = r"""
- name: Show the host's VMs
  ansible.builtin.debug:
    msg: "{{ (managed_save_result | vmops.qemu.maintenance_host(managed_restore_result)).vms }}"
"""

RETURN = r"""
_value:
  description:
    - C(vms) has, for each VM, its C(name), C(state) (V(restored), V(saved), V(running), V(failed) or V(predicted)),
      C(msg), C(bytes) of its image, C(written) (whether this run has saved it), C(throughput), C(save_seconds),
      C(restore_seconds), C(stopped_at) and C(running_at), and C(disbelieved), the names of impossible values.
    - C(unsaved) has the VMs that were not saved, each with C(name), C(pid), C(reason) and C(fate).
    - C(left_alone) is that of M(vmops.qemu.qemu_managed_restore), C(predicted) that of M(vmops.qemu.qemu_managed_save).
      C(saves_took) and C(restores_took) are the numbers of seconds that the two took, V(none) if not known.
    - C(rolled_back) is whether saves that failed have left all VMs as they were (some were restored, none is still
      saved or shut down, and each that could not be saved runs).
    - C(unusable) is that of M(vmops.qemu.qemu_managed_restore), without the images that are replaced by the saves.
  type: dict
"""

Run = t.Mapping[str, t.Any]


def maintenance_host(saved: Run | None, restored: Run | None = None) -> dict[str, t.Any]:
    """What became of a host's VMs."""
    saved, restored = saved or {}, restored or {}
    running = restored.get("running")
    vms, unsaved = _vms(saved, restored, running or ()), _unsaved(saved, running)
    return {
        "vms": vms,
        "unsaved": unsaved,
        "rolled_back": _are_rolled_back(saved, vms, unsaved),
        "unusable": _unusable(saved, restored),
        "left_alone": restored.get("left_alone") or [],
        "predicted": saved.get("predicted") or {},
        "saves_took": saved.get("duration"),
        "restores_took": restored.get("duration"),
    }


def _unsaved(saved: Run, running: t.Iterable[Run] | None) -> list[dict[str, t.Any]]:
    """Those that were not saved, and whether one that was shut down runs by now, whoever has started it."""
    found = saved.get("unsaved")
    vms = [dict(vm) for vm in found if isinstance(vm, t.Mapping)] if isinstance(found, (list, tuple)) else []
    if running is not None:
        names = _running_names(running)
        for vm in vms:
            if vm.get("fate") == "shut down":
                known = isinstance(vm.get("name"), str) and vm["name"] in names
                vm["fate"] = "started again" if known else "not started again"
    return vms


def _vms(saved: Run, restored: Run, running: t.Iterable[Run]) -> list[dict[str, t.Any]]:
    """One entry for each VM, in the order in which they were saved."""
    saves = _by_name(saved.get("vms"))
    back = {name: save["rollback"] for name, save in saves.items() if isinstance(save.get("rollback"), t.Mapping)}
    restores = _by_name(restored.get("vms"))
    # One whose save has failed, or did not begin, has been running all the time.
    by_host = {
        name: {"msg": "the host restored it when it booted"}
        for name in _running_names(running)
        if not (saves.get(name, {}).get("failed") or saves.get(name, {}).get("skipped"))
    }
    return [
        _entry(name, saves.get(name, {}), restores.get(name) or back.get(name) or by_host.get(name) or {})
        for name in [*saves, *(name for name in restores if name not in saves)]
    ]


def _are_rolled_back(saved: Run, vms: t.Collection[dict[str, t.Any]], unsaved: t.Iterable[dict[str, t.Any]]) -> bool:
    """Whether saves that failed have left all VMs as they were."""
    saves, states = _by_name(saved.get("vms")), [vm["state"] for vm in vms]
    return (
        bool(saved.get("failed") or saved.get("failures"))
        and "restored" in states
        and "saved" not in states
        and all(saves.get(vm["name"], {}).get("guest") == "running" for vm in vms if vm["state"] == "failed")
        and not any(vm.get("fate") in ("shut down", "not started again") for vm in unsaved)
    )


def _unusable(saved: Run, restored: Run) -> list[Run]:
    """The images from which nothing can be restored, and in whose place no VM is saved."""
    images = [save.get("image") for save in _by_name(saved.get("vms")).values()]
    places = [image.get("path") for image in images if isinstance(image, t.Mapping)]
    found = restored.get("unusable")
    found = found if isinstance(found, (list, tuple)) else ()
    paths = [(image, image.get("path")) for image in found if isinstance(image, t.Mapping)]
    return [
        image
        for image, path in paths
        if isinstance(path, str)
        # The next save of its VM removes what an interrupted one has left.
        and (target_of_partial(path) if has_partial_name(path) else path) not in places
    ]


def _by_name(runs: t.Any) -> dict[str, Run]:
    """Results by the VM's name, as far as they are results and have one."""
    if not isinstance(runs, (list, tuple)):
        return {}
    return {run["name"]: run for run in runs if isinstance(run, t.Mapping) and isinstance(run.get("name"), str)}


def _running_names(running: t.Any) -> list[str]:
    """All that the VMs that run are called: one of several of a name is saved, and restored, as its own."""
    vms = running if isinstance(running, (list, tuple)) else ()
    called = [vm.get(key) for vm in vms if isinstance(vm, t.Mapping) for key in ("name", "own_name")]
    return [name for name in called if isinstance(name, str) and name]


def _entry(name: str, save: Run, restore: Run) -> dict[str, t.Any]:
    images = [image for image in (save.get("image"), restore.get("image")) if isinstance(image, t.Mapping)]
    allocated = next((image["allocated"] for image in images if image.get("allocated") is not None), None)
    told = {
        "bytes": save.get("space_needed") or allocated,
        "throughput": save.get("throughput"),
        "save_seconds": save.get("duration"),
        "restore_seconds": restore.get("duration"),
        "stopped_at": save.get("stopped_at"),
        "running_at": restore.get("running_at"),
        "disbelieved": [*_names(save.get("disbelieved")), *_names(restore.get("disbelieved"))],
    }
    known, disbelieved = figures(told, OF_VM)
    return {
        **known,
        "name": name,
        "state": _state(save, restore),
        "msg": sentence(str((restore or save).get("msg", ""))),
        "written": bool(save.get("changed")) and save.get("state") != "predicted",
        "disbelieved": disbelieved,
    }


def _names(value: t.Any) -> list[t.Any]:
    return value if isinstance(value, list) else []


def _state(save: Run, restore: Run) -> str:
    if restore.get("failed"):
        return "saved"
    if restore:
        return "restored"
    if save.get("failed"):
        return "failed"
    if save.get("skipped"):
        return "running"
    return "predicted" if save.get("state") == "predicted" else "saved"


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """The filters by name."""
        return {"maintenance_host": maintenance_host}
