# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The Linux guest: Debian's cloud kernel, a busybox, a disk with ext4, a network card, and a process with state."""

from __future__ import annotations

import hashlib
import lzma
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Optional, Union

from .guest import REPOSITORY, SOURCES, Guest, GuestError, escaped, gaps, run

_META_PACKAGE = "linux-image-cloud-amd64"
_MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "virtio_console", "ext4")
_AGENT_PACKAGE = "qemu-guest-agent"
_CACHE = REPOSITORY / ".cache" / "guests"  # what was downloaded
_BUILD = REPOSITORY / "build" / "guests"  # what was made of it
_INIT = SOURCES / "tests" / "guests" / "linux" / "init"


class _Initramfs:
    """A cpio archive (newc). Written here, since cpio(1) makes device nodes only of nodes, which only root makes."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._inode = 0

    def add(self, name: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        """Append one entry; mode with the file type, device: major and minor number of a node."""
        self._inode += 1
        path = name.encode() + b"\0"
        fields = (self._inode, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(path), 0)
        self._data += b"070701" + b"".join(b"%08x" % field for field in fields) + path
        self._data += bytes(-len(self._data) % 4) + content
        self._data += bytes(-len(self._data) % 4)

    def finish(self) -> bytes:
        """The archive."""
        self.add("TRAILER!!!", 0)
        return bytes(self._data)


def fetch_kernel() -> Path:
    """Download Debian's cloud kernel into the cache, unless it is there; the directory that it is unpacked in.

    Raises GuestError where there is no apt or no network.
    """
    present = sorted(_CACHE.glob("linux-image-*-cloud-amd64"))
    if present:
        return present[-1]
    depends = run(["apt-cache", "depends", "--important", _META_PACKAGE], "Linux guest").stdout.decode()
    match = re.search(r"Depends: (linux-image-\S+-cloud-amd64)\s", depends)
    if match is None:
        raise GuestError(f"Linux guest: {_META_PACKAGE} is not known to apt; try apt-get update")
    return _fetch(match.group(1))


def _fetch(package: str) -> Path:
    """Download a package into the cache, unless it is there; the directory that it is unpacked in. It is not installed.

    Raises GuestError where there is no apt or no network.
    """
    final = _CACHE / package
    if final.is_dir():
        return final
    _CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_CACHE) as scratch:
        # apt's own user cannot write here, and says so at length
        run(["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", package], "Linux guest", cwd=scratch)
        (archive,) = Path(scratch).glob("*.deb")
        run(["dpkg", "-x", str(archive), os.path.join(scratch, "root")], "Linux guest")
        try:
            os.rename(os.path.join(scratch, "root"), final)
        except OSError:
            if not final.is_dir():  # else another test run was faster
                raise
    return final


def _module_name(path: Path) -> str:
    return path.name.split(".ko")[0].replace("-", "_")


def _module_files(kernel: Path) -> list[tuple[str, bytes]]:
    """The modules that the guest needs and that are not built in, each after those it depends on.

    The dependencies are read from the modules, as modules.dep is made only when a kernel is installed.
    """
    available = {_module_name(path): path for path in kernel.glob("**/modules/**/*.ko*")}
    found: dict[str, tuple[str, bytes]] = {}

    def add(name: str) -> None:
        path = available.get(name)
        if path is None or name in found:
            return
        content = path.read_bytes()
        if path.suffix == ".xz":
            content = lzma.decompress(content)
        needed = re.findall(rb"\0depends=([^\0]*)\0", content) + re.findall(rb"\0softdep=pre: ([^\0]*)\0", content)
        for dependency in re.split(r"[, ]+", b" ".join(needed).decode()):
            add(dependency.replace("-", "_"))
        found[name] = (f"{name}.ko", content)

    for name in _MODULES:
        add(name)
    return list(found.values())


def _agent_files() -> dict[str, Path]:
    """The guest agent and the libraries that it needs, by where they are in the guest.

    They are this host's, as QEMU needs most of them, too. Raises GuestError where one is not there.
    """
    program = _fetch(_AGENT_PACKAGE) / "usr" / "sbin" / "qemu-ga"
    libraries = run(["ldd", str(program)], "Linux guest's agent").stdout.decode()
    if "not found" in libraries:
        raise GuestError(f"Linux guest: its agent needs other libraries than this host has: {libraries}")
    files = {"usr/sbin/qemu-ga": program}
    for path in re.findall(r"(?:=>|^)\s+(/\S+) \(0x", libraries, re.MULTILINE):
        files[path.lstrip("/")] = Path(path)
    return files


def build_linux(agent: bool = False) -> tuple[Path, Path]:
    """Make the kernel and initramfs of the Linux guest, unless that was done; their paths.

    agent: with QEMU's guest agent in it.
    """
    kernel = fetch_kernel()
    try:
        (vmlinuz,) = (kernel / "boot").glob("vmlinuz-*")
    except ValueError as error:
        raise GuestError(f"Linux guest: not one kernel in {kernel}/boot") from error
    initramfs = _BUILD / f"{kernel.name}{'-agent' if agent else ''}.cpio"
    busybox = shutil.which("busybox")
    if busybox is None:
        raise GuestError("Linux guest: no busybox")
    newest = max(Path(path).stat().st_mtime for path in (busybox, _INIT, __file__))
    if initramfs.exists() and initramfs.stat().st_mtime >= newest:
        return vmlinuz, initramfs
    program = Path(busybox).read_bytes()
    if b"/ld-linux" in program:
        raise GuestError(f"Linux guest: {busybox} is not static; it needs the package busybox-static")

    archive = _Initramfs()
    for directory in ("bin", "dev", "modules"):
        archive.add(directory, stat.S_IFDIR | 0o755)
    archive.add("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))  # the kernel opens it for init
    archive.add("bin/busybox", stat.S_IFREG | 0o755, program)
    archive.add("bin/sh", stat.S_IFLNK | 0o777, b"busybox")
    archive.add("init", stat.S_IFREG | 0o755, _INIT.read_bytes())
    files = _agent_files() if agent else {}
    parents = {str(parent) for name in files for parent in Path(name).parents if parent.name}
    for directory in sorted(parents - {"bin", "dev", "modules"}):
        archive.add(directory, stat.S_IFDIR | 0o755)
    for name, path in files.items():
        archive.add(name, stat.S_IFREG | 0o755, path.read_bytes())
    modules = _module_files(kernel)
    for name, content in modules:
        archive.add(f"modules/{name}", stat.S_IFREG | 0o644, content)
    archive.add("modules/list", stat.S_IFREG | 0o644, "".join(f"{name}\n" for name, _content in modules).encode())
    _BUILD.mkdir(parents=True, exist_ok=True)
    descriptor, new = tempfile.mkstemp(dir=_BUILD)
    with os.fdopen(descriptor, "wb") as file:
        file.write(archive.finish())
    os.replace(new, initramfs)
    return vmlinuz, initramfs


class LinuxGuest(Guest):
    """A Linux that appends numbered lines to a file on its disk and says each number on the serial port."""

    kind: ClassVar[str] = "linux"
    boot_line: ClassVar[str] = r"^boot block=\d+\r?$"
    boot_timeout: ClassVar[float] = 120.0
    checksum_command: ClassVar[bytes] = b"checksum\n"
    command_end: ClassVar[bytes] = b"\n"

    def __init__(
        self,
        workdir: Union[str, os.PathLike[str]],
        name: str,
        *,
        memory_mib: int = 256,
        block_mib: int = 16,
        disk_mib: int = 64,
        uuid: Optional[str] = None,
        extra_args: Iterable[str] = (),
        qemu: str = "qemu-system-x86_64",
        machine: str = "pc",
        accel: str = "tcg",
        observer: bool = False,
        agent: bool = False,
    ) -> None:
        """Describe the guest; block_mib: size of the file in memory that is checksummed, disk_mib: of its disk.

        agent: whether QEMU's guest agent runs in it.
        """
        super().__init__(
            workdir,
            name,
            memory_mib=memory_mib,
            uuid=uuid,
            extra_args=extra_args,
            qemu=qemu,
            machine=machine,
            accel=accel,
            observer=observer,
        )
        self.block_mib = block_mib
        self.disk_mib = disk_mib
        self.agent = agent
        self.disk = self.workdir / "disk.img"

    def config(self) -> dict[str, Any]:
        """The constructor's arguments beside workdir."""
        return {**super().config(), "block_mib": self.block_mib, "disk_mib": self.disk_mib, "agent": self.agent}

    @property
    def agent_socket(self) -> Path:
        """The socket of the guest agent, of a guest that has one."""
        return self._socket_dir / "agent.sock"

    def prepare(self) -> None:
        """Build the kernel's files and make the disk, if there is none yet."""
        super().prepare()
        build_linux(self.agent)
        if not self.disk.exists():
            new = self.disk.with_suffix(".new")
            new.unlink(missing_ok=True)
            run([_sbin("mkfs.ext4"), "-q", "-F", str(new), f"{self.disk_mib}m"], "Linux guest's disk")
            os.replace(new, self.disk)

    def device_args(self) -> list[str]:
        """Kernel, disk and card. The card's network is QEMU's own, cut off from the host's."""
        vmlinuz, initramfs = build_linux(self.agent)
        words = f"console=ttyS0 quiet loglevel=1 panic=-1 mitigations=off vmops.block={self.block_mib}"
        argv = ["-kernel", str(vmlinuz), "-initrd", str(initramfs), "-append", words]
        argv += ["-drive", f"if=none,id=disk0,format=raw,file={escaped(self.disk)}"]
        argv += ["-device", "virtio-blk-pci,drive=disk0"]
        argv += ["-netdev", "user,id=net0,restrict=on", "-device", "virtio-net-pci,netdev=net0,romfile="]
        if self.agent:
            socket = f"socket,id=agent0,path={escaped(self.agent_socket)},server=on,wait=off"
            argv += ["-device", "virtio-serial-pci", "-chardev", socket]
            argv += ["-device", "virtserialport,chardev=agent0,name=org.qemu.guest_agent.0"]
        return argv

    def clock(self, timeout: float = 15.0) -> tuple[int, int]:
        """The guest's clocks, in seconds since the epoch: the system's, and its RTC's."""
        found = self.command(b"clock\n", r"^clock=(\d+) rtc=(\d+)\r?$", timeout)
        return int(found.group(1)), int(found.group(2))

    def set_clock(self, seconds: int, timeout: float = 15.0) -> None:
        """Set the system's clock, to seconds since the epoch."""
        self.command(f"set-clock {seconds}\n", r"^clock-set\r?$", timeout)

    def sleep(self, timeout: float = 15.0) -> None:
        """Have the guest sleep (S3); it does so a moment later, until something wakes it."""
        self.command(b"sleep\n", r"^sleeping\r?$", timeout)

    def network(self, timeout: float = 15.0) -> bool:
        """Whether the guest's card works: whether a ping to QEMU's side is answered."""
        return self.command(b"network\n", r"^network=(up|down)\r?$", timeout).group(1) == "up"

    def write_file(self, number: int, timeout: float = 30.0) -> str:
        """Have the guest write a MiB of random content into /file.N on its disk and flush it; the checksum."""
        return self.command(f"write {number}\n", r"^written=([0-9a-f]{8})\r?$", timeout).group(1)

    def read_file(self, number: int, timeout: float = 30.0) -> str:
        """Have the guest read /file.N from its disk, past its caches; the checksum, as write_file() gave it."""
        return self.command(f"read {number}\n", r"^read=([0-9a-f]{8})\r?$", timeout).group(1)

    def file_on_disk(self, number: int) -> str:
        """The checksum of /file.N, read from the disk from outside; the guest must be off."""
        argv = [_sbin("debugfs"), "-R", f"cat /file.{number}", str(self.disk)]
        done = subprocess.run(argv, check=True, capture_output=True)
        return hashlib.sha256(done.stdout).hexdigest()[:8]

    def power_off(self, timeout: float = 30.0) -> None:
        """Have the guest unmount its disk and power off, and wait up to timeout seconds for QEMU to end."""
        self.command(b"poweroff\n", r"^unmounted\r?$", timeout)
        self.wait_exit(timeout)

    def fsck(self) -> None:
        """Check the disk's file system, which must be unmounted and clean; raises GuestError with fsck's words."""
        run([_sbin("fsck.ext4"), "-f", "-n", str(self.disk)], "fsck")
        state = run([_sbin("dumpe2fs"), "-h", str(self.disk)], "fsck").stdout.decode()
        if "needs_recovery" in state or not re.search(r"^Filesystem state: +clean$", state, re.MULTILINE):
            raise GuestError(f"the file system was not unmounted: {state}")

    def disk_lines(self, boot: int = 1) -> list[int]:
        """The numbers that the process of the boot-th cold boot has written to the disk; the guest must be off."""
        # Not by run(): debugfs greets on stderr
        argv = [_sbin("debugfs"), "-R", f"cat /lines.{boot}", str(self.disk)]
        done = subprocess.run(argv, check=True, capture_output=True)
        return [int(line) for line in done.stdout.split()]

    def check_disk(self) -> None:
        """After power_off: the file system is sound and the process wrote every line once; raises GuestError."""
        self.fsck()
        lines = self.disk_lines(self.boots())
        if not lines or lines[0] != 1 or gaps(lines) or lines[-1] < self.counters()[-1]:
            raise GuestError(f"lines on the disk: {len(lines)}, gaps {gaps(lines)}, said: {self.counters()[-1:]}")


def _sbin(program: str) -> str:
    """The path of a program of e2fsprogs, which are not on everyone's PATH."""
    found = shutil.which(program, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")
    if found is None:
        raise GuestError(f"no {program}; it is in the package e2fsprogs")
    return found
