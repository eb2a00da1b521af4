# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How systemd is told to start a QEMU; what it makes of that is seen in tests/functional/units, where it runs."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import shutil
import subprocess

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._errors import LaunchError
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import manager, systemd, unit_launch
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.launch import Launch, LaunchedProcess
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.manager import HOST, Manager
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.rights import Capabilities, Rights
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.systemd import StartCommand
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.unit_launch import (
    LaunchedService,
    LaunchedTransientUnit,
    _transient_name,
    choose_launch,
    restore_text,
)

QEMU = "/usr/bin/qemu-system-x86_64"
ARGV = (QEMU, "-name", "web1", "-S", "-incoming", "defer")


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and not line.startswith("#")]


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
    monkeypatch.setattr(manager, "starter", lambda: (HOST, 1))
    assert isinstance(choose_launch(how, "web1"), LaunchedProcess)


def test_who_starts_a_command(monkeypatch):
    names = {None: "", (HOST, 1): "vmops-qemu-web1.service", (Manager(7), 42): "user@7.service/vmops-qemu-web1.service"}
    for found, name in names.items():
        monkeypatch.setattr(manager, "starter", lambda found=found: found)
        launched = choose_launch(Launch(argv=ARGV), "web1")
        assert type(launched).__name__ == ("LaunchedTransientUnit" if found else "LaunchedProcess")
        assert getattr(launched, "name", "") == name
    assert type(choose_launch(Launch(argv=ARGV, unit="a.service"), "a")).__name__ == "LaunchedService"


@pytest.mark.parametrize("name", ["web1", "a b", "é" * 100, "-", "\n"])
def test_name_of_the_transient_unit(name):
    unit = _transient_name(name)
    assert unit.startswith("vmops-qemu-")
    assert manager.is_unit_name(unit)


# --- what is ended ---


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """In the place of systemd's tools: each does what its file there says, and notes its words in ``told``."""
    monkeypatch.setitem(manager._ENVIRONMENT, "PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name in ("systemctl", "systemd-run"):
        tool = tmp_path / name
        tool.write_text(f'#!/bin/sh\necho "{name} $*" >>{tmp_path}/told\n. {tmp_path}/{name}.does\n')
        tool.chmod(0o755)
        (tmp_path / f"{name}.does").write_text("")
    return tmp_path


@pytest.fixture
def process():
    """A process with these words."""
    started = []

    def start(*words):
        started.append(subprocess.Popen(["sh", "-c", "read _", *words], stdin=subprocess.PIPE))
        return started[-1].pid

    yield start
    for one in started:
        one.kill()
        one.communicate()


def shows(tools, pid=0, state="loaded", active="inactive"):
    """What systemctl says of the unit from now on."""
    unit = f"Id=vmops-qemu-web1.service\nLoadState={state}\nActiveState={active}\nMainPID={pid}\n"
    (tools / "systemctl.does").write_text(f"case $* in *show*) printf '%s' '{unit}';; esac\n")


def told(tools, *commands):
    """Whether systemd was told to end something."""
    lines = (tools / "told").read_text().splitlines()
    return [line for line in lines if any(f" {command} " in line for command in commands)]


@pytest.mark.parametrize("fails", ["systemctl", "systemd-run"])
def test_unit_of_another_vm_is_not_ended_with_a_start_that_failed(tools, process, fails):
    """systemd is busy, or two VMs of one name are restored at once."""
    pid = process(QEMU, "-name", "web1", "-uuid", "another", "-incoming", "defer")
    shows(tools, state="not-found")
    (tools / f"{fails}.does").write_text("echo 'Unit vmops-qemu-web1.service was already loaded' >&2; exit 1\n")
    launched = LaunchedTransientUnit(Launch(argv=("/bin/true", *ARGV[1:]), cwd="/"), "web1", HOST, os.getpid())
    with pytest.raises(LaunchError):
        asyncio.run(launched.start())
    shows(tools, pid, active="active")
    asyncio.run(launched.end())
    assert told(tools, "kill", "stop", "reset-failed") == []


def test_own_transient_unit_is_ended(tools, process):
    pid = process("setpriv", "--", "/bin/true", *ARGV[1:])
    shows(tools, state="not-found")
    launched = LaunchedTransientUnit(Launch(argv=("/bin/true", *ARGV[1:]), cwd="/"), "web1", HOST, os.getpid())
    asyncio.run(launched.start())
    shows(tools, pid, active="active")
    with (tools / "systemctl.does").open("a") as does:
        does.write(f"case $* in *kill*) kill {pid};; esac\n")
    asyncio.run(launched.end())
    assert len(told(tools, "kill", "stop", "reset-failed")) == 3


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may start a unit of the host's")
@pytest.mark.parametrize("moment", ["before its change is in force", "after that"])
def test_guest_that_was_started_from_its_disks_is_not_ended_with_its_unit(tools, process, monkeypatch, moment):
    """Somebody has started the unit in between."""
    pid = process(QEMU, "-name", "web1")
    drop_in = tools / "restore.conf"
    monkeypatch.setattr(unit_launch, "restore_files", lambda _name: (str(drop_in), str(tools / "guard.conf")))
    monkeypatch.setattr(unit_launch, "remove_restore_files", lambda _name: True)

    async def start_command(_unit):
        return StartCommand(QEMU, "")

    async def read_unit(name):
        ran = drop_in.exists() and moment.startswith("before")
        return dataclasses.replace(loaded(), name=name, drop_ins=(str(drop_in),), main_pid=pid if ran else 0)

    monkeypatch.setattr(systemd, "read_start_command", start_command)
    monkeypatch.setattr(systemd, "read_unit", read_unit)
    launched = LaunchedService(Launch(argv=ARGV, unit="web1.service"))
    if moment.startswith("before"):
        with pytest.raises(LaunchError, match="runs already"):
            asyncio.run(launched.start())
        assert told(tools, "start") == []
    else:
        asyncio.run(launched.start())
        monkeypatch.undo()
        monkeypatch.setitem(manager._ENVIRONMENT, "PATH", f"{tools}:{os.environ['PATH']}")
        monkeypatch.setattr(unit_launch, "remove_restore_files", lambda _name: True)
        shows(tools, process(), active="active")
    asyncio.run(launched.end())
    assert told(tools, "kill", "stop") == []
