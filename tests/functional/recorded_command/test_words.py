# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The recorded words are run as they are: no shell reads them, and nothing but how QEMU starts is changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_file import read_image_head

from support import find_qemu_pids
from support.canary import check_refused
from support.observe import VM

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of other users")

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
def test_real_qemu_loads_the_image_and_nothing_else(forge, saved_launch, run_module, words, tmp_path):
    file = tmp_path / "executed"
    image = forge(argv=[*saved_launch.argv, *(word.format(file) for word in words)])
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
def test_what_qemu_does_not_take_ends_it(forge, saved_launch, run_module, words, said, tmp_path):
    file = tmp_path / "executed"
    Path(f"{file}.config").write_text(f'[incoming]\n  uri = "exec:touch {file}"\n')
    image = forge(argv=[*saved_launch.argv, *(word.format(file) for word in words)])
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
