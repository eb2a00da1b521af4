# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What was changed in a running machine, and that ordinary machines which nobody changed are told to be unchanged."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Union

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.monitor import Monitor
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import read_process
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.block_graph import ask_block
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.losses import runtime_losses
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.machine import machine_problems
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.verdict import Problem

from support.monitor import Monitor as PlainMonitor
from support.monitor import MonitorError as PlainMonitorError
from support.observe import wait_until
from support.versions import OLD_QEMU

QEMU = "qemu-system-x86_64"

#: A QMP command and its arguments, or a line for the human monitor.
Step = Union[str, tuple[str, dict[str, Any]]]


class Machine:
    """A QEMU whose guest does not run."""

    def __init__(self, process: subprocess.Popen[bytes], socket: str) -> None:
        self.process = process
        self.socket = socket
        self.milliseconds = 0.0

    def problems(self, steps: Sequence[Step] = ()) -> list[Problem]:
        """What is found after these changes."""
        return asyncio.run(self._problems(steps))

    async def _problems(self, steps: Sequence[Step]) -> list[Problem]:
        async with await Monitor.connect(self.socket) as monitor:
            for step in steps:
                if isinstance(step, str):
                    said = await monitor.execute("human-monitor-command", {"command-line": step})
                    assert said == "" or "removed" in said, said
                else:
                    await monitor.execute(*step)
            process = read_process(self.process.pid)
            assert process is not None
            started = time.monotonic()
            block = await ask_block(monitor)
            found = await machine_problems(monitor, process.configuration, block.devices)
            found += await runtime_losses(monitor, process.configuration, block)
            self.milliseconds = (time.monotonic() - started) * 1000
            return found

    def kinds(self, steps: Sequence[Step] = ()) -> list[str]:
        """Their kinds."""
        return [problem.kind for problem in self.problems(steps)]


def is_up(socket: str) -> bool:
    """Whether a QEMU answers there."""
    try:
        PlainMonitor(socket).close()
    except PlainMonitorError:
        return False
    return True


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Callable[..., Machine]]:
    """``machine("-nic user")``: a QEMU with these options (words)."""
    for name in ("a", "b", "c"):
        with open(tmp_path / f"{name}.img", "wb") as file:
            file.truncate(1 << 20)
    (tmp_path / "share").mkdir()
    with contextlib.ExitStack() as stack:

        def start(options: str, name: str = "pc", qemu: str = QEMU, defaults: bool = False) -> Machine:
            socket = f"{tmp_path}/qmp.sock"
            plain = [] if defaults else ["-nodefaults"]
            argv = [qemu, "-machine", name, "-accel", "tcg", "-S", "-display", "none", *plain, *options.split()]
            with open(tmp_path / "stderr", "wb") as stderr:
                process = subprocess.Popen(
                    [*argv, "-qmp", "unix:qmp.sock,server=on,wait=off"],
                    cwd=tmp_path,
                    stdin=subprocess.DEVNULL,
                    stdout=stderr,
                    stderr=stderr,
                )
            stack.callback(process.wait)
            stack.callback(process.kill)
            wait_until(lambda: is_up(socket) or process.poll() is not None)
            assert process.poll() is None, (tmp_path / "stderr").read_text()
            return Machine(process, socket)

        yield start


# --- ordinary machines that nobody changed ---

DISK = "-drive if=none,id=d,file=a.img,format=raw"
MORE_MEMORY = "-m 64,slots=4,maxmem=4G -object memory-backend-ram,id=m1,size=128M"

UNCHANGED = [
    ("pc", ""),
    ("pc", "-nic user"),
    ("pc", "-nic user,model=virtio-net-pci,id=n0,mac=52:54:00:12:34:56"),
    ("pc", "-net nic -net user"),
    ("pc", "-net nic,model=virtio,netdev=n -netdev user,id=n"),
    ("pc", "-net none"),
    ("pc", "-netdev user,id=n,hostfwd=tcp:127.0.0.1:0-:22,hostfwd=udp::0-:53 -device virtio-net,netdev=n"),
    ("pc", '-netdev {"type":"user","id":"n"} -device {"driver":"e1000","id":"nic0","netdev":"n"}'),
    (
        "pc",
        "-netdev user,id=u -netdev hubport,id=h1,hubid=0,netdev=u -netdev hubport,id=h2,hubid=0"
        " -device e1000,netdev=h2",
    ),
    ("pc", "-usb -device usb-tablet -device usb-kbd,id=kbd"),
    ("pc", "-usbdevice tablet -usbdevice mouse"),
    ("pc", "-drive if=virtio,file=a.img,format=raw -drive if=virtio,id=x,file=b.img,format=raw"),
    ("pc", "-drive if=ide,file=a.img,format=raw -drive file=b.img,format=raw,media=cdrom"),
    ("pc", "-hda a.img -cdrom b.img"),
    ("pc", "a.img"),
    ("pc", "-device lsi -drive if=none,id=d,file=a.img,format=raw -device scsi-hd,drive=d"),
    ("pc", "-drive if=floppy,file=a.img,format=raw"),
    ("pc", "-fda a.img"),
    ("pc", "-drive if=pflash,unit=0,file=a.img,format=raw,readonly=on"),
    ("pc", "-drive if=virtio,file=a.img,format=raw,throttling.iops-total=100,throttling.bps-read=4096"),
    ("pc", "-drive if=virtio,id=x,file=a.img,format=raw,iops=7 -drive if=virtio,file=b.img,format=raw"),
    (
        "pc",
        "-drive if=virtio,id=x,file=a.img,format=raw,throttling.group=g,throttling.iops-total=5"
        " -drive if=virtio,id=y,file=b.img,format=raw,throttling.group=g,throttling.iops-total=6",
    ),
    ("pc", f"{DISK} -device virtio-scsi -device scsi-hd,drive=d,id=disk"),
    ("pc", f"{DISK} -device usb-ehci,id=e -device usb-storage,bus=e.0,drive=d"),
    ("pc", f"{DISK} -device nvme,serial=x,drive=d -device ahci"),
    ("pc", f"{DISK} -device sdhci-pci -device sd-card,drive=d"),
    ("pc", "-blockdev driver=file,filename=a.img,node-name=f -device virtio-blk-pci,drive=f,id=disk0"),
    ("pc", "-object throttle-group,id=g,x-iops-total=9 -object secret,id=s,data=x"),
    *(("pc", f"-vga {kind}") for kind in ("std", "cirrus", "vmware", "virtio", "none")),
    ("pc", "-device VGA -device virtio-rng -device virtio-rng-pci -device virtio-rng,id=r -device virtio-balloon"),
    ("pc", "-object rng-random,id=r0,filename=/dev/urandom -device virtio-rng-pci,rng=r0 -object iothread,id=io0"),
    ("pc", "-debugcon null"),
    ("pc", "-debugcon file:debug.log -device isa-debugcon,chardev=c,iobase=0x500 -chardev null,id=c"),
    ("pc", "-serial null -serial null -parallel null -device isa-serial,chardev=c,index=3 -chardev null,id=c"),
    ("pc", "-device virtio-serial -device virtconsole,chardev=c -chardev null,id=c"),
    ("pc", "-smp 1,sockets=4,maxcpus=4 -device qemu64-x86_64-cpu,socket-id=1,core-id=0,thread-id=0"),
    ("pc", "-smp 1,sockets=4,maxcpus=4 -device qemu64-x86_64-cpu,socket-id=2,core-id=0,thread-id=0,id=c2"),
    ("pc", f"{MORE_MEMORY} -device pc-dimm,memdev=m1"),
    ("pc", f"{MORE_MEMORY} -device pc-dimm,memdev=m1,id=dimm1"),
    ("pc,nvdimm=on", f"{MORE_MEMORY} -device nvdimm,memdev=m1"),
    ("pc", f"{MORE_MEMORY} -device virtio-mem-pci,memdev=m1,requested-size=8M,id=vm0"),
    ("pc,memory-backend=m0", "-m 128 -object memory-backend-memfd,id=m0,size=128M"),
    ("pc", "-m 128 -object memory-backend-ram,id=n0,size=128M -numa node,memdev=n0 -mem-prealloc"),
    ("pc", "-virtfs local,path=share,mount_tag=t,security_model=none"),
    ("pc", "-fsdev local,id=f,path=share,security_model=none -device virtio-9p,fsdev=f,mount_tag=t"),
    ("pc", "-audiodev none,id=a -device AC97,audiodev=a"),
    ("pc", "-audiodev none,id=a -device ac97,audiodev=a -device intel-hda -device hda-duplex,audiodev=a"),
    ("pc", "-audio none,model=hda"),
    ("pc", "-device i6300esb -watchdog-action pause"),
    ("pc", "-device ib700 -device pvpanic -device vmcoreinfo -device vmgenid,guid=auto"),
    ("pc", "-device e1000-82540em -device es1370,audiodev=a -audiodev none,id=a"),
    ("pc", '-device {"driver":"virtio-rng-pci","id":"r0"} -device {"driver":"virtio-rng"}'),
    ("pc", "-device virtio-rng-pci,id=r0 -global virtio-rng-pci.max-bytes=4096 -set device.r0.period=1000"),
    ("pc", "-device virtio-net-pci,netdev=n,failover=on,id=f,mac=52:54:00:12:34:56 -netdev user,id=n"),
    (
        "q35",
        "-device pcie-root-port,id=rp1 -device pcie-root-port,id=rp2,chassis=2 -netdev user,id=n1 -netdev user,id=n2"
        " -device virtio-net-pci,netdev=n1,bus=rp1,failover=on,id=f,mac=52:54:00:12:34:56"
        " -device e1000e,netdev=n2,bus=rp2,failover_pair_id=f,id=p,mac=52:54:00:12:34:56",
    ),
    ("q35", "-device pcie-root-port,id=rp1 -device virtio-rng-pci,bus=rp1 -device intel-iommu"),
    ("q35", "-device pxb-pcie,id=pxb,bus_nr=9,bus=pcie.0 -device pcie-root-port,id=rp1,bus=pxb"),
    ("q35", "-drive file=a.img,format=raw -usb"),
    ("q35", "-device qemu-xhci -device usb-hub -device usb-mouse"),
    ("isapc", "-device isa-debug-exit"),
    ("isapc", "-nic user,model=ne2k_isa -device isa-serial,chardev=c -chardev null,id=c"),
    ("microvm", "-drive if=none,id=d,file=a.img,format=raw -device virtio-blk-device,drive=d"),
    ("microvm", "-netdev user,id=n -device virtio-net-device,netdev=n -device virtio-rng-device,id=r"),
    ("none", ""),
    ("pc", "-vnc unix:vnc.sock"),
    ("pc", "-object secret,id=s,data=x -vnc unix:vnc.sock,password-secret=s"),
]


@pytest.mark.parametrize(("name", "options"), UNCHANGED)
def test_unchanged(name: str, options: str, machine: Callable[..., Machine]) -> None:
    assert machine(options, name).problems() == []


@pytest.mark.parametrize("name", ["pc", "q35", "isapc", "microvm"])
def test_unchanged_with_all_default_devices(name: str, machine: Callable[..., Machine]) -> None:
    assert machine("-serial null -monitor none", name, defaults=True).problems() == []


@pytest.mark.skipif(not OLD_QEMU.exists(), reason="no old QEMU here")
@pytest.mark.parametrize(
    "options",
    [
        "-nic user -debugcon null -drive if=virtio,file=a.img,format=raw -device virtio-rng -usbdevice tablet",
        "-virtfs local,path=share,mount_tag=t,security_model=none -object iothread,id=io0 -vga std -device virtio-rng",
        "-netdev user,id=n,hostfwd=tcp:127.0.0.1:0-:22 -device e1000,netdev=n,id=nic0",
    ],
)
def test_unchanged_in_an_old_qemu(options: str, machine: Callable[..., Machine]) -> None:
    assert machine(options, qemu=str(OLD_QEMU)).problems() == []


EVERYTHING = """
[machine]
  type = "q35"
[memory]
  size = "128M"
  slots = "4"
  maxmem = "4G"
[smp-opts]
  cpus = "1"
  sockets = "4"
  maxcpus = "4"
[name]
  guest = "web1"
[object "io0"]
  qom-type = "iothread"
[object "m1"]
  qom-type = "memory-backend-ram"
  size = "128M"
[device "dimm1"]
  driver = "pc-dimm"
  memdev = "m1"
[device]
  driver = "qemu64-x86_64-cpu"
  socket-id = "1"
  core-id = "0"
  thread-id = "0"
[device "rp1"]
  driver = "pcie-root-port"
[drive "d"]
  if = "none"
  file = "a.img"
  format = "raw"
[device "disk0"]
  driver = "virtio-blk"
  drive = "d"
  bus = "rp1"
[drive]
  if = "virtio"
  file = "b.img"
  format = "raw"
  throttling.iops-total = "100"
[netdev "n"]
  type = "user"
  hostfwd = "tcp:127.0.0.1:0-:22"
[device]
  driver = "virtio-net-pci"
  netdev = "n"
[nic]
  type = "user"
[chardev "c"]
  backend = "null"
[device]
  driver = "isa-debugcon"
  chardev = "c"
[global]
  driver = "virtio-net-pci"
  property = "speed"
  value = "1000"
[boot-opts]
  menu = "off"
"""


@pytest.fixture
def everything(tmp_path: Path, machine: Callable[..., Machine]) -> Machine:
    (tmp_path / "vm.cfg").write_text(EVERYTHING)
    time.sleep(0.2)  # a file that was written at the same moment might have been written later
    return machine("-readconfig vm.cfg -device virtio-rng", "usb=off")


def test_unchanged_with_everything_in_a_file(everything: Machine) -> None:
    assert everything.problems() == []
    # A plain figure of the whole comparison, with much room for a busy host; it takes some 3 ms.
    assert min(everything.milliseconds for _time in range(5) if not everything.problems()) < 50


def test_configuration_that_cannot_be_known(everything: Machine, tmp_path: Path) -> None:
    path = tmp_path / "vm.cfg"
    time.sleep(0.2)  # before that, the times of processes and files do not tell it from what QEMU has read
    path.write_text(EVERYTHING)
    (problem,) = everything.problems()
    assert (problem.kind, problem.blocks) == ("configuration_unknown", True)
    assert "vm.cfg was changed after it had started" in problem.what
    path.unlink()
    (problem,) = everything.problems()
    assert (problem.kind, problem.blocks) == ("configuration_unknown", True)
    assert "vm.cfg could not be read: No such file" in problem.what


# --- changes ---

SOCKETS = "-smp 1,sockets=4,maxcpus=4"
SOCKET_2 = {"driver": "qemu64-x86_64-cpu", "socket-id": 2, "core-id": 0, "thread-id": 0}
SCSI = f"-device virtio-scsi,id=s {DISK}"
OBJECT = ("object-add", {"qom-type": "memory-backend-ram", "id": "m9", "size": 64 << 20})

CHANGED: list[tuple[str, list[Step], list[str]]] = [
    ("", [("device_add", {"driver": "virtio-rng-pci", "id": "r9"})], ["device_plugged"]),
    ("", ["device_add e1000"], ["device_plugged"]),
    ("-device virtio-rng", ["device_add virtio-rng"], ["device_plugged"]),
    ("-device virtio-rng,id=r", ["device_add virtio-rng"], ["device_plugged"]),
    ("-nic user", ["device_add e1000"], ["device_plugged"]),
    ("-debugcon null", ["device_add virtio-rng,id=debugcon2"], ["device_plugged"]),
    ("-usb", ["device_add usb-tablet"], ["device_plugged"]),
    (
        "-drive if=virtio,file=a.img,format=raw " + DISK.replace("a.img", "b.img"),
        ["device_add virtio-blk,drive=d"],
        ["device_plugged"],
    ),
    ("-hda a.img " + DISK.replace("a.img", "b.img"), ["device_add virtio-blk,drive=d"], ["device_plugged"]),
    (SCSI, ["device_add scsi-hd,drive=d"], ["device_plugged"]),
    (f"{SCSI} -device scsi-hd,drive=d,id=disk0", [("device_del", {"id": "disk0"})], ["device_unplugged"]),
    (f"{SCSI} -device scsi-hd,drive=d", ["device_del /machine/peripheral-anon/device[0]"], ["device_unplugged"]),
    ("-usb -device usb-net,netdev=n,id=nic0 -netdev user,id=n", ["device_del nic0"], ["device_unplugged"]),
    ("-usb -device usb-tablet,id=x", ["device_del x", "device_add usb-mouse,id=x"], ["device_plugged"]),
    (
        "-usb -device usb-tablet",
        ["device_del /machine/peripheral-anon/device[0]", "device_add usb-mouse"],
        ["device_plugged", "device_unplugged"],
    ),
    ("-usb -device usb-tablet,id=x", ["device_del x", "device_add usb-tablet,id=x"], ["device_plugged"]),
    (
        "-usb -device usb-tablet",
        ["device_del /machine/peripheral-anon/device[0]", "device_add usb-tablet"],
        ["device_plugged", "device_unplugged"],
    ),
    (
        "-netdev user,id=n -device qemu-xhci -device usb-net,netdev=n,id=nic0",
        ["device_del nic0", "netdev_add user,id=m", "device_add usb-net,netdev=m,id=nic0,port=2"],
        ["device_plugged", "netdev_added"],
    ),
    (SOCKETS, [("device_add", SOCKET_2)], ["cpu_added"]),
    (SOCKETS, [("device_add", {**SOCKET_2, "id": "cpu9"})], ["cpu_added"]),
    (
        f"{SOCKETS} -device qemu64-x86_64-cpu,socket-id=1,core-id=0,thread-id=0",
        [("device_add", SOCKET_2)],
        ["cpu_added"],
    ),
    ("-m 64,slots=4,maxmem=4G", [OBJECT, "device_add pc-dimm,memdev=m9,id=dimm9"], ["memory_added", "object_added"]),
    ("-m 64,slots=4,maxmem=4G", [OBJECT, "device_add pc-dimm,memdev=m9"], ["memory_added", "object_added"]),
    ("-m 64,slots=4,maxmem=4G", [OBJECT, "device_add virtio-mem-pci,memdev=m9"], ["memory_added", "object_added"]),
    ("", [OBJECT], ["object_added"]),
    ("", ["object_add iothread,id=io9"], ["object_added"]),
    ("", ["netdev_add user,id=n9"], ["netdev_added"]),
    ("", ["netdev_add user,id=n9", "device_add e1000,netdev=n9"], ["device_plugged", "netdev_added"]),
    ("-netdev user,id=n -device e1000,netdev=n", ["hostfwd_add n tcp:127.0.0.1:{port}-:22"], ["host_forward"]),
    ("-nic model=e1000", ["hostfwd_add tcp:127.0.0.1:{port}-:22"], ["host_forward"]),
    (
        "-netdev user,id=n,hostfwd=tcp:127.0.0.1:{port}-:22 -device e1000,netdev=n",
        ["hostfwd_remove n tcp:127.0.0.1:{port}"],
        ["host_forward"],
    ),
    (
        '-netdev {{"type":"user","id":"n","hostfwd":[{{"str":"tcp:127.0.0.1:{port}-:22"}}]}} -device e1000,netdev=n',
        [],
        [],
    ),
    ("-vnc unix:vnc.sock,password=on", [("set_password", {"protocol": "vnc", "password": "x"})], ["vnc_password"]),
    ("-vnc unix:vnc.sock,password", [], ["vnc_password"]),
    ("-drive if=virtio,id=x,file=a.img,format=raw", ["block_set_io_throttle x 0 0 0 7 0 0"], ["throttle"]),
    ("-drive if=virtio,id=x,file=a.img,format=raw,iops=9", ["block_set_io_throttle x 0 0 0 7 0 0"], ["throttle"]),
    ("-drive if=virtio,id=x,file=a.img,format=raw,iops=9", ["block_set_io_throttle x 0 0 0 0 0 0"], ["throttle"]),
    (
        "-blockdev driver=file,filename=a.img,node-name=f -device virtio-blk-pci,drive=f,id=disk0",
        [
            (
                "block_set_io_throttle",
                {
                    "id": "/machine/peripheral/disk0/virtio-backend",
                    "bps": 9,
                    **dict.fromkeys(("bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"), 0),
                },
            )
        ],
        ["throttle"],
    ),
    (
        "-drive if=virtio,file=a.img,format=raw",
        [("block-set-write-threshold", {"node-name": "{node}", "write-threshold": 4096})],
        ["write_threshold"],
    ),
]

BLOCKING = {"configuration_unknown", "device_plugged", "device_unplugged", "cpu_added", "memory_added"}


@pytest.mark.parametrize(("options", "steps", "kinds"), CHANGED)
def test_changed(options: str, steps: list[Step], kinds: list[str], machine: Callable[..., Machine]) -> None:
    port = str(20000 + os.getpid() % 20000)
    running = machine(options.format(port=port))
    done: list[Step] = []
    for step in steps:
        if isinstance(step, tuple) and step[1].get("node-name") == "{node}":
            (node,) = asyncio.run(first_nodes(running))
            done.append((step[0], {**step[1], "node-name": node}))
        else:
            done.append(step.format(port=port) if isinstance(step, str) else step)
    found = running.problems(done)
    assert [problem.kind for problem in found] == kinds
    for problem in found:
        assert problem.blocks == (problem.kind in BLOCKING)
        assert problem.what
        assert problem.cure


async def first_nodes(running: Machine) -> list[str]:
    async with await Monitor.connect(running.socket) as monitor:
        return [disk["inserted"]["node-name"] for disk in await monitor.execute("query-block")]


#: How an operating system answers to device_del of what is in slot 5: it selects the bus, and ejects the slot.
EJECT = ["o /w 0xae10 0", "o /w 0xae08 0x20"]


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("virtio-blk-pci,drive=d,addr=5,id=disk0", "disk0"),
        ("virtio-net-pci,addr=5,id=nic0,netdev=n -netdev user,id=n", "nic0"),
        ("virtio-rng,addr=5", "/machine/peripheral-anon/device[0]"),
    ],
)
def test_device_that_the_guest_let_go(device: str, name: str, machine: Callable[..., Machine]) -> None:
    running = machine(f"{DISK} -device {device}")
    assert running.problems([f"device_del {name}"]) == []
    assert running.kinds(EJECT) == ["device_unplugged"]


def test_device_without_an_option_of_its_own_that_the_guest_let_go(machine: Callable[..., Machine]) -> None:
    running = machine("-nic user,model=e1000")
    with PlainMonitor(running.socket) as monitor:
        (name,) = (
            each["name"]
            for each in monitor.execute("qom-list", {"path": "/machine/unattached"})
            if each["type"] == "child<e1000>"
        )
    slot = "o /w 0xae08 4"  # without a display it is in slot 2
    assert running.kinds([f"device_del /machine/unattached/{name}", EJECT[0], slot]) == ["device_unplugged"]


@pytest.mark.parametrize("name", ["pc", "q35", "isapc", "microvm"])
def test_machine_types_have_all_their_devices(name: str, machine: Callable[..., Machine]) -> None:
    assert machine("-smp 2" if name != "isapc" else "", name, defaults=True).problems() == []


def test_disk_of_the_short_form_that_the_guest_let_go(machine: Callable[..., Machine]) -> None:
    running = machine("-drive if=virtio,file=a.img,format=raw")
    slot = "o /w 0xae08 4"  # without a display and a network card it is in slot 2
    assert running.kinds(["device_del /machine/peripheral-anon/device[0]", EJECT[0], slot]) == ["device_unplugged"]


def test_virtio_memory_that_has_grown_is_unchanged(machine: Callable[..., Machine]) -> None:
    running = machine(f"{MORE_MEMORY} -device virtio-mem-pci,memdev=m1,requested-size=0,id=vm0")
    grow = {"path": "/machine/peripheral/vm0", "property": "requested-size", "value": 64 << 20}
    assert running.problems([("qom-set", grow)]) == []
