# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The machines of the molecule scenarios (tests/machines.py): they end, whatever happened, and are what they say."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import machines
import pytest

from support.machine_tool import UNAVAILABLE, finish, start

pytestmark = pytest.mark.skipif(bool(UNAVAILABLE), reason=UNAVAILABLE)


def ssh(directory: Path, machine: str, command: str) -> str:
    """What a command says on a machine."""
    argv = ["ssh", "-F", str(directory / "ssh_config"), machine, command]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def remains(directory: Path) -> list[str]:
    """What is still there of the machines of a directory, now that they should be gone."""
    found = [str(path) for path in (directory,) if path.exists()]
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
        except OSError:
            continue
        if os.fsencode(directory) in words:
            found.append(words.replace(b"\0", b" ").decode())
    found += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(directory) in line]
    return found


def cgroups() -> set[str]:
    """All control groups of machines on this host, of whatever run."""
    found = set()
    for mount in machines.cgroup_mounts():
        for parent in (mount, mount / "machine.slice"):
            found |= {str(path) for path in parent.glob("vmops-*")}
    return found


@pytest.fixture
def directory(tmp_path):
    """Where a test may make machines; they are ended, and nothing of them may be left."""
    directory = tmp_path / "machines"
    yield directory
    groups = {f"{(directory / 'run').read_text().strip()}-" if (directory / "run").exists() else "none"}
    finish(start("destroy", str(directory)))
    deadline = time.monotonic() + 10
    while (left := remains(directory)) and time.monotonic() < deadline:
        time.sleep(0.1)  # an ssh that sees its connection end
    assert left == []
    assert [group for group in cgroups() if any(unit in group for unit in groups)] == []


@pytest.mark.parametrize("delay", [0.1, 0.3, 0.6, 1.0, 2.0])
def test_destroy_ends_what_a_killed_create_left(directory, delay):
    create = start("create", str(directory), "hv1", "hv2")
    time.sleep(delay)
    create.kill()
    create.communicate()
    # The fixture does the rest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_create_that_is_interrupted_ends_its_machines(directory, number):
    create = start("create", str(directory), "hv1", "hv2")
    while not (directory / "hv2" / "upper").exists():
        assert create.poll() is None, create.communicate()[0]
        time.sleep(0.01)
    unit = (directory / "run").read_text().strip()
    create.send_signal(number)
    create.communicate(timeout=machines.END_TIMEOUT)
    assert create.returncode != 0
    assert not directory.exists()
    assert [group for group in cgroups() if unit in group] == []


def test_machines_of_two_runs_do_not_meet(directory, tmp_path):
    other = tmp_path / "other"
    try:
        both = [start("create", str(path), "hv1") for path in (directory, other)]
        for create in both:
            finish(create)
        for path in (directory, other):
            ssh(path, "hv1", f"echo {path.name} >/var/lib/mine")
        assert [ssh(path, "hv1", "cat /var/lib/mine") for path in (directory, other)] == ["machines", "other"]
        assert ssh(directory, "hv1", "cat /etc/machine-id") != ssh(other, "hv1", "cat /etc/machine-id")
    finally:
        finish(start("destroy", str(other)))
    assert remains(other) == []
    assert ssh(directory, "hv1", "hostname") == "hv1"


def test_a_machine_with_another_key_is_refused(directory):
    finish(start("create", str(directory), "hv1", "hv2"))
    known = directory / "known_hosts"
    first, second = (line.split(" ", 1) for line in known.read_text().splitlines())
    known.write_text(f"{first[0]} {second[1]}\n{second[0]} {second[1]}\n")
    argv = ["ssh", "-F", str(directory / "ssh_config"), "hv1", "true"]
    refused = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 255
    assert "Host key verification failed" in refused.stderr
    assert ssh(directory, "hv2", "hostname") == "hv2"


def test_a_machine_is_a_copy_where_no_overlay_is_possible(tmp_path):
    layers = [tmp_path / name for name in ("lower", "upper", "work", "merged")]
    for layer in layers:
        layer.mkdir()
    lower, upper, work, merged = layers
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(merged)], check=True)
    try:
        directory = merged / "machines"
        finish(start("create", str(directory), "hv1"))
        assert "no overlay here, copying" in (directory / "hv1" / "console.log").read_text(errors="replace")
        assert ssh(directory, "hv1", "hostname") == "hv1"
        finish(start("destroy", str(directory)))
        assert not directory.exists()
    finally:
        subprocess.run(["umount", str(merged)], check=True)


def test_a_tree_in_use_is_not_removed(directory):
    finish(start("create", str(directory), "hv1"))
    lock = f"{machines.base_tree()}.lock"
    assert subprocess.run(["flock", "--exclusive", "--nonblock", lock, "true"], check=False).returncode == 1
