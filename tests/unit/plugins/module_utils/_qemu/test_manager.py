# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whose systemd a unit is of; what a user's own makes of all this is seen in tests/hosts/test_without_root.py."""

from __future__ import annotations

import asyncio
import os

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._errors import UnitError
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import manager, systemd
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.manager import HOST, Manager

UNIT = "user@54321.service/web1.service"


@pytest.fixture
def user(monkeypatch, tmp_path):
    """Be the user 54321, with what logind makes for him elsewhere."""
    if os.geteuid():
        pytest.skip("only root can give a directory away")
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    monkeypatch.setattr(manager, "_USERS", str(tmp_path))
    place = tmp_path / "54321"
    place.mkdir(mode=0o700)
    os.chown(place, 54321, 54321)
    return place


@pytest.mark.parametrize(
    ("unit", "uid", "name"),
    [
        ("web1.service", None, "web1.service"),
        (UNIT, 54321, "web1.service"),
        ("user@0.service/web1.service", 0, "web1.service"),
        # The service itself is one of the host's.
        ("user@54321.service", None, "user@54321.service"),
    ],
)
def test_whose_a_unit_is(unit, uid, name):
    whose, plain = manager.split_unit(unit)
    assert (whose.uid, plain) == (uid, name)
    assert whose.named(plain) == unit
    assert manager.is_unit(unit)


@pytest.mark.parametrize(
    "unit",
    [
        *("", "/", "/web1.service", "user@54321.service/", "user@alice.service/web1.service"),
        *("user@54321.service/../web1.service", "../user@54321.service/web1.service", "a.service/web1.service"),
        *("user@01.service/web1.service", "user@54321.service/a.service/web1.service", "user@-1.service/a.service"),
    ],
)
def test_no_unit(unit):
    assert not manager.is_unit(unit)
    assert not manager.can_be_asked(unit)
    with pytest.raises(UnitError, match="not the name of a systemd unit"):
        manager.split_unit(unit)


@pytest.mark.parametrize(
    ("uid", "of_host", "of_user"), [(0, (True, True), (False, False)), (54321, (False, True), (True, True))]
)
def test_who_may_change_and_ask(monkeypatch, uid, of_host, of_user):
    """Nobody asks another user's own systemd, root neither: it says what that user likes."""
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    assert (HOST.is_own, HOST.can_be_asked) == of_host
    assert (Manager(54321).is_own, Manager(54321).can_be_asked) == of_user
    assert not Manager(54322).can_be_asked


def test_other_users_systemd_is_not_asked(monkeypatch):
    async def run(*command, **_keywords):
        raise AssertionError(f"{command} was run")

    monkeypatch.setattr(systemd, "run_tool", run)
    assert asyncio.run(systemd.read_units(UNIT, "")) == {}
    with pytest.raises(UnitError, match="another user's own systemd"):
        asyncio.run(systemd.read_unit(UNIT))
    with pytest.raises(UnitError, match="Only 54321 may start it") as error:
        manager.require_own(UNIT, "start it")
    assert "become_user: 54321" in error.value.cure


def test_environment_is_not_that_of_this_process(monkeypatch, user):
    """It may be another user's, as with su, or none, as with sudo."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/0")
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", "unix:path=/run/user/0/bus")
    found = Manager(54321).environment()
    assert found["XDG_RUNTIME_DIR"] == str(user)
    assert found["DBUS_SESSION_BUS_ADDRESS"] == f"unix:path={user}/bus"
    assert "XDG_RUNTIME_DIR" not in HOST.environment()


@pytest.mark.parametrize("case", ["missing", "of root", "open to others", "a link", "a file"])
def test_directory_that_is_not_the_users_alone(user, case):
    """Whoever could make its sockets would be asked in the place of systemd."""
    if case == "of root":
        os.chown(user, 0, 0)
    elif case == "open to others":
        user.chmod(0o750)
    else:
        user.rmdir()
    if case == "a link":
        target = user.parent / "elsewhere"
        target.mkdir(mode=0o700)
        os.chown(target, 54321, 54321)
        user.symlink_to(target)
    elif case == "a file":
        user.touch(mode=0o700)
        os.chown(user, 54321, 54321)
    with pytest.raises(UnitError, match=r"The systemd of 54321 cannot be asked: .*/54321") as error:
        Manager(54321).environment()
    assert "loginctl enable-linger 54321" in error.value.cure


def test_user_whose_systemd_does_not_stay_starts_by_himself(user, monkeypatch, tmp_path):
    """What it starts ends with his last session, and a VM must not."""
    monkeypatch.setattr(os.path, "isdir", lambda _path: True)
    monkeypatch.setattr(manager, "_listener", lambda _path, _uid: 42)
    monkeypatch.setattr(manager, "_LINGERING", str(tmp_path / "linger"))
    assert manager.starter() is None
    assert manager.starter_pid() == os.getpid()
    (tmp_path / "linger").mkdir()
    (tmp_path / "linger" / "54321").touch()
    assert manager.starter() == (Manager(54321), 42)


def test_facts_of_a_users_unit():
    text = "Id=web1.service\nRuntimeDirectory=a b\nRuntimeDirectoryPreserve=no\n"
    unit = systemd.parse_units(text, Manager(54321))[0]
    assert unit.name == UNIT
    assert unit.volatile_directories == ("/run/user/54321/a", "/run/user/54321/b")
    assert manager.shown(unit.name, "cat") == "systemctl --user cat web1.service"
    assert manager.shown("web1.service", "-u", "journalctl") == "journalctl -u web1.service"
