# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    ConflictError,
    ImageFormatError,
    ImageNotFoundError,
    ImagePartialError,
    MismatchError,
    RequestError,
    VouchingKeyError,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image import archive as archive_module
from ansible_collections.vmops.qemu.plugins.module_utils._image.compressor import COMPRESSORS, Compressor
from ansible_collections.vmops.qemu.plugins.module_utils._image.domain_xml import embed
from ansible_collections.vmops.qemu.plugins.module_utils._image.header import ImageFormat
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_file import ImageFile, read_image_head
from ansible_collections.vmops.qemu.plugins.module_utils._image.info import image_info
from ansible_collections.vmops.qemu.plugins.module_utils._image.record import LaunchRecord, SaveFacts
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.command_line import HIDDEN
from ansible_collections.vmops.qemu.plugins.module_utils._save_image import SaveImageOperation, SaveImageRequest
from ansible_collections.vmops.qemu.plugins.module_utils._vouching_key import make_key

PAGE = 4096
XML = "<domain type='kvm'><name>web1</name><memory unit='KiB'>128</memory><graphics passwd='geheim'/></domain>"


def run(path, check_mode=False, **options):
    return SaveImageOperation(SaveImageRequest(None, str(path), "/x", check_mode=check_mode, **options)).run()


def listing(directory):
    return {entry.name: (entry.stat().st_mtime_ns, entry.stat().st_ino) for entry in os.scandir(directory)}


@pytest.fixture
def image(builder, monkeypatch):
    """An image of several chunks."""
    monkeypatch.setattr(archive_module, "CHUNK_SIZE", 4 * PAGE + 7)
    builder.blocks = [(b"pc.ram", 320 * PAGE, set(range(0, 320, 40)))]
    return builder.write()


def content(path):
    with ImageFile.open(str(path)) as image:
        return path.read_bytes(), image.data_ranges()


# --- the checksum of the stream ---


@pytest.mark.parametrize("archive", ["gzip", "bzip2", "xz", "lzop", "zstd"])
@pytest.mark.parametrize("space", ["whole", "tight"])
def test_checksum_holds_after_archiving_and_expanding(image, record_checksum, archive, space):
    if (archive, space) == ("lzop", "tight"):
        pytest.skip("lzop archives cannot be continued")
    digest = record_checksum(image)
    archived = run(image, archive=archive, space=space)["image"]
    assert (archived["state"], archived["checksum"]) == ("archived", digest)
    run(image, archive="none")
    info = image_info(str(image), verify=True)
    assert (info["state"], info["checksum"], info["problems"]) == ("complete", digest, [])


@pytest.mark.parametrize("options", [{"image_version": 2}, {"vm_state": "paused"}, {"domain_xml": XML}])
def test_checksum_holds_after_a_change_of_the_head(image, record_checksum, options):
    digest = record_checksum(image)
    assert run(image, **options)["changed"]
    info = image_info(str(image), verify=True)
    assert (info["state"], info["checksum"], info["problems"]) == ("complete", digest, [])


# --- what is asked for, twice, and in check mode ---


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"vm_state": "paused"}, "set to be paused after a restore"),
        ({"image_version": 2}, "converted to version 2"),
        ({"domain_xml": XML}, "given the new domain XML"),
        ({"archive": "gzip"}, "archived as "),
        ({"archive": "gzip", "space": "tight"}, "archived as "),
        ({"archive": "zstd", "vm_state": "paused"}, "set to be paused after a restore, then archived as "),
    ],
)
def test_check_mode_says_the_same_and_a_second_run_changes_nothing(image, options, said):
    before = listing(image.parent)
    for _run in range(2):
        checked = run(image, check_mode=True, **options)
    assert listing(image.parent) == before
    done = run(image, **options)
    assert done["changed"]
    assert checked["changed"]
    assert said in done["msg"]
    assert checked["msg"].replace("would be", "was") == done["msg"]
    assert checked["diff"] == done["diff"]
    assert done["diff"]["before"] != done["diff"]["after"]
    after = listing(image.parent)
    again = run(image, **options)
    assert not again["changed"]
    assert again["diff"]["before"] == again["diff"]["after"] == done["diff"]["after"]
    assert again["image"] == done["image"]
    assert listing(image.parent) == after


def test_the_diff_hides_secrets_and_shows_the_rest(image):
    diff = run(image, domain_xml=XML, vm_state="paused", image_version=2)["diff"]
    assert "geheim" not in str(diff)
    before, after = diff["before"].splitlines(), diff["after"].splitlines()
    assert before[:4] == ["state: complete", "archive: none", "image_version: 3", "vm_state: running"]
    assert after[:4] == ["state: complete", "archive: none", "image_version: 2", "vm_state: paused"]
    assert "passwd=" in diff["after"]


def test_nothing_asked_for(image):
    before = listing(image.parent)
    result = run(image)
    assert not result["changed"]
    assert result["image"]["state"] == "complete"
    assert listing(image.parent) == before


def test_by_name_and_by_archive(image):
    archive = run(image, archive="xz")["image"]["path"]
    named = SaveImageRequest("web1", None, str(image.parent), archive="xz")
    assert not SaveImageOperation(named).run()["changed"]
    assert run(archive, archive="none")["image"]["path"] == str(image)


# --- archives ---


def test_an_archived_image_is_changed_only_when_that_is_clear(image):
    before = content(image)
    run(image, archive="gzip")
    with pytest.raises(ConflictError, match="is an archive"):
        run(image, vm_state="paused")
    assert not run(image, vm_state="running")["changed"]
    checked = run(image, check_mode=True, vm_state="paused", archive="gzip")
    result = run(image, vm_state="paused", archive="gzip")
    assert checked["msg"].replace("would be", "was") == result["msg"]
    assert (result["image"]["vm_state"], result["image"]["archive"]) == ("paused", "gzip")
    result = run(image, vm_state="running", archive="none")
    assert result["image"]["state"] == "complete"
    assert content(image) == before


def test_from_one_format_to_another(image):
    before = content(image)
    run(image, archive="gzip")
    assert run(image, archive="xz")["image"]["archive"] == "xz"
    assert os.listdir(image.parent) == ["web1.save.tar.xz"]
    run(image, archive="none")
    assert content(image) == before


def test_a_compressed_image_is_not_archived(copy_of):
    path = copy_of("zstd.save")
    with pytest.raises(RequestError, match="compressed already"):
        run(path, archive="gzip")
    assert os.listdir(path.parent) == ["zstd.save"]


def test_an_archive_of_another_save_is_never_replaced(image, builder):
    run(image, archive="gzip")
    builder.write()
    before = listing(image.parent)
    for archive in ("gzip", "xz"):
        with pytest.raises(ConflictError, match="another save"):
            run(image, archive=archive)
    for options in ({"archive": "none"}, {}):
        result = run(image, **options)
        assert not result["changed"]
        assert "web1.save.tar.gz" in result["warnings"][0]
    assert listing(image.parent) == before


@pytest.mark.parametrize(("archive", "left"), [("gzip", "web1.save.tar.gz"), ("none", "web1.save")])
def test_both_there_after_an_interruption(image, archive, left):
    copy = image.parent / "copy"
    subprocess.run(["cp", "--sparse=always", str(image), str(copy)], check=True)
    run(image, archive="gzip")
    copy.rename(image)
    assert run(image, archive=archive)["changed"]
    assert os.listdir(image.parent) == [left]
    assert not run(image, archive=archive)["changed"]


def test_two_archives(image):
    run(image, archive="gzip")
    shutil.copy(f"{image}.tar.gz", f"{image}.tar.xz")
    with pytest.raises(ConflictError, match="more than one"):
        run(image, archive="none")


def test_a_missing_tool(image, monkeypatch):
    monkeypatch.setitem(COMPRESSORS, ImageFormat.GZIP, Compressor("no-such-tool"))
    before = listing(image.parent)
    for check_mode in (False, True):
        with pytest.raises(RequestError, match="no-such-tool"):
            run(image, check_mode, archive="gzip")
    assert listing(image.parent) == before


# --- what is no complete image ---


def test_no_image(tmp_path):
    with pytest.raises(ImageNotFoundError):
        run(tmp_path / "none.save", vm_state="paused")
    with pytest.raises(ImageNotFoundError):
        run(tmp_path / "none" / "none.save", archive="none")


def test_a_partial_image(builder):
    builder.header = dataclasses.replace(builder.header, complete=False)
    with pytest.raises(ImagePartialError, match="never finished"):
        run(builder.write(), vm_state="paused")


def test_something_else(tmp_path):
    path = tmp_path / "x.save"
    path.write_text("something else")
    with pytest.raises(ImageFormatError):
        run(path, vm_state="paused")
    with pytest.raises(ConflictError, match="not a save image"):
        run(path, state="absent")
    assert path.exists()


# --- absent ---


def test_absent(image):
    checked = run(image, check_mode=True, state="absent")
    assert image.exists()
    result = run(image, state="absent")
    assert result["changed"]
    assert (result["msg"], result["image"]["state"]) == (checked["msg"].replace("would be", "was"), "absent")
    assert result["diff"]["after"] == "state: absent\n"
    assert os.listdir(image.parent) == []
    assert not run(image, state="absent")["changed"]
    assert not run(image, check_mode=True, state="absent")["changed"]
    assert not run(image.parent / "none" / "x.save", state="absent")["changed"]


@pytest.mark.parametrize("damage", ["partial", "cut", "xml", "version"])
def test_absent_removes_damaged_images(image, damage):
    with image.open("r+b") as file:
        if damage == "partial":
            file.write(b"LibvirtQemudPart")
        elif damage == "cut":
            file.truncate(1000)
        elif damage == "xml":
            file.seek(92)
            file.write(b"<<<<")
        else:
            file.seek(16)
            file.write(b"\xff\xff")
    assert run(image, state="absent")["changed"]
    assert os.listdir(image.parent) == []


def test_absent_removes_archives_and_leftovers_and_nothing_else(image):
    (image.parent / "web1.save.tar").write_bytes(b"x")
    (image.parent / "web10.save").write_bytes(b"x")
    for name in (".web1.save.expanding", ".web1.save.tar.gz.partial", ".web1.save.archiving"):
        (image.parent / name).write_bytes(b"LibvirtQemudPart")
    run(image, archive="zstd")
    (image.parent / ".web1.save.expanding").write_bytes(b"LibvirtQemudPart")
    assert run(image, state="absent")["changed"]
    assert sorted(os.listdir(image.parent)) == ["web1.save.tar", "web10.save"]
    (image.parent / "web1.save.tar.gz").write_bytes(b"x")
    with pytest.raises(ConflictError):
        run(image, state="absent")


def test_absent_while_another_process_has_it(image):
    with image.open("rb"), pytest.raises(ConflictError, match="in use"):
        run(image, state="absent")
    assert image.exists()


# --- interruptions ---


@pytest.mark.parametrize("archive", ["zstd"])
def test_archiving_killed_at_each_step(image, kill_at_each_step, archive):
    """One of image and archive is whole at any time, and the next run makes it the archive."""
    work_on_copies(image, kill_at_each_step, {"archive": archive}, archive, plain_first=True)


@pytest.mark.parametrize("then", ["gzip", "none"])
def test_tight_archiving_killed_at_each_step(image, kill_at_each_step, then):
    """The next run goes on, or undoes it, and nothing is lost."""
    states = work_on_copies(image, kill_at_each_step, {"archive": "gzip", "space": "tight"}, then, plain_first=True)
    assert states == {"complete", "partial", "archived"}


def test_expanding_killed_at_each_step(image, kill_at_each_step):
    work_on_copies(image, kill_at_each_step, {"archive": "none"}, "none", plain_first=False)


def test_undoing_killed_at_each_step(image, kill_at_each_step, monkeypatch):
    """An interrupted archiving, whose undoing is interrupted."""
    before = content(image)
    store = halfway(image, monkeypatch)

    def set_up():
        copy_all(store, image.parent)

    def check(_finished):
        assert image_info(str(image))["state"] in ("partial", "complete")
        run(image, archive="none")
        assert content(image) == before
        assert os.listdir(image.parent) == [image.name]

    kill_at_each_step(set_up, lambda: run(image, archive="none"), check, at_least=5)


def halfway(image, monkeypatch):
    """Begin archiving with ``tight``, and keep a copy of what is there when it fails."""
    with monkeypatch.context() as patch:
        real, count = archive_module._compress, 0

        def fail(*arguments):
            nonlocal count
            count += 1
            if count == 3:
                raise ConflictError("stopped")
            return real(*arguments)

        patch.setattr(archive_module, "_compress", fail)
        with pytest.raises(ConflictError):
            run(image, archive="gzip", space="tight")
    store = image.parent.parent / f"{image.parent.name}-store"
    store.mkdir()
    for name in os.listdir(image.parent):
        os.rename(image.parent / name, store / name)
    return store


def copy_all(source, target):
    """A copy with holes; the record names the inode, which a copy has anew."""
    for name in os.listdir(target):
        os.unlink(target / name)
    for name in os.listdir(source):
        subprocess.run(["cp", "-a", "--sparse=auto", str(source / name), str(target / name)], check=True)
    for record in target.glob(".*.archiving"):
        inode = (source / "web1.save").stat().st_ino
        new = (target / "web1.save").stat().st_ino
        record.write_text(record.read_text().replace(f'"inode": {inode},', f'"inode": {new},'))


def work_on_copies(image, kill_at_each_step, options, then, plain_first):
    before = content(image)
    if not plain_first:
        run(image, archive="gzip")
    store = image.parent.parent / f"{image.parent.name}-store"
    store.mkdir()
    for name in os.listdir(image.parent):
        os.rename(image.parent / name, store / name)
    states = set()

    def check(finished):
        info = image_info(str(image))
        states.add(info["state"])
        if options.get("space") != "tight":
            assert info["state"] in ("complete", "archived")
        if info["state"] == "partial":
            with pytest.raises(ImagePartialError, match="interrupted"):
                run(image)
            assert run(image, check_mode=True, archive=then)["changed"]
            assert not finished
        if finished:
            assert info["archive"] == (None if options["archive"] == "none" else options["archive"])
        run(image, archive=then)
        assert not run(image, archive=then)["changed"]
        assert image_info(str(image))["archive"] == (None if then == "none" else then)
        run(image, archive="none")
        assert content(image) == before
        assert os.listdir(image.parent) == [image.name]

    kill_at_each_step(lambda: copy_all(store, image.parent), lambda: run(image, **options), check, at_least=5)
    return states


def test_changes_after_an_interrupted_tight_archiving(image, monkeypatch):
    """What is asked for beside the archive is not lost."""
    copy_all(halfway(image, monkeypatch), image.parent)
    result = run(image, archive="gzip", vm_state="paused")
    assert (result["image"]["state"], result["image"]["vm_state"]) == ("archived", "paused")


def test_an_interrupted_change_is_put_back_by_any_run(image, kill_at_each_step):
    original = image.read_bytes()
    recovered = []

    def check(_finished):
        if image_info(str(image))["state"] == "partial":
            assert run(image, check_mode=True)["changed"]
            result = run(image)
            assert result["changed"]
            assert "put back" in result["msg"]
            recovered.append(result)
        run(image, domain_xml=XML)
        assert read_image_head(str(image)).xml == XML

    def set_up():
        with image.open("r+b") as file:
            file.write(original)

    kill_at_each_step(set_up, lambda: run(image, domain_xml=XML), check, at_least=10, torn_too=True)
    assert len(recovered) >= 4


# --- vouching ---


@pytest.fixture
def unvouched(image, builder):
    launch = LaunchRecord(
        ["q", "-object", "secret,id=s,data=geheim", "a b"], "/srv", "/bin/q", 0, 0, unit="web1.service"
    )
    builder.xml = embed(builder.xml, SaveFacts("0.1.0", "10.0.2", "2026-03-01T09:30:00Z"), launch)
    return builder.write()


def test_vouching_shows_what_it_is_for(unvouched, own_key):
    before = unvouched.read_bytes()
    would = run(unvouched, check_mode=True, vouch=True)
    assert not own_key.exists(), "check mode makes none"
    assert unvouched.read_bytes() == before
    done = run(unvouched, vouch=True)
    assert would["msg"] == f"{unvouched} would be vouched for"
    assert done["msg"] == f"{unvouched} was vouched for"
    assert would["diff"] == done["diff"]
    assert "vouched: false\n" in done["diff"]["before"]
    after = done["diff"]["after"]
    for line in (
        "vouched: true",
        f"  command: q -object 'secret,id=s,data={HIDDEN}' 'a b'",
        "  program: /bin/q",
        "  user: 0 (root)",
        "  directory: /srv",
        "  unit: web1.service",
    ):
        assert f"{line}\n" in after
    assert "geheim" not in str(done)
    assert own_key.read_text().strip() not in str(done)
    info = image_info(str(unvouched), verify=True)
    assert (info["vouched"], info["problems"]) == (True, [])
    for check_mode in (True, False):
        assert not run(unvouched, check_mode=check_mode, vouch=True)["changed"]
    assert not run(unvouched)["changed"]


def test_vouching_changes_nothing_but_the_voucher(unvouched):
    before = read_image_head(str(unvouched))
    run(unvouched, vouch=True)
    after = read_image_head(str(unvouched))
    assert after.header == before.header
    assert after.xml != before.xml
    assert dataclasses.replace(after.domain(), voucher="") == before.domain()


def test_vouching_for_an_archive(unvouched):
    run(unvouched, archive="gzip")
    with pytest.raises(ConflictError, match="is an archive"):
        run(unvouched, vouch=True)
    assert run(unvouched, vouch=True, archive="gzip")["image"]["vouched"]
    assert not run(unvouched, vouch=True)["changed"]
    assert run(unvouched, archive="none")["image"]["vouched"]


def test_vouching_with_another_xml(unvouched):
    result = run(unvouched, vouch=True, domain_xml=XML)
    assert result["msg"] == f"{unvouched} was given the new domain XML, then vouched for"
    assert result["image"]["vouched"]
    assert run(unvouched, domain_xml=XML.replace("<name>", "<uuid>" + "1" * 32 + "</uuid><name>"))["image"]["vouched"]


def test_vouching_for_nothing(builder):
    with pytest.raises(RequestError, match="records nothing"):
        run(builder.write(), vouch=True)


def test_vouching_without_a_key_that_can_be_used(unvouched, own_key):
    run(unvouched, vouch=True)
    own_key.chmod(0o644)
    for check_mode in (True, False):
        with pytest.raises(VouchingKeyError):
            run(unvouched, check_mode=check_mode, vouch=True)


def test_vouching_that_is_killed(unvouched, own_key, kill_at_each_step):
    """The image is then as before, or partial with its journal, or vouched for."""
    make_key()
    original = unvouched.read_bytes()

    def check(_finished):
        run(unvouched, vouch=True)
        info = image_info(str(unvouched), verify=True)
        assert (info["state"], info["vouched"], info["problems"]) == ("complete", True, [])

    kill_at_each_step(lambda: unvouched.write_bytes(original), lambda: run(unvouched, vouch=True), check, at_least=6)


# --- the VM that an image must hold ---


@pytest.mark.parametrize("archived", [False, True])
@pytest.mark.parametrize("options", [{"vm_state": "paused"}, {"archive": "gzip"}, {"state": "absent"}])
def test_image_of_another_vm(image, options, archived):
    if archived:
        run(image, archive="gzip")
    before = listing(image.parent)
    request = SaveImageRequest("web2", str(image), "/x", **options)
    with pytest.raises(MismatchError, match="holds web1, not web2"):
        SaveImageOperation(request).run()
    assert listing(image.parent) == before


def test_image_of_the_vm_that_is_named(image):
    assert SaveImageOperation(SaveImageRequest("web1", str(image), "/x", state="absent")).run()["changed"]
    assert not image.exists()


def test_damaged_image_is_removed_whosever_it_was(image):
    image.write_bytes(image.read_bytes()[:64])
    assert SaveImageOperation(SaveImageRequest("web2", str(image), "/x", state="absent")).run()["changed"]
    assert not image.exists()
