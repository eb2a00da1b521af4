# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The test guests themselves, in a real QEMU: what the other tests conclude from them must be so."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import (
    CounterGuest,
    GuestError,
    LinuxGuest,
    Monitor,
    MonitorError,
    find_qemu_pids,
    gaps,
    qmp,
    wait_migration,
)
from support.counter import expected_checksum
from support.guest import SOURCES
from support.linux import fetch_kernel

_CLI = SOURCES / "tests" / "guests" / "counter_guest.py"


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[CounterGuest]:
    with CounterGuest(tmp_path / "vm", f"counter-{os.getpid()}", block_mib=1, dirty_mib=32) as counter_guest:
        yield counter_guest


def test_counts_without_gaps(guest: CounterGuest) -> None:
    guest.start()
    began = time.monotonic()
    first = guest.wait_for_counter()
    guest.wait_for_counter(first + 15)
    rate = 15 / (time.monotonic() - began)
    assert gaps(guest.counters()) == []
    assert guest.boots() == 1
    assert 2 < rate < 12, rate  # lines a second; a busy machine makes it slower


def test_checksum_is_that_of_the_pattern(guest: CounterGuest) -> None:
    guest.start()
    assert guest.checksum() == expected_checksum(guest.seed, 1)


def test_guests_of_other_names_differ(tmp_path: Path) -> None:
    seeds = {CounterGuest(tmp_path, name).seed for name in ("web1", "web2", "db")}
    assert len(seeds) == 3


def test_dirtying_leaves_the_checksum(guest: CounterGuest) -> None:
    guest.start()
    before = guest.checksum()
    guest.dirty(True)
    assert guest.checksum() == before
    seen = guest.wait_for_counter(guest.counters()[-1] + 5)
    guest.dirty(False)
    assert guest.checksum() == before
    assert seen < guest.counters()[-1]
    assert gaps(guest.counters()) == []


@pytest.mark.parametrize("on", [False, True], ids=["still", "dirtying"])
def test_dirtying_outruns_a_slow_migration(guest: CounterGuest, tmp_path: Path, on: bool) -> None:
    guest.start()
    guest.dirty(on)
    guest.qmp("migrate-set-parameters", {"max-bandwidth": 64 << 20, "downtime-limit": 10})
    guest.qmp("migrate", {"uri": f"file:{tmp_path}/stream"})
    if on:
        time.sleep(3)
        info = guest.qmp("query-migrate")
        assert info["status"] == "active", info
        assert info["ram"]["dirty-sync-count"] > 1
        guest.qmp("migrate_cancel")
        assert wait_migration(guest.qmp_socket)["status"] == "cancelled"
    else:
        assert wait_migration(guest.qmp_socket)["status"] == "completed"


def _measured_dirty_rate(guest: CounterGuest) -> int:
    """What QEMU sees the guest dirty, in MiB/s, from a sample of the pages over 2 s."""
    guest.qmp("calc-dirty-rate", {"calc-time": 2, "sample-pages": 16384})
    deadline = time.monotonic() + 20
    while (answer := guest.qmp("query-dirty-rate"))["status"] != "measured":
        assert time.monotonic() < deadline, answer
        time.sleep(0.1)
    rate: int = answer["dirty-rate"]
    return rate


def test_dirty_rate_is_kept(tmp_path: Path) -> None:
    with CounterGuest(tmp_path, f"rate-{os.getpid()}", block_mib=1, dirty_mib=40, dirty_rate_mib=8) as guest:
        guest.start()
        guest.dirty(True)
        assert 4 <= _measured_dirty_rate(guest) <= 12


def test_a_client_that_does_not_read_holds_the_lines_and_not_the_guest(tmp_path: Path) -> None:
    with CounterGuest(tmp_path, f"unread-{os.getpid()}", block_mib=1, dirty_mib=32, line_ms=10) as guest:
        guest.start()
        guest.dirty(True)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(guest.serial_socket))
            time.sleep(1.5)
            held = len(guest.counters())
            assert _measured_dirty_rate(guest) > 0
            assert len(guest.counters()) <= held + 5  # no more than the socket took


def test_reset_shows_as_a_second_boot(guest: CounterGuest) -> None:
    guest.start()
    guest.wait_for_counter(3)
    guest.command(b"r", r"^boot block=1\ncounter=1\n")
    assert guest.boots() == 2
    assert len(gaps(guest.counters())) == 1


def test_power_off_ends_qemu(guest: CounterGuest) -> None:
    guest.start()
    guest.power_off()
    assert guest.exit_code == 0
    assert find_qemu_pids(guest.name) == []


def test_goes_on_after_a_mapped_ram_save(guest: CounterGuest, tmp_path: Path) -> None:
    guest.start()
    checksum = guest.checksum()
    guest.dirty(True)
    mapped_ram = {"capabilities": [{"capability": "mapped-ram", "state": True}]}
    guest.qmp("stop")
    guest.qmp("migrate-set-capabilities", mapped_ram)
    guest.qmp("migrate", {"uri": f"file:{tmp_path}/image"})
    assert wait_migration(guest.qmp_socket)["status"] == "completed"
    guest.qmp("quit")
    guest.wait_exit()
    assert guest.exit_code == 0
    last = guest.counters()[-1]

    guest.start(incoming=True)
    guest.qmp("migrate-set-capabilities", mapped_ram)
    guest.qmp("migrate-incoming", {"uri": f"file:{tmp_path}/image"})
    assert wait_migration(guest.qmp_socket)["status"] == "completed"
    assert guest.counters()[-1] == last
    guest.qmp("cont")
    guest.wait_for_counter(last + 5)
    guest.dirty(False)
    assert guest.checksum() == checksum
    assert guest.boots() == 1
    assert gaps(guest.counters()) == []


def test_restarted_by_someone_else_is_adopted_and_ended(guest: CounterGuest) -> None:
    guest.start()
    guest.wait_for_counter()
    guest.qmp("quit")
    guest.wait_exit()
    with subprocess.Popen(guest.argv(), stdin=subprocess.DEVNULL) as other:
        try:
            guest.wait_restarted(20)
            assert guest.pid == other.pid
            while guest.boots() < 2:
                guest.wait_for_counter()
            assert find_qemu_pids(guest.name) == [other.pid]
            guest.end()
            assert not guest.alive()
        finally:
            other.kill()
    assert find_qemu_pids(guest.name) == []


def test_never_adopts_what_is_not_its_own(guest: CounterGuest) -> None:
    guest.prepare()
    with pytest.raises(GuestError, match="is no QEMU of"):
        guest.adopt(os.getpid())
    guest.end()  # nothing to end, and no harm


def test_long_workdir_has_short_sockets(tmp_path: Path) -> None:
    with CounterGuest(tmp_path / ("long" * 30), f"long-{os.getpid()}", block_mib=1) as guest:
        guest.start()
        assert guest.checksum()
        directory = guest.qmp_socket.parent
        assert directory.stat().st_mode & 0o777 == 0o700
    assert not directory.exists()


def test_failed_start_says_why_and_leaves_no_process(tmp_path: Path) -> None:
    with CounterGuest(tmp_path, f"bad-{os.getpid()}", extra_args=["-device", "no-such-device"]) as guest:
        with pytest.raises(GuestError, match="no-such-device"):
            guest.start()
        assert find_qemu_pids(guest.name) == []


def test_memory_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GuestError, match="do not fit"):
        CounterGuest(tmp_path, "big", memory_mib=64, block_mib=63)


def test_q35(tmp_path: Path) -> None:
    with CounterGuest(tmp_path, f"q35-{os.getpid()}", block_mib=1, machine="q35") as guest:
        guest.start()
        guest.wait_for_counter(3)
        guest.power_off()


def test_monitor_serves_one_client(guest: CounterGuest) -> None:
    guest.start()
    with Monitor(guest.qmp_socket) as monitor:
        assert monitor.execute("query-status")["status"] == "running"
        with pytest.raises(MonitorError):
            qmp(guest.qmp_socket, "query-status", timeout=0.5)


def _cli(*words: str) -> dict[str, object]:
    done = subprocess.run([sys.executable, str(_CLI), *words], check=True, stdout=subprocess.PIPE, timeout=60)
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


def test_command_line(tmp_path: Path) -> None:
    uuid = "8d3bb0b5-0b8a-4a49-9a0c-0c0d0e0f1011"
    name, where = f"cli-{os.getpid()}", ("--workdir", str(tmp_path))
    try:
        started = _cli("start", *where, "--name", name, "--block", "1", "--uuid", uuid)
        assert find_qemu_pids(name) == [started["pid"]]
        assert qmp(str(started["qmp_socket"]), "query-name") == {"name": name}
        assert qmp(str(started["qmp_socket"]), "query-uuid") == {"UUID": uuid}
        _cli("wait", *where, "--beyond", "3")
        assert _cli("checksum", *where) == _cli("checksum", *where)
        counters = _cli("counters", *where)
        assert counters["gaps"] == []
        assert counters["boots"] == 1
    finally:
        ended = _cli("end", *where)
    assert ended["alive"] is False
    assert find_qemu_pids(name) == []


@pytest.fixture
def linux(tmp_path: Path) -> Iterator[LinuxGuest]:
    try:
        fetch_kernel()
    except GuestError as error:
        pytest.skip(f"no kernel: {error}")
    with LinuxGuest(tmp_path / "vm", f"linux-{os.getpid()}") as linux_guest:
        yield linux_guest


def test_linux_boots_works_and_powers_off(linux: LinuxGuest) -> None:
    began = time.monotonic()
    linux.start()
    assert time.monotonic() - began < 60
    linux.wait_for_counter(10)
    assert linux.checksum() == linux.checksum()
    assert linux.network()
    linux.power_off()
    assert linux.exit_code == 0
    linux.check_disk()
    assert linux.disk_lines() == linux.counters()


def test_linux_goes_on_after_a_save(linux: LinuxGuest, tmp_path: Path) -> None:
    linux.start()
    linux.wait_for_counter(10)
    checksum = linux.checksum()
    linux.qmp("migrate", {"uri": f"file:{tmp_path}/stream"})
    assert wait_migration(linux.qmp_socket)["status"] == "completed"
    linux.qmp("quit")
    linux.wait_exit()
    last = linux.counters()[-1]

    linux.start(incoming=f"file:{tmp_path}/stream")
    linux.wait_for_counter(last + 10)
    assert linux.checksum() == checksum
    assert linux.network()
    assert linux.boots() == 1
    assert gaps(linux.counters()) == []
    linux.power_off()
    linux.check_disk()


def test_linux_disk_of_a_killed_guest_is_not_clean(linux: LinuxGuest) -> None:
    linux.start()
    linux.wait_for_counter(10)
    linux.end()
    with pytest.raises(GuestError, match=r"was not unmounted|fsck"):
        linux.check_disk()
    linux.start()
    linux.wait_for_counter(linux.counters()[-1])
    linux.power_off()
    linux.check_disk()
    assert linux.boots() == 2
