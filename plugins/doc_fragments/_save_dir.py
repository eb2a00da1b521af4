# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where save images are."""

from __future__ import annotations


class ModuleDocFragment:
    # extends_documentation_fragment: vmops.qemu._save_dir
    DOCUMENTATION = r"""
options:
  save_dir:
    description:
      - The directory of the save images. It is not used when C(path) is given.
      - The default depends on the user as whom the module runs on the host. For root it is C(/var/lib/vmops/save), for
        any other user C($XDG_STATE_HOME/vmops/save), or, where that variable is not set, C(~/.local/state/vmops/save).
    type: path
"""
