# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The devices that an option or a command has made, and where the guest finds them.

QEMU keeps them apart from what belongs to the machine type: a device with an id is a child of ``/machine/peripheral``
with this name, one without an id of ``/machine/peripheral-anon``, with a name of QEMU's.

QEMU (7.2 to 10.0) reads what comes over a monitor byte by byte, each by a turn of its main loop: a command of a
hundred bytes takes it 0.6 ms, whatever it asks for. So what one command tells of all devices is not asked for one by
one.
"""

from __future__ import annotations

import asyncio
import contextlib
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._errors import CommandError
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.monitor import Monitor

#: Where devices with an id are in QEMU's tree of objects, and those without.
NAMED = "/machine/peripheral"
UNNAMED = "/machine/peripheral-anon"

#: By the beginnings of their types, the properties that say where disks are on their bus.
_ADDRESSES = {
    "virtio-blk-pci": ("legacy-addr",),
    "scsi-": ("channel", "scsi-id", "lun"),
    "ide-": ("unit",),
}


async def read_children(monitor: Monitor, path: str) -> dict[str, str]:
    """The types of the objects below a QOM path, by their names.

    :raises MonitorError: QEMU was lost, or refused.
    """
    properties = await monitor.execute("qom-list", {"path": path})
    return {item["name"]: item["type"][len("child<") : -1] for item in properties if item["type"].startswith("child<")}


async def read_devices(monitor: Monitor) -> dict[str, str]:
    """The types of all devices that an option or a command has made, by their paths.

    :raises MonitorError: QEMU was lost, or refused.
    """
    named, unnamed = await asyncio.gather(read_children(monitor, NAMED), read_children(monitor, UNNAMED))
    return {
        f"{path}/{name}": kind for path, found in ((NAMED, named), (UNNAMED, unnamed)) for name, kind in found.items()
    }


async def read_places(monitor: Monitor, devices: t.Mapping[str, str]) -> dict[str, str]:
    """Where the guest finds disks' devices, as far as their buses number them.

    :param devices: their types, by their paths; others than disks have no place here.
    :raises MonitorError: QEMU was lost.
    """
    asked = {path: kind for path, kind in devices.items() if _address(kind)}
    places: dict[str, str] = {}
    if any(kind.startswith("virtio-blk-pci") for kind in asked.values()):
        with contextlib.suppress(CommandError):  # then they are asked one by one
            places = _pci_places(await monitor.execute_if_known("query-pci") or [])
    left = {path: kind for path, kind in asked.items() if path not in places}
    return {**places, **dict(zip(left, await asyncio.gather(*(_place(monitor, *each) for each in left.items()))))}


def _address(kind: str) -> tuple[str, ...]:
    return next((names for prefix, names in _ADDRESSES.items() if kind.startswith(prefix)), ())


def _pci_places(buses: t.Sequence[dict[str, t.Any]]) -> dict[str, str]:
    """The places of devices with an id, by their paths: those on the first bus, and behind bridges with an id.

    Bridges of a QEMU whose guest has not run yet have nothing behind them, and of another root bus the name is not
    told: these devices are left out.

    :param buses: the answer to ``query-pci``.
    """
    found: dict[str, str] = {}
    waiting = [("", buses[0]["devices"])] if buses else []
    while waiting:
        bus, devices = waiting.pop()
        for device in devices:
            name = device["qdev_id"]
            if name:
                found[f"{NAMED}/{name}"] = f"{bus} {device['slot']:02x}.{device['function']:x}".lstrip()
                waiting.append((name, device.get("pci_bridge", {}).get("devices", [])))
    return found


async def _place(monitor: Monitor, device: str, kind: str) -> str:
    bus, *words = await asyncio.gather(*(_property(monitor, device, name) for name in ("parent_bus", *_address(kind))))
    if "" in words:
        return ""
    # Others are named by QEMU, in the order of its options.
    named = bus.rpartition("/")[2] if bus.startswith(f"{NAMED}/") else ""
    return " ".join(filter(None, (named, *words)))


async def _property(monitor: Monitor, device: str, name: str) -> str:
    try:
        return str(await monitor.execute("qom-get", {"path": device, "property": name}))
    except CommandError:
        return ""
