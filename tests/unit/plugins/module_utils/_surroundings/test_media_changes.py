# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.media import Medium, MediumFile
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.media_changes import (
    changed_media,
    other_media,
    settling_time,
)

TIME = 1_700_000_000_123_456_789  # 2023-11-14 22:13:20
OTHER_TIME = TIME + 1
LABEL = "the VM web1"


def medium(*files: MediumFile, backend: str = "virtio0", qdev: str = "/machine/a") -> Medium:
    return Medium(backend, qdev, "n", False, files)


def file(path: str = "/vm/a.img", **facts: Any) -> MediumFile:
    return MediumFile(path, **{"format": "raw", "size": 4096, "mtime_ns": TIME, "inode": 1, **facts})


def network(path: str = "nbd://h/e") -> MediumFile:
    return MediumFile(path, "raw", uncheckable="it is a server's")


def device(path: str = "/dev/sda", size: int = 512, identity: str = "") -> MediumFile:
    return MediumFile(path, "raw", size, inode=5, uncheckable="it is a device", identity=identity)


def kinds(problems: list[Any]) -> list[str]:
    return [problem.kind for problem in problems]


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(4096))
    os.utime(path, ns=(TIME, TIME))
    return path


def recorded(path: Path, **facts: Any) -> list[Medium]:
    now = path.stat()
    return [medium(file(str(path), inode=now.st_ino, device_number=now.st_dev, **facts))]


# --- before anything is started ---


def test_unchanged_file(disk):
    assert changed_media(recorded(disk)) == []


def test_copy_that_keeps_the_time(disk):
    before = recorded(disk)
    shutil.copy2(disk, disk.with_suffix(".new"))
    os.replace(disk.with_suffix(".new"), disk)
    os.utime(disk, ns=(TIME, TIME))
    assert disk.stat().st_ino != before[0].files[0].inode
    assert changed_media(before) == []


def test_copy_that_does_not_keep_the_time(disk):
    before = recorded(disk)
    os.utime(disk, ns=(TIME, TIME // 10**9 * 10**9))
    assert kinds(changed_media(before)) == ["disk_written"]


def test_written_file(disk):
    before = recorded(disk)
    os.utime(disk, ns=(TIME, OTHER_TIME))
    (problem,) = changed_media(before)
    assert problem.kind == "disk_written"
    assert problem.blocks
    assert "the disk virtio0 was written to" in problem.what
    assert f"{disk} was last changed at 2023-11-14 22:13:20.123456789 UTC then" in problem.what
    assert "22:13:20.12345679 UTC now" in problem.what
    assert "bytes" not in problem.what
    assert "disks=ignore" in problem.cure


def test_grown_file(disk):
    before = recorded(disk)
    os.truncate(disk, 8192)
    os.utime(disk, ns=(TIME, TIME))
    (problem,) = changed_media(before)
    assert problem.kind == "disk_written"
    assert "had 4096 bytes" in problem.what
    assert "had 8192 bytes" in problem.what


@pytest.mark.parametrize("change", ["removed", "directory_removed", "fifo", "directory", "dangling"])
def test_file_that_is_none_any_more(disk, tmp_path, change):
    before = recorded(disk)
    disk.unlink()
    if change == "directory_removed":
        before = [medium(file(str(tmp_path / "gone" / "disk.img")))]
    elif change == "fifo":
        os.mkfifo(disk)
    elif change == "directory":
        disk.mkdir()
    elif change == "dangling":
        disk.symlink_to("nowhere")
    (problem,) = changed_media(before)
    assert problem.kind == ("disk_replaced" if change in ("fifo", "directory") else "disk_gone")
    assert problem.blocks
    assert before[0].files[0].path in problem.what


def test_each_layer_is_looked_at(disk, tmp_path):
    base = tmp_path / "base.img"
    shutil.copy2(disk, base)
    before = [medium(recorded(disk)[0].files[0], recorded(base, mtime_ns=base.stat().st_mtime_ns)[0].files[0])]
    assert changed_media(before) == []
    os.utime(base, ns=(0, 0))
    (problem,) = changed_media(before)
    assert str(base) in problem.what


def test_what_could_not_be_checked_does_not_block():
    (problem,) = changed_media([medium(network())])
    assert (problem.kind, problem.blocks) == ("disk_unchecked", False)
    assert "nbd://h/e" in problem.what
    assert "it is a server's" in problem.what


def test_device_that_is_gone_or_a_file_now(disk):
    assert kinds(changed_media([medium(device(str(disk) + ".gone"))])) == ["disk_gone"]
    assert kinds(changed_media([medium(device(str(disk)))])) == ["disk_replaced"]


def test_loop_device_is_told_by_its_file():
    before, other = (file("/dev/loop0", identity=f"loop over /{name}", mtime_ns=TIME + ord(name)) for name in "ab")
    assert other_media([medium(before)], [medium(dataclasses.replace(before, path="/dev/loop7"))], LABEL) == []
    (problem,) = other_media([medium(before)], [medium(other)], LABEL)
    assert (problem.kind, problem.blocks) == ("disk_replaced", True)
    assert "/dev/loop0 was loop over /a then" in problem.what
    assert "is loop over /b now" in problem.what


def test_empty_drives_and_no_media():
    assert changed_media([medium()]) == changed_media([]) == []


# --- what was opened ---


def test_same_media_by_other_paths_and_other_nodes():
    now = dataclasses.replace(medium(file("/new/place.img", inode=9, device_number=9)), node="#block999")
    assert other_media([medium(file())], [now], LABEL) == []


def test_order_does_not_matter_where_there_are_names():
    first, second = medium(file(), backend="a"), medium(file("/vm/b", size=8), backend="b")
    assert other_media([first, second], [second, first], LABEL) == []
    third, fourth = medium(file(), backend="", qdev="c"), medium(file("/vm/b", size=8), backend="", qdev="d")
    assert other_media([third, fourth], [fourth, third], LABEL) == []


def test_devices_that_another_qemu_numbers_otherwise():
    before = [medium(file(), backend="", qdev="/machine/unattached/device[9]"), medium(file(), backend="x")]
    now = [medium(file(), backend="x"), medium(file(), backend="", qdev="/machine/unattached/device[12]")]
    assert other_media(before, now, LABEL) == []


def test_drives_of_other_names_are_not_paired():
    assert kinds(other_media([medium(file(), backend="a")], [medium(file(), backend="b")], LABEL)) == [
        "disk_missing",
        "disk_added",
    ]


def test_swapped_media():
    before = [medium(file("/vm/a", size=1), backend="cd0"), medium(file("/vm/b", size=2), backend="cd1")]
    now = [medium(file("/vm/b", size=2), backend="cd0"), medium(file("/vm/a", size=1), backend="cd1")]
    problems = other_media(before, now, LABEL)
    assert kinds(problems) == ["disk_replaced", "disk_replaced"]
    assert "/vm/a" in problems[0].what
    assert "/vm/b" in problems[0].what


@pytest.mark.parametrize("facts", [{"size": 4097}, {"mtime_ns": OTHER_TIME}])
def test_other_content(facts):
    (problem,) = other_media([medium(file())], [medium(file(**facts))], LABEL)
    assert (problem.kind, problem.blocks) == ("disk_written", True)
    (problem,) = other_media([medium(file())], [medium(file("/vm/b.img", **facts))], LABEL)
    assert (problem.kind, problem.blocks) == ("disk_replaced", True)


@pytest.mark.parametrize(
    "now",
    [
        [file(format="qcow2")],
        [file(format="qcow2"), file()],
        [file(), file("/vm/base")],
    ],
)
def test_other_layers(now):
    (problem,) = other_media([medium(file())], [medium(*now)], LABEL)
    assert problem.kind == "disk_chain"
    assert "/vm/a.img (raw) then" in problem.what


def test_medium_too_few_or_too_many():
    full, empty = medium(file()), medium()
    assert kinds(other_media([full], [empty], LABEL)) == ["disk_missing"]
    assert kinds(other_media([full], [], LABEL)) == ["disk_missing"]
    (problem,) = other_media([empty], [full], LABEL)
    assert problem.kind == "disk_added"
    assert LABEL in problem.what
    assert "virtio0" in problem.what
    assert kinds(other_media([], [full], LABEL)) == ["disk_added"]
    assert other_media([empty], [empty], LABEL) == other_media([empty], [], LABEL) == other_media([], [], LABEL) == []


def test_what_cannot_be_compared():
    def result(old: MediumFile, new: MediumFile) -> tuple[str, bool]:
        (problem,) = other_media([medium(old)], [medium(new)], LABEL)
        return problem.kind, problem.blocks

    unchecked, replaced = ("disk_unchecked", False), ("disk_replaced", True)
    assert result(network(), network()) == unchecked
    assert result(network(), network("nbd://h/other")) == replaced
    assert result(network(), file()) == replaced
    assert result(device(), device("/dev/sdb")) == replaced
    assert result(device(), device()) == unchecked
    assert result(device(), device(identity="wwid 1")) == unchecked
    assert result(device(), device(size=1024)) == replaced
    assert result(device(identity="wwid 1"), device(identity="wwid 1")) == unchecked
    assert result(device(identity="wwid 1"), device("/dev/sdb", identity="wwid 1")) == unchecked
    assert result(device(identity="wwid 1"), device(identity="wwid 2")) == replaced
    assert result(device(identity="wwid 1"), device()) == replaced
    assert result(device(identity="wwid 1"), file("/dev/sda")) == replaced
    assert result(device(), file("/dev/sda", identity="loop over /a")) == unchecked
    assert result(device(), file("/dev/loop0", identity="loop over /a")) == replaced
    assert result(file("/dev/loop0", identity="loop over /a"), device("/dev/loop0")) == unchecked
    assert result(file(), device("/vm/a.img")) == replaced
    not_seen = MediumFile("/vm/a.img", "raw", uncheckable="its QEMU belongs to another user")
    assert result(file(), not_seen) == unchecked
    assert result(file("/vm/b.img"), not_seen) == replaced
    assert result(not_seen, file("/elsewhere")) == unchecked


# --- times that are too near ---


@pytest.mark.parametrize(
    ("changed", "now", "expected"),
    [
        (TIME, TIME, 0.02),
        (TIME, TIME + 15 * 10**6, 0.005),
        (TIME, TIME + 20 * 10**6, 0),
        (TIME, TIME + 10**12, 0),
        (TIME + 10**12, TIME, 0.02),
        (10**18, 10**18 + 5 * 10**8, 1.5),
        (10**18, 10**18 + 2 * 10**9, 0),
    ],
)
def test_settling_time(changed, now, expected):
    assert settling_time([medium(file(mtime_ns=changed))], now) == pytest.approx(expected)


def test_only_files_need_to_settle():
    assert settling_time([medium(network()), medium(device()), medium()]) == 0
