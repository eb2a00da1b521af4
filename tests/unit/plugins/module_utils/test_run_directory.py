# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where the locks of runs are: one place for each user, that is nobody else's, or none."""

from __future__ import annotations

import os

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils import _run_directory
from ansible_collections.vmops.qemu.plugins.module_utils._errors import RunDirectoryError
from ansible_collections.vmops.qemu.plugins.module_utils._run_directory import (
    base_directory,
    host_run_paths,
    lock_path,
    progress_paths,
)

UID = 65533  # one that has no account, and so nothing below /run/user


@pytest.fixture
def user(monkeypatch, tmp_path):
    """Be another user than root, with a directory that is his alone."""
    if os.geteuid():
        pytest.skip("only root can give a directory away")
    place = tmp_path / "run"
    place.mkdir(mode=0o700)
    os.chown(place, UID, UID)
    monkeypatch.setattr(os, "geteuid", lambda: UID)
    # What pytest made belongs to root, who is trusted.
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(place))
    return place


def test_root_has_his_whatever_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert base_directory() == "/run/vmops.qemu"


def test_user(user):
    assert base_directory() == f"{user}/vmops.qemu"


def test_variable_that_is_not_set(user, monkeypatch):
    """As with sudo; who logs in has the same directory by the variable."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    with pytest.raises(FileNotFoundError) as error:
        base_directory()
    assert error.value.filename == f"/run/user/{UID}"


@pytest.mark.parametrize(
    "case", ["missing", "of root", "open to others", "shared", "relative", "a link", "below one of others"]
)
def test_what_is_not_his_alone_is_refused(user, monkeypatch, tmp_path, case):
    """Nor is another one taken in its place, as two runs with two places for locks would not know of each other."""
    if case == "missing":
        user.rmdir()
    elif case == "of root":
        os.chown(user, 0, 0)
    elif case == "open to others":
        user.chmod(0o755)
    elif case == "shared":
        monkeypatch.setenv("XDG_RUNTIME_DIR", "/tmp")
    elif case == "relative":
        monkeypatch.setenv("XDG_RUNTIME_DIR", "run")
        monkeypatch.chdir(tmp_path)
    elif case == "a link":
        (tmp_path / "link").symlink_to(user)
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "link"))
    else:
        above = tmp_path / "above"
        above.mkdir()
        above.chmod(0o777)
        user.rename(above / "run")
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(above / "run"))
    with pytest.raises(RunDirectoryError, match=f"locks that keep two runs of {UID} apart: ") as error:
        lock_path("vm-1-2")
    assert os.environ["XDG_RUNTIME_DIR"] in str(error.value)
    assert "XDG_RUNTIME_DIR" in error.value.cure
    # What only tells something does without.
    for paths in (progress_paths, host_run_paths):
        with pytest.raises(OSError):  # noqa: PT011 - which of them is of no matter
            paths()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_roots_place_that_is_another_users(monkeypatch, tmp_path):
    place = tmp_path / "vmops.qemu"
    place.mkdir(mode=0o700)
    os.chown(place, UID, UID)
    monkeypatch.setattr(_run_directory, "ROOT_DIRECTORY", str(place))
    with pytest.raises(RunDirectoryError, match="not a directory of this user's alone"):
        lock_path("vm-1-2")
