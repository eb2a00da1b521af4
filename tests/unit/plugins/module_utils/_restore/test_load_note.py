# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The note of a load that has begun: of one save alone, and of nothing that others could have written."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils import _state_directory
from ansible_collections.vmops.qemu.plugins.module_utils._image.domain_xml import embed
from ansible_collections.vmops.qemu.plugins.module_utils._image.head import ImageHead
from ansible_collections.vmops.qemu.plugins.module_utils._image.header import ImageFormat, SaveImageHeader
from ansible_collections.vmops.qemu.plugins.module_utils._image.record import SaveFacts
from ansible_collections.vmops.qemu.plugins.module_utils._restore.load_note import LoadNote
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.media import Medium, MediumFile
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.record import Surroundings

DISK = Medium("hd0", "/machine/x", "#block1", False, (MediumFile("/vm/hd0", "qcow2", 1, 2),))
EMPTY = Medium("cd0", "/machine/y", "", True)
NVDIMM = Medium("nv", "nv0", "", False, (MediumFile("/vm/nv", "raw", 1, 2),))
PMEM = Medium("", "pm0", "", False, (MediumFile("/vm/pm", "raw", 1, 2),))


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    tmp_path.chmod(0o755)
    monkeypatch.setattr(_state_directory, "ROOT_DIRECTORY", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


def head(*media, at="2026-03-01T09:30:00.000Z", path="/vm/web1.save", **header):
    facts = SaveFacts("0.1.0", "10.0.2", at, migration="1:2:3", surroundings=Surroundings(media, ()).dump())
    xml = embed("<domain type='qemu'><name>web1</name><memory>1</memory></domain>", facts)
    of_image = SaveImageHeader(3, ImageFormat.SPARSE, True, complete=True, **header)
    return ImageHead(path, of_image, xml, "", 1, 1, 1.0, 0, 0, 0o600, (1, 2))


def test_is_of_that_save_until_it_is_removed():
    note = LoadNote.of(head(DISK, EMPTY, NVDIMM, PMEM))
    assert (note.disks, note.stands, note.warning) == (("nv",), False, "")
    assert note.forgive([DISK, NVDIMM]) == (DISK, NVDIMM)
    assert note.write().stands
    assert os.stat(note.path).st_mode & 0o777 == 0o600
    assert os.stat(os.path.dirname(note.path)).st_mode & 0o777 == 0o700
    moved = LoadNote.of(head(DISK, EMPTY, NVDIMM, PMEM, path="/elsewhere/copy"))
    assert moved.stands
    assert moved.forgive([DISK, NVDIMM, PMEM]) == (DISK, dataclasses.replace(NVDIMM, is_rewritten=True), PMEM)
    assert not LoadNote.of(head(DISK, EMPTY, NVDIMM, PMEM, at="2026-03-02T09:30:00.000Z")).stands
    moved.remove()
    moved.remove()
    assert not LoadNote.of(head(DISK, EMPTY, NVDIMM, PMEM)).stands


def test_mark_of_the_image_ends_its_force():
    LoadNote.of(head(NVDIMM)).write()
    marked = LoadNote.of(head(NVDIMM, checkpoint=True))
    assert not marked.stands
    assert marked.write().stands
    assert not LoadNote.of(head(NVDIMM)).stands
    assert LoadNote.of(head(NVDIMM, checkpoint=True)).stands


@pytest.mark.parametrize("media", [(), (DISK,), (EMPTY,), (PMEM,)])
def test_none_where_the_image_holds_no_disk(media):
    note = LoadNote.of(head(*media))
    assert not note.write().stands
    assert not note.cure
    note.remove()
    assert not os.path.exists(os.path.dirname(note.path))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: os.chmod(path, 0o666),
        lambda path: os.chmod(os.path.dirname(path), 0o777),
        lambda path: Path(path).write_text(""),
        lambda path: Path(path).write_text("[]"),
        lambda path: Path(path).write_text("[" * 60000),
        lambda path: os.truncate(path, 100000),
    ],
    ids=["file", "directory", "empty", "list", "deep", "long"],
)
def test_what_others_could_have_written_is_none(spoil):
    note = LoadNote.of(head(NVDIMM)).write()
    spoil(note.path)
    assert not LoadNote.of(head(NVDIMM)).stands
