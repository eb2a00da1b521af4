# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What may be put into a directory, and taken away."""

from __future__ import annotations

import stat

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    ImageAccessError,
    ImageFormatError,
    ImageNotFoundError,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.place import (
    flush_image,
    free_bytes,
    make_save_directory,
    remove_image,
    require_writable_directory,
)


def test_remove_image(tmp_path):
    path = tmp_path / "i"
    path.write_bytes(b"")
    remove_image(str(path))
    with pytest.raises(ImageNotFoundError):
        remove_image(str(path))
    with pytest.raises(ImageFormatError):
        remove_image(str(tmp_path))


def test_flush_image(golden, tmp_path):
    flush_image(str(golden / "raw.save"))
    with pytest.raises(ImageNotFoundError):
        flush_image(str(tmp_path / "none"))


def test_free_bytes(tmp_path):
    assert (free_bytes(str(tmp_path)) or 0) > 0
    with pytest.raises(ImageNotFoundError):
        free_bytes(str(tmp_path / "none"))


def test_a_directory_that_can_be_written(tmp_path):
    assert require_writable_directory(str(tmp_path)) == str(tmp_path)
    assert require_writable_directory(str(tmp_path / "a" / "b"), may_be_made=True) == str(tmp_path)
    with pytest.raises(ImageNotFoundError, match="No such file"):
        require_writable_directory(str(tmp_path / "a" / "b"))
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "b"):
        for may_be_made in (False, True):
            with pytest.raises(ImageNotFoundError, match="Not a directory"):
                require_writable_directory(str(path), may_be_made)


def test_the_save_directory_is_private(tmp_path):
    path = tmp_path / "a" / "save"
    for _again in range(2):
        make_save_directory(str(path))
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    path.chmod(0o750)
    make_save_directory(str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o750
    (tmp_path / "file").write_text("")
    with pytest.raises(ImageAccessError):
        make_save_directory(str(tmp_path / "file" / "save"))
