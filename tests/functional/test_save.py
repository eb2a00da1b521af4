# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""qemu_save and qemu_restore on a real QEMU: the options, and what the guest sees of it."""

from __future__ import annotations

import os
import stat
import struct
import subprocess

import pytest

from support import Monitor
from support.observe import VM, Continuity, run_state, settings, words

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can do this")

COMPRESSED = ["gzip", "bzip2", "xz", "lzop", "zstd"]
SPARSE = {"format": "sparse", "features": ["mapped-ram"]}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"version": 3, **SPARSE}),
        ({"image_version": 2}, {"version": 2, "format": "raw", "features": []}),
        ({"image_version": 2, "format": "sparse"}, {"version": 2, "format": "sparse", "features": []}),
        ({"format": "raw"}, {"version": 3, "format": "raw", "features": []}),
        ({"bypass_cache": False, "parallel_channels": 1}, {"version": 3, **SPARSE}),
        ({"bypass_cache": True, "parallel_channels": 8}, {"version": 3, **SPARSE}),
        ({"live": True}, {"version": 3, **SPARSE}),
    ],
    ids=["default", "version-2", "version-2-sparse", "raw", "buffered", "direct", "live"],
)
def test_guest_goes_on_after_save_and_restore(guest, image, save, restore, options, expected):
    continuity = Continuity(guest)
    saved = save(name=VM, path=str(image), **options)
    assert saved["changed"]
    assert {key: saved["image"][key] for key in expected} == expected
    assert saved["image"]["complete"]
    assert saved["image"]["vm_state"] == "running"
    for option in ("bypass_cache", "parallel_channels"):
        if option in options:
            assert saved[option] == options[option]
    assert not guest.alive()
    assert os.listdir(image.parent) == ["web1.save"]

    restored = restore(name=VM, path=str(image))
    assert restored["changed"]
    assert restored["launched"]
    assert restored["vm"]["run_state"] == "running"
    continuity.check()
    assert not image.exists()


@pytest.mark.parametrize("image_version", [2, 3])
@pytest.mark.parametrize("image_format", COMPRESSED)
def test_guest_goes_on_after_a_compressed_save(guest, image, save, restore, run_module, image_format, image_version):
    continuity = Continuity(guest)
    saved = save(name=VM, path=str(image), format=image_format, image_version=image_version)
    assert saved["image"]["format"] == image_format
    assert saved["image"]["version"] == image_version
    assert saved["image"]["size"] < saved["bytes_written"]
    assert saved["parallel_channels"] is None
    assert saved["bypass_cache"] is False
    # The tool itself finds nothing wrong with what stands in the file.
    with image.open("rb") as handle:
        os.lseek(handle.fileno(), saved["image"]["stream_offset"], os.SEEK_SET)
        subprocess.run([image_format, "-dc"], stdin=handle, stdout=subprocess.DEVNULL, check=True)
    assert run_module("qemu_save_image_info", path=str(image), verify=True)["image"]["problems"] == []
    restore(name=VM, path=str(image))
    continuity.check()


def test_live_compressed_save(guest, image, save, restore):
    continuity = Continuity(guest)
    save(name=VM, path=str(image), format="zstd", live=True)
    restore(name=VM, path=str(image))
    continuity.check()


@only_root
def test_image_is_private_and_has_the_owner_asked_for(guest, image, save):
    os.umask(os.umask(0))
    save(name=VM, path=str(image))
    assert stat.S_IMODE(image.stat().st_mode) == 0o600
    guest.start()
    options = {"mode": "0640", "owner": "nobody", "group": "nogroup", "require_restorable": False}
    save(name=VM, path=str(image), force=True, **options)
    facts = image.stat()
    assert stat.S_IMODE(facts.st_mode) == 0o640
    assert (facts.st_uid, facts.st_gid) != (0, 0)


def test_mode_for_others_is_refused(guest, image, run_module):
    result = run_module("qemu_save", name=VM, path=str(image), mode="0644")
    assert result["error"] == "RequestError"
    assert "0640" in result["cure"]


def test_version_3_header_is_the_rfcs(guest, image, save):
    save(name=VM, path=str(image))
    magic, version, data_length, was_running, compressed, cookie, features = struct.unpack_from(
        "=16s6I", image.read_bytes()[:92]
    )
    assert magic == b"LibvirtQemudSave"
    assert (version, was_running, compressed, cookie, features) == (3, 1, 0, 0, 1)
    assert (92 + data_length) % 65536 == 0


@pytest.mark.parametrize(("after_save", "state"), [("pause", "postmigrate"), ("resume", "running")])
def test_after_save_leaves_qemu_as_it_was(guest, image, save, after_save, state):
    before = settings(guest)
    continuity = Continuity(guest)
    result = save(name=VM, path=str(image), after_save=after_save)
    assert result["vm"]["run_state"] == state
    assert run_state(guest) == state
    assert settings(guest) == before
    with Monitor(guest.qmp_socket) as monitor:
        if after_save == "pause":
            monitor.execute("cont")
        # libvirt's leftovers (multifd, direct-io) crash QEMU here.
        monitor.execute("human-monitor-command", {"command-line": "info migrate"})
    continuity.check()
    assert result["pause_ms"] > 0


def test_buffered_save_after_a_direct_one(guest, image, save):
    continuity = Continuity(guest)
    save(name=VM, path=str(image), after_save="resume", bypass_cache=True)
    result = save(name=VM, path=str(image), after_save="resume", bypass_cache=False, force=True)
    assert result["bypass_cache"] is False
    continuity.check()


def test_direct_io_that_someone_left_on_does_not_spoil_a_buffered_save(guest, image, save):
    with Monitor(guest.qmp_socket) as monitor:
        monitor.execute("migrate-set-parameters", {"direct-io": True})
    before = settings(guest)
    save(name=VM, path=str(image), after_save="resume", bypass_cache=False)
    assert settings(guest) == before


def test_capabilities_that_would_spoil_the_stream_are_put_aside(guest, image, save, restore):
    with Monitor(guest.qmp_socket) as monitor:
        monitor.execute(
            "migrate-set-capabilities",
            {
                "capabilities": [
                    {"capability": "xbzrle", "state": True},
                    {"capability": "pause-before-switchover", "state": True},
                ]
            },
        )
    before = settings(guest)
    continuity = Continuity(guest)
    save(name=VM, path=str(image), after_save="resume")
    assert settings(guest) == before
    save(name=VM, path=str(image), force=True)
    restore(name=VM, path=str(image))
    continuity.check()


def test_paused_guest_stays_paused(guest, image, save, restore):
    continuity = Continuity(guest)
    with Monitor(guest.qmp_socket) as monitor:
        monitor.execute("stop")
    result = save(name=VM, path=str(image))
    assert result["pause_ms"] == 0
    assert result["image"]["vm_state"] == "paused"
    assert restore(name=VM, path=str(image))["vm"]["run_state"] == "paused"
    guest.wait_restarted()
    with Monitor(guest.qmp_socket) as monitor:
        monitor.execute("cont")
    continuity.check()


def test_resume_does_not_start_a_guest_that_was_paused(guest, image, save):
    with Monitor(guest.qmp_socket) as monitor:
        monitor.execute("stop")
    result = save(name=VM, path=str(image), after_save="resume")
    assert result["vm"]["run_state"] == run_state(guest) != "running"
    with Monitor(guest.qmp_socket) as monitor:
        monitor.execute("cont")
    guest.wait_for_counter()


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("state", ["running", "paused"])
def test_restore_decides_whether_the_guest_runs(guest, image, save, restore, live, state):
    save(name=VM, path=str(image), live=live, vm_state="paused" if state == "running" else "running")
    result = restore(name=VM, path=str(image), state=state)
    assert result["vm"]["run_state"] == state


def test_vm_state_is_stored(guest, image, save, restore):
    result = save(name=VM, path=str(image), vm_state="paused")
    assert result["image"]["vm_state"] == "paused"
    assert restore(name=VM, path=str(image))["vm"]["run_state"] == "paused"


def test_live_save_pauses_the_guest_for_less_time_than_the_save_takes(make_guest, image, save, restore):
    guest = make_guest(memory_mib=256, block_mib=128, observer=True)
    continuity = Continuity(guest)
    result = save(name=VM, path=str(image), live=True, bandwidth="100M")
    assert result["pause_ms"] < result["duration"] * 1000 / 2
    restore(name=VM, path=str(image))
    continuity.check()


def test_live_guest_that_outruns_the_disk_is_stopped_after_live_timeout(make_guest, image, save, restore):
    guest = make_guest(memory_mib=256, block_mib=8, dirty_mib=128, observer=True)
    continuity = Continuity(guest)
    guest.dirty(True)
    result = save(name=VM, path=str(image), live=True, live_timeout=3, bandwidth="40M")
    assert result["duration"] > 3
    assert result["pause_ms"] > 100
    restore(name=VM, path=str(image))
    guest.wait_restarted()
    guest.dirty(False)
    continuity.check()


def test_bandwidth_bounds_the_save(make_guest, image, save):
    # QEMU meters in windows of 100 ms and overshoots with several channels, so only the order is checked.
    make_guest(memory_mib=512, block_mib=256)
    slow = save(name=VM, path=str(image), bandwidth="64M", after_save="resume", parallel_channels=1)
    fast = save(name=VM, path=str(image), force=True)
    assert slow["throughput"] < 128 * 2**20
    assert fast["throughput"] > 2 * slow["throughput"]


def test_given_domain_xml_is_stored_with_our_record_in_it(guest, image, save, restore, run_module):
    xml = f"<domain type='qemu'><!-- mine --><name>{VM}</name><memory unit='MiB'>64</memory></domain>"
    continuity = Continuity(guest)
    save(name=VM, path=str(image), domain_xml=xml)
    info = run_module("qemu_save_image_info", path=str(image))["image"]
    assert "<!-- mine -->" in info["domain_xml"]
    assert info["launch_recorded"]
    restore(name=VM, path=str(image))
    continuity.check()


@pytest.mark.parametrize(
    ("xml", "says"),
    [
        ("<name>web2</name><memory unit='MiB'>64</memory>", "web2"),
        (f"<name>{VM}</name><memory unit='MiB'>96</memory>", "has 100663296 bytes of memory, the VM's state only"),
        (f"<name>{VM}</name><os><type machine='pc-i440fx-2.0'>hvm</type></os>", "machine type pc-i440fx-2.0"),
    ],
)
def test_domain_xml_of_another_vm_is_refused(guest, image, run_module, xml, says):
    """Before the guest is touched: with it, the image would be damaged as soon as it is written."""
    continuity = Continuity(guest)
    result = run_module("qemu_save", name=VM, path=str(image), domain_xml=f"<domain type='qemu'>{xml}</domain>")
    assert result["error"] == "MismatchError"
    assert says in result["msg"]
    assert words(result) == ("running", "absent")
    assert os.listdir(image.parent) == []
    continuity.check()


def test_save_dir_is_made_private(guest, tmp_path, save):
    save_dir = tmp_path / "new" / "save"
    result = save(name=VM, save_dir=str(save_dir))
    assert result["image"]["path"] == str(save_dir / f"{VM}.save")
    assert stat.S_IMODE(save_dir.stat().st_mode) == 0o700


def test_name_from_the_socket(guest, tmp_path, save):
    result = save(qmp_socket=str(guest.qmp_socket), save_dir=str(tmp_path / "save"))
    assert result["image"]["path"] == str(tmp_path / "save" / f"{VM}.save")
    assert result["vm"]["name"] == VM
