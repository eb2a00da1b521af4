# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import collections

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.machine import (
    _CPU,
    _MEMORY,
    _NETWORK_ROW,
    _take,
)


@pytest.mark.parametrize(
    ("actual", "drivers", "left", "missing"),
    [
        (["e1000"], ["e1000-82540em"], [], []),
        (["virtio-blk-ccw", "virtio-blk-ccw"], ["virtio-blk"], ["virtio-blk-ccw"], []),
        (["virtio-rng-device", "virtio-rng-pci"], ["virtio-rng", "virtio-rng-pci"], [], []),
        (["virtio-net-pci-non-transitional"], ["virtio-net"], ["virtio-net-pci-non-transitional"], ["virtio-net"]),
        ([], ["VGA"], [], ["VGA"]),
        (["VGA"], [], ["VGA"], []),
    ],
)
def test_devices_of_a_driver(actual, drivers, left, missing):
    counter = collections.Counter(actual)
    assert _take(counter, drivers) == missing
    assert list(counter.elements()) == left


@pytest.mark.parametrize(
    ("kind", "cpu", "memory"),
    [
        ("qemu64-x86_64-cpu", True, False),
        ("host-arm-cpu", True, False),
        ("power9_v2.2-spapr-cpu-core", True, False),
        ("cpu-cluster", True, False),
        ("pc-dimm", False, True),
        ("virtio-mem-pci", False, True),
        ("virtio-pmem-pci", False, True),
        ("virtio-net-pci", False, False),
        ("e1000", False, False),
    ],
)
def test_kinds_of_devices(kind, cpu, memory):
    assert bool(_CPU.fullmatch(kind)) == cpu
    assert bool(_MEMORY.fullmatch(kind)) == memory


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (" \\ n2: index=0,type=user,net=10.0.2.0,restrict=off\r", ("n2", "user")),
        (" \\ hub0port0: e1000.0: index=0,type=nic,model=e1000", ("e1000.0", "nic")),
        (" \\ hub0port1: #net141: index=0,type=user,net=10.0.2.0", None),
        ("u-1.2_x: index=0,type=vhost-user,x", ("u-1.2_x", "vhost-user")),
        ("hub 0", None),
        ("", None),
    ],
)
def test_rows_of_network_backends(line, found):
    row = _NETWORK_ROW.match(line)
    assert (row and (row.group("name"), row.group("type"))) == found
