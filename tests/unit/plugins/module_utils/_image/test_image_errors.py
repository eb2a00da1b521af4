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
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_errors import cure_for, image_errors


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


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
@pytest.mark.parametrize(("uid", "cure"), [(0, "no_root_squash"), (1000, "Run as root")])
def test_what_root_may_not_do_is_not_for_root_to_try_again(monkeypatch, number, uid, cure):
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    with pytest.raises(ImageAccessError) as caught, image_errors("/p", "do it"):
        raise OSError(number, "whatever")
    assert cure in caught.value.cure
    assert cure in cure_for(f"qemu: {os.strerror(number)}")


def test_others_pass():
    with pytest.raises(KeyError), image_errors("/p", "do it"):
        raise KeyError
