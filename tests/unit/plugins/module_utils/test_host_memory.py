# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How much memory there is, and that several restores do not get the same of it."""

from __future__ import annotations

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils import _host_memory
from ansible_collections.vmops.qemu.plugins.module_utils._errors import HostMemoryError
from ansible_collections.vmops.qemu.plugins.module_utils._host_memory import (
    MemoryLedger,
    available_memory,
    free_huge_pages,
    own_limit,
)

MIB = 2**20


@pytest.fixture
def files(monkeypatch):
    """The kernel's files, by path."""
    found: dict[str, str] = {}

    def read(path):
        if path not in found:
            raise FileNotFoundError(path)
        return found[path]

    monkeypatch.setattr(_host_memory, "_read", read)
    return found


@pytest.fixture
def ledger(files):
    files["/proc/meminfo"] = "MemTotal: 9 kB\nMemAvailable: 1024000 kB\nSwapFree: 0 kB"  # 1000 MiB
    return MemoryLedger()


def test_this_host_has_some():
    assert (available_memory() or 0) > 0


def test_swap_counts(files):
    files["/proc/meminfo"] = "MemAvailable: 100 kB\nSwapFree: 28 kB"
    assert available_memory() == 128 * 1024


def test_kernel_that_does_not_say(files):
    assert available_memory() is None
    MemoryLedger().claim(10**15, "web1")


def test_what_is_claimed_is_not_there_for_others(ledger):
    with ledger.claimed(600 * MIB, "web1"):
        with pytest.raises(
            HostMemoryError, match=r"needs 500 MiB .* 1000 MiB available.* 600 MiB of them .*100 MiB are"
        ):
            ledger.claim(500 * MIB, "db1")
        with ledger.claimed(400 * MIB, "db2"):
            pass


def test_what_was_loaded_meanwhile_still_counts(ledger, files):
    """The kernel is not asked while one is at work: what that has taken by then would count twice."""
    with ledger.claimed(500 * MIB, "web1"):
        with ledger.claimed(400 * MIB, "web2"):
            files["/proc/meminfo"] = "MemAvailable: 512000 kB"
        with pytest.raises(HostMemoryError):
            ledger.claim(101 * MIB, "web3")
        with ledger.claimed(100 * MIB, "web4"):
            pass
    with pytest.raises(HostMemoryError, match="500 MiB available"):
        ledger.claim(501 * MIB, "web5")
    ledger.claim(500 * MIB, "web5")


def test_what_a_failed_restore_claimed_is_given_back(ledger):
    with ledger.claimed(100 * MIB, "web1"):
        with pytest.raises(RuntimeError), ledger.claimed(900 * MIB, "web2"):
            raise RuntimeError
        ledger.claim(900 * MIB, "web3")


def test_check_mode_adds_up(ledger):
    ledger.claim(600 * MIB, "web1")
    with pytest.raises(HostMemoryError):
        ledger.claim(600 * MIB, "web2")
    ledger.claim(400 * MIB, "web3")


def test_limit_of_the_control_group(files, monkeypatch):
    monkeypatch.setattr(_host_memory, "read_proc", lambda *_words: b"0::/a/b\n")
    assert own_limit() is None
    files["/sys/fs/cgroup/a/b/memory.max"] = "max"
    files["/sys/fs/cgroup/a/memory.max"] = str(500 * MIB)
    files["/sys/fs/cgroup/a/memory.current"] = str(450 * MIB)
    files["/sys/fs/cgroup/a/memory.stat"] = f"anon 1\ninactive_file {100 * MIB}\n"
    assert own_limit() == 150 * MIB
    files["/sys/fs/cgroup/memory.max"] = str(50 * MIB)
    files["/sys/fs/cgroup/memory.current"] = "0"
    files["/sys/fs/cgroup/memory.stat"] = ""
    assert own_limit() == 50 * MIB


def test_huge_pages(files):
    assert free_huge_pages() == 0
    files["/proc/meminfo"] = "Hugepagesize: 2048 kB"
    for name, count in {"free": 10, "resv": 4, "nr_overcommit": 3, "surplus": 1}.items():
        files[f"/sys/kernel/mm/hugepages/hugepages-2048kB/{name}_hugepages"] = str(count)
    assert free_huge_pages() == free_huge_pages(2 << 20) == 8 * 2 * MIB
    assert free_huge_pages(1 << 30) == 0
