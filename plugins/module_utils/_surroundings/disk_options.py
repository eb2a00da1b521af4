# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The media that a configuration gives each drive: what QEMU would open if it were started with it now.

Its block options are read as QEMU reads them (block.c, blockdev.c): names, protocols, JSON, references to other nodes,
and, where an option gives no backing file or data file, what the header of the file says. The outcome is a graph of
the same kind as the one that a running QEMU reports.
"""

from __future__ import annotations

import itertools
import os
import re
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._qemu.configuration import Configuration, Setting
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.json_text import read_json
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.block_graph import (
    FILTERS,
    PROTOCOLS,
    BlockGraph,
    BlockNode,
    Layer,
    slice_of,
)
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.devices import UNNAMED
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.qcow2_header import (
    Qcow2Header,
    read_qcow2_header,
)

#: Nodes of one graph: more than any disk has, and an end for a chain that bites its tail.
_MAX_NODES = 1024

#: What a name of a medium begins with where it is not a path (``path_has_protocol`` in QEMU).
_PROTOCOL = re.compile("([^/:]+):")

#: Keys whose value is another node's name, or that node's options.
_CHILDREN = ("backing", "data-file", "file", "image", "log", "raw", "target", "test")
#: Formats that may have a backing file, and whose header is not read here.
_WITH_BACKING = frozenset(("qcow", "qed", "vmdk", "vpc", "parallels"))

_DRIVE_OPTIONS = frozenset(("drive", "hda", "hdb", "hdc", "hdd", "cdrom", "fda", "fdb", "pflash", "sd", "mtdblock"))
#: Keys of ``-drive`` that are not the node's.
_NOT_OF_THE_NODE = frozenset(("file", "format", "id", "if", "index", "bus", "unit", "media", "snapshot"))
_DEFAULT_INTERFACES = ("ide", "virtio", "scsi", "sd", "none", "floppy", "pflash", "mtd", "xen")

Keys = t.Mapping[str, str]


class UnknownMediumError(Exception):
    """What would be opened cannot be told; the message says why, as a clause."""


class ConfiguredMedia:
    """The drives of a configuration and the media in them."""

    def __init__(self, configuration: Configuration, directory: str | None) -> None:
        """Read the options; no file is looked at yet.

        :param directory: where QEMU was started; None where unknown: a relative name then leads nowhere.
        """
        self._directory = directory
        self._configuration = configuration
        self._named_nodes: dict[str, Keys] = {}
        for setting in configuration.of("blockdev"):
            if setting.keys.get("node-name"):
                self._named_nodes[setting.keys["node-name"]] = setting.keys
        self.drives = [_drive_keys(setting) for setting in configuration.settings if setting.option in _DRIVE_OPTIONS]
        for keys in self.drives:
            if keys.get("node-name"):
                self._named_nodes[keys["node-name"]] = keys
        self.temporary = bool(configuration.of("snapshot"))
        self._default_interface = ""

    def layers(self, keys: Keys | str) -> list[Layer]:
        """The ends of the graph that options give, in the order of :meth:`BlockGraph.layers`; looks at files.

        :param keys: of a drive, or a node's name.
        :raises UnknownMediumError: it cannot be told.
        """
        tree = _Tree(self._named_nodes, self._directory)
        if isinstance(keys, str):
            return tree.graph_below(tree.add_reference(keys))
        return tree.graph_below(tree.add_drive(keys)) if _has_medium(keys) else []

    def relative_names(self, keys: Keys | str) -> list[str]:
        """The relative names of files in a drive's own options."""
        given = self._named_nodes.get(keys, {}) if isinstance(keys, str) else keys
        names = [value for key, value in given.items() if key.rpartition(".")[2] in ("filename", "file")]
        return [name for name in names if name and not name.startswith("/") and not _PROTOCOL.match(name)]

    def by_backend(self, backends: t.Collection[str]) -> dict[str, Keys]:
        """The options of each drive by its backend's name, given or made up by QEMU.

        Which names it makes up depends on the machine; those are taken with which most of ``backends`` are met.
        """
        machines = list(itertools.product(_DEFAULT_INTERFACES, (2, 1)))
        choices = [self._names(*machine) for machine in machines]
        best = max(range(len(choices)), key=lambda number: len(set(choices[number]) & set(backends)))
        self._default_interface = machines[best][0]
        return choices[best]

    def _names(self, default_interface: str, ide_units: int) -> dict[str, Keys]:
        """The drives by name on a machine with this interface by default, and so many units on an IDE bus."""
        found: dict[str, Keys] = {}
        taken: set[tuple[str, int, int]] = set()
        for keys in self.drives:
            interface = keys.get("if") or default_interface
            units = {"ide": ide_units, "scsi": 7}.get(interface, 0)
            bus, unit = _number(keys.get("bus"), 0), _number(keys.get("unit"), -1)
            index = _number(keys.get("index"), -1)
            if index >= 0:
                bus, unit = divmod(index, units) if units else (0, index)
            if unit < 0:
                unit = 0
                while (interface, bus, unit) in taken:
                    unit += 1
                    if units and unit >= units:
                        bus, unit = bus + 1, 0
            taken.add((interface, bus, unit))
            medium = ("-cd" if keys.get("media") == "cdrom" else "-hd") if interface in ("ide", "scsi") else ""
            found[keys.get("id") or f"{interface}{bus if units else ''}{medium}{unit}"] = keys
        return found

    def device(self, qdev: str, devices: t.Mapping[str, str]) -> Keys | None:
        """The options of a device; None where the configuration has none.

        :param qdev: its id or QOM path, as ``query-block`` gives it.
        :param devices: the types of all devices, by their paths.
        :raises UnknownMediumError: it cannot be told which options are the device's.
        """
        parts = qdev.strip("/").split("/")
        if parts[:2] == ["machine", "peripheral-anon"] and len(parts) > 2:
            return self._device_without_id(parts[2], devices)
        name = parts[2] if parts[:2] == ["machine", "peripheral"] and len(parts) > 2 else qdev
        flash = re.fullmatch(r"/machine/[\w-]+\.flash([01])", qdev)
        if flash:
            return self._machine_flash(flash.group(1))
        if name.startswith("/"):
            raise UnknownMediumError(f"it is not known which option of its command line gives {qdev} its medium")
        for setting in self._configuration.of("device"):
            if setting.keys.get("id") == name:
                return setting.keys
        return None

    def _is_virtio(self, keys: Keys) -> bool:
        return (keys.get("if") or self._default_interface) == "virtio"

    def _machine_flash(self, number: str) -> Keys | None:
        found = None
        for setting in self._configuration.of("machine", "M"):
            if f"pflash{number}" in setting.keys:
                found = {"drive": setting.keys[f"pflash{number}"]}
        return found

    def _device_without_id(self, name: str, devices: t.Mapping[str, str]) -> Keys | None:
        """QEMU numbers them in this order: the strings, those of drives with ``if=virtio``, and JSON."""
        settings = self._configuration.of("device", "virtfs")
        plain = [setting.keys for setting in settings if not setting.argument.startswith("{")]
        virtio = [{"driver": "virtio-blk"} for keys in self.drives if self._is_virtio(keys)]
        in_json = [setting.keys for setting in settings if setting.argument.startswith("{")]
        ordered = [keys for keys in (*plain, *virtio, *in_json) if not keys.get("id")]
        number = _number(name.partition("[")[2].rstrip("]"), -1)
        for position, keys in enumerate(ordered[: number + 1]):
            kind = devices.get(f"{UNNAMED}/device[{position}]")
            driver = "virtio-9p" if "fsdriver" in keys else keys.get("driver", "")
            if kind is not None and kind != driver and not kind.startswith(f"{driver}-"):
                raise UnknownMediumError(f"it cannot be told which option of its command line made {name} ({kind})")
        return ordered[number] if 0 <= number < len(ordered) else None


def _number(text: str | None, default: int) -> int:
    return int(text) if text is not None and re.fullmatch("[0-9]{1,6}", text) else default


def _drive_keys(setting: Setting) -> Keys:
    """The keys of ``-drive`` for any option that stands for one."""
    if setting.option == "drive":
        return setting.keys
    option = setting.option
    more = {"hda": {"index": "0"}, "hdb": {"index": "1"}, "hdc": {"index": "2"}, "hdd": {"index": "3"}}.get(option, {})
    if option == "cdrom":
        more = {"index": "2", "media": "cdrom"}
    elif option in ("fda", "fdb"):
        more = {"if": "floppy", "index": "0" if option == "fda" else "1"}
    elif option in ("pflash", "sd", "mtdblock"):
        more = {"if": {"mtdblock": "mtd"}.get(option, option)}
    return {"file": setting.argument, **more}


def _has_medium(keys: Keys) -> bool:
    return bool(keys.get("file")) or any(key == "driver" or key.startswith("file.") for key in keys)


class _Tree:
    """A graph under construction."""

    def __init__(self, named: t.Mapping[str, Keys], directory: str | None) -> None:
        self._named = named
        self._directory = directory
        self._nodes: dict[str, BlockNode] = {}

    def graph_below(self, name: str) -> list[Layer]:
        """The ends below a node."""
        return BlockGraph((), self._nodes).layers(name)

    def _add(self, driver: str, filename: str = "", children: t.Sequence[tuple[str, str]] = (), part: str = "") -> str:
        if len(self._nodes) >= _MAX_NODES:
            raise UnknownMediumError(f"it would have more than {_MAX_NODES} layers")
        name = f"{len(self._nodes)}"
        self._nodes[name] = BlockNode(name, driver, filename, tuple(children), part)
        return name

    def add_reference(self, name: str) -> str:
        """A node that has options of its own."""
        if name not in self._named:
            raise UnknownMediumError(f"its command line has no node {name}")
        keys = self._named[name]
        return self.add_drive(keys) if "file" in keys and "driver" not in keys else self.add_node(keys)

    def add_drive(self, keys: Keys) -> str:
        """The options of a ``-drive``."""
        node = {key: value for key, value in keys.items() if key not in _NOT_OF_THE_NODE}
        driver = node.get("driver") or keys.get("format") or ""
        if keys.get("file"):
            return self.add_name(keys["file"], driver, node)
        if driver:
            node["driver"] = driver
        return self.add_node(node)

    def add_name(self, name: str, driver: str, keys: Keys, parent: str = "") -> str:
        """What a name of a medium stands for.

        :param driver: the format, or the empty string where QEMU is to find it.
        :param keys: further options of the node.
        :param parent: the file in whose header the name is.
        """
        if name.startswith("json:"):
            merged = {**_json_keys(name), **keys}
            return self.add_node({**merged, **({"driver": driver} if driver else {})})
        protocol = _PROTOCOL.match(name)
        if protocol and protocol.group(1) in ("blkdebug", "blkverify", "quorum"):
            raise UnknownMediumError(f"its command line names it in a way that is not understood here ({name})")
        if protocol and protocol.group(1) not in ("file", "host_device", "host_cdrom"):
            leaf = self._add(_network_driver(protocol.group(1)), name)
        elif protocol:
            leaf = self._add("file", self._path(name[protocol.end() :]))
        else:
            # Only a plain name means one beside the file that names it.
            leaf = self._add("file", self._path(os.path.join(os.path.dirname(parent), name)))
        return self._add_format(driver, leaf, keys)

    def add_node(self, keys: Keys) -> str:
        """The options of a ``-blockdev``, or of a node inside of another one's."""
        driver = keys.get("driver", "")
        if driver in PROTOCOLS:
            if driver in ("file", "host_device", "host_cdrom"):
                return self._add("file", self._path(keys.get("filename", "")))
            return self._add(driver, _place(keys))
        file = self._child(keys, "file") if _gives(keys, "file") else ""
        if not driver and keys.get("filename"):
            return self.add_name(keys["filename"], "", {})
        if not driver and not file:
            raise UnknownMediumError("its command line does not say what it is made of")
        if driver in FILTERS or not file:
            return self._add(driver, "", self._children(keys))
        return self._add_format(driver, file, keys)

    def _add_format(self, driver: str, file: str, keys: Keys) -> str:
        """A format over a node that reads a file."""
        if driver in PROTOCOLS:
            return file
        # What is no file of this host is never written in a format that QEMU has to find by itself but raw.
        driver = driver or ("" if self._place_of(file) else "raw")
        header = self._header(driver, file)
        driver = driver or ("qcow2" if header else "")
        children = [("file", file)]
        if _gives(keys, "data-file"):
            children.append(("data-file", self._child(keys, "data-file")))
        elif header and header.data_file:
            # Not beside the file that names it, but in QEMU's own directory.
            children.append(("data-file", self.add_name(header.data_file, "file", {})))
        below = _below(keys, "backing")
        if keys.get("backing") or any(key == "filename" or key.partition(".")[0] == "file" for key in below):
            children.append(("backing", self._child(keys, "backing")))
        elif "backing" not in keys and header and header.backing:
            backing_format = below.get("driver") or header.backing_format
            place = self._place_of(file)
            children.append(("backing", self.add_name(header.backing, backing_format, below, place)))
        elif "backing" not in keys and driver in _WITH_BACKING:
            raise UnknownMediumError(f"headers of {driver} files are not read here")
        return self._add(driver, "", children, slice_of(keys) if driver in ("", "raw") else "")

    def _children(self, keys: Keys) -> list[tuple[str, str]]:
        numbered = {".".join(key.split(".")[:2]) for key in keys if re.match(r"children\.\d+(\.|$)", key)}
        names = [*(name for name in _CHILDREN if _gives(keys, name) and keys.get(name) != ""), *sorted(numbered)]
        if not names:
            raise UnknownMediumError(f"what its {keys.get('driver')} node reads is not known")
        return [(name, self._child(keys, name)) for name in names]

    def _child(self, keys: Keys, name: str) -> str:
        return self.add_reference(keys[name]) if keys.get(name) else self.add_node(_below(keys, name))

    def _header(self, driver: str, file: str) -> Qcow2Header | None:
        place = self._place_of(file)
        if driver not in ("", "qcow2"):
            return None
        if not place:
            raise UnknownMediumError("only headers of this host's files are read")
        try:
            header = read_qcow2_header(place)
        except (OSError, ValueError) as exc:
            raise UnknownMediumError(f"{place} cannot be read: {getattr(exc, 'strerror', None) or exc}") from exc
        if driver == "qcow2" and header is None:
            raise UnknownMediumError(f"{place} is not a qcow2 file any more")
        return header

    def _place_of(self, name: str) -> str:
        """The path of the one file below a node, where it reads one."""
        layers = self.graph_below(name)
        return layers[0].node.filename if layers and layers[0].node.driver == "file" else ""

    def _path(self, name: str) -> str:
        if not name or name.startswith("/dev/fdset/"):
            raise UnknownMediumError("its command line names no file")
        if os.path.isabs(name):
            return name
        if self._directory is None:
            raise UnknownMediumError(f"it is not known in which directory its command line means {name}")
        return os.path.join(self._directory, name)


#: What keys that say where a medium is begin with.
_LOCATION = (
    *("conf", "device", "dir", "export", "filename", "group", "host", "image", "lun"),
    *("namespace", "path", "pool", "port", "server", "snapshot", "target", "transport", "url", "user", "vdi", "volume"),
)

#: Names of what holds nothing, and what stands before the directory in the name of a vvfat medium.
_NOTHING = ("null-co:", "null-aio:")
_FAT = re.compile(r"fat:(?:(?:12|16|32|floppy|rw):)*")


def resource_place(name: str) -> str:
    """What of the name of a medium that is no file of this host says where it is."""
    if name.startswith("json:"):
        # So QEMU calls what has no other name; the rest of it are options of how it is read.
        try:
            return _place(_json_keys(name))
        except UnknownMediumError:
            return name
    return "" if name.startswith(_NOTHING) else _FAT.sub("", name, count=1)


def _place(keys: Keys) -> str:
    return "\n".join(value for key, value in keys.items() if key.startswith(_LOCATION))


def _network_driver(protocol: str) -> str:
    return {"fat": "vvfat"}.get(protocol, protocol.partition("+")[0])


def _gives(keys: Keys, name: str) -> bool:
    return name in keys or any(key.startswith(f"{name}.") for key in keys)


def _below(keys: Keys, name: str) -> Keys:
    return {key[len(name) + 1 :]: value for key, value in keys.items() if key.startswith(f"{name}.")}


def _json_keys(name: str) -> Keys:
    keys = Setting("blockdev", name[len("json:") :].lstrip()).keys
    try:
        valid = isinstance(read_json(name[len("json:") :]), dict)
    except (ValueError, RecursionError):
        valid = False
    if not valid:
        raise UnknownMediumError("its name in JSON is not understood here")
    return keys
