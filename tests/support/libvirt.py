# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A libvirt of the tests' own, and the counter guest as one of its domains.

libvirtd runs in a private mount namespace with its own /etc/libvirt, /var/lib/libvirt, /run and so on, so that a
libvirt of the host, its domains, its message bus and its control groups are out of reach. Its /dev has no kvm: where
that exists but runs no guests, libvirt would ask every QEMU binary for its capabilities again and again.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import uuid as uuids
from pathlib import Path
from typing import Any, ClassVar, Optional, Union
from xml.sax.saxutils import escape, quoteattr

from .counter import CounterGuest
from .guest import GuestError, escaped
from .process import read_argv

_START_TIMEOUT = 60.0  # seconds, until libvirtd answers
_POLL = 0.05  # seconds
_LIBVIRTD_CONF = """\
auth_unix_ro = "none"
auth_unix_rw = "none"
log_level = 3
"""
_QEMU_CONF = """\
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
"""
# What libvirt would add to a domain that does not say anything of them.
_NO_DEVICES = """\
    <controller type='usb' model='none'/>
    <memballoon model='none'/>"""
# The secret that libvirt hands over, and the two parts of its monitor; as key=value or in JSON.
_OF_LIBVIRT = re.compile(r"""masterKey0|\b(?:id|chardev)(?:=|["']\s*:\s*["'])charmonitor\b""")
# In the namespace: $1 is the directory with what is mounted over the host's.
_ENTER = """
set -eu
mkdir -p "$1/dev"
mount -t tmpfs -o mode=755 tests "$1/dev"
for name in null zero full random urandom; do
    touch "$1/dev/$name"
    mount --bind "/dev/$name" "$1/dev/$name"
done
mkdir "$1/dev/pts" "$1/dev/shm"
mount --bind /dev/pts "$1/dev/pts"
mount -t tmpfs -o mode=1777 tests "$1/dev/shm"
ln -s pts/ptmx "$1/dev/ptmx"
ln -s /proc/self/fd "$1/dev/fd"
mount --move "$1/dev" /dev
for name in etc/libvirt var/lib/libvirt var/log/libvirt var/cache/libvirt; do
    mount --bind "$1/$name" "/$name"
done
mount -t tmpfs -o mode=755 tests /run
if [ -d /sys/fs/cgroup ]; then
    umount -R /sys/fs/cgroup 2>/dev/null || mount -t tmpfs tests /sys/fs/cgroup
fi
exec "$2" -c "$3" libvirtd -f /etc/libvirt/libvirtd.conf -p /run/libvirtd.pid
"""

#: Reaps libvirt's QEMUs, whose parent would be init. libvirt waits until an ended one is gone; init may take seconds.
_REAPER = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG, PR_SET_NAME, PR_SET_CHILD_SUBREAPER = 1, 15, 36
prctl = ctypes.CDLL(None).prctl
prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
daemon = os.fork()
if not daemon:
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    os.execvp(sys.argv[1], sys.argv[1:])
signal.signal(signal.SIGTERM, lambda *_: os.kill(daemon, signal.SIGTERM))
prctl(PR_SET_NAME, b"libvirtd", 0, 0, 0)
while (ended := os.wait())[0] != daemon:
    pass
sys.exit(os.waitstatus_to_exitcode(ended[1]))
"""


class LibvirtError(GuestError):
    """libvirt is not there, or said no; its words are in the text."""


class Libvirt:
    """One libvirtd, from the constructor to close()."""

    def __init__(self, workdir: Union[str, os.PathLike[str]]) -> None:
        """Start libvirtd and wait until it answers; workdir gets its configuration, its state and its logs.

        Raises LibvirtError, with what libvirtd wrote, if it does not come up.
        """
        self.workdir = Path(workdir).absolute()
        for command in ("libvirtd", "virsh", "unshare", "nsenter"):
            if shutil.which(command) is None:
                raise LibvirtError(f"no {command}: run scripts/setup interop")
        if os.getuid() != 0:
            raise LibvirtError("a libvirtd of our own needs root, for its mount namespace")
        for name in ("etc/libvirt", "var/lib/libvirt", "var/log/libvirt", "var/cache/libvirt"):
            (self.workdir / name).mkdir(parents=True, exist_ok=True)
        (self.workdir / "etc/libvirt/libvirtd.conf").write_text(_LIBVIRTD_CONF)
        (self.workdir / "etc/libvirt/qemu.conf").write_text(_QEMU_CONF)
        self.log = self.workdir / "libvirtd.log"
        with open(self.log, "wb") as log:
            self._daemon = subprocess.Popen(
                [
                    *("unshare", "--mount", "--propagation", "private"),
                    *("sh", "-c", _ENTER, "sh", str(self.workdir), sys.executable, _REAPER),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            self._wait()
            answer = self.virsh("version", "--daemon")
            self.version = self._version(answer, r"Running against daemon: (\S+)")
            self.qemu_version = self._version(answer, r"Running hypervisor: QEMU (\S+)")
        except BaseException:
            self.close()
            raise

    @staticmethod
    def _version(answer: str, pattern: str) -> str:
        found = re.search(pattern, answer)
        if found is None:
            raise LibvirtError(f"virsh version says: {answer}")
        return found.group(1)

    def _wait(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT
        while self._daemon.poll() is None:
            # Before it has this name, its namespace may not be there yet.
            if Path(f"/proc/{self._daemon.pid}/comm").read_text().strip() == "libvirtd":
                probe = self._virsh(["uri"])
                if probe.returncode == 0:
                    return
            if time.monotonic() > deadline:
                raise LibvirtError(f"libvirtd does not answer: {self.log.read_text()}")
            time.sleep(_POLL)
        raise LibvirtError(f"libvirtd ended with {self._daemon.returncode}: {self.log.read_text()}")

    def close(self) -> None:
        """End libvirtd. Domains go on, and with them the namespace: end them first."""
        if self._daemon.poll() is None:
            self._daemon.send_signal(signal.SIGTERM)
            try:
                self._daemon.wait(10)
            except subprocess.TimeoutExpired:
                self._daemon.kill()
        self._daemon.wait()

    def _virsh(self, arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
        enter = ["nsenter", f"--mount=/proc/{self._daemon.pid}/ns/mnt", "--"]
        return subprocess.run(
            [*enter, "virsh", "-c", "qemu:///system", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env={**os.environ, "LC_ALL": "C.UTF-8", **environment},
            text=True,
            timeout=120,
            check=False,
        )

    def virsh(self, *arguments: Union[str, os.PathLike[str]], **environment: str) -> str:
        """Run virsh and return what it prints; raises LibvirtError with its words. Paths must be absolute."""
        words = [os.fspath(argument) for argument in arguments]
        done = self._virsh(words, **environment)
        if done.returncode != 0:
            raise LibvirtError(f"virsh {shlex.join(words)}: {done.stderr.strip()}")
        return done.stdout

    def refusal(self, *arguments: Union[str, os.PathLike[str]]) -> str:
        """Run virsh, which must fail; the last line that it says, without "error: "."""
        words = [os.fspath(argument) for argument in arguments]
        done = self._virsh(words)
        if done.returncode == 0:
            raise LibvirtError(f"virsh {shlex.join(words)} succeeded: {done.stdout.strip()}")
        return done.stderr.strip().splitlines()[-1].removeprefix("error: ")

    def state(self, domain: str) -> str:
        """The state of a domain in virsh's words, such as "running", "paused" or "shut off"."""
        return self.virsh("domstate", domain).strip()

    def wait_state(self, domain: str, state: str, timeout: float = 10.0) -> None:
        """Wait up to timeout seconds until a domain has this state; raises LibvirtError if it does not get there."""
        deadline = time.monotonic() + timeout
        while (now := self.state(domain)) != state:
            if time.monotonic() > deadline:
                raise LibvirtError(f"{domain} is {now}, not {state}")
            time.sleep(_POLL)

    def managed_save(self, domain: str) -> Path:
        """Where this libvirt looks for the managed save of a domain when it starts it."""
        return self.workdir / "var/lib/libvirt/qemu/save" / f"{domain}.save"

    def domain_log(self, domain: str) -> str:
        """What libvirt logged of a domain's QEMU: its command line and its stderr."""
        path = self.workdir / "var/log/libvirt/qemu" / f"{domain}.log"
        return path.read_text(errors="replace") if path.exists() else ""


def without_libvirt(argv: list[str], serial_socket: Path, serial_log: Path) -> list[str]:
    """A command line of libvirt's without what only libvirt can hand to QEMU.

    Its monitor is a chardev named charmonitor, with -mon or, from libvirt 12.8 on with QEMU 11.1, with an object. The
    serial port that it has opened is replaced by one at serial_socket.
    """
    kept: list[str] = []
    words = iter(argv)
    for word in words:
        if word in ("-add-fd", "-mon", "-msg", "-pidfile"):
            next(words)
            continue
        if word in ("-S", "-daemonize"):
            continue
        value = next(words) if word in ("-object", "-chardev", "-incoming") else ""
        if word == "-incoming" or _OF_LIBVIRT.search(value):
            continue
        if "id=charserial0" in value:
            socket = f"socket,id=charserial0,path={escaped(serial_socket)},server=on,wait=off"
            value = f"{socket},logfile={escaped(serial_log)},logappend=on"
        kept += [word, value] if value else [word]
    return kept


class LibvirtGuest(CounterGuest):
    """A counter guest that is a persistent domain of libvirt's, with a QMP monitor beside libvirt's own.

    argv() is libvirt's command line without what only libvirt can hand to QEMU (descriptors, its monitor, its
    secret), so that the same machine can be started without libvirt.
    """

    kind: ClassVar[str] = "libvirt-counter"

    def __init__(
        self, libvirt: Libvirt, workdir: Union[str, os.PathLike[str]], name: str, *, devices: str = "", **options: Any
    ) -> None:
        """Describe the guest; devices is XML of further devices, options are CounterGuest's."""
        options.setdefault("uuid", str(uuids.uuid4()))
        super().__init__(workdir, name, **options)
        self.libvirt = libvirt
        self.devices = devices
        self._argv: list[str] = []
        self.scratch_image = self.workdir / "scratch.img"  # a disk that QEMU locks, as it may write to it

    def prepare(self) -> None:
        """Make the disks."""
        super().prepare()
        if not self.scratch_image.exists():
            self.scratch_image.touch()
            os.truncate(self.scratch_image, 1 << 20)

    def domain_xml(self) -> str:
        """The domain that start() defines."""
        extra = ["-qmp", f"unix:{escaped(self.qmp_socket)},server=on,wait=off", *self.extra_args]
        arguments = "\n".join(f"    <qemu:arg value={quoteattr(word)}/>" for word in extra)
        return f"""\
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{escape(self.name)}</name>
  <uuid>{self.uuid}</uuid>
  <memory unit='MiB'>{self.memory_mib}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine={quoteattr(self.machine)}>hvm</type>
    <boot dev='hd'/>
  </os>
  <features>
    <acpi/>
  </features>
  <devices>
    <emulator>{escape(self.qemu)}</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/>
      <source file={quoteattr(str(self.boot_image))}/>
      <target dev='vda' bus='virtio'/>
      <readonly/>
    </disk>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/>
      <source file={quoteattr(str(self.scratch_image))}/>
      <target dev='vdb' bus='virtio'/>
    </disk>
    <serial type='unix'>
      <source mode='bind' path={quoteattr(str(self.serial_socket))}/>
      <log file={quoteattr(str(self.serial_log))} append='on'/>
    </serial>
{self.devices or _NO_DEVICES}
  </devices>
  <seclabel type='none'/>
  <qemu:commandline>
{arguments}
  </qemu:commandline>
</domain>
"""

    def argv(self, incoming: Union[bool, str] = False) -> list[str]:
        """libvirt's command line for this guest, for a QEMU without libvirt; known once libvirt has started it."""
        if not self._argv:
            raise GuestError(f"libvirt has not started {self.name} yet")
        return [*self._argv, *(["-incoming", "defer" if incoming is True else incoming] if incoming else [])]

    def start(self, incoming: Union[bool, str] = False, timeout: Optional[float] = None) -> None:
        """Have libvirt define and start it, and wait for its boot line; with incoming, start it without libvirt."""
        if incoming:
            super().start(incoming, timeout)
            return
        deadline = time.monotonic() + (self.boot_timeout if timeout is None else timeout)
        self.prepare()
        boots = self.boots()
        definition = self.workdir / "domain.xml"
        definition.write_text(self.domain_xml())
        self.libvirt.virsh("define", definition)
        self.libvirt.virsh("start", self.name)
        self.wait_restarted()
        self._argv = without_libvirt(read_argv(self.pid or 0), self.serial_socket, self.serial_log)
        self._wait(lambda: self.boots() > boots, deadline, "its boot line")

    def end(self) -> None:
        """Kill QEMU, whoever started it, and wait until libvirt has seen its domain end."""
        super().end()
        if self.name in self.libvirt.virsh("list", "--all", "--name").split():
            self.libvirt.wait_state(self.name, "shut off")

    def close(self) -> None:
        """End QEMU and have libvirt forget the domain."""
        super().close()
        if self.name in self.libvirt.virsh("list", "--all", "--name").split():
            self.libvirt.virsh("undefine", self.name)

    def stderr(self) -> str:
        """What its QEMUs have written: libvirt's log of the domain, and that of one without libvirt."""
        return self.libvirt.domain_log(self.name)[-2000:] + super().stderr()
