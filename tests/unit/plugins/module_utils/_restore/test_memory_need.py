# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A QEMU may have less memory than its host: what its unit says, or the control group that starts it."""

from __future__ import annotations

import asyncio

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._errors import HostMemoryError, UnitError
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import manager, systemd
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.launch import Launch
from ansible_collections.vmops.qemu.plugins.module_utils._restore import memory_need
from ansible_collections.vmops.qemu.plugins.module_utils._restore.memory_need import MemoryNeed, require_within_limits

MIB = 2**20
BY_UNIT = Launch(argv=("qemu",), unit="qemu@web1.service")
NO_LIMIT = 2**64 - 1


def check(how, ordinary=100 * MIB, huge=None):
    asyncio.run(require_within_limits(MemoryNeed(ordinary, huge or {}), how, "web1"))


@pytest.fixture
def says(monkeypatch):
    """Have systemd say something of the unit."""

    def say(answer):
        async def systemctl(*_words, **_keywords):
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(systemd, "systemctl", systemctl)

    return say


@pytest.mark.parametrize(
    "answer",
    [
        "MemoryMax=infinity\nEffectiveMemoryMax=infinity\n",
        f"MemoryMax={NO_LIMIT}\n",
        f"MemoryMax={100 * MIB}\n",
        "MemoryMax=\n",
        "",
        UnitError("systemd does not answer"),
    ],
)
def test_unit_that_may_have_it(says, answer):
    says(answer)
    check(BY_UNIT)


@pytest.mark.parametrize("answer", [f"MemoryMax={99 * MIB}", f"MemoryMax=infinity\nEffectiveMemoryMax={99 * MIB}\n"])
def test_unit_that_may_not(says, answer):
    says(answer)
    with pytest.raises(HostMemoryError, match=r"web1 needs 100 MiB of memory, but qemu@web1\.service may have 99 MiB"):
        check(BY_UNIT)


@pytest.mark.parametrize(("by_systemd", "refused"), [(True, False), (False, True)])
def test_control_group_of_the_task(monkeypatch, by_systemd, refused):
    """Where systemd starts it, it is not this one."""
    monkeypatch.setattr(manager, "starter", lambda: (manager.HOST, 1) if by_systemd else None)
    monkeypatch.setattr(memory_need, "own_limit", lambda: 99 * MIB)
    if refused:
        with pytest.raises(HostMemoryError, match="control group of this task leaves 99 MiB"):
            check(Launch(argv=("qemu",)))
    else:
        check(Launch(argv=("qemu",)))


def test_huge_pages(monkeypatch):
    monkeypatch.setattr(memory_need, "free_huge_pages", lambda size: {None: 10 * MIB, 2**30: 2**30}[size])
    monkeypatch.setattr(memory_need, "own_limit", lambda: None)
    check(Launch(argv=("qemu",)), huge={None: 10 * MIB, 2**30: 2**30})
    with pytest.raises(HostMemoryError, match="needs 12 MiB of huge pages, but 10 MiB of them are free"):
        check(Launch(argv=("qemu",)), huge={None: 12 * MIB})
