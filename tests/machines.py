# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Make and end the machines of the molecule scenarios: Debian hosts in systemd-nspawn, reached by SSH alone.

    machines.py create DIR NAME...   make, boot and wait for them; DIR/ssh_config says how to reach them
    machines.py destroy DIR          end them and remove DIR, whatever state it is in
    machines.py run DIR NAME         (create calls it) be a machine's supervisor: mount its root, boot it, reboot it
    machines.py connect              (ssh calls it) hand ssh a connection to sshd

All that a machine has on this host is in DIR, in its control group, and in namespaces that end with its supervisor: the
mount of its root (an overlay over scripts/base-tree's tree), and its network, in which sshd listens on loopback. So
destroy has to kill one control group and to remove directories; there are no mounts, links or named namespaces to undo.
Needs root, systemd-nspawn and the second version of control groups, not systemd as this host's own init.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import re
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Optional

TESTS = Path(__file__).resolve().parent
BOOT_TIMEOUT = 180.0  # seconds; a machine boots in two on an idle host
END_TIMEOUT = 30.0  # seconds
REBOOT = 133  # systemd-nspawn's exit status when the machine wants to be started again

NSPAWN_STATE = Path("/run/systemd/nspawn")

#: Where the guests' sources and boot image are in a machine.
GUESTS = "opt/vmops"


class MachineError(Exception):
    """A machine could not be made or did not boot."""


class Machine:
    """A machine in DIR/NAME; its unit, the name by which this host knows it, is like no other run's."""

    def __init__(self, directory: Path, name: str) -> None:
        self.name = name
        self.home = directory / name
        self.unit = f"{(directory / 'run').read_text(encoding='ascii').strip()}-{name}"
        self.console = self.home / "console.log"
        self.host_key = self.home / "ssh_host_ed25519_key"
        self._supervisor: Optional[subprocess.Popen[bytes]] = None

    # Its control group

    def cgroup(self) -> Path:
        """Its control group: a scope of this host's systemd, or one made by hand where that is not the init."""
        if systemd_is_init():
            return cgroup_mount() / "machine.slice" / f"{self.unit}.scope"
        return cgroup_mount() / self.unit

    def start(self) -> None:
        """Make its files and start its supervisor, inside its control group from the first instruction on."""
        self.home.mkdir(mode=0o700)
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", self.name, "-f", str(self.host_key))
        command = ["unshare", "--mount", "--net", "--propagation", "private", "--"]
        command += [sys.executable, "-I", __file__, "run", str(self.home.parent), self.name]
        if systemd_is_init():
            scope = ["systemd-run", "--quiet", "--scope", "--collect", "--property=Delegate=yes"]
            command = [*scope, "--slice=machine.slice", f"--unit={self.unit}.scope", *command]
        else:
            self.cgroup().mkdir()
            command = ["sh", "-c", 'echo $$ >"$0" && exec "$@"', str(self.cgroup() / "cgroup.procs"), *command]
        with self.console.open("wb") as console:
            self._supervisor = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True
            )

    @property
    def pid(self) -> int:
        """The supervisor's pid, which stays the same over the machine's reboots; so does its network namespace."""
        assert self._supervisor is not None
        return self._supervisor.pid

    def wait(self, ssh_config: Path, deadline: float) -> None:
        """Wait until its systemd says over SSH that all is started; raises MachineError if that does not happen."""
        assert self._supervisor is not None
        said = ""
        while True:
            left = deadline - time.monotonic()
            if left <= 0 or self._supervisor.poll() is not None:
                raise MachineError(f"{self.name} did not come up: {said}\n{self.tail()}")
            ssh = ["ssh", "-F", str(ssh_config), self.name, "systemctl is-system-running --wait || systemctl --failed"]
            with contextlib.suppress(subprocess.TimeoutExpired):
                done = subprocess.run(ssh, capture_output=True, encoding="utf-8", timeout=left, check=False)
                said = (done.stdout + done.stderr).strip()
                if done.stdout.strip() == "running":
                    return
                if done.returncode != 255:
                    raise MachineError(f"{self.name} is {said}")
            time.sleep(0.2)

    def tail(self) -> str:
        """The end of its console, without colours."""
        text = self.console.read_text(encoding="utf-8", errors="replace")
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", text)[-2000:]

    def end(self) -> None:
        """Kill all that is in its control group, and remove the group."""
        own = self.cgroup()
        # systemd-nspawn makes one of the same name in other hierarchies
        groups = [mount / own.relative_to(cgroup_mount()) for mount in cgroup_mounts()]
        deadline = time.monotonic() + END_TIMEOUT
        while left := [group for group in groups if group.is_dir()]:
            if time.monotonic() > deadline:
                raise MachineError(f"{self.name} does not end: {left[0]} is still there")
            with contextlib.suppress(OSError):
                (own / "cgroup.kill").write_text("1", encoding="ascii")
            for group in left:
                remove_cgroup(group)
            time.sleep(0.05)

    # Inside: what the supervisor does

    def supervise(self) -> int:
        """Boot it, and boot it again whenever it reboots; returns systemd-nspawn's last exit status."""
        base = base_tree()
        loopback_up()
        # Held as long as this process lives: scripts/base-tree removes no tree that a machine runs on.
        with open(f"{base}.lock", "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            # What systemd-nspawn keeps of its machines, and leaves there when it is killed
            NSPAWN_STATE.mkdir(parents=True, exist_ok=True)
            run("mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", str(NSPAWN_STATE))
            root = self._mount(base)
            self._furnish(root)
            command = ["systemd-nspawn", "--quiet", "--boot", "--directory", str(root), "--machine", self.unit]
            command += ["--hostname", self.name, "--network-namespace-path", f"/proc/{os.getpid()}/ns/net"]
            command += ["--register=no", "--keep-unit", "--link-journal=no", "--resolv-conf=off", "--timezone=off"]
            # The network is the machine's own, and its root may do there what a host's may.
            command += ["--console=read-only", "--capability=CAP_NET_ADMIN"]
            # Debian 13's systemd knows no other control groups, whichever this host uses.
            environment = {**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}
            while True:
                status = subprocess.run(command, stdin=subprocess.DEVNULL, env=environment, check=False).returncode
                print(f"\n--- {self.name}: systemd-nspawn ended with status {status}", flush=True)
                if status != REBOOT:
                    return status

    def _mount(self, base: Path) -> Path:
        root, upper, work = (self.home / name for name in ("root", "upper", "work"))
        for directory in (root, upper, work):
            directory.mkdir()
        options = f"lowerdir={base},upperdir={upper},workdir={work}"
        mount = ["mount", "-t", "overlay", "overlay", "-o", options, str(root)]
        mounted = subprocess.run(mount, capture_output=True, encoding="utf-8", check=False)
        if mounted.returncode != 0:
            # Not every file system can be the upper one, another overlay for instance.
            print(f"--- {self.name}: no overlay here, copying {base}: {mounted.stderr.strip()}", flush=True)
            run("cp", "-a", "--reflink=auto", f"{base}/.", str(root))
        return root

    def _furnish(self, root: Path) -> None:
        """What makes a machine of the tree: a name, an identity, keys, and the guests."""
        write(root / "etc/hostname", f"{self.name}\n")
        write(root / "etc/hosts", f"127.0.0.1 localhost\n127.0.1.1 {self.name}\n")
        write(root / "etc/machine-id", f"{uuid.uuid4().hex}\n", 0o444)
        key = self.host_key.name
        write(root / "etc/ssh" / key, self.host_key.read_text(encoding="ascii"), 0o600)
        write(root / "root/.ssh/authorized_keys", (self.home.parent / "key.pub").read_text(encoding="ascii"), 0o600)
        for name in ("support", "guests"):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(TESTS / name, root / GUESTS / "tests" / name, ignore=ignored)
        image = root / GUESTS / "build/guests/counter.img"
        image.parent.mkdir(parents=True)
        # Newer than its source, by copyfile's own time: nothing is to be built again there, and nothing could be.
        shutil.copyfile(self.home.parent / "counter.img", image)


def create(directory: Path, names: Sequence[str]) -> None:
    """Make the machines, boot them side by side, and wait for them; ends them all if one does not come up."""
    if os.geteuid() != 0:
        raise MachineError("only root can make machines")
    for name in names:
        if not re.fullmatch(r"[a-z][a-z0-9-]{0,20}", name):
            raise MachineError(f"{name!r} is no name for a machine")
    base_tree()
    with locked(directory):
        end_all(directory)
        directory.mkdir(mode=0o700)
        try:
            boot_all(directory, names)
        except BaseException:
            end_all(directory)
            raise


def destroy(directory: Path) -> None:
    """End all machines of the directory and remove it; nothing if it is not there. Waits for a create that runs."""
    with locked(directory):
        end_all(directory)


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Be the only one that makes or ends machines in the directory; the lock is beside it, and stays."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{directory}.lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def boot_all(directory: Path, names: Sequence[str]) -> None:
    """The part of create that leaves something behind."""
    write(directory / "run", f"vmops-{os.urandom(4).hex()}\n")
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "vmops.qemu tests", "-f", str(directory / "key"))
    shutil.copyfile(boot_image(), directory / "counter.img")
    started = time.monotonic()
    machines = [Machine(directory, name) for name in names]
    for machine in machines:
        machine.start()
    ssh_config = write_ssh_config(directory, machines)
    for machine in machines:
        machine.wait(ssh_config, started + BOOT_TIMEOUT)
        print(f"{machine.name} ({machine.unit}) is up after {time.monotonic() - started:.1f} s")


def end_all(directory: Path) -> None:
    """Whatever state the directory is in: nothing of it runs afterwards, and it is gone."""
    if (directory / "run").exists():
        # A machine has a control group only after it has a directory.
        for home in sorted(path for path in directory.iterdir() if path.is_dir()):
            Machine(directory, home.name).end()
    if directory.exists():
        shutil.rmtree(directory)


def write_ssh_config(directory: Path, machines: Sequence[Machine]) -> Path:
    """DIR/ssh_config and DIR/known_hosts: the machines by their names, and nothing of this user's own settings."""
    config, known = directory / "ssh_config", directory / "known_hosts"
    keys = ((machine.unit, machine.host_key.with_suffix(".pub").read_text(encoding="ascii")) for machine in machines)
    write(known, "".join(f"{unit} {key}" for unit, key in keys))
    lines = []
    for machine in machines:
        connect = [sys.executable, "-I", __file__, "connect"]
        proxy = shlex.join(["nsenter", f"--net=/proc/{machine.pid}/ns/net", "--", *connect]).replace("%", "%%")
        lines += [f"Host {machine.name}", f"  HostName {machine.unit}", f"  ProxyCommand {proxy}"]
    lines += ["Host *", "  ProxyUseFdpass yes", "  User root", "  IdentitiesOnly yes", "  StrictHostKeyChecking yes"]
    lines += [f'  IdentityFile "{directory / "key"}"', f'  UserKnownHostsFile "{known}"', "  LogLevel ERROR"]
    write(config, "\n".join(lines) + "\n")
    return config


def connect() -> None:
    """Hand ssh, by ProxyUseFdpass, a connection to this network namespace's sshd."""
    with socket.create_connection(("127.0.0.1", 22)) as connection, socket.socket(fileno=1) as ssh:
        socket.send_fds(ssh, [b"\0"], [connection.fileno()])


def loopback_up() -> None:
    """Bring up lo in this network namespace, which systemd-nspawn leaves as it finds it."""
    set_flags, up = 0x8914, 1  # SIOCSIFFLAGS and IFF_UP, linux/sockios.h and linux/if.h
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, set_flags, struct.pack("16sh22x", b"lo", up))


def base_tree() -> Path:
    """The tree that machines are made of. Raises MachineError where scripts/setup hosts has not built it."""
    script = TESTS.parent / "scripts" / "base-tree"
    found = subprocess.run([str(script), "path"], capture_output=True, encoding="utf-8", check=False)
    if found.returncode != 0:
        raise MachineError(found.stderr.strip())
    return Path(found.stdout.strip())


def boot_image() -> Path:
    """The counter guest's boot image, assembled here: a machine has no assembler."""
    # Only here: what ssh and the supervisor run needs none of it
    sys.path.insert(0, str(TESTS))
    from support.counter import build_counter
    from support.guest import GuestError

    try:
        return build_counter()
    except GuestError as error:
        raise MachineError(str(error)) from error


def systemd_is_init() -> bool:
    """Whether systemd is this host's init, which then owns the control groups."""
    return Path("/run/systemd/system").is_dir()


def cgroup_mounts() -> Iterator[Path]:
    """All hierarchies of control groups of this host, the second version's first."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        mount, kind = line.split(" ")[4], line.split(" - ")[1].split(" ")[0]
        if kind in ("cgroup", "cgroup2"):
            found.append((kind != "cgroup2", Path(mount)))
    return (mount for _order, mount in sorted(found))


def cgroup_mount() -> Path:
    """Where the second version's hierarchy is mounted; raises MachineError without one."""
    for mount in cgroup_mounts():
        if (mount / "cgroup.procs").exists() and (mount / "cgroup.controllers").exists():
            return mount
    raise MachineError("this host has no control groups of the second version (cgroup2) mounted")


def remove_cgroup(group: Path) -> None:
    """Remove a group with all below it, as far as no process is left in them."""
    for here, _below, _files in os.walk(group, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(here)


def run(*command: str) -> None:
    """Run a command; raises MachineError with its output."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", check=False)
    if done.returncode != 0:
        raise MachineError(f"{shlex.join(command)}: {done.stdout.strip()}")


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file, with its directory if that is missing."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.touch(mode=mode)
    path.write_text(text, encoding="utf-8")


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run one command; the exit status is 1, with a message on stderr, if it failed."""
    parser = argparse.ArgumentParser(description="Make and end the machines of the molecule scenarios.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("create", "make and boot machines"), ("destroy", "end them"), ("run", "for create's own use")):
        command = commands.add_parser(name, help=text)
        command.add_argument("directory", type=Path, metavar="DIR")
        if name != "destroy":
            command.add_argument("names", nargs="+" if name == "create" else 1, metavar="NAME")
    commands.add_parser("connect", help="for ssh's own use")
    options = parser.parse_args(argv)
    try:
        if options.command == "connect":
            connect()
        elif options.command == "run":
            return Machine(options.directory.absolute(), options.names[0]).supervise()
        else:
            # What is begun is ended, also where the caller's own shell has these signals ignored (in the background).
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, lambda number, _frame: sys.exit(128 + number))
            if options.command == "create":
                create(options.directory.absolute(), options.names)
            else:
                destroy(options.directory.absolute())
    except (MachineError, OSError) as error:
        print(f"machines: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
