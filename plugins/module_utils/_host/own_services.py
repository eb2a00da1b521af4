# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The services that the role ``host_setup`` installs: whether they did, and will do, what they are there for."""

from __future__ import annotations

import glob
import os
import time

from ansible_collections.vmops.qemu.plugins.module_utils._qemu.manager import plain_name
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import age
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.systemd import Unit

BOOT_RESTORE = "vmops-restore.service"
SHUTDOWN_SAVE = "vmops-save.service"

#: The process of systemd, which starts when the host boots.
_INIT = 1


def is_installed(unit: Unit) -> bool:
    """Whether there is such a service; one that is masked is there."""
    return unit.load_state != "not-found"


def starts_at_boot(unit: Unit) -> bool:
    """Whether the next boot starts it; so it is taken for where systemd does not say it."""
    return unit.load_state != "masked" and (not unit.file_state or unit.file_state.startswith("enabled"))


def is_to_be_stopped(unit: Unit) -> bool:
    """Whether a shutdown stops it, or this is about to be so: the stop is the save of the VMs.

    One that does not run is not stopped; of one that was masked meanwhile systemd does not know any more how.
    """
    return unit.has_job or (unit.active_state == "active" and unit.load_state == "loaded")


def restore_has_failed(unit: Unit, images_known: bool) -> bool:
    """Whether the restore at this boot has left VMs saved, or may have: it has failed, or was never begun.

    systemd has no word for the latter: a service whose mount has failed (``RequiresMountsFor=``) is inactive and a
    success, and not even its conditions were looked at. These say whether there is an image.

    :param unit: that of the restore.
    :param images_known: whether it is known now what is saved.
    """
    if unit.active_state != "inactive" or unit.has_job:
        return unit.active_state == "failed"
    if unit.conditions_checked:
        # That there was no image says nothing, if images could not be seen; a service that was stopped has run.
        return not unit.conditions_met and not images_known
    return _was_to_start(unit)


def _was_to_start(unit: Unit) -> bool:
    """Whether it was enabled already when the host booted."""
    wanted = glob.glob(f"{glob.escape(os.path.dirname(unit.fragment))}/*.wants/{plain_name(unit.name)}")
    booted = time.time() - age(_INIT)
    return bool(unit.fragment) and any(_changed(link) < booted for link in wanted)


def _changed(path: str) -> float:
    try:
        return os.lstat(path).st_mtime
    except OSError:
        return float("inf")
