# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Pid files of others: found where they name the process, brought up to date, and nothing else written to."""

from __future__ import annotations

import os
import subprocess
import threading

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.configuration import Configuration
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import QemuProcess
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.pid_files import (
    PidFile,
    PidFiles,
    find_pid_files,
    parse_pid_files,
    record_pid_files,
    update_pid_files,
)

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can do this")


def gone():
    """The number of a process that has ended."""
    child = subprocess.Popen(["true"])
    child.wait()
    return child.pid


OLD = gone()
NEW = os.getpid()


def qemu(directory, *words, pid=OLD):
    argv = ("qemu-system-x86_64", *words)
    return QemuProcess(
        pid=pid,
        name="web1",
        argv=argv,
        cwd=str(directory),
        executable="/usr/bin/qemu-system-x86_64",
        uid=os.geteuid(),
        gid=os.getegid(),
        configuration=Configuration((), argv),
    )


def found(directory, *words):
    return find_pid_files(qemu(directory, *words), threading.Event())


@pytest.fixture
def place(tmp_path):
    tmp_path.chmod(0o755)
    return tmp_path


def of(path, text=None):
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"{OLD}\n" if text is None else text)
    return PidFiles(OLD, (PidFile(str(path), os.geteuid()),))


@pytest.mark.parametrize("text", [f"{OLD}\n", f"{OLD}", f" {OLD}\n\n"])
@pytest.mark.parametrize("name", ["web1.pid", "pid", "web1.pidfile"])
def test_beside_the_process(place, name, text):
    expected = of(place / name, text)
    assert found(place) == (expected, [])


def test_beside_its_socket(place):
    expected = of(place / "vm" / "qemu.pid")
    words = ("-monitor", f"unix:{place}/vm/monitor.sock,server=on,wait=off")
    assert found("/", *words) == (expected, [])


@only_root
def test_in_run():
    directory = f"/run/vmops-test-{os.getpid()}"
    path = f"{directory}/web1/qemu.pid"
    os.makedirs(os.path.dirname(path), mode=0o755)
    try:
        with open(path, "w") as file:
            file.write(f"{OLD}\n")
        assert found("/")[0].files == (PidFile(path, 0),)
    finally:
        os.unlink(path)
        os.removedirs(os.path.dirname(path))


@pytest.mark.parametrize("text", [f"{OLD}0\n", f"x{OLD}\n", f"{OLD} {OLD}\n", "", "\0", f"{OLD}" + "\n" * 100])
def test_another_text(place, text):
    of(place / "web1.pid", text)
    assert found(place) == (PidFiles(OLD), [])


def test_another_name(place):
    of(place / "uptime")
    assert found(place) == (PidFiles(OLD), [])


def test_link_is_followed_to_the_file(place):
    expected = of(place / "real.pid")
    (place / "web1.pid").symlink_to("real.pid")
    assert found(place) == (expected, [])


@pytest.mark.parametrize("name", ["web1.pid", "real.pid"])
def test_what_qemu_writes_itself(place, name):
    of(place / "real.pid")
    (place / "web1.pid").symlink_to("real.pid")
    assert found(place, "-pidfile", name) == (PidFiles(OLD), [])


def test_fifo(place):
    os.mkfifo(place / "web1.pid")
    assert found(place) == (PidFiles(OLD), [])


def test_where_others_may_write(place):
    of(place / "web1.pid")
    place.chmod(0o777)
    files, (problem,) = found(place)
    assert files == PidFiles(OLD)
    assert (problem.kind, problem.blocks) == ("pid_file", False)
    assert str(place / "web1.pid") in problem.what


@only_root
def test_of_another_user(place):
    of(place / "web1.pid")
    os.chown(place / "web1.pid", 12345, 12345)
    files, (problem,) = found(place)
    assert files == PidFiles(OLD)
    assert "12345" in problem.what


def test_brought_up_to_date(place):
    path = place / "web1.pid"
    recorded = of(path, f"{OLD}" + "\n" * 20)
    path.chmod(0o640)
    before = path.stat()
    assert update_pid_files(recorded, qemu(place, pid=NEW)) == []
    assert path.read_text() == f"{NEW}\n"
    after = path.stat()
    assert (after.st_ino, after.st_uid, after.st_gid, after.st_mode) == (
        before.st_ino,
        before.st_uid,
        before.st_gid,
        before.st_mode,
    )
    assert update_pid_files(recorded, qemu(place, pid=NEW)) == [], "once more"


def test_gone_with_a_reboot(place):
    recorded = of(place / "web1.pid")
    (place / "web1.pid").unlink()
    assert update_pid_files(recorded, qemu(place, pid=NEW)) == []
    assert os.listdir(place) == []


@pytest.mark.parametrize("text", ["1\n", "", "something"])
def test_written_to_meanwhile(place, text):
    recorded = of(place / "web1.pid")
    (place / "web1.pid").write_text(text)
    assert update_pid_files(recorded, qemu(place, pid=NEW)) == []
    assert (place / "web1.pid").read_text() == text


def test_number_is_anothers_by_now(place):
    with subprocess.Popen(["sleep", "60"]) as other:
        path = place / "web1.pid"
        path.write_text(f"{other.pid}\n")
        recorded = PidFiles(other.pid, (PidFile(str(path), os.geteuid()),))
        (warning,) = update_pid_files(recorded, qemu(place, pid=NEW))
        other.kill()
    assert "another process has the number" in warning
    assert path.read_text() == f"{other.pid}\n"


def test_planted_links(place):
    """The file's own user could put them there; what they lead to keeps its content."""
    victim = place / "victim"
    path = place / "web1.pid"
    recorded = of(path)
    victim.write_text(f"{OLD}\n")
    path.unlink()
    path.symlink_to(victim)
    (warning,) = update_pid_files(recorded, qemu(place, pid=NEW))
    assert str(path) in warning
    path.unlink()
    os.link(victim, path)
    (warning,) = update_pid_files(recorded, qemu(place, pid=NEW))
    assert "not the file that it was" in warning
    assert victim.read_text() == f"{OLD}\n"


def test_directory_that_others_may_write_to_by_now(place):
    recorded = of(place / "web1.pid")
    place.chmod(0o777)
    (warning,) = update_pid_files(recorded, qemu(place, pid=NEW))
    assert str(place) in warning
    assert (place / "web1.pid").read_text() == f"{OLD}\n"


def test_record():
    recorded = PidFiles(4711, (PidFile("/run/web1.pid", 0), PidFile("/run/x/pid", 107)))
    assert parse_pid_files(record_pid_files(recorded)) == recorded


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"pid": "1", "files": []},
        {"pid": True, "files": []},
        {"pid": -1, "files": []},
        {"pid": 1, "files": [{"path": "/x", "uid": 0}] * 1000},
    ],
)
def test_what_is_no_record(value):
    assert parse_pid_files(value) == PidFiles()


@pytest.mark.parametrize("path", ["x.pid", "", "/x\0", 1, None, ["/x"]])
def test_what_is_no_path(path):
    assert parse_pid_files({"pid": 1, "files": [{"path": path, "uid": 0}]}) == PidFiles(1)
