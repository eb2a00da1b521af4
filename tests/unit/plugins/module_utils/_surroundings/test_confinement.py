# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What this host's kernel does not have (security modules, tap interfaces), or does not say; the rest is in
tests/security."""

from __future__ import annotations

import os

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._bounded_read import read_bounded
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import systemd
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.configuration import read_configuration
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import QemuProcess
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.rights import Capabilities, Rights
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.unit import VmUnit
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings import confinement
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.confinement import confinement_problems

NO_UNIT = VmUnit("", "it runs in no systemd unit")
NONE = Capabilities(0, 0, 0, 0)


def process(*words, rights=None, pid=0):
    argv = ("/usr/bin/qemu-system-x86_64", "-no-user-config", *words)
    return QemuProcess(
        pid=pid,
        name="web1",
        argv=argv,
        cwd="/",
        executable=argv[0],
        uid=0,
        gid=0,
        rights=rights or Rights(0, 0, (), capabilities=NONE),
        configuration=read_configuration(argv),
    )


def kinds(*words, unit=NO_UNIT, **options):
    found = confinement_problems(process(*words, **options), unit)
    return [(problem.kind, problem.blocks) for problem in found]


@pytest.mark.parametrize(
    ("own", "others", "explained"),
    [
        ("unconfined", "unconfined", True),
        ("vm (enforce)", "unconfined", False),
        ("vm (complain)", "vm (complain)", True),
        ("/usr/bin/qemu-system-x86_64 (enforce)", "unconfined", True),
        ("system_u:system_r:svirt_t:s0:c1,c2", "system_u:system_r:init_t:s0", False),
        ("unconfined_u:unconfined_r:unconfined_t:s0", "system_u:system_r:init_t:s0", True),
        ("", "", True),
    ],
)
def test_label_of_a_security_module(monkeypatch, own, others, explained):
    monkeypatch.setattr(confinement, "_label", lambda pid: own if pid == 0 else others)
    monkeypatch.setattr(os, "readlink", lambda path: "/usr/bin/qemu-system-x86_64")
    assert kinds() == ([] if explained else [("security_label", True)])
    assert kinds(unit=VmUnit("a.service", "")) == [], "which gives it again"


FILTERS = [
    ([], 0, 0, True),
    ([], 1, 0, False),
    ([], 1, 1, True),
    (["-sandbox", "on"], 1, 0, True),
    (["-sandbox", "on"], 0, 0, True),
    (["-sandbox", "enable=on,spawn=deny"], 2, 1, True),
    (["-sandbox", "on"], 2, 0, False),
    (["-sandbox", "off"], 1, 0, False),
    (["-name", "-sandbox", "on"], 1, 0, False),
    ([], None, 0, False),
    ([], None, None, True),
    (["-sandbox", "on"], None, 0, True),
]


@pytest.mark.parametrize(("words", "filters", "starters", "explained"), FILTERS)
def test_filters(monkeypatch, words, filters, starters, explained):
    monkeypatch.setattr(confinement, "read_rights", lambda _pid: Rights(0, 0, (), filters=starters))
    rights = Rights(0, 0, (), capabilities=NONE, filters=filters)
    assert kinds(*words, rights=rights) == ([] if explained else [("seccomp_filter", True)])


def test_filters_of_a_unit_with_a_script():
    rights = Rights(0, 0, (), capabilities=NONE, filters=9)
    facts = systemd.parse_units("Id=a.service\nSystemCallFilter=~\nRestrictNamespaces=no\nRestrictRealtime=yes\n")[0]
    assert kinds(rights=rights, unit=VmUnit("a.service", "", "/bin/start-vm", facts=facts)) == []
    facts = systemd.parse_units("Id=a.service\nSystemCallFilter=~\nRestrictNamespaces=no\n")[0]
    unit = VmUnit("a.service", "", "/bin/start-vm", facts=facts)
    assert kinds(rights=rights, unit=unit) == [("seccomp_filter", True)]


def test_groups_that_another_user_cannot_give(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(confinement, "read_rights", lambda _pid: Rights(1000, 1000, (4, 20)))
    for groups, found in (((4, 20), []), ((4,), [("groups", False)])):
        assert kinds(rights=Rights(1000, 1000, groups, capabilities=NONE)) == found


def test_capabilities_that_are_not_ambient(monkeypatch):
    monkeypatch.setattr(confinement, "_directory_problems", lambda *_words: [])
    assert kinds(rights=Rights(1, 1, (), capabilities=Capabilities(6, 6, 7, 6))) == []
    assert kinds(rights=Rights(1, 1, (), capabilities=Capabilities(6, 6, 7, 2))) == [("capabilities", False)]


def test_kernel_that_says_nothing():
    silent = process()
    found = confinement_problems(QemuProcess(**{**vars(silent), "rights": None}), NO_UNIT)
    assert [problem.kind for problem in found] == ["process_unknown"]


@pytest.mark.parametrize(
    ("flags", "owner", "group", "said"),
    [
        ("0x1802", -1, -1, ""),
        ("0x1802", 65534, -1, ""),
        ("0x1802", -1, 12, ""),
        ("0x1802", 0, -1, "the network interface tap0"),
        ("0x1802", -1, 13, "the network interface tap0"),
        ("0x1002", 65534, -1, "the network interface tap0, which goes with QEMU"),
        (None, None, None, "the network interface tap0, which goes"),
    ],
)
def test_tap_interface(monkeypatch, flags, owner, group, said):
    read = read_bounded
    values = {"tun_flags": flags, "owner": owner, "group": group}

    def answer(path, limit):
        if path.startswith("/sys/class/net/tap0/"):
            value = values[os.path.basename(path)]
            if value is None:
                raise FileNotFoundError
            return f"{value}\n".encode()
        return read(path, limit)

    monkeypatch.setattr(confinement, "read_bounded", answer)
    monkeypatch.setattr(confinement, "read_proc", lambda _pid, name: b"iff:\ttap0\n" if name == "fdinfo/0" else b"")
    rights = Rights(65534, 65534, (12,), capabilities=NONE)
    found = confinement._missing_interfaces(process(pid=os.getpid()), rights)
    assert [text[: len(said)] for text in found] == ([said] if said else [])


def test_scripts_of_interfaces():
    rights = Rights(65534, 65534, ())
    for argument, count in (
        ("tap,id=n0", 1),
        ("tap,id=n0,script=/x", 1),
        ("tap,id=n0,script=no", 0),
        ("tap,id=n0,fd=3", 0),
        ("user,id=n0", 0),
    ):
        assert len(confinement._missing_interfaces(process("-netdev", argument), rights)) == count
