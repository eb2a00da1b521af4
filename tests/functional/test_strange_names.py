# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Names and paths that look like something else: an option, a list of options, a shell's words, a format.

A VM with such a name, image or socket is saved and restored, or it is refused with a sentence before it is touched.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from support.observe import VM, Continuity, run_state

SMALL = {"memory_mib": 32, "block_mib": 1}
#: Makes a name one of this run of the tests.
UNIQUE = str(os.getpid())


def named(make_guest, name, **options):
    """A guest of this name for QEMU; for the tests' own means it keeps theirs, which QEMU overrides."""
    guest = make_guest(extra_args=["-name", f"guest={name.replace(',', ',,')}"], observer=True, **SMALL, **options)
    assert guest.qmp("query-name")["name"] == name
    return guest


def words_of(guest):
    return Path(f"/proc/{guest.pid}/cmdline").read_bytes().split(b"\0")[:-1]


@pytest.mark.parametrize(
    "name",
    [
        f"-{UNIQUE}",
        f"--incoming exec:touch x;{UNIQUE}",
        f"guest=a,b=c,,d,process={UNIQUE}",
        f"; touch x; $(touch x)`touch x` *?[a] {UNIQUE}",
        f"'\"\\n%s%n%%{{{{ {UNIQUE} }}}}",
        f"<name>&amp;]]>ünïcödé-机-{UNIQUE}",
        f"..{UNIQUE}" + "x" * 200,
    ],
)
def test_vm_of_this_name_is_saved_and_restored(make_guest, tmp_path, save, restore, name):
    """The file is named after it, and its command line is the same, word for word."""
    guest = named(make_guest, name)
    continuity = Continuity(guest)
    words = words_of(guest)
    directory = tmp_path / f"{name}.d"[:100]
    result = save(name=name, save_dir=str(directory))
    assert result["image"]["name"] == name
    assert os.listdir(directory) == [f"{name}.save"]
    guest.wait_exit()
    result = restore(name=name, save_dir=str(directory))
    assert result["vm"]["name"] == name
    continuity.check()
    machine, *waiting = words_of(guest)[len(words) + 1 :]
    assert words_of(guest)[: len(words)] == words
    assert machine.startswith(b"pc-")
    assert waiting == [b"-S", b"-incoming", b"defer"]


@pytest.mark.parametrize("name", [f"../../etc/{UNIQUE}", "..", UNIQUE + "x" * 250], ids=["above", "dots", "long"])
def test_name_that_cannot_be_a_files_needs_a_path(make_guest, image, save, restore, run_module, tmp_path, name):
    guest = named(make_guest, name)
    continuity = Continuity(guest)
    result = run_module("qemu_save", name=name, save_dir=str(tmp_path / "save"))
    assert "cannot stand in a file name" in result["msg"] or "File name too long" in result["msg"], result["msg"]
    assert os.listdir(tmp_path / "save") == []
    save(name=name, path=str(image))
    guest.wait_exit()
    result = run_module("qemu_restore", name=name, save_dir=str(tmp_path / "save"))
    assert "cannot stand in a file name" in result["msg"] or "File name too long" in result["msg"], result["msg"]
    restore(name=name, path=str(image))
    continuity.check()


@pytest.mark.parametrize(
    "name", [f"a\nb\t{UNIQUE}", f"\x1b[31m\x7f\x85{UNIQUE}", f" {UNIQUE} "], ids=["lines", "escapes", "blanks"]
)
def test_name_that_an_image_cannot_hold_is_refused(make_guest, tmp_path, run_module, name):
    guest = named(make_guest, name)
    place = tmp_path / "save"
    result = run_module("qemu_save", name=name, save_dir=str(place))
    assert result["error"] == "RequestError", result["msg"]
    assert "XML cannot hold" in result["msg"]
    assert "Rename the VM" in result["cure"]
    assert result["msg"].isprintable()
    assert not place.exists() or os.listdir(place) == []
    assert run_state(guest) == "running"


def test_bytes_that_are_no_text_in_a_name(make_guest, image, save, restore):
    """QMP, which is text, says another name than the command line: the VM is found by its socket alone.

    Nor could a task say that name: Ansible's options are text.
    """
    name = f"\udcff\udcfe{UNIQUE}"
    guest = make_guest(start=False, extra_args=["-name", f"guest={name}"], **SMALL)
    guest.start()
    continuity = Continuity(guest)
    save(qmp_socket=str(guest.qmp_socket), path=str(image))
    guest.wait_exit()
    restore(path=str(image))
    continuity.check()


STRANGE_NAMES = [
    "-a,b=c,,d",
    "--incoming",
    "offset=0x1000,x",
    "exec:touch x",
    "fd:5",
    "line\nbreak\t ünïcödé 机",
    "%s%n$(touch x);`touch x`'\"\\ *?[a]{{ x }}",
    ".hidden\x1b[31m",
]


def test_images_at_strange_paths(make_guest, tmp_path, save, restore, run_module):
    """QEMU gets descriptors, never a path, and so do the tools that compress."""
    guest = make_guest(observer=True, **SMALL)
    continuity = Continuity(guest)
    formats = ["sparse", "raw", "zstd"]
    for number, name in enumerate(STRANGE_NAMES):
        image = tmp_path / name / f"{name}.save"
        image.parent.mkdir()
        save(name=VM, path=str(image), format=formats[number % 3])
        guest.wait_exit()
        assert os.listdir(image.parent) == [image.name]
        info = run_module("qemu_save_image_info", path=str(image.parent), stream=True)
        assert [entry["path"] for entry in info["images"]] == [str(image)]
        assert info["msg"].isprintable()
        restore(path=str(image))
        guest.wait_restarted()
        assert os.listdir(image.parent) == []
    continuity.check()


def test_paths_relative_to_where_the_module_runs(make_guest, tmp_path, start_module):
    """A path that begins with a dash is one."""
    guest = make_guest(**SMALL)
    continuity = Continuity(guest)
    (tmp_path / "-save").mkdir()
    here = ["sh", "-c", 'cd "$0" && exec "$@"', str(tmp_path)]
    for module in ("qemu_save", "qemu_restore"):
        result = start_module(module, name=VM, path="-save/-x.save", prefix=here).result()
        assert result["changed"], result["msg"]
        assert result["image"]["path"] == str(tmp_path / "-save" / "-x.save")
    continuity.check()


@pytest.fixture
def short_place():
    """A directory whose path leaves room for a socket's name."""
    place = Path(tempfile.mkdtemp(prefix="vmops-"))
    yield place
    shutil.rmtree(place)


def test_monitors_at_strange_paths(make_guest, short_place, image, save, restore):
    sockets = [short_place / f"{name}.sock" for name in STRANGE_NAMES]
    words = []
    for number, path in enumerate(sockets):
        socket = f"socket,id=odd{number},path={str(path).replace(',', ',,')},server=on,wait=off"
        words += ["-chardev", socket, "-mon", f"chardev=odd{number},mode=control"]
    guest = make_guest(extra_args=words, **SMALL)
    continuity = Continuity(guest)
    for path in sockets:
        save(qmp_socket=str(path), path=str(image))
        guest.wait_exit()
        restore(path=str(image), qmp_socket=str(path))
        guest.wait_restarted()
    continuity.check()


def test_words_of_a_command_with_strange_characters(make_guest, image, save, restore, tmp_path):
    """Given by the operator, they are run as they are, too."""
    guest = make_guest(extra_args=["-fw_cfg", "name=opt/x,string=x"], **SMALL)
    continuity = Continuity(guest)
    save(name=VM, path=str(image))
    guest.wait_exit()
    text = f"; touch {tmp_path}/x; $(touch {tmp_path}/x) `touch {tmp_path}/x` 'q' \"q\" \\ \n\t%s ünï -incoming"
    command = [*guest.argv()[:-1], f"name=opt/x,string={text}"]
    restore(path=str(image), launch="command", command=command)
    continuity.check()
    assert f"name=opt/x,string={text}".encode() in words_of(guest)
    assert not (tmp_path / "x").exists()
