# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Images that libvirt 11.3 made: read in every format, and restored where that is possible."""

from __future__ import annotations

import lzma
import shutil
import subprocess
import tarfile
import time

import pytest

from support import Process, qmp
from support.golden import COMMAND, GOLDEN

FORMATS = ["raw", "gzip", "bzip2", "xz", "lzop", "zstd", "sparse"]
SIZES = {
    "raw": 632399,
    "gzip": 368530,
    "bzip2": 289621,
    "xz": 238294,
    "lzop": 438382,
    "zstd": 277030,
    "sparse": 20094105,
    "sparse-paused": 20094105,
}


@pytest.mark.parametrize("name", [*FORMATS, "sparse-paused"])
def test_info_reads_every_format(golden, run_module, name):
    result = run_module("qemu_save_image_info", path=str(golden / f"{name}.save"), verify=True)
    image = result["image"]
    assert image["state"] == "complete", image["problems"]
    assert image["problems"] == []
    assert image["version"] == 2
    assert image["format"] == name.removesuffix("-paused")
    assert image["vm_state"] == ("paused" if name == "sparse-paused" else "running")
    assert image["name"] == "tiny"
    assert image["uuid"] == "11111111-2222-3333-4444-555555555555"
    assert image["memory"] == 16 * 2**20
    assert image["size"] == SIZES[name]
    assert "<cpu" in image["cookie"] or "<cookie" in image["cookie"]
    assert image["launch_recorded"] is False


@pytest.mark.parametrize("name", FORMATS)
def test_info_looks_into_the_stream_of_every_format(golden, run_module, name):
    stream = run_module("qemu_save_image_info", path=str(golden / f"{name}.save"), stream=True)["image"]["stream"]
    assert stream["machine"] == "pc-i440fx-10.0"
    assert {block["name"]: block["used_length"] for block in stream["ram_blocks"]}["pc.ram"] == 16 * 2**20
    if name in ("raw", "sparse"):
        assert {"timer", "cpu_common", "fw_cfg"} <= {section["name"] for section in stream["sections"]}
        assert stream["end"] == SIZES[name]


def test_info_lists_the_directory(golden, run_module):
    result = run_module("qemu_save_image_info", path=str(golden))
    assert len(result["images"]) == len(SIZES)


def characters(log):
    return [line[1] for line in log.read_bytes().split(b"\n") if len(line) == 2 and line[:1] == b"T"]


@pytest.mark.parametrize("name", ["raw", "sparse", "sparse-paused"])
def test_restores_into_the_right_command_line(golden, run_module, tmp_path, name):
    image = tmp_path / "tiny.save"
    subprocess.run(["cp", "--sparse=always", golden / f"{name}.save", image], check=True)
    with lzma.open(GOLDEN / "tiny.img.xz") as packed, (tmp_path / "tiny.img").open("wb") as floppy:
        shutil.copyfileobj(packed, floppy)
    (tmp_path / "serial.log").touch()
    process = subprocess.Popen(COMMAND, cwd=tmp_path, stdin=subprocess.DEVNULL)
    try:
        socket = tmp_path / "tiny.qmp"
        deadline = time.monotonic() + 20
        while not socket.exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        result = run_module("qemu_restore", path=str(image), launch="attach", qmp_socket=str(socket))
        assert not result.get("failed"), result["msg"]
        expected = "paused" if name == "sparse-paused" else "running"
        assert result["vm"]["run_state"] == expected
        assert not image.exists()
        if expected == "paused":
            assert characters(tmp_path / "serial.log") == []
            qmp(socket, "cont")
        while len(characters(tmp_path / "serial.log")) < 20:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    seen = characters(tmp_path / "serial.log")
    # The character runs from ! (33) through 96 and starts again: it went on, it did not start anew.
    assert all((after - 33) % 64 == (before - 33 + 1) % 64 for before, after in zip(seen, seen[1:]))


def test_wrong_machine_is_refused(golden, run_module, tmp_path):
    image = tmp_path / "tiny.save"
    shutil.copy(golden / "sparse.save", image)
    with lzma.open(GOLDEN / "tiny.img.xz") as packed, (tmp_path / "tiny.img").open("wb") as floppy:
        shutil.copyfileobj(packed, floppy)
    command = [word.replace("pc-i440fx-10.0", "pc-i440fx-9.2") for word in COMMAND]
    process = subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while not (tmp_path / "tiny.qmp").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        result = run_module("qemu_restore", path=str(image), launch="attach", qmp_socket=str(tmp_path / "tiny.qmp"))
        assert result["error"] == "MismatchError"
        assert "pc-i440fx-10.0" in result["msg"]
        assert Process(process.pid).alive()
    finally:
        process.kill()
        process.wait()
    assert image.exists()


def test_fixture_is_the_published_one():
    with tarfile.open(GOLDEN / "libvirt-11.3.tar.xz") as archive:
        sizes = {member.size for member in archive if member.isfile()}
    assert set(SIZES.values()) <= sizes
