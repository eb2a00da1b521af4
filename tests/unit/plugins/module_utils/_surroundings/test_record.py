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
FILE = MediumFile("/vm/a", "raw", 1, 2)
NAMES = {"long": "x" * 9000, "odd": '\udcff\n\x01é\U0001f600"\\', "longest": "é" * 100_000}
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


# --- whatever is recorded can be read ---


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_problem_with_any_text(name):
    (problem,) = Surroundings.parse(Surroundings((), (Problem("k", name, name, False),)).dump()).problems
    assert (problem.kind, problem.blocks) == ("k", False)
    assert name.startswith(problem.what.rstrip("…"))
    assert problem.what == problem.cure
    assert len(problem.what) == min(len(name), 8192)


def test_more_problems_than_are_recorded():
    problems = [Problem(f"k{number}", "what", "cure", number % 1000 == 0) for number in range(5000)]
    recorded = Surroundings.parse(Surroundings((), tuple(problems)).dump()).problems
    assert len(recorded) == 1000
    assert sum(problem.blocks for problem in recorded) == 5


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_media_with_any_name(name):
    file = MediumFile(f"/vm/{name}", "raw", uncheckable=name)
    (medium,) = Surroundings.parse(Surroundings((Medium(name, name, name, True, (file,), name),), ()).dump()).media
    assert medium.backend == name[:4096]
    assert medium.files[0].path == f"/vm/{name}"[:4096]


def test_many_media_of_many_files():
    media = (Medium("d", "q", "n", False, (FILE,) * 300),) * 2000
    recorded = Surroundings.parse(Surroundings(media, ()).dump()).media
    assert (len(recorded), len(recorded[0].files)) == (1024, 256)
    assert recorded[0].files[-1].uncheckable


NEEDS = {
    "file": Needs(files=(StartFile("/vm/" + "x" * 9000, "its key", 1),)),
    "files": Needs(files=tuple(StartFile(f"/vm/{number}", "its key", 1) for number in range(513))),
    "directory": Needs(directories=(Directory("/run/" + "x" * 9000, 0, 0, 0o755),)),
    "server": Needs(servers=(Server("/run/s", "its card", "x" * 9000, ""),)),
    "word": Needs(tpms=(TpmServer("/run/t", ("swtpm", "x" * 9000)),)),
    "words": Needs(tpms=(TpmServer("/run/t", ("swtpm",) * 257),)),
    "tap": Needs(taps=(Tap("tap0", "x" * 9000),)),
    "number": Needs(files=(StartFile("/vm/key", "its key", 2**64),)),
}


@pytest.mark.parametrize("needs", NEEDS.values(), ids=NEEDS)
def test_need_that_no_image_holds(needs):
    """It costs itself alone, and is a problem: a restore would not see to it."""
    good = StartFile("/vm/good", "its key", 1)
    both = Needs(**{**vars(needs), "files": (good, *needs.files)})
    recorded = Surroundings.parse(Surroundings((), (), both).dump()).needs
    assert recorded.files[0] == good
    assert recorded != both
    (problem,) = both.unrecorded()
    assert (problem.kind, problem.blocks) == ("need_unrecorded", True)


def test_needs_that_an_image_holds():
    odd = StartFile("/vm/" + NAMES["odd"], "its key", 1)
    needs = Needs(files=(odd,) * 512, tpms=(TpmServer("/run/t", ("swtpm", "x" * 8192) * 128),))
    assert Surroundings.parse(Surroundings((), (), needs).dump()).needs == needs
    assert needs.unrecorded() == []


@pytest.mark.parametrize(
    "bad",
    [None, [], {}, {"kind": "k", "what": 1, "cure": "c", "blocks": True}, {"kind": "k", "what": "w", "cure": "c"}],
)
def test_bad_problem_costs_itself_alone(bad):
    record = json.loads(RECORDED.dump())
    record["problems"].insert(0, bad)
    assert Surroundings.parse(json.dumps(record)) == RECORDED


def test_problems_of_an_image_that_an_earlier_version_wrote():
    record = json.loads(RECORDED.dump())
    record["problems"] = [{**record["problems"][0], "what": "x" * 9742}] * 1001
    parsed = Surroundings.parse(json.dumps(record))
    assert (parsed.media, parsed.needs, len(parsed.problems)) == (RECORDED.media, RECORDED.needs, 1000)
