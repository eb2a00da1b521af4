# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The command that an image records is run only if nobody else can have written it, and as nothing but a QEMU.

Most tests restore a forged image whose command is a program that makes a file, the canary: where the restore must
refuse, there is no canary, no process and no log, and the image is as it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import pwd
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._errors import ConflictError, ImageFormatError
from ansible_collections.vmops.qemu.plugins.module_utils._image import domain_xml
from ansible_collections.vmops.qemu.plugins.module_utils._image.head import pack_head
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_file import read_image_head
from ansible_collections.vmops.qemu.plugins.module_utils._image.vouching import vouch
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import process as process_module
from ansible_collections.vmops.qemu.plugins.module_utils._restore.operation import RestoreOperation
from ansible_collections.vmops.qemu.plugins.module_utils._restore.request import RestoreRequest
from ansible_collections.vmops.qemu.plugins.module_utils._vouching_key import make_key

from support import CounterGuest, Monitor, MonitorError, find_qemu_pids
from support.observe import VM, Continuity, wait_until

QEMU = shutil.which("qemu-system-x86_64") or ""
NOBODY = pwd.getpwnam("nobody").pw_uid
STRANGER = 12345
AS_NOBODY = ["setpriv", "--reuid", "nobody", "--regid", str(pwd.getpwnam("nobody").pw_gid), "--clear-groups"]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of other users")


# --- what is forged ---


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A guest that was saved in the raw format, and its image; with it other images are forged."""
    place = tmp_path_factory.mktemp("saved")
    with CounterGuest(place / "guest", VM, block_mib=1, memory_mib=32) as guest:
        guest.start()
        save = place / "save"
        save.mkdir(mode=0o700)
        module = "ansible_collections.vmops.qemu.plugins.modules.qemu_save"
        options = f'{{"ANSIBLE_MODULE_ARGS": {{"name": "{VM}", "path": "{save}/web1.save", "format": "raw"}}}}'
        environment = {**os.environ, "PYTHONPATH": os.environ["ANSIBLE_COLLECTIONS_PATH"]}
        command = [sys.executable, "-m", module]
        subprocess.run(command, input=options, text=True, env=environment, check=True, stdout=subprocess.DEVNULL)
        guest.wait_exit()
        yield save / "web1.save"


@dataclasses.dataclass
class Canary:
    """A program that shows that it was run: by a file, with its words in it."""

    program: Path
    file: Path

    @property
    def words(self):
        return [os.fsdecode(word) for word in self.file.read_bytes().split(b"\0")[:-1]]

    @property
    def run(self):
        return self.file.exists()


def make_canary(directory, name="qemu-system-x86_64"):
    directory.mkdir(exist_ok=True)
    canary = Canary(directory / name, directory / "canary")
    canary.program.write_text(
        f"#!/bin/sh\nfor word; do printf '%s\\0' \"$word\"; done >{canary.file}.new\n"
        f"mv {canary.file}.new {canary.file}\n"
    )
    canary.program.chmod(0o755)
    return canary


@pytest.fixture
def canary(tmp_path):
    return make_canary(tmp_path / "canary")


@pytest.fixture
def forge(saved, tmp_path):
    """Make a copy of the saved image, with another command: C(forge(argv=[...], uid=0))."""

    def make(place=None, machine=None, **changes):
        if place is None:
            place = tmp_path / "save"
            place.mkdir(mode=0o700, exist_ok=True)
        image = place / "web1.save"
        head = read_image_head(str(saved))
        domain: Any = head.domain()
        record = dataclasses.replace(domain.launch, **changes)
        # What is refused here is refused although this host vouches for it; else nothing would be run at all.
        xml = domain_xml.embed(head.xml, domain.save_facts, record)
        with contextlib.suppress(ImageFormatError):  # it makes no sense, for whoever reads it
            xml = vouch(xml, make_key())
        header = dataclasses.replace(head.header, data_length=len(xml.encode()) + 1)
        _header, front = pack_head(str(image), header, xml, "")
        stream = saved.read_bytes()[head.header.stream_offset :]
        if machine is not None:
            (length,) = struct.unpack(">I", stream[9:13])
            stream = stream[:9] + struct.pack(">I", len(machine)) + machine.encode() + stream[13 + length :]
        image.write_bytes(front + stream)
        image.chmod(0o600)
        return image

    return make


@pytest.fixture
def forged(forge, canary):
    """An image that would run the canary with the words of the guest's QEMU."""
    argv = [str(canary.program), "-name", VM, "-qmp", f"unix:{canary.file.parent}/qmp,server=on"]
    return forge(argv=argv, executable=str(canary.program))


def check_refused(result, kind, *said, image, canary=None):
    """It was refused in a sentence, and nothing was started."""
    assert result.get("failed"), result["msg"]
    assert result["error"] == kind, result["msg"]
    for text in said:
        assert text in result["msg"], result["msg"]
    assert result["guest_state"]
    assert result["cure"]
    assert "unexpected" not in result["msg"]
    assert len(result["msg"]) < 2000
    assert canary is None or not canary.run
    assert find_qemu_pids(VM) == []
    assert image.exists()


def test_canary_sings(forged, canary, run_module):
    """Where nothing is wrong with the image the canary is run: else none of these tests would show anything."""
    result = run_module("qemu_restore", name=VM, path=str(forged))
    assert result["error"] == "LaunchError", "the canary is no QEMU, and ends at once"
    assert canary.run
    assert forged.exists()


# --- an image that others could have written ---


def acl(*entries):
    """A POSIX ACL as the kernel keeps it: entries of tag, permissions, and identifier (linux/posix_acl_xattr.h)."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def grant(path, permissions):
    """Let a stranger have these permissions by an ACL, with a mask that allows them."""
    bits = stat.S_IMODE(path.stat().st_mode)
    none = 0xFFFFFFFF
    value = acl(
        (0x01, bits >> 6, none),  # the owner
        (0x02, permissions, STRANGER),  # a named user
        (0x04, bits >> 3 & 7, none),  # the group
        (0x10, permissions | bits >> 3 & 7, none),  # the mask
        (0x20, bits & 7, none),  # others
    )
    try:
        os.setxattr(path, "system.posix_acl_access", value)
    except OSError as error:
        pytest.skip(f"no ACLs in the file system of {path}: {error.strerror}")


def chown(path):
    os.chown(path, STRANGER, -1)


UNSAFE = {
    "file-group-writable": lambda image: image.chmod(0o620),
    "file-world-writable": lambda image: image.chmod(0o602),
    "file-of-another": chown,
    "file-acl": lambda image: grant(image, 0o6),
    "directory-group-writable": lambda image: image.parent.chmod(0o770),
    "directory-world-writable": lambda image: image.parent.chmod(0o707),
    "directory-sticky": lambda image: image.parent.chmod(0o1777),
    "directory-of-another": lambda image: chown(image.parent),
    "directory-acl": lambda image: grant(image.parent, 0o7),
    "above-group-writable": lambda image: image.parent.parent.chmod(0o770),
    "above-world-writable": lambda image: image.parent.parent.chmod(0o757),
    "above-of-another": lambda image: chown(image.parent.parent),
    "above-acl": lambda image: grant(image.parent.parent, 0o7),
}


@pytest.mark.parametrize("spoil", UNSAFE.values(), ids=UNSAFE.keys())
def test_image_that_others_could_have_written(forged, canary, run_module, spoil):
    spoil(forged)
    result = run_module("qemu_restore", name=VM, path=str(forged), check=True)
    check_refused(result, "ImageUnsafeError", "is not run", image=forged, canary=canary)
    result = run_module("qemu_restore", name=VM, path=str(forged))
    check_refused(result, "ImageUnsafeError", "is not run", "mode 0600", image=forged, canary=canary)
    assert os.listdir(forged.parent) == [forged.name], "not even a log was made"


SAFE = {
    "file-group-readable": lambda image: image.chmod(0o640),
    "file-acl-for-reading": lambda image: grant(image, 0o4),
    "above-sticky": lambda image: image.parent.parent.chmod(0o1777),
    "second-name": lambda image: os.link(image, image.parent / "backup.save"),
}


@pytest.mark.parametrize("change", SAFE.values(), ids=SAFE.keys())
def test_image_that_others_could_not_have_written(forged, canary, run_module, change):
    change(forged)
    run_module("qemu_restore", name=VM, path=str(forged))
    assert canary.run


@pytest.fixture
def hostile_place(tmp_path):
    """A directory of a stranger's."""
    place = tmp_path / "hostile"
    place.mkdir()
    chown(place)
    return place


def links(image, place, elsewhere):
    """Ways to a safe image through a directory of someone else's, who can turn them to another one at any time."""
    (place / "file.save").symlink_to(image)
    (place / "directory").symlink_to(image.parent)
    (place / "relative.save").symlink_to(f"../{image.parent.name}/{image.name}")
    (elsewhere / "second.save").symlink_to(place / "file.save")
    (elsewhere / "through").symlink_to(place)
    os.link(image, place / "second-name.save")
    return [
        place / "file.save",
        place / "directory" / image.name,
        place / "relative.save",
        elsewhere / "second.save",
        elsewhere / "through" / "directory" / image.name,
        place / "second-name.save",
    ]


def test_path_through_a_directory_of_someone_else(forged, canary, run_module, hostile_place, tmp_path):
    """The image is safe, but whose image stands at the path is for others to say."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for path in links(forged, hostile_place, elsewhere):
        result = run_module("qemu_restore", name=VM, path=str(path), remove_image=False)
        check_refused(result, "ImageUnsafeError", str(hostile_place), image=forged, canary=canary)
    # By its own path it is as safe as before.
    run_module("qemu_restore", name=VM, path=str(forged))
    assert canary.run


def test_link_of_someone_else_in_a_shared_directory(forged, canary, run_module, tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    link = shared / "link"
    link.symlink_to(forged.parent)
    os.lchown(link, STRANGER, -1)
    path = str(link / forged.name)
    result = run_module("qemu_restore", name=VM, path=path, remove_image=False)
    check_refused(result, "ImageUnsafeError", "symbolic link", str(link), image=forged, canary=canary)
    os.lchown(link, 0, -1)
    run_module("qemu_restore", name=VM, path=path, remove_image=False)
    assert canary.run


def test_safe_link_to_an_unsafe_image(forged, canary, run_module, hostile_place, tmp_path):
    hostile = hostile_place / "web1.save"
    shutil.copy(forged, hostile)
    hostile.chmod(0o600)
    link = tmp_path / "link.save"
    link.symlink_to(hostile)
    result = run_module("qemu_restore", name=VM, path=str(link), remove_image=False)
    check_refused(result, "ImageUnsafeError", str(hostile_place), image=hostile, canary=canary)


def test_links_without_end(run_module, tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    result = run_module("qemu_restore", name=VM, path=str(tmp_path / "a" / "web1.save"))
    assert result["error"] == "ImageAccessError", result["msg"]


@contextlib.contextmanager
def bind_mount(source, target):
    target.mkdir(exist_ok=True)
    subprocess.run(["mount", "--bind", source, target], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", target], check=True)


def test_bind_mounts(forged, canary, run_module, hostile_place, tmp_path):
    """What is mounted counts, and where it is mounted."""
    shutil.copy(forged, hostile_place / "web1.save")
    with bind_mount(hostile_place, tmp_path / "safe"):
        result = run_module("qemu_restore", name=VM, path=str(tmp_path / "safe" / "web1.save"), remove_image=False)
        check_refused(result, "ImageUnsafeError", str(tmp_path / "safe"), image=forged, canary=canary)
    with bind_mount(forged.parent, hostile_place / "mounted"):
        path = str(hostile_place / "mounted" / "web1.save")
        result = run_module("qemu_restore", name=VM, path=path, remove_image=False)
        check_refused(result, "ImageUnsafeError", str(hostile_place), image=forged, canary=canary)


def test_image_that_was_exchanged_between_two_looks(forged, forge, canary, tmp_path):
    """The command is that of the file which was found safe, not of one that was there before."""
    operation = RestoreOperation(RestoreRequest(name=VM, qmp_socket=None, path=str(forged), save_dir="/"))
    before = read_image_head(str(forged)).domain()
    assert asyncio.run(operation._how_to_launch(before, "pc")).argv[0] == str(canary.program)
    forge(argv=[QEMU, "-name", VM], executable=QEMU)
    with pytest.raises(ConflictError, match="replaced"):
        asyncio.run(operation._how_to_launch(before, "pc"))


@contextlib.contextmanager
def reachable_by_nobody(*places):
    """Let others look into these directories and those above them."""
    changed = []
    for place in places:
        for directory in (place, *place.parents):
            mode = stat.S_IMODE(directory.stat().st_mode)
            if mode & 0o005 != 0o005:
                directory.chmod(mode | 0o055)
                changed.append((directory, mode))
    try:
        yield
    finally:
        for directory, mode in changed:
            directory.chmod(mode)


#: A module that becomes nobody when it has read its code and its arguments, which are root's.
RUN_AS_NOBODY = [
    sys.executable,
    "-c",
    "import importlib, os, pwd, sys\n"
    "from ansible.module_utils import basic\n"
    "module = importlib.import_module(sys.argv[3])\n"
    "basic._ANSIBLE_ARGS, basic._ANSIBLE_PROFILE = open(sys.argv[4], 'rb').read(), 'legacy'\n"
    "entry = pwd.getpwnam('nobody')\n"
    "os.setgroups([]); os.setgid(entry.pw_gid); os.setuid(entry.pw_uid)\n"
    "module.main()\n",
]


def give_to_nobody(image):
    for path in (image.parent, *image.parent.iterdir()):
        os.chown(path, NOBODY, -1)


def test_command_recorded_as_roots_in_an_image_of_another_user(forge, canary, run_module, start_module):
    """Root does not run it; the user who owns the image gets what is theirs anyway: a process of their own."""
    image = forge(
        argv=[str(canary.program), "-name", VM, "-qmp", "unix:/x,server=on"],
        executable=str(canary.program),
        uid=0,
        gid=0,
        cwd="/",
    )
    give_to_nobody(image)
    result = run_module("qemu_restore", name=VM, path=str(image))
    check_refused(result, "ImageUnsafeError", f"user {NOBODY}", image=image, canary=canary)
    os.chown(canary.file.parent, NOBODY, -1)
    with reachable_by_nobody(image.parent, canary.file.parent):
        image.parent.chmod(0o700)
        prefix = ["env", f"XDG_STATE_HOME={image.parent / 'state'}", *RUN_AS_NOBODY]
        result = start_module("qemu_restore", name=VM, path=str(image), prefix=prefix).result()
        assert result["error"] == "NotVouchedError", result["msg"]
        assert start_module("qemu_save_image", path=str(image), vouch=True, prefix=prefix).result()["changed"]
        result = start_module("qemu_restore", name=VM, path=str(image), prefix=prefix).result()
    assert canary.run, result["msg"]
    assert canary.file.stat().st_uid == NOBODY


# --- what is run, and as what ---

STRANGE_WORDS = [
    "$(touch {0})",
    "`touch {0}`",
    "; touch {0};",
    "| touch {0}",
    "> {0}",
    "a b  c",
    " leading",
    "trailing ",
    "line\nbreak",
    "tab\there",
    "'quoted'",
    '"quoted"',
    "\\",
    "\\n",
    "",
    "*",
    "~",
    "$HOME",
    "${{IFS}}",
    "%s%n",
    "&&",
    "#",
    "ünïcödé 机",
    "\udcff\udcfe",  # bytes that are no text
    "\x01\x1b[31m\x7f",
    "<vmops:argument>&amp;]]>",
]


def test_words_are_run_as_they_are(forge, canary, run_module, tmp_path):
    """No shell comes between: neither when they are recorded, nor when they are run."""
    words = [word.format(tmp_path / "shell") for word in STRANGE_WORDS]
    argv = [str(canary.program), "-name", VM, "-qmp", "unix:/x,server=on"]
    for word in words:
        argv += ["-append", word]
    image = forge(argv=argv, executable=str(canary.program))
    run_module("qemu_restore", name=VM, path=str(image))
    pairs = list(zip(canary.words, canary.words[1:]))
    assert [value for option, value in pairs if option == "-append"] == words
    assert not (tmp_path / "shell").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["-incoming", "exec:touch {0}"],
        ["--incoming", "exec:touch {0}"],
        ["-incoming", "exec:touch {0}", "--incoming", "exec:touch {0}", "-incoming", "tcp:0.0.0.0:4444"],
        ["-incoming", '{{"channel-type":"main","addr":{{"transport":"exec","args":["/usr/bin/touch","{0}"]}}}}'],
        ["-name", "-incoming", "-append", "--incoming", "-incoming", "exec:touch {0}"],
        ["-S"],
        ["--S", "-S"],
        ["-loadvm", "snapshot"],
        ["-loadvm", "-incoming"],
        ["-daemonize"],
        ["--daemonize", "-S", "-incoming", "exec:touch {0}"],
        ["-S", "-incoming", "exec:touch {0}", "-loadvm", "-S", "-incoming"],
        ["-incoming"],
    ],
)
def test_nothing_but_how_it_starts_is_changed(forge, canary, run_module, words, tmp_path):
    file = tmp_path / "executed"
    start = [str(canary.program), "-name", VM, "-machine", "pc-i440fx-9.2", "-qmp", "unix:/x,server=on"]
    image = forge(argv=[*start, *(word.format(file) for word in words)], executable=str(canary.program))
    run_module("qemu_restore", name=VM, path=str(image))
    kept = ["-name", "-incoming", "-append", "--incoming"] if words[0] == "-name" else []
    machine = read_image_head(str(image)).domain().machine
    assert canary.words == [*start[1:], *kept, "-machine", machine, "-S", "-incoming", "defer"]
    assert not file.exists()


def wait_gone(pid):
    deadline = time.monotonic() + 20
    while pid in find_qemu_pids(VM):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def end_restored():
    """End what the tests of real QEMUs have restored."""
    yield
    for pid in find_qemu_pids(VM):
        os.kill(pid, signal.SIGKILL)
        wait_gone(pid)


def launch_of(image) -> Any:
    return read_image_head(str(image)).domain().launch


def recorded(image):
    return launch_of(image).argv


@pytest.mark.usefixtures("end_restored")
@pytest.mark.parametrize(
    "words",
    [
        ["-incoming", "exec:touch {0}"],
        ["--incoming", "exec:touch {0}"],
        ["-incoming", "exec:touch {0}", "-incoming", "exec:touch {0}"],
        ["-incoming", '{{"channel-type":"main","addr":{{"transport":"exec","args":["/usr/bin/touch","{0}"]}}}}'],
        ["-daemonize"],
        ["-S", "-loadvm", "nothing"],
        ["-only-migratable"],
        ["-fw_cfg", "name=opt/incoming,string=-incoming", "-fw_cfg", "name=opt/exec,string=exec:touch {0}"],
    ],
)
def test_real_qemu_loads_the_image_and_nothing_else(forge, saved, run_module, words, tmp_path):
    file = tmp_path / "executed"
    image = forge(argv=[*recorded(saved), *(word.format(file) for word in words)])
    result = run_module("qemu_restore", name=VM, path=str(image), state="paused")
    assert not result.get("failed"), result["msg"]
    assert result["vm"]["run_state"] == "paused"
    assert find_qemu_pids(VM) == [result["vm"]["pid"]]
    assert not file.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-incoming=exec:touch {0}"], "invalid option"),
        (["---incoming", "exec:touch {0}"], "invalid option"),
        (["-Incoming", "exec:touch {0}"], "invalid option"),
        (["-readconfig", "{0}.config"], "incoming"),
        (["-incoming exec:touch {0}"], "invalid option"),
    ],
)
def test_what_qemu_does_not_take_ends_it(forge, saved, run_module, words, said, tmp_path):
    file = tmp_path / "executed"
    Path(f"{file}.config").write_text(f'[incoming]\n  uri = "exec:touch {file}"\n')
    image = forge(argv=[*recorded(saved), *(word.format(file) for word in words)])
    result = run_module("qemu_restore", name=VM, path=str(image))
    check_refused(result, "LaunchError", said, image=image)
    assert not file.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-preconfig"], "-preconfig"),
        (["-snapshot"], "temporary file"),
        (["-add-fd", "fd=3,set=1"], "descriptor"),
    ],
)
def test_what_cannot_be_replayed_is_not_whatever_the_record_says(forge, canary, run_module, words, said):
    image = forge(argv=[str(canary.program), "-name", VM, *words], executable=str(canary.program), replayable=True)
    result = run_module("qemu_restore", name=VM, path=str(image))
    check_refused(result, "LaunchError", said, image=image, canary=canary)


def test_machine_type_of_a_forged_stream_adds_no_options(forge, canary, run_module, saved):
    """The machine type is read from the image and put on the command line, also on one that the operator gives."""
    for machine in ("pc,firmware=/x", "pc\n-incoming", "-S", "type=pc", "pc firmware=/x", "", "a" * 300 + "=b"):
        image = forge(machine=machine, argv=[str(canary.program), "-name", VM], executable=str(canary.program))
        for options in ({}, {"launch": "command", "command": [str(canary.program), "-name", VM]}):
            result = run_module("qemu_restore", name=VM, path=str(image), **options)
            assert result["error"] in ("LaunchError", "ImageFormatError"), result["msg"]
            assert "machine type" in result["msg"]
            assert not canary.run


# --- the program ---


@pytest.mark.parametrize(
    ("argv0", "executable", "said"),
    [
        ("/bin/sh", "/bin/sh", "is not a QEMU"),
        ("/usr/bin/env", "/usr/bin/env", "is not a QEMU"),
        (QEMU, "/bin/sh", "is not a QEMU"),
        ("qemu-system-x86_64", "/bin/sh", "is not a QEMU"),
        ("", "", "is not a QEMU"),
        ("qemu-system-x86_64", "qemu-system-x86_64", "not an absolute path"),
        ("./qemu-system-x86_64", "./qemu-system-x86_64", "not an absolute path"),
        ("x", "../bin/qemu-system-x86_64", "not an absolute path"),
        ("/nonexistent/qemu-system-x86_64", "/nonexistent/qemu-system-x86_64", "No such file"),
        ("qemu", "/nonexistent/qemu", "No such file"),
    ],
)
def test_program_that_is_no_qemu_of_this_hosts(forge, canary, run_module, argv0, executable, said):
    """Also not in the directory that is recorded, where a program of this name lies ready."""
    words = ["-c", f"touch {canary.file}", "-name", VM, "-qmp", "unix:/x,server=on"]
    image = forge(argv=[argv0, *words], executable=executable, cwd=str(canary.program.parent))
    result = run_module("qemu_restore", name=VM, path=str(image))
    check_refused(result, "LaunchError", said, image=image, canary=canary)


def test_name_without_a_path_is_the_program_that_ran(forge, canary, run_module, tmp_path):
    trap = make_canary(tmp_path / "trap")
    argv = ["qemu-system-x86_64", "-name", VM, "-qmp", "unix:/x,server=on"]
    image = forge(argv=argv, executable=str(canary.program), cwd=str(trap.program.parent))
    run_module("qemu_restore", name=VM, path=str(image))
    assert canary.run
    assert not trap.run


UNSAFE_PROGRAM = {
    "writable": lambda program: program.chmod(0o775),
    "of-another": chown,
    "directory-writable": lambda program: program.parent.chmod(0o777),
    "directory-of-another": lambda program: chown(program.parent),
    "acl": lambda program: grant(program, 0o7),
}


@pytest.mark.parametrize("spoil", UNSAFE_PROGRAM.values(), ids=UNSAFE_PROGRAM.keys())
@pytest.mark.parametrize("uid", [0, NOBODY])
def test_program_that_others_could_have_written(forged, forge, canary, run_module, spoil, uid):
    spoil(canary.program)
    image = forge(argv=[str(canary.program), "-name", VM], executable=str(canary.program), uid=uid)
    result = run_module("qemu_restore", name=VM, path=str(image))
    check_refused(result, "LaunchError", "others could have written its program", image=image, canary=canary)


def test_program_of_the_user_as_whom_it_runs(forge, canary, run_module):
    """It can do no more than this user could without it."""
    for path in (canary.program.parent, canary.program):
        os.chown(path, NOBODY, -1)
    argv = [str(canary.program), "-name", VM, "-qmp", "unix:/x,server=on"]
    image = forge(argv=argv, executable=str(canary.program), uid=NOBODY, cwd="/")
    with reachable_by_nobody(canary.program.parent):
        run_module("qemu_restore", name=VM, path=str(image))
    assert canary.file.stat().st_uid == NOBODY


PAUSE = """
.globl _start
_start:
    mov $34, %eax  # pause, on x86_64
    syscall
    jmp _start
"""


@pytest.fixture
def pretender(tmp_path):
    """Start a program that does nothing, as nobody, with words of one's choice, after a QEMU's name."""
    place = tmp_path / "pretender"
    place.mkdir()
    source, program = place / "pause.s", place / "pause"
    source.write_text(PAUSE)
    subprocess.run(["as", "--64", "-o", place / "pause.o", source], check=True)
    subprocess.run(["ld", "-o", program, place / "pause.o"], check=True)
    started = []

    def start(argv, mode, name):
        target = place / name
        shutil.copy(program, target)
        target.chmod(mode)
        code = "import os, sys; os.execv(sys.argv[1], sys.argv[2:])"
        command = [*AS_NOBODY, sys.executable, "-c", code, str(target), *argv]
        started.append(subprocess.Popen(command, stdin=subprocess.DEVNULL))
        pid = started[-1].pid
        wait_until(lambda: os.readlink(f"/proc/{pid}/exe") == str(target))

        def is_seen():
            doubtful = [process.pid for process in process_module.list_doubtful()]
            return pid in doubtful or pid in [process.pid for process in process_module.list_processes()]

        wait_until(is_seen)
        return pid

    with reachable_by_nobody(place):
        yield start
    for process in started:
        process.kill()
        process.wait()


def greets(path: Path) -> bool:
    """Whether a QEMU answers there."""
    try:
        Monitor(path).close()
    except MonitorError:
        return False
    return True


@pytest.mark.parametrize("trick", ["set-user-id", "run-with"])
def test_user_of_the_host_does_not_become_root_by_a_save(tmp_path, pretender, image, run_module, trick):
    """Root saves and restores all VMs; one is a user's, who says of a process what it is not.

    A QEMU of the user's answers; its program is not called as one, so that the words which are found by the name are
    those of another process. That one belongs to root by the set-user-ID bit of a program of root's, or says that it
    was started by root (-run-with user=), as whom it would be started again. It is none, or not the one that answers.
    """
    run = tmp_path / "run"
    run.mkdir()
    os.chown(run, NOBODY, -1)
    program = shutil.copy(QEMU, tmp_path / "program")
    firmware = ["-L", "/usr/share/qemu", "-L", "/usr/share/seabios"]
    qmp = f"unix:{run}/qmp,server=on,wait=off"
    quiet = ["-nodefaults", "-display", "none", "-machine", "pc", "-m", "16", "-S"]
    victim = tmp_path / "victim"
    argv = [QEMU, "-name", VM, "-qmp", qmp, *quiet, "-pidfile", str(victim)]
    if trick == "run-with":
        argv += ["-run-with", "user=nobody"]
    with reachable_by_nobody(run):
        server = subprocess.Popen([*AS_NOBODY, program, *firmware, "-name", VM, "-qmp", qmp, *quiet])
        try:
            wait_until(lambda: greets(run / "qmp"))
            if trick == "set-user-id":
                pid = pretender(argv, 0o4755, "login")
                assert os.stat(f"/proc/{pid}").st_uid == 0
            else:
                pid = pretender(argv, 0o755, "qemu-system-x86_64")
            refused = run_module("qemu_save", name=VM, path=str(image), format="raw")
            expected = {"set-user-id": "VmNotFoundError", "run-with": "MonitorForeignError"}
            assert refused["error"] == expected[trick], refused["msg"]
            assert f"pid {pid}" in refused["msg"]
            # By its socket it is saved, but which process answers there is not guessed.
            options = {"qmp_socket": str(run / "qmp"), "path": str(image), "format": "raw"}
            result = run_module("qemu_save", require_restorable=False, **options)
            assert not result.get("failed"), result["msg"]
            os.kill(pid, signal.SIGKILL)
        finally:
            server.kill()
            server.wait()
    result = run_module("qemu_restore", name=VM, path=str(image))
    check_refused(result, "LaunchError", "does not record how", image=image)
    assert not victim.exists()


def test_process_cannot_hide_its_user(pretender):
    """What /proc shows in its files is root's where a process may not be looked into; its directory tells the truth."""
    pid = pretender([QEMU, "-name", VM], 0o711, "qemu-system-x86_64")  # a program that may not be read
    assert os.stat(f"/proc/{pid}/fd").st_uid == 0
    process = process_module.read_process(pid)
    assert process is not None
    assert process.uid == NOBODY


# --- what it is given ---


@pytest.mark.usefixtures("end_restored")
def test_caller_passes_nothing_on(image, saved, forge, start_module, monkeypatch, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    for name in ("SSH_AUTH_SOCK", "AWS_SECRET_ACCESS_KEY", "ANSIBLE_VAULT_PASSWORD_FILE", "LD_LIBRARY_PATH", "IFS"):
        monkeypatch.setenv(name, "/nonexistent")
    forge()
    leak = ["sh", "-c", 'exec 8<"$0" 9>>"$0"; umask 0; exec "$@"', str(secret)]
    result = start_module("qemu_restore", name=VM, path=str(image), prefix=leak).result()
    assert not result.get("failed"), result["msg"]
    base = Path(f"/proc/{result['vm']['pid']}")
    variables = [entry.partition("=")[0] for entry in base.joinpath("environ").read_text().split("\0") if entry]
    assert sorted(variables) == ["LANG", "PATH"]
    assert str(secret) not in [os.readlink(entry) for entry in base.joinpath("fd").iterdir()]
    assert os.readlink(base / "cwd") == launch_of(saved).cwd


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o007])
def test_umask_is_the_saved_ones(make_guest, image, save, start_module, umask):
    """Who may use the monitor's socket is as it was, whatever umask the restore itself runs with."""
    guest = make_guest(start=False)
    before = os.umask(umask)
    try:
        guest.start()
    finally:
        os.umask(before)
    mode = stat.S_IMODE(guest.qmp_socket.stat().st_mode)
    assert mode == 0o777 & ~umask
    save(name=VM, path=str(image))
    start_module("qemu_restore", name=VM, path=str(image), prefix=["sh", "-c", 'umask 0; exec "$@"', "sh"]).result()
    assert guest.adopt_restarted()
    assert stat.S_IMODE(guest.qmp_socket.stat().st_mode) == mode


@pytest.mark.usefixtures("end_restored")
def test_without_a_recorded_umask_nobody_else_may_use_the_monitor(forge, saved, start_module):
    image = forge(umask="")
    prefix = ["sh", "-c", 'umask 0; exec "$@"', "sh"]
    result = start_module("qemu_restore", name=VM, path=str(image), prefix=prefix).result()
    assert not result.get("failed"), result["msg"]
    path = next(word for word in recorded(saved) if word.startswith("unix:"))[len("unix:") :].partition(",")[0]
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o755


def test_preloaded_library_is_not_passed_on(forge, canary, start_module):
    """A program of the linker's is run in every process that has LD_PRELOAD, before it begins."""
    canary.program.write_text(f"#!/bin/sh\nprintf 'LD_PRELOAD=%s\\0' \"$LD_PRELOAD\" >{canary.file}\n")
    image = forge(argv=[str(canary.program), "-name", VM, "-qmp", "unix:/x,server=on"], executable=str(canary.program))
    prefix = ["env", "LD_PRELOAD=libc.so.6"]
    start_module("qemu_restore", name=VM, path=str(image), prefix=prefix).result()
    assert canary.words == ["LD_PRELOAD="]


@pytest.mark.parametrize(
    ("cwd", "said"),
    [
        ("{0}/missing", "No such file"),
        ("{0}/save/web1.save", "Not a directory"),
        ("", "No such file"),
        ("/" + "d" * 300, "File name too long"),
    ],
)
def test_directory_that_is_not_there(forge, canary, run_module, tmp_path, cwd, said):
    argv = [str(canary.program), "-name", VM, "-qmp", "unix:/x,server=on"]
    image = forge(argv=argv, executable=str(canary.program), cwd=cwd.format(tmp_path))
    result = run_module("qemu_restore", name=VM, path=str(image))
    check_refused(result, "LaunchError", said, image=image, canary=canary)


@pytest.mark.parametrize("words", [["x" * 200_000], ["-append", "y" * 100_000] * 30], ids=["long", "many"])
def test_words_that_the_kernel_does_not_take(forge, canary, run_module, words):
    argv = [str(canary.program), "-name", VM, "-qmp", "unix:/x,server=on", *words]
    image = forge(argv=argv, executable=str(canary.program))
    result = run_module("qemu_restore", name=VM, path=str(image))
    check_refused(result, "LaunchError", "Argument list too long", image=image, canary=canary)


@pytest.mark.parametrize(
    "changes",
    [
        {"argv": ["{0}", "-name", VM, "-qmp", "unix:/x,server=on", "a\0b"]},
        {"argv": ["{0}", "-name", VM, "-qmp", "unix:/x\0y,server=on"]},
        {"argv": ["{0}\0x", "-name", VM, "-qmp", "unix:/x,server=on"], "executable": "{0}\0x"},
        {"cwd": "a\0b"},
    ],
    ids=["word", "socket", "program", "directory"],
)
def test_nul_in_what_is_recorded(forge, canary, run_module, changes):
    """XML cannot hold it, but base64 can."""
    values = {"argv": ["{0}", "-name", VM], "executable": "{0}", **changes}
    values["argv"] = [word.format(canary.program) for word in values["argv"]]
    values["executable"] = values["executable"].format(canary.program)
    image = forge(**values)
    result = run_module("qemu_restore", name=VM, path=str(image))
    check_refused(result, "ImageFormatError", "has a NUL in", image=image, canary=canary)
    assert "\0" not in result["msg"]


@pytest.mark.parametrize("uid", [2**31, 2**32 - 1, 2**32, 2**64])
@pytest.mark.parametrize("field", ["uid", "gid"])
def test_user_that_cannot_be(forge, canary, run_module, uid, field):
    argv = [str(canary.program), "-name", VM, "-qmp", "unix:/x,server=on"]
    image = forge(argv=argv, executable=str(canary.program), **{"uid": NOBODY, "gid": NOBODY, field: uid})
    result = run_module("qemu_restore", name=VM, path=str(image))
    # The last number of 32 bits and all beyond mean nobody to the kernel (chown's -1), or are cut to others.
    if uid < 2**32 - 1:
        assert result["error"] == "LaunchError", result["msg"]
        assert not canary.run or canary.file.stat().st_uid == uid
        assert image.exists()
    else:
        check_refused(result, "ImageFormatError", f"impossible {field}: {uid}", image=image, canary=canary)


# --- who answers ---


@pytest.mark.usefixtures("end_restored")
def test_someone_who_listens_at_the_socket_gets_nothing(image, saved, forge, run_module):
    """The image's descriptors hold the guest's memory: they go to the QEMU that was started, and to no other."""
    path = next(word for word in recorded(saved) if word.startswith("unix:"))[len("unix:") :].partition(",")[0]
    forge()
    greeting = (
        b'{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": ""}, "capabilities": []}}'
    )
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    heard = []
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()

    def serve():
        with contextlib.suppress(OSError):
            while True:
                client, _address = listener.accept()
                client.sendall(greeting + b"\r\n")
                heard.append(client.recv(65536))
                client.sendall(b'{"return": {}}\r\n')
                heard.append(client.recv(65536))
                client.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        result = run_module("qemu_restore", name=VM, path=str(image))
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
    assert not result.get("failed"), result["msg"]
    assert result["vm"]["pid"] in find_qemu_pids(VM)
    assert b"add-fd" not in b"".join(heard)


# --- what is left of it in logs and results ---


def log_of(image):
    return Path(f"{image}.log")


LOGS = {
    "link": lambda log, victim: log.symlink_to(victim),
    "second-name": lambda log, victim: os.link(victim, log),
    "fifo": lambda log, victim: os.mkfifo(log),
    "directory": lambda log, victim: log.mkdir(),
    "device": lambda log, victim: os.mknod(log, stat.S_IFCHR | 0o600, os.makedev(1, 5)),
}


@pytest.mark.parametrize("plant", LOGS.values(), ids=LOGS.keys())
@pytest.mark.parametrize("launch", ["recorded", "command"])
def test_planted_log(forged, canary, run_module, tmp_path, plant, launch):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    plant(log_of(forged), victim)
    command = {"command": [str(canary.program), "-qmp", "unix:/x,server=on"]} if launch == "command" else {}
    result = run_module("qemu_restore", name=VM, path=str(forged), launch=launch, **command)
    check_refused(result, "LaunchError", str(log_of(forged)), image=forged, canary=canary)
    assert victim.read_text() == "precious"


def test_log_is_its_owners_alone(forged, canary, run_module):
    log_of(forged).write_text("earlier\n")
    log_of(forged).chmod(0o644)
    with open(canary.program, "a") as program:
        program.write("echo said\n")
    result = run_module("qemu_restore", name=VM, path=str(forged))
    assert "said" in result["msg"]
    assert "earlier" not in result["msg"], "what an earlier one said is no reason for this failure"
    assert log_of(forged).read_text() == "earlier\nsaid\n"
    assert stat.S_IMODE(log_of(forged).stat().st_mode) == 0o600


SECRET = "hunter2hunter2"
WITH_SECRET = ["-object", f"secret,id=s0,data={SECRET}"]


@pytest.fixture
def host_log(tmp_path):
    """A list of what is written to the host's log, and a prefix for the module that shall write there."""
    received = []
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    place = tmp_path / "log"
    listener.bind(str(place))

    def serve():
        while True:
            data = listener.recv(1 << 20)
            if data == b"end":
                return
            received.append(data.decode(errors="replace"))

    thread = threading.Thread(target=serve)
    thread.start()
    # Mounted where only the module sees it, whether the host has such a socket or not.
    made = not os.path.lexists("/dev/log")
    if made:
        Path("/dev/log").touch()
    yield received, ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /dev/log && exec "$@"', str(place)]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        client.sendto(b"end", str(place))
    thread.join()
    listener.close()
    if made:
        os.unlink("/dev/log")


def test_secrets_of_a_command_are_in_no_result_and_no_log(make_guest, image, start_module, host_log):
    log, prefix = host_log
    guest = make_guest(extra_args=WITH_SECRET)
    continuity = Continuity(guest)
    xml = f"<domain type='qemu'><name>{VM}</name><devices><graphics passwd='{SECRET}'/></devices></domain>"
    runs: list[tuple[str, dict[str, Any]]] = [
        # From the mount namespace of the log, QEMU looks like one elsewhere.
        ("qemu_save", {"name": VM, "path": str(image), "domain_xml": xml, "require_restorable": False}),
        ("qemu_save_image_info", {"path": str(image), "stream": True, "verify": True}),
        ("qemu_save_image", {"path": str(image), "domain_xml": xml.replace("><devices", ">\n<devices")}),
        ("qemu_restore", {"path": str(image), "launch": "command", "command": guest.argv()}),
        ("qemu_save", {"name": VM, "path": str(image), "require_restorable": False}),
        ("qemu_restore", {"path": str(image), "launch": "command", "command": guest.argv()}),
    ]
    for module, options in runs:
        result = start_module(module, diff=True, prefix=prefix, **options).result()
        assert not result.get("failed"), result["msg"]
        assert SECRET not in json.dumps(result), module
    assert len([line for line in log if "Invoked with" in line]) == len(runs)
    assert SECRET not in "".join(log)
    assert stat.S_IMODE(log_of(image).stat().st_mode) == 0o600
    continuity.check()


def test_the_rest_of_a_command_is_seen(forge, canary, run_module):
    """Hidden are the words with secrets in them; the VM's name, which is a word too, is not."""
    image = forge()
    command = [str(canary.program), "-name", VM, *WITH_SECRET]
    result = run_module("qemu_restore", path=str(image), launch="command", command=command)
    shown = result["invocation"]["module_args"]["command"]
    assert shown[:-1] == command[:-1]
    assert "secret" not in shown[-1]
    assert VM in result["msg"]
    xml = f"<domain type='qemu'><name>{VM}</name></domain>"
    result = run_module("qemu_save_image", path=str(image), domain_xml=xml)
    assert result["invocation"]["module_args"]["domain_xml"] == xml


@pytest.mark.parametrize("launch", ["recorded", "command"])
def test_secrets_that_qemu_repeats_at_its_start_are_hidden(forge, saved, run_module, launch):
    """QEMU quotes the words that it does not like, and the message quotes QEMU."""
    argv = [*recorded(saved), "-object", f"secret,id=s0,data={SECRET},format=nonsense"]
    image = forge(argv=argv)
    command = {"command": argv} if launch == "command" else {}
    result = run_module("qemu_restore", path=str(image), launch=launch, **command)
    check_refused(result, "LaunchError", "nonsense", image=image)
    assert SECRET in log_of(image).read_text(), "QEMU did repeat it"
    assert SECRET not in json.dumps(result)


@pytest.mark.parametrize("launch", ["recorded", "command"])
def test_secrets_that_qemu_repeats_while_it_loads_are_hidden(forge, saved, run_module, tmp_path, launch):
    program = tmp_path / "qemu-system-x86_64"
    program.write_text(f'#!/bin/sh\necho "$@" >&2\nexec {QEMU} "$@"\n')
    program.chmod(0o755)
    argv = [str(program), *recorded(saved)[1:], *WITH_SECRET]
    image = forge(argv=argv, executable=str(program))
    image.write_bytes(image.read_bytes()[:-100_000])
    command = {"command": argv} if launch == "command" else {}
    result = run_module("qemu_restore", path=str(image), launch=launch, verify="none", **command)
    check_refused(result, "MigrationError", "QEMU said", image=image)
    assert SECRET in log_of(image).read_text()
    assert SECRET not in json.dumps(result)


# --- words of others in messages ---

TRICKS = "a\nTASK [all is well]\r\x1b[31m\x1b]0;title\x07\x7f\x85\u202egnp"


def check_plain(result):
    """No text for people has a character that breaks a line, moves a cursor, or turns the text around."""
    for text in (result["msg"], result.get("cure", ""), result.get("guest_state", ""), *result.get("warnings", [])):
        assert text.isprintable(), text


def test_names_in_images_forge_no_lines(run_module, tmp_path):
    image = tmp_path / "web1.save"
    name = "".join(f"&#{ord(character)};" for character in TRICKS if character not in "\x1b\x07")
    xml = f"<domain type='qemu'><name>{name}</name></domain>\0".encode()
    image.write_bytes(struct.pack("=16s6I52x", b"LibvirtQemudSave", 2, 65444, 1, 0, 0, 0) + xml.ljust(65444, b"\0"))
    for module, options in [
        ("qemu_restore", {"name": VM}),
        ("qemu_restore", {}),
        ("qemu_save", {"name": VM}),
        ("qemu_save_image_info", {}),
        ("qemu_save_image", {"vm_state": "paused"}),
    ]:
        result = run_module(module, path=str(image), **options)
        check_plain(result)
    assert run_module("qemu_save_image_info", path=str(image))["image"]["name"].startswith("a\nTASK"), "data is exact"


def test_names_of_vms_and_paths_forge_no_lines(make_guest, run_module, tmp_path):
    guest = make_guest(start=False, extra_args=["-name", f"guest={TRICKS}"])
    guest.start()
    place = tmp_path / f"dir{TRICKS}"
    place.mkdir()
    xml = f"<domain type='qemu'><name>{VM}</name></domain>"
    for options in (
        {"qmp_socket": str(guest.qmp_socket), "path": str(place / "x.save")},
        {"qmp_socket": str(guest.qmp_socket), "path": str(place / "x.save"), "domain_xml": xml},
        {"qmp_socket": str(guest.qmp_socket), "path": str(place / "missing" / "x.save")},
        {"qmp_socket": str(place / "missing.sock"), "path": str(place / "x.save")},
        {"name": VM, "qmp_socket": str(guest.qmp_socket), "path": str(place / "x.save")},
        {"name": TRICKS + "none"},
    ):
        result = run_module("qemu_save", **options)
        assert result["failed"]
        check_plain(result)
    assert guest.alive()


def test_lines_of_qemu_are_one_in_the_message(forged, canary, run_module):
    with open(canary.program, "a") as program:
        program.write(r"printf 'one\n\n  two\r\n\033[31mthree\n'")
    result = run_module("qemu_restore", name=VM, path=str(forged))
    assert r"one; two; \x1b[31mthree" in result["msg"]
    check_plain(result)
