# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The configurations: what is started, what is done to it, and how its save and restore must end."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Optional, Union

from machine_configurations.place import MIB, Place, Skip, needs_root, replaced, run, wait_for_job
from support import Monitor
from support.guest import Guest
from support.tpm import Swtpm
from support.versions import NEW_QEMU, OLD_QEMU

Words = Sequence[object]

#: How a configuration ends: it comes back; it comes back, and the save says what is lost or cannot be known; the save
#: is refused as it could not be restored; the save is refused for another reason, QEMU's or its state's.
RESTORED, SAID, REFUSED, NOT_SAVED = "restored", "said", "refused", "not saved"


@dataclasses.dataclass(frozen=True)
class Case:
    """One configuration."""

    group: str
    text: str
    words: Callable[[Place], Words]
    outcome: str = RESTORED
    #: The kinds of problems that are said, or for which it is refused; where the save is refused for another reason,
    #: the name of the error.
    kinds: tuple[str, ...] = ()
    machine: str = "pc"
    memory_mib: int = 64
    #: How the counter guest boots ("virtio", "ide"); empty: the firmware alone runs.
    boot: str = "virtio"
    qemu: str = "qemu-system-x86_64"
    #: For the firmware alone: where its memory begins.
    memory_at: int = 0
    #: What is done to the running machine before the save.
    change: Optional[Callable[[Guest, Place], object]] = None
    #: What is done between save and restore, as an operator would.
    meanwhile: Optional[Callable[[Guest, Place], object]] = None
    #: Of its command line.
    rewrite: Optional[Callable[[list[str]], list[str]]] = None
    #: The VM's name after -name, where it is not the usual one; None where it has none.
    name: Optional[str] = ""
    #: The options by which the modules find it, where not by its name.
    address: Optional[Callable[[Guest], dict[str, Any]]] = None
    #: What the advice of a save that fails must have in it.
    cure: str = ""
    #: Why it does not end so yet, where it does not.
    pending: str = ""
    #: More options of qemu_save, and the state of the guest after the restore.
    save: dict[str, Any] = dataclasses.field(default_factory=dict)
    paused: bool = False

    @property
    def id(self) -> str:
        return f"{self.group}: {self.text}"


CASES: list[Case] = []
_group = ""


def group(text: str) -> None:
    """What follows belongs to this group of the table."""
    global _group  # noqa: PLW0603
    _group = text


def case(text: str, *words: object, **facts: Any) -> None:
    """Add a configuration; its words, or a function of the place that makes them."""
    function = words[0] if words and callable(words[0]) else None
    CASES.append(Case(_group, text, function or (lambda _place: words), **facts))


def refused(text: str, kinds: Union[str, tuple[str, ...]], *words: object, **facts: Any) -> None:
    """Add one that is refused at the save."""
    case(text, *words, outcome=REFUSED, kinds=(kinds,) if isinstance(kinds, str) else kinds, **facts)


def said(text: str, kinds: Union[str, tuple[str, ...]], *words: object, **facts: Any) -> None:
    """Add one that comes back, of which the save says something."""
    case(text, *words, outcome=SAID, kinds=(kinds,) if isinstance(kinds, str) else kinds, **facts)


def not_saved(text: str, error: str, *words: object, **facts: Any) -> None:
    """Add one that cannot be saved at all."""
    case(text, *words, outcome=NOT_SAVED, kinds=(error,), **facts)


def qmp(guest: Guest, *commands: Any) -> list[Any]:
    """Run several commands in one session."""
    with Monitor(guest.qmp_socket) as monitor:
        return [
            monitor.execute(*command) if isinstance(command, tuple) else monitor.execute(command)
            for command in commands
        ]


def hmp(guest: Guest, command: str) -> None:
    """Run a command of the human monitor, which must say nothing."""
    answer = guest.qmp("human-monitor-command", {"command-line": command})
    assert not answer, answer


# --- chipsets and firmware ---

group("Chipsets and firmware")
case("pc")
case("q35", machine="q35")
for version in ("7.2", "8.2", "9.2"):
    case(f"pc-i440fx-{version}", machine=f"pc-i440fx-{version}")
    case(f"pc-q35-{version}", machine=f"pc-q35-{version}")
case("isapc", machine="isapc", boot="ide")
case("microvm", machine="microvm", boot="")
case("microvm with PCI and ACPI", machine="microvm,pcie=on,rtc=on", boot="")
case("q35, no ACPI, no HPET", machine="q35,acpi=off,hpet=off")
case("q35 with USB", machine="q35,usb=on")
case("q35 with SMM", machine="q35,smm=on")
case("All default devices", rewrite=lambda argv: [word for word in argv if word != "-nodefaults"])
case("Firmware by -bios", "-bios", "/usr/share/seabios/bios-256k.bin")


def ovmf(place: Place) -> tuple[Path, Path]:
    code, variables = (Path(f"/usr/share/OVMF/OVMF_{part}_4M.fd") for part in ("CODE", "VARS"))
    if not code.exists():
        raise Skip("no OVMF")
    return code, Path(shutil.copy(variables, place / "vars.fd"))


def ovmf_drives(place: Place) -> Words:
    code, variables = ovmf(place)
    return (
        *("-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={code}"),
        *("-drive", f"if=pflash,format=raw,unit=1,file={variables}"),
    )


def ovmf_nodes(place: Place) -> Words:
    code, variables = ovmf(place)
    return (
        *("-blockdev", f"driver=file,node-name=code,filename={code},read-only=on"),
        *("-blockdev", f"driver=file,node-name=vars,filename={variables}"),
        *("-machine", "pflash0=code,pflash1=vars"),
    )


case("OVMF in flash, by -drive", ovmf_drives, machine="q35", memory_mib=128, boot="")
case("OVMF in flash, by -blockdev", ovmf_nodes, machine="q35", memory_mib=128, boot="")
case("SMBIOS, fw_cfg and ACPI tables", "-smbios", "type=11,value=hello", "-fw_cfg", "name=opt/vmops,string=hello")

# --- CPUs ---

group("CPUs and clocks")
case("-smp 4 -cpu max", "-smp", "4", "-cpu", "max")
case("Sockets, cores and threads", "-smp", "4,sockets=2,cores=2,threads=1")
case("-cpu qemu64, named features off", "-cpu", "qemu64,-svm")
case("invtsc", "-cpu", "max,+invtsc")
case(
    "One thread for all CPUs", "-smp", "2", rewrite=lambda argv: replaced(argv, "-accel", "-accel", "tcg,thread=single")
)
case("icount", "-icount", "shift=4,sleep=off")
case("The clock of the guest's own", "-rtc", "base=utc,clock=vm")
case("Fewer CPUs than possible", "-smp", "1,maxcpus=4")
refused(
    "CPU plugged in",
    "cpu_added",
    *("-smp", "1,maxcpus=2,sockets=2", "-cpu", "qemu64"),
    change=lambda guest, _place: qmp(
        guest,
        (
            "device_add",
            {"driver": "qemu64-x86_64-cpu", "id": "cpu1", "socket-id": 1, "core-id": 0, "thread-id": 0},
        ),
    ),
)

# --- memory ---

group("Memory")
SIZE = "size=64M"
BACKEND = ("-machine", "memory-backend=mem")
HOTPLUG = ("-m", "64,slots=4,maxmem=1G")


def file_memory(place: Place, *more: str, path: Optional[Path] = None, name: str = "mem") -> Words:
    path = path or place.memory()
    return ("-object", ",".join([f"memory-backend-file,id={name},{SIZE},mem-path={path}", *more]))


def not_empty(place: Place) -> Path:
    path = place.memory()
    path.write_bytes(b"x" * 64 * MIB)
    return path


def nvdimm(words: Words, *more: str) -> Words:
    return (*words, "-device", ",".join(["nvdimm,memdev=nv,id=nv0", *more]), *HOTPLUG, "-machine", "nvdimm=on")


def pmem(words: Words) -> Words:
    return (*words, "-device", "virtio-pmem-pci,memdev=nv,id=pm0", *HOTPLUG)


def huge_memory(_place: Place) -> Words:
    free = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
    if not free.exists() or int(free.read_text()) < 32:
        raise Skip("no free huge pages")
    return ("-object", f"memory-backend-memfd,id=mem,{SIZE},hugetlb=on,hugetlbsize=2M", *BACKEND)


case("memory-backend-ram", "-object", f"memory-backend-ram,id=mem,{SIZE}", *BACKEND)
case("memory-backend-memfd", "-object", f"memory-backend-memfd,id=mem,{SIZE},share=on", *BACKEND)
case("memory-backend-shm", "-object", f"memory-backend-shm,id=mem,{SIZE}", *BACKEND)
case("Huge pages", huge_memory)
case("Shared file", lambda place: (*file_memory(place, "share=on"), *BACKEND))
case("Shared file, allocated in advance", lambda place: (*file_memory(place, "share=on", "prealloc=on"), *BACKEND))
case("Private file, empty", lambda place: (*file_memory(place, "share=off"), *BACKEND))
case("-mem-path, a directory", lambda place: ("-mem-path", place.memory().parent))
case("-mem-path, an empty file", lambda place: ("-mem-path", place.memory()))
refused("-mem-path, a file that is not empty", "memory_file", lambda place: ("-mem-path", not_empty(place)))
refused(
    "Private file, not empty",
    "memory_file",
    lambda place: (*file_memory(place, "share=off", path=not_empty(place)), *BACKEND),
)
case(
    "Private file, not empty, saved with format raw",
    lambda place: (*file_memory(place, "share=off", path=not_empty(place)), *BACKEND),
    save={"format": "raw"},
)
case("Locked in RAM", "-overcommit", "mem-lock=on")
case(
    "Two NUMA nodes",
    *("-object", "memory-backend-ram,id=m0,size=32M", "-object", "memory-backend-ram,id=m1,size=32M"),
    *("-smp", "2", "-numa", "node,memdev=m0,cpus=0", "-numa", "node,memdev=m1,cpus=1"),
)
case("DIMM", *HOTPLUG, "-object", "memory-backend-ram,id=d0,size=64M", "-device", "pc-dimm,memdev=d0,id=dimm0")
case(
    "virtio-mem that has grown",
    *(*HOTPLUG, "-object", "memory-backend-ram,id=vm0,size=256M"),
    *("-device", "virtio-mem-pci,memdev=vm0,id=vmem0,requested-size=0"),
    machine="q35",
    change=lambda guest, _place: qmp(
        guest, ("qom-set", {"path": "/machine/peripheral/vmem0", "property": "requested-size", "value": 64 * MIB})
    ),
)
case(
    "Balloon, inflated",
    *("-device", "virtio-balloon-pci,id=balloon0"),
    change=lambda guest, _place: qmp(guest, ("balloon", {"value": 48 * MIB})),
)
case(
    "nvdimm on a disk's file system",
    lambda place: nvdimm(file_memory(place, "share=on", path=place.file("nv", 64 * MIB), name="nv")),
)
said(
    "nvdimm on tmpfs",
    ("memory_disk_unwatched", "on_tmpfs"),
    lambda place: nvdimm(file_memory(place, "share=on", name="nv")),
)
refused(
    "nvdimm, read-only and not empty",
    "memory_read_only",
    lambda place: nvdimm(
        file_memory(place, "share=on", "readonly=on", path=place.file("nv", 64 * MIB, b"x"), name="nv"), "unarmed=on"
    ),
)
case(
    "virtio-pmem on a disk's file system",
    lambda place: pmem(file_memory(place, "share=on", path=place.file("nv", 64 * MIB), name="nv")),
)
refused(
    "virtio-pmem without a file",
    "memory_disk_lost",
    lambda _place: pmem(("-object", f"memory-backend-ram,id=nv,{SIZE}")),
)
case(
    "ivshmem, master",
    lambda place: (*file_memory(place, "share=on", name="iv"), "-device", "ivshmem-plain,memdev=iv,master=on"),
)
not_saved(
    "ivshmem, peer",
    "UnsupportedByQemuError",
    lambda place: (*file_memory(place, "share=on", name="iv"), "-device", "ivshmem-plain,memdev=iv"),
)


def plug_memory(guest: Guest, _place: Place) -> None:
    qmp(
        guest,
        ("object-add", {"qom-type": "memory-backend-ram", "id": "hot", "size": 64 * MIB}),
        ("device_add", {"driver": "pc-dimm", "memdev": "hot", "id": "dimm0"}),
    )


refused("DIMM plugged in", "memory_added", *HOTPLUG, change=plug_memory)

# --- disks ---

group("Disks")


def virtio(words: str, device: str = "virtio-blk-pci") -> tuple[str, ...]:
    return ("-drive", f"if=none,id=d0,{words}", "-device", f"{device},drive=d0,id=disk0")


def qcow2(place: Place) -> Words:
    return virtio(f"format=qcow2,file={place.disk('d.qcow2')}")


def nodes(place: Place, device: str = "virtio-blk-pci") -> Words:
    return (
        *("-blockdev", f"driver=qcow2,node-name=n0,file.driver=file,file.filename={place.disk('d.qcow2')}"),
        *("-device", f"{device},drive=n0,id=disk0"),
    )


def chain(place: Place) -> Words:
    base = place.disk("base.qcow2")
    middle = place.disk("middle.qcow2", "qcow2", "-b", str(base), "-F", "qcow2")
    return virtio(f"format=qcow2,file={place.disk('top.qcow2', 'qcow2', '-b', str(middle), '-F', 'qcow2')}")


case("raw", lambda place: virtio(f"format=raw,file={place.file('d.raw')}"))
case("qcow2", qcow2)
case("qcow2 with two backing files", chain)
case("Nodes by -blockdev", nodes)
case(
    "Nodes in JSON",
    lambda place: (
        "-blockdev",
        json.dumps(
            {
                "driver": "qcow2",
                "node-name": "n0",
                "file": {"driver": "file", "filename": str(place.disk("d.qcow2"))},
            }
        ),
        "-device",
        json.dumps({"driver": "virtio-blk-pci", "drive": "n0", "id": "disk0"}),
    ),
)
case("A relative path", lambda place: virtio(f"format=qcow2,file={os.path.join('..', place.disk('d.qcow2').name)}"))
case("-hda and -cdrom", lambda place: ("-hdb", place.disk("d.qcow2"), "-cdrom", place.file("cd.iso")))
case("Read-only", lambda place: virtio(f"format=raw,readonly=on,file={place.file('d.raw')}"))
case("iothread", lambda place: ("-object", "iothread,id=io0", *nodes(place, "virtio-blk-pci,iothread=io0")))
case(
    "virtio-scsi",
    lambda place: ("-device", "virtio-scsi-pci", *virtio(f"format=qcow2,file={place.disk('d.qcow2')}", "scsi-hd")),
)
case("AHCI", lambda place: virtio(f"format=qcow2,file={place.disk('d.qcow2')}", "ide-hd"), machine="q35")
case("Floppy", lambda place: ("-drive", f"if=floppy,format=raw,file={place.file('f.img', 1474560)}"))
case(
    "USB storage",
    lambda place: ("-device", "qemu-xhci", *virtio(f"format=qcow2,file={place.disk('d.qcow2')}", "usb-storage")),
)
case(
    "SD card",
    lambda place: ("-device", "sdhci-pci", *virtio(f"format=raw,file={place.file('sd.img')}", "sd-card")),
)
not_saved(
    "NVMe (migrates from QEMU 11.0 on)",
    "UnsupportedByQemuError",
    lambda place: virtio(f"format=qcow2,file={place.disk('d.qcow2')}", "nvme,serial=1"),
)
case("io_uring, cache=none", lambda place: virtio(f"format=raw,aio=io_uring,cache=none,file={place.file('d.raw')}"))
case("cache=unsafe, discard", lambda place: virtio(f"format=raw,cache=unsafe,discard=unmap,file={place.file('d.raw')}"))
case(
    "Throttled, copy on read",
    lambda place: virtio(
        f"format=qcow2,throttling.iops-total=100,copy-on-read=on,file={str(chain(place)[1]).split('file=')[1]}"
    ),
)
case(
    "LUKS with a secret",
    lambda place: (
        *("-object", f"secret,id=s0,file={place.text('secret', 'geheim')}"),
        *("-blockdev", f"driver=luks,node-name=n0,key-secret=s0,file.driver=file,file.filename={luks(place)}"),
        *("-device", "virtio-blk-pci,drive=n0"),
    ),
)


def luks(place: Place) -> Path:
    path = place / "d.luks"
    if not path.exists():
        secret = place.text("secret", "geheim")
        options = ("--object", f"secret,id=s0,file={secret}", "-o", "key-secret=s0,iter-time=10")
        run("qemu-img", "create", "-q", "-f", "luks", *options, path, "16M")
    return path


def nbd(place: Place) -> Words:
    path = place / "nbd.sock"
    place.server("qemu-nbd", "-t", "-f", "qcow2", "-k", path, "--shared=4", place.disk("d.qcow2"), socket=path)
    return virtio(f"format=raw,file=nbd+unix:///?socket={path}")


def vhost_user_blk(place: Place) -> Words:
    path = place / "blk.sock"
    place.server(
        *("qemu-storage-daemon", "--blockdev", f"driver=file,node-name=n0,filename={place.file('d.raw')}"),
        *("--export", f"type=vhost-user-blk,id=e0,addr.type=unix,addr.path={path},node-name=n0,writable=on"),
        socket=path,
    )
    return (
        *("-object", f"memory-backend-memfd,id=mem,{SIZE},share=on", *BACKEND),
        *("-chardev", f"socket,id=c0,path={path}", "-device", "vhost-user-blk-pci,chardev=c0"),
    )


said("NBD", "server_needed", nbd)
said("vhost-user-blk", "server_needed", vhost_user_blk)
case("Drive without a medium", "-drive", "if=ide,media=cdrom")
case(
    "Persistent bitmap",
    qcow2,
    change=lambda guest, _place: qmp(
        guest, ("block-dirty-bitmap-add", {"node": "d0", "name": "b0", "persistent": True})
    ),
)
for kind in ("vmdk", "vdi", "vhdx", "vpc"):
    not_saved(
        kind,
        "UnsupportedByQemuError",
        lambda place, kind=kind: virtio(f"format={kind},file={place.disk('d.' + kind, kind)}"),
    )
not_saved("vvfat, writable", "UnsupportedByQemuError", lambda place: virtio(f"file=fat:rw:{place.folder('fat')}"))
refused(
    "snapshot=on",
    ("temporary_disks",),
    lambda place: virtio(f"format=qcow2,snapshot=on,file={place.disk('d.qcow2')}"),
)
refused("-snapshot", ("temporary_disks",), lambda place: (*qcow2(place), "-snapshot"))

# --- what changes while it runs ---

group("Disks and media that were changed at run time")


def filled_chain(place: Place) -> Words:
    base = place.disk("base.qcow2")
    run("qemu-io", "-c", "write -P 1 0 8M", base)
    return virtio(f"format=qcow2,file={place.disk('top.qcow2', 'qcow2', '-b', str(base), '-F', 'qcow2')}")


def overlay_node(guest: Guest, place: Place) -> None:
    """As a backup tool does."""
    overlay = place.disk("overlay.qcow2", "qcow2", "-b", str(place / "d.qcow2"), "-F", "qcow2")
    qmp(
        guest,
        (
            "blockdev-add",
            {
                "driver": "qcow2",
                "node-name": "o",
                "backing": None,
                "file": {"driver": "file", "filename": str(overlay)},
            },
        ),
        ("blockdev-snapshot", {"node": "n0", "overlay": "o"}),
    )


def snapshot(name: str) -> Callable[[Guest, Place], object]:
    def change(guest: Guest, place: Place) -> None:
        file = str(place / name) if name.startswith("o") else name
        qmp(guest, ("blockdev-snapshot-sync", {"device": "d0", "snapshot-file": file, "format": "qcow2"}))

    return change


def mirror(guest: Guest, place: Place) -> None:
    target = {
        "device": "d0",
        "target": str(place / "copy-of-d.qcow2"),
        "sync": "full",
        "format": "qcow2",
        "job-id": "j",
    }
    qmp(guest, ("drive-mirror", target))
    wait_for_job(guest, "j")


def begin(job: str, **arguments: Any) -> Callable[[Guest, Place], object]:
    def change(guest: Guest, place: Place) -> None:
        target = {"target": str(place / "target.qcow2")} if job != "block-stream" else {}
        sync = {"sync": "full", "format": "qcow2"} if target else {}
        qmp(guest, (job, {"device": "d0", "job-id": "j", "speed": 1, **target, **sync, **arguments}))

    return change


def export(guest: Guest, place: Place) -> None:
    address = {"type": "unix", "data": {"path": str(place / "export.sock")}}
    qmp(
        guest,
        ("nbd-server-start", {"addr": address}),
        ("block-export-add", {"type": "nbd", "id": "e0", "node-name": "n0"}),
    )


refused("Overlay by blockdev-snapshot, whose name is json:", "disk_replaced", nodes, change=overlay_node)
refused("Overlay by blockdev-snapshot-sync", "disk_replaced", qcow2, change=snapshot("overlay.qcow2"))
refused("Overlay with a relative name", "disk_replaced", qcow2, change=snapshot("d.qcow2"))
refused("Mirrored to another file", "disk_replaced", qcow2, change=mirror)
refused("A mirror at work", "block_job", qcow2, change=begin("drive-mirror"))
refused("A backup at work", "block_job_fatal", qcow2, change=begin("drive-backup"))
refused("A stream at work", "block_job_fatal", filled_chain, change=begin("block-stream"))
said(
    "A dirty bitmap that is not persistent",
    "dirty_bitmap",
    qcow2,
    change=lambda guest, _place: qmp(guest, ("block-dirty-bitmap-add", {"node": "d0", "name": "b0"})),
)
refused("A disk exported by NBD", "export", nodes, change=export)
case("After an internal snapshot", qcow2, change=lambda guest, _place: hmp(guest, "savevm s0"))


def cd(place: Place) -> Words:
    return virtio(f"format=raw,media=cdrom,readonly=on,file={place.file('a.iso', MIB)}", "ide-cd")


def change_medium(guest: Guest, place: Place) -> None:
    medium = {"id": "disk0", "filename": str(place.file("b.iso", MIB, b"b")), "format": "raw"}
    qmp(guest, ("blockdev-change-medium", medium))


def two_cds(place: Place) -> Words:
    other = f"if=none,id=d1,format=raw,media=cdrom,readonly=on,file={place.file('b.iso', MIB, b'b')}"
    return (*cd(place), "-drive", other, "-device", "ide-cd,drive=d1")


refused(
    "CD ejected",
    "disk_replaced",
    cd,
    change=lambda guest, _place: qmp(guest, ("eject", {"id": "disk0", "force": True})),
)
refused("CD changed", "disk_replaced", cd, change=change_medium)
refused("CD changed to one that another drive has", "disk_replaced", two_cds, change=change_medium)
PORT = ("-device", "pcie-root-port,id=port0,chassis=1")


def unplug(name: str) -> Callable[[Guest, Place], object]:
    """The guest does not answer a request to let go of a device; a reset does it."""

    def change(guest: Guest, _place: Place) -> None:
        with Monitor(guest.qmp_socket) as monitor:
            monitor.execute("stop")
            monitor.execute("device_del", {"id": name})
            monitor.execute("system_reset")
            monitor.execute("cont")
            monitor.wait_event("DEVICE_DELETED", 10)

    return change


def plugged_disk(guest: Guest, place: Place) -> None:
    qmp(
        guest,
        (
            "blockdev-add",
            {"driver": "qcow2", "node-name": "h0", "file": {"driver": "file", "filename": str(place.disk("h.qcow2"))}},
        ),
        ("device_add", {"driver": "virtio-blk-pci", "drive": "h0", "id": "hot0"}),
    )


def two_nodes(place: Place) -> Words:
    words = []
    for number in ("0", "1"):
        path = place.disk(f"d{number}.qcow2")
        words += ["-blockdev", f"driver=qcow2,node-name=n{number},file.driver=file,file.filename={path}"]
        words += ["-device", f"virtio-blk-pci,drive=n{number},id=disk{number}"]
    return words


def swap_places(guest: Guest, place: Place) -> None:
    """Each is in the slot of the other then, and has its own id and file."""
    for number in ("0", "1"):
        unplug(f"disk{number}")(guest, place)
    for number in ("1", "0"):
        qmp(guest, ("device_add", {"driver": "virtio-blk-pci", "drive": f"n{number}", "id": f"disk{number}"}))


refused("Two disks unplugged, and plugged in in the other order", "device_plugged", two_nodes, change=swap_places)


def slice_of_it(guest: Guest, _place: Place) -> None:
    qmp(
        guest,
        ("blockdev-add", {"driver": "raw", "node-name": "part", "offset": MIB, "size": MIB, "file": "n0"}),
        ("qom-set", {"path": "/machine/peripheral/disk0", "property": "drive", "value": "part"}),
    )


refused("A part of the disk given to the guest in its place", "disk_chain", nodes, change=slice_of_it)
case(
    "A part of a file",
    lambda place: virtio(f"format=raw,offset=512,size=1M,file={place.file('d.raw')}"),
)
case("Directory as a disk", lambda place: virtio(f"readonly=on,file=fat:{place.folder('fat')}"))
case("Nothing as a disk", *virtio("format=raw,file=null-co://,file.size=1M"))


def fleecing(guest: Guest, place: Place) -> None:
    target = {"driver": "file", "filename": str(place.file("target.raw"))}
    qmp(
        guest,
        ("blockdev-add", {"driver": "copy-before-write", "node-name": "above", "file": "n0", "target": target}),
        ("qom-set", {"path": "/machine/peripheral/disk0", "property": "drive", "value": "above"}),
    )


refused("Copy before write above the disk", ("block_filter", "disk_chain"), nodes, change=fleecing)
refused("Disk plugged in", ("device_plugged", "disk_added"), change=plugged_disk)

# --- other devices that come and go ---

group("Devices that were plugged in or out")
refused(
    "Network card plugged in",
    "device_plugged",
    *("-netdev", "user,id=n0"),
    change=lambda guest, _place: qmp(guest, ("device_add", {"driver": "e1000", "netdev": "n0", "id": "nic0"})),
)
refused(
    "Network card plugged in without an id, by HMP",
    "device_plugged",
    *("-netdev", "user,id=n0"),
    change=lambda guest, _place: hmp(guest, "device_add e1000,netdev=n0"),
)
refused(
    "USB tablet plugged in",
    "device_plugged",
    *("-device", "qemu-xhci"),
    change=lambda guest, _place: qmp(guest, ("device_add", {"driver": "usb-tablet", "id": "tablet0"})),
)
refused(
    "Network card plugged in, with its back end",
    "device_plugged",
    change=lambda guest, _place: qmp(
        guest,
        ("netdev_add", {"type": "user", "id": "n0"}),
        ("device_add", {"driver": "e1000", "netdev": "n0", "id": "nic0"}),
    ),
)


def unplug_from_machine(guest: Guest, place: Place) -> None:
    devices = guest.qmp("qom-list", {"path": "/machine/unattached"})
    name = next(device["name"] for device in devices if device["type"] == "child<e1000>")
    unplug(f"/machine/unattached/{name}")(guest, place)


refused("Network card of -nic unplugged", "device_unplugged", "-nic", "user,model=e1000", change=unplug_from_machine)
refused(
    "USB tablet unplugged",
    "device_unplugged",
    *("-device", "qemu-xhci", "-device", "usb-tablet,id=tablet0"),
    change=lambda guest, _place: qmp(guest, ("device_del", {"id": "tablet0"})),
)

# --- networks ---

group("Networks")
NIC = ("-device", "virtio-net-pci,netdev=n0")
case("user", "-netdev", "user,id=n0", *NIC)
case("user with a forwarded port", "-netdev", "user,id=n0,hostfwd=tcp:127.0.0.1:0-:22", *NIC)
said(
    "Port forwarded at run time",
    "host_forward",
    *("-netdev", "user,id=n0", *NIC),
    change=lambda guest, _place: hmp(guest, "hostfwd_add n0 tcp:127.0.0.1:0-:22"),
)
for model in ("e1000", "e1000e", "rtl8139", "vmxnet3", "pcnet", "ne2k_pci", "i82559er"):
    case(model, "-netdev", "user,id=n0", "-device", f"{model},netdev=n0")
case("-nic", "-nic", "user,model=e1000")
said(
    "Persistent tap",
    "tap_needed",
    lambda place: ("-netdev", f"tap,id=n0,ifname={place.tap()},script=no,downscript=no", *NIC),
)
case(
    "tap with a script",
    lambda place: ("-netdev", tap_script(place), *NIC),
)


def tap_script(place: Place) -> str:
    needs_root()
    script = place.text("ifup", '#!/bin/sh\nip link set "$1" up\n')
    script.chmod(0o755)
    return f"tap,id=n0,script={script},downscript=no"


case("socket", lambda place: ("-netdev", "socket,id=n0,udp=127.0.0.1:9,localaddr=127.0.0.1:0", *NIC))
case(
    "stream",
    lambda place: ("-netdev", f"stream,id=n0,server=on,addr.type=unix,addr.path={place / 'stream.sock'}", *NIC),
)
case(
    "dgram",
    lambda place: (
        *(
            "-netdev",
            f"dgram,id=n0,local.type=unix,local.path={place / 'a'},remote.type=unix,remote.path={place / 'b'}",
        ),
        *NIC,
    ),
)
case("hubport", "-netdev", "hubport,id=n0,hubid=0", *NIC)


def in_namespace(*before: str) -> Callable[[Place], Words]:
    """In a network namespace; NAME stands for its own."""

    def words(place: Place) -> Words:
        name = place.network_namespace()
        place.prefix = tuple(word.replace("NAME", name) for word in before)
        return ("-netdev", "tap,id=n0,ifname=vmt0,script=no,downscript=no", *NIC)

    return words


def without_network(place: Place) -> Words:
    needs_root()
    place.prefix = ("unshare", "--net")
    return ("-nic", "none")


def nameless_namespace(place: Place) -> Words:
    needs_root()
    place.prefix = ("unshare", "--net")
    return ("-netdev", "user,id=n0", *NIC)


case("By ip netns exec", in_namespace("ip", "netns", "exec", "NAME"))
case("By nsenter, in a named network namespace", in_namespace("nsenter", "--net=/run/netns/NAME"))
case("In a network namespace of its own, without a network", without_network)
refused("In a network namespace without a name", "network_namespace", nameless_namespace)

# --- displays, input, sound ---

group("Displays, input, sound")
case("VNC", lambda place: ("-vnc", f"unix:{place / 'vnc.sock'}", "-device", "VGA"))
said(
    "VNC with a password that QMP had set",
    "vnc_password",
    lambda place: ("-vnc", f"unix:{place / 'vnc.sock'},password=on", "-device", "VGA"),
    change=lambda guest, _place: qmp(guest, ("set_password", {"protocol": "vnc", "password": "geheim"})),
)
case(
    "SPICE", lambda place: ("-spice", f"unix=on,addr={place / 'spice.sock'},disable-ticketing=on", "-device", "qxl-vga")
)
for model in ("VGA", "cirrus-vga", "bochs-display", "virtio-vga", "virtio-gpu-pci", "vmware-svga", "ramfb"):
    case(model, "-device", model)
case(
    "USB keyboard, mouse and tablet",
    "-device",
    "qemu-xhci",
    *(w for d in ("kbd", "mouse", "tablet") for w in ("-device", f"usb-{d}")),
)
case(
    "virtio keyboard, mouse and tablet",
    *(w for d in ("keyboard", "mouse", "tablet") for w in ("-device", f"virtio-{d}-pci")),
)
case("Sound: HDA", "-audiodev", "none,id=a0", "-device", "intel-hda", "-device", "hda-duplex,audiodev=a0")
said(
    "Sound: AC97, to a file",
    "log_begun_anew",
    lambda place: ("-audiodev", f"wav,id=a0,path={place / 'a.wav'}", "-device", "AC97,audiodev=a0"),
)
not_saved(
    "virtio sound", "UnsupportedByQemuError", "-audiodev", "none,id=a0", "-device", "virtio-sound-pci,audiodev=a0"
)

# --- serial ports and other devices ---

group("Serial ports and other devices")


def virtiofs(place: Place) -> Words:
    # Of QEMU 7.2, which had one of its own.
    program = OLD_QEMU.parent / "root" / "usr" / "lib" / "qemu" / "virtiofsd"
    path = place / "fs.sock"
    place.server(program, f"--socket-path={path}", "-o", f"source={place.folder('shared')}", "-f", socket=path)
    return (
        *("-object", f"memory-backend-memfd,id=mem,{SIZE},share=on", *BACKEND),
        *("-chardev", f"socket,id=c0,path={path}", "-device", "vhost-user-fs-pci,chardev=c0,tag=shared"),
    )


case("Second serial port, a pty", "-serial", "pty")
case("Second serial port, a file", lambda place: ("-serial", f"file:{place / 'console.log'}"))
case(
    "Chardev to a file with a log",
    lambda place: ("-chardev", f"file,id=c1,path={place / 'c.log'},logfile={place / 'd.log'}", "-serial", "chardev:c1"),
)
case("Console to a file by -readconfig", lambda place: ("-readconfig", console_configuration(place)))


def console_configuration(place: Place) -> Path:
    chardev = f'[chardev "c1"]\n  backend = "file"\n  path = "{place / "e.log"}"\n'
    return place.text("console.conf", f'{chardev}[device "s1"]\n  driver = "isa-serial"\n  chardev = "c1"\n')


case("-debugcon", lambda place: ("-debugcon", f"file:{place / 'debug.log'}"))
case("Ring buffer", "-chardev", "ringbuf,id=c1,size=4096", "-serial", "chardev:c1")
case(
    "Guest agent's channel",
    lambda place: (
        *("-chardev", f"socket,id=ga0,path={place / 'ga.sock'},server=on,wait=off", "-device", "virtio-serial-pci"),
        *("-device", "virtserialport,chardev=ga0,name=org.qemu.guest_agent.0"),
    ),
)
case("virtio-rng", "-object", "rng-random,id=r0,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=r0")
not_saved(
    "virtio-crypto",
    "UnsupportedByQemuError",
    "-object",
    "cryptodev-backend-builtin,id=c0",
    "-device",
    "virtio-crypto-pci,cryptodev=c0",
)
case("i6300esb", "-device", "i6300esb", "-action", "watchdog=pause")
case("pvpanic, vmcoreinfo, vmgenid", "-device", "pvpanic", "-device", "vmcoreinfo", "-device", "vmgenid,guid=auto")
case("IPMI", "-device", "ipmi-bmc-sim,id=b0", "-device", "isa-ipmi-kcs,bmc=b0")
case("PCI bridges and root ports", *PORT, "-device", "pcie-pci-bridge,id=b0,bus=port0", machine="q35")
case("Second root bus", "-device", "pxb-pcie,bus_nr=8,id=pxb0", machine="q35")
case("intel-iommu", "-device", "intel-iommu", machine="q35,kernel-irqchip=split")
case("virtio-iommu", "-device", "virtio-iommu-pci", machine="q35")
case("USB hubs and controllers", "-device", "ich9-usb-ehci1", "-device", "piix3-usb-uhci", "-device", "nec-usb-xhci")
case("Emulated smart card", "-device", "qemu-xhci", "-device", "usb-ccid")
case("edu, pci-testdev", "-device", "edu", "-device", "pci-testdev")
refused("virtiofs", "server_state", virtiofs)
case("9p, not mounted", lambda place: ("-virtfs", f"local,path={place.directory},mount_tag=t0,security_model=none"))


def swtpm(place: Place, device: str = "tpm-tis") -> Words:
    if shutil.which("swtpm") is None:
        raise Skip("no swtpm")
    tpm = Swtpm(place.directory)
    place.undo(tpm.kill)  # also the one that the restore starts
    tpm.start()
    return tpm.qemu_args(device)


case("TPM (TIS) by swtpm, which ends with QEMU", swtpm)
case("TPM (CRB) by swtpm", lambda place: swtpm(place, "tpm-crb"), machine="q35")

# --- names and monitors ---

group("Names and monitors")
for text, name in (
    ("spaces", "web server 1"),
    ("UTF-8", "bücher-東京"),
    ("commas", "a,b,c"),
    ("an equals sign", "a=b"),
    ("a percent sign, a dollar, a quote", "50%-$HOME-it's"),
    ("200 characters", "n" * 200),
):
    case(f"A name with {text}", name=name, save={"path": "image.save"})
case(
    "-name guest=, debug-threads",
    rewrite=lambda argv: replaced(argv, "-name", "-name", f"debug-threads=on,guest={argv[2]}"),
)
case("No name, by its socket", name=None, address=lambda guest: {"qmp_socket": str(guest.qmp_socket)})
case("With a uuid", "-uuid", "7d0a3d3e-1c5a-4a52-8a47-4a2e9c1f0b11")


def free_port() -> int:
    """A TCP port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


TCP = free_port()


def monitors(*words: str, after: bool = False) -> Callable[[list[str]], list[str]]:
    """More monitors before the usual one, or after it."""

    def rewrite(argv: list[str]) -> list[str]:
        index = argv.index("-qmp") + (2 if after else 0)
        return [*argv[:index], *words, *argv[index:]]

    return rewrite


def monitor_chardev() -> Callable[[list[str]], list[str]]:
    def rewrite(argv: list[str]) -> list[str]:
        path = argv[argv.index("-qmp") + 1].split(",")[0][len("unix:") :]
        chardev = ("-chardev", f"socket,id=m0,path={path},server=on,wait=off")
        return replaced(argv, "-qmp", *chardev, "-mon", "chardev=m0,mode=control")

    return rewrite


case(
    "QMP on TCP after the one on a UNIX socket",
    rewrite=monitors("-qmp", f"tcp:127.0.0.1:{TCP},server=on,wait=off", after=True),
)
case(
    "QMP on TCP before the one on a UNIX socket",
    rewrite=monitors("-qmp", f"tcp:127.0.0.1:{TCP},server=on,wait=off"),
)
case("QMP on stdio beside a socket", rewrite=monitors("-qmp", "stdio"))
case("A human monitor before", rewrite=monitors("-monitor", "pty"))
case("-chardev and -mon", rewrite=monitor_chardev())


def monitor_in_file(argv: list[str]) -> list[str]:
    path = argv[argv.index("-qmp") + 1].split(",")[0][len("unix:") :]
    config = Path(path).parent / "monitor.cfg"
    if config.parent.is_dir():
        config.write_text(
            f'[chardev "m0"]\nbackend = "socket"\npath = "{path}"\nserver = "on"\nwait = "off"\n\n'
            '[mon "m"]\nchardev = "m0"\nmode = "control"\n'
        )
    return replaced(argv, "-qmp", "-readconfig", str(config))


case("The monitor in -readconfig", rewrite=monitor_in_file)


# --- configuration files ---

group("Configuration files")


def chipset(place: Place) -> Words:
    return (
        "-readconfig",
        place.text("chipset.cfg", '[device "port0"]\n  driver = "pcie-root-port"\n  chassis = "1"\n'),
    )


case("Chipset by -readconfig", chipset, machine="q35")
refused(
    "-readconfig and an overlay",
    "disk_replaced",
    lambda place: (*chipset(place), *qcow2(place)),
    machine="q35",
    change=snapshot("overlay.qcow2"),
)
refused(
    "-readconfig and a device that was plugged in",
    "device_plugged",
    lambda place: (*chipset(place), "-netdev", "user,id=n0"),
    machine="q35",
    change=lambda guest, _place: qmp(
        guest, ("device_add", {"driver": "e1000", "netdev": "n0", "id": "nic0", "bus": "port0"})
    ),
)
case("-global and -set", "-global", "virtio-net-pci.host_mtu=1400", "-netdev", "user,id=n0", *NIC)
case("-device in JSON", "-device", '{"driver":"virtio-rng-pci","id":"r0"}')

# --- how it was started ---

group("How it was started")


#: Starts a program with a listening socket as its descriptor 99.
WITH_SOCKET = """
import os, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
os.dup2(listener.fileno(), 99)
os.execvp(sys.argv[2], sys.argv[2:])
"""


def inherited_socket(place: Place) -> Words:
    place.prefix = (sys.executable, "-c", WITH_SOCKET, str(place / "inherited.sock"))
    return ("-chardev", "socket,id=c9,fd=99,server=on,wait=off", "-serial", "chardev:c9")


def jail(place: Place) -> Words:
    needs_root()
    return ("-run-with", f"chroot={place.folder('jail')}")


def relative_pid_file(place: Place) -> Words:
    return ("-daemonize", "-pidfile", "vm.pid", "-serial", "file:console.log", *nodes(place))


def own_user(_place: Place) -> Words:
    needs_root()
    return ("-run-with", "user=nobody")


def in_mount_namespace(place: Place) -> Words:
    needs_root()
    place.prefix = ("unshare", "--mount")
    return qcow2(place)


def by(*prefix: str) -> Callable[[list[str]], list[str]]:
    return lambda argv: [*prefix, *argv]


case("-daemonize, absolute paths", lambda place: ("-daemonize", *qcow2(place)))
refused("-run-with user=", ("working_directory", "opened_as_root"), own_user)
case("-sandbox on", "-sandbox", "on,spawn=deny")
case("-pidfile, -msg", lambda place: ("-pidfile", place / "pid", "-msg", "timestamp=on"))
said("A log by -D", "log_begun_anew", lambda place: ("-D", place / "log", "-d", "guest_errors"))
case("-run-with async-teardown=on", "-run-with", "async-teardown=on")
case("In a jail, -run-with chroot=", jail)
case("In a jail, with a disk as a node", lambda place: (*jail(place), *nodes(place)))
refused("In a jail, with a disk by -drive", "disk_name_lost", lambda place: (*jail(place), *qcow2(place)))
refused(
    "Relative paths with -daemonize",
    ("disk_name_lost", "disk_unknown", "working_directory"),
    lambda place: ("-daemonize", *virtio(f"format=qcow2,file={os.path.join('..', place.disk('d.qcow2').name)}")),
)
case("Relative paths with -daemonize, found by what is open", relative_pid_file)
refused(
    "In a mount namespace",
    "mount_namespace",
    in_mount_namespace,
)
case("Under nice and taskset", rewrite=by("taskset", "-c", "0", "nice", "-n", "3"))
case("Under ionice, chrt and choom", rewrite=by("ionice", "-c", "3", "chrt", "--batch", "0", "choom", "-n", "99", "--"))
case("Under prlimit", rewrite=by("prlimit", "--nofile=1777", "--core=0", "--memlock=1048576"))


def pin(guest: Guest, _place: Place) -> None:
    """Each virtual CPU on one of the host's, as a script does it that asks QEMU for its threads."""
    cpus = sorted(os.sched_getaffinity(0))
    for entry in guest.qmp("query-cpus-fast"):
        os.sched_setaffinity(entry["thread-id"], {cpus[entry["cpu-index"] % len(cpus)]})


case("Virtual CPUs on CPUs of their own", "-smp", "2", change=pin)
refused("A socket that was inherited", "inherited_descriptor", inherited_socket)

# --- other programs' command lines ---

group("As programs that start VMs do")


def qmp_path(argv: Sequence[str]) -> str:
    """Where the usual monitor is."""
    return argv[argv.index("-qmp") + 1].split(",")[0][len("unix:") :]


def with_monitor(*words: str) -> Callable[[list[str]], list[str]]:
    """With these words in the place of the usual monitor; ``PATH`` is where that is."""

    def rewrite(argv: list[str]) -> list[str]:
        return replaced(argv, "-qmp", *(word.replace("PATH", qmp_path(argv)) for word in words))

    return rewrite


#: Starts a program with an end of a connection as its descriptor 3, as podman does for gvproxy.
WITH_CONNECTION = """
import os, socket, sys
here, there = socket.socketpair()
os.dup2(there.fileno(), 3)
os.execvp(sys.argv[1], sys.argv[1:])
"""


def podman_network(place: Place) -> Words:
    place.prefix = (sys.executable, "-c", WITH_CONNECTION)
    return ("-netdev", "socket,id=vlan,fd=3", "-device", "virtio-net-pci,netdev=vlan")


case(
    "microvm.nix",
    *("-nographic", "-no-reboot", "-sandbox", "on"),
    *("-device", "virtio-serial-device", "-chardev", "stdio,mux=on,id=virtiocon0,signal=off"),
    *("-device", "virtconsole,chardev=virtiocon0", "-device", "virtio-rng-device"),
    machine="microvm,x-option-roms=off,isa-serial=off,pit=off,pic=off,rtc=off",
    boot="",
    rewrite=with_monitor("-qmp", "unix:PATH,server,nowait"),
)
case(
    "Proxmox VE, where nobody has the second monitor's socket",
    lambda place: (
        *("-no-shutdown", "-daemonize", "-pidfile", place / "100.pid", "-nodefaults"),
        *("-chardev", f"socket,id=qmp-event,path={place / 'qmeventd.sock'},reconnect-ms=5000"),
        *("-mon", "chardev=qmp-event,mode=control"),
    ),
    rewrite=with_monitor("-chardev", "socket,id=qmp,path=PATH,server=on,wait=off", "-mon", "chardev=qmp,mode=control"),
)
case(
    "Lima",
    lambda place: ("-no-user-config", "-parallel", "none", "-pidfile", place / "qemu.pid"),
    rewrite=with_monitor("-chardev", "socket,id=char-qmp,path=PATH,server=on,wait=off", "-qmp", "chardev:char-qmp"),
)
refused("podman machine: its network is a descriptor", "inherited_descriptor", podman_network)

# Each as the program's source builds it, with TCG for KVM, and without what is not to be had here: taps with helpers,
# vsock, a kernel. Where the program waits for its QEMU, a process of its name does so.

UUID = "7d0a3d3e-1c5a-4a52-8a47-4a2e9c1f0b12"


def without_defaults_of_tests(*words: str) -> Callable[[list[str]], list[str]]:
    """With these words in the place of the usual monitor, and of what the tests' guests switch off."""

    def rewrite(argv: list[str]) -> list[str]:
        own = [word for word in argv if word not in ("-nodefaults", "-no-user-config")]
        return with_monitor(*words)(own)

    return rewrite


def multipass(place: Place) -> Words:
    place.child_of("multipassd")
    code, _variables = ovmf(place)
    return (
        *("-L", code.parent, "-drive", f"file={code},if=pflash,format=raw,readonly=on,file.locking=off", "-cpu", "max"),
        *("-nic", "user,model=virtio-net-pci,mac=52:54:00:4b:ab:cd", "-device", "virtio-scsi-pci,id=scsi0"),
        *("-drive", f"file={place.disk('ubuntu.img')},if=none,format=qcow2,discard=unmap,id=hda"),
        *("-device", "scsi-hd,drive=hda,bus=scsi0.0", "-smp", "1", "-m", "128M"),
        *("-chardev", "null,id=char0", "-serial", "chardev:char0", "-nographic"),
        *("-cdrom", place.file("cloud-init-config.iso", MIB), "-uuid", UUID),
    )


not_saved(
    "multipass, whose QMP server is its standard input and output",
    "VmNotFoundError",
    multipass,
    boot="",
    memory_mib=128,
    name=None,
    address=lambda _guest: {"uuid": UUID},
    rewrite=without_defaults_of_tests("-qmp", "stdio"),
    cure="multipass stop",
)


def gns3(place: Place) -> Words:
    """A node with a telnet console and one adapter, whose link ends at uBridge."""
    place.child_of("gns3server")
    near, far = free_port(), free_port()
    return (
        *("-smp", "cpus=1,sockets=1", "-boot", "order=c"),
        *("-drive", f"file={place.disk('hda_disk.qcow2')},if=virtio,index=0,media=disk,id=drive0", "-uuid", UUID),
        *("-serial", f"telnet:127.0.0.1:{free_port()},server,nowait", "-net", "none"),
        *("-device", "e1000,mac=0c:4b:ab:cd:00:00,netdev=gns3-0"),
        *("-netdev", f"socket,id=gns3-0,udp=127.0.0.1:{far},localaddr=127.0.0.1:{near}", "-display", "none"),
    )


GNS3_MONITOR = ("-monitor", f"tcp:127.0.0.1:{free_port()},server,nowait")
not_saved(
    "GNS3, which has a human monitor on TCP alone",
    "MonitorHumanError",
    gns3,
    rewrite=without_defaults_of_tests(*GNS3_MONITOR),
    cure="to the additional options of the node",
)
said(
    "GNS3, a node with -qmp among its options",
    "supervisor_unknown",
    gns3,
    rewrite=without_defaults_of_tests(*GNS3_MONITOR, "-qmp", "unix:PATH,server=on,wait=off"),
)
said(
    "GNS3 with QEMU 11.1, through its human monitor",
    "supervisor_unknown",
    gns3,
    qemu=str(NEW_QEMU),
    rewrite=without_defaults_of_tests(*GNS3_MONITOR),
)


VNG = (
    *("-cpu", "max", "-device", "i6300esb,id=watchdog0", "-parallel", "none", "-net", "none", "-echr", "1"),
    *("-chardev", "stdio,id=console,signal=off,mux=on", "-serial", "chardev:console", "-mon", "chardev=console"),
    *("-vga", "none", "-display", "none"),
)
#: What the kernel says goes to virtme-ng's own standard error; not with --systemd.
VNG_ERRORS = (
    *("-chardev", "file,path=/proc/self/fd/2,id=dmesg", "-device", "virtio-serial-pci"),
    *("-device", "virtconsole,chardev=dmesg"),
)


def vng(place: Place, *more: str) -> Words:
    place.child_of("vng")
    return (*more, *VNG)


def vng_root(place: Place) -> Words:
    """With the host's root directory by virtiofs."""
    words = virtiofs(place)
    return (*words[4:], *words[:2], "-numa", "node,memdev=mem", *vng(place, *VNG_ERRORS))


not_saved(
    "virtme-ng with --qmp, which is on TCP",
    "RequestError",
    vng,
    machine="q35",
    rewrite=without_defaults_of_tests("-qmp", f"tcp:localhost:{free_port()},server,nowait"),
    cure="--qemu-opts=",
)
refused(
    "virtme-ng with -qmp by --qemu-opts: it has the host's root directory, and its standard error",
    ("inherited_descriptor", "server_state"),
    vng_root,
    machine="q35",
    rewrite=without_defaults_of_tests("-qmp", "unix:PATH,server=on,wait=off"),
)


def vrnetlab(place: Place) -> Words:
    place.child_of("launch.py")
    return (
        *("-display", "none", "-serial", f"telnet:127.0.0.1:{free_port()},server,nowait", "-cpu", "max", "-smp", "1"),
        *("-drive", f"if=ide,file={place.disk('overlay.qcow2')}", "-device", "pci-bridge,chassis_nr=1,id=pci.1"),
        *("-device", "virtio-net-pci,netdev=p00,mac=0c:00:4b:ab:cd:00"),
        *("-netdev", "user,id=p00,net=10.0.0.0/24,host=10.0.0.2,dns=10.0.0.3,dhcpstart=10.0.0.15"),
    )


VRNETLAB_MONITOR = ("-monitor", f"tcp:127.0.0.1:{free_port()},server,nowait")
not_saved(
    "vrnetlab, which has a human monitor on TCP alone",
    "MonitorHumanError",
    vrnetlab,
    name=None,
    address=lambda guest: {"pid": guest.pid},
    rewrite=without_defaults_of_tests(*VRNETLAB_MONITOR),
    cure="to self.qemu_args in the launch.py",
)
said(
    "vrnetlab with -qmp in self.qemu_args",
    "supervisor_unknown",
    vrnetlab,
    name=None,
    address=lambda guest: {"qmp_socket": str(guest.qmp_socket)},
    rewrite=without_defaults_of_tests(*VRNETLAB_MONITOR, "-qmp", "unix:PATH,server=on,wait=off"),
)

#: As :data:`WITH_SOCKET`, by Kata's number, with Kata's shim as the client for as long as it runs.
WITH_SHIM = """
import os, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
if os.fork() == 0:
    shim = socket.socket(socket.AF_UNIX)
    shim.connect(sys.argv[1])
    listener.close()
    while shim.recv(65536):
        pass
    os._exit(0)
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
os.execvp(sys.argv[2], sys.argv[2:])
"""


def kata(place: Place) -> Words:
    """Daemonized, its memory in a shared file, its containers' files by virtiofs; vsock is not to be had here."""
    needs_root()
    directory = Path("/run/vc/vm", f"vmops-{os.getpid()}")
    directory.mkdir(parents=True)
    place.undo(shutil.rmtree, directory)
    place.prefix = (sys.executable, "-c", WITH_SHIM, str(directory / "qmp.sock"))
    console, shared = directory / "console.sock", virtiofs(place)[4:6]
    return (
        *("-uuid", UUID, "-cpu", "max,pmu=off", "-qmp", "unix:fd=3,server=on,wait=off", "-m", "64M,slots=10,maxmem=1G"),
        *("-device", "pci-bridge,bus=pcie.0,id=pci-bridge-0,chassis_nr=1,shpc=off,addr=2,io-reserve=4k"),
        *("-device", "virtio-serial-pci,disable-modern=false,id=serial0"),
        *("-device", "virtconsole,chardev=charconsole0,id=console0"),
        *("-chardev", f"socket,id=charconsole0,path={console},server=on,wait=off"),
        *("-device", "virtio-scsi-pci,id=scsi0,disable-modern=false"),
        *("-object", "rng-random,id=rng0,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng0"),
        *(*shared, "-device", "vhost-user-fs-pci,chardev=c0,tag=kataShared,queue-size=1024"),
        *("-rtc", "base=utc,driftfix=slew,clock=host", "-global", "kvm-pit.lost_tick_policy=discard"),
        *("-vga", "none", "-no-user-config", "-nodefaults", "-nographic", "--no-reboot", "-daemonize"),
        *("-object", f"memory-backend-file,id=dimm1,{SIZE},mem-path={place.memory().parent},share=on"),
        *("-numa", "node,memdev=dimm1", "-pidfile", directory / "pid"),
        *("-smp", "1,cores=1,threads=1,sockets=4,maxcpus=4"),
    )


not_saved(
    "Kata, whose only QMP server is a descriptor that its shim holds",
    "VmNotFoundError",
    kata,
    machine="q35",
    rewrite=with_monitor(),
    cure="Stop its containers instead of saving it",
)
refused(
    "Kata with extra_monitor_socket",
    ("inherited_descriptor", "server_state"),
    kata,
    machine="q35",
    rewrite=with_monitor("-qmp", "unix:path=PATH,server=on,wait=off"),
)

#: Starts a program with a device's descriptor 3, as mkosi does with /dev/kvm.
WITH_DEVICE = """
import os, sys
device = os.open("/dev/zero", os.O_RDWR)
os.dup2(device, 3)
os.set_inheritable(3, True)
os.execvp(sys.argv[1], sys.argv[1:])
"""


def mkosi(place: Place) -> Words:
    """A disk image in the native console."""
    place.child_of("mkosi")
    disk = place.file("image.raw")
    return (
        *("-smp", "1", "-object", "rng-random,filename=/dev/urandom,id=rng0"),
        *("-device", "virtio-rng-pci,rng=rng0,id=rng-device0", "-device", "virtio-balloon,free-page-reporting=on"),
        *("-no-user-config", "-nic", "user,model=virtio-net-pci", "-cpu", "max", "-nographic", "-nodefaults"),
        *("-chardev", "stdio,mux=on,id=console,signal=off", "-device", "virtio-serial-pci,id=mkosi-virtio-serial-pci"),
        *("-device", "virtconsole,chardev=console", "-mon", "console"),
        "-blockdev",
        f"driver=raw,node-name=mkosi,discard=unmap,file.driver=file,file.filename={disk},"
        "file.aio=io_uring,cache.direct=yes,cache.no-flush=no",
        *("-device", "virtio-blk-pci,drive=mkosi,bootindex=1"),
    )


def mkosi_with_devices(place: Place) -> Words:
    """In its sandbox, a mount namespace, and with KVM by a descriptor."""
    needs_root()
    place.prefix = ("unshare", "--mount", sys.executable, "-c", WITH_DEVICE)
    return (*mkosi(place), "--add-fd", "fd=3,set=1,opaque=/dev/kvm")


not_saved(
    "mkosi, which has a human monitor on its terminal alone",
    "VmNotFoundError",
    mkosi,
    machine="type=q35,smm=off,hpet=off",
    name=None,
    address=lambda guest: {"pid": guest.pid},
    rewrite=with_monitor(),
    cure="to QemuArgs= of its configuration",
)
refused(
    "mkosi with -qmp in QemuArgs=: its devices are descriptors, in a sandbox of its own",
    ("inherited_descriptor", "mount_namespace"),
    mkosi_with_devices,
    machine="type=q35,smm=off,hpet=off",
    name=None,
    address=lambda guest: {"qmp_socket": str(guest.qmp_socket)},
    rewrite=with_monitor("-qmp", "unix:PATH,server=on,wait=off"),
)

#: Starts a program with a terminal as its console, and reads from that until the program ends, as vmspawn does.
WITH_TERMINAL = """
import os, subprocess, sys
here, there = os.openpty()
program = subprocess.Popen([word.replace("TERMINAL", os.ttyname(there)) for word in sys.argv[1:]])
os.close(there)
program.wait()
"""


def vmspawn(place: Place) -> Words:
    """An image in the console that it has as a rule, without vsock and KVM, which it has as descriptors."""
    script = place.text("systemd-vmspawn", f"#!{sys.executable}\n{WITH_TERMINAL}")
    script.chmod(0o755)
    place.prefix = (str(script),)
    return (
        *("-smp", "1", "-object", "rng-random,filename=/dev/urandom,id=rng0"),
        *("-device", "virtio-rng-pci,rng=rng0,id=rng-device0", "-device", "virtio-balloon,free-page-reporting=on"),
        *("-device", f"vmgenid,guid={UUID}", "-nic", "none", "-cpu", "max", "-nographic", "-nodefaults"),
        *("-device", "virtio-serial-pci,id=vmspawn-virtio-serial-pci", "-chardev", "serial,id=console,path=TERMINAL"),
        *("-device", "virtconsole,chardev=console"),
    )


refused(
    "systemd-vmspawn with -qmp in SYSTEMD_VMSPAWN_QEMU_EXTRA: its console is vmspawn's terminal",
    "session_terminal",
    vmspawn,
    machine="type=q35,smm=off,hpet=off",
    name=None,
    address=lambda guest: {"qmp_socket": str(guest.qmp_socket)},
    rewrite=with_monitor("-qmp", "unix:PATH,server=on,wait=off"),
)

not_saved(
    "systemd-vmspawn, which has no monitor",
    "VmNotFoundError",
    vmspawn,
    machine="type=q35,smm=off,hpet=off",
    name=None,
    address=lambda guest: {"pid": guest.pid},
    rewrite=with_monitor(),
    cure="to the variable SYSTEMD_VMSPAWN_QEMU_EXTRA",
)


# --- states ---

group("States of the guest")


def shut_down(guest: Guest, _place: Place) -> None:
    """Have the guest power its machine off, whose QEMU stays."""
    guest.send(b"p")
    deadline = time.monotonic() + 10
    while guest.qmp("query-status")["status"] != "shutdown":
        assert time.monotonic() < deadline, "it does not shut down"
        time.sleep(0.02)


case("Paused", change=lambda guest, _place: qmp(guest, "stop"), paused=True)
case("-no-shutdown, -no-reboot", "-no-shutdown", "-no-reboot")
not_saved(
    "Shut down, with -no-shutdown",
    "GuestGoneError",
    "-no-shutdown",
    change=shut_down,
)

# --- other architectures ---

group("Other architectures (firmware, or a program of some bytes)")


def program(name: str, code: bytes) -> Callable[[Place], Words]:
    def words(place: Place) -> Words:
        path = place / name
        path.write_bytes(code)
        return ("-kernel", path)

    return words


#: add x0, x0, 1; str x0, [x1]; b -8, after mov x1, 0x41000000
AARCH64 = bytes.fromhex("0120a8d2 00040091 200000f9 feffff17".replace(" ", ""))
#: ahi %r1,1; st %r1,0xf00; j -8
S390X = bytes.fromhex("a71a0001 50100f00 a7f4fffc".replace(" ", ""))
case(
    "aarch64 virt",
    program("loop", AARCH64),
    qemu="qemu-system-aarch64",
    machine="virt",
    boot="",
    memory_at=0x40000000,
    memory_mib=128,
)
case(
    "aarch64 virt, GICv3",
    program("loop", AARCH64),
    qemu="qemu-system-aarch64",
    machine="virt,gic-version=3",
    boot="",
    memory_at=0x40000000,
    memory_mib=128,
)
case("riscv64 virt, OpenSBI", qemu="qemu-system-riscv64", machine="virt", boot="", memory_at=0x80000000, memory_mib=128)
case("ppc64 pseries, SLOF", qemu="qemu-system-ppc64", machine="pseries", boot="", memory_mib=512)
case(
    "s390x s390-ccw-virtio",
    program("loop", S390X),
    qemu="qemu-system-s390x",
    machine="s390-ccw-virtio",
    boot="",
    memory_mib=128,
)
case("i386 pc", qemu="qemu-system-i386")
