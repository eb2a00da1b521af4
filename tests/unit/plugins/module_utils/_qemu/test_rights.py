# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a process may do, and the words that give a program no more; tests/security runs them."""

from __future__ import annotations

import os
import shutil

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._errors import LaunchError
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import rights as rights_module
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.rights import (
    Capabilities,
    Rights,
    parse_capabilities,
    parse_groups,
    read_rights,
    rights_of,
    start_words,
)

STATUS = {
    "Uid": "65534 65534 65534 65534",
    "Gid": "65534 65534 65534 65534",
    "Groups": "12 7 65534",
    "NoNewPrivs": "1",
    "CapInh": "0000000000000001",
    "CapPrm": "0000000000000003",
    "CapBnd": "000001ffffffffff",
    "CapAmb": "0000000000000001",
    "Seccomp": "2",
    "Seccomp_filters": "3",
}
ALL = (1 << 41) - 1
ROOT = Rights(0, 0, (), capabilities=Capabilities(ALL, 0, ALL, 0))


def user(uid=65534, gid=65534, groups=(), **more):
    return Rights(uid, gid, groups, capabilities=Capabilities(0, 0, ALL, 0), **more)


def options(wanted, starter=ROOT):
    words = start_words(wanted, starter, "/srv")
    assert not words or (words[0], words[-4:]) == (
        shutil.which("setpriv"),
        [shutil.which("env"), "--chdir=/srv", shutil.which("setpriv"), "--"],
    )
    return words[1:-5]


def test_status():
    found = rights_of(STATUS)
    assert found == Rights(
        65534, 65534, (7, 12), no_new_privileges=True, capabilities=Capabilities(3, 1, ALL, 1), filters=3
    )
    assert found.named_groups == "7 12"


@pytest.mark.parametrize("changed", [{"Uid": "1000 0 0 0"}, {"Uid": "0 0 1000 0"}, {"Gid": "1 2 2 2"}])
def test_several_users_at_once(changed):
    found = rights_of({**STATUS, **changed})
    assert found is not None
    assert not found.one_user


def test_filters_that_are_not_counted():
    status = {key: value for key, value in STATUS.items() if key != "Seccomp_filters"}
    for mode, filters in (("2", None), ("0", 0)):
        found = rights_of({**status, "Seccomp": mode})
        assert found is not None
        assert found.filters == filters


@pytest.mark.parametrize("key", [key for key in STATUS if not key.startswith("Seccomp")])
def test_what_the_kernel_does_not_say_is_not_known(key):
    assert rights_of({name: value for name, value in STATUS.items() if name != key}) is None
    assert rights_of({**STATUS, key: "x"}) is None or key == "NoNewPrivs"


def test_this_process():
    found = read_rights("self")
    assert found is not None
    assert (found.uid, found.gid) == (os.geteuid(), os.getegid())
    assert read_rights(0) is None


def test_record():
    sets = Capabilities(3, 1, ALL, 1)
    assert parse_capabilities(str(sets)) == sets
    for text in (
        "",
        "permitted=3",
        f"{sets} ",
        f"{sets} x=1",
        str(sets).replace("3", "0x3"),
        str(sets).replace("3", ""),
    ):
        assert parse_capabilities(text) is None
    assert parse_groups("") == ()
    assert parse_groups("7 12") == (7, 12)
    for text in ("x", "1  2", "-1", "4294967295", " 1", " ".join(map(str, range(70000)))):
        assert parse_groups(text) is None, text[:20]


def test_nothing_is_put_before_what_is_so_already():
    assert options(ROOT) == []
    assert options(None) == []
    assert options(user(), user()) == []


def test_user_and_groups():
    identity = ["--reuid=65534", "--regid=65534"]
    assert options(user()) == [*identity, "--clear-groups"]
    assert options(user(groups=(7, 12))) == [*identity, "--groups=7,12"]
    assert options(Rights(0, 0, (7,))) == ["--reuid=0", "--regid=0", "--groups=7"]


def test_groups_that_were_not_recorded_are_the_accounts(monkeypatch):
    monkeypatch.setattr(os, "getgrouplist", lambda _name, gid: [gid, 20, 4])
    assert options(Rights(65534, 65534))[2] == "--groups=4,20"
    assert options(Rights(4294967000, 1))[2] == "--clear-groups"


@pytest.mark.parametrize("numbers", [(2**32 - 1, 0, ()), (1, 2**32 - 1, ()), (1, 1, (2**32,)), (-1, 1, ())])
def test_id_that_is_none(numbers):
    with pytest.raises(LaunchError, match="could not be one"):
        start_words(Rights(*numbers), ROOT, "/")


def test_no_new_privileges():
    assert options(user(no_new_privileges=True))[-1] == "--no-new-privs"
    assert options(user(no_new_privileges=True), user()) == ["--no-new-privs"]
    assert options(user(no_new_privileges=True), user(no_new_privileges=True)) == []


def test_capabilities_of_root():
    """What root is permitted by the next program is its bounding set, and what it can inherit."""
    assert options(Rights(0, 0, (), capabilities=Capabilities(ALL & ~0b1010, 0, ALL, 0))) == [
        "--bounding-set=-cap_1,-cap_3"
    ]
    starter = Rights(0, 0, (), capabilities=Capabilities(ALL, ALL, ALL, 0))
    assert options(Rights(0, 0, (), capabilities=Capabilities(0b11, 0b111, ALL & ~4, 0)), starter)[1] == (
        "--inh-caps=-all,+cap_0,+cap_1"
    )


def test_capabilities_of_others():
    sets = Capabilities(0b100, 0b100, ALL & ~1, 0b100)
    assert options(Rights(1, 1, (), capabilities=sets))[3:] == [
        *("--bounding-set=-cap_0", "--inh-caps=-all,+cap_2", "--ambient-caps=-all,+cap_2")
    ]


def test_starter_that_is_not_root_can_only_take_away():
    """A unit with AmbientCapabilities=, whose script has dropped them."""
    starter = Rights(1, 1, (), capabilities=Capabilities(0b110, 0b110, ALL, 0b110))
    assert options(Rights(1, 1, (), capabilities=Capabilities(0b10, 0b10, 0b10, 0b10)), starter) == [
        *("--inh-caps=-all,+cap_1", "--ambient-caps=-all,+cap_1")
    ]
    assert options(Rights(1, 1, (), capabilities=Capabilities(0b110, 0b110, 0, 0b110)), user(1, 1)) == []


def test_starter_of_whom_nothing_is_known(monkeypatch):
    monkeypatch.setattr(rights_module, "_all_capabilities", lambda: 0b11)
    assert options(Rights(0, 0, (), capabilities=Capabilities(1, 0, 3, 0)), None) == [
        *("--reuid=0", "--regid=0", "--clear-groups"),
        *("--bounding-set=-cap_1", "--inh-caps=-all", "--ambient-caps=-all"),
    ]


def test_nobody_but_root_becomes_another():
    assert options(Rights(1, 1, ()), user()) == []


def test_without_the_tool(monkeypatch):
    monkeypatch.setattr(rights_module, "_PATH", "/nonexistent")
    with pytest.raises(LaunchError, match="setpriv is not on this host"):
        start_words(user(), ROOT, "/")
