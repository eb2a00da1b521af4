# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a VM's QEMU needs beside its disks to be started again, as an image records it, and all of that looked at once.

The record is a part of the one of the surroundings, ``{"files": […], "directories": […], …}``: the keys of each element
are those of its class. It is read from images that others may have written, so everything in it is bounded; what a
later version added is left out, and what is not there has its default.
"""

from __future__ import annotations

import asyncio
import dataclasses
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._cancellation import looking, within
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.monitor import Monitor
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import QemuProcess
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.unit import VmUnit
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.bridges import Tap, find_taps, tap_problems
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.directories import (
    Directory,
    directory_problems,
    find_directories,
    volatile_problems,
)
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.media import Medium
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.servers import (
    Server,
    find_servers,
    server_problems,
    state_problems,
)
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.session_needs import display_of, session_problems
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.start import started_by_unit
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.start_files import StartFile, find_start_files
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.tpm import TpmServer, find_tpm_servers
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.verdict import Problem

#: What is read at most: elements of a kind, words of one, characters of a text.
_MAX_ELEMENTS = 512
_MAX_WORDS = 256
_MAX_TEXT = 8192

#: Seconds that all of it may take.
_HOST_TIMEOUT = 20.0

_Part = t.TypeVar("_Part", StartFile, Directory, Server, TpmServer, Tap)


@dataclasses.dataclass(frozen=True)
class Needs:
    """All of it."""

    files: tuple[StartFile, ...] = ()
    directories: tuple[Directory, ...] = ()
    servers: tuple[Server, ...] = ()
    tpms: tuple[TpmServer, ...] = ()
    taps: tuple[Tap, ...] = ()

    def dump(self) -> dict[str, t.Any]:
        """Values for JSON that :meth:`parse` takes."""
        found: dict[str, t.Any] = {}
        for field in dataclasses.fields(self):
            parts = [part for part in getattr(self, field.name) if _is_recordable(part)][:_MAX_ELEMENTS]
            if parts:
                found[field.name] = [_dumped(part) for part in parts]
        return found

    def unrecorded(self) -> list[Problem]:
        """What of it no image can hold, so that a restore would not see to it."""
        recorded = self.dump()
        found = []
        for field in dataclasses.fields(self):
            lost = len(getattr(self, field.name)) - len(recorded.get(field.name, ()))
            if lost:
                what = f"{lost} of the {field.name} that its QEMU needs are too many, or too long, to be recorded"
                found.append(Problem("need_unrecorded", what, "Restore it with launch: command or launch: attach"))
        return found

    @classmethod
    def parse(cls, value: object) -> Needs:
        """Read them; nothing of an image of an earlier version.

        :raises ValueError: they make no sense.
        """
        if value is None:
            return cls()
        if not isinstance(value, dict):
            raise ValueError("what the VM needs is not an object")
        return cls(
            files=_parsed(value, "files", StartFile),
            directories=_parsed(value, "directories", Directory),
            servers=_parsed(value, "servers", Server),
            tpms=_parsed(value, "tpms", TpmServer),
            taps=_parsed(value, "taps", Tap),
        )


def _dumped(part: t.Any) -> dict[str, t.Any]:
    """Its fields that are not as they are by default."""
    values = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
    defaults = {field.name: field.default for field in dataclasses.fields(part)}
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in values.items()
        if value != defaults[name]
    }


def _is_recordable(part: t.Any) -> bool:
    try:
        _parsed_part(_dumped(part), "", type(part))
    except ValueError:
        return False
    return True


def _parsed(value: dict[str, t.Any], name: str, kind: type[_Part]) -> tuple[_Part, ...]:
    parts = value.get(name, [])
    if not isinstance(parts, list) or len(parts) > _MAX_ELEMENTS:
        raise ValueError(f"{name} that the VM needs are not a list, or too many")
    return tuple(_parsed_part(part, name, kind) for part in parts)


def _parsed_part(part: object, name: str, kind: type[_Part]) -> _Part:
    if not isinstance(part, dict):
        raise ValueError(f"one of the {name} that the VM needs is not an object")
    found: dict[str, t.Any] = {}
    for field in dataclasses.fields(kind):
        if field.name in part:
            found[field.name] = _checked(part[field.name], str(field.type), f"{field.name} of {name}")
        elif field.default is dataclasses.MISSING:
            raise ValueError(f"one of the {name} that the VM needs has no {field.name}")
    return kind(**found)


def _checked(value: object, kind: str, place: str) -> t.Any:
    if kind == "bool" and isinstance(value, bool):
        return value
    if kind == "int" and isinstance(value, int) and not isinstance(value, bool) and -1 <= value < 2**63:
        return value
    if kind == "str" and _is_text(value):
        return value
    words = value if isinstance(value, list) else None
    if kind.startswith("tuple") and words is not None and len(words) <= _MAX_WORDS and all(map(_is_text, words)):
        return tuple(words)
    raise ValueError(f"{place} that the VM needs is not what it should be")


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _MAX_TEXT and "\0" not in value


async def find_needs(
    monitor: Monitor, process: QemuProcess, unit: VmUnit, types: t.Mapping[str, str], media: t.Sequence[Medium]
) -> tuple[Needs, list[Problem]]:
    """What a running VM needs, and what of that stands between it and its return.

    :param types: of its devices, by their paths.
    :param media: what it has in its drives.
    :raises MonitorError: QEMU cannot be asked.
    """
    try:
        return await within(_HOST_TIMEOUT, _look(monitor, process, unit, types, media))
    except asyncio.TimeoutError:
        what = (
            "what its QEMU needs to be started again (files that its command line names, directories, servers) could"
            f" not be looked at within {_HOST_TIMEOUT:g} seconds"
        )
        return Needs(), [Problem("need_unknown", what, "See which file system of them does not answer")]


async def _look(
    monitor: Monitor, process: QemuProcess, unit: VmUnit, types: t.Mapping[str, str], media: t.Sequence[Medium]
) -> tuple[Needs, list[Problem]]:
    by_unit = started_by_unit(unit)
    tpms, problems = await find_tpm_servers(monitor, process, unit.name if by_unit else "")
    files, missing = await find_start_files(monitor, process, types)
    servers = await looking(find_servers, process)
    more = [directory for directory in (tpm.state_directory for tpm in tpms) if directory]
    directories = await looking(find_directories, process, more)
    taps = await looking(find_taps, process)
    kept = [*(file.path for file in files), *(file.path for medium in media for file in medium.files)]
    needs = Needs(tuple(files), tuple(directories), tuple(servers), tuple(tpms), tuple(taps))
    return needs, [
        *needs.unrecorded(),
        *missing,
        *problems,
        *state_problems(process.configuration),
        *server_problems(servers, by_unit),
        *directory_problems(directories, by_unit),
        *await looking(volatile_problems, kept),
        *tap_problems(taps, process, by_unit),
        *session_problems(process.configuration, by_unit, await display_of(monitor)),
    ]
