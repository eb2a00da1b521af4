# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How many examples the properties are tried with."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("unit", max_examples=200, deadline=None, database=None)
settings.load_profile("unit")
