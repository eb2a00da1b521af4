# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import dataclasses
import fcntl
import os
import stat
import subprocess
import sys

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    ConflictError,
    ImageAccessError,
    ImageFormatError,
    ImageNotFoundError,
    ImagePartialError,
    RequestError,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image import edit as edit_module
from ansible_collections.vmops.qemu.plugins.module_utils._image.domain_xml import embed, parse, redact
from ansible_collections.vmops.qemu.plugins.module_utils._image.edit import (
    has_journal,
    journal_of,
    mark_checkpoint,
    open_for_edit,
    plan_head,
    recover_head,
    require_markable,
    unmark_checkpoint,
    write_head,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.header import ImageFormat, SaveImageHeader
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_file import file_identity, read_image_head
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_lock import image_lock
from ansible_collections.vmops.qemu.plugins.module_utils._image.info import directory_info, image_info
from ansible_collections.vmops.qemu.plugins.module_utils._image.partial import PartialImage
from ansible_collections.vmops.qemu.plugins.module_utils._image.record import LaunchRecord, SaveFacts
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.command_line import HIDDEN

FACTS = SaveFacts("0.1.0", "10.0.2", "2026-03-01T09:30:00Z")
LAUNCH = LaunchRecord(["q", "-object", "secret,id=s,data=geheim"], "/", "/bin/q", 0, 0)
NEW_XML = "<domain type='kvm'><name>web1</name><memory unit='KiB'>128</memory><description>new</description></domain>"


def change(path, **changes):
    """Change an image as the operation does; whether there was anything to change."""
    with open_for_edit(str(path)) as image:
        old = image.head()
        new = plan_head(old, **changes)
        if new != old:
            write_head(image, old, new)
        return new != old


# --- what is changed, and what is not ---


@pytest.mark.parametrize("name", ["raw", "gzip", "zstd", "sparse", "sparse-paused"])
def test_header_only_changes_touch_nothing_else(copy_of, name):
    path = copy_of(f"{name}.save")
    before = path.read_bytes()
    old = image_info(str(path))
    other = "paused" if old["vm_state"] == "running" else "running"
    assert change(path, vm_state=other, image_version=3)
    new = image_info(str(path))
    assert (new["vm_state"], new["version"], new["format"]) == (other, 3, old["format"])
    assert new["features"] == (["mapped-ram"] if "sparse" in name else [])
    assert path.read_bytes()[92:] == before[92:]
    assert not change(path, vm_state=other, image_version=3)
    assert change(path, vm_state=old["vm_state"], image_version=2)
    assert path.read_bytes() == before


def test_a_new_xml_keeps_cookie_and_stream(copy_of):
    path = copy_of("sparse.save")
    before, old = path.read_bytes(), read_image_head(str(path))
    longer = old.xml.replace("</domain>", f"<!--{'x' * 60000}--></domain>")
    assert change(path, new_xml=longer)
    new = read_image_head(str(path))
    assert (new.xml, new.cookie) == (longer, old.cookie)
    assert new.header.cookie_offset == old.header.cookie_offset + len(longer) - len(old.xml)
    assert path.read_bytes()[old.header.stream_offset :] == before[old.header.stream_offset :]
    assert image_info(str(path), verify=True)["problems"] == []
    assert not change(path, new_xml=longer)
    # Nothing of the longer one is left behind the shorter one.
    assert change(path, new_xml=old.xml)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_big_endian(builder):
    builder.header = dataclasses.replace(builder.header, byte_order="big")
    path = builder.write()
    assert change(path, new_xml=NEW_XML, vm_state="paused", image_version=2)
    info = image_info(str(path), verify=True)
    assert (info["byte_order"], info["vm_state"], info["version"], info["problems"]) == ("big", "paused", 2, [])
    assert read_image_head(str(path)).xml == NEW_XML


def test_room_is_what_there_is_before_the_stream(copy_of):
    path = copy_of("raw.save")
    before, old = path.read_bytes(), read_image_head(str(path))
    room = old.header.data_length - len(old.cookie) - 2

    def of_length(length):
        return old.xml.replace("</domain>", f"<!--{'x' * (length - len(old.xml) - 7)}--></domain>")

    with pytest.raises(RequestError, match=f"need {old.header.data_length + 1} bytes.* only {old.header.data_length} "):
        change(path, new_xml=of_length(room + 1))
    assert path.read_bytes() == before
    assert change(path, new_xml=of_length(room))
    assert read_image_head(str(path)).cookie == old.cookie


# --- which XML may be stored ---


def test_our_record_is_the_images_own(builder):
    builder.xml = embed(builder.xml, FACTS, LAUNCH)
    path = builder.write()
    assert change(path, new_xml=NEW_XML)
    stored = read_image_head(str(path)).xml
    assert "<description>new" in stored
    assert parse(stored).launch == LAUNCH
    assert parse(stored).save_facts == FACTS
    assert not change(path, new_xml=NEW_XML)
    # An XML as it was shown, with another command line in it: its record counts for nothing.
    foreign = embed(NEW_XML, FACTS, LaunchRecord(["rm", "-rf"], "/", "/bin/rm", 0, 0))
    assert not change(path, new_xml=foreign)
    assert not change(path, new_xml=redact(stored))


@pytest.mark.parametrize(
    ("xml", "said"),
    [
        (NEW_XML.replace("web1", "web2"), "name web2.* web1"),
        ("<domain>", "not well-formed"),
        ("<network><name>web1</name></network>", "not a domain's"),
        ("", "not well-formed"),
        ("<!DOCTYPE x><domain><name>web1</name></domain>", "DOCTYPE"),
        (NEW_XML.replace("new", HIDDEN), "secret"),
        (NEW_XML.replace("128", "129"), "has 132096 bytes of memory, but .* holds a VM of 131072"),
    ],
)
def test_refused_xml(builder, xml, said):
    path = builder.write()
    before = path.read_bytes()
    with pytest.raises(RequestError, match=said):
        change(path, new_xml=xml)
    assert path.read_bytes() == before


def test_another_uuid_is_refused(copy_of):
    path = copy_of("raw.save")
    xml = read_image_head(str(path)).xml
    for other in (xml.replace("11111111-", "21111111-"), xml.replace("<uuid>", "<!--").replace("</uuid>", "-->")):
        with pytest.raises(RequestError, match="UUID"):
            change(path, new_xml=other.replace("--2222", "-2222"))
    assert change(path, new_xml=xml.replace("<uuid>11111111", "<uuid>11111111").replace("16384", "016384"))


# --- interruptions ---


def test_killed_at_each_step(builder, tmp_path, kill_at_each_step):
    """The image is the old one or the new one, or it says partial and the next run makes it the old one again."""
    path = str(builder.path)
    original = builder.write().read_bytes()
    outcomes = set()

    def set_up():
        for name in os.listdir(tmp_path):
            os.unlink(tmp_path / name)
        builder.path.write_bytes(original)

    def check(finished):
        info = image_info(path)
        xml = read_image_head(path).xml
        if info["state"] == "complete":
            assert xml in (builder.xml, NEW_XML)
            assert (info["vm_state"] == "paused") == (xml == NEW_XML)
        else:
            assert info["state"] == "partial"
            assert "qemu_save_image puts it back" in info["problems"][0]
        assert [image["path"] for image in directory_info(str(tmp_path)) if image["state"] != "invalid"] == [path]
        with open_for_edit(path) as image:
            recovered = recover_head(image)
            assert not recover_head(image)
        assert recovered == (info["state"] == "partial")
        assert os.listdir(tmp_path) == [os.path.basename(path)]
        if recovered or xml == builder.xml:
            assert builder.path.read_bytes() == original
        else:
            assert image_info(path)["state"] == "complete"
            assert read_image_head(path).xml == NEW_XML
        assert builder.path.read_bytes()[65536:] == original[65536:]
        if finished:
            assert xml == NEW_XML
        outcomes.add((info["state"], xml == NEW_XML))

    kill_at_each_step(
        set_up, lambda: change(path, new_xml=NEW_XML, vm_state="paused"), check, at_least=10, torn_too=True
    )
    assert {("partial", False), ("complete", False), ("complete", True)} <= outcomes


def test_each_flush_comes_before_what_relies_on_it(builder, monkeypatch):
    """What the storage may reorder between two flushes must not matter: the order of writes and flushes, as words."""
    path = str(builder.write())
    steps = []
    for name in ("pwrite", "fsync", "rename", "unlink"):
        real = getattr(os, name)

        def record(*arguments, _name=name, _real=real, **keywords):
            detail = ""
            if _name in ("pwrite", "fsync"):
                file = os.path.basename(os.readlink(f"/proc/self/fd/{arguments[0]}"))
                detail = "image" if file == "web1.save" else "journal" if file.endswith((".head", ".new")) else "dir"
            if _name == "pwrite":
                detail += " " + bytes(arguments[1])[12:16].decode() + (" alone" if len(arguments[1]) == 16 else "")
            steps.append(f"{_name} {detail}".strip())
            return _real(*arguments, **keywords)

        monkeypatch.setattr(os, name, record)
    change(path, new_xml=NEW_XML)
    # The first tries to remove what an earlier run may have left.
    assert steps[0] == "unlink"
    assert steps[1:] == [
        "pwrite journal Part",
        "fsync journal",
        "rename",
        "fsync dir",
        "pwrite image Part alone",
        "fsync image",
        "pwrite image Part",
        "fsync image",
        "pwrite image Save alone",
        "fsync image",
        "unlink",
        "fsync dir",
    ]


@pytest.mark.parametrize("failing", [1, 2, 3, 4, 5])
def test_a_step_that_fails_puts_the_old_head_back(builder, monkeypatch, failing):
    path = str(builder.write())
    original = builder.path.read_bytes()
    real, count = os.fsync, 0

    def fail(descriptor):
        nonlocal count
        count += 1
        if count == failing:
            raise OSError(5, "Input/output error")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ImageAccessError):
        change(path, new_xml=NEW_XML)
    monkeypatch.undo()
    assert builder.path.read_bytes() == original
    with open_for_edit(path) as image:
        recover_head(image)
    assert os.listdir(builder.path.parent) == ["web1.save"]


def test_the_journal_is_private_and_no_image(builder, monkeypatch):
    path = str(builder.write())
    os.chmod(path, 0o640)
    seen = []

    def look(journal):
        seen.append((stat.S_IMODE(os.stat(journal).st_mode), image_info(journal)["state"]))

    monkeypatch.setattr(edit_module, "remove_image", look)
    change(path, new_xml=NEW_XML)
    assert seen == [(0o600, "partial")]


def test_a_journal_of_another_image_is_not_put_back(builder):
    path = str(builder.write())
    with open_for_edit(path) as image:
        journal = journal_of(image)
        for content in (b"", b"LibvirtQemudPart", builder.path.read_bytes()[:30000]):
            with open(journal, "wb") as file:
                file.write(content)
            image.write(b"LibvirtQemudPart", 0)
            assert has_journal(image)
            with pytest.raises(ImageFormatError, match="not its old head"):
                recover_head(image)
            assert os.path.exists(journal)
        image.write(b"LibvirtQemudSave", 0)
        before = builder.path.read_bytes()
        assert not recover_head(image)
    # Of a complete image it is a leftover.
    assert not os.path.exists(journal)
    assert builder.path.read_bytes() == before


def test_a_partial_image_is_not_changed(builder):
    builder.header = dataclasses.replace(builder.header, complete=False)
    with pytest.raises(ImagePartialError):
        change(builder.write(), vm_state="paused")


# --- who else has it ---

HOLDER = """
import fcntl, os, sys
descriptor = os.open(sys.argv[1], os.O_RDONLY)
if sys.argv[2] == "lock":
    fcntl.flock(descriptor, fcntl.LOCK_SH)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("how", ["lock", "open"])
def test_an_image_in_use(builder, how):
    path = str(builder.write())
    before = builder.path.read_bytes()
    command = [sys.executable, "-c", HOLDER, path, how]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdin
        assert holder.stdout
        assert holder.stdout.readline() == b"ready\n"
        with pytest.raises(ConflictError, match=r"in use|by another run"):
            change(path, vm_state="paused")
        holder.stdin.close()
    assert builder.path.read_bytes() == before
    assert change(path, vm_state="paused")


def test_nobody_else_may_lock_it_meanwhile(builder):
    path = str(builder.write())
    with open_for_edit(path), open(path, "rb") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
    with open_for_edit(path):
        pass


def test_what_is_no_regular_file(builder, tmp_path):
    path = builder.write()
    link, fifo = tmp_path / "link", tmp_path / "fifo"
    link.symlink_to(path)
    os.mkfifo(fifo)
    for other in (link, fifo, tmp_path):
        with pytest.raises(ImageFormatError):
            change(other)
    with pytest.raises(ImageNotFoundError):
        change(tmp_path / "none")


# --- the mark of a checkpoint ---


def mark(path):
    """Mark an image as a restore does, which holds its lock; from then on nothing else has changed."""
    head = read_image_head(str(path))
    with image_lock(str(path)):
        mark_checkpoint(str(path), head)


@pytest.mark.parametrize("name", ["raw", "zstd", "sparse-paused"])
def test_mark_touches_one_word(copy_of, name):
    path = copy_of(f"{name}.save")
    before, identity = path.read_bytes(), file_identity(str(path))
    mark(path)
    after = path.read_bytes()
    assert (before[:88], before[92:]) == (after[:88], after[92:])
    assert before[88:92] != after[88:92]
    assert read_image_head(str(path)).header.checkpoint
    # A run that was cut off knows it by that.
    assert file_identity(str(path)) == identity
    mark(path)
    assert path.read_bytes() == after


def test_mark_of_another_byte_order(builder):
    builder.header = dataclasses.replace(builder.header, byte_order="big")
    mark(builder.write())
    assert builder.path.read_bytes()[88:92] == b"\0\0\0\1"


def test_changes_of_the_head_keep_the_mark(builder):
    path = builder.write()
    mark(path)
    assert change(path, new_xml=NEW_XML, vm_state="paused", image_version=2)
    assert read_image_head(str(path)).header.checkpoint
    assert change(path, image_version=3)
    assert read_image_head(str(path)).header.checkpoint


def test_mark_while_the_save_holds_the_image(tmp_path):
    """The lock of the image that a save has just made is on another descriptor of the same process."""
    target = str(tmp_path / "web1.save")
    image = PartialImage.create(target, SaveImageHeader(3, ImageFormat.SPARSE, True), builder_xml())
    image.finish()
    try:
        mark_checkpoint(target, read_image_head(target))
    finally:
        image.release()
    assert read_image_head(target).header.checkpoint


def builder_xml():
    return embed("<domain type='qemu'><name>web1</name></domain>", FACTS, LAUNCH)


def test_mark_while_qemu_has_the_image_open(builder):
    path = str(builder.write())
    command = [sys.executable, "-c", HOLDER, path, "open"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdin
        assert holder.stdout
        assert holder.stdout.readline() == b"ready\n"
        mark(path)
        holder.stdin.close()
    assert read_image_head(path).header.checkpoint


def test_mark_through_a_link_is_that_of_the_image_behind_it(builder, tmp_path):
    link = tmp_path / "link.save"
    link.symlink_to(builder.write())
    mark(link)
    assert link.is_symlink()
    assert read_image_head(str(builder.path)).header.checkpoint


def test_only_the_image_that_was_read_is_marked(builder, copy_of):
    path = str(builder.write())
    head = read_image_head(path)
    other = copy_of("raw.save")
    before = other.read_bytes()
    os.rename(other, path)
    with pytest.raises(ConflictError, match="replaced"):
        mark_checkpoint(path, head)
    assert builder.path.read_bytes() == before
    # Another save of the same VM has another record.
    builder.xml = embed(builder.xml, FACTS)
    builder.write()
    with pytest.raises(ConflictError, match="replaced"):
        mark_checkpoint(path, head)
    builder.path.write_bytes(b"no image")
    with pytest.raises(ImageFormatError):
        mark_checkpoint(path, head)
    os.unlink(path)
    with pytest.raises(ImageNotFoundError):
        mark_checkpoint(path, head)
    os.mkfifo(path)
    with pytest.raises(ImageFormatError, match="FIFO"):
        mark_checkpoint(path, head)


def test_mark_is_taken_back(builder):
    path = str(builder.write())
    before = builder.path.read_bytes(), builder.path.stat().st_mtime_ns
    head = read_image_head(path)
    assert mark_checkpoint(path, head)
    assert not mark_checkpoint(path, head)
    unmark_checkpoint(path, head)
    assert (builder.path.read_bytes(), builder.path.stat().st_mtime_ns) == before


def test_partial_image_is_not_marked(builder):
    builder.header = dataclasses.replace(builder.header, complete=False)
    path = str(builder.write())
    with pytest.raises(ImagePartialError):
        mark_checkpoint(path, read_image_head(path))


def test_mark_is_one_write_that_is_flushed(builder, monkeypatch):
    path = str(builder.write())
    head = read_image_head(path)
    steps = []
    for name in ("pwrite", "fsync"):
        real = getattr(os, name)

        def record(*arguments, _name=name, _real=real):
            steps.append((_name, len(arguments[1]) if _name == "pwrite" else 0))
            return _real(*arguments)

        monkeypatch.setattr(os, name, record)
    mark_checkpoint(path, head)
    assert steps == [("pwrite", 92), ("fsync", 0)]
    # The run that marked it may have been killed before its flush.
    mark_checkpoint(path, head)
    assert steps[2:] == [("fsync", 0)]


def test_killed_while_it_marks(builder, kill_at_each_step):
    """The image is whole at each step, marked or not."""
    path = str(builder.path)
    original = builder.write().read_bytes()
    outcomes = set()

    def check(finished):
        info = image_info(path, verify=True)
        assert (info["state"], info["problems"]) == ("complete", [])
        checkpoint = read_image_head(path).header.checkpoint
        assert checkpoint or not finished
        outcomes.add(checkpoint)

    kill_at_each_step(lambda: builder.path.write_bytes(original), lambda: mark(path), check, at_least=2)
    assert outcomes == {False, True}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to it all the same")
def test_image_that_may_not_be_written_to_cannot_be_marked(builder):
    path = str(builder.write())
    require_markable(path)
    os.chmod(path, 0o400)
    with pytest.raises(ImageAccessError):
        require_markable(path)


def test_what_cannot_be_marked(builder, tmp_path):
    before = builder.write().read_bytes()
    require_markable(str(builder.path))
    assert builder.path.read_bytes() == before
    with pytest.raises(ImageNotFoundError):
        require_markable(str(tmp_path / "none"))
    with pytest.raises(ImageFormatError):
        require_markable(str(tmp_path))
