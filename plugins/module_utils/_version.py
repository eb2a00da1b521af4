# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The collection's version, for what is recorded in images; the same as in galaxy.yml (a test compares them)."""

from __future__ import annotations

COLLECTION_VERSION = "1.0.0"
