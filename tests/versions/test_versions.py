# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""qemu_save and qemu_restore on each QEMU that scripts/setup provides, and from each to each other one."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import time

import pytest

from support import LinuxGuest, Monitor, gaps
from support.compatibility import record
from support.monitor_proxy import BEFORE, Fault, MonitorProxy, Step
from support.observe import VM, Continuity, run_state, settings, wait_until
from support.paused import make_disk
from support.versions import Qemu, common_machine, find_qemus

QEMUS = find_qemus()
COMPRESSED = ("gzip", "bzip2", "xz", "lzop", "zstd")
FORMATS = ("raw", "sparse", *COMPRESSED)
by_version = pytest.mark.parametrize("qemu", QEMUS, ids=lambda qemu: f"qemu-{qemu.label}")


def can_write(qemu: Qemu, image_format: str) -> bool:
    return image_format != "sparse" or qemu.mapped_ram


def cases(*formats: str) -> pytest.MarkDecorator:
    """Each QEMU with each of the formats that it can write."""
    values = [(qemu, image_format) for qemu in QEMUS for image_format in formats if can_write(qemu, image_format)]
    ids = [f"qemu-{qemu.label}-{image_format}" for qemu, image_format in values]
    return pytest.mark.parametrize(("qemu", "image_format"), values, ids=ids)


def pairs(*formats: str) -> pytest.MarkDecorator:
    """Each QEMU, each other one, and each of the formats that both know."""
    values = [
        (writer, reader, image_format)
        for writer, reader in itertools.permutations(QEMUS, 2)
        for image_format in formats
        if can_write(writer, image_format) and can_write(reader, image_format)
    ]
    ids = [f"{writer.label}-to-{reader.label}-{image_format}" for writer, reader, image_format in values]
    return pytest.mark.parametrize(("writer", "reader", "image_format"), values, ids=ids)


def test_versions_are_all_there():
    """A run that lacks one of the QEMUs shows less than it seems to."""
    with open("/etc/os-release", encoding="utf-8") as handle:
        if "ID=debian" not in handle.read().splitlines():
            pytest.skip("the other QEMUs are Debian's packages")
    labels = [qemu.label for qemu in QEMUS]
    assert "7.2" in labels
    assert any((9, 1) <= qemu.version < (11,) for qemu in QEMUS)
    assert QEMUS[-1].version >= (11, 1)


# --- one QEMU ---


@by_version
def test_default_save_restores(qemu, make_guest, image, save, restore):
    """Sparse where this QEMU has mapped-ram; raw, with the reason, where not."""
    guest = make_guest(qemu=qemu.path)
    continuity = Continuity(guest)
    saved = save(name=VM, path=str(image))
    assert saved["image"]["format"] == ("sparse" if qemu.mapped_ram else "raw")
    assert saved["image"]["version"] == 3
    # It is this process that has started it, which a save names.
    assert {problem["kind"] for problem in saved["problems"]} <= {"supervisor_unknown"}
    if qemu.mapped_ram:
        assert len(saved.get("warnings", [])) == len(saved["problems"])
    else:
        assert f"QEMU {qemu.label}" in str(saved["warnings"])
    assert not guest.alive()
    # The recorded command names the program; what the old one's wrapper sets in the environment is not in it.
    how = {} if qemu.mapped_ram else {"launch": "command", "command": guest.argv()}
    restored = restore(name=VM, path=str(image), **how)
    assert restored["vm"]["run_state"] == "running"
    continuity.check()
    assert not image.exists()


@cases(*FORMATS)
@pytest.mark.parametrize("image_version", [2, 3])
def test_every_format(qemu, image_format, image_version, make_guest, image, save, restore, run_module):
    guest = make_guest(qemu=qemu.path)
    continuity = Continuity(guest)
    save(name=VM, path=str(image), format=image_format, image_version=image_version)
    info = run_module("qemu_save_image_info", path=str(image), verify=True, stream=True)["image"]
    assert info["problems"] == []
    assert (info["format"], info["version"], info["complete"]) == (image_format, image_version, True)
    if image_format in ("raw", "sparse"):
        assert info["stream"]["machine"].startswith("pc-i440fx-")
        assert {block["name"]: block["used_length"] for block in info["stream"]["ram_blocks"]}["pc.ram"] == 64 << 20
        assert info["stream"]["sections"]
    restore(path=str(image), launch="command", command=guest.argv())
    continuity.check()
    record(writer=qemu.who, reader=qemu.who, format=image_format, version=image_version, result="restored")


@pytest.mark.parametrize("qemu", [qemu for qemu in QEMUS if not qemu.mapped_ram], ids=lambda qemu: f"qemu-{qemu.label}")
def test_sparse_is_refused_where_qemu_cannot_write_it(qemu, make_guest, image, run_module):
    guest = make_guest(qemu=qemu.path, observer=True)
    before = settings(guest)
    continuity = Continuity(guest)
    result = run_module("qemu_save", name=VM, path=str(image), format="sparse")
    assert result["error"] == "UnsupportedByQemuError"
    for text in (f"QEMU {qemu.label}", "mapped-ram", "9.1"):
        assert text in result["msg"]
    assert os.listdir(image.parent) == []
    assert settings(guest) == before
    continuity.check()


@cases("raw", "sparse", "zstd")
def test_live(qemu, image_format, make_guest, image, save, restore):
    guest = make_guest(qemu=qemu.path, memory_mib=256, block_mib=8, dirty_mib=128, dirty_rate_mib=20)
    continuity = Continuity(guest)
    guest.dirty(True)
    result = save(name=VM, path=str(image), live=True, format=image_format, bandwidth="200M")
    assert 0 < result["pause_ms"] < result["duration"] * 1000
    restore(path=str(image), launch="command", command=guest.argv())
    guest.wait_restarted()
    guest.dirty(False)
    continuity.check()


@cases(*FORMATS)
def test_resume_leaves_the_settings_as_found(qemu, image_format, make_guest, image, save):
    guest = make_guest(qemu=qemu.path, observer=True)
    before = settings(guest)
    continuity = Continuity(guest)
    for _again in range(2):
        result = save(name=VM, path=str(image), after_save="resume", format=image_format, force=True)
        assert result["vm"]["run_state"] == "running"
        assert settings(guest) == before
    continuity.check()


@cases("sparse")
def test_buffered_save_after_a_direct_one(qemu, image_format, make_guest, image, save):
    """A direct-io that is left on lets QEMU crash in the second save, a multifd that is left on in the snapshot."""
    guest = make_guest(qemu=qemu.path)
    continuity = Continuity(guest)
    for bypass_cache in (True, False):
        save(name=VM, path=str(image), after_save="resume", bypass_cache=bypass_cache, force=True)
    continuity.check()


@by_version
def test_paused_guest_stays_paused(qemu, make_guest, image, save, restore):
    guest = make_guest(qemu=qemu.path)
    continuity = Continuity(guest)
    guest.qmp("stop")
    assert save(name=VM, path=str(image))["image"]["vm_state"] == "paused"
    restored = restore(path=str(image), launch="command", command=guest.argv())
    assert restored["vm"]["run_state"] == "paused"
    guest.wait_restarted()
    guest.qmp("cont")
    continuity.check()


# --- disks that an image goes with ---


@pytest.fixture
def with_bitmap(make_guest, tmp_path):
    """Make a guest with a disk that has a persistent bitmap: QEMU 7.2 writes to it as soon as it activates it."""

    def make(qemu):
        disk = make_disk(tmp_path / "bitmap.qcow2", "qcow2")
        subprocess.run(["qemu-img", "bitmap", "--add", disk, "b0"], check=True)
        return make_guest(qemu=qemu.path, observer=True, extra_args=["-drive", f"if=virtio,format=qcow2,file={disk}"])

    return make


@pytest.fixture
def killed_when_loaded(start_module, image, tmp_path):
    """SIGKILL a restore into a QEMU that waits, before the guest is let go on."""

    def run(guest):
        fault = Fault(Step("cont", 1), BEFORE, "hang")
        socket = tmp_path / "proxy.sock"
        with MonitorProxy(socket, guest.qmp_socket, lambda: guest.pid, [fault]) as proxy:
            started = start_module("qemu_restore", name=VM, path=str(image), launch="attach", qmp_socket=str(socket))
            wait_until(lambda: fault in proxy.done)
            started.process.kill()
            started.process.communicate()

    return run


@by_version
def test_restore_that_fails_when_all_is_loaded_can_be_tried_again(
    qemu, with_bitmap, image, save, restore, killed_when_loaded
):
    """The disks are as they were as long as the guest was not let go on."""
    guest = with_bitmap(qemu)
    continuity = Continuity(guest)
    save(name=VM, path=str(image), format="zstd")
    guest.start(incoming=True)
    killed_when_loaded(guest)
    guest.end()
    guest.start(incoming=True)
    restore(name=VM, path=str(image), launch="attach")
    continuity.check()


@by_version
@pytest.mark.parametrize("how", ["paused by the restore", "paused by the run after it"])
def test_disks_of_a_guest_that_stays_paused(qemu, how, with_bitmap, image, save, restore, killed_when_loaded):
    """QEMU 7.2 dies of a migration for which it would have to let go of disks that it has not activated."""
    guest = with_bitmap(qemu)
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    guest.start(incoming=True)
    before = settings(guest)["capabilities"]
    if how == "paused by the run after it":
        killed_when_loaded(guest)
    restore(name=VM, path=str(image), launch="attach", state="paused")
    assert run_state(guest) == "paused"
    assert settings(guest)["capabilities"] == before
    with Monitor(guest.observer_socket) as monitor:
        monitor.execute("migrate", {"uri": "exec:cat >/dev/null"})
        wait_until(lambda: monitor.execute("query-status")["status"] == "postmigrate")
        monitor.execute("cont")
    continuity.check()


# --- failures ---


def migration_status(guest) -> str:
    with Monitor(guest.observer_socket) as monitor:
        return str(monitor.execute("query-migrate").get("status"))


def wait_until_active(guest, run) -> None:
    deadline = time.monotonic() + 20
    while migration_status(guest) != "active":
        assert run.process.poll() is None, run.result()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@cases("raw", "sparse", "zstd")
@pytest.mark.parametrize("live", [False, True], ids=["stopped", "live"])
def test_signal_puts_the_guest_back(qemu, image_format, live, make_guest, image, start_module):
    guest = make_guest(qemu=qemu.path, memory_mib=256, block_mib=128, observer=True)
    before = settings(guest)
    continuity = Continuity(guest)
    run = start_module("qemu_save", name=VM, path=str(image), bandwidth="16M", live=live, format=image_format)
    wait_until_active(guest, run)
    run.process.send_signal(signal.SIGTERM)
    result = run.result()
    assert result["error"] == "InterruptedOperationError", result["msg"]
    assert result["guest"] == "running"
    assert settings(guest) == before
    assert os.listdir(image.parent) == []
    continuity.check()
    assert migration_status(guest) == "cancelled"


@pytest.fixture
def small_disk(tmp_path):
    """A tmpfs of 400 MiB."""
    place = tmp_path / "tmpfs"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400m,mode=0700", "tmpfs", place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


@cases("raw", "sparse", "zstd")
def test_disk_that_fills_up_puts_the_guest_back(qemu, image_format, make_guest, small_disk, start_module):
    guest = make_guest(qemu=qemu.path, memory_mib=256, block_mib=128, observer=True)
    before = settings(guest)
    continuity = Continuity(guest)
    path = str(small_disk / "web1.save")
    run = start_module("qemu_save", name=VM, path=path, bandwidth="64M", format=image_format)
    wait_until_active(guest, run)
    with (small_disk / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(bytes(2**20))
    result = run.result()
    assert result["failed"]
    assert result["guest"] == "running"
    assert "No space left" in result["msg"] or "not whole" in result["msg"], result["msg"]
    assert os.listdir(small_disk) == ["filler"]
    assert settings(guest) == before
    continuity.check()


@by_version
def test_save_after_a_failed_migration(qemu, make_guest, image, save, restore):
    """QEMU >= 11.0 says failing before failed, and takes no new settings in between."""
    guest = make_guest(qemu=qemu.path, observer=True)
    continuity = Continuity(guest)
    with Monitor(guest.qmp_socket) as monitor:
        capabilities = [{"capability": "events", "state": True}]
        monitor.execute("migrate-set-capabilities", {"capabilities": capabilities})
        before = settings(guest)
        monitor.execute("migrate", {"uri": "exec:false"})
        statuses: list[str] = []
        while not statuses or statuses[-1] not in ("failed", "completed"):
            statuses.append(monitor.wait_event("MIGRATION", 20)["data"]["status"])
    assert statuses[-1] == "failed"
    assert ("failing" in statuses) == (qemu.version >= (11,))
    save(name=VM, path=str(image), after_save="resume")
    assert settings(guest) == before
    save(name=VM, path=str(image), force=True)
    restore(path=str(image), launch="command", command=guest.argv())
    continuity.check()


@pytest.fixture
def make_sleeper(tmp_path):
    """Make Linux guests that sleep (S3)."""
    guests: list[LinuxGuest] = []

    def make(**options):
        guests.append(LinuxGuest(tmp_path / f"linux-{len(guests)}", f"linux-{VM}", observer=True, **options))
        guests[-1].start()
        guests[-1].wait_for_counter(3)
        guests[-1].sleep()
        wait_until(lambda: run_state(guests[-1]) == "suspended", 60)
        return guests[-1]

    yield make
    for guest in guests:
        guest.adopt_restarted()
        guest.close()


def wake(guest):
    known = guest.counters()[-1]
    with Monitor(guest.observer_socket) as monitor:
        monitor.execute("system_wakeup")
    guest.wait_for_counter(known + 3, timeout=60)
    assert guest.boots() == 1
    assert gaps(guest.counters()) == []


@by_version
def test_sleeping_guest(qemu, make_sleeper, image, restore, run_module):
    """From QEMU 9.0 on it is restored asleep; an older one would wake it, and does not touch it."""
    guest = make_sleeper(qemu=qemu.path)
    (vm,) = run_module("qemu_vm_info", name=[guest.name])["vms"]
    assert vm["save_support"]["suspended"] == (qemu.version >= (9, 0))
    result = run_module("qemu_save", name=guest.name, path=str(image))
    if qemu.version >= (9, 0):
        assert not result.get("failed"), result["msg"]
        restored = restore(path=str(image), launch="command", command=guest.argv())
        assert restored["vm"]["run_state"] == "suspended"
        guest.wait_restarted()
    else:
        assert result["error"] == "UnsupportedByQemuError"
        assert "system_wakeup" in result["cure"]
        assert not image.exists()
    assert run_state(guest) == "suspended"
    wake(guest)


@pytest.mark.parametrize(
    ("writer", "reader"),
    [pair for pair in itertools.permutations(QEMUS, 2) if pair[0].version >= (9, 0) > pair[1].version],
    ids=lambda qemu: qemu.label,
)
def test_sleeping_guest_is_not_loaded_by_an_older_qemu(writer, reader, make_sleeper, image, save, restore, run_module):
    guest = make_sleeper(qemu=writer.path, machine=common_machine(writer, reader))
    save(name=guest.name, path=str(image), format="raw")
    guest.wait_exit()
    command = [reader.path, *guest.argv()[1:]]
    result = run_module("qemu_restore", path=str(image), launch="command", command=command)
    assert result["error"] == "UnsupportedByQemuError"
    assert f"QEMU {reader.label}" in result["msg"]
    restore(path=str(image), launch="command", command=guest.argv())
    guest.wait_restarted()
    wake(guest)


# --- from one QEMU to another ---


def move(writer, reader, image_format, make_guest, image, save):
    """A saved guest, what shows its continuity, and the command line that lets the other QEMU take it over."""
    guest = make_guest(qemu=writer.path, machine=common_machine(writer, reader))
    continuity = Continuity(guest)
    save(name=VM, path=str(image), format=image_format)
    guest.wait_exit()
    return continuity, [reader.path, *guest.argv()[1:]]


@pairs("raw", "sparse", "zstd")
def test_another_qemu_restores_it(writer, reader, image_format, make_guest, image, save, restore):
    """With the same machine type. QEMU promises that to newer versions only; this guest's devices go back, too."""
    continuity, command = move(writer, reader, image_format, make_guest, image, save)
    restore(path=str(image), launch="command", command=command)
    continuity.check()
    assert continuity.guest.qmp("query-version")["qemu"]["major"] == reader.version[0]
    record(writer=writer.who, reader=reader.who, format=image_format, version=3, result="restored")


@pytest.mark.parametrize(
    ("writer", "reader"),
    [pair for pair in itertools.permutations(QEMUS, 2) if pair[0].mapped_ram and not pair[1].mapped_ram],
    ids=lambda qemu: qemu.label,
)
def test_qemu_without_mapped_ram_refuses_sparse(writer, reader, make_guest, image, save, restore, run_module):
    continuity, command = move(writer, reader, "sparse", make_guest, image, save)
    result = run_module("qemu_restore", path=str(image), launch="command", command=command)
    assert result["error"] == "UnsupportedByQemuError"
    for text in (f"QEMU {reader.label}", "mapped-ram"):
        assert text in result["msg"]
    # Nothing is lost: the QEMU that wrote it takes it.
    restore(path=str(image), launch="command", command=[writer.path, *command[1:]])
    continuity.check()
    reason = result["msg"].partition(": ")[2].partition(". ")[0]
    record(writer=writer.who, reader=reader.who, format="sparse", version=3, result=f"refused: {reason}")


@pytest.mark.parametrize(
    ("writer", "reader"),
    [pair for pair in itertools.permutations(QEMUS, 2) if pair[0] > pair[1]],
    ids=lambda qemu: qemu.label,
)
def test_older_qemu_whose_cpu_can_less_is_refused(writer, reader, make_guest, image, save, restore, run_module):
    """``-cpu max`` is what a QEMU can, whatever the machine type; an older one loads the image all the same."""
    guest = make_guest(qemu=writer.path, machine=common_machine(writer, reader), extra_args=["-cpu", "max"])
    continuity = Continuity(guest)
    save(name=VM, path=str(image), format="raw")
    command = guest.argv()
    result = run_module("qemu_restore", path=str(image), launch="command", command=[reader.path, *command[1:]])
    assert result.get("error") == "MismatchError", result["msg"]
    assert "it lacks " in result["msg"]
    assert "cpu: ignore" in result["msg"]
    restore(path=str(image), launch="command", command=command)
    continuity.check()
