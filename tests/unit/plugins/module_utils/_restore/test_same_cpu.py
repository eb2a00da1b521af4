# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.cpu import Cpu
from ansible_collections.vmops.qemu.plugins.module_utils._restore.same_cpu import cpu_additions, cpu_differences

AVX = 1 << 28
CPU = Cpu("kvm", "host-x86_64-cpu", {"cores": 2}, "GenuineIntel", "a", 6, 60, 4, 40, {"1.ecx": AVX | 1}, ["hv-time"])


def other(**facts: Any) -> Cpu:
    return dataclasses.replace(CPU, **facts)


def test_same():
    assert cpu_differences(CPU, CPU) == cpu_additions(CPU, CPU) == []
    assert cpu_differences(CPU, other(type="Haswell-x86_64-cpu")) == []


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"accelerator": "tcg"}, "the accelerator was kvm, and is tcg now"),
        ({"features": {"1.ecx": 1}}, "it lacks avx"),
        ({"features": {}, "hyperv": []}, "it lacks sse3, avx, hv-time"),
        ({"vendor": "AuthenticAMD"}, "its vendor was GenuineIntel, and is AuthenticAMD now"),
        ({"family": 15}, "its family was 6, and is 15 now"),
        ({"model": 0}, "its model was 60, and is 0 now"),
        ({"physical_bits": 39}, "addresses of memory had 40 bits, and have 39 now"),
        ({"topology": {}}, "there were 2 cores, and there are one CPU now"),
    ],
)
def test_what_the_guest_would_miss(facts, said):
    assert cpu_differences(CPU, other(**facts)) == [said]


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"features": {"1.ecx": AVX | 3, "7.0.ebx": 1}}, "it has pclmulqdq, fsgsbase, too"),
        ({"stepping": 5}, "its stepping was 4, and is 5 now"),
        ({"model_name": "b"}, "its name was a, and is b now"),
        ({"physical_bits": 48}, "addresses of memory had 40 bits, and have 48 now"),
    ],
)
def test_what_does_no_harm(facts, said):
    assert cpu_differences(CPU, other(**facts)) == []
    assert cpu_additions(CPU, other(**facts)) == [said]


def test_type_where_the_features_are_not_known():
    old = Cpu("tcg", "cortex-a57-arm-cpu", {})
    new = Cpu("tcg", "cortex-a72-arm-cpu", {})
    assert cpu_differences(old, old) == []
    assert cpu_differences(old, new) == ["it was of the type cortex-a57-arm-cpu, and is a cortex-a72-arm-cpu now"]


def test_nothing_known_says_nothing():
    for pair in ((Cpu(""), CPU), (Cpu("kvm"), CPU), (CPU, Cpu("kvm"))):
        assert cpu_differences(*pair) == cpu_additions(*pair) == []


def test_many_names_are_cut():
    (said,) = cpu_differences(other(features={"1.edx": 2**32 - 1}, hyperv=None), other(features={}))
    assert said.count(",") == 19
    assert said.endswith(" and 12 more")
