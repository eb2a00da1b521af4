# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Descriptors in QEMU: an fdset that a migration URI can name.

QEMU opens ``/dev/fdset/N`` by taking the first descriptor of the set whose access mode and O_DIRECT flag match
exactly what it would have opened the file with (monitor/fds.c). A save or restore with ``direct-io`` therefore needs
two: a buffered one for the stream and one that was opened separately with O_DIRECT for the pages.
"""

from __future__ import annotations

import contextlib
import json
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._errors import CommandError, MigrationError
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.monitor import Monitor


async def find_notes(monitor: Monitor, prefix: str) -> list[tuple[int, str]]:
    """The notes in QEMU's fdsets (``opaque``) that begin with ``prefix``: the set's number, and the rest of the text.

    :raises MonitorError: QEMU could not be asked.
    """
    return [
        (fdset["fdset-id"], descriptor["opaque"][len(prefix) :])
        for fdset in await monitor.execute("query-fdsets")
        for descriptor in fdset["fds"]
        if descriptor.get("opaque", "").startswith(prefix)
    ]


def parse_note(text: str, **kinds: type) -> dict[str, t.Any]:
    """What a note says, which whoever answers as QEMU may have made up.

    :param kinds: the types of those values that are used.
    :raises ValueError: it is no JSON text, or has a value that none of ours has.
    :raises TypeError: it is no object, or a value is of another type.
    """
    try:
        values = json.loads(text)
    except RecursionError as exc:
        raise ValueError("its values lie too deep inside each other") from exc
    if not isinstance(values, dict):
        raise TypeError("it is no object")
    for key, kind in kinds.items():
        if not isinstance(values.get(key), kind):
            raise TypeError(f"{key} is of the type {type(values.get(key)).__name__}")
    if any(isinstance(value, str) and "\0" in value for value in values.values()):
        raise ValueError("a NUL in a path")
    return values


class DescriptorSet:
    """One fdset in one QEMU; QEMU gives it its number with the first descriptor."""

    def __init__(self, monitor: Monitor, opaque: str = "", number: int | None = None) -> None:
        """:param opaque: the text that QEMU keeps with each descriptor. :param number: that of a set that is there."""
        self._monitor = monitor
        self._opaque = opaque
        self._asked = False
        # Of one that was found it is not known.
        self._may_have_named = number is not None
        self.number = number

    async def add(self, *descriptors: int) -> None:
        """Pass descriptors, one after the other, and check that QEMU holds them all.

        :raises MigrationError: QEMU does not show as many descriptors as were passed. With ``direct-io`` on and no
            O_DIRECT descriptor in the set, QEMU 10 dies of SIGSEGV, so this must be known before the migration.
        """
        for descriptor in descriptors:
            arguments: dict[str, object] = {"opaque": self._opaque}
            if self.number is not None:
                arguments["fdset-id"] = self.number
            self._asked = True
            self._monitor.send_descriptor(descriptor)
            answer = await self._monitor.execute("add-fd", arguments)
            self.number = answer["fdset-id"]
        held = {entry["fdset-id"]: entry["fds"] for entry in await self._monitor.execute("query-fdsets")}
        shown = held.get(self.number, [])
        if len(shown) != len(descriptors):
            raise MigrationError(f"QEMU holds {len(shown)} of {len(descriptors)} descriptors passed to it")

    def uri(self, offset: int) -> str:
        """The migration URI of the stream that starts ``offset`` bytes into the file."""
        return f"file:/dev/fdset/{self.number},offset={offset:#x}"

    async def pass_named(self, descriptor: int) -> str:
        """Pass one more, by ``getfd``: a pipe, or a file in QEMU before 11.0; the migration URI (``fd:NAME``).

        Its name has the set's number in it, so that a later run that finds the set can take it back, too.
        """
        self._may_have_named = True
        self._monitor.send_descriptor(descriptor)
        await self._monitor.execute("getfd", {"fdname": self._name})
        return f"fd:{self._name}"

    @property
    def _name(self) -> str:
        return f"vmops-fdset-{self.number}"

    async def remove(self) -> None:
        """Take the set out of QEMU again, and the named one; a migration that runs has its own copies.

        :raises MonitorError: it may still be there.
        """
        if self.number is None and self._asked and self._opaque:
            # Cut off before the answer came: the number of the set is known to QEMU alone.
            notes = await find_notes(self._monitor, self._opaque)
            self.number = next((number for number, rest in notes if not rest), None)
        if self.number is None:
            return
        if self._may_have_named:
            # A migration has taken it, unless it never came to that.
            with contextlib.suppress(CommandError):
                await self._monitor.execute("closefd", {"fdname": self._name})
        try:
            await self._monitor.execute("remove-fd", {"fdset-id": self.number})
        except CommandError:
            # It may be gone already: QEMU drops a set whose descriptors are used up.
            if any(fdset["fdset-id"] == self.number for fdset in await self._monitor.execute("query-fdsets")):
                raise
        self.number, self._asked = None, False
