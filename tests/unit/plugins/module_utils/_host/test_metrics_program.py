# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What Prometheus reads, by its own parser."""

from __future__ import annotations

import dataclasses
import json
import re
import types
from pathlib import Path

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._host.metrics_program import (
    Exposition,
    MetricsSettings,
    label_value,
    main,
    metrics,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.record import LaunchRecord
from ansible_collections.vmops.qemu.plugins.module_utils._proc import boot_id
from ansible_collections.vmops.qemu.plugins.module_utils._shutdown.record import ShutDownVm
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).resolve().parents[5]
SAVED_AT = 1772357400.25


def image(path="/s/web1.save", **facts):
    known = {"path": path, "name": "web1", "state": "complete", "superseded_by": None, "copy_of": None}
    more = {"checkpoint": False, "restorable": True, "launch": {"uid": 64055}, "allocated": 4096, "mtime": 1000.5}
    return {**known, **more, "saved_at": "2026-03-01T09:30:00.250Z", **facts}


def process(name="web1", uid=64055):
    return types.SimpleNamespace(name=name, uid=uid)


def read(images=(), processes=(), boot_restore_failed=None, shut_down=()):
    """The samples by metric: labels and value of each."""
    text = metrics(images, shut_down, processes, boot_restore_failed)
    assert text.endswith("\n")
    families = list(text_string_to_metric_families(text))
    names = [family.name for family in families]
    assert len(set(names)) == len(names)
    found = {}
    for family in families:
        assert family.type == "gauge"
        assert family.documentation
        series = [(sample.name, tuple(sorted(sample.labels.items()))) for sample in family.samples]
        assert len(set(series)) == len(series)
        found[family.name] = [(sample.labels, sample.value) for sample in family.samples]
    return found


def test_a_vm_that_waits_for_its_restore():
    found = read([image()])
    labels = {"vm": "web1", "image": "web1.save"}
    assert found["vmops_qemu_saved_vm_timestamp_seconds"] == [(labels, SAVED_AT)]
    assert found["vmops_qemu_image_timestamp_seconds"] == [({**labels, "state": "complete"}, SAVED_AT)]
    assert found["vmops_qemu_image_bytes"] == [(labels, 4096)]
    assert ({"state": "complete"}, 1) in found["vmops_qemu_images"]
    assert found["vmops_qemu_save_dir_readable"] == [({}, 1)]


@pytest.mark.parametrize(
    "facts",
    [
        {"checkpoint": True},
        {"superseded_by": "/s/new.save"},
        {"copy_of": "/s/new.save"},
        {"state": "partial"},
        {"state": "invalid", "name": None},
        {"state": "archived"},
    ],
)
def test_images_from_which_no_vm_waits(facts):
    assert read([image(**facts)])["vmops_qemu_saved_vm_timestamp_seconds"] == []


@pytest.mark.parametrize(
    ("running", "waits"),
    [(process(), False), (process(uid=0), False), (process(uid=1000), True), (process("db1"), True)],
)
def test_whether_its_vm_runs(running, waits):
    """A QEMU of another user's does not hide that it is saved."""
    assert bool(read([image()], [running])["vmops_qemu_saved_vm_timestamp_seconds"]) == waits


@pytest.mark.parametrize("saved_at", [None, "", "yesterday", "9" * 100, "2026-03-01"])
def test_time_that_is_not_recorded(saved_at):
    ((_labels, value),) = read([image(saved_at=saved_at)])["vmops_qemu_saved_vm_timestamp_seconds"]
    assert value == 1000.5


def test_time_that_nothing_tells():
    found = read([image(saved_at=None, mtime=None, state="invalid", name=None, allocated=None)])
    assert found["vmops_qemu_image_timestamp_seconds"] == []


@pytest.mark.parametrize("has_failed", [True, False])
def test_restore_at_boot(has_failed):
    assert read(boot_restore_failed=has_failed)["vmops_qemu_boot_restore_failed"] == [({}, has_failed)]
    assert "vmops_qemu_boot_restore_failed" not in read()


def shut_down(name="web1"):
    return ShutDownVm(name, SAVED_AT, LaunchRecord(["qemu-system-x86_64"], "/", "/usr/bin/qemu", 64055, 64055))


@pytest.mark.parametrize(
    ("running", "waits"),
    [([], True), ([process()], False), ([process(uid=0)], False), ([process(uid=1000)], True), ([process("x")], True)],
)
def test_a_vm_that_was_shut_down_and_does_not_run(running, waits):
    found = read(processes=running, shut_down=[shut_down()])
    assert found["vmops_qemu_shut_down_vms_readable"] == [({}, 1)]
    assert found["vmops_qemu_shut_down_vm_timestamp_seconds"] == ([({"vm": "web1"}, SAVED_AT)] if waits else [])


@pytest.mark.parametrize(("birth", "pending"), [(8, True), (9, False)])
def test_a_vm_that_was_asked_to_shut_down_and_still_runs(birth, pending):
    asked = dataclasses.replace(shut_down(), pid=7, birth=8, boot_id=boot_id())
    running = types.SimpleNamespace(name="web1", uid=64055, pid=7, birth=birth)
    found = read(processes=[running], shut_down=[asked])
    told = [({"vm": "web1"}, SAVED_AT)] if pending else []
    assert found["vmops_qemu_shutdown_pending_vm_timestamp_seconds"] == told
    assert found["vmops_qemu_shut_down_vm_timestamp_seconds"] == []


def test_what_was_shut_down_cannot_be_read():
    found = read(shut_down=None)
    assert found["vmops_qemu_shut_down_vms_readable"] == [({}, 0)]
    assert found["vmops_qemu_shut_down_vm_timestamp_seconds"] == []


def test_directory_that_cannot_be_read():
    found = read(None)
    assert found["vmops_qemu_save_dir_readable"] == [({}, 0)]
    assert found["vmops_qemu_image_bytes"] == []


@pytest.mark.parametrize(
    "name",
    [
        'a"b',
        "a\\b",
        "a\nb",
        'a"} 1\nvmops_qemu_boot_restore_failed 0',
        "{}",
        "é",
        "\udcff",
        "\x00\x1b",
        "x" * 5000,
        "\u202e",
    ],
    ids=str.__len__,
)
def test_names_are_labels_and_nothing_else(name):
    found = read([image(f"/s/{name}.save", name=name), image(f"/s/{name}.save", name=name)])
    assert found["vmops_qemu_image_bytes"][0][1] == 4096
    assert len(found["vmops_qemu_image_bytes"]) == 1, "a series that is there twice spoils the file"
    assert "vmops_qemu_boot_restore_failed" not in found
    assert len(found["vmops_qemu_image_bytes"][0][0]["vm"]) <= 300


def test_many_images():
    found = read([image(f"/s/{number}.save") for number in range(5000)])
    assert len(found["vmops_qemu_image_bytes"]) == 1000
    assert ({"state": "complete"}, 5000) in found["vmops_qemu_images"]


def test_escapes():
    assert label_value('a"\\\n') == 'a\\"\\\\\\\\n'


def test_values():
    out = Exposition()
    out.gauge("a", "b")
    out.sample(1)
    out.sample(True, c="1")
    out.sample(2**60 + 1, c="2")
    out.sample(0.25, c="3")
    assert out.text().splitlines()[2:] == ["a 1", 'a{c="1"} 1', 'a{c="2"} 1152921504606846977', 'a{c="3"} 0.25']


@pytest.mark.parametrize("file", ["relative.prom", "/tmp/other.txt", ""])
def test_file_that_is_none(file):
    with pytest.raises(ValueError, match=r"ends in \.prom"):
        MetricsSettings.parse({"save_dir": "/s", "file": file})


@pytest.mark.parametrize(
    ("there", "save_mount", "readable"),
    [(False, None, 0), (True, None, 1), (True, "", 1), (True, "/", 1), (True, "link", 1), (True, "unmounted", 0)],
)
def test_directory_that_is_not_there(tmp_path, there, save_mount, readable):
    """A mount that has failed leaves no directory, or an empty one: no VM is saved, for all that is seen."""
    (tmp_path / "link").symlink_to("/")
    if there:
        (tmp_path / "unmounted" / "save").mkdir(parents=True)
    mount = {"link": f"{tmp_path}/link", "unmounted": f"{tmp_path}/unmounted"}.get(save_mount or "", save_mount)
    settings = {"save_dir": f"{tmp_path}/unmounted/save", "file": f"{tmp_path}/vmops_qemu.prom", "save_mount": mount}
    path = tmp_path / "settings.json"
    path.write_text(json.dumps({key: value for key, value in settings.items() if value is not None}))
    path.chmod(0o600)
    assert main(str(path)) == 0
    told = (tmp_path / "vmops_qemu.prom").read_text().splitlines()
    assert f"vmops_qemu_save_dir_readable {readable}" in told


def test_exit_status(tmp_path, capsys):
    settings = tmp_path / "settings.json"
    place = tmp_path / "textfile"
    settings.write_text(f'{{"save_dir": "{tmp_path}/none", "file": "{place}/vmops_qemu.prom"}}')
    settings.chmod(0o600)
    assert main(str(settings)) == 1
    assert "vmops_qemu.prom cannot be written: No such file" in capsys.readouterr().err
    place.mkdir()
    assert main(str(settings)) == 0
    assert [path.name for path in place.iterdir()] == ["vmops_qemu.prom"]
    assert (place / "vmops_qemu.prom").stat().st_mode & 0o777 == 0o644
    settings.write_text("{}")
    assert main(str(settings)) == 1
    assert capsys.readouterr().err.startswith("<3>The settings ")


def test_documentation_names_all_of_them():
    text = (ROOT / "docs" / "fleet-maintenance.md").read_text(encoding="utf-8")
    named = set(re.findall(r"vmops_qemu_[a-z_]+(?![a-z_.])", text)) - {"vmops_qemu_save_dir"}
    assert named == set(read([image()], boot_restore_failed=True))
