# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The checksum of an image: what it finds, what is restored without it, and a save that is disturbed while it reads."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from support import Monitor, find_qemu_pids
from support.observe import VM, Continuity, run_state, settings, words
from support.record import without_record_checksum

FORMATS = ["sparse", "raw", "gzip", "bzip2", "xz", "lzop", "zstd"]
FULL = {"checksum": True}


@pytest.fixture
def info(run_module, image):
    """Run qemu_save_image_info on the image."""

    def run(**options):
        result = run_module("qemu_save_image_info", path=str(image), **options)
        assert not result.get("failed"), result["msg"]
        return result["image"]

    return run


def flip(path, place, bit=0):
    """Flip one bit, in place."""
    with path.open("r+b") as file:
        file.seek(place)
        value = file.read(1)[0]
        file.seek(place)
        file.write(bytes([value ^ 1 << bit]))


def ram_place(info, address):
    """Where the byte at a guest's address is in a sparse image."""
    blocks = info(stream=True)["stream"]["ram_blocks"]
    return next(block for block in blocks if block["name"] == "pc.ram")["pages_offset"] + address


# --- what it finds ---


@pytest.mark.parametrize("image_format", FORMATS)
def test_full_verification_of_each_format(guest, image, save, restore, run_module, info, image_format):
    continuity = Continuity(guest)
    saved = save(name=VM, path=str(image), format=image_format, checksum=True)
    assert saved["image"]["checksum"].startswith("sha256-tree:")
    assert 0 <= saved["checksum_ms"] <= saved["duration"] * 1000
    found = info(verify=True)
    assert (found["checksum"], found["problems"]) == (saved["image"]["checksum"], [])
    middle = (found["stream_offset"] + found["size"]) // 2 if image_format != "sparse" else ram_place(info, 2 << 20)
    flip(image, middle, 5)
    result = run_module("qemu_restore", name=VM, path=str(image), verify="full")
    assert result["error"] == "ImageFormatError"
    assert "does not match the checksum" in result["msg"]
    assert words(result) == ("saved", "kept")
    assert image.exists()
    assert not os.path.exists(f"{image}.log"), "no QEMU was started"
    assert find_qemu_pids(VM) == []
    flip(image, middle, 5)
    restore(name=VM, path=str(image), verify="full")
    continuity.check()


def test_a_flipped_bit_in_the_guests_memory(guest, image, save, restore, run_module, info):
    """Today's danger: nobody else sees it. The guest goes on with a memory that is not its own."""
    continuity = Continuity(guest)
    save(name=VM, path=str(image), **FULL)
    flip(image, ram_place(info, (2 << 20) + 1000))

    found = info()
    assert (found["state"], found["problems"]) == ("complete", [])
    found = info(verify=True)
    assert found["state"] == "invalid"
    assert found["problems"] == [
        "its QEMU stream does not match the checksum that the save recorded: it was changed since"
    ]
    predicted = run_module("qemu_restore", name=VM, path=str(image), verify="full", check=True)
    assert predicted["error"] == "ImageFormatError"
    result = run_module("qemu_restore", name=VM, path=str(image), verify="full")
    assert result["error"] == "ImageFormatError"
    assert "intact copy" in result["cure"]

    restore(name=VM, path=str(image), verify="structure")
    guest.wait_restarted()
    assert guest.checksum() != continuity.checksum


def test_damage_is_not_loaded_into_a_qemu_that_waits(guest, image, save, run_module, restore, info):
    continuity = Continuity(guest)
    save(name=VM, path=str(image), **FULL)
    place = ram_place(info, 2 << 20)
    flip(image, place)
    guest.start(incoming=True)
    before, pid = settings(guest), guest.pid
    result = run_module("qemu_restore", name=VM, path=str(image), verify="full", launch="attach")
    assert result["error"] == "ImageFormatError"
    assert run_state(guest) == "inmigrate"
    assert settings(guest) == before
    flip(image, place)
    assert restore(name=VM, path=str(image), verify="full", launch="attach")["vm"]["pid"] == pid
    continuity.check()


@pytest.mark.parametrize("bypass_cache", [True, False])
def test_with_and_without_the_page_cache(guest, image, save, restore, bypass_cache):
    continuity = Continuity(guest)
    save(name=VM, path=str(image), bypass_cache=bypass_cache, **FULL)
    restore(name=VM, path=str(image), bypass_cache=not bypass_cache, verify="full")
    continuity.check()


def test_live_save(make_guest, image, save, restore):
    guest = make_guest(memory_mib=128, dirty_mib=32, dirty_rate_mib=50)
    guest.dirty(True)
    continuity = Continuity(guest)
    saved = save(name=VM, path=str(image), live=True, **FULL)
    assert saved["pause_ms"] >= saved["checksum_ms"]
    restore(name=VM, path=str(image), verify="full")
    continuity.check()


# --- images without one ---


def test_image_without_a_checksum_is_refused(guest, image, save, run_module, restore):
    continuity = Continuity(guest)
    saved = save(name=VM, path=str(image))
    assert saved["image"]["checksum"] is None
    assert saved["checksum_ms"] is None
    for check in (True, False):
        result = run_module("qemu_restore", name=VM, path=str(image), verify="full", check=check)
        assert result["error"] == "RequestError"
        assert "has no checksum" in result["msg"]
        assert "verify: structure" in result["cure"]
    assert image.exists()
    assert find_qemu_pids(VM) == []
    restore(name=VM, path=str(image))
    continuity.check()


def test_complete_image_is_not_given_a_checksum_later(guest, image, save):
    save(name=VM, path=str(image), after_save="pause")
    before = image.stat().st_mtime_ns
    result = save(name=VM, path=str(image), after_save="pause", **FULL)
    assert not result["changed"]
    assert "has no checksum" in str(result["warnings"])
    assert save(name=VM, path=str(image), **FULL)["warnings"] == result["warnings"]
    guest.wait_exit()
    assert save(name=VM, path=str(image), **FULL)["warnings"] == result["warnings"]
    assert image.stat().st_mtime_ns == before


def test_checksum_of_a_kind_that_is_not_known(guest, image, save, run_module, restore):
    continuity = Continuity(guest)
    save(name=VM, path=str(image), **FULL)
    with image.open("r+b") as file:
        head = without_record_checksum(file.read(65536))
        assert head.count(b"sha256-tree:") == 1
        file.seek(0)
        file.write(head.replace(b"sha256-tree:", b"blake9-tree:"))
    assert run_module("qemu_save_image", path=str(image), vouch=True)["changed"]
    result = run_module("qemu_restore", name=VM, path=str(image), verify="full")
    assert result["error"] == "ImageUnsupportedError"
    assert "cannot be checked" in result["msg"]
    assert "Update this collection" in result["cure"]
    restore(name=VM, path=str(image))
    continuity.check()


# --- images that were managed since ---


@pytest.mark.parametrize("space", ["whole", "tight"])
@pytest.mark.parametrize("save_format", ["sparse", "raw"])
def test_checksum_holds_when_the_image_is_managed(guest, image, save, restore, run_module, info, save_format, space):
    continuity = Continuity(guest)
    digest = save(name=VM, path=str(image), format=save_format, **FULL)["image"]["checksum"]
    xml = info()["domain_xml"].replace("</domain>", f"<description>{'changed ' * 5000}</description></domain>")
    archived = {"archive": "zstd", "space": space}
    for options in (archived, {"archive": "none"}, {"image_version": 2}, {"domain_xml": xml}):
        result = run_module("qemu_save_image", path=str(image), **options)
        assert result["changed"], result["msg"]
        assert result["image"]["checksum"] == digest
    assert info(verify=True)["problems"] == []
    copy = image.with_suffix(".copy")
    subprocess.run(["cp", "--sparse=never", str(image), str(copy)], check=True)
    os.replace(copy, image)
    restore(name=VM, path=str(image), verify="full")
    continuity.check()


# --- a run that is disturbed while it reads ---


@pytest.fixture
def start_slowly(start_module, image, tmp_path):
    """Start a module whose reading of chunks takes so many seconds each, and wait until it reads some.

    ``start_slowly(seconds, module, **options)`` gives the run, and the module's process to signal.
    """

    def start(seconds, module, **options):
        calls = "preadv,preadv2"  # Python uses the one or the other
        trace = tmp_path / "trace"
        delay = ["-e", f"trace={calls}", "-e", f"inject={calls}:delay_enter={int(seconds * 1e6)}"]
        strace = ["strace", "-f", "-s", "0", "-e", "signal=none", *delay, "-o", str(trace)]
        run = start_module(module, name=VM, path=str(image), prefix=strace, **options)
        deadline = time.monotonic() + 60
        # More than the few reads that find out whether the file system takes O_DIRECT.
        while not trace.exists() or trace.read_text().count("preadv") < 6:
            assert time.monotonic() < deadline
            assert run.process.poll() is None, run.result()
            time.sleep(0.02)
        (pid,) = Path(f"/proc/{run.process.pid}/task/{run.process.pid}/children").read_text().split()
        return run, int(pid)

    return start


@pytest.fixture
def reading_save(start_slowly, big_guest):
    """Start a save that takes half a minute for its checksum, and wait until it has begun with that."""

    def start(**options):
        started = start_slowly(1, "qemu_save", checksum=True, **options)
        with Monitor(big_guest.observer_socket) as monitor:
            assert monitor.execute("query-migrate")["status"] == "completed"
        return started

    return start


@pytest.mark.parametrize("image_format", ["sparse", "raw"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signal_puts_the_guest_back_at_once(big_guest, image, reading_save, number, image_format):
    before = settings(big_guest)
    continuity = Continuity(big_guest)
    run, pid = reading_save(format=image_format)
    os.kill(pid, number)
    signalled = time.monotonic()
    result = run.result(60)
    assert time.monotonic() - signalled < 10
    assert result["error"] == "InterruptedOperationError", result["msg"]
    assert words(result) == ("running", "absent")
    assert os.listdir(image.parent) == []
    assert settings(big_guest) == before
    continuity.check()


def test_timeout_puts_the_guest_back(big_guest, image, reading_save):
    continuity = Continuity(big_guest)
    run, _pid = reading_save(timeout=6)
    result = run.result(60)
    assert result["error"] == "OperationTimeoutError", result["msg"]
    assert words(result) == ("running", "absent")
    assert os.listdir(image.parent) == []
    continuity.check()


@pytest.mark.parametrize("checksum", [True, False])
def test_killed_save_is_adopted_as_the_present_run_asks(big_guest, image, reading_save, save, restore, info, checksum):
    continuity = Continuity(big_guest)
    run, pid = reading_save()
    os.kill(pid, signal.SIGKILL)
    run.process.communicate()
    assert run_state(big_guest) == "postmigrate"
    result = save(name=VM, path=str(image), checksum=checksum)
    assert "earlier run" in result["msg"]
    assert (result["image"]["checksum"] is not None) == checksum
    assert (result["checksum_ms"] is not None) == checksum
    assert info(verify=True)["problems"] == []
    restore(name=VM, path=str(image), verify="full" if checksum else "structure")
    continuity.check()


@pytest.mark.parametrize("live", [False, True], ids=["stopped", "live"])
def test_guest_that_shall_go_on_does_not_wait_for_the_checksum(big_guest, image, start_slowly, info, live):
    before = settings(big_guest)
    continuity = Continuity(big_guest)
    run, _pid = start_slowly(0.2, "qemu_save", checksum=True, after_save="resume", live=live)
    assert run_state(big_guest) == "running"
    assert settings(big_guest) == before
    assert not image.exists()
    result = run.result(60)
    assert not result.get("failed"), result["msg"]
    assert result["pause_ms"] < result["checksum_ms"]
    assert result["image"]["checkpoint"]
    assert info(verify=True)["problems"] == []
    continuity.check()


def test_signal_while_the_guest_goes_on(big_guest, image, reading_save, save):
    """Nothing is to be put back, and the image that was there stays."""
    save(name=VM, path=str(image), after_save="resume")
    old = image.read_bytes()
    before = settings(big_guest)
    continuity = Continuity(big_guest)
    run, pid = reading_save(after_save="resume", force=True)
    os.kill(pid, signal.SIGTERM)
    result = run.result(60)
    assert result["error"] == "InterruptedOperationError", result["msg"]
    assert words(result) == ("running", "complete")
    assert image.read_bytes() == old
    assert os.listdir(image.parent) == [image.name]
    assert settings(big_guest) == before
    continuity.check()


def test_guest_that_ends_while_its_save_goes_on(big_guest, image, start_slowly, info):
    """Its image is a checkpoint, whatever became of it."""
    run, _pid = start_slowly(0.2, "qemu_save", checksum=True, after_save="resume")
    assert run_state(big_guest) == "running"
    big_guest.power_off()
    assert not image.exists()
    result = run.result(60)
    assert not result.get("failed"), result["msg"]
    assert "has ended since" in result["msg"]
    assert result["vm"]["run_state"] == "ended"
    assert result["image"]["checkpoint"]
    assert info(verify=True)["problems"] == []


def test_killed_save_of_a_guest_that_goes_on_is_done_again(big_guest, image, reading_save, save):
    """What it left is of the past: it must never become the image of a guest that has gone on."""
    before = settings(big_guest)
    continuity = Continuity(big_guest)
    run, pid = reading_save(after_save="resume")
    os.kill(pid, signal.SIGKILL)
    run.process.communicate()
    assert run_state(big_guest) == "running"
    assert settings(big_guest) == before
    result = save(name=VM, path=str(image), after_save="resume")
    assert "earlier run" not in result["msg"]
    assert os.listdir(image.parent) == [image.name]
    continuity.check()


def test_restore_that_is_interrupted_while_it_verifies(guest, image, save, restore, start_slowly):
    continuity = Continuity(guest)
    save(name=VM, path=str(image), **FULL)
    run, pid = start_slowly(2, "qemu_restore", verify="full")
    os.kill(pid, signal.SIGTERM)
    result = run.result(60)
    assert result["error"] == "InterruptedOperationError", result["msg"]
    assert words(result) == ("saved", "kept")
    assert find_qemu_pids(VM) == []
    restore(name=VM, path=str(image), verify="full")
    continuity.check()
