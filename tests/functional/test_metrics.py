# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the program of host_setup tells Prometheus of real guests that are saved and restored."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from support.guest import REPOSITORY
from support.observe import Continuity, wait_until

WEB1 = f"web1-{os.getpid()}"


@pytest.fixture
def told(tmp_path, image):
    """Run the program; its samples by metric, as labels and values."""
    from ansible_collections.vmops.qemu.plugins.lookup.restore_program import make_program

    place = tmp_path / "program"
    place.mkdir(mode=0o755)
    with (place / "write_metrics.pyz").open("wb") as archive:
        make_program(REPOSITORY / "roles" / "host_setup" / "files" / "write_metrics.py", archive)
    file = tmp_path / "textfile" / "vmops_qemu.prom"
    file.parent.mkdir()
    settings = place / "settings.json"
    settings.write_text(json.dumps({"save_dir": str(image.parent), "file": str(file)}))
    settings.chmod(0o644)

    def run():
        done = subprocess.run(
            [sys.executable, "-I", str(place / "write_metrics.pyz"), str(settings)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
            cwd="/",
            text=True,
            timeout=120,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, "")
        assert os.listdir(file.parent) == [file.name]
        families = text_string_to_metric_families(file.read_text(encoding="utf-8"))
        return {family.name: [(sample.labels, sample.value) for sample in family.samples] for family in families}

    return run


def last_runs(found):
    return {tuple(labels.values()): value for labels, value in found["vmops_qemu_last_run_timestamp_seconds"]}


def test_a_vm_is_saved_and_comes_back(told, make_guest, save, restore, image):
    continuity = Continuity(make_guest(WEB1, observer=True, block_mib=2))
    assert told()["vmops_qemu_saved_vm_timestamp_seconds"] == []
    before = time.time() - 1
    save(name=WEB1, path=str(image))
    found = told()
    ((labels, saved),) = found["vmops_qemu_saved_vm_timestamp_seconds"]
    assert labels == {"vm": WEB1, "image": image.name}
    assert before <= saved <= time.time() + 1
    assert last_runs(found)["save", "success"] >= before
    ((_labels, size),) = found["vmops_qemu_image_bytes"]
    assert 0 < size <= image.stat().st_blocks * 512
    between = time.time()
    restore(path=str(image))
    found = told()
    assert found["vmops_qemu_saved_vm_timestamp_seconds"] == []
    assert last_runs(found)["restore", "success"] >= between - 1
    continuity.check()


def test_failures_are_told(told, run_module, image):
    before = time.time() - 1
    image.write_bytes(b"LibvirtQemudSave" + b"\0" * 200)
    assert run_module("qemu_restore", path=str(image))["failed"]
    assert run_module("qemu_save", name=WEB1, path=str(image))["failed"]
    found = told()
    assert last_runs(found)["save", "failure"] >= before
    assert last_runs(found)["restore", "failure"] >= before
    assert {labels["state"]: value for labels, value in found["vmops_qemu_images"]}["invalid"] == 1


def test_what_is_at_work(told, big_guest, start_module, image):
    run = start_module("qemu_save", name=big_guest.name, path=str(image), bandwidth="20M", parallel_channels=1)

    def at_work():
        found = told()
        return [labels for labels, _value in found["vmops_qemu_operation_started_timestamp_seconds"]]

    wait_until(lambda: {"vm": big_guest.name, "operation": "save"} in at_work(), timeout=60)
    assert not run.result().get("failed")
    assert {"vm": big_guest.name, "operation": "save"} not in at_work()
