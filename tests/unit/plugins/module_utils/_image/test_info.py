# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import dataclasses
import os
import pwd

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._errors import ImageNotFoundError
from ansible_collections.vmops.qemu.plugins.module_utils._image import info as info_module
from ansible_collections.vmops.qemu.plugins.module_utils._image.domain_xml import embed
from ansible_collections.vmops.qemu.plugins.module_utils._image.info import describe, directory_info, image_info
from ansible_collections.vmops.qemu.plugins.module_utils._image.record import LaunchRecord, SaveFacts
from ansible_collections.vmops.qemu.plugins.module_utils._image.vouching import vouch
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.command_line import HIDDEN
from ansible_collections.vmops.qemu.plugins.module_utils._vouching_key import make_key

PAGE = 4096
KEYS = (
    "path exists state archive complete version format features vm_state byte_order name uuid memory vcpus machine"
    " domain_xml cookie size allocated stream_offset saved_at qemu_version checksum managed launch_recorded readable_by"
    " problems mode owner mtime checkpoint superseded_by copy_of disks cpu restorable restore_problems vouched launch"
)


def test_an_image_of_libvirt(golden):
    path = golden / "sparse-paused.save"
    facts = path.stat()
    info = image_info(str(path))
    assert info.pop("domain_xml").startswith("<domain type='qemu'>")
    assert info.pop("cookie").strip().startswith("<cookie>")
    assert info == {
        "path": str(path),
        "exists": True,
        "state": "complete",
        "archive": None,
        "complete": True,
        "checkpoint": False,
        "superseded_by": None,
        "copy_of": None,
        "version": 2,
        "format": "sparse",
        "features": [],
        "vm_state": "paused",
        "byte_order": "little",
        "name": "tiny",
        "uuid": "11111111-2222-3333-4444-555555555555",
        "memory": 16 << 20,
        "vcpus": 1,
        "machine": "pc-i440fx-10.0",
        "size": 20094105,
        "allocated": facts.st_blocks * 512,
        "stream_offset": 67358,
        "saved_at": None,
        "qemu_version": None,
        "checksum": None,
        "managed": False,
        "launch_recorded": False,
        "vouched": None,
        "launch": None,
        "restorable": None,
        "restore_problems": None,
        "cpu": None,
        "disks": None,
        "readable_by": ["vmops.qemu", "libvirt >= 11.2"],
        "problems": [],
        "mode": "0600",
        "owner": pwd.getpwuid(os.geteuid()).pw_name,
        "mtime": facts.st_mtime,
    }
    assert image_info(str(golden / "raw.save"))["readable_by"] == ["vmops.qemu", "libvirt"]
    assert image_info(str(golden / "zstd.save"))["readable_by"] == ["vmops.qemu", "libvirt"]


def test_an_image_of_ours(builder):
    launch = LaunchRecord(["q", "-object", "secret,id=s,data=geheim"], "/", "/bin/q", 0, 0)
    builder.xml = embed(builder.xml, SaveFacts("0.1.0", "10.0.2", "2026-03-01T09:30:00Z"), launch)
    info = image_info(str(builder.write()), stream=True, verify=True)
    assert (info["state"], info["version"], info["features"]) == ("complete", 3, ["mapped-ram"])
    assert (info["saved_at"], info["qemu_version"]) == ("2026-03-01T09:30:00Z", "10.0.2")
    assert info["launch_recorded"]
    assert "geheim" not in str(info)
    assert (info["vouched"], info["restorable"], info["launch"]["how"]) == (False, False, "none")
    assert info["launch"]["reason"].startswith("nobody vouches for its record: ")
    assert info["launch"]["command"] == ["q", "-object", f"secret,id=s,data={HIDDEN}"]
    assert info["readable_by"] == ["vmops.qemu"]
    assert info["stream"]["machine"] == "pc-q35-10.0"
    told = f"web1: complete sparse image, version 3, 128 KiB memory, {info['allocated'] // 1024} KiB on disk"
    assert describe(info) == f"{told}, not vouched for"
    builder.xml = vouch(builder.xml, make_key())
    info = image_info(str(builder.write()))
    assert (info["vouched"], info["restorable"], info["launch"]["how"]) == (True, True, "command")
    assert 'voucher=""' in info["domain_xml"], "it is shown to nobody"
    assert describe(info).endswith(" on disk")


def test_a_partial_image(builder):
    builder.header = dataclasses.replace(builder.header, complete=False)
    info = image_info(str(builder.write()), verify=True)
    assert (info["state"], info["complete"], info["readable_by"]) == ("partial", False, [])
    assert info["problems"] == ["the image is partial: its save never finished, or is still being written"]
    assert describe(info).startswith("web1: partial sparse image")


def test_an_absent_image(tmp_path):
    path = str(tmp_path / "none.save")
    info = image_info(path, stream=True)
    assert (info["exists"], info["state"], info["problems"], info["stream"]) == (False, "absent", [], None)
    assert describe(info) == f"{path}: there is no image"


def test_images_that_are_none(builder, tmp_path):
    (tmp_path / "x").write_bytes(b"something else")
    info = image_info(str(tmp_path / "x"))
    assert (info["exists"], info["state"], info["complete"]) == (True, "invalid", None)
    assert describe(info) == f"{tmp_path / 'x'}: invalid, the image magic is incorrect: this is not a save image"
    builder.xml = "<domain><name>web1</name><graphics passwd='geheim'></domain>"
    info = image_info(str(builder.write()))
    assert (info["state"], info["complete"], info["name"], info["domain_xml"]) == ("invalid", True, None, None)
    assert info["size"] == builder.path.stat().st_size
    assert "geheim" not in str(info)
    assert image_info(str(tmp_path))["problems"] == ["it is a directory, not a regular file"]


def test_verify_and_stream_find_different_things(builder):
    builder.unwritten = {(b"pc.ram", 1)}
    path = str(builder.write())
    assert image_info(path)["state"] == "complete"
    assert image_info(path, stream=True)["state"] == "complete"
    info = image_info(path, verify=True)
    assert (info["state"], len(info["problems"]), info["readable_by"]) == ("invalid", 1, [])
    assert "stream" not in info
    os.truncate(path, 70000)
    info = image_info(path, stream=True)
    assert (info["state"], info["stream"]) == ("invalid", None)


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_verify_compares_the_checksum(builder, record_checksum):
    path = builder.write()
    digest = record_checksum(path)
    assert digest.startswith("sha256-tree:")
    info = image_info(str(path), verify=True)
    assert (info["state"], info["checksum"], info["problems"]) == ("complete", digest, [])
    page = next(place for place in range(1 << 20, 2 << 20, PAGE) if any(path.read_bytes()[place : place + PAGE]))
    flip(path, page + 1000)
    info = image_info(str(path), stream=True)
    assert (info["state"], info["checksum"], info["problems"]) == ("complete", digest, [])
    info = image_info(str(path), stream=True, verify=True)
    assert (info["state"], info["checksum"], info["readable_by"]) == ("invalid", digest, [])
    assert info["problems"] == [
        "its QEMU stream does not match the checksum that the save recorded: it was changed since"
    ]
    assert "was changed since" in describe(info)


def test_verify_without_a_checksum_finds_no_change(builder):
    path = builder.write()
    flip(path, (1 << 20) + 1000)
    info = image_info(str(path), verify=True)
    assert (info["state"], info["checksum"], info["problems"]) == ("complete", None, [])


@pytest.mark.parametrize("name", ["raw", "zstd"])
def test_verify_compares_the_checksum_of_a_stream(copy_of, record_checksum, name):
    path = copy_of(f"{name}.save")
    digest = record_checksum(path)
    info = image_info(str(path), verify=True)
    assert (info["checksum"], info["problems"]) == (digest, [])
    flip(path, path.stat().st_size // 2)
    (problem,) = image_info(str(path), verify=True)["problems"]
    assert "does not match the checksum" in problem


def test_verify_says_what_cannot_be_checked(builder, record_checksum):
    path = builder.write()
    record_checksum(path, "later-tree:00")
    assert image_info(str(path))["problems"] == []
    (problem,) = image_info(str(path), verify=True)["problems"]
    assert problem == "its checksum is of the kind 'later-tree', which is not known here, so it cannot be checked"


def test_verify_tells_of_damage_once(builder, record_checksum):
    """Where the structure is damaged, or the image partial, the checksum has nothing to add."""
    builder.unwritten = {(b"pc.ram", 1)}
    path = builder.write()
    record_checksum(path, f"sha256-tree:{64 * '0'}")
    (problem,) = image_info(str(path), verify=True)["problems"]
    assert "never written" in problem
    builder.unwritten = set()
    builder.header = dataclasses.replace(builder.header, complete=False)
    record_checksum(builder.write(), f"sha256-tree:{64 * '0'}")
    (problem,) = image_info(str(path), verify=True)["problems"]
    assert "is partial" in problem


def test_a_file_that_may_not_be_read(golden, monkeypatch):
    def refuse(*_arguments, **_keywords):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    info = image_info(str(golden / "raw.save"))
    assert (info["exists"], info["state"]) == (True, "invalid")
    assert info["problems"] == ["cannot open the image: Permission denied"]


def test_all_results_have_the_same_keys(golden, builder, tmp_path):
    expected = set(KEYS.split())
    for path in (golden / "raw.save", builder.write(), tmp_path, tmp_path / "none"):
        assert set(image_info(str(path))) == expected
        assert set(image_info(str(path), stream=True)) == expected | {"stream"}


def test_a_directory(builder, tmp_path, golden):
    builder.write()
    (tmp_path / ".web1.save.0123456789abcdef.partial").write_bytes(b"LibvirtQemudPart")
    (tmp_path / "bad.save").write_bytes(b"bad")
    (tmp_path / "notes.txt").write_bytes(b"LibvirtQemu")
    (tmp_path / "directory.save").mkdir()
    (tmp_path / "link.save").symlink_to(golden / "raw.save")
    os.mkfifo(tmp_path / "fifo.save")
    (tmp_path / "image").write_bytes((golden / "raw.save").read_bytes())
    found = [(os.path.basename(info["path"]), info["state"]) for info in directory_info(str(tmp_path))]
    assert found == [
        (".web1.save.0123456789abcdef.partial", "invalid"),
        ("bad.save", "invalid"),
        ("image", "complete"),
        ("web1.save", "complete"),
    ]
    assert len(directory_info(str(golden), stream=True, verify=True)) == 8
    with pytest.raises(ImageNotFoundError):
        directory_info(str(tmp_path / "none"))


def test_an_image_under_another_name_is_named_by_its_file(golden):
    assert describe(image_info(str(golden / "raw.save"))).startswith("tiny (raw.save): complete raw image, version 2,")


@pytest.mark.parametrize(
    ("size", "shown"), [(0, "0 KiB"), (1 << 20, "1 MiB"), (612 << 20, "612 MiB"), (1 << 31, "2.0 GiB")]
)
def test_sizes_for_people(size, shown):
    assert info_module._human(size) == shown
