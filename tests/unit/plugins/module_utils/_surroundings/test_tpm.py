# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How the recorded server of a TPM is started again: by its words, as its user, and only where it is a swtpm."""

from __future__ import annotations

import os

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.tpm import TpmServer

CAPABILITIES = "permitted=0 inheritable=0 bounding=0 ambient=0"


@pytest.fixture
def server(tmp_path):
    """A recorded one, with these words."""
    program = tmp_path / "swtpm"
    program.touch(mode=0o700)

    def make(*words, **fields):
        known = {"uid": os.geteuid(), "gid": os.getegid(), "capabilities": CAPABILITIES, "cwd": "/vm"}
        argv = ("swtpm", "socket", *words)
        return TpmServer(**{"path": "/vm/s", "argv": argv, "executable": str(program), **known, **fields})

    return make


@pytest.mark.parametrize("word", ["--daemon", "-d"])
def test_stays_in_the_foreground(server, tmp_path, word):
    """Else nobody would see its end."""
    how = server("--tpm2", word, "--terminate").launch()
    assert how.argv == (str(tmp_path / "swtpm"), "socket", "--tpm2", "--terminate")
    assert how.cwd == "/vm"


@pytest.mark.parametrize("words", [["--runas", "tss"], ["-r", "tss"], ["--runas=tss"]])
def test_change_of_user_is_left_out(server, words):
    """Only root could execute it; it is started as that user instead."""
    assert server("--tpm2", *words, uid=os.geteuid() or 65534).launch().argv[1:] == ("socket", "--tpm2")


@pytest.mark.parametrize(
    ("words", "directory"),
    [
        (["--tpmstate", "dir=/var/lib/tpm,mode=0600"], "/var/lib/tpm"),
        (["--tpmstate", "dir=tpm"], "/vm/tpm"),
        (["--tpmstate=dir=/t"], "/t"),
        (["--tpmstate", "backend-uri=dir:///t"], "/t"),
        (["--tpmstate", "backend-uri=file:///t/state"], ""),
        ([], ""),
    ],
)
def test_directory_of_its_state(server, words, directory):
    assert server(*words).state_directory == directory


@pytest.mark.parametrize(
    "fields",
    [
        {"executable": "/usr/bin/env"},
        {"executable": "swtpm"},
        {"executable": "/no/such/swtpm"},
        {"reason": "it is not known who serves it"},
        {"argv": ()},
        {"groups": "root"},
        {"capabilities": "all"},
    ],
)
def test_what_is_not_started(server, fields):
    with pytest.raises(ValueError, match=r".+"):
        server(**fields).launch()


def test_program_that_others_could_have_written(server, tmp_path):
    (tmp_path / "swtpm").chmod(0o777)
    with pytest.raises(ValueError, match="others could have written"):
        server().launch()
