# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import grp
import os
import pwd

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._errors import RequestError
from ansible_collections.vmops.qemu.plugins.module_utils._module import parse_bandwidth, parse_mode, parse_owner
from hypothesis import given
from hypothesis import strategies as st

PRIVATE_MODES = st.integers(0, 0o77).map(lambda bits: bits << 3)

# --- mode ---


@pytest.mark.parametrize(
    ("value", "mode"),
    [("0600", 0o600), ("600", 0o600), ("0640", 0o640), ("0000", 0), (0o600, 0o600), (0, 0)],
)
def test_a_mode(value, mode):
    assert parse_mode(value) == mode


@given(PRIVATE_MODES)
def test_a_mode_is_the_same_as_text_and_as_number(mode):
    assert parse_mode(mode) == parse_mode(f"{mode:03o}") == parse_mode(f"{mode:04o}") == mode


@given(PRIVATE_MODES, st.integers(1, 7))
def test_no_mode_lets_others_in(mode, others):
    for value in (mode | others, f"{mode | others:04o}"):
        with pytest.raises(RequestError, match="every user") as caught:
            parse_mode(value)
        assert "0600" in caught.value.cure


@pytest.mark.parametrize("value", ["", "u=rw", "0800", "06", "1600", "00600", "-600", " 600", "600\n", "0o600", "६००"])
def test_what_is_no_octal_mode(value):
    with pytest.raises(RequestError, match="not an octal file mode"):
        parse_mode(value)


@pytest.mark.parametrize("value", [-1, 600, 0o1600, 0o4600, 2**31])
def test_a_number_that_is_no_private_mode(value):
    with pytest.raises(RequestError):
        parse_mode(value)


# --- bandwidth ---


@pytest.mark.parametrize(
    ("text", "bandwidth"),
    [(None, None), ("1M", 2**20), ("200M", 200 * 2**20), ("1.5G", 3 * 2**29), ("1048576", 2**20), ("1MB", 2**20)],
)
def test_a_bandwidth(text, bandwidth):
    assert parse_bandwidth(text) == bandwidth


@pytest.mark.parametrize("text", ["", "fast", "10Q", "-1M"])
def test_what_is_no_bandwidth(text):
    with pytest.raises(RequestError):
        parse_bandwidth(text)


@pytest.mark.parametrize("text", ["0", "1", "1048575", "1023K"])
def test_a_bandwidth_that_is_too_low(text):
    with pytest.raises(RequestError, match="less than 1M"):
        parse_bandwidth(text)


# --- owner ---


def test_no_owner():
    assert parse_owner(None, None) == (-1, -1)


def test_an_owner_by_name_and_by_number():
    user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(os.getegid())
    assert parse_owner(user.pw_name, group.gr_name) == (user.pw_uid, group.gr_gid)
    assert parse_owner(str(user.pw_uid), None) == (user.pw_uid, -1)
    assert parse_owner(None, str(group.gr_gid)) == (-1, group.gr_gid)
    assert parse_owner("4000000", "4000001") == (4000000, 4000001)


@pytest.mark.parametrize(("owner", "group"), [("no-such-user", None), (None, "no-such-group"), ("", None)])
def test_an_unknown_owner(owner, group):
    with pytest.raises(RequestError, match="unknown on this host"):
        parse_owner(owner, group)
