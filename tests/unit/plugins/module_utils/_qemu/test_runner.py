# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What starts a VM, by QEMU's words, the processes above it and its control group; and where an option goes there."""

from __future__ import annotations

import time
import uuid

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import runner
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.ancestry import Ancestor
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.configuration import Configuration
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import QemuProcess


def ancestor(*argv, comm=""):
    return Ancestor(
        pid=4000,
        parent=1,
        session=4000,
        has_terminal=False,
        comm=comm or argv[0].rpartition("/")[2][:15],
        argv=argv,
        executable=argv[0],
    )


@pytest.fixture
def look(monkeypatch):
    """Look at a QEMU that is none."""

    def find(*words, ancestors=(), groups="", name="web1", uid=0):
        argv = ("qemu-system-x86_64", "-name", name, *words)
        process = QemuProcess(
            pid=4242,
            name=name,
            argv=argv,
            cwd="/",
            executable="/usr/bin/qemu-system-x86_64",
            uid=uid,
            gid=uid,
            configuration=Configuration((), argv),
        )
        monkeypatch.setattr(runner, "ancestors_of", lambda _pid: (list(ancestors), 4000))
        monkeypatch.setattr(runner, "read_proc", lambda *_what: groups.encode())
        monkeypatch.setattr(runner, "openrc_pid_files", list)
        monkeypatch.setattr(runner, "_variable", lambda _pid, name: "web" if name == "SUPERVISOR_PROCESS_NAME" else "")
        return runner.how_to_add_a_monitor(process)

    return find


QMP = "-qmp unix:/run/web1.qmp,server=on,wait=off"

PROGRAMS = [
    (["-chardev", "socket,id=charmonitor,fd=20"], [], "", "<qemu:arg value='unix:/run/web1.qmp,server=on,wait=off'/>"),
    (["-id", "101", "-pidfile", "/var/run/qemu-server/101.pid"], [], "", f"Call qm set 101 --args '{QMP}'"),
    (["-readconfig", "/run/incus/web1/qemu.conf"], [], "", f"Call incus config set web1 raw.qemu='{QMP}'"),
    (
        ["-pidfile", "web1/web1.pid", "-monitor", "unix:web1/web1-monitor.socket,server,nowait"],
        [],
        "",
        f'Add extra_args="{QMP}" to web1.conf',
    ),
    ([], [ancestor("/bin/bash", "/usr/bin/quickemu", "--vm", "web1.conf", comm="quickemu")], "", "web1.conf"),
    (
        ["-monitor", "unix:/root/.local/share/qemu-compose/instance/1/monitor.sock,server=on"],
        [],
        "",
        'Add - qmp: "unix:/run/web1.qmp,server=on,wait=off" to the list qemu_args',
    ),
    (["-chardev", "socket,id=mon,path=/run/user/0/maqet/sockets/x.sock"], [], "", "to the list arguments"),
    ([], [ancestor("/usr/bin/python3", "-m", "maqet.vm_runner", "web1")], "", "to the list arguments"),
    (["-append", "virtme_hostname=web1 console=ttyS0"], [], "", f'Call vng with --qemu-opts="{QMP}"'),
    ([], [ancestor("/snap/multipass/x1/bin/multipassd")], "", "multipass takes no option for QEMU (multipass has"),
    (
        [],
        [ancestor("/usr/bin/systemd-vmspawn", "--image=x.raw")],
        "",
        f"Add {QMP} to the variable SYSTEMD_VMSPAWN_QEMU",
    ),
    (["-pidfile", "/run/vc/vm/4f1d/pid"], [], "", "Stop its containers instead of saving it"),
    ([], [ancestor("/usr/bin/python3", "/usr/bin/mkosi", "vm")], "", f"Add {QMP} to QemuArgs= of its configuration"),
    (
        [],
        [ancestor("/usr/bin/python3", "/usr/bin/gns3server", comm="gns3server")],
        "",
        "additional options of the node",
    ),
    ([], [ancestor("python3", "/launch.py", "--trace")], "", "self.qemu_args in the launch.py"),
    ([], [], "0::/system.slice/system-qsvm.slice/qsvm@db1.service", "/etc/qsvm/db1/config.yaml"),
    ([], [], "0::/system.slice/system-microvm.slice/microvm@db1.service", 'microvm.socket = "db1.sock"'),
    (["-monitor", "unix:/run/qemu/db1/monitor.sock,server,nowait"], [], "", "to /etc/conf.d/qemu.db1"),
    (["-uuid", "{uuid}"], [], "", "Call qemu-tool run-vm with --qmp-socket"),
]

SUPERVISORS = [
    ([ancestor("/usr/bin/python3", "/usr/bin/supervisord")], f"Add {QMP} to command= in its section [program:web]"),
    ([ancestor("runsv", "web1")], f"Add {QMP} to its script web1/run"),
    ([ancestor("s6-supervise", "web1")], f"Add {QMP} to its script web1/run"),
    ([ancestor("supervise-daemon", "web1", "--start")], f"Add {QMP} to command_args in /etc/conf.d/web1"),
    ([ancestor("sh", "/etc/sv/x/run"), ancestor("runsv", "x")], "its script x/run"),
]

UNITS = [
    ("0::/system.slice/web1.service", f"Add {QMP} to ExecStart= of web1.service (systemctl edit --full web1.service)"),
    ("0::/system.slice/vmops-fleet@web1.service", "systemctl edit --full vmops-fleet@web1.service"),
    ("1:name=systemd:/system.slice/web1.service\n0::/", "systemctl edit --full web1.service"),
    (
        "0::/user.slice/user-1000.slice/user@1000.service/app.slice/web1.service",
        "(systemctl --user edit --full web1.service)",
    ),
    ("0::/system.slice/docker-0123456789ab.scope", f"Add {QMP} to the container's command"),
]

NONE = [
    "0::/user.slice/user-0.slice/session-3.scope",
    "0::/user.slice/user-1000.slice/user@1000.service/init.scope",
    "0::/system.slice/cron.service",
    "0::/system.slice/vmops-qemu-web1.service",
    "",
]


@pytest.mark.parametrize(("words", "ancestors", "groups", "said"), PROGRAMS)
def test_programs(look, words, ancestors, groups, said):
    tool_uuid = uuid.uuid5(runner._QEMU_TOOL, "run-vm:web1")
    assert said in look(*[word.format(uuid=tool_uuid) for word in words], ancestors=ancestors, groups=groups)


@pytest.mark.parametrize(("ancestors", "said"), SUPERVISORS)
def test_supervisors(look, ancestors, said):
    assert said in look(ancestors=ancestors)


@pytest.mark.parametrize(("groups", "said"), UNITS)
def test_units(look, groups, said):
    assert said in look(groups=groups)


@pytest.mark.parametrize("groups", NONE)
def test_nobody_that_is_known(look, groups):
    assert look(groups=groups) == f"Add {QMP} to its command line, and start the VM anew"


def test_scripts(look):
    assert f"Add {QMP} where /root/start-vm calls QEMU" in look(ancestors=[ancestor("/bin/sh", "/root/start-vm")])
    assert "where /root/vm.py calls QEMU" in look(ancestors=[ancestor("/usr/bin/python3", "-u", "/root/vm.py")])
    assert "its command line" in look(ancestors=[ancestor("-bash")])


def test_user_who_may_not_write_to_run(look):
    assert "unix:/run/user/1000/web1.qmp," in look(uid=1000)


def test_names_that_processes_give_themselves(look):
    """They neither break the message nor get anything into it that is taken for more."""
    said = look("-monitor", "unix:/run/qemu/a\nb\x1b[31m{option}/monitor.sock,server", name="x; rm -rf /")
    assert "\n" not in said
    assert "\x1b" not in said
    assert "unix:/run/x__rm_-rf__.qmp," in said
    assert len(look(groups=f"0::/system.slice/{'x' * 5000}.service")) < 1000


@pytest.mark.parametrize("word", ["/incus/" * 70_000, "/maqet/" * 70_000, "/run/qemu/" * 50_000, ".pid" * 120_000])
def test_words_that_are_made_to_take_long(look, word):
    started = time.monotonic()
    look(*[word] * 5)
    look(*[word[:500]] * 1000)
    assert time.monotonic() - started < 2
