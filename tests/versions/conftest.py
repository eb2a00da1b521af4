# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The fixtures of the functional tests, for guests on other QEMUs."""

from __future__ import annotations

from functional.conftest import image, make_guest, restore, run_module, save, start_module

__all__ = ["image", "make_guest", "restore", "run_module", "save", "start_module"]
