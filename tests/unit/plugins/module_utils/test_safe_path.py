# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A path within another root directory, whose links are its owner's making."""

from __future__ import annotations

import os

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._safe_path import open_in_root


@pytest.fixture
def root(tmp_path):
    """A root directory with a file in it, beside one that is not to be reached from there."""
    (tmp_path / "outside").write_text("outside")
    (tmp_path / "root" / "run" / "vm").mkdir(parents=True)
    (tmp_path / "root" / "run" / "vm" / "sock").write_text("inside")
    (tmp_path / "root" / "outside").write_text("inside, too")
    return tmp_path / "root"


def read(root, path):
    found = open_in_root(str(root), path)
    try:
        with open(f"/proc/self/fd/{found}", encoding="ascii") as handle:
            return handle.read()
    finally:
        os.close(found)


@pytest.mark.parametrize(
    "path", ["/run/vm/sock", "run/vm/sock", "//run/./vm/../vm/sock", "/../../run/vm/sock", "/run/../../run/vm/sock"]
)
def test_path(root, path):
    assert read(root, path) == "inside"


@pytest.mark.parametrize(
    ("link", "target", "path", "said"),
    [
        ("var", "run", "/var/vm/sock", "inside"),
        ("var", "/run", "/var/vm/sock", "inside"),
        ("var", "../../../run", "/var/vm/sock", "inside"),
        ("run/lock", "/../outside", "/run/lock", "inside, too"),
        ("run/lock", "../../outside", "/run/lock", "inside, too"),
        ("run/lock", "vm/sock", "/run/lock", "inside"),
        ("run/lock", "/", "/run/lock/run/vm/sock", "inside"),
    ],
)
def test_links_stay_within(root, link, target, path, said):
    (root / link).symlink_to(target)
    assert read(root, path) == said


def test_name_of_outside_is_not_found(root, tmp_path):
    (root / "run" / "lock").symlink_to(tmp_path / "outside")
    with pytest.raises(FileNotFoundError):
        open_in_root(str(root), "/run/lock")


def test_links_without_end(root):
    (root / "a").symlink_to("b")
    (root / "b").symlink_to("a")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="symbolic links"):
        open_in_root(str(root), "/a")
    assert len(os.listdir("/proc/self/fd")) == before
