# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which QEMUs are meant by a name, a UUID, a unit or a process id, and what tells those of one name apart."""

from __future__ import annotations

import os

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._errors import MismatchError, RequestError
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import systemd
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.configuration import Configuration
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import QemuProcess
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.selection import (
    Selection,
    distinct_names,
    own_name,
    parse_uuid,
)
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.vm import RunningVm

ME, NOBODY = os.geteuid(), 165534
ONE = "1b4e28ba-2fa1-41d2-883f-b9a761bde3fb"
OTHER = "6fa459ea-ee8a-4ca4-894e-db77e160355e"
ZEROS = "00000000-0000-0000-0000-000000000000"


def qemu(pid: int, name: str = "", uuid: str = "", uid: int = ME, socket: str = "") -> QemuProcess:
    words = ["qemu", *(["-uuid", uuid] if uuid else ()), *(["-qmp", f"unix:{socket},server=on"] if socket else ())]
    return QemuProcess(
        pid, name, tuple(words), "/", "/usr/bin/qemu", uid, uid, configuration=Configuration((), tuple(words))
    )


def found(selection: Selection, *processes: QemuProcess) -> list[int]:
    return [process.pid for process in selection.find(processes)]


# --- what is asked for ---


@pytest.mark.parametrize("text", [ONE, ONE.upper(), ONE.replace("-", ""), f" {ONE}"])
def test_spellings_of_a_uuid(text):
    assert parse_uuid(text) == ONE
    assert Selection.of(None, text, None, None).uuid == ONE


@pytest.mark.parametrize("text", ["web1", ONE[:-1], f"{ONE}0", ONE.replace("a", "g"), ZEROS, ZEROS.replace("-", "")])
def test_what_is_no_uuid(text):
    assert parse_uuid(text) == ""
    with pytest.raises(RequestError, match="is not the uuid of a VM"):
        Selection.of(None, text, None, None)


def test_spellings_of_a_unit():
    assert Selection.of(None, None, "qemu@web1", None).unit == "qemu@web1.service"
    assert Selection.of(None, None, "session-3.scope", None).unit == "session-3.scope"
    for name in ("../web1", "a/b.service", "-x", " "):
        with pytest.raises(RequestError, match="is not the name of a systemd unit"):
            Selection.of(None, None, name, None)


@pytest.mark.parametrize("pid", [0, -1])
def test_what_is_no_process_id(pid):
    with pytest.raises(RequestError, match="is not the id of a process"):
        Selection.of(None, None, None, pid)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        (ONE.upper(), Selection(uuid=ONE)),
        ("qemu@web1.service", Selection(unit="qemu@web1.service")),
        ("web1", Selection("web1")),
        ("a b/c.service", Selection("a b/c.service")),
    ],
)
def test_words_of_a_list(word, expected):
    assert Selection.of_word(word) == expected


# --- which are meant ---


def test_all_that_is_given_must_be_true():
    processes = qemu(1, "web1", ONE), qemu(2, "web1", OTHER), qemu(3, "web2", ONE), qemu(4, "web1")
    assert found(Selection("web1"), *processes) == [1, 2, 4]
    assert found(Selection("web1", ONE), *processes) == [1]
    assert found(Selection(uuid=ONE), *processes) == [1, 3]
    assert found(Selection("web1", pid=4), *processes) == [4]
    assert found(Selection("web1", pid=3), *processes) == []


def test_zeros_are_no_uuid():
    assert qemu(1, "web1", ZEROS).uuid == ""


def test_vm_without_a_name_has_any_unless_one_has_it():
    assert found(Selection("web1", ONE), qemu(1, "", ONE)) == [1]
    # Another user's may leave its name out as it likes.
    assert found(Selection("web1", ONE), qemu(1, "", ONE), qemu(2, "web1", ONE)) == [2]
    assert found(Selection("web1"), qemu(1, "", ONE)) == []


def test_unit_is_what_the_kernel_says(monkeypatch):
    units = {1: "qemu@web1.service", 2: "user@1000.service"}
    monkeypatch.setattr(systemd, "unit_of_process", lambda pid: units.get(pid, ""))
    processes = qemu(1, "web1"), qemu(2, "web1"), qemu(3, "web1")
    assert found(Selection(unit="qemu@web1.service"), *processes) == [1]
    assert found(Selection("web2", unit="qemu@web1.service"), *processes) == []


def vm(process: QemuProcess | None, name: str = "web1", uuid: str = ONE) -> RunningVm:
    return RunningVm(name, uuid, "running", 0, 1, "pc", "x86_64", "tcg", process)


def test_vm_that_answers_must_be_the_one_that_is_meant(monkeypatch):
    monkeypatch.setattr(systemd, "unit_of_process", lambda pid: "a.service")
    here = qemu(7, "web1", ONE)
    Selection("web1", ONE, "a.service", 7).require(vm(here), "/qmp")
    Selection("web1").require(vm(here, name=""), "/qmp")
    for selection, said in (
        (Selection("web2"), "runs web1, not web2"),
        (Selection(uuid=OTHER), f"has the uuid {ONE}, not {OTHER}"),
        (Selection(unit="b.service"), "is in the unit a.service, not b.service"),
        (Selection(pid=8), "has the pid 7, not 8"),
    ):
        with pytest.raises(MismatchError, match=said):
            selection.require(vm(here), "/qmp")
    # What is not known is not taken for it.
    with pytest.raises(MismatchError, match="is not known, not 7"):
        Selection(pid=7).require(vm(None), "/qmp")


# --- what tells them apart ---


def test_name_that_no_other_has_is_enough():
    assert distinct_names([qemu(1, "web1", ONE), qemu(2, "web2", OTHER)]) == {1: "web1", 2: "web2"}


def test_vms_of_one_name():
    twins = qemu(1, "web1", ONE), qemu(2, "web1", OTHER), qemu(3, "web1", socket="/a"), qemu(4, "web1", socket="/b")
    names = distinct_names(twins)
    assert (names[1], names[2]) == (f"web1-{ONE}", f"web1-{OTHER}")
    assert len({names[3], names[4], "web1", ""}) == 4
    assert names[3] == own_name(qemu(9, "web1", socket="/a"))
    assert all(len(names[pid]) == len("web1-") + 8 for pid in (3, 4))


def test_vms_without_a_name():
    assert distinct_names([qemu(1, "", ONE), qemu(2), qemu(3, socket="/a")]) == {1: ONE, 2: "", 3: ""}


def test_vms_that_nothing_tells_apart():
    assert distinct_names([qemu(1, "web1", ONE), qemu(2, "web1", ONE)]) == {1: "", 2: ""}


@pytest.mark.skipif(ME == NOBODY, reason="another user is needed")
def test_another_users_vm_takes_no_name_away():
    names = distinct_names([qemu(1, "web1", ONE, NOBODY), qemu(2, "web1", ONE), qemu(3, f"web1-{OTHER}", uid=NOBODY)])
    assert names == {1: f"web1-{ONE}", 2: "web1", 3: f"web1-{OTHER}"}
    assert distinct_names([qemu(1, "", ONE, NOBODY), qemu(2, "", ONE)]) == {1: "", 2: ONE}
