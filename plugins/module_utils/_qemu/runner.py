# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What starts a VM (a unit, a runner such as quickemu, a supervisor, a script), and where an option goes there.

It is known by QEMU's words, by the processes above it, and by its control group. All of that is what others say of
themselves, so it serves for advice alone: nothing is decided by it. ``docs/runners.md`` has a section for each.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import typing as t
import uuid

from ansible_collections.vmops.qemu.plugins.module_utils._bounded_read import read_bounded
from ansible_collections.vmops.qemu.plugins.module_utils._proc import read_environment, read_proc
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import command_line
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.ancestry import Ancestor, ancestors_of, printable
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import QemuProcess
from ansible_collections.vmops.qemu.plugins.module_utils._shell_text import command_text

_MAX_GROUPS = 64 * 1024  # bytes
_MAX_SHOWN = 100  # characters of a name
_MAX_SERVICES = 1000
_MAX_SMALL = 4096  # bytes

#: What cannot stand in a file's name, an option and a shell's word without a quote.
_NOT_PLAIN = re.compile(r"[^A-Za-z0-9._-]")

#: Characters of a word in which a pattern is looked for: its user may make it as long as he likes.
_MAX_WORD = 512

#: What OpenRC keeps of its services.
_OPENRC_OPTIONS = "/run/openrc/options"


@dataclasses.dataclass(frozen=True)
class Runner:
    """What starts a VM."""

    #: As messages name it.
    name: str
    #: What to do with an option for QEMU, as a clause: ``{option}`` stands for it, ``{argument}`` for its argument.
    line: str
    #: Whether QEMU's options are its own: the line says what to do instead of saving the VM.
    takes_none: bool = False


@dataclasses.dataclass(frozen=True)
class _Program:
    """A runner that is a program of its own: any of its signs is enough."""

    name: str
    #: As :attr:`Runner.line`; ``{name}`` is the VM's name, or what a pattern's first group has found.
    line: str
    #: The names of processes above QEMU.
    processes: frozenset[str] = frozenset()
    #: A pattern of one of QEMU's words.
    words: str = ""
    #: A pattern of the unit's name.
    unit: str = ""
    #: As :attr:`Runner.takes_none`.
    takes_none: bool = False


_PROGRAMS = (
    _Program(
        "libvirt",
        "add <qemu:arg value='-qmp'/> and <qemu:arg value='{argument}'/> to <qemu:commandline> (virsh edit {name})",
        frozenset(("libvirtd", "virtqemud")),
        r"\bid=charmonitor,",
    ),
    _Program("Proxmox VE", "call qm set {name} --args '{option}'", words=r"/run/qemu-server/(\d+)\."),
    _Program(
        "Incus or LXD",
        "call incus config set {name} raw.qemu='{option}' (lxc config set with LXD)",
        frozenset(("incusd", "lxd")),
        r"/(?:incus|lxd)/.*/qemu\.conf",
    ),
    _Program("quickemu", 'add extra_args="{option}" to {name}.conf', frozenset(("quickemu",))),
    _Program(
        "qemu-compose",
        'add - qmp: "{argument}" to the list qemu_args of its qemu-compose.yml',
        frozenset(("qemu-compose",)),
        r"/qemu-compose/",
    ),
    _Program(
        "maqet",
        'add - qmp: "{argument}" and - name: {name} to the list arguments of its configuration',
        frozenset(("maqet", "vm_runner")),
        r"/maqet/[^,]*\.sock",
    ),
    _Program(
        "virtme-ng",
        'call vng with --qemu-opts="{option}", as its --qmp opens a TCP port',
        frozenset(("vng", "virtme-ng", "virtme-run")),
        r"\bvirtme_hostname=",
    ),
    _Program(
        "multipass",
        "stop it instead of saving it (multipass stop, or multipass suspend), as multipass takes no option for QEMU",
        frozenset(("multipassd",)),
        takes_none=True,
    ),
    _Program(
        "Kata",
        "stop its containers instead of saving it, as a VM of Kata's does not come back without Kata's shim",
        frozenset(("containerd-shim-kata-v2",)),
        r"/run/vc/vm/",
        takes_none=True,
    ),
    _Program("GNS3", "add {option} to the additional options of the node {name}", frozenset(("gns3server",))),
    _Program("mkosi", "add {option} to QemuArgs= of its configuration", frozenset(("mkosi",))),
    _Program(
        "systemd-vmspawn", "add {option} to the variable SYSTEMD_VMSPAWN_QEMU_EXTRA", frozenset(("systemd-vmspawn",))
    ),
    _Program("vrnetlab", "add {option} to self.qemu_args in the launch.py of its image", frozenset(("launch.py",))),
    _Program(
        "qsvm",
        "leave qemu_mon_path in /etc/qsvm/{name}/config.yaml at its default, which opens one",
        unit=r"qsvm@(.+)\.service",
    ),
    _Program("microvm.nix", 'set microvm.socket = "{name}.sock", which is a QMP server', unit=r"microvm@(.+)\.service"),
    _Program(
        "qemu-openrc",
        'add extra_args="{option}" to /etc/conf.d/qemu.{name}',
        words=r"/run/qemu/([^/,]+)/monitor\.sock",
    ),
)

#: Supervisors, by the name of their process, and where each has the command. ``{name}`` is the service.
_SUPERVISORS = {
    "supervisord": "add {option} to command= in its section [program:{name}] (supervisorctl update)",
    "circusd": "add {option} to cmd = in its section [watcher:{name}]",
    "runsv": "add {option} to its script {name}/run",
    "s6-supervise": "add {option} to its script {name}/run",
    "supervise": "add {option} to its script {name}/run",
    "supervise-daemon": "add {option} to command_args in /etc/conf.d/{name} or /etc/init.d/{name}",
    "dinit": "add {option} to command = in its file in /etc/dinit.d",
}

_CONTAINERS = frozenset(("conmon", "containerd-shim", "containerd-shim-runc-v2", "docker-init", "lxc-start"))
_CONTAINER_GROUPS = re.compile(r"/(?:docker|libpod|kubepods|lxc\.payload|machine\.slice/libpod)|docker-[0-9a-f]{12}")

#: Services in which what people start by hand, or by other programs, happens to run.
_PASSING_UNITS = re.compile(
    r"(?:cron|crond|atd|ssh|sshd|getty|serial-getty|docker|containerd|vmops-(?:restore|save|qemu-.+)|run-.*)(?:@.*)?\.service"
)

#: By which qemu-tool makes a VM's UUID of its name.
_QEMU_TOOL_ROLES = ("run-vm", "gen-vm")
_QEMU_TOOL = uuid.uuid5(uuid.NAMESPACE_DNS, "qemu-tool.qemu-minimal")


def how_to_add_a_monitor(process: QemuProcess, otherwise: str = "") -> str:
    """What to do so that a VM has a QMP monitor at its next start, as a sentence without its full stop.

    It never raises, but reads in /proc.

    :param otherwise: what else would do, as a clause; not where its program takes no option for QEMU.
    """
    runner = find_runner(process)
    argument = f"unix:{_socket_path(process)},server=on,wait=off"
    line = runner.line if runner else "add {option} to its command line"
    line = line.replace("{option}", f"-qmp {argument}").replace("{argument}", argument)
    by = f" ({runner.name} has started it)" if runner else ""
    then = "" if runner and runner.takes_none else ", and start the VM anew"
    return f"{line[:1].upper()}{line[1:]}{then}{by}{'; ' + otherwise if then and otherwise else ''}"


def _socket_path(process: QemuProcess) -> str:
    """A place where QEMU's user may make a socket, and others may not."""
    name = f"{_NOT_PLAIN.sub('_', process.name)[:64] or 'vm'}.qmp"
    # Whom QEMU becomes by itself is of no matter: it opens its monitors before.
    if process.uid == 0 or command_line.target_user(process.argv):
        return f"/run/{name}"
    return f"/run/user/{process.uid}/{name}"


def find_runner(process: QemuProcess) -> Runner | None:
    """What started this QEMU, where that is known; never raises, but reads in /proc."""
    signs = _read_signs(process)
    # Those that are one program's alone come before what any of them may run in.
    for look in (_by_program, _by_supervisor, _by_container, _by_openrc, _by_unit, _by_script):
        runner = look(signs)
        if runner:
            return runner
    return None


@dataclasses.dataclass(frozen=True)
class _Signs:
    """By what a runner is known."""

    pid: int
    name: str
    uuid: str
    words: t.Sequence[str]
    ancestors: t.Sequence[Ancestor]
    #: The paths of its control groups.
    groups: t.Sequence[str]
    #: The innermost service of these, the system's or a user's, and whether it is a user's.
    unit: str
    of_user: bool
    directory: str


def _read_signs(process: QemuProcess) -> _Signs:
    words = process.configuration.words or process.argv
    groups = _control_groups(process.pid)
    unit, of_user = _service(groups)
    return _Signs(
        pid=process.pid,
        name=process.name or "NAME",
        uuid=command_line.vm_uuid(words),
        words=[word[:_MAX_WORD] for word in words],
        ancestors=ancestors_of(process.pid)[0],
        groups=groups,
        unit=unit,
        of_user=of_user,
        directory=process.cwd,
    )


def _control_groups(pid: int) -> list[str]:
    try:
        text = os.fsdecode(read_proc(pid, "cgroup", _MAX_GROUPS))
    except OSError:
        return []
    return [row[2] for row in (line.split(":", 2) for line in text.splitlines()) if len(row) == 3]


def _service(groups: t.Sequence[str]) -> tuple[str, bool]:
    for group in groups:
        # systemd puts an underscore before a name that the kernel would take for its own.
        parts = [part[1:] if part.startswith("_") else part for part in group.split("/")]
        services = [part for part in parts if part.endswith(".service")]
        if services:
            of_user = services[0].startswith("user@")
            return ("", False) if of_user and len(services) == 1 else (services[-1], of_user)
    return "", False


def _shown(name: str) -> str:
    """A name that a process gave itself, for a message."""
    return printable(name[:_MAX_SHOWN]) or "NAME"


def _by_program(signs: _Signs) -> Runner | None:
    names = {name for ancestor in signs.ancestors for name in ancestor.names}
    for program in _PROGRAMS:
        found = [re.search(program.words, word) for word in signs.words] if program.words else []
        found += [re.fullmatch(program.unit, signs.unit)] if program.unit else []
        match = next((one for one in found if one), None)
        if match or program.processes & names or (program.name == "quickemu" and _has_files_of_quickemu(signs)):
            name = match.group(1) if match and match.re.groups else signs.name
            return dataclasses.replace(_runner(program.name, program.line, name), takes_none=program.takes_none)
    if signs.uuid and signs.uuid in (str(uuid.uuid5(_QEMU_TOOL, f"{role}:{signs.name}")) for role in _QEMU_TOOL_ROLES):
        return _runner("qemu-tool", "call qemu-tool run-vm with --qmp-socket", signs.name)
    return None


def _runner(name: str, line: str, vm: str) -> Runner:
    """:param vm: what stands for ``{name}``; a process says it of itself."""
    return Runner(name, line.replace("{name}", _shown(vm)))


def _has_files_of_quickemu(signs: _Signs) -> bool:
    """It ends as soon as QEMU runs, and leaves NAME.pid and NAME-monitor.socket, or NAME-agent.sock, side by side."""
    places = [word[: -len(".pid")] for word in signs.words if word.endswith(".pid")]
    sockets = [f"{place}-{kind}.sock" for place in places for kind in ("monitor", "serial", "agent")]
    return any(socket in word for socket in sockets[:_MAX_SERVICES] for word in signs.words)


def _by_supervisor(signs: _Signs) -> Runner | None:
    for ancestor in signs.ancestors:
        known = [name for name in _SUPERVISORS if name in ancestor.names]
        if not known:
            continue
        service = ancestor.argv[1] if len(ancestor.argv) > 1 and not ancestor.argv[1].startswith("-") else ""
        if known[0] == "supervisord":
            service = _variable(signs.pid, "SUPERVISOR_PROCESS_NAME")
        return _runner(known[0], _SUPERVISORS[known[0]], service)
    return None


def _variable(pid: int, name: str) -> str:
    """A variable of what a process was started with; empty where there is none, or it may not be looked at."""
    with contextlib.suppress(OSError):
        for word in read_environment(pid).split(b"\0"):
            key, _equals, value = os.fsdecode(word).partition("=")
            if key == name:
                return value
    return ""


def _by_container(signs: _Signs) -> Runner | None:
    names = {name for ancestor in signs.ancestors for name in ancestor.names}
    if names & _CONTAINERS or any(_CONTAINER_GROUPS.search(group) for group in signs.groups):
        return Runner("a container", "add {option} to the container's command")
    return None


def _by_openrc(signs: _Signs) -> Runner | None:
    service = openrc_service(signs.pid)
    line = "add {option} to command_args in /etc/conf.d/{name} or /etc/init.d/{name}"
    return _runner("OpenRC", line, service) if service else None


def openrc_service(pid: int) -> str:
    """The service of OpenRC's whose pid file names this process; empty where there is none. Never raises."""
    return next((service for service, path in openrc_pid_files() if pid_in(path) == pid), "")


def openrc_pid_files() -> t.Iterator[tuple[str, str]]:
    """The services of OpenRC's, and the paths of their pid files, of those that have one. Never raises."""
    with contextlib.suppress(OSError):
        for service in sorted(os.listdir(_OPENRC_OPTIONS))[:_MAX_SERVICES]:
            with contextlib.suppress(OSError):
                text = read_bounded(os.path.join(_OPENRC_OPTIONS, service, "pidfile"), _MAX_SMALL)
                path = os.fsdecode(text).strip()
                if os.path.isabs(path):
                    yield service, path


def pid_in(path: str) -> int | None:
    """The number that a pid file has; None where there is none. Never raises."""
    with contextlib.suppress(OSError):
        text = read_bounded(path, _MAX_SMALL).strip()
        if re.fullmatch(rb"[1-9][0-9]{0,9}", text):
            return int(text)
    return None


def _by_unit(signs: _Signs) -> Runner | None:
    if not signs.unit or _PASSING_UNITS.fullmatch(signs.unit):
        return None
    instance = signs.unit.partition("@")[2].rpartition(".")[0]
    arguments = f"/etc/conf.d/qemu.d/{instance}"
    if instance and os.path.exists(arguments):
        return _runner("its unit", "add {option} to args in /etc/conf.d/qemu.d/{name}", instance)
    systemctl = "systemctl --user" if signs.of_user else "systemctl"
    return _runner(
        "its unit", f"add {{option}} to ExecStart= of {{name}} ({systemctl} edit --full {{name}})", signs.unit
    )


def _by_script(signs: _Signs) -> Runner | None:
    """The nearest script, where QEMU's ancestors are nothing else that is known."""
    for ancestor in signs.ancestors:
        script: str | None = None
        if ancestor.is_shell:
            script = command_text(list(ancestor.argv))[1]
        elif ancestor.is_interpreted:
            script = next((word for word in ancestor.argv[1:] if not word.startswith("-")), None)
        if script:
            return _runner("a script", "add {option} where {name} calls QEMU", script)
    return None
