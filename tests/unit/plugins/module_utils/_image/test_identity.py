# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""By what an image is known again."""

from __future__ import annotations

import os
import shutil

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._image.edit import mark_checkpoint
from ansible_collections.vmops.qemu.plugins.module_utils._image.identity import ImageIdentity
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_file import read_image_head


@pytest.fixture
def image(builder):
    path = builder.write()
    os.utime(path, ns=(10**18, 10**18))
    return str(path)


def test_same_image(image):
    identity = ImageIdentity.of(image)
    assert identity.is_that_of(image)
    mark_checkpoint(image, read_image_head(image))
    assert identity.is_that_of(image)


def test_mark_of_a_run_that_was_killed_before_it_put_the_time_back(image):
    identity = ImageIdentity.of(image)
    mark_checkpoint(image, read_image_head(image))
    os.utime(image)
    assert identity.is_that_of(image)


def test_another_image_in_the_same_inode(builder, image):
    """Of the same head (libvirt's has no time in it): one that nobody has marked is a new one."""
    identity = ImageIdentity.of(image)
    os.utime(image)
    assert not identity.is_that_of(image)


def test_another_head_in_the_same_inode(builder, image):
    identity = ImageIdentity.of(image)
    builder.xml = builder.xml.replace("</domain>", "<title>another</title></domain>")
    builder.write()
    mark_checkpoint(image, read_image_head(image))
    os.utime(image)
    assert not identity.is_that_of(image)


def test_copy_is_another(tmp_path, image):
    identity = ImageIdentity.of(image)
    copy = shutil.copy2(image, tmp_path / "copy.save")
    mark_checkpoint(str(copy), read_image_head(str(copy)))
    assert not identity.is_that_of(str(copy))


def test_no_image(tmp_path, image):
    absent = str(tmp_path / "absent")
    assert not ImageIdentity.of(absent).is_that_of(absent)
    assert not ImageIdentity.of(absent).is_that_of(image)
    assert not ImageIdentity.of(image).is_that_of(absent)


def test_what_is_no_image(tmp_path):
    path = tmp_path / "text"
    path.write_text("no image")
    identity = ImageIdentity.of(str(path))
    assert identity.is_that_of(str(path))
    os.utime(path, ns=(1, 1))
    assert not identity.is_that_of(str(path))
