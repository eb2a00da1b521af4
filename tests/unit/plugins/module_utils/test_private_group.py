# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the group of a user alone may write, nobody else may write; seen at the accounts and files of this host."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import struct

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._private_group import is_private
from ansible_collections.vmops.qemu.plugins.module_utils._safe_path import why_unsafe, why_unsafe_directory

#: An account that has a group of its own name on Debian and Fedora.
DAEMON = pwd.getpwnam("daemon")

of_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


def acl(user: int) -> bytes:
    """An ACL by which this user, too, may read and write; acl(5), linux/posix_acl_xattr.h."""
    nobody = 0xFFFFFFFF
    entries = [(0x01, 7, nobody), (0x02, 7, user), (0x04, 7, nobody), (0x10, 7, nobody), (0x20, 0, nobody)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def test_groups_of_one_user():
    assert is_private(DAEMON.pw_gid, DAEMON.pw_uid)


@pytest.mark.parametrize(
    ("gid", "uid"),
    [
        (0, 0),
        (grp.getgrnam("adm").gr_gid, DAEMON.pw_uid),
        (DAEMON.pw_gid, 12345678),
        (12345678, DAEMON.pw_uid),
        (DAEMON.pw_gid, pwd.getpwnam("nobody").pw_uid),
    ],
    ids=["root", "another group", "no such user", "no such group", "another user"],
)
def test_other_groups(gid, uid):
    assert not is_private(gid, uid)


def test_group_with_another_account(monkeypatch):
    """It is nobody's member, but its first group is this one."""
    twin = pwd.struct_passwd(("twin", "x", 4711, DAEMON.pw_gid, "", "/", "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwall", lambda: [DAEMON, twin])
    is_private.cache_clear()
    assert not is_private(DAEMON.pw_gid, DAEMON.pw_uid)
    is_private.cache_clear()


def test_group_with_a_member(monkeypatch):
    group = grp.getgrgid(DAEMON.pw_gid)
    shared = grp.struct_group((group.gr_name, "x", group.gr_gid, ["games"]))
    monkeypatch.setattr(grp, "getgrgid", lambda _gid: shared)
    is_private.cache_clear()
    assert not is_private(DAEMON.pw_gid, DAEMON.pw_uid)
    is_private.cache_clear()


@pytest.fixture
def directory(tmp_path):
    """As a user with the umask 0002 makes it, with a file."""
    place = tmp_path / "images"
    place.mkdir()
    (place / "web1.save").touch()
    for path, mode in ((place, 0o775), (place / "web1.save", 0o664)):
        path.chmod(mode)
        os.chown(path, DAEMON.pw_uid, DAEMON.pw_gid)
    return place


@of_root
def test_what_a_private_group_may_write_is_safe(directory):
    trusted = (0, DAEMON.pw_uid)
    assert why_unsafe_directory(str(directory), trusted) == ""
    assert why_unsafe(str(directory / "web1.save"), trusted) == ""
    assert "belongs to the user" in why_unsafe_directory(str(directory), (0,))
    directory.chmod(0o777)
    assert "has the mode 0o777" in why_unsafe_directory(str(directory), trusted)


@of_root
def test_what_another_group_may_write_is_not(directory):
    os.chown(directory, -1, grp.getgrnam("adm").gr_gid)
    assert "has the mode 0o775" in why_unsafe_directory(str(directory), (0, DAEMON.pw_uid))


@of_root
def test_acl_lets_others_write(directory):
    """Its mask stands in the place of the group's bits."""
    try:
        os.setxattr(directory, "system.posix_acl_access", acl(33))
    except OSError as error:
        assert error.errno == errno.ENOTSUP
        pytest.skip("this file system has no ACLs")
    assert "has the mode 0o770" in why_unsafe_directory(str(directory), (0, DAEMON.pw_uid))
