# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The guest memory that lies in files, whose contents outlive QEMU.

A QEMU (10.0) that loads a sparse image leaves alone what was zero at the save, as new memory is zero. Memory in a file
is not new: what was written to it after the save would be in the restored guest, without a word. So shared memory is
emptied while QEMU waits for the image, and what must not or cannot be emptied is refused. A stream (``raw`` and the
compressed formats) says of each page whether it is zero, and needs none of this.

Looked at is what the process has mapped and holds open, not what its command line says. A file is only written to
through the descriptor of QEMU's own, so that nobody can lead root to a file that QEMU itself could not write to.
"""

from __future__ import annotations

import asyncio
import bisect
import collections
import contextlib
import dataclasses
import errno
import fcntl
import os
import re
import stat
import threading
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._cancellation import looking
from ansible_collections.vmops.qemu.plugins.module_utils._holes import data_ranges, punch
from ansible_collections.vmops.qemu.plugins.module_utils._proc import all_pids, open_again, read_proc
from ansible_collections.vmops.qemu.plugins.module_utils._process_handle import open_pidfd, take_descriptor
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.monitor import Monitor
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import QemuProcess
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.vm import RamBlock, parse_ram_blocks
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.devices import read_children, read_devices
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.media import Medium, MediumFile
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.verdict import Problem

#: Bytes that are compared with zeros at a time.
_CHUNK = 1024 * 1024
_ZEROS = bytes(_CHUNK)

#: File systems on which a write through a mapping changes the file's time of modification, if the file was flushed
#: before (measured, or read in the kernel's sources for xfs); tmpfs and hugetlbfs keep it as it is.
_TELLING_FILE_SYSTEMS = frozenset(("ext2", "ext3", "ext4", "xfs", "btrfs"))

#: A line of /proc/PID/maps (proc(5)) that has a file's inode.
_FILE_MAPPING = re.compile(
    rb"^([0-9a-f]+)-([0-9a-f]+) (\S{4}) ([0-9a-f]+) ([0-9a-f]+:[0-9a-f]+) ([1-9][0-9]*) +(.+)$", re.MULTILINE
)

#: Bytes of that list of another process; a program with many libraries has 200 KiB.
_MAX_MAPS = 16 * 1024 * 1024

#: What the kernel appends to the name of a file that has none any more.
_DELETED = " (deleted)"


@dataclasses.dataclass(frozen=True)
class MemoryFile:
    """A RAM block of the guest's, and the file that it is mapped from."""

    #: QEMU's name for the block, as in the save image; empty for memory that no image holds (virtio-pmem).
    block: str
    #: The file as the kernel names it; empty where there is none (virtio-pmem over anonymous memory).
    path: str
    #: The process that has it mapped.
    pid: int = 0
    inode: int = 0
    #: The file system, as /proc/PID/maps has it, which need not be what stat(2) says.
    file_system: str = ""
    #: Whether it is a part of the machine's own memory, and not one that is there to be shared (ivshmem), or a disk.
    is_own: bool = True
    #: Whether the file has no name any more, so that it ends with QEMU.
    deleted: bool = False
    #: Whether what the guest writes goes into the file.
    shared: bool = True
    #: Whether QEMU itself may write to the memory.
    writable: bool = True
    #: Whether QEMU was told to allocate all of it in advance.
    allocated: bool = False
    #: The parts of the file: offset and length in bytes.
    ranges: tuple[tuple[int, int], ...] = ()
    #: The device that gives it to the guest as a disk (nvdimm, virtio-pmem): type and id.
    device_type: str = ""
    device: str = ""
    #: Why nothing more is known of it, as a clause, or the empty string.
    uncheckable: str = ""

    @property
    def label(self) -> str:
        """The memory as messages name it."""
        name = self.device or self.block
        return f"its {self.device_type or 'memory'} {name}".rstrip()


async def memory_disk_media(monitor: Monitor, process: QemuProcess | None) -> list[Medium]:
    """As :func:`memory_media` of all files; a VM without such devices costs one question.

    :raises MonitorError: QEMU could not be asked.
    """
    if not await _memory_disks(monitor):
        return []
    return await looking(memory_media, await memory_files(monitor, process))


async def memory_files(monitor: Monitor, process: QemuProcess | None) -> list[MemoryFile]:
    """The guest memory that lies in files, and that of virtio-pmem devices wherever it lies.

    :param process: the QEMU behind the monitor, where it is known.
    :raises MonitorError: QEMU could not be asked.
    """
    disks, listed = await asyncio.gather(
        _memory_disks(monitor),
        monitor.execute_if_known("x-query-ramblock"),  # not before QEMU 6.2
    )
    blocks = [block for block in parse_ram_blocks(listed["human-readable-text"] if listed else "") if block.address]
    if process is None or not blocks:
        why = "its process is not known here" if process is None else "this QEMU does not say where its memory is"
        return await _unseen(monitor, disks, why)
    try:
        mappings = _file_mappings(process.pid, blocks)
    except OSError as exc:
        return await _unseen(monitor, disks, f"its mappings cannot be read: {exc.strerror}")
    memory = await monitor.execute("query-memdev") if mappings else []
    allocated = {entry.get("id") for entry in memory if entry["prealloc"]}
    pmem = [disk for disk in disks if disk.device_type == "virtio-pmem"]
    places = await _host_addresses(monitor, pmem if mappings else [])
    for_others = await _backends_for_others(monitor) if mappings else frozenset()
    nameless = collections.Counter(block.used for block, _parts in mappings if not block.name)
    found = []
    for block, parts in mappings:
        first = parts[0]
        backend = block.name.rpartition("/")[2]
        disk = next((disk for disk in disks if block.name and disk.backend == backend), None)
        if not block.name:
            disk = next((disk for disk in pmem if places.get(disk) == block.address), None)
            if disk is None:
                # Of another device, or of one of which QEMU does not say where its memory is.
                alike = [disk for disk in pmem if disk.size == block.used and disk not in places]
                if len(alike) != 1 or nameless[block.used] != 1:
                    continue
                disk = alike[0]
            pmem.remove(disk)
        found.append(
            MemoryFile(
                block=block.name,
                path=first.path,
                pid=process.pid,
                inode=first.inode,
                file_system=first.file_system,
                is_own=not (disk or backend in for_others or backend == "ivshmem.bar2"),
                deleted=first.deleted,
                shared=first.shared,
                writable=first.writable,
                allocated=(disk.backend if disk else backend) in allocated,
                ranges=tuple((part.offset, part.length) for part in parts),
                device_type=disk.device_type if disk else "",
                device=disk.name if disk else "",
                uncheckable="" if len({part.inode for part in parts}) == 1 else "it is mapped from several files",
            )
        )
    for disk in pmem:
        untold = disk not in places and nameless[disk.size]
        why = "this QEMU does not say which file it has" if untold else ""
        found.append(MemoryFile("", "", device_type=disk.device_type, device=disk.name, uncheckable=why))
    return found


def memory_problems(files: t.Iterable[MemoryFile], sparse: bool, stop: threading.Event | None = None) -> list[Problem]:
    """What a restore would refuse, or would not notice; reads files, so it belongs into a (stoppable) thread.

    Right for a save, and for a restore into a QEMU that waits.

    :param sparse: whether the image is a sparse one.
    :param stop: set when nobody waits for the result any more.
    """
    return [problem for file in files for problem in _problems(file, sparse, stop or threading.Event())]


def empty_memory(files: t.Sequence[MemoryFile], begin: t.Callable[[], object] = lambda: None) -> list[Problem]:
    """Empty the shared memory of a QEMU that waits for a sparse image.

    It reads and writes, so it belongs into a thread, and must not be left alone by a cancellation: the next run may
    load. All or nothing: where one file must not be emptied, none is.

    :param begin: called before the first byte is written; not where there are problems.
    :returns: what makes the load of a sparse image wrong; empty where it may begin.
    """
    problems = [problem for problem in memory_problems(files, sparse=True) if problem.blocks]
    if problems:
        return problems
    begin()
    for file in files:
        if file.block and file.shared and file.writable:
            try:
                with _descriptor(file) as descriptor:
                    _empty(descriptor, file)
            except OSError as exc:
                problems.append(
                    Problem(
                        "memory_file",
                        f"{file.label}, the file {file.path}, cannot be emptied before the load: {exc.strerror}",
                        _CURE,
                    )
                )
    return problems


def shared_memory_problems(files: t.Iterable[MemoryFile], stop: threading.Event | None = None) -> list[Problem]:
    """Memory that other processes have mapped, too, and that a restore puts back under them; looks at all processes.

    As far as this user may look at them. A server of the machine's devices (vhost-user) has its own memory mapped, and
    gets all of it anew.

    :param stop: set when nobody waits for the result any more.
    """
    shared = {_mapped_as(file): file for file in files if file.inode and file.shared and file.block and not file.is_own}
    own = {_mapped_as(file) for file in files if file.inode and file.is_own}
    holders: dict[str, list[str]] = {key: [] for key in shared}
    vm_pids = {file.pid for file in shared.values()}
    for pid in all_pids() if shared else []:
        if pid in vm_pids or (stop and stop.is_set()):
            continue
        try:
            lines = _FILE_MAPPING.findall(read_proc(pid, "maps", _MAX_MAPS))
            mapped = {f"{line[4].decode('ascii')} {int(line[5])}" for line in lines}
            for key in mapped & shared.keys() if mapped.isdisjoint(own) else ():
                holders[key].append(f"{read_proc(pid, 'comm').decode('utf-8', 'replace').strip()} (pid {pid})")
        except OSError:
            pass  # it has ended, or may not be looked at
    return [
        Problem(
            "memory_shared",
            f"{shared[key].label} is the file {shared[key].path}, which {', '.join(names[:5])} has mapped, too: a"
            " restore puts back under others what was in it at the save",
            "End the other process before the restore, and let it begin anew after it",
            blocks=False,
        )
        for key, names in holders.items()
        if names
    ]


def memory_media(files: t.Iterable[MemoryFile]) -> list[Medium]:
    """The files that are the guest's disks as much as its memory (nvdimm, virtio-pmem), as disks are recorded.

    Their memory is flushed first, since the kernel notes only the first write to a page after a flush: it belongs into
    a thread. Later writes show only where the guest stands still.
    """
    return [
        Medium(
            backend=file.block.rpartition("/")[2],
            qdev=file.device,
            node="",
            read_only=not file.writable,
            files=(_medium_file(file),),
        )
        for file in files
        if file.device_type and file.path and file.shared and not file.deleted
    ]


def _mapped_as(file: MemoryFile) -> str:
    return f"{file.file_system} {file.inode}"


# --- what QEMU says ---


async def _backends_for_others(monitor: Monitor) -> frozenset[str]:
    """The ids of the memory objects that the guest has to share with others."""
    found = set()
    for path, kind in (await read_devices(monitor)).items():
        if kind == "ivshmem-plain":
            backend = await monitor.execute("qom-get", {"path": path, "property": "memdev"})
            found.add(str(backend).rpartition("/")[2])
    return frozenset(found)


@dataclasses.dataclass(frozen=True)
class _MemoryDisk:
    """A device that gives the guest memory as a disk; its backend is an object's id."""

    device_type: str
    name: str
    backend: str
    size: int
    #: Where the guest finds it; None where that is not told.
    address: int | None


async def _memory_disks(monitor: Monitor) -> list[_MemoryDisk]:
    return [
        _MemoryDisk(
            device["type"],
            device["data"].get("id", ""),
            device["data"].get("memdev", "").rpartition("/")[2],
            device["data"].get("size", 0),
            device["data"].get("memaddr"),
        )
        for device in await monitor.execute("query-memory-devices")
        if device["type"] in ("nvdimm", "virtio-pmem")
    ]


async def _host_addresses(monitor: Monitor, disks: t.Iterable[_MemoryDisk]) -> dict[_MemoryDisk, int]:
    """Where QEMU has the memory of devices that no RAM block names, as far as it tells."""
    found = {}
    for disk in disks:
        if disk.address is not None:
            question = {"command-line": f"gpa2hva {disk.address:#x}"}
            told = await monitor.execute_if_known("human-monitor-command", question)
            place = re.search(r" is 0x([0-9a-f]{1,16})\s*$", told or "")
            if place:
                found[disk] = int(place.group(1), 16)
    return found


async def _unseen(monitor: Monitor, disks: t.Sequence[_MemoryDisk], why: str) -> list[MemoryFile]:
    """The memory of a process that cannot be looked at, as QEMU itself describes it."""
    found = []
    by_backend = {disk.backend: disk for disk in disks}
    for name, kind in (await read_children(monitor, "/objects")).items():
        if not kind.startswith("memory-backend-"):
            continue
        disk = by_backend.get(name)
        pmem = disk is not None and disk.device_type == "virtio-pmem"
        path = ""
        if kind == "memory-backend-file":
            path = str(await monitor.execute("qom-get", {"path": f"/objects/{name}", "property": "mem-path"}))
        elif not pmem:
            continue  # it is new with each QEMU
        found.append(
            MemoryFile(
                block="" if pmem else name,
                path=path,
                device_type=disk.device_type if disk else "",
                device=disk.name if disk else "",
                uncheckable=why,
            )
        )
    return found


# --- what the kernel says ---


@dataclasses.dataclass(frozen=True)
class _Mapping:
    """A part of a RAM block that is mapped from a file."""

    path: str
    deleted: bool
    file_system: str
    inode: int
    shared: bool
    writable: bool
    offset: int
    length: int


def _file_mappings(pid: int, blocks: t.Iterable[RamBlock]) -> list[tuple[RamBlock, list[_Mapping]]]:
    """The RAM blocks that are mapped from files, in the order of their addresses.

    :raises OSError: the process has ended, or may not be looked at.
    """
    ordered = sorted(blocks, key=lambda block: block.address)
    starts = [block.address for block in ordered]
    found: dict[int, list[_Mapping]] = {}
    with open(f"/proc/{pid}/maps", "rb") as handle:
        lines = _FILE_MAPPING.findall(handle.read())
    for first_byte, behind, rights, offset, file_system, inode, name in lines:
        start, end = int(first_byte, 16), int(behind, 16)
        # RAM blocks do not overlap.
        index = bisect.bisect_left(starts, end) - 1
        if index < 0:
            continue
        block = ordered[index]
        first, last = max(start, block.address), min(end, block.address + block.maximum)
        if first >= last:
            continue
        path = os.fsdecode(name).replace("\\012", "\n")
        deleted = path.endswith(_DELETED)
        found.setdefault(index, []).append(
            _Mapping(
                path=path[: -len(_DELETED)] if deleted else path,
                deleted=deleted,
                file_system=file_system.decode("ascii"),
                inode=int(inode),
                shared=rights[3:4] == b"s",
                writable=rights[1:2] == b"w",
                offset=int(offset, 16) + first - start,
                length=last - first,
            )
        )
    return [(ordered[index], parts) for index, parts in sorted(found.items())]


@contextlib.contextmanager
def _descriptor(file: MemoryFile) -> t.Iterator[int]:
    """A copy of QEMU's own descriptor of the file, with no more rights than QEMU's.

    :raises OSError: QEMU holds none (any more), or it may not be copied.
    """
    names = (file.path, file.path + _DELETED)
    base = f"/proc/{file.pid}/fd"
    best = -1
    try:
        for number in os.listdir(base):
            with contextlib.suppress(FileNotFoundError):
                if os.readlink(f"{base}/{number}") in names:
                    copy = _copy_descriptor(file.pid, int(number))
                    writes = fcntl.fcntl(copy, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
                    if os.fstat(copy).st_ino == file.inode and (best < 0 or writes):
                        copy, best = best, copy
                    if copy >= 0:
                        os.close(copy)
        if best < 0:
            raise OSError(errno.EBADF, "its QEMU has no descriptor of it")
        yield best
    finally:
        if best >= 0:
            os.close(best)


def _copy_descriptor(pid: int, number: int) -> int:
    """The very descriptor of another process; raises OSError where it may not be had."""
    process = open_pidfd(pid)
    try:
        return take_descriptor(process, number)
    except OSError:
        if os.geteuid() == 0:
            raise
    finally:
        os.close(process)
    # The kernel may forbid it to all but a parent (Yama). Who is not root cannot be led further than his own rights.
    return os.open(f"/proc/{pid}/fd/{number}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)


@contextlib.contextmanager
def _reader(descriptor: int) -> t.Iterator[int]:
    """The same file, to be read without moving QEMU's own place in it."""
    own = open_again(descriptor, os.O_RDONLY | os.O_NONBLOCK)
    try:
        yield own
    finally:
        os.close(own)


def _extents(reader: int, offset: int, length: int) -> list[tuple[int, int]]:
    """The parts of a file that may hold something else than zeros: offset and length."""
    end = min(offset + length, os.fstat(reader).st_size)
    try:
        return list(data_ranges(reader, offset, end))
    except OSError:  # a file system that does not tell
        return [(offset, end - offset)]


def _written(reader: int, file: MemoryFile, stop: threading.Event | None = None) -> t.Iterator[tuple[int, int]]:
    """The chunks of the block's file in which something is not zero: offset and length."""
    for offset, length in file.ranges:
        for start, size in _extents(reader, offset, length):
            for place in range(start, start + size, _CHUNK):
                if stop and stop.is_set():
                    return
                chunk = os.pread(reader, min(_CHUNK, start + size - place), place)
                if chunk != _ZEROS[: len(chunk)]:
                    yield place, len(chunk)


# --- what follows ---

_CURE = "Let it start with an empty file, with memory-backend-memfd or with share=on, or save it with format raw"


def _problems(file: MemoryFile, sparse: bool, stop: threading.Event) -> t.Iterator[Problem]:
    if not file.block:
        yield from _disk_problems(file)
        return
    wants_look = sparse or not file.writable
    if wants_look and file.uncheckable:
        if sparse:
            what = f"{file.label} is the file {file.path}, whose contents cannot be seen: {file.uncheckable}"
            yield Problem("memory_file", what, "Run the task as root on the VM's host, or save it with format raw")
    elif wants_look:
        try:
            with _descriptor(file) as descriptor:
                yield from _content_problems(file, descriptor, sparse, stop)
        except OSError as exc:
            what = f"{file.label} is the file {file.path}, whose contents cannot be seen: {exc.strerror}"
            yield Problem("memory_file", what, _CURE)
    yield from _disk_problems(file)


def _content_problems(file: MemoryFile, descriptor: int, sparse: bool, stop: threading.Event) -> t.Iterator[Problem]:
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        if sparse:
            yield Problem("memory_file", f"{file.label} is {file.path}, which is not a regular file", _CURE)
        return
    if file.shared and file.writable:
        if sparse and fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDWR:
            yield Problem(
                "memory_file", f"{file.label} is {file.path}, which its QEMU does not have open for writing", _CURE
            )
        return
    with _reader(descriptor) as reader:
        written = next(_written(reader, file, stop), None)
    if written is None:
        return
    if not file.writable:
        yield Problem(
            "memory_read_only",
            f"{file.label} is read-only memory from {file.path}, into which QEMU cannot load what it has saved",
            "Take the device away before the save, or let it start with rom=off",
        )
    elif sparse:
        yield Problem(
            "memory_file", f"{file.label} is a private copy of the file {file.path}, which is not empty", _CURE
        )


def _disk_problems(file: MemoryFile) -> t.Iterator[Problem]:
    """What there is to say of memory that is a disk."""
    if not file.device_type:
        return
    lasting = file.path and file.shared and not file.deleted
    if not file.block and not lasting and not file.uncheckable:
        yield Problem(
            "memory_disk_lost",
            f"{file.label} has its contents in memory that ends with QEMU, and no image holds them",
            "Let it start with a file of its own and share=on, or use after_save: pause or resume",
            loses_data=True,
        )
    elif lasting or file.uncheckable:
        uncheckable = _medium_file(file).uncheckable
        if uncheckable:
            yield Problem(
                "memory_disk_unwatched",
                f"{file.label} is {file.path or 'memory'}, of which a later write cannot be seen: {uncheckable}",
                "See to it that nobody writes to it between save and restore, or put it on ext4, xfs or btrfs",
                blocks=False,
            )


def _empty(descriptor: int, file: MemoryFile) -> None:
    """:raises OSError: it could not be emptied, or its memory not be allocated again."""
    with _reader(descriptor) as reader:
        for offset, length in file.ranges:
            if _extents(reader, offset, length):
                with contextlib.suppress(OSError):  # not every file system can
                    punch(descriptor, offset, offset + length)
        for place, length in _written(reader, file):
            os.pwrite(descriptor, _ZEROS[:length], place)
        if next(_written(reader, file), None):
            raise OSError(errno.EBUSY, "someone else writes to it")
    if file.allocated:
        for offset, length in file.ranges:
            os.posix_fallocate(descriptor, offset, length)


def _medium_file(file: MemoryFile) -> MediumFile:
    if file.uncheckable:
        return MediumFile(file.path, "raw", uncheckable=file.uncheckable)
    try:
        with _descriptor(file) as descriptor:
            facts = os.fstat(descriptor)
            kind = _file_system_type(file.pid, descriptor)
            if not stat.S_ISREG(facts.st_mode):
                why = "it is not a regular file"
            elif kind not in _TELLING_FILE_SYSTEMS:
                why = f"its file system ({kind or 'of another mount namespace'}) does not note when memory is written"
            else:
                with _reader(descriptor) as reader:
                    os.fsync(reader)
                    facts = os.fstat(reader)
                return MediumFile(file.path, "raw", facts.st_size, facts.st_mtime_ns, facts.st_ino, facts.st_dev)
    except OSError as exc:
        why = exc.strerror or str(exc)
    return MediumFile(file.path, "raw", uncheckable=why)


def _file_system_type(pid: int, descriptor: int) -> str:
    """The type of the file system that a descriptor of QEMU's is on, or the empty string."""
    with open(f"/proc/self/fdinfo/{descriptor}", encoding="ascii", errors="replace") as handle:
        mount = next((line.split()[1] for line in handle if line.startswith("mnt_id:")), "")
    with open(f"/proc/{pid}/mountinfo", "rb") as mounts:
        for line in mounts:
            fields = line.split(b" ")
            if fields[0].decode("ascii", "replace") == mount:
                kind = fields[fields.index(b"-") + 1] if b"-" in fields else b""
                return kind.decode("ascii", "replace")
    return ""
