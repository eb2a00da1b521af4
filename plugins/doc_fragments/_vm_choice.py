# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which VM a module is about, besides its name and its socket."""

from __future__ import annotations


class ModuleDocFragment:
    # extends_documentation_fragment: vmops.qemu._vm_choice
    DOCUMENTATION = r"""
options:
  uuid:
    description:
      - The VM's UUID, as in QEMU's C(-uuid) option; capital letters and missing dashes do not matter.
    type: str
  unit:
    description:
      - The systemd unit that runs the VM, such as C(qemu@web1.service). C(.service) may be left out.
      - A unit of another user's own systemd (C(systemctl --user)) is given with the service in which that systemd runs,
        as in V(user@1000.service/web1.service).
    type: str
  pid:
    description:
      - The process id of the VM's QEMU.
    type: int
"""
