# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How many examples the properties are tried with."""

from __future__ import annotations

import os

from hypothesis import settings

# On a busy machine any example may take long, so there is no deadline; continuous integration tries the same each time.
settings.register_profile(
    "unit", max_examples=200, deadline=None, database=None, derandomize=bool(os.environ.get("CI"))
)
settings.load_profile("unit")
