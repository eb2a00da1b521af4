# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether qemu_save can record a digest of the stream, which finds what no structure tells of."""

from __future__ import annotations

import importlib.util
from typing import Any

HAS_DIGEST = importlib.util.find_spec("ansible_collections.vmops.qemu.plugins.module_utils._image.digest") is not None

#: The option of qemu_save that records one.
CHECKSUM: dict[str, Any] = {"checksum": True} if HAS_DIGEST else {}
