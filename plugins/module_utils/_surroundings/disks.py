# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which files the media of a running VM are made of: QEMU's block graph, held against its descriptors."""

from __future__ import annotations

import asyncio
import dataclasses
import re
import stat

from ansible_collections.vmops.qemu.plugins.module_utils._cancellation import looking, within
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.monitor import Monitor
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import QemuProcess
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.block_device import read_block_device
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.block_graph import (
    PROTOCOLS,
    BlockAnswers,
    BlockGraph,
    Layer,
    ask_block,
    device_path,
)
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.devices import read_places
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.media import Medium, MediumFile
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.open_files import OpenFiles

#: Seconds until the file systems must have said what the media are: one whose server is gone says nothing for ever.
_HOST_TIMEOUT = 10.0

#: Bytes of QEMU's name for what is no file.
_MAX_NAME = 4096

_PASSWORD_IN_URL = re.compile(r"(?<=://)([^/@:?#]*):[^/@?#]*@")

_DEVICES = frozenset(("host_device", "host_cdrom"))
_NOTHING = frozenset(("null-co", "null-aio"))


async def read_media(monitor: Monitor, process: QemuProcess | None, block: BlockAnswers | None = None) -> list[Medium]:
    """What QEMU has open for each drive now: for an image's record, when its migration has completed.

    Drives without a medium have no files, and devices whose storage QEMU does not see have one that is uncheckable.

    :param process: the QEMU; None where it is not known on this host, and then nothing is checkable.
    :param block: what QEMU has answered just now, where it was asked already, as before a save; then the places of the
        devices are left out.
    :raises MonitorError: QEMU was lost, or refused.
    """
    answers = block or await ask_block(monitor)
    graph = answers.graph
    # A look before the save is no record.
    places = await read_places(monitor, answers.drive_devices) if block is None else {}
    fdsets: dict[int, list[int]] = {}
    if any(node.filename.startswith("/dev/fdset/") for node in graph.nodes.values()):
        fdsets = {
            entry["fdset-id"]: [fd["fd"] for fd in entry["fds"]] for entry in await monitor.execute("query-fdsets")
        }
    try:
        media = await within(_HOST_TIMEOUT, looking(_look, graph, process, fdsets))
    except asyncio.TimeoutError:
        media = _media(graph, None, f"its file system did not answer within {_HOST_TIMEOUT:g} seconds")
    return [dataclasses.replace(medium, place=places.get(device_path(medium.qdev), "")) for medium in media]


def _look(graph: BlockGraph, process: QemuProcess | None, fdsets: dict[int, list[int]]) -> list[Medium]:
    return _media(graph, OpenFiles(process, fdsets), "")


def _media(graph: BlockGraph, files: OpenFiles | None, reason: str) -> list[Medium]:
    media = [
        Medium(
            backend=drive.backend,
            qdev=drive.qdev,
            node=drive.node,
            read_only=drive.read_only,
            files=tuple(_file(layer, files, reason) for layer in graph.layers(drive.node)) if drive.node else (),
        )
        for drive in graph.drives
    ]
    for device in graph.hidden:
        unseen = MediumFile(device.type_name, "", uncheckable="the device's storage is not in QEMU's hands")
        media.append(Medium(backend="", qdev=device.qdev, node="", read_only=False, files=(unseen,)))
    return media


def _file(layer: Layer, files: OpenFiles | None, reason: str) -> MediumFile:
    driver, name = layer.node.driver, _shown(layer.node.filename)
    if driver == "file" or driver in _DEVICES:
        return _host_file(layer, files, reason)
    if driver not in PROTOCOLS:
        reason = f"QEMU does not say what its {driver or 'block'} node reads"
    elif driver in _NOTHING:
        reason = f"QEMU's {driver} keeps nothing"
    else:
        reason = f"QEMU reads it with its {driver} driver, and this host has no file of it"
    return MediumFile(name, layer.described, uncheckable=reason)


def _host_file(layer: Layer, files: OpenFiles | None, reason: str) -> MediumFile:
    if files is None:
        return MediumFile(layer.node.filename, layer.described, uncheckable=reason)
    found = files.find(layer.node.filename)
    facts = found.facts
    if facts is None:
        return MediumFile(found.path, layer.described, uncheckable=found.reason)
    if stat.S_ISREG(facts.st_mode):
        return MediumFile(found.path, layer.described, facts.st_size, facts.st_mtime_ns, facts.st_ino, facts.st_dev)
    device = read_block_device(facts.st_rdev)
    return MediumFile(
        found.path,
        layer.described + (f", from byte {device.offset} of its file" if device.offset else ""),
        size=device.size,
        mtime_ns=device.mtime_ns or 0,
        inode=facts.st_ino,
        device_number=facts.st_dev,
        uncheckable="it is a device, which keeps no time of its last change" if device.mtime_ns is None else "",
        identity=device.identity,
    )


def _shown(name: str) -> str:
    """QEMU's name without a password in it."""
    return _PASSWORD_IN_URL.sub(r"\1:***@", name)[:_MAX_NAME]
