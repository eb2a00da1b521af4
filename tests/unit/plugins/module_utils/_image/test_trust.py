# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whom to trust with an image."""

from __future__ import annotations

import os

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    ImageUnsafeError,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.trust import require_safe_image


@pytest.fixture
def private(tmp_path):
    """A directory below which only modes decide whether an image is safe."""
    if tmp_path.stat().st_uid not in (0, os.geteuid()):
        pytest.fail("the temporary directory belongs to another user")
    directory = tmp_path / "private"
    directory.mkdir(0o700)
    image = directory / "web1.save"
    image.write_bytes(b"")
    image.chmod(0o600)
    return image


def for_a_group(mode):
    """A mode that lets a group write, which may be that of the tests' user alone."""
    return pytest.param(mode, marks=pytest.mark.skipif(os.geteuid() != 0, reason="the group may be its user's alone"))


@pytest.mark.parametrize("mode", [for_a_group(0o620), 0o602, 0o666])
def test_an_image_that_others_may_write_is_not_safe(private, mode):
    require_safe_image(str(private))
    private.chmod(mode)
    with pytest.raises(ImageUnsafeError, match=r"web1\.save belongs to"):
        require_safe_image(str(private))


@pytest.mark.parametrize("mode", [for_a_group(0o720), 0o702, 0o1777])
def test_an_image_in_a_directory_that_others_may_write_is_not_safe(private, mode):
    private.parent.chmod(mode)
    with pytest.raises(ImageUnsafeError, match="private belongs to"):
        require_safe_image(str(private))


def test_directories_above_may_be_shared_if_sticky(private):
    above = private.parent.parent
    above.chmod(0o1777)
    require_safe_image(str(private))
    above.chmod(0o777)
    with pytest.raises(ImageUnsafeError):
        require_safe_image(str(private))
    above.chmod(0o700)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_an_image_of_another_user_is_not_safe(private):
    os.chown(private, 12345, -1)
    with pytest.raises(ImageUnsafeError, match="user 12345"):
        require_safe_image(str(private))


def test_a_link_to_an_unsafe_image_is_not_safe(private, tmp_path):
    private.chmod(0o666)
    link = tmp_path / "link"
    link.symlink_to(private)
    with pytest.raises(ImageUnsafeError):
        require_safe_image(str(link))
