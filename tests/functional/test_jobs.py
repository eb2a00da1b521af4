# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Jobs, exports and dirty bitmaps on a real QEMU: what is said of them, and what becomes of a save beside them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
from pathlib import Path
from typing import Any, Callable

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.monitor import Monitor
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.block_graph import ask_block
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.jobs import job_problems
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.verdict import Problem

from support import MonitorError, wait_migration
from support.observe import wait_until
from support.paused import PausedQemu, make_disk
from support.versions import OLD_QEMU

#: Bytes a second: the job outlasts the test.
SLOW = {"speed": 4096}
#: The job of 4 MiB outlasts what is asked of it, but not the test: QEMU 7.2 pauses a backup when its turn comes again.
SLOWISH = {"speed": 256 * 1024}
COPY = {"device": "virtio0", "target": "copy.img", "sync": "full", "format": "raw"}
BACKUP = {"job-id": "b", **COPY}

FATAL = ("block_job_fatal", True)
LOST = ("block_job", True)
FINISHED = ("finished_job", False)

#: By name: the commands, the state of the job then, and what is said of it.
JOBS: dict[str, tuple[list[tuple[str, dict[str, Any]]], str, tuple[str, bool]]] = {
    "mirror": ([("drive-mirror", {**COPY, **SLOW})], "running", LOST),
    "mirror-ready": ([("drive-mirror", COPY)], "ready", LOST),
    "mirror-paused": (
        [("drive-mirror", {**COPY, **SLOW}), ("block-job-pause", {"device": "virtio0"})],
        "paused",
        LOST,
    ),
    "mirror-standby": ([("drive-mirror", COPY), ("block-job-pause", {"device": "virtio0"})], "", LOST),
    "stream": ([("block-stream", {"device": "virtio0", **SLOW})], "running", FATAL),
    "commit": ([("block-commit", {"device": "virtio0", "top": "mid.qcow2", **SLOW})], "running", FATAL),
    "commit-active": ([("block-commit", {"device": "virtio0", **SLOW})], "running", FATAL),
    "commit-active-ready": ([("block-commit", {"device": "virtio0"})], "ready", FATAL),
    "backup": ([("drive-backup", {**BACKUP, **SLOW})], "running", FATAL),
    "backup-fleecing": ([("drive-backup", {**BACKUP, "sync": "none", "format": "qcow2"})], "running", FATAL),
    "backup-paused": ([("drive-backup", {**BACKUP, **SLOWISH}), ("job-pause", {"id": "b"})], "paused", FATAL),
    "backup-pending": ([("drive-backup", {**BACKUP, "auto-finalize": False})], "pending", FATAL),
    "backup-concluded": ([("drive-backup", {**BACKUP, "auto-dismiss": False})], "concluded", FINISHED),
    "create-concluded": (
        [("blockdev-create", {"job-id": "b", "options": {"driver": "file", "filename": "new.img", "size": 65536}})],
        "concluded",
        FINISHED,
    ),
}


@pytest.fixture
def start(tmp_path: Path, start_paused: Callable[..., PausedQemu]) -> Callable[..., PausedQemu]:
    """Start a QEMU with a chain of three layers in virtio0."""
    layers = ["base.qcow2", "mid.qcow2", "top.qcow2"]
    for number, (name, below) in enumerate(zip(layers, ["", *layers])):
        make_disk(tmp_path / name, "qcow2", *(("-b", below, "-F", "qcow2") if below else ()), size="4M")
        write = f"write -P {number + 1} 0 {4 >> number}M"
        subprocess.run(["qemu-io", "-c", write, name], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    disk = ("-drive", "if=virtio,format=qcow2,file=top.qcow2")
    return lambda *arguments, **options: start_paused(*disk, *arguments, **options)


def problems_of(qemu: PausedQemu) -> list[Problem]:
    async def look() -> list[Problem]:
        async with await Monitor.connect(str(qemu.qmp_socket)) as monitor:
            return await job_problems(monitor, await ask_block(monitor))

    return asyncio.run(look())


def node_of(qemu: PausedQemu) -> str:
    return str(qemu.execute("query-block")[0]["inserted"]["node-name"])


def migrated(qemu: PausedQemu) -> str:
    """Save it into nowhere; the migration's end, and how the job is then."""
    qemu.execute("migrate", {"uri": "exec:cat >/dev/null"})
    return str(wait_migration(qemu.qmp_socket)["status"])


@pytest.mark.parametrize("qemu", ["own", "7.2"])
def test_nothing_is_under_way(start, qemu):
    if qemu == "7.2" and not OLD_QEMU.exists():
        pytest.skip("no QEMU 7.2 in .cache")
    vm = start(**({"qemu": str(OLD_QEMU)} if qemu == "7.2" else {}))
    assert problems_of(vm) == []
    vm.execute("block-dirty-bitmap-add", {"node": node_of(vm), "name": "kept", "persistent": True})
    assert problems_of(vm) == []


@pytest.mark.parametrize("qemu", ["own", "7.2"])
@pytest.mark.parametrize("name", JOBS)
def test_job(start, name, qemu):
    if qemu == "7.2" and not OLD_QEMU.exists():
        pytest.skip("no QEMU 7.2 in .cache")
    vm = start(**({"qemu": str(OLD_QEMU)} if qemu == "7.2" else {}))
    commands, state, (kind, blocks) = JOBS[name]
    for command, arguments in commands:
        vm.execute(command, arguments)
    wait_until(lambda: [job["status"] for job in vm.execute("query-jobs")] == [state] or not state)
    (problem,) = problems_of(vm)
    assert (problem.kind, problem.blocks) == (kind, blocks)
    assert ("b" if "job-id" in commands[0][1] else "virtio0") in problem.what
    assert problem.cure
    # What is said to be fatal is, and nothing else; what a stream does comes later.
    assert migrated(vm) == ("failed" if problem.fails_save and name != "stream" else "completed")


@pytest.mark.parametrize("qemu", ["own", "7.2"])
def test_filter(start, tmp_path, qemu):
    """As backup tools put one above a disk: QEMU says nothing of it before it fails."""
    if qemu == "7.2" and not OLD_QEMU.exists():
        pytest.skip("no QEMU 7.2 in .cache")
    for name in ("other", "target"):
        make_disk(tmp_path / f"{name}.img", size="4M")
    nodes = [
        *({"driver": "file", "node-name": name, "filename": f"{name}.img"} for name in ("other", "target")),
        {"driver": "copy-before-write", "node-name": "f", "file": "other", "target": "target"},
    ]
    words = [word for node in nodes for word in ("-blockdev", json.dumps(node))]
    vm = start(*words, "-device", "virtio-scsi-pci", **({"qemu": str(OLD_QEMU)} if qemu == "7.2" else {}))
    # Below nothing it does no harm.
    assert problems_of(vm) == []
    vm.execute("device_add", {"driver": "scsi-hd", "drive": "f", "id": "disk0"})
    (problem,) = problems_of(vm)
    assert (problem.kind, problem.blocks, problem.fails_save) == ("block_filter", True, True)
    assert "the copy-before-write node f" in problem.what
    assert migrated(vm) == "failed"


def test_stream_kills_qemu_after_the_save(start):
    """Why it is one of those that no option may override."""
    vm = start()
    vm.execute("block-stream", {"device": "virtio0", **SLOW})
    assert [problem.kind for problem in problems_of(vm)] == ["block_job_fatal"]
    assert migrated(vm) == "completed"
    with contextlib.suppress(MonitorError):
        vm.execute("block-job-set-speed", {"device": "virtio0", "speed": 0})
    assert vm.exit_code() == -signal.SIGABRT


def test_exports(start, tmp_path):
    vm = start()
    place = str(tmp_path / "nbd.sock") if len(str(tmp_path)) < 90 else f"/tmp/vmops-{vm.pid}.nbd"
    vm.execute("nbd-server-start", {"addr": {"type": "unix", "data": {"path": place}}})
    try:
        assert problems_of(vm) == []
        vm.execute("block-export-add", {"id": "e1", "type": "nbd", "node-name": node_of(vm)})
        vm.execute("nbd-server-add", {"device": "virtio0", "name": "old"})
        problems = problems_of(vm)
        assert [(problem.kind, problem.blocks) for problem in problems] == [("export", True)] * 2
        assert any("e1" in problem.what for problem in problems)
        assert migrated(vm) == "completed"
    finally:
        Path(place).unlink(missing_ok=True)


def test_dirty_bitmaps_that_are_kept_in_memory(start):
    vm = start()
    for name in ("b2", "b1"):
        vm.execute("block-dirty-bitmap-add", {"node": node_of(vm), "name": name})
    (problem,) = problems_of(vm)
    assert (problem.kind, problem.blocks) == ("dirty_bitmap", False)
    assert "b1, b2" in problem.what
    assert migrated(vm) == "completed"


def test_several_jobs(start, tmp_path):
    make_disk(tmp_path / "a.img")
    vm = start("-drive", "if=virtio,format=raw,file=a.img")
    vm.execute("drive-mirror", {**COPY, **SLOW})
    vm.execute("drive-backup", {**BACKUP, "device": "virtio1", "target": "a.copy", **SLOW})
    assert sorted(problem.kind for problem in problems_of(vm)) == ["block_job", "block_job_fatal"]
