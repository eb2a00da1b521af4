# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The directory of what a user of this host keeps across reboots, which nobody else can look into.

``/var/lib/vmops.qemu`` for root; ``$XDG_STATE_HOME/vmops.qemu`` (``~/.local/state`` where that is not set) for any
other user.

- ``vouching.key``: the key with which he vouches for save images (``_vouching_key``)
- ``rates.json``: how fast this host has saved and restored (``_host/rates``)
- ``last-save.success`` and so on: when this host last saved and restored (``_last_run``)
- ``loading/``: restores that have begun to write a disk anew (``_restore/load_note``)
- ``shut-down/``: VMs that were shut down and are to be started again (``_shutdown/record``)
"""

from __future__ import annotations

import os
import pwd

from ansible_collections.vmops.qemu.plugins.module_utils._durable import make_directories

ROOT_DIRECTORY = "/var/lib/vmops.qemu"

#: The save images of root's.
ROOT_SAVE_DIRECTORY = "/var/lib/vmops/save"


def state_path(name: str) -> str:
    """Where a file of this name is, or would be."""
    if os.geteuid() == 0:
        return os.path.join(ROOT_DIRECTORY, name)
    return os.path.join(_state_home(), "vmops.qemu", name)


def default_save_directory() -> str:
    """Where this user's save images are, where nothing else is asked for."""
    return ROOT_SAVE_DIRECTORY if os.geteuid() == 0 else os.path.join(_state_home(), "vmops", "save")


def make_state_directory() -> None:
    """Make it where it is missing, and the directories above it; each belongs to this user alone, and is durable.

    :raises OSError: it cannot be made.
    """
    make_directories(os.path.dirname(state_path("")), 0o700)


def _state_home() -> str:
    state = os.environ.get("XDG_STATE_HOME", "")
    return state if os.path.isabs(state) else os.path.join(_home(), ".local", "state")


def _home() -> str:
    """This user's home directory, whatever the environment says, which may be another user's."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        return os.path.expanduser("~")
