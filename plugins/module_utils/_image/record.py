# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Our record in the ``<metadata>`` of an image's domain XML: how the image was made, and how its QEMU had been started.

It is one element in the namespace ``NAMESPACE`` with one child per field of ``SaveFacts``, and a ``launch`` child with
one per field of ``LaunchRecord``. A value that XML or libvirt would change (control characters, bytes that are not
UTF-8, blanks at its ends) carries ``encoding="base64"``. Its attribute ``checksum`` finds damage, such as another digit
in a disk's path; without one nothing is compared. By its attribute ``voucher`` it is known who wrote it
(:mod:`vouching`).
"""

from __future__ import annotations

import base64
import binascii
import collections
import contextlib
import dataclasses
import datetime
import re
import typing as t
import zlib

from ansible_collections.vmops.qemu.plugins.module_utils._errors import ImageFormatError
from ansible_collections.vmops.qemu.plugins.module_utils._image.xml_tree import Element, escape

NAMESPACE = "urn:vmops:qemu:save-image:1"

#: The highest user or group id: the one above means "no change" to the system.
_MAX_ID = (1 << 32) - 2


@dataclasses.dataclass(frozen=True)
class LaunchRecord:
    """How the saved QEMU had been started; strings are bytes decoded as UTF-8 with ``surrogateescape``.

    ``umask`` is octal; empty where it is not known. ``replayable`` is false where running ``argv`` again cannot work,
    and ``reason`` says why. ``groups`` are the supplementary groups, numbers joined by blanks, and ``capabilities`` the
    process's sets; where these are empty neither they nor ``no_new_privileges`` were recorded. ``unit_argv`` is what
    the unit had for its QEMU, with its variables; empty where the unit does not execute QEMU itself. ``resources`` is
    what of its host the process might use, as a text of which ``_qemu/resources`` knows the shape.
    ``network_namespace`` is where that is mounted, ``none`` for one without a network, and empty for that of the host;
    ``network_mounts`` is whether it had the mounts that ``ip netns exec`` makes. ``stdout`` and ``stderr`` are the
    files to which it wrote, ``slice`` that of its control group; empty where there is none to be used again.
    """

    argv: list[str]
    cwd: str
    executable: str
    uid: int
    gid: int
    umask: str = ""
    unit: str = ""
    replayable: bool = True
    reason: str = ""
    groups: str = ""
    no_new_privileges: bool = False
    capabilities: str = ""
    unit_argv: list[str] = dataclasses.field(default_factory=list)
    resources: str = ""
    network_namespace: str = ""
    network_mounts: bool = False
    stdout: str = ""
    stderr: str = ""
    slice: str = ""


@dataclasses.dataclass(frozen=True)
class SaveFacts:
    """How the image was made. ``saved_at`` is ISO 8601 in UTC (:func:`now`); ``digest`` is ``algorithm:hex`` or empty.

    ``parallel_channels`` is 0 where it is not known. ``migration`` holds QEMU's own figures of the migration that wrote
    the stream, by which a QEMU that still stands there is recognised as the one that wrote it. ``surroundings`` is the
    JSON text of what surrounded the VM, its disks above all, which only ``_surroundings`` can read. ``managed`` is
    whether a run over the whole host saved it, to be restored by one. ``suspended`` is whether the guest slept (S3) and
    was not stopped: it is to sleep again. ``memory_written`` is how many bytes of memory the stream holds, as far as
    QEMU tells; 0 where it is not known. ``cpu`` is the JSON text of what the guest saw of its CPUs, of which
    ``_qemu/cpu`` knows the shape.
    """

    collection_version: str
    qemu_version: str
    saved_at: str
    digest: str = ""
    parallel_channels: int = 0
    migration: str = ""
    surroundings: str = ""
    managed: bool = False
    suspended: bool = False
    memory_written: int = 0
    cpu: str = ""

    @property
    def saved_seconds(self) -> float | None:
        """``saved_at`` in seconds since the epoch; None where it is no time."""
        return seconds_of(self.saved_at)


def seconds_of(saved_at: str) -> float | None:
    """A time as ``saved_at`` has it, in seconds since the epoch; None where it is none."""
    for pattern in ("%Y-%m-%dT%H:%M:%S.%f%z", "%Y-%m-%dT%H:%M:%S%z"):
        with contextlib.suppress(ValueError, OverflowError):
            return datetime.datetime.strptime(saved_at, pattern).timestamp()
    return None


def now() -> str:
    """The time as ``saved_at`` has it: in milliseconds, so that two saves of a VM can be told apart."""
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


_ELEMENT_OF_FIELD = {"argv": "argument", "unit_argv": "unit-argument"}
_Record = t.TypeVar("_Record", LaunchRecord, SaveFacts)


def our(name: str) -> str:
    """The tag of an element of ours, as a parser gives it."""
    return f"{NAMESPACE} {name}"


def record_text(save_facts: SaveFacts, launch: LaunchRecord | None) -> str:
    """The record as XML."""
    values = [*_to_values(save_facts), *(_to_values(launch) if launch else ())]
    lines = [f'<vmops:save-image xmlns:vmops="{NAMESPACE}" checksum="{_checksum(values)}">']
    lines += ["      " + element_text(name, text) for name, text in _to_values(save_facts)]
    if launch:
        lines += ["      <vmops:launch>"]
        lines += ["        " + element_text(name, text) for name, text in _to_values(launch)]
        lines += ["      </vmops:launch>"]
    return "\n".join([*lines, "    </vmops:save-image>"])


def read_record(record: Element, path: str) -> tuple[SaveFacts, LaunchRecord | None]:
    """What the record says.

    :param path: the image's path, for errors.
    :raises ImageFormatError: it makes no sense, or is not as it was written.
    """
    launch = record.child(our("launch"))
    found = _from_elements(SaveFacts, record, path), _from_elements(LaunchRecord, launch, path) if launch else None
    if record.attributes.get("checksum") not in (None, "", _checksum(_record_values(record, path))):
        raise ImageFormatError(
            path,
            "our record in the domain XML is not as it was written: its checksum differs",
            cure="If it was changed on purpose, remove the attribute checksum from its element save-image",
        )
    return found


def _to_values(record: LaunchRecord | SaveFacts) -> t.Iterator[tuple[str, str]]:
    """The record's elements, each by name and text."""
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        for item in value if isinstance(value, list) else [value]:
            yield _element_name(field.name), str(item).lower() if isinstance(item, bool) else str(item)


def _record_values(record: Element, path: str) -> t.Iterator[tuple[str, str]]:
    """As ``_to_values``, from XML: also of elements that a later version of this collection wrote."""
    for element in record.children:
        if element.children:
            yield from _record_values(element, path)
        elif element.tag.startswith(our("")):
            yield element.tag[len(our("")) :], decode_text(element, path)


def _checksum(values: t.Iterable[tuple[str, str]]) -> str:
    """Of the record's values, not its bytes, which libvirt may lay out anew."""
    text = "".join(f"{name}\0{value}\0" for name, value in values)
    return f"crc32:{zlib.crc32(text.encode('utf-8', 'surrogateescape')):08x}"


def _from_elements(kind: type[_Record], parent: Element, path: str) -> _Record:
    values: dict[str, t.Any] = {}
    elements = collections.defaultdict(list)
    for element in parent.children:
        elements[element.tag].append(element)
    for field in dataclasses.fields(kind):
        name = _element_name(field.name)
        texts = [decode_text(element, path) for element in elements[our(name)]]
        if any("\0" in text for text in texts):
            raise ImageFormatError(path, f"our record in the domain XML has a NUL in {name}")
        if field.name in _ELEMENT_OF_FIELD:  # as many elements as it has words
            values[field.name] = texts
        elif texts:
            values[field.name] = _value(texts[0], str(field.type), name, path)
        elif field.default is dataclasses.MISSING:
            raise ImageFormatError(path, f"our record in the domain XML has no {name}")
    return kind(**values)


def _value(text: str, kind: str, name: str, path: str) -> str | int | bool:
    if kind == "bool":
        return text == "true"
    if kind != "int":
        return text
    number = parse_number(text, name, path)
    if name in ("uid", "gid") and number > _MAX_ID:
        raise ImageFormatError(path, f"our record in the domain XML has an impossible {name}: {number}")
    return number


def _element_name(field_name: str) -> str:
    return _ELEMENT_OF_FIELD.get(field_name, field_name.replace("_", "-"))


def element_text(name: str, text: str) -> str:
    """An element of ours as XML."""
    encoding = ""
    if needs_encoding(text):
        encoding = ' encoding="base64"'
        text = base64.b64encode(text.encode("utf-8", "surrogateescape")).decode()
    return f"<vmops:{name}{encoding}>{escape(text)}</vmops:{name}>"


def decode_text(element: Element, path: str) -> str:
    """:raises ImageFormatError: it says that it is base64, and is not."""
    if element.attributes.get("encoding") != "base64":
        return element.text
    try:
        return base64.b64decode(element.text.strip(), validate=True).decode("utf-8", "surrogateescape")
    except (binascii.Error, ValueError) as error:
        raise ImageFormatError(path, f"our record in the domain XML has broken base64: {error}") from error


def needs_encoding(text: str) -> bool:
    """Whether XML cannot hold the text, or libvirt might change it when it formats the metadata anew."""
    return text != text.strip() or re.search("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", text) is not None


def parse_number(text: str, what: str, path: str) -> int:
    """:raises ImageFormatError: it is none."""
    if not re.fullmatch(r"[0-9]{1,20}", text):
        raise ImageFormatError(path, f"the domain XML's {what} is not a number: {text[:40]!r}")
    return int(text)
