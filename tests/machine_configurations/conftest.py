# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The fixtures of the functional tests, for the configurations."""

from __future__ import annotations

from functional.conftest import run_module, start_module

__all__ = ["run_module", "start_module"]
