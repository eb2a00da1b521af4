# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""QEMU's block graph: the guest's drives, and the nodes below each, down to the files that hold the data.

The edges come from ``x-debug-query-block-graph``, which QEMU has had since 4.0; QEMU 10.1 tells them of each node as
well (``children``), which is read where the command is missing. Where neither is there no edge is known, and a node
that must have some is a dead end.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._qemu.monitor import Monitor
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.devices import NAMED, read_devices

#: Drivers that hand the data of what is below them through as it is; what is below gives the format.
FILTERS = frozenset(
    (
        *("backup-top", "blkdebug", "blklogwrites", "blkreplay", "blkverify", "commit_top", "compress"),
        *("copy-before-write", "copy-on-read", "mirror_top", "preallocate", "quorum", "snapshot-access", "throttle"),
    )
)

#: Drivers of what has no node below it: they read a file or a device of the host, a server, or nothing.
PROTOCOLS = frozenset(
    (
        *("file", "ftp", "ftps", "gluster", "host_cdrom", "host_device", "http", "https", "iscsi"),
        *("nbd", "nfs", "null-aio", "null-co", "nvme", "nvme-io_uring", "rbd", "sheepdog", "ssh"),
        *("virtio-blk-vfio-pci", "virtio-blk-vhost-user", "virtio-blk-vhost-vdpa", "vvfat"),
    )
)

#: Devices whose storage is another process's or the kernel's, with no node in QEMU.
_HIDDEN_STORAGE = ("vhost-scsi", "vhost-user-blk", "vhost-user-scsi", "vhost-vdpa-device")


@dataclasses.dataclass(frozen=True)
class BlockNode:
    """A node of the graph."""

    name: str
    driver: str
    #: QEMU's name for what it reads; of a protocol node the name that was asked for, a relative one as it was given.
    filename: str
    #: The names of the edges to the nodes below, and the names of these.
    children: tuple[tuple[str, str], ...] = ()
    #: The part of what is below that a raw node gives (``slice_of``); empty where it is all.
    part: str = ""


@dataclasses.dataclass(frozen=True)
class Drive:
    """A block backend: what a device of the guest, or a monitor, has a medium in."""

    backend: str
    qdev: str
    #: Its active node; empty where there is no medium in it.
    node: str
    read_only: bool


@dataclasses.dataclass(frozen=True)
class HiddenStorage:
    """A device whose storage QEMU does not see."""

    qdev: str
    type_name: str


@dataclasses.dataclass(frozen=True)
class Layer:
    """A node at the graph's end, and the format in which the nodes above it read it."""

    node: BlockNode
    #: Empty where QEMU is to find it.
    format: str
    #: The part that the nodes above give of it; empty where it is all.
    part: str = ""

    @property
    def described(self) -> str:
        """Format and part, as a medium's file has them."""
        return f"{self.format}, {self.part}" if self.part else self.format

    def is_read_as(self, described: str) -> bool:
        """Whether it is what another layer is ``described`` as."""
        other_format, _comma, other_part = described.partition(", ")
        return other_part == self.part and self.format in ("", other_format)


@dataclasses.dataclass(frozen=True)
class BlockGraph:
    """The drives of a VM and all nodes."""

    drives: tuple[Drive, ...]
    nodes: t.Mapping[str, BlockNode]
    hidden: tuple[HiddenStorage, ...] = ()

    def below(self, node: str) -> list[BlockNode]:
        """A node and all nodes below it."""
        found: dict[str, BlockNode] = {}
        waiting = [node]
        while waiting:
            here = self.nodes.get(waiting.pop())
            if here is not None and here.name not in found:
                found[here.name] = here
                waiting.extend(child for _edge, child in here.children)
        return list(found.values())

    def layers(self, node: str) -> list[Layer]:
        """The ends of the graph below a node: the active layer's file and data file first, backing files last."""
        found: list[Layer] = []
        seen: set[str] = set()
        waiting = [(node, "raw", "")]
        while waiting:
            name, outer_format, outer_part = waiting.pop()
            if name in seen:
                continue
            seen.add(name)
            here = self.nodes.get(name) or BlockNode(name, "", "")
            if here.driver in PROTOCOLS or not here.children:
                found.append(Layer(here, outer_format, outer_part))
                continue
            part = " of ".join(filter(None, (outer_part, here.part)))
            inner_format = outer_format if here.driver in FILTERS else here.driver
            below = sorted(here.children, key=lambda edge: _edge_order(edge[0]))
            waiting.extend((child, inner_format, part) for _edge, child in reversed(below))
        return found


def _edge_order(edge: str) -> tuple[int, int, str]:
    """Where a child comes among its siblings."""
    rank = {"file": 0, "data-file": 1, "backing": 3}.get(edge, 2)
    number = edge.rpartition(".")[2]
    return rank, int(number) if number.isdigit() else 0, edge


@dataclasses.dataclass(frozen=True)
class BlockAnswers:
    """What QEMU has answered about its block graph, which takes it some milliseconds for many disks: asked once."""

    #: To ``query-block``, and to ``query-named-block-nodes``.
    drives: list[dict[str, t.Any]]
    nodes: list[dict[str, t.Any]]
    graph: BlockGraph
    #: What :func:`read_devices` gives.
    devices: t.Mapping[str, str]

    @property
    def drive_devices(self) -> dict[str, str]:
        """Those of the devices that are a drive's."""
        wanted = {device_path(drive.qdev) for drive in self.graph.drives if drive.qdev}
        return {path: kind for path, kind in self.devices.items() if path in wanted}


async def ask_block(monitor: Monitor) -> BlockAnswers:
    """Ask QEMU for all of it, in one round trip.

    :raises MonitorError: QEMU was lost, or refused.
    """
    drives, nodes, edges, devices = await asyncio.gather(
        monitor.execute("query-block"),
        monitor.execute("query-named-block-nodes", {"flat": True}),
        monitor.execute_if_known("x-debug-query-block-graph"),
        read_devices(monitor),
    )
    hidden = tuple(HiddenStorage(*each) for each in devices.items() if each[1].startswith(_HIDDEN_STORAGE))
    graph = BlockGraph(drives=parse_drives(drives), nodes=parse_nodes(nodes, edges), hidden=hidden)
    return BlockAnswers(drives, nodes, graph, devices)


def device_path(qdev: str) -> str:
    """The path of a drive's device in QEMU's tree of objects.

    :param qdev: as ``query-block`` gives it: an id, or the path of the device or of a part of it.
    """
    parts = qdev.split("/")
    return "/".join(parts[:4]) if qdev.startswith("/") else f"{NAMED}/{qdev}"


def parse_drives(answer: t.Sequence[dict[str, t.Any]]) -> tuple[Drive, ...]:
    """The drives in the answer to ``query-block``, in QEMU's order: that of their creation."""
    found = []
    for entry in answer:
        inserted = entry.get("inserted")
        drive = Drive(
            backend=entry["device"],
            qdev=entry.get("qdev", ""),
            node=inserted["node-name"] if inserted else "",
            read_only=inserted["ro"] if inserted else False,
        )
        found.append(drive)
    return tuple(found)


def parse_nodes(answer: t.Sequence[dict[str, t.Any]], graph: t.Mapping[str, t.Any] | None) -> dict[str, BlockNode]:
    """All nodes by name.

    :param answer: to ``query-named-block-nodes``.
    :param graph: the answer to ``x-debug-query-block-graph``; None where there is none.
    """
    edges: dict[str, list[tuple[str, str]]] = {}
    if graph is not None:
        names = {node["id"]: node["name"] for node in graph["nodes"] if node["type"] == "block-driver"}
        for edge in graph["edges"]:
            if edge["parent"] in names and edge["child"] in names:
                edges.setdefault(names[edge["parent"]], []).append((edge["name"], names[edge["child"]]))
    else:
        for entry in answer:
            for child in entry.get("children", ()):
                edges.setdefault(entry["node-name"], []).append((child["child"], child["node-name"]))
    return {
        entry["node-name"]: BlockNode(
            name=entry["node-name"],
            driver=entry["drv"],
            filename=entry["file"],
            children=tuple(edges.get(entry["node-name"], ())),
            part=_part(entry["file"]) if entry["drv"] == "raw" else "",
        )
        for entry in answer
    }


def slice_of(options: t.Mapping[str, t.Any]) -> str:
    """The part of what is below it that a raw node gives by its options, in words; empty where it is all."""
    offset, size = (_bytes(options.get(key, 0)) for key in ("offset", "size"))
    if "size" in options:
        return f"{size} bytes from {offset}"
    return f"all from {offset}" if offset else ""


def _part(name: str) -> str:
    """:param name: QEMU's name for a raw node, which is its options where they are not those of any raw node."""
    if not name.startswith("json:"):
        return ""
    try:
        options = json.loads(name[len("json:") :])
    except (ValueError, RecursionError):
        return "a part that QEMU does not say"  # it cuts off a name of more than 4095 bytes
    return slice_of(options) if isinstance(options, dict) else ""


#: Suffixes of sizes in QEMU's options.
_UNITS = {unit: 1024**power for power, unit in enumerate("bkmgtpe")}


def _bytes(value: object) -> object:
    """A size as a number of bytes; as it is where it is none."""
    text = str(value).lower()
    number, unit = (text[:-1], text[-1:]) if text[-1:] in _UNITS else (text, "b")
    return int(number) * _UNITS[unit] if number.isdigit() else value
