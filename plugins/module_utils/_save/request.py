# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a save is asked for."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class SaveRequest:
    """The options of ``qemu_save``, as its documentation describes them; None leaves the choice to the operation."""

    name: str | None
    qmp_socket: str | None
    path: str | None
    save_dir: str
    uuid: str | None = None
    unit: str | None = None
    pid: int | None = None
    image_version: int = 3
    format: str | None = None
    parallel_channels: int | None = None
    bypass_cache: bool | None = None
    live: bool = False
    live_timeout: float = 60.0
    vm_state: str = "as_is"
    domain_xml: str | None = None
    after_save: str = "quit"
    cold_boot_guard: bool = True
    require_restorable: bool = True
    force: bool = False
    bandwidth: int | None = None
    checksum: bool = False
    mode: int = 0o600
    uid: int = -1
    gid: int = -1
    #: Whether a run over the whole host asks for it.
    managed: bool = False
    #: The image's name in ``save_dir``, without its suffix, where that is not the VM's.
    image_name: str | None = None
    check_mode: bool = False

    @property
    def guards(self) -> bool:
        """Whether a unit of the VM's must not start it beside the image."""
        return self.cold_boot_guard and self.after_save != "resume"
