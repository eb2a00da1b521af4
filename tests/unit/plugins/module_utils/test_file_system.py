# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which file system a directory lies in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils import _file_system
from ansible_collections.vmops.qemu.plugins.module_utils._file_system import (
    Lasting,
    file_system,
    lasting,
    mount_point,
    volatile_mount,
)


def test_mount_points():
    for ask in (mount_point, file_system):
        assert ask("/") == "/"
        assert ask("/proc") == "/proc"
        assert ask("/proc/self") == "/proc"
        assert ask("/procedures") == "/"


def test_types():
    assert lasting("/proc/self").kind == "proc"
    assert lasting("/dev/shm/x").kind == "tmpfs"
    assert lasting("/sys").kind == "sysfs"


def test_links_on_the_way(tmp_path):
    (tmp_path / "link").symlink_to("/proc")
    assert mount_point(f"{tmp_path}/link/self") == "/proc"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_a_directory_that_is_mounted_at_two_places(tmp_path):
    """It has a mount point of its own, which a guard waits for, but no space of its own."""
    first, second = tmp_path / "first", tmp_path / "a second\\one"
    first.mkdir()
    second.mkdir()
    code = (
        "from ansible_collections.vmops.qemu.plugins.module_utils._file_system import file_system, mount_point\n"
        "import subprocess, sys\n"
        "subprocess.run(['mount', '-t', 'tmpfs', 'tmpfs', sys.argv[1]], check=True)\n"
        "subprocess.run(['mount', '--bind', sys.argv[1], sys.argv[2]], check=True)\n"
        "print(*(repr(ask(place)) for ask in (mount_point, file_system) for place in sys.argv[1:]))\n"
    )
    command = ["unshare", "--mount", "python3", "-c", code, str(first), str(second)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    said = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    expected = [str(first), str(second), str(first), str(first)]
    assert said.strip() == " ".join(repr(place) for place in expected)


# --- what a reboot keeps ---

OVERLAY = 'mount -t overlay overlay -o "lowerdir=$PWD/low,upperdir=$1,workdir=$2" there'
LOOP = "truncate -s 8M $1 && mkfs.ext4 -q $1 && mount -o loop $1 there"

#: Commands in a directory with an empty one named "there", on which they mount something, and what is to be said of it.
MOUNTS = {
    "tmpfs": ("mount -t tmpfs tmpfs there", False),
    "ramfs": ("mount -t ramfs ramfs there", False),
    "bind": ("mount -t tmpfs tmpfs low; mkdir low/in; mount --bind low/in there", False),
    "overlay on tmpfs": (f"mount -t tmpfs t up; mkdir up/u up/w; set -- $PWD/up/u $PWD/up/w; {OVERLAY}", False),
    "overlay on disk": (f"mkdir up/u up/w; set -- $PWD/up/u $PWD/up/w; {OVERLAY}", True),
    "blanks": (
        f"mkdir 'up/a u' up/w; mount -t tmpfs t up/w; mkdir -p 'up/w/a u' up/w/w;"
        f' set -- "$PWD/up/w/a u" $PWD/up/w/w; {OVERLAY}',
        False,
    ),
    "out of sight": (
        f"mount -t tmpfs t up; mkdir up/u up/w; set -- $PWD/up/u $PWD/up/w; {OVERLAY}; umount -l up",
        None,
    ),
    "hidden": (f"mkdir up/u up/w; set -- $PWD/up/u $PWD/up/w; {OVERLAY}; mount -t tmpfs t up", None),
    "relative": (f"mkdir up/u up/w; set -- up/u up/w; {OVERLAY}", None),
    "read-only": ("mkdir low2; mount -t overlay o -o lowerdir=$PWD/low:$PWD/low2 there", None),
    "never flushed": (f"mkdir up/u up/w; set -- $PWD/up/u $PWD/up/w,volatile; {OVERLAY}", None),
    "loop on tmpfs": (f"mount -t tmpfs t up; set -- up/disk; {LOOP}", False),
    "loop on disk": (f"set -- up/disk; {LOOP}", True),
    "removed": (f"set -- up/disk; {LOOP}; rm up/disk", False),
    "loop on loop": (
        "mount -t tmpfs t up; truncate -s 40M up/d; mkfs.ext4 -q up/d; mount -o loop up/d low;"
        f" set -- low/disk; {LOOP}",
        False,
    ),
    "overlay on loop": (
        f"mount -t tmpfs t low; mkdir low/up; set -- low/disk; {LOOP}; mount --move there up;"
        f" mkdir up/u up/w; set -- $PWD/up/u $PWD/up/w; {OVERLAY}",
        False,
    ),
    "program": ("bindfs low there", None),
}

ASK = (
    "from ansible_collections.vmops.qemu.plugins.module_utils._file_system import lasting, volatile_mount\n"
    "import sys\n"
    "for name in '', '/save/not/there':\n"
    "    print(lasting(sys.argv[1] + name).lasts, repr(volatile_mount(sys.argv[1] + name)))\n"
)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
@pytest.mark.parametrize("case", MOUNTS)
def test_what_a_reboot_keeps(case, tmp_path):
    commands, lasts = MOUNTS[case]
    if lasting(str(tmp_path)).lasts is not True:
        pytest.skip("the directory of the tests is not on a disk")
    if case == "program" and not shutil.which("bindfs"):
        pytest.skip("no bindfs")
    for name in ("low", "up", "there"):
        (tmp_path / name).mkdir()
    script = f'set -e; ask=$1; {commands}; "{sys.executable}" -c "$ask" "$PWD/there"; umount -l there'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", ASK],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    volatile = str(tmp_path / "there") if lasts is False else ""
    assert done.stdout == f"{lasts} {volatile!r}\n" * 2, done.stderr


def test_memory_that_is_there():
    assert (lasting("/dev/shm/x").lasts, volatile_mount("/dev/shm/x")) == (False, "/dev/shm")
    assert lasting("/proc/self").lasts is None


def test_mounts_that_cannot_be_read(monkeypatch):
    monkeypatch.setattr(_file_system, "_mounts", list)
    assert lasting("/dev/shm") == Lasting("/", "", None)
    assert volatile_mount("/dev/shm") == ""


@pytest.mark.parametrize(
    ("kind", "lasts", "in_container", "is_refused"),
    [
        ("tmpfs", False, True, True),
        ("overlay", True, False, False),
        ("overlay", None, False, True),
        ("overlay", None, True, False),
        ("fuse.glusterfs", None, False, False),
        ("", None, False, False),
    ],
)
def test_what_is_refused(kind, lasts, in_container, is_refused, monkeypatch):
    monkeypatch.setattr(_file_system, "_is_container", lambda: in_container)
    assert Lasting("/", kind, lasts).is_refused == is_refused


def test_devices_of_memory(tmp_path, monkeypatch):
    """As /sys shows them, where this host has none."""
    disk, memory = tmp_path / "sda", tmp_path / "zram7"
    for place in (disk, memory):
        (place / "slaves").mkdir(parents=True)
    both = tmp_path / "dm-0"
    for below, numbers in ((disk, "8:0"), (memory, "252:7")):
        (below / "dev").write_text(f"{numbers}\n")
        (both / "slaves").mkdir(parents=True, exist_ok=True)
        (both / "slaves" / below.name).symlink_to(below)
    (disk / "sda1").mkdir()
    (disk / "sda1" / "partition").touch()
    found = {"8:0": disk, "8:1": disk / "sda1", "252:7": memory, "253:0": both}
    real = os.path.realpath
    monkeypatch.setattr(
        os.path, "realpath", lambda path: str(found.get(path.removeprefix("/sys/dev/block/"), real(path)))
    )

    def lasts(numbers):
        mount = _file_system._Mount(numbers.encode(), "/s", "ext4", "/dev/root")
        monkeypatch.setattr(_file_system, "_mounts", lambda: [mount])
        return lasting("/s/x").lasts

    assert [lasts(numbers) for numbers in ("8:0", "8:1", "252:7", "253:0", "9:9")] == [True, True, False, False, None]
