# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import pwd
import stat

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils import _state_directory
from ansible_collections.vmops.qemu.plugins.module_utils._errors import VouchingKeyError
from ansible_collections.vmops.qemu.plugins.module_utils._vouching_key import key_path, make_key, read_key

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of other users")


def test_is_made_once(own_key):
    assert read_key() is None
    key = make_key()
    assert len(key) == 32
    assert make_key() == read_key() == key
    assert key_path() == str(own_key)
    assert stat.S_IMODE(own_key.stat().st_mode) == 0o600
    assert stat.S_IMODE(own_key.parent.stat().st_mode) == 0o700
    assert os.listdir(own_key.parent) == [own_key.name]
    assert own_key.read_text() == f"{key.hex()}\n"


def test_no_two_are_the_same(own_key):
    key = make_key()
    own_key.unlink()
    assert make_key() != key


def test_many_runs_make_the_same(own_key):
    context = multiprocessing.get_context("fork")
    with concurrent.futures.ProcessPoolExecutor(8, mp_context=context) as runs:
        keys = list(runs.map(_make, range(8)))
    assert len(set(keys)) == 1
    assert keys[0] == read_key()


def _make(_number):
    return make_key()


def test_run_that_is_killed_leaves_none_or_all(own_key, kill_at_each_step):
    def set_up():
        own_key.unlink(missing_ok=True)

    def check(_finished):
        key = read_key()
        assert make_key() == (key or make_key())
        assert os.listdir(own_key.parent) == [own_key.name]

    kill_at_each_step(set_up, make_key, check, at_least=3)


def test_umask_does_not_matter(own_key):
    before = os.umask(0)
    try:
        make_key()
    finally:
        os.umask(before)
    assert stat.S_IMODE(own_key.stat().st_mode) == 0o600
    assert stat.S_IMODE(own_key.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644])
def test_mode_with_which_others_know_it(own_key, mode):
    make_key()
    own_key.chmod(mode)
    for work in (read_key, make_key):
        with pytest.raises(VouchingKeyError, match="not one that its user alone knows") as caught:
            work()
        assert "0600" in caught.value.cure


@pytest.mark.parametrize("mode", [pytest.param(0o720, marks=AS_ROOT), 0o707, 0o1777])
def test_directory_that_others_can_write_to(own_key, mode):
    make_key()
    own_key.parent.chmod(mode)
    with pytest.raises(VouchingKeyError, match="not one that its user alone knows"):
        read_key()


@AS_ROOT
def test_of_another_user(own_key):
    make_key()
    os.chown(own_key, 12345, -1)
    with pytest.raises(VouchingKeyError, match="12345"):
        read_key()


def test_with_another_name(own_key, tmp_path):
    make_key()
    os.link(own_key, tmp_path / "other")
    with pytest.raises(VouchingKeyError, match="2 names"):
        read_key()


def test_link_in_its_place(own_key, tmp_path):
    make_key()
    own_key.rename(tmp_path / "other")
    own_key.symlink_to(tmp_path / "other")
    with pytest.raises(VouchingKeyError, match="cannot be opened"):
        read_key()


def test_fifo_in_its_place(own_key):
    make_key()
    own_key.unlink()
    os.mkfifo(own_key, 0o600)
    with pytest.raises(VouchingKeyError, match="not one"):
        read_key()


@pytest.mark.parametrize("text", ["", "0" * 63, "0" * 65, "g" * 64, "0" * 64 + "\n\n", "0" * 64 + " ", "ä" * 32])
def test_what_is_none(own_key, text):
    make_key()
    own_key.write_text(text)
    with pytest.raises(VouchingKeyError, match="64 hexadecimal digits") as caught:
        read_key()
    assert text == "" or text not in str(caught.value)


def test_without_a_line_break(own_key):
    make_key()
    own_key.write_text("AB" * 32)
    assert read_key() == b"\xab" * 32


def test_place_that_cannot_be_written_to(own_key, monkeypatch):
    own_key.parent.parent.joinpath("file").write_text("")
    monkeypatch.setattr(_state_directory, "ROOT_DIRECTORY", str(own_key.parent.parent / "file" / "vmops.qemu"))
    monkeypatch.setenv("XDG_STATE_HOME", str(own_key.parent.parent / "file"))
    assert read_key() is None
    with pytest.raises(VouchingKeyError, match="cannot be made"):
        make_key()


def test_where_it_is(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(_state_directory, "ROOT_DIRECTORY", "/var/lib/vmops.qemu")
    assert key_path() == "/var/lib/vmops.qemu/vouching.key", "whatever the environment says"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert key_path() == f"{os.environ['XDG_STATE_HOME']}/vmops.qemu/vouching.key"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    user = pwd.getpwnam("nobody")
    monkeypatch.setattr(os, "geteuid", lambda: user.pw_uid)
    assert key_path() == f"{user.pw_dir}/.local/state/vmops.qemu/vouching.key"
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_000_000)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert key_path() == str(tmp_path / ".local" / "state" / "vmops.qemu" / "vouching.key")
