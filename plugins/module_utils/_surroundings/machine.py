# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether a machine still is what it was configured to be: its devices, CPUs, memory and objects.

Of a device without an id only its type can be compared. What was unplugged and plugged in again may be in another
place (QEMU gives it the first free slot), and two disks may have changed theirs: QEMU says of each device whether it
came after the machine's start. Of the short options only few make such devices (tried with QEMU 7.2 and 10.0):
``-drive if=virtio``, ``-virtfs``, ``-debugcon``, and, before 7.2, ``-watchdog``; NICs of ``-nic`` and ``-net``,
displays, sound of ``-audio``, ``-usbdevice``, serial ports and all other disks belong to the machine.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import re
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._errors import CommandError
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.configuration import Configuration, Setting
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.monitor import Monitor
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.devices import NAMED, read_children
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.verdict import Problem

#: Other names of devices (``qdev_alias_table`` in system/qdev-monitor.c); those of virtio are in :func:`_types`.
_ALIASES = {"ac97": "AC97", "ahci": "ich9-ahci", "e1000-82540em": "e1000", "es1370": "ES1370", "lsi": "lsi53c895a"}

#: The buses of virtio: which one an alias (``virtio-blk``) means depends on the architecture.
_VIRTIO_TRANSPORTS = ("-pci", "-ccw", "-device")

_CPU = re.compile(r".*-cpu(?:-core)?|cpu-.*")
_MEMORY = re.compile(r"pc-dimm|nvdimm|virtio-p?mem(?:-.*)?")

#: A child of ``/machine/unattached`` that is a device of the machine's own.
_NUMBERED = re.compile(r"device\[([0-9]{1,9})\]")

#: Options for a disk whose interface is the one that the machine type prefers.
_DISK_OPTIONS = ("hda", "hdb", "hdc", "hdd", "cdrom")

#: A line of ``info network`` for a network backend or a NIC.
_NETWORK_ROW = re.compile(r"(?: \\ )?(?:[\w.-]+: )?(?P<name>[A-Za-z][\w.-]*): index=\d+,type=(?P<type>[\w-]+)")

_CURE = "Undo the change, or start the VM once from its disks with a configuration that has it"


@dataclasses.dataclass(frozen=True)
class _Device:
    """A device that an option or a command has made."""

    #: Its id; of one without, QEMU's name for it.
    name: str
    #: Its QOM type.
    kind: str
    #: Whether it has an id.
    named: bool
    #: Whether it was made when the machine had begun.
    later: bool


async def machine_problems(monitor: Monitor, configuration: Configuration, types: t.Mapping[str, str]) -> list[Problem]:
    """What was plugged in, unplugged or added since the VM's start, so that its configuration does not describe it.

    A device that was unplugged and plugged in again counts as plugged in: where it is now cannot be told.

    Kinds: ``configuration_unknown``, ``device_plugged``, ``device_unplugged``, ``cpu_added``, ``memory_added``, which
    block; ``object_added`` and ``netdev_added``, which do not, since what uses them is a device. The size of a
    virtio-mem device that was changed is none: it is a part of the guest's state.

    :param types: of all devices, by their paths, as :func:`read_devices` gives them.
    :raises MonitorError: QEMU cannot be asked.
    :raises CommandError: it does not answer ``qom-list``.
    """
    if configuration.unknown:
        return [
            Problem(
                "configuration_unknown",
                f"{clause}, so whether a device was plugged in or unplugged since the VM's start cannot be known",
                "Start the VM once from its disks with a configuration that is kept as it is in regular files",
            )
            for clause in configuration.unknown
        ]
    devices, own, objects, network = await asyncio.gather(
        asyncio.gather(*(_device(monitor, path, kind) for path, kind in types.items())),
        read_children(monitor, "/machine/unattached"),
        read_children(monitor, "/objects"),
        # Where there is no such command: what uses a network backend is a device, and that is seen.
        monitor.execute_if_known("human-monitor-command", {"command-line": "info network"}),
    )
    named = {device.name: device for device in devices if device.named}
    return [
        *_compare_named(named, configuration),
        *await _compare_unnamed([device for device in devices if not device.named], monitor, configuration),
        *await _gaps_in_machine(own, monitor),
        *_added_objects(objects, configuration),
        *_added_netdevs(str(network or ""), configuration),
    ]


async def _device(monitor: Monitor, path: str, kind: str) -> _Device:
    place, _slash, name = path.rpartition("/")
    try:
        later = await monitor.execute("qom-get", {"path": path, "property": "hotplugged"}) is not False
    except CommandError:
        later = True  # it has gone meanwhile: it comes and goes
    return _Device(name, kind, named=place == NAMED, later=later)


def _types(driver: str) -> list[str]:
    """The types that a device of that driver may have, the one of the same name first."""
    found = [driver, _ALIASES.get(driver, driver)]
    if driver.startswith("virtio-"):
        found += [driver + transport for transport in _VIRTIO_TRANSPORTS]
    return found


def _plugged(what: str, kind: str) -> Problem:
    """:param kind: its QOM type."""
    if _CPU.fullmatch(kind):
        return Problem("cpu_added", f"{what} was added after the VM's start", _CURE)
    if _MEMORY.fullmatch(kind):
        return Problem("memory_added", f"{what} was added after the VM's start", _CURE)
    return Problem("device_plugged", f"{what} was plugged in after the VM's start", _CURE)


def _unplugged(what: str) -> Problem:
    return Problem("device_unplugged", f"{what} was unplugged after the VM's start, and would come back", _CURE)


def _compare_named(actual: t.Mapping[str, _Device], configuration: Configuration) -> t.Iterator[Problem]:
    expected = {
        setting.keys["id"]: setting.keys.get("driver", "") for setting in configuration.of("device") if _id(setting)
    }
    if configuration.of("debugcon"):
        expected["debugcon"] = "isa-debugcon"
    # QEMU itself plugs and unplugs the device that the guest may lose while it is migrated.
    absent = {_id(setting) for setting in configuration.of("device") if "failover_pair_id" in setting.keys}
    for name, device in actual.items():
        kind = device.kind
        if name not in expected:
            yield _plugged(f"the device {name} ({kind})", kind)
        elif kind not in _types(expected[name]):
            yield Problem(
                "device_plugged", f"the device {name} was a {expected[name]} at the VM's start, and is a {kind}", _CURE
            )
        elif device.later and name not in absent:
            yield _plugged(f"the device {name} ({kind}) was unplugged, and another of this id", kind)
    for name, driver in expected.items():
        if name not in actual and name not in absent:
            yield _unplugged(f"the device {name} ({driver})")


def _id(setting: Setting) -> str:
    return setting.keys.get("id", "")


async def _compare_unnamed(actual: list[_Device], monitor: Monitor, configuration: Configuration) -> list[Problem]:
    """Devices without an id have nothing but their types in common with their options."""
    devices = [setting.keys for setting in configuration.of("device") if not _id(setting)]
    expected = [keys.get("driver", "") for keys in devices if "failover_pair_id" not in keys]
    expected += [setting.argument for setting in configuration.of("watchdog")]
    expected += ["virtio-9p"] * len(configuration.of("virtfs"))
    disks = [setting.keys for setting in configuration.of("drive")]
    expected += ["virtio-blk" for keys in disks if keys.get("if") == "virtio"]
    xen = [keys for keys in disks if keys.get("if") == "xen"]
    expected += ["xen-cdrom" if keys.get("media") == "cdrom" else "xen-disk" for keys in xen]
    left = collections.Counter(device.kind for device in actual if not device.later)
    missing = _take(left, expected)
    of_machine = ["virtio-blk" for keys in disks if "if" not in keys]
    of_machine += ["virtio-blk"] * len(configuration.of(*_DISK_OPTIONS))
    if of_machine and await _prefers_virtio(monitor):
        missing += _take(left, of_machine)
    return [
        *(_plugged(f"a device ({kind}) without an id", kind) for kind in left.elements()),
        *(_plugged(f"a device ({device.kind}) without an id", device.kind) for device in actual if device.later),
        *(_unplugged(f"a device ({driver}) without an id") for driver in missing),
    ]


def _take(counter: collections.Counter[str], drivers: t.Iterable[str]) -> list[str]:
    """Take the devices of these drivers out of the counter; the drivers of which there is none."""
    missing = []
    # What is named by its type first: an alias may not take the device that is meant by it.
    for driver in sorted(drivers, key=lambda driver: driver not in counter):
        kind = next((kind for kind in _types(driver) if counter[kind] > 0), None)
        if kind is None:
            missing.append(driver)
        else:
            counter[kind] -= 1
    return missing


async def _prefers_virtio(monitor: Monitor) -> bool:
    """Whether a disk without ``if=`` is a virtio disk: on s390x, and on the machine types named ``virt``."""
    return (await _machine_type(monitor)).startswith(("virt-", "s390-ccw-virtio"))


async def _machine_type(monitor: Monitor) -> str:
    return str(await monitor.execute("qom-get", {"path": "/machine", "property": "type"}))


async def _gaps_in_machine(devices: t.Iterable[str], monitor: Monitor) -> list[Problem]:
    """Devices that no option has made one by one (a network card of ``-nic``, a CPU of ``-smp``), and which are gone.

    QEMU numbers them as they come, and after the start of each machine type (of QEMU 7.2 and 10.0, for 14
    architectures) no number is missing but with powernv.
    """
    numbers = {int(match.group(1)) for match in map(_NUMBERED.fullmatch, devices) if match}
    if not numbers or max(numbers) == len(numbers) - 1 or (await _machine_type(monitor)).startswith("powernv"):
        return []
    return [_unplugged("a device that belongs to its machine (a network card of -nic, or a CPU)")]


def _added_objects(actual: t.Mapping[str, str], configuration: Configuration) -> t.Iterator[Problem]:
    expected = {_id(setting) for setting in configuration.of("object")}
    for name, kind in actual.items():
        # The machine's own memory is such an object, too (pc.ram), and in QEMU 11.1 a monitor is one.
        own = (kind.startswith("memory-backend-") and name.endswith(".ram")) or kind.startswith("monitor-")
        if name not in expected and not own:
            yield Problem(
                "object_added",
                f"the object {name} ({kind}) was added after the VM's start and will not be there after a restore",
                f"Add it again afterwards (object-add), or add -object {kind},id={name} to the VM's configuration",
                blocks=False,
            )


def _added_netdevs(text: str, configuration: Configuration) -> list[Problem]:
    """:param text: what ``info network`` has said."""
    expected = {
        setting.keys.get(key, "") for setting in configuration.of("netdev", "nic", "net") for key in ("id", "name")
    }
    rows = (_NETWORK_ROW.match(line) for line in text.splitlines())
    return [
        Problem(
            "netdev_added",
            f"the network backend {row.group('name')} ({row.group('type')}) was added after the VM's start and will not"
            " be there after a restore",
            f"Add it again afterwards (netdev_add), or add -netdev {row.group('type')},id={row.group('name')} to the"
            " VM's configuration",
            blocks=False,
        )
        for row in rows
        if row and row.group("type") != "nic" and row.group("name") not in expected
    ]
