# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import errno
import os

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    ImageAccessError,
    ImageNotFoundError,
    ImageSpaceError,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_errors import image_errors


@pytest.mark.parametrize(
    ("number", "kind", "has_cure"),
    [
        (errno.ENOENT, ImageNotFoundError, False),
        (errno.ENOTDIR, ImageNotFoundError, False),
        (errno.ENOSPC, ImageSpaceError, True),
        (errno.EDQUOT, ImageSpaceError, True),
        (errno.EACCES, ImageAccessError, True),
        (errno.EROFS, ImageAccessError, True),
        (errno.EIO, ImageAccessError, True),
        (errno.EMFILE, ImageAccessError, False),
    ],
)
def test_each_errno_becomes_an_error_of_the_tree(number, kind, has_cure):
    with pytest.raises(kind) as caught, image_errors("/p", "do it"):
        raise OSError(number, "whatever")
    assert caught.type is kind
    assert caught.value.what == f"/p: cannot do it: {os.strerror(number)}"
    assert bool(caught.value.cure) is has_cure
    assert isinstance(caught.value.__cause__, OSError)


def test_others_pass():
    with pytest.raises(KeyError), image_errors("/p", "do it"):
        raise KeyError
