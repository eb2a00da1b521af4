# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""qemu_restore: how the QEMU is found or started, and what it must not load."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from support import Monitor, find_qemu_pids
from support.observe import VM, Continuity, run_state, settings, words

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can do this")


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize(("vm_state", "state"), [("running", "running"), ("paused", "paused")])
def test_attach_to_a_qemu_that_waits(guest, image, save, restore, live, vm_state, state):
    continuity = Continuity(guest)
    save(name=VM, path=str(image), live=live, vm_state=vm_state)
    guest.start(incoming=True)
    before = settings(guest)
    result = restore(name=VM, path=str(image), launch="attach", qmp_socket=str(guest.qmp_socket))
    assert result["launched"] is False
    assert result["vm"]["run_state"] == state
    assert run_state(guest) == state
    assert settings(guest) == before
    if state == "paused":
        with Monitor(guest.qmp_socket) as monitor:
            monitor.execute("cont")
    continuity.check()


def test_recorded_takes_a_qemu_that_waits_already(guest, image, save, restore):
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    guest.start(incoming=True)
    pid = guest.pid
    result = restore(name=VM, path=str(image))
    assert result["vm"]["pid"] == pid
    continuity.check()


def test_attach_without_a_qemu(guest, image, save, run_module):
    save(name=VM, path=str(image))
    result = run_module("qemu_restore", name=VM, path=str(image), launch="attach")
    assert result["error"] == "VmNotFoundError"
    assert image.exists()


def test_command(guest, image, save, restore):
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    result = restore(path=str(image), launch="command", command=guest.argv(), remove_image=False)
    assert result["launched"]
    assert image.exists()
    continuity.check()


def test_restored_vm_outlives_the_module_in_a_session_of_its_own(guest, image, save, restore):
    save(name=VM, path=str(image))
    result = restore(name=VM, path=str(image))
    pid = result["vm"]["pid"]
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    assert int(fields[3]) == pid, "it leads its own session"
    assert int(fields[4]) == 0, "it has no terminal"
    assert os.readlink(f"/proc/{pid}/fd/0") == "/dev/null"
    assert os.readlink(f"/proc/{pid}/fd/2") == str(guest.stderr_log)
    assert list(image.parent.iterdir()) == []
    environment = Path(f"/proc/{pid}/environ").read_text().split("\0")
    # A shell that sets its limits may export PWD.
    assert {entry.split("=")[0] for entry in environment if entry} - {"PWD"} == {"LANG", "PATH"}


def test_restored_vm_can_be_saved_and_restored_again(guest, image, save, restore):
    continuity = Continuity(guest)
    for _time in range(3):
        save(name=VM, path=str(image))
        pid = restore(name=VM, path=str(image))["vm"]["pid"]
        guest.wait_restarted()
    continuity.check()
    words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    assert words.count("-incoming") == 1
    assert words.count("-S") == 1


@pytest.mark.parametrize(
    "extra",
    [["-nographic"], ["-serial", "mon:stdio"], ["-monitor", "stdio"], ["-daemonize"]],
    ids=["nographic", "serial-stdio", "monitor-stdio", "daemonize"],
)
def test_recorded_command_that_wants_a_terminal_or_a_daemon(make_guest, image, save, restore, extra):
    guest = make_guest(start=False, extra_args=extra)
    if "-daemonize" in extra:
        start_daemon(guest)
    else:
        guest.start()
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    restore(name=VM, path=str(image))
    continuity.check()


def start_daemon(guest):
    guest.prepare()
    subprocess.run(guest.argv(), check=True, cwd=guest.workdir, stdin=subprocess.DEVNULL)
    wait_for_boot(guest)


def wait_for_boot(guest, pid=None):
    if pid is not None:
        # It has changed its program by then.
        deadline = time.monotonic() + 20
        while pid not in find_qemu_pids(guest.name):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    guest.wait_restarted()
    deadline = time.monotonic() + 20
    while not guest.boots():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@only_root
@pytest.mark.parametrize("how", ["started-as-nobody", "run-with"])
def test_vm_of_another_user_is_started_as_that_user(make_guest, image, save, restore, how):
    guest = make_guest(start=False, extra_args=["-run-with", "user=nobody"] if how == "run-with" else [])
    guest.prepare()
    for place in guest.workdir, *guest.workdir.parents[:3]:
        place.chmod(0o755)
    os.chown(guest.workdir, 65534, 65534)
    os.chown(guest.qmp_socket.parent, 65534, 65534)
    as_nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    command = guest.argv() if how == "run-with" else [*as_nobody, *guest.argv()]
    process = subprocess.Popen(command, cwd=guest.workdir, stdin=subprocess.DEVNULL)
    wait_for_boot(guest, process.pid)
    assert os.stat(f"/proc/{guest.pid}").st_uid == 65534
    os.chown(guest.serial_log, 65534, 65534)  # root opened it, where root started QEMU
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    process.wait()
    restored = restore(name=VM, path=str(image))
    assert os.stat(f"/proc/{restored['vm']['pid']}").st_uid == 65534
    continuity.check()


def test_machine_type_is_pinned(guest, image, save, restore):
    """The command line says "pc", which is another machine in the next QEMU; the image knows which it was."""
    save(name=VM, path=str(image))
    pid = restore(name=VM, path=str(image))["vm"]["pid"]
    words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    assert words[words.index("-S") - 2 : words.index("-S")][0] == "-machine"
    assert words[words.index("-S") - 1].startswith("pc-i440fx-")


# --- what must not be loaded ---


def attach_other(make_guest, image, **changes):
    other = make_guest(start=False, workdir="other", **changes)
    other.start(incoming=True)
    return other


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"memory_mib": 128}, "memory differs"),
        ({"memory_mib": 32}, "memory differs"),
        ({"machine": "q35"}, "machine type"),
        ({"uuid": "11111111-2222-3333-4444-555555555556"}, "uuid"),
    ],
    ids=["more-memory", "less-memory", "other-machine", "other-uuid"],
)
@pytest.mark.parametrize("image_format", ["sparse", "raw"])
def test_qemu_that_does_not_fit_is_refused_and_stays_as_it_was(
    make_guest, image, save, run_module, restore, changes, said, image_format
):
    guest = make_guest(uuid="11111111-2222-3333-4444-555555555555")
    continuity = Continuity(guest)
    save(name=VM, path=str(image), format=image_format)
    other = attach_other(make_guest, image, observer=True, **changes)
    before = settings(other)
    result = run_module("qemu_restore", name=VM, path=str(image), launch="attach", qmp_socket=str(other.qmp_socket))
    assert result["error"] == "MismatchError"
    assert said in result["msg"]
    assert image.exists()
    assert run_state(other) == "inmigrate"
    assert settings(other) == before
    other.close()
    restore(name=VM, path=str(image))
    continuity.check()


def test_qemu_that_lacks_a_device_fails_to_load_and_is_ended(make_guest, image, save, restore, run_module):
    guest = make_guest(extra_args=["-device", "virtio-rng-pci"])
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    command = guest.argv()[:-2]
    result = run_module("qemu_restore", path=str(image), launch="command", command=command)
    assert result["error"] == "MigrationError"
    assert "virtio-rng" in result["msg"], "QEMU's own words, which are only on its stderr"
    assert words(result) == ("saved", "kept")
    assert not guest.adopt_restarted()
    restore(name=VM, path=str(image))
    continuity.check()


def test_missing_ram_block_is_named(make_guest, image, save, run_module):
    guest = make_guest(extra_args=["-device", "VGA"])
    save(name=VM, path=str(image))
    command = guest.argv()
    place = command.index("VGA")
    del command[place - 1 : place + 1]
    result = run_module("qemu_restore", path=str(image), launch="command", command=command)
    assert result["error"] == "MismatchError"
    assert "vga" in result["msg"]
    assert image.exists()


def test_command_that_cannot_be_started(guest, image, save, run_module):
    save(name=VM, path=str(image))
    command = ["/nonexistent/qemu-system-x86_64", *guest.argv()[1:]]
    result = run_module("qemu_restore", path=str(image), launch="command", command=command)
    assert result["error"] == "LaunchError"
    assert "/nonexistent" in result["msg"]
    assert words(result) == ("saved", "kept")


def test_qemu_that_ends_at_once_says_why(guest, image, save, run_module):
    save(name=VM, path=str(image))
    command = [*guest.argv(), "-device", "no-such-device"]
    result = run_module("qemu_restore", path=str(image), launch="command", command=command)
    assert result["error"] == "LaunchError"
    assert "no-such-device" in result["msg"]
    assert image.exists()


def test_command_without_a_qmp_server(image, guest, save, run_module):
    save(name=VM, path=str(image))
    command = guest.argv()
    place = command.index("-qmp")
    del command[place : place + 2]
    place = command.index("-qmp")
    del command[place : place + 2]
    result = run_module("qemu_restore", path=str(image), launch="command", command=command)
    assert result["error"] == "LaunchError"
    assert "QMP" in result["msg"]
    assert words(result) == ("saved", "kept")


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:-100],
        lambda data: data[:92],
        lambda data: data[:4096],
    ],
    ids=["half", "last-100-bytes", "header-only", "no-stream"],
)
@pytest.mark.parametrize("image_format", ["sparse", "raw"])
def test_truncated_image_is_refused_before_qemu_is_started(guest, image, save, run_module, damage, image_format):
    save(name=VM, path=str(image), format=image_format)
    image.write_bytes(damage(image.read_bytes()))
    result = run_module("qemu_restore", name=VM, path=str(image))
    assert result["error"] == "ImageFormatError"
    assert image.exists()
    assert not guest.adopt_restarted()
    assert not os.path.exists(f"{image}.log")


@pytest.mark.parametrize("image_format", ["gzip", "bzip2", "xz", "lzop", "zstd"])
@pytest.mark.parametrize("place", ["middle", "last-bytes", "cut"])
def test_damaged_compressed_image_gives_no_guest(guest, image, save, run_module, image_format, place):
    """The tools compare a checksum, some only at the end, when QEMU has all that it wants."""
    save(name=VM, path=str(image), format=image_format)
    data = bytearray(image.read_bytes())
    if place == "cut":
        del data[-1000:]
    else:
        # lzop ends with four zeros, xz with its index; what comes before is checked content in all of them.
        at = len(data) // 2 + 40000 if place == "middle" else len(data) - {"xz": 60, "lzop": 40}.get(image_format, 6)
        data[at] ^= 0x10
    image.write_bytes(data)
    result = run_module("qemu_restore", name=VM, path=str(image))
    assert result["failed"]
    assert result["error"] in ("ImageError", "MigrationError", "MonitorLostError", "ImageFormatError"), result["msg"]
    assert image_format in result["msg"], result["msg"]
    assert image.exists()
    assert find_qemu_pids(VM) == []


@pytest.mark.parametrize("image_format", ["gzip", "zstd"])
def test_compressed_image_of_more_memory_is_refused(make_guest, image, save, run_module, image_format):
    make_guest()
    save(name=VM, path=str(image), format=image_format)
    other = attach_other(make_guest, image, memory_mib=128)
    result = run_module("qemu_restore", name=VM, path=str(image), launch="attach", qmp_socket=str(other.qmp_socket))
    assert result["error"] == "MismatchError"
    assert "memory differs" in result["msg"]


def test_hole_where_a_page_should_be_is_refused(guest, image, save, run_module):
    """What a short write that QEMU took for success leaves."""
    save(name=VM, path=str(image))
    info = run_module("qemu_save_image_info", path=str(image), stream=True)["image"]
    ram = next(block for block in info["stream"]["ram_blocks"] if block["name"] == "pc.ram")
    # The block with the pattern is 8 MiB of present pages; a whole MiB of it is punched out.
    start = ram["pages_offset"] + 4 * 2**20
    subprocess.run(["fallocate", "-p", "-o", str(start), "-l", str(2**20), str(image)], check=True)
    result = run_module("qemu_restore", name=VM, path=str(image))
    assert result["error"] == "ImageFormatError"
    assert "lost" in result["msg"] or "hole" in result["msg"]


@pytest.mark.parametrize("launch", ["recorded", "attach"])
def test_qemu_dies_during_the_restore(make_guest, image, save, restore, start_module, launch):
    guest = make_guest(memory_mib=1024, block_mib=700, observer=True)
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    if launch == "attach":
        guest.start(incoming=True)
    run = start_module("qemu_restore", name=VM, path=str(image), launch=launch, bypass_cache=False)
    deadline = time.monotonic() + 20
    while True:
        assert time.monotonic() < deadline
        pids = find_qemu_pids(VM)
        if pids and resident(pids[0]) > 200 * 2**20:
            os.kill(pids[0], signal.SIGKILL)
            break
        time.sleep(0.001)
    result = run.result()
    assert result["error"] == "MonitorLostError"
    assert words(result) == ("saved", "kept")
    assert image.exists()
    if launch == "attach":
        guest.wait_exit()
    restore(name=VM, path=str(image))
    continuity.check()


def resident(pid):
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_during_the_restore_leaves_no_half_guest(make_guest, image, save, restore, start_module, number):
    guest = make_guest(memory_mib=1024, block_mib=700)
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    run = start_module("qemu_restore", name=VM, path=str(image), bypass_cache=False)
    deadline = time.monotonic() + 20
    while not any(resident(pid) > 200 * 2**20 for pid in find_qemu_pids(VM)):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    run.process.send_signal(number)
    result = run.result()
    assert result["error"] == "InterruptedOperationError"
    assert words(result) == ("saved", "kept")
    assert find_qemu_pids(VM) == []
    restore(name=VM, path=str(image))
    continuity.check()


def test_recorded_command_of_an_image_that_others_could_write_is_not_run(guest, image, save, run_module):
    save(name=VM, path=str(image))
    image.chmod(0o666)
    result = run_module("qemu_restore", name=VM, path=str(image))
    assert result["error"] == "ImageUnsafeError"
    assert not guest.adopt_restarted()
    image.chmod(0o600)
    image.parent.chmod(0o777)
    result = run_module("qemu_restore", name=VM, path=str(image))
    assert result["error"] == "ImageUnsafeError"
    assert str(image.parent) in result["msg"]
    assert not guest.adopt_restarted()


@pytest.fixture
def save_all_the_same(run_module, save, image):
    """Save a VM that cannot be restored: refused, then done on request; what the warning says."""

    def run():
        refused = run_module("qemu_save", name=VM, path=str(image))
        assert refused["error"] == "NotRestorableError", refused["msg"]
        assert not image.exists()
        saved = save(name=VM, path=str(image), require_restorable=False)
        assert saved["problems"] == refused["problems"]
        what = next(problem["what"] for problem in saved["problems"] if problem["blocks"])
        assert what in refused["msg"]
        assert what in str(saved["warnings"])
        return what

    return run


def test_command_with_an_inherited_descriptor_is_not_used_again(
    make_guest, image, save_all_the_same, run_module, tmp_path
):
    starter = tmp_path / "starter"
    starter.write_text('#!/bin/sh\nexec 9</dev/null\nexec qemu-system-x86_64 "$@"\n')
    starter.chmod(0o700)
    make_guest(qemu=str(starter), extra_args=["-add-fd", "fd=9,set=5"])
    assert "-add-fd" in save_all_the_same()
    result = run_module("qemu_restore", name=VM, path=str(image))
    assert result["error"] == "LaunchError"
    assert "-add-fd" in result["msg"]
    assert image.exists()


# --- a VM that is not what its command line says ---


@pytest.fixture
def guest_with_disk(make_guest, tmp_path):
    """A guest with a writable disk, d0."""
    disk = tmp_path / "disk.img"
    with disk.open("wb") as handle:
        handle.truncate(2**20)
    drive = f"if=none,id=d0,format=raw,file={disk}"
    return make_guest(extra_args=["-drive", drive, "-device", "virtio-blk-pci,drive=d0,id=disk0"])


def test_disk_that_is_as_the_command_line_says(guest_with_disk, image, save, restore):
    continuity = Continuity(guest_with_disk)
    assert [problem for problem in save(name=VM, path=str(image))["problems"] if problem["blocks"]] == []
    restore(name=VM, path=str(image))
    continuity.check()


def test_disk_with_a_snapshot_is_not_started_from_the_old_file(
    guest_with_disk, image, save_all_the_same, run_module, tmp_path
):
    with Monitor(guest_with_disk.qmp_socket) as monitor:
        snapshot = {"device": "d0", "snapshot-file": str(tmp_path / "snapshot.qcow2"), "format": "qcow2"}
        monitor.execute("blockdev-snapshot-sync", snapshot)
    assert "snapshot.qcow2" in save_all_the_same()
    result = run_module("qemu_restore", name=VM, path=str(image))
    assert result["error"] == "LaunchError"
    assert "snapshot.qcow2" in result["msg"]
    assert image.exists()


def test_device_that_was_plugged_in(guest, image, save_all_the_same, run_module):
    with Monitor(guest.qmp_socket) as monitor:
        monitor.execute("device_add", {"driver": "virtio-rng-pci", "id": "late0"})
    assert "late0" in save_all_the_same()
    result = run_module("qemu_restore", name=VM, path=str(image))
    assert result["error"] == "LaunchError"
    assert "late0" in result["msg"]


@pytest.mark.parametrize(
    ("extra", "said"), [(["-device", "e1000"], "device too many"), (["-smp", "2"], "CPUs")], ids=["device", "cpu"]
)
def test_qemu_with_more_than_was_saved_is_refused(guest, image, save, run_module, extra, said):
    save(name=VM, path=str(image))
    result = run_module("qemu_restore", path=str(image), launch="command", command=[*guest.argv(), *extra])
    assert result["error"] == "MismatchError"
    assert said in result["msg"]
    assert image.exists()


def test_link_to_an_image_is_not_restored_and_left_behind(guest, image, save, restore, run_module):
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    link = image.parent / "link.save"
    link.symlink_to(image)
    result = run_module("qemu_restore", name=VM, path=str(link))
    assert result["error"] == "RequestError"
    assert "symbolic link" in result["msg"]
    restore(name=VM, path=str(link), remove_image=False)
    continuity.check()


def test_qemu_that_waits_for_a_migration_from_elsewhere_is_left_alone(guest, image, save, run_module):
    save(name=VM, path=str(image))
    guest.start(incoming=f"unix:{guest.qmp_socket.parent}/migrate.sock")
    result = run_module("qemu_restore", name=VM, path=str(image), launch="attach")
    assert result["error"] == "ConflictError"
    assert image.exists()
    assert guest.alive()
