# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Paths and names."""

from __future__ import annotations

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    RequestError,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.names import image_path


def test_image_path():
    assert image_path("/a/../b.save", "/d", "n") == "/b.save"
    assert image_path(None, "/d/", "web1") == "/d/web1.save"
    for name in (None, "", "a/b", "..", "a\0"):
        with pytest.raises(RequestError):
            image_path(None, "/d", name)
