# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a restore is asked for."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class RestoreRequest:
    """The options of ``qemu_restore``, as its documentation describes them; None leaves the choice to the operation."""

    name: str | None
    qmp_socket: str | None
    path: str | None
    save_dir: str
    uuid: str | None = None
    unit: str | None = None
    pid: int | None = None
    state: str = "as_saved"
    parallel_channels: int | None = None
    bypass_cache: bool | None = None
    launch: str = "recorded"
    attach_timeout: float = 0.0
    command: list[str] | None = None
    verify: str = "structure"
    remove_image: bool = True
    disks: str = "check"
    memory: str = "check"
    cpu: str = "check"
    sync_time: str = "auto"
    check_mode: bool = False
