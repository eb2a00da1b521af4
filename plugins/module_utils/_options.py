# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The options that several modules share: what Ansible checks of each.

What people read of them is in the documentation fragment of the same name: that of ``IMAGE_LOCATION`` is
``vmops.qemu._image_location``. A module that means something else by an option gives its own words, and nothing else,
in its documentation, and the same difference here, with :func:`changed`. A test compares the two.
"""

from __future__ import annotations

import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._state_directory import default_save_directory

Spec = t.Dict[str, t.Dict[str, t.Any]]

#: Which image; :data:`SAVE_DIR` is a part of it.
IMAGE_LOCATION: Spec = {"name": {"type": "str"}, "path": {"type": "path"}}

#: Which VM, besides its name and its socket.
VM_CHOICE: Spec = {"uuid": {"type": "str"}, "unit": {"type": "str"}, "pid": {"type": "int"}}

#: It depends on the user that runs the module where they are.
SAVE_DIR: Spec = {"save_dir": {"type": "path", "fallback": (default_save_directory,)}}

#: What stands before the QEMU stream of an image.
IMAGE_HEAD: Spec = {
    "domain_xml": {"type": "str", "no_log": True},
    "image_version": {"type": "int", "choices": [2, 3]},
    "vm_state": {"type": "str", "choices": ["running", "paused"]},
}

#: How QEMU writes or reads the guest's memory.
ACCESS: Spec = {"parallel_channels": {"type": "int"}, "bypass_cache": {"type": "bool"}}

#: How a VM is saved.
SAVING: Spec = {
    "format": {"type": "str", "choices": ["sparse", "raw", "gzip", "bzip2", "xz", "lzop", "zstd"]},
    "live": {"type": "bool", "default": False},
    "live_timeout": {"type": "float", "default": 60},
    "after_save": {"type": "str", "choices": ["quit", "pause", "resume"], "default": "quit"},
    "cold_boot_guard": {"type": "bool", "default": True},
    "require_restorable": {"type": "bool", "default": True},
    "force": {"type": "bool", "default": False},
    "bandwidth": {"type": "str"},
    "checksum": {"type": "bool", "default": False},
    "mode": {"type": "raw", "default": "0600"},
    "owner": {"type": "str"},
    "group": {"type": "str"},
}

#: How a VM is restored.
RESTORING: Spec = {
    "state": {"type": "str", "choices": ["as_saved", "running", "paused"], "default": "as_saved"},
    "launch": {"type": "str", "choices": ["recorded", "command", "attach"], "default": "recorded"},
    "attach_timeout": {"type": "float", "default": 0},
    "disks": {"type": "str", "choices": ["check", "ignore"], "default": "check"},
    "memory": {"type": "str", "choices": ["check", "ignore"], "default": "check"},
    "cpu": {"type": "str", "choices": ["check", "ignore"], "default": "check"},
    "verify": {"type": "str", "choices": ["full", "structure", "none"], "default": "structure"},
    "remove_image": {"type": "bool", "default": True},
    "sync_time": {"type": "str", "choices": ["auto", "true", "false"], "default": "auto"},
}

#: Which VMs of a host, and how many at a time.
SELECTION: Spec = {
    "vms": {"type": "list", "elements": "str", "default": []},
    "include": {"type": "list", "elements": "str", "default": ["*"]},
    "exclude": {"type": "list", "elements": "str", "default": []},
    "by_vm": {"type": "dict", "default": {}},
    "parallel": {"type": "int", "default": 4},
    "interval": {"type": "float", "default": 5},
}

#: How long the work may take.
TIMEOUT: Spec = {"timeout": {"type": "float", "default": 3600}}


def changed(spec: Spec, **changes: dict[str, t.Any]) -> Spec:
    """Shared options of which some differ in a module.

    :param changes: by option what is added, or takes the place of what is shared.
    """
    return {name: {**option, **changes.get(name, {})} for name, option in spec.items()}


def without(options: t.Mapping[str, t.Any], *specs: Spec) -> dict[str, t.Any]:
    """A task's options without those of some specs, which are not the operation's affair."""
    left_out = {name for spec in specs for name in spec}
    return {name: value for name, value in options.items() if name not in left_out}
