# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""An open image."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    ImageFormatError,
    ImageNotFoundError,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_file import (
    ImageFile,
    direct_read_reason,
    file_identity,
    read_image_head,
)


@pytest.fixture
def target(tmp_path) -> str:
    return str(tmp_path / "web1.save")


def test_refuses_what_is_no_regular_file_without_blocking(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (fifo, tmp_path, "/dev/null"):
        with pytest.raises(ImageFormatError, match="not a regular file"):
            read_image_head(str(path))


def test_a_missing_image(tmp_path):
    with pytest.raises(ImageNotFoundError, match="No such file"):
        read_image_head(str(tmp_path / "none"))


def test_an_open_image_stays_open(golden):
    path = str(golden / "raw.save")
    with ImageFile.open(path) as image:
        assert os.get_blocking(image.descriptor)
        assert image.head() == read_image_head(path)
        assert image.is_open
    assert not image.is_open


def test_direct_read(golden, monkeypatch):
    path = str(golden / "raw.save")
    assert direct_read_reason(path) is None

    def refuse(*_arguments):
        raise OSError(errno.EINVAL, "odd")

    monkeypatch.setattr(os, "preadv", refuse)
    assert "O_DIRECT" in str(direct_read_reason(path))


def test_identity_tells_one_file_from_another(target):
    assert file_identity(target) == ""
    Path(target).write_text("one")
    one = file_identity(target)
    Path(target + ".other").write_text("one")
    os.rename(target + ".other", target)
    assert file_identity(target) not in (one, "")
