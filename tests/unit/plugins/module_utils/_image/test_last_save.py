# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import dataclasses
import os
import random
import re
import shutil

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._errors import ImageAccessError, ImageNotFoundError
from ansible_collections.vmops.qemu.plugins.module_utils._image import last_save as last_save_module
from ansible_collections.vmops.qemu.plugins.module_utils._image.archive import create_archive
from ansible_collections.vmops.qemu.plugins.module_utils._image.domain_xml import embed
from ansible_collections.vmops.qemu.plugins.module_utils._image.edit import open_for_edit
from ansible_collections.vmops.qemu.plugins.module_utils._image.head import pack_head
from ansible_collections.vmops.qemu.plugins.module_utils._image.header import ImageFormat, SaveImageHeader
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_file import ImageFile, read_image_head
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_lock import image_lock
from ansible_collections.vmops.qemu.plugins.module_utils._image.info import describe, directory_info, image_info
from ansible_collections.vmops.qemu.plugins.module_utils._image.last_save import (
    Save,
    last_of,
    mark_superseded,
    newer_image,
    superseding,
    why_left_alone,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.record import SaveFacts, now
from ansible_collections.vmops.qemu.plugins.module_utils._image.vouching import vouch
from ansible_collections.vmops.qemu.plugins.module_utils._vouching_key import make_key

UUID = "11111111-2222-3333-4444-555555555555"
OTHER_UUID = "21111111-2222-3333-4444-555555555555"


@pytest.fixture
def save(tmp_path):
    """Write the head of an image: ``save("a", at="09:30:00")``; ``at=None`` is one without a record, as libvirt's."""

    def write(
        name,
        at="09:30:00.000",
        vm="web1",
        uuid=UUID,
        migration="",
        mtime=None,
        complete=True,
        checkpoint=False,
        vouched=False,
    ):
        element = f"<uuid>{uuid}</uuid>" if uuid else ""
        xml = f"<domain type='qemu'><name>{vm}</name>{element}<memory>1</memory></domain>"
        if at:
            facts = SaveFacts("0.1.0", "10.0.2", f"2026-03-01T{at}Z", migration=migration or f"1:2:{at}")
            xml = embed(xml, facts)
            if vouched:
                xml = vouch(xml, make_key())
        header = SaveImageHeader(3, ImageFormat.RAW, True, complete, 65536 - 92, checkpoint=checkpoint)
        path = tmp_path / name
        path.write_bytes(pack_head(str(path), header, xml, "")[1] + b"QEVM")
        if mtime is not None:
            os.utime(path, (mtime, mtime))
        return str(path)

    return write


def superseded(tmp_path):
    """By name, the name of what supersedes an image; what each is told alone must be the same."""
    found = {}
    for image in directory_info(str(tmp_path)):
        by = image["superseded_by"]
        assert image_info(image["path"], others=True)["superseded_by"] == by
        if image["complete"] and not image["archive"]:
            assert newer_image(image["path"], read_image_head(image["path"])) == by
        if by:
            found[os.path.basename(image["path"])] = os.path.basename(by)
    return found


def test_one_image_is_the_last_save(save, tmp_path):
    save("a.save")
    assert superseded(tmp_path) == {}


def test_last_save_wins_whatever_its_name_and_its_files_time(save, tmp_path):
    save("a.save", at="09:30:00.002", mtime=2_000_000_000)
    save("b.save", at="09:30:00.001", mtime=2_000_000_002)
    save("c.save", at="09:30:00.003", mtime=2_000_000_001)
    assert superseded(tmp_path) == {"a.save": "c.save", "b.save": "c.save"}


def test_times_of_older_images_are_whole_seconds(save, tmp_path):
    """Then the file's time tells two saves of one second apart."""
    save("a.save", at="09:30:00", migration="1", mtime=2_000_000_001)
    save("b.save", at="09:30:00", migration="2", mtime=2_000_000_000)
    assert superseded(tmp_path) == {"b.save": "a.save"}
    save("c.save", at="09:30:00.500")
    assert superseded(tmp_path) == {"a.save": "c.save", "b.save": "c.save"}


def test_image_without_a_time_has_that_of_its_file(save, tmp_path):
    """2026-03-01T09:30:00Z is 1772357400."""
    save("ours.save", at="09:30:00.000", mtime=2_000_000_000)
    save("libvirt.save", at=None, mtime=1_772_357_399)
    assert superseded(tmp_path) == {"libvirt.save": "ours.save"}
    save("libvirt.save", at=None, mtime=1_772_357_401)
    assert superseded(tmp_path) == {"ours.save": "libvirt.save"}


@pytest.mark.parametrize("at", ["yesterday", "99:99:99", "09:30:00.1.2"])
def test_time_that_makes_no_sense_is_none(save, tmp_path, at):
    save("a.save", at=at, mtime=1_772_357_401)
    save("b.save")
    assert superseded(tmp_path) == {"b.save": "a.save"}


def test_images_of_other_vms_do_not_matter(save, tmp_path):
    save("a.save", at="09:30:00.001")
    save("b.save", at="09:30:00.002", uuid=OTHER_UUID)
    save("c.save", at="09:30:00.003", vm="web2", uuid=OTHER_UUID)
    assert superseded(tmp_path) == {"b.save": "c.save"}


def test_name_counts_where_one_has_no_uuid(save, tmp_path):
    save("a.save", at="09:30:00.001")
    save("b.save", at="09:30:00.002", uuid="")
    save("c.save", at="09:30:00.003", uuid="", vm="web2")
    assert superseded(tmp_path) == {"a.save": "b.save"}


def test_copies_of_one_save_do_not_supersede_each_other(save, tmp_path):
    shutil.copy(save("a.save", at="09:30:00.001"), tmp_path / "b.save")
    assert superseded(tmp_path) == {}
    save("c.save", at="09:30:00.002")
    assert superseded(tmp_path) == {"a.save": "c.save", "b.save": "c.save"}


def copied(tmp_path):
    found = {os.path.basename(image["path"]): image["copy_of"] for image in directory_info(str(tmp_path))}
    return {name: os.path.basename(by) for name, by in found.items() if by}


def test_one_of_several_copies_is_the_one_to_restore(save, tmp_path):
    path = save("b.save")
    assert copied(tmp_path) == {}
    shutil.copy(path, tmp_path / "c.save")
    assert copied(tmp_path) == {"c.save": "b.save"}
    shutil.copy(path, tmp_path / "web1.save")
    assert copied(tmp_path) == {"b.save": "web1.save", "c.save": "web1.save"}
    save("a.save", at="09:29:00.000")
    assert superseded(tmp_path) == {"a.save": "web1.save"}
    os.unlink(tmp_path / "a.save")
    # One that was cut off is none to restore.
    os.truncate(tmp_path / "web1.save", 65536)
    assert copied(tmp_path) == {"c.save": "b.save", "web1.save": "b.save"}
    # Of libvirt's it is not known.
    for name in ("d.save", "e.save"):
        save(name, at=None, mtime=1_772_357_400)
    assert copied(tmp_path) == {"c.save": "b.save", "web1.save": "b.save"}


def test_checkpoints_supersede_and_are_superseded(save, tmp_path):
    save("a.save", at="09:30:00.001")
    save("b.save", at="09:30:00.002", checkpoint=True)
    assert superseded(tmp_path) == {"a.save": "b.save"}
    save("c.save", at="09:30:00.003")
    assert superseded(tmp_path) == {"a.save": "c.save", "b.save": "c.save"}
    (told,) = (describe(image) for image in directory_info(str(tmp_path)) if image["checkpoint"])
    assert told.startswith("web1 (b.save): complete raw image")
    assert told.endswith(" on disk, checkpoint, superseded by c.save, not vouched for")


def test_partial_images_are_superseded_and_supersede_none(save, tmp_path):
    save(".a.save.0123456789abcdef.partial", at="09:30:00.003", complete=False)
    save("a.save", at="09:30:00.002")
    save("b.save", at="09:30:00.001", complete=False)
    assert superseded(tmp_path) == {"b.save": "a.save"}


def test_damaged_image_supersedes(save, tmp_path):
    save("a.save", at="09:30:00.001")
    os.truncate(save("b.save", at="09:30:00.002"), 65536)
    images = directory_info(str(tmp_path), verify=True)
    assert [(image["state"], image["superseded_by"]) for image in images] == [
        ("invalid", str(tmp_path / "b.save")),
        ("invalid", None),
    ]


def test_archive_supersedes(save, builder, tmp_path):
    save("a.save", at="09:30:00.001", uuid="")
    builder.path = tmp_path / "b.save"
    builder.xml = embed(builder.xml, SaveFacts("0.1.0", "10.0.2", "2026-03-01T09:30:00.002Z", migration="2"))
    path = str(builder.write())
    with open_for_edit(path) as image:
        create_archive(image, ImageFormat.ZSTD, False)
    assert superseded(tmp_path) == {"a.save": "b.save.tar.zst"}


@pytest.mark.parametrize("vm", ["web1", "a &amp; b", "w&#233;b", "<![CDATA[web1]]>", "wéb"])
def test_name_in_every_spelling(save, tmp_path, vm):
    """What is read quickly must find what is read in full."""
    save("a.save", at="09:30:00.001", vm=vm, uuid="")
    save("b.save", at="09:30:00.002", vm=vm, uuid="")
    assert superseded(tmp_path) == {"a.save": "b.save"}


@pytest.mark.parametrize("uuid", [UUID.replace("-", ""), UUID.replace("1", "A"), UUID.replace("1", "a")])
def test_uuid_in_every_spelling(save, tmp_path, uuid):
    save("a.save", at="09:30:00.001", uuid=uuid.lower())
    save("b.save", at="09:30:00.002", uuid=uuid, vm="renamed")
    assert superseded(tmp_path) == {"a.save": "b.save"}


def test_long_xml_is_read_to_its_end(save, tmp_path, monkeypatch):
    monkeypatch.setattr(last_save_module, "_FIRST_READ", 10)
    save("a.save", at="09:30:00.001")
    save("b.save", at="09:30:00.002")
    assert superseded(tmp_path) == {"a.save": "b.save"}


def test_other_files_are_left_out(save, tmp_path):
    path = save("a.save", at="09:30:00.001")
    head = read_image_head(path)
    directory = tmp_path / "other"
    directory.mkdir()
    os.rename(save("b.save", at="09:30:00.002"), directory / "b.save")
    (tmp_path / "link.save").symlink_to(directory / "b.save")
    os.mkfifo(tmp_path / "fifo.save")
    (tmp_path / "none.save").write_bytes(b"LibvirtQemudSave")
    (tmp_path / "bad.save.tar.zst").write_bytes(b"no archive")
    assert newer_image(path, head) is None
    # The image itself, by another name, is no other save.
    os.link(path, tmp_path / "hard.save")
    assert newer_image(path, head) is None


def test_images_that_were_written_long_before_are_not_opened(save, monkeypatch):
    path = save("a.save", vouched=True)
    save("b.save", at="09:29:00.000", mtime=1_772_357_400 - 100_000)
    save("c.save", at="09:29:00.000", mtime=1_772_357_400 - 3600)
    head = read_image_head(path)
    opened = []
    real = ImageFile.open

    def note(path):
        opened.append(os.path.basename(path))
        return real(path)

    monkeypatch.setattr(ImageFile, "open", note)
    assert newer_image(path, head) is None
    assert opened == ["c.save"]


def test_directory_that_cannot_be_listed(save, tmp_path):
    head = read_image_head(save("a.save"))
    with pytest.raises(ImageNotFoundError):
        newer_image(str(tmp_path / "none" / "a.save"), head)


def test_directory_that_may_not_be_listed(save, monkeypatch):
    path = save("a.save")
    head = read_image_head(path)

    def refuse(_path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ImageAccessError):
        newer_image(path, head)
    assert image_info(path, others=True)["superseded_by"] is None


def test_now_is_iso_8601_in_milliseconds():
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", now())
    seconds = SaveFacts("", "", now()).saved_seconds
    assert seconds is not None
    assert SaveFacts("", "", "2026-03-01T09:30:00.250Z").saved_seconds == 1_772_357_400.25
    assert SaveFacts("", "", "2026-03-01T09:30:00Z").saved_seconds == 1_772_357_400


def test_why_it_is_left_alone(save, tmp_path):
    save("a.save", at="09:30:00.001")
    save("b.save", at="09:30:00.002", checkpoint=True)
    shutil.copy(save("c.save", vm="web2", uuid=OTHER_UUID), tmp_path / "d.save")
    why = {os.path.basename(image["path"]): why_left_alone(image) for image in directory_info(str(tmp_path))}
    assert why == {
        "a.save": f"{tmp_path}/b.save is a later save of web1, or one that is vouched for",
        "b.save": "it is a checkpoint: web1 went on after this save, and its disks may have moved on",
        "c.save": "",
        "d.save": f"it is a copy of {tmp_path}/c.save",
    }


# --- an image that says what it likes ---


def test_what_is_not_vouched_for_supersedes_nothing_that_is(save, tmp_path):
    """A VM's user can give his own image another VM's name and UUID, and any time."""
    save("good.save", at="09:30:00.001", vouched=True)
    save("forged.save", at="23:59:59.999")
    assert superseded(tmp_path) == {"forged.save": "good.save"}
    save("later.save", at="09:30:00.002", vouched=True)
    assert superseded(tmp_path) == {"forged.save": "later.save", "good.save": "later.save"}


def test_checkpoint_that_is_vouched_for_may_be_older(save, tmp_path):
    """As where libvirt has saved a VM again whose earlier image of ours was kept."""
    save("checkpoint.save", at="09:30:00.001", vouched=True, checkpoint=True)
    save("libvirt.save", at=None, mtime=2_000_000_000)
    assert superseded(tmp_path) == {}
    save("older.save", at="09:30:00.000")
    assert superseded(tmp_path) == {"older.save": "checkpoint.save"}


def test_forged_copy_is_none(save, tmp_path):
    save("good.save", migration="1:2", vouched=True)
    with open(save("forged.save", migration="1:2"), "ab") as longer:
        longer.write(bytes(100))
    assert {os.path.basename(image["path"]): image["copy_of"] for image in directory_info(str(tmp_path))} == {
        "good.save": None,
        "forged.save": None,
    }
    assert superseded(tmp_path) == {"forged.save": "good.save"}


def test_restore_of_what_is_not_vouched_for_marks_nothing_that_is(save, tmp_path):
    save("good.save", at="09:30:00.001", vouched=True)
    save("old.save", at="09:30:00.000")
    forged = save("forged.save", at="23:59:59.999")
    assert mark_superseded(forged, read_image_head(forged)) == []
    assert checkpoints(tmp_path) == ["old.save"]


def checkpoints(tmp_path):
    return [os.path.basename(image["path"]) for image in directory_info(str(tmp_path)) if image["checkpoint"]]


def test_restore_of_what_is_vouched_for_marks_all(save, tmp_path):
    good = save("good.save", at="09:30:00.001", vouched=True)
    save("libvirt.save", at=None, mtime=2_000_000_000)
    save("later.save", at="09:30:00.002", vouched=True)
    assert mark_superseded(good, read_image_head(good)) == []
    assert checkpoints(tmp_path) == ["later.save", "libvirt.save"]


def test_guest_that_goes_on_leaves_its_other_saves_as_checkpoints(save, tmp_path):
    """When its image is used up, none of them must take its place: older ones, copies, nor later ones."""
    older, path = save("a.save", at="09:30:00.001", mtime=1), save("b.save", at="09:30:00.002")
    shutil.copy(path, tmp_path / "c.save")
    save("d.save", at="09:30:00.003")
    save("e.save", at="09:30:00.001", vm="web2", uuid=OTHER_UUID)
    save(".f.save.0123456789abcdef.partial", at="09:30:00.001", complete=False)
    before = os.stat(older).st_mtime_ns
    with image_lock(path):
        assert mark_superseded(path, read_image_head(path)) == []
    assert checkpoints(tmp_path) == ["a.save", "c.save", "d.save"]
    assert os.stat(older).st_mtime_ns == before
    assert mark_superseded(path, read_image_head(path)) == []


def test_image_that_cannot_be_marked_is_told(save, tmp_path):
    older, path = save("a.save", at="09:30:00.001"), save("b.save", at="09:30:00.002")
    with image_lock(older):
        (told,) = mark_superseded(path, read_image_head(path))
    assert told.startswith(f"{older} is an outdated save of web1, and could not be marked so: ")
    assert checkpoints(tmp_path) == []


@pytest.mark.parametrize("seed", range(20))
def test_superseding_is_what_a_comparison_of_all_with_all_finds(seed):
    """Few values, so that copies, twins and saves of one moment come up."""
    chance = random.Random(seed)
    saves = [
        Save(
            path=f"/save/{number}",
            name=chance.choice(["web1", "db1"]),
            uuid=chance.choice(["", UUID, OTHER_UUID]),
            saved=float(chance.randrange(3)),
            mtime=float(chance.randrange(3)),
            size=1,
            record=chance.choice([None, ("1", "a"), ("2", "b")]),
            vouched=chance.random() < 0.5,
            checkpoint=chance.random() < 0.3,
            uid=chance.choice([None, 0, 1000]),
            addresses=chance.choice([frozenset(), frozenset("a"), frozenset("b")]),
            disks=chance.choice([None, frozenset("c"), frozenset("d")]),
        )
        for number in range(60)
    ]
    # A copy of a save is of its moment.
    saves = [dataclasses.replace(save, saved=float(save.record[0])) if save.record else save for save in saves]
    expected = {}
    for save in saves:
        last = last_of(other for other in saves if other.is_later_than(save))
        if last:
            expected[save.path] = last.path
    assert superseding(saves, saves) == expected
