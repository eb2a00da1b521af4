# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The texts that change a unit; what systemd makes of them is seen in tests/functional/units, where it runs."""

from __future__ import annotations

import dataclasses
import os
import shutil

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._errors import UnitError
from ansible_collections.vmops.qemu.plugins.module_utils._image.names import SUFFIXES, all_forms
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import systemd
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import unit as unit_module
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.launch import Launch, LaunchedProcess
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.rights import Capabilities, Rights
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.systemd import StartCommand
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.unit import (
    choose_launch,
    guard_text,
    require_guardable,
    restore_text,
)

QEMU = "/usr/bin/qemu-system-x86_64"
ARGV = (QEMU, "-name", "web1", "-S", "-incoming", "defer")


@pytest.fixture
def at_root(monkeypatch):
    """Images on the root file system."""
    monkeypatch.setattr(unit_module, "mount_point", lambda _directory: "/")


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and not line.startswith("#")]


# --- the guard ---


def test_guard(at_root):
    assert lines(guard_text(["/var/lib/x/web1.save", "/var/lib/x/web1.save.tar.zst"])) == [
        "[Unit]",
        "ConditionPathExists=!/var/lib/x/web1.save",
        "ConditionPathExists=!/var/lib/x/web1.save.tar.zst",
        "[Service]",
        'ExecCondition=+"/bin/sh" "-c" "for image; do test ! -e \\x22$$image\\x22 || exit 1; done" "sh"'
        ' "/var/lib/x/web1.save" "/var/lib/x/web1.save.tar.zst"',
    ]


def test_guard_looks_for_every_form_of_the_image(at_root):
    forms = all_forms("/var/lib/x/web1.save")
    assert len(forms) == 1 + len(SUFFIXES)
    text = guard_text(forms)
    assert all(f"ConditionPathExists=!{form}\n" in text and f' "{form}"' in text for form in forms)


def test_guard_of_another_file_system(monkeypatch):
    monkeypatch.setattr(unit_module, "mount_point", lambda _directory: "/srv/sa-ve")
    found = lines(guard_text(["/srv/sa-ve/x/web1.save"]))
    assert found[:5] == [
        "[Unit]",
        r"Wants=srv-sa\x2dve.mount",
        r"After=srv-sa\x2dve.mount",
        "ConditionPathIsMountPoint=/srv/sa-ve",
        "ConditionPathExists=!/srv/sa-ve/x/web1.save",
    ]
    # With those, the VM would be stopped with the mount.
    assert not any(line.startswith(("Requires", "BindsTo")) for line in found)


@pytest.mark.parametrize("name", ["a b", "50%", "q'u\"o"])
def test_guard_of_an_odd_path(at_root, name):
    assert f"ConditionPathExists=!/x/{name.replace('%', '%%')}\n" in guard_text([f"/x/{name}"])


@pytest.mark.parametrize("name", ["new\nline", "end ", "end\\", "\x85", "\udcff"])
def test_guard_of_a_path_that_fits_in_no_line(at_root, name):
    """Then the command alone looks for it, in whose words there may be anything."""
    text = guard_text([f"/x/{name}"])
    assert "ConditionPathExists" not in text
    assert len(lines(text)) == 3
    text.encode("ascii")


def test_guard_without_links_on_the_way(at_root, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    path = f"{tmp_path}/real/web1.save"
    assert f"ConditionPathExists=!{path}\n" in guard_text([f"{tmp_path}/link/web1.save"])


def test_only_root_can_guard(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(UnitError, match=r"Only root may keep qemu@web1\.service from starting"):
        require_guardable("qemu@web1.service")
    with pytest.raises(UnitError, match="not the name of a systemd unit"):
        require_guardable("../qemu.service")


# --- the restore's own start ---


def loaded(service_type="simple", **facts):
    words = "Id=a.service\nLoadState=loaded\nActiveState=inactive\n"
    return dataclasses.replace(systemd.parse_units(words)[0], service_type=service_type, **facts)


def restored(argv=ARGV, service_type="simple", own=None, cwd="/", rights=None, **facts):
    how = Launch(argv=tuple(argv), cwd=cwd, rights=rights)
    return lines(restore_text(how, loaded(service_type, **facts), own or StartCommand(QEMU, "")))


def test_start_of_a_restore():
    assert restored() == [
        "[Service]",
        "Restart=no",
        "ExecStart=",
        f'ExecStart="{QEMU}" "-name" "web1" "-S" "-incoming" "defer"',
    ]


@pytest.mark.parametrize(
    ("service_type", "changed"),
    [
        ("simple", False),
        ("exec", False),
        ("idle", False),
        ("notify", True),
        ("dbus", True),
        ("oneshot", True),
        ("forking", True),
    ],
)
def test_types(service_type, changed):
    assert ("Type=simple" in restored(service_type=service_type)) == changed


def test_qemu_that_goes_into_the_background_stays_a_forking_service():
    found = restored([*ARGV[:3], "-daemonize", *ARGV[3:]], "forking")
    assert not any(line.startswith("Type=") for line in found)
    assert '"-daemonize"' in found[-1]


def test_prefix():
    assert restored(own=StartCommand(QEMU, "+"))[-1].startswith(f'ExecStart=+"{QEMU}"')


@pytest.mark.parametrize(
    ("own", "start"),
    [
        (StartCommand(QEMU, "", (QEMU,)), f'"{QEMU}"'),
        (StartCommand(QEMU, "+", (QEMU,), expands=False), f'+:"{QEMU}"'),
        (StartCommand(QEMU, "!", ("vm",)), f'!@"{QEMU}" "vm"'),
    ],
)
def test_units_own_words_are_left_to_systemd(own, start):
    """Variables are expanded by it, and specifiers were."""
    words = (own.words[0], "$MORE", "a=${B}%i$$", "-S")
    how = Launch(argv=ARGV, cwd="/srv", unit_argv=words)
    found = lines(restore_text(how, loaded(), own))
    assert found[-1] == f'ExecStart={start} "$MORE" "a=${{B}}%%i$$" "-S"'
    assert not any(line.startswith("WorkingDirectory") for line in found)


def test_program_that_becomes_qemu_does_not_give_it_more():
    """The unit's user is root, whom its script was told to give up."""
    sets = Capabilities(0, 0, 0b111, 0)
    own = StartCommand("/usr/local/bin/start-vm", "", bounding=0b111)
    rights = Rights(65534, 65534, (12,), no_new_privileges=True, capabilities=sets)
    command = restored(own=own, cwd="/srv", rights=rights)[-1]
    setpriv = shutil.which("setpriv")
    assert command.startswith(
        f'ExecStart="{setpriv}" "--reuid=65534" "--regid=65534" "--groups=12" "--no-new-privs" "--" '
    )
    assert f'"--chdir=/srv" "{setpriv}" "--" "{QEMU}"' in command
    its_own = restored(own=own, cwd="/srv", rights=rights, user="65534", no_new_privileges=True)
    assert "setpriv" not in its_own[-1]
    assert "WorkingDirectory=/srv" in its_own


def test_user_of_a_unit():
    own = StartCommand(QEMU, "")
    assert unit_module.start_user(loaded(), own) == 0
    assert unit_module.start_user(loaded(user="nobody"), own) == 65534
    assert unit_module.start_user(loaded(user="1234"), own) == 1234
    assert unit_module.start_user(loaded(user="nobody"), StartCommand(QEMU, "+")) == 0
    assert unit_module.start_user(loaded(user="no such user"), own) is None
    assert unit_module.start_user(loaded(dynamic_user=True), own) is None


def test_program_that_becomes_qemu_may_have_gone_elsewhere():
    own = StartCommand("/usr/local/bin/start-vm", "")
    assert "WorkingDirectory=/srv/100%%" in restored(own=own, cwd="/srv/100%")
    assert not any(line.startswith("WorkingDirectory") for line in restored(cwd="/srv"))
    daemon = restored([*ARGV, "-daemonize"], "forking", own)
    assert not any(line.startswith("WorkingDirectory") for line in daemon)


# --- who starts it ---


@pytest.mark.parametrize(
    "how",
    [
        Launch(argv=(QEMU, "\udcff")),
        Launch(argv=ARGV, cwd="/srv/\udcff"),
    ],
    ids=["argument", "directory"],
)
def test_what_systemd_does_not_take_is_started_without_it(monkeypatch, how):
    monkeypatch.setattr(systemd, "is_running", lambda: True)
    assert isinstance(choose_launch(how, "/x.log", "web1"), LaunchedProcess)


def test_who_starts_a_command(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    for running, kind in ((False, "LaunchedProcess"), (True, "LaunchedTransientUnit")):
        monkeypatch.setattr(systemd, "is_running", lambda running=running: running)
        assert type(choose_launch(Launch(argv=ARGV), "/x.log", "web1")).__name__ == kind
    assert type(choose_launch(Launch(argv=ARGV, unit="a.service"), "/x.log", "a")).__name__ == "LaunchedService"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert type(choose_launch(Launch(argv=ARGV), "/x.log", "web1")).__name__ == "LaunchedProcess"


@pytest.mark.parametrize("name", ["web1", "a b", "é" * 100, "-", "\n"])
def test_name_of_the_transient_unit(name):
    unit = unit_module._transient_name(name)
    assert unit.startswith("vmops-qemu-")
    assert systemd.is_unit_name(unit)
