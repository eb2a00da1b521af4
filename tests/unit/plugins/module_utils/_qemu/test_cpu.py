# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.cpu import Cpu
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.cpu_features import feature_names

CPU = Cpu("kvm", "host-x86_64-cpu", {"cores": 2}, "GenuineIntel", "a name", 6, 60, 4, 40, {"1.edx": 5}, ["hv-time"])


def test_record_is_read_again():
    for cpu in (CPU, Cpu("tcg"), Cpu("tcg", "cortex-a57-arm-cpu", {})):
        assert Cpu.parse(cpu.dump()) == cpu


def test_what_a_later_version_added_is_left_out():
    assert Cpu.parse('{"accelerator":"tcg","of":["tomorrow"]}') == Cpu("tcg")
    assert Cpu.parse("{}") == Cpu("")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "7",
        "[" * 100_000,
        '{"accelerator":7}',
        '{"vendor":"a\\u0000b"}',
        json.dumps({"model_name": "x" * 257}),
        '{"family":-1}',
        '{"family":true}',
        '{"features":{"1.edx":4294967296}}',
        '{"features":{"1.edx":"7"}}',
        '{"features":[1]}',
        json.dumps({"features": {str(number): 1 for number in range(513)}}),
        '{"hyperv":["a",7]}',
        json.dumps({"of": "x" * 70_000}),
    ],
)
def test_record_that_makes_no_sense(text):
    with pytest.raises(ValueError, match=r"it |its |Expecting"):
        Cpu.parse(text)


def test_names():
    assert feature_names("7.0.ebx", 1 << 5 | 1 << 3) == ["bmi1", "avx2"]
    assert feature_names("7.0.ebx", 1 << 12) == ["CPUID 7.0.ebx bit 12"]
    assert feature_names("6.eax", 1 << 31) == ["CPUID 6.eax bit 31"]
    assert feature_names("99.eax", 1) == ["CPUID 99.eax bit 0"]
    assert feature_names("1.edx", 0) == []
