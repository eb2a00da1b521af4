# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""qemu_save_image: an image that was changed, or archived and expanded, brings back the same guest."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest

from support import Monitor, Process
from support.observe import VM, Continuity, run_state


@pytest.fixture
def change(run_module, image):
    """Run qemu_save_image on the guest's image, which must succeed."""

    def run(**options):
        result = run_module("qemu_save_image", path=str(image), **options)
        assert not result.get("failed"), result["msg"]
        return result

    return run


def extents(path):
    """Where the file has data, as the kernel tells it."""
    result, position = [], 0
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        while position < size:
            start = os.lseek(file.fileno(), position, os.SEEK_DATA)
            position = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            result.append((start, position))
    return result


def test_a_changed_head(guest, image, save, restore, change, run_module):
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    xml = run_module("qemu_save_image_info", path=str(image))["image"]["domain_xml"]
    new = xml.replace("</domain>", f"  <description>{'changed ' * 5000}</description>\n</domain>")
    result = change(domain_xml=new, vm_state="paused", image_version=2)
    assert (result["image"]["version"], result["image"]["vm_state"]) == (2, "paused")
    assert result["image"]["launch_recorded"]
    assert not change(domain_xml=new, vm_state="paused", image_version=2)["changed"]
    info = run_module("qemu_save_image_info", path=str(image), stream=True, verify=True)["image"]
    assert info["problems"] == []
    assert "changed changed" in info["domain_xml"]
    # Its QEMU is started with the command line that the image has recorded, not with what the XML shows of it.
    result = restore(name=VM, path=str(image))
    assert result["launched"]
    assert run_state(guest) == "paused"
    with Monitor(guest.qmp_socket) as monitor:
        monitor.execute("cont")
    continuity.check()


@pytest.mark.parametrize("archive", ["gzip", "bzip2", "xz", "lzop", "zstd"])
@pytest.mark.parametrize("save_format", ["sparse", "raw"])
def test_archived_and_expanded(guest, image, save, restore, change, run_module, archive, save_format):
    continuity = Continuity(guest)
    saved = save(name=VM, path=str(image), format=save_format)
    before, map_before = image.read_bytes(), extents(image)
    result = change(archive=archive)
    assert os.listdir(image.parent) == [os.path.basename(result["image"]["path"])]
    assert result["image"]["allocated"] < saved["image"]["allocated"]
    refused = run_module("qemu_restore", name=VM, path=str(image))
    assert refused["error"] == "ImageNotFoundError"
    assert "archive: none" in refused["cure"]
    assert not save(name=VM, path=str(image))["changed"]
    assert not change(archive=archive)["changed"]
    result = change(archive="none")
    assert result["image"]["state"] == "complete"
    assert os.listdir(image.parent) == [image.name]
    assert image.read_bytes() == before
    assert extents(image) == map_before
    restore(name=VM, path=str(image))
    continuity.check()


def test_tar_alone_expands_an_archive(guest, image, save, restore, change):
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    archive = change(archive="zstd")["image"]["path"]
    subprocess.run(["tar", "-I", "zstd", "-C", str(image.parent), "--sparse", "-xf", archive], check=True)
    restore(name=VM, path=str(image))
    continuity.check()


@pytest.mark.slow
def test_tight_in_several_pieces_and_killed(make_guest, image, save, restore, change, start_module, run_module):
    guest = make_guest(memory_mib=768, block_mib=8, dirty_mib=700)
    guest.dirty(True)
    time.sleep(5)
    guest.dirty(False)
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    size = image.stat().st_size
    run = start_module("qemu_save_image", path=str(image), archive="gzip", space="tight")
    record = image.parent / f".{image.name}.archiving"
    deadline = time.monotonic() + 90
    while not record.exists():
        assert time.monotonic() < deadline
        assert run.process.poll() is None
        time.sleep(0.01)
    time.sleep(0.5)
    run.process.send_signal(signal.SIGKILL)
    run.process.wait()
    info = run_module("qemu_save_image_info", path=str(image))["image"]
    assert info["state"] == "partial"
    assert "archive: gzip" in info["problems"][0]
    assert run_module("qemu_restore", name=VM, path=str(image))["error"] == "ImagePartialError"
    assert change(archive="gzip")["image"]["state"] == "archived"
    assert change(archive="none")["image"]["size"] == size
    assert os.listdir(image.parent) == [image.name]
    restore(name=VM, path=str(image), verify="structure")
    continuity.check()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize("space", ["whole", "tight"])
def test_interrupted_by_a_signal(guest, image, save, start_module, tmp_path, monkeypatch, number, space):
    """The tool hangs: it is ended, what was begun is removed, and the image is whole."""
    save(name=VM, path=str(image))
    before = image.read_bytes()
    tools = tmp_path / "tools"
    tools.mkdir()
    tool = tools / "gzip"
    tool.write_text(f"#!/bin/sh\necho $$ >{tools}/pid\nexec sleep 600\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    run = start_module("qemu_save_image", path=str(image), archive="gzip", space=space)
    deadline = time.monotonic() + 20
    while not (tools / "pid").exists() or not (tools / "pid").read_text().strip():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    started = Process(int((tools / "pid").read_text()))
    run.process.send_signal(number)
    result = run.result(20)
    assert result["error"] == "InterruptedOperationError"
    assert number.name in result["msg"]
    assert os.listdir(image.parent) == [image.name]
    assert image.read_bytes() == before
    assert started.wait(5)


def test_an_image_that_is_being_restored_is_not_touched(guest, image, save, change, run_module):
    """A QEMU that has the image open, as while it loads it, keeps others from changing it."""
    save(name=VM, path=str(image))
    before = image.read_bytes()
    with image.open("rb"):
        for options in ({"vm_state": "paused"}, {"archive": "zstd"}, {"state": "absent"}):
            result = run_module("qemu_save_image", path=str(image), **options)
            assert result["error"] == "ConflictError"
            assert "in use" in result["msg"]
    assert image.read_bytes() == before
    assert change(state="absent")["changed"]
    assert not change(state="absent")["changed"]
