# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What an image records of what surrounded its VM: back as it was, and nothing else is taken for it."""

from __future__ import annotations

import json

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.bridges import Tap
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.directories import Directory
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.media import Medium, MediumFile
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.needs import Needs
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.pid_files import PidFile, PidFiles
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.record import Surroundings
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.servers import Server
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.start_files import StartFile
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.tpm import TpmServer
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.verdict import Problem
from hypothesis import given, settings
from hypothesis import strategies as some

RECORDED = Surroundings(
    (
        Medium(
            "d0", "disk0", "n0", False, (MediumFile("/vm/a.qcow2", "qcow2", 196616, 1764000000123456789, 12, 65024),)
        ),
        Medium("cd", "", "n1", True),
    ),
    (Problem("vnc_password", "its VNC password is lost", "Set it again", blocks=False),),
    Needs(
        files=(StartFile("/vm/bios.bin", "its firmware", 262144, 262144), StartFile("/vm/key", "its secret s0", 6)),
        directories=(Directory("/run/vm", 0, 12, 0o750),),
        servers=(Server("/run/vm/blk.sock", "its vhost-user-blk-pci", "qemu-storage-daemon", "blk.service"),),
        tpms=(TpmServer("/run/vm/tpm.sock", ("swtpm", "socket", "--tpm2"), "/vm", "/usr/bin/swtpm", 107, 107),),
        taps=(Tap("tap0", "br0", persists=True),),
    ),
    PidFiles(4711, (PidFile("/run/web1.pid", 0),)),
)
VALUES = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats() | some.text(max_size=20),
    lambda inner: some.lists(inner, max_size=4) | some.dictionaries(some.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def test_back_as_it_was():
    assert Surroundings.parse(RECORDED.dump()) == RECORDED


def test_image_of_an_earlier_version():
    """It says nothing of what its VM needs."""
    value = json.loads(RECORDED.dump())
    del value["needs"]
    assert Surroundings.parse(json.dumps(value)).needs == Needs()


def test_image_of_a_later_version():
    """What is not known here is left out."""
    value = json.loads(RECORDED.dump())
    value["needs"]["clocks"] = [{"path": "/dev/rtc"}]
    value["needs"]["files"][0]["colour"] = "red"
    assert Surroundings.parse(json.dumps(value)) == RECORDED


def parts(value, place=()):
    """The way to every value in a JSON value."""
    yield place
    if isinstance(value, (list, dict)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from parts(inner, (*place, key))


@settings(max_examples=500)
@given(some.data())
def test_another_value_anywhere(data):
    """It is refused by a ValueError, or is a record of the right types again; nothing else comes of it."""
    record = json.loads(RECORDED.dump())
    way = data.draw(some.sampled_from(list(parts(record))))
    value = data.draw(VALUES)
    if not way:
        record = value
    else:
        place = record
        for key in way[:-1]:
            place = place[key]
        place[way[-1]] = value
    try:
        parsed = Surroundings.parse(json.dumps(record))
    except ValueError:
        return
    assert Surroundings.parse(parsed.dump()) == parsed
    for medium in parsed.media:
        assert all(isinstance(file.mtime_ns, int) and isinstance(file.path, str) for file in medium.files)
    assert all(file.path.startswith("/") and file.uid >= 0 for file in parsed.pid_files.files)


def test_older_image():
    record = json.loads(RECORDED.dump())
    del record["pid_files"]
    parsed = Surroundings.parse(json.dumps(record))
    assert (parsed.media, parsed.pid_files) == (RECORDED.media, PidFiles())


@given(some.text(max_size=200))
def test_any_text(text):
    try:
        Surroundings.parse(text)
    except ValueError:
        return
    pytest.fail("it was taken for a record")


def test_levels_without_end():
    with pytest.raises(ValueError, match=r"levels|value"):
        Surroundings.parse("[" * 100_000)


@pytest.mark.parametrize("count", [1025, 100_000])
def test_media_without_end(count):
    medium = {"backend": "", "qdev": "", "node": "", "read_only": False, "files": []}
    with pytest.raises(ValueError, match="1024"):
        Surroundings.parse(json.dumps({"version": 1, "media": [medium] * count, "problems": []}))
