# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether a QEMU that is started as this one was would open the media that this one has now.

A snapshot, a mirror, a commit, another CD: each drive is held against its own option, file by file, by the inodes.

The kinds: ``disk_replaced`` (the option gives another file, or another medium, or none), ``disk_chain`` (other layers
below the same file, or another part of it), ``disk_added`` and ``disk_missing`` (a drive with a medium that no option
gives, and one whose option is there while it is not), and ``disk_unknown``, where it cannot be told. All of them block.
"""

from __future__ import annotations

import asyncio
import collections
import os
import re
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._cancellation import looking, within
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.command_line import daemonizes
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.configuration import Configuration
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import QemuProcess
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.block_graph import Layer
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.disk_options import (
    ConfiguredMedia,
    Keys,
    UnknownMediumError,
    resource_place,
)
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.media import Medium, MediumFile
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.verdict import Problem

#: Seconds until the file systems must have said what the options lead to.
_HOST_TIMEOUT = 10.0

_CURE = (
    "Give qemu_restore a command in launch that starts it with the disks that it has now,"
    " or start the VM so before it is saved"
)
_CURE_DENIED = (
    "Run the task as the VM's user, who may read it (become_user); where a file server takes root for another user"
    " (root squash), have the server leave root as it is (no_root_squash)"
)

#: Words of a network medium's name that say nothing of where it is, and the ports that QEMU adds.
_NOT_OF_A_PLACE = frozenset(
    (
        *("driver", "export", "exportname", "file", "host", "image", "inet", "json", "lun", "nbd", "path", "pool"),
        *("port", "raw", "server", "socket", "tcp", "type", "unix", "url", "user", "***", "0"),
        *("10809", "22", "3260", "24007", "80", "443", "ssh", "iscsi", "rbd", "nfs", "http", "https", "gluster"),
    )
)


async def replaced_media(
    media: t.Sequence[Medium],
    devices: t.Mapping[str, str],
    configuration: Configuration,
    process: QemuProcess | None,
) -> list[Problem]:
    """What the configuration would open otherwise than it is open now.

    :param media: what :func:`read_media` gave.
    :param devices: what :func:`read_devices` gave.
    :param configuration: the process's own.
    :param process: the QEMU; where it is None or another user's, nothing can be told.
    """
    if process is None or not process.visible:
        what = "its disks cannot be compared with its command line, as its process cannot be looked at"
        return [Problem("disk_unknown", what, "Run this as root on the host of the VM")]
    try:
        return await within(_HOST_TIMEOUT, looking(_compare, media, configuration, process, devices))
    except asyncio.TimeoutError:
        what = f"its disks could not be compared with its command line within {_HOST_TIMEOUT:g} seconds"
        return [Problem("disk_unknown", what, "See which file system of them does not answer")]


def _compare(
    media: t.Sequence[Medium], configuration: Configuration, process: QemuProcess, devices: t.Mapping[str, str]
) -> list[Problem]:
    return _Comparison(media, configuration, process, devices).problems()


class _Comparison:
    """One look at all drives."""

    def __init__(
        self,
        media: t.Sequence[Medium],
        configuration: Configuration,
        process: QemuProcess,
        devices: t.Mapping[str, str],
    ) -> None:
        self._media = media
        self._unknown = configuration.unknown
        self._devices = devices
        moves = daemonizes(process.argv) or any(
            setting.option == "chroot" or "chroot" in setting.keys for setting in configuration.of("chroot", "run-with")
        )
        self._configured = ConfiguredMedia(configuration, None if moves else process.cwd)
        self._options = self._find_options(configuration)
        if moves:
            self._configured = ConfiguredMedia(configuration, self._directory())

    def _find_options(self, configuration: Configuration) -> list[tuple[Medium | None, Keys | str | None, str]]:
        """Each drive, its options (or the name of its node), None where it has none, and why they are not known."""
        by_backend = self._configured.by_backend([medium.backend for medium in self._media if medium.backend])
        found: list[tuple[Medium | None, Keys | str | None, str]] = []
        for medium in self._media:
            if not medium.node and medium.files:
                continue  # not in QEMU's hands
            if medium.backend:
                found.append((medium, by_backend.pop(medium.backend, None), ""))
                continue
            try:
                device = self._configured.device(medium.qdev, self._devices)
            except UnknownMediumError as exc:
                found.append((medium, None, str(exc)))
                continue
            found.append((medium, device.get("drive", {}) if device is not None else None, ""))
        found.extend((None, {**keys, "id": name}, "") for name, keys in by_backend.items())
        found.extend((None, node, "") for node in self._nodes_without_a_drive(configuration, found))
        return found

    @staticmethod
    def _nodes_without_a_drive(
        configuration: Configuration, found: t.Sequence[tuple[Medium | None, Keys | str | None, str]]
    ) -> list[str]:
        """Nodes that the configuration gives to more devices than have one now."""
        given = collections.Counter(
            setting.keys["drive"] for setting in configuration.of("device") if setting.keys.get("drive")
        )
        given.subtract(options for _medium, options, _reason in found if isinstance(options, str))
        given.subtract(
            options["id"] for _medium, options, _reason in found if isinstance(options, dict) and "id" in options
        )
        return list(given.elements())

    def _directory(self) -> str | None:
        """The directory that QEMU has left, from the names and the places of the files that are still the first."""
        found = set()
        for medium, options, _reason in self._options:
            names = self._configured.relative_names(options) if options else []
            for name in names:
                for file in medium.files if medium else ():
                    end = "/" + os.path.normpath(name)
                    if not name.startswith("..") and file.path.endswith(end):
                        found.add(file.path[: -len(end)] or "/")
        return found.pop() if len(found) == 1 else None

    def problems(self) -> list[Problem]:
        """All that is otherwise."""
        found = [self._compare(*each) for each in self._options]
        return [problem for problem in found if problem]

    def _compare(self, medium: Medium | None, options: Keys | str | None, reason: str) -> Problem | None:
        files = medium.files if medium else ()
        label = medium.label if medium else _label(options)
        if reason or (options is None and files and self._unknown):
            return _unknown(label, reason or self._unknown[0])
        if options is None:
            what = f"the disk {label} ({_shown(files)}) is not one that its command line gives it"
            return Problem("disk_added", what, _CURE) if files else None
        if isinstance(options, dict) and files and (self._configured.temporary or options.get("snapshot") == "on"):
            what = f"the disk {label} is a temporary one (snapshot=on), which ends with its QEMU"
            return Problem("disk_replaced", what, "Start it with a disk that outlives its QEMU")
        try:
            layers = self._configured.layers(options)
        except UnknownMediumError as exc:
            denied = isinstance(exc.__cause__, PermissionError)
            return _unknown(label, str(exc), _CURE_DENIED if denied else _CURE)
        if medium is None:
            what = f"the disk {label} ({_names(layers)}), which its command line gives it, is not in it any more"
            return Problem("disk_missing", what, _CURE) if layers else None
        return self._compare_files(label, files, layers)

    def _compare_files(self, label: str, files: tuple[MediumFile, ...], layers: t.Sequence[Layer]) -> Problem | None:
        unknown: Problem | None = None
        for number, (file, layer) in enumerate(zip(files, layers)):
            is_file = layer.node.driver == "file"
            if file.uncheckable and not file.inode and is_file and os.path.isabs(file.path):
                unknown = unknown or _unknown(label, f"of {file.path} {file.uncheckable}")
                continue
            same = _is_file(file, layer) if is_file else _is_resource(file, layer)
            if not same:
                kind = "disk_chain" if number else "disk_replaced"
                return Problem(kind, _difference(label, files, layers), _CURE)
        same = all(layer.is_read_as(file.format) for file, layer in zip(files, layers))
        if len(files) != len(layers) or not same:
            kind = "disk_chain" if files and layers else "disk_replaced"
            return Problem(kind, _difference(label, files, layers), _CURE)
        return unknown


def _is_file(file: MediumFile, layer: Layer) -> bool:
    try:
        facts = os.stat(layer.node.filename)
    except (OSError, ValueError):
        return False
    return (facts.st_dev, facts.st_ino) == (file.device_number, file.inode)


def _is_resource(file: MediumFile, layer: Layer) -> bool:
    """Whether a name that QEMU reports is of what its options name, as far as words tell: it spells it otherwise."""
    if os.path.isabs(file.path) or file.inode:
        return False
    reported, given = _words(resource_place(file.path)), _words(resource_place(layer.node.filename))
    return reported == given


def _words(text: str) -> set[str]:
    parts = re.split(r"[\s:/?&=@,;{}\[\]\"'#+]+", re.sub(r"(?<=://)([^/@:?#]*):[^/@?#]*@", r"\1@", text))
    return {part for part in parts if part} - _NOT_OF_A_PLACE


def _unknown(label: str, reason: str, cure: str = _CURE) -> Problem:
    what = f"it cannot be told whether the disk {label} is the one that its command line gives it: {reason}"
    return Problem("disk_unknown", what, cure)


def _difference(label: str, files: t.Sequence[MediumFile], layers: t.Sequence[Layer]) -> str:
    return (
        f"the disk {label} is not what its command line gives it: it is {_shown(files)} now, and would be"
        f" {_names(layers)} (a snapshot, a mirror, or another medium)"
    )


def _shown(files: t.Sequence[MediumFile]) -> str:
    return " over ".join(f"{file.path} ({file.format})" for file in files) or "empty"


def _names(layers: t.Sequence[Layer]) -> str:
    names = []
    for layer in layers:
        name = " ".join(layer.node.filename.split())
        names.append(f"{name} ({layer.described})" if layer.described else name)
    return " over ".join(names) or "empty"


def _label(options: Keys | str | None) -> str:
    return options if isinstance(options, str) else (options or {}).get("id", "")
