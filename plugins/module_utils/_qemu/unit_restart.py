# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Keeping systemd from starting a unit again by itself (``Restart=``) when the VM in it has shut down.

It is done by a file that lasts until the host's reboot at most, after which a unit that is enabled starts as always.
"""

from __future__ import annotations

from ansible_collections.vmops.qemu.plugins.module_utils._errors import UnitError
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import manager, systemd

#: The last one wins: it comes after the "override.conf" of systemctl edit, and before that of a restore, which must be
#: the last of all.
_DROP_IN = "zzy-vmops-shut-down.conf"

_TEXT = """\
# Made by vmops.qemu.qemu_managed_save, which has shut this VM down before the host's maintenance.
# vmops.qemu.qemu_managed_restore removes this file when it starts the VM again; with a reboot it is gone, too.
[Service]
Restart=no
"""


def hold_path(name: str) -> str:
    """Where that file of a unit is, or would be; raises UnitError where that is not the name of a unit."""
    return systemd.passing_drop_in(name, _DROP_IN)


async def hold_restart(unit: systemd.Unit) -> None:
    """Have a unit stay down when its program ends; in force on return.

    :raises UnitError: it could not be done; :func:`release_restart` removes what is left of it.
    """
    if unit.restart in ("", "no"):
        return
    manager.require_own(unit.name, f"keep {unit.name} from starting the VM again when it has shut down")
    systemd.write_drop_in(hold_path(unit.name), _TEXT)
    await systemd.reload(unit.name)
    restart = (await systemd.read_unit(unit.name)).restart
    if restart != "no":
        raise UnitError(
            f"{unit.name} would start the VM again when it has shut down: it still has Restart={restart}",
            cure=f"See {manager.shown(unit.name, 'cat')}: what sets Restart= there comes later than {_DROP_IN}",
        )


async def release_restart(name: str) -> None:
    """Let the unit start again by itself as it is configured.

    :raises UnitError: it could not be done.
    """
    if systemd.remove_drop_in(hold_path(name)):
        await systemd.reload(name)
