# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.configuration import Configuration, Setting
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.bridges import (
    Tap,
    parse_vlans,
    put_into_bridges,
    tap_problems,
)
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.needs import Needs

TAP = Tap("vm0", "br0", mtu=1500, port=("isolated=1",), vlans=("10-12", "20 pvid untagged"), addresses=("192.0.2.1",))


def process(words: str = "tap,id=n0,ifname=vm0,script=no") -> Any:
    return SimpleNamespace(configuration=Configuration((Setting("netdev", words),), ()))


def kinds(*taps: Tap, words: str = "tap,id=n0,ifname=vm0,script=no", by_unit: bool = False) -> list[tuple[str, bool]]:
    return [(problem.kind, problem.blocks) for problem in tap_problems(taps, process(words), by_unit)]


def test_record_is_read_again():
    assert Needs.parse(Needs(taps=(TAP,)).dump()).taps == (TAP,)
    assert Needs.parse({"taps": [{"name": "vm0", "bridge": "br0"}]}).taps == (Tap("vm0", "br0"),)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (
            [
                {
                    "ifname": "vm0",
                    "vlans": [
                        {"vlan": 10, "vlanEnd": 12},
                        {"vlan": 20, "flags": ["PVID", "Egress Untagged"]},
                        {"vlan": 30, "flags": ["Egress Untagged"]},
                    ],
                },
                {"ifname": "vm1", "vlans": [{"vlan": 7}]},
            ],
            ("10-12", "20 pvid untagged", "30 untagged"),
        ),
        ([], ()),
        (None, ("?",)),
        ([{"vm0": []}], ("?",)),
        ([{"ifname": "vm0", "vlans": [{"vlan": "1 dev eth0"}]}], ("?",)),
        ([7], ("?",)),
    ],
)
def test_vlans(told, expected):
    assert parse_vlans(told, "vm0") == expected


def test_what_nothing_gives_again():
    assert kinds(Tap("vm0", "br0", mtu=9000, port=("isolated=1",), vlans=("20",))) == []
    assert kinds(Tap("vm0", addresses=("192.0.2.1",))) == [("tap_addresses", False)]
    assert kinds(Tap("vm0", master="blue", master_kind="vrf")) == [("tap_vrf", True)]
    assert kinds(Tap("vm0", master="ovs-system")) == [("tap_master", False)]
    assert kinds(Tap("vm0", "br0", vlans=("?",))) == [("tap_vlans", True)]


def test_what_something_gives_again():
    tap = Tap("vm0", master="blue", master_kind="vrf", addresses=("192.0.2.1",))
    assert kinds(tap, words="tap,id=n0,ifname=vm0") == []
    assert kinds(tap, by_unit=True) == []
    assert kinds(Tap("vm0", master="blue", master_kind="vrf", persists=True)) == [("tap_needed", False)]


@pytest.mark.parametrize(
    "tap",
    [
        Tap("vm/../x", "lo", mtu=9),
        Tap("no-such-tap", mtu=2**40),
        Tap("no-such-tap", "../../tmp"),
        Tap("no-such-tap", "no-such-bridge", port=("isolated=1 ",)),
    ],
)
def test_record_that_makes_no_sense_changes_nothing(tap):
    said = put_into_bridges([tap], [Tap(tap.name)])
    assert said
    assert all(tap.name in sentence for sentence in said)
