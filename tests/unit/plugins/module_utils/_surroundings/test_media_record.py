# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.media import Medium, MediumFile
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.media_record import parse_media, record_media

FILE = MediumFile("/vm/a.img", "raw", 1 << 40, 1_700_000_000_123_456_789, 17, 64769)
MEDIA = [
    Medium("virtio0", "/machine/x", "#block123", False, (FILE, MediumFile("/vm/b\udcff.img", "qcow2"))),
    Medium("", "cd0", "", False, place="03.0"),
    Medium("net", "", "n", True, (MediumFile("nbd://h/e", "raw", uncheckable="it is a server's"),)),
]

BAD_TEXTS: list[Any] = [None, 1, [], "x" * 4097, "a\0b"]
BAD_INTEGERS: list[Any] = [None, "1", 1.0, True]
BAD_LISTS: list[Any] = [None, {}, "x", [1], [None]]


def record() -> Any:
    return json.loads(json.dumps(record_media(MEDIA)))


def test_record_is_read_back_through_json():
    assert parse_media(record()) == MEDIA


def test_record_of_an_earlier_version_has_no_places():
    value = record()
    for medium in value:
        del medium["place"]
    assert [medium.place for medium in parse_media(value)] == [""] * 3


def test_what_a_newer_version_adds_is_passed_over():
    value = record()
    value[0]["serial"] = value[0]["files"][0]["checksum"] = "abc"
    assert parse_media(value) == MEDIA


@pytest.mark.parametrize("value", [None, {}, "media", 1, [None], [[]], ["virtio0"]])
def test_what_is_no_record(value):
    with pytest.raises(ValueError, match="is not"):
        parse_media(value)


@pytest.mark.parametrize(
    ("key", "bad"),
    [
        *((key, bad) for key in ("backend", "qdev", "node", "place") for bad in BAD_TEXTS),
        *(("read_only", bad) for bad in (None, 0, 1, "true")),
        *(("files", bad) for bad in BAD_LISTS),
    ],
)
def test_bad_medium(key, bad):
    value = record()
    value[0][key] = bad
    with pytest.raises(ValueError, match="disk 1"):
        parse_media(value)


@pytest.mark.parametrize(
    ("key", "bad"),
    [
        *((key, bad) for key in ("path", "format", "uncheckable") for bad in BAD_TEXTS),
        ("path", "a.img"),
        ("path", ""),
        *((key, bad) for key in ("size", "inode", "device_number") for bad in (*BAD_INTEGERS, -1, 2**64)),
        *(("mtime_ns", bad) for bad in (*BAD_INTEGERS, -(2**63) - 1, 2**63)),
    ],
)
def test_bad_file(key, bad):
    value = record()
    value[0]["files"][0][key] = bad
    with pytest.raises(ValueError, match="file 1 of disk 1"):
        parse_media(value)


@pytest.mark.parametrize("key", ["backend", "qdev", "node", "read_only", "files"])
def test_missing_part_of_a_medium(key):
    value = record()
    del value[1][key]
    with pytest.raises(ValueError, match="disk 2"):
        parse_media(value)


def test_too_many():
    with pytest.raises(ValueError, match="more than"):
        parse_media(record() * 400)
    value = record()
    value[0]["files"] *= 200
    with pytest.raises(ValueError, match="more than"):
        parse_media(value)


def test_what_is_recorded_can_always_be_read():
    endless = Medium("x" * 9999, "q" * 9999, "", False, (MediumFile("/" + "p" * 9999, "raw"),) * 300)
    (first, *rest) = parse_media(record_media([endless, *[Medium("", "", "", False)] * 2000]))
    assert len(rest) == 1023
    assert len(first.files) == 256
    assert "45 that are not recorded" in first.files[-1].uncheckable
    assert first.files[0].uncheckable == ""
