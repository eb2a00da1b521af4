# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The libvirt domain XML in a save image, and our own record in its ``<metadata>``.

Format: https://libvirt.org/formatdomain.html. Our record is one element in the namespace ``NAMESPACE`` with one child
per field of ``SaveFacts``, and a ``launch`` child with one per field of ``LaunchRecord``. A value that XML or libvirt
would change (control characters, bytes that are not UTF-8, blanks at its ends) carries ``encoding="base64"``. Its
attribute ``checksum`` finds damage, such as another digit in a disk's path; without one nothing is compared. By its
attribute ``voucher`` it is known who wrote it (:mod:`vouching`).

XML from elsewhere is kept byte for byte: our record is inserted and replaced as text, at places that a parser found.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import dataclasses
import datetime
import re
import typing as t
import zlib
from xml.sax.saxutils import escape, quoteattr

from ansible_collections.vmops.qemu.plugins.module_utils._errors import ImageFormatError, RequestError
from ansible_collections.vmops.qemu.plugins.module_utils._image.xml_tree import Element, edited, read_tree
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.command_line import HIDDEN, redact_argument

NAMESPACE = "urn:vmops:qemu:save-image:1"
MAX_NAME_SIZE = 1024
"""Characters of a VM's name at most: it is in each message."""

#: The highest user or group id: the one above means "no change" to the system.
_MAX_ID = (1 << 32) - 2
_QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"
_ORIGIN = "the domain XML"


@dataclasses.dataclass(frozen=True)
class DomainFacts:
    """A VM as QMP tells of it. ``memory`` is bytes; ``accelerator`` is ``kvm`` or ``tcg``; ``uuid`` may be empty."""

    name: str
    uuid: str
    memory: int
    vcpus: int
    machine: str
    emulator: str
    arch: str
    accelerator: str


@dataclasses.dataclass(frozen=True)
class LaunchRecord:
    """How the saved QEMU had been started; strings are bytes decoded as UTF-8 with ``surrogateescape``.

    ``umask`` is octal; empty where it is not known. ``replayable`` is false where running ``argv`` again cannot work,
    and ``reason`` says why. ``groups`` are the supplementary groups, numbers joined by blanks, and ``capabilities`` the
    process's sets; where these are empty neither they nor ``no_new_privileges`` were recorded. ``unit_argv`` is what
    the unit had for its QEMU, with its variables; empty where the unit does not execute QEMU itself.
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


@dataclasses.dataclass(frozen=True)
class SaveFacts:
    """How the image was made. ``saved_at`` is ISO 8601 in UTC (:func:`now`); ``digest`` is ``algorithm:hex`` or empty.

    ``parallel_channels`` is 0 where it is not known. ``migration`` holds QEMU's own figures of the migration that wrote
    the stream, by which a QEMU that still stands there is recognised as the one that wrote it. ``surroundings`` is the
    JSON text of what surrounded the VM, its disks above all, which only ``_surroundings`` can read.
    """

    collection_version: str
    qemu_version: str
    saved_at: str
    digest: str = ""
    parallel_channels: int = 0
    migration: str = ""
    surroundings: str = ""

    @property
    def saved_seconds(self) -> float | None:
        """``saved_at`` in seconds since the epoch; None where it is no time."""
        for pattern in ("%Y-%m-%dT%H:%M:%S.%f%z", "%Y-%m-%dT%H:%M:%S%z"):
            with contextlib.suppress(ValueError, OverflowError):
                return datetime.datetime.strptime(self.saved_at, pattern).timestamp()
        return None


def now() -> str:
    """The time as ``saved_at`` has it: in milliseconds, so that two saves of a VM can be told apart."""
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


@dataclasses.dataclass(frozen=True)
class ParsedDomain:
    """What a domain XML says. ``memory`` is bytes; a number not given is 0, a text not given is empty.

    ``uuid`` is in the usual form, with dashes and small letters. ``voucher`` is as it stands there, and proves nothing
    before it was compared.
    """

    name: str
    uuid: str
    memory: int
    vcpus: int
    machine: str
    launch: LaunchRecord | None
    save_facts: SaveFacts | None
    voucher: str = ""


def generate(facts: DomainFacts, save_facts: SaveFacts, launch: LaunchRecord | None = None) -> str:
    """The smallest domain XML that libvirt accepts, with our record.

    :raises RequestError: a fact (the name) has characters that XML cannot hold.
    """
    for value in dataclasses.astuple(facts):
        if isinstance(value, str) and _needs_encoding(value):
            raise RequestError(f"XML cannot hold {value!r}", cure="Rename the VM, or give a domain_xml")
    uuid = f"  <uuid>{escape(facts.uuid)}</uuid>\n" if facts.uuid else ""
    domain_type = "kvm" if facts.accelerator == "kvm" else "qemu"
    return embed(
        f"<domain type={quoteattr(domain_type)}>\n"
        f"  <name>{escape(facts.name)}</name>\n"
        f"{uuid}"
        f"  <memory unit='bytes'>{facts.memory}</memory>\n"
        f"  <currentMemory unit='bytes'>{facts.memory}</currentMemory>\n"
        f"  <vcpu>{facts.vcpus}</vcpu>\n"
        f"  <os>\n"
        f"    <type arch={quoteattr(facts.arch)} machine={quoteattr(facts.machine)}>hvm</type>\n"
        f"  </os>\n"
        f"  <devices>\n"
        f"    <emulator>{escape(facts.emulator)}</emulator>\n"
        f"  </devices>\n"
        f"</domain>\n",
        save_facts,
        launch,
    )


def embed(domain_xml: str, save_facts: SaveFacts, launch: LaunchRecord | None = None, path: str = _ORIGIN) -> str:
    """Put our record into a domain XML, in place of an older one; all else stays as it is, byte for byte.

    :param path: the origin of the XML, for errors.
    :raises ImageFormatError: the XML is not well-formed, not a domain's, or beyond the limits.
    """
    data, root = read_tree(domain_xml, path)
    record = _record(save_facts, launch).encode()
    metadata = root.child("metadata")
    if metadata is None:
        return edited(data, [(root.end_tag, root.end_tag, b"  <metadata>\n    " + record + b"\n  </metadata>\n")])
    older = metadata.children_named(_our("save-image"))
    if older:
        edits = [(element.start, element.end(data), b"") for element in older]
        edits[0] = (*edits[0][:2], record)
        return edited(data, edits)
    start_tag = metadata.start_tag(data)
    if start_tag.endswith(b"/>"):
        start, end = metadata.start, metadata.end(data)
        opened = start_tag[:-2].rstrip() + b">\n    "
        return edited(data, [(start, end, opened + record + b"\n  </metadata>")])
    return edited(data, [(metadata.end_tag, metadata.end_tag, b"  " + record + b"\n  ")])


def parse(domain_xml: str, path: str = _ORIGIN) -> ParsedDomain:
    """Read what restoring needs from a domain XML, our record included where it is there.

    :param path: the image's path, for errors.
    :raises ImageFormatError: the XML is not well-formed, has a DOCTYPE, is not a domain's, has no name, is beyond the
        limits, or a value in it makes no sense.
    """
    _data, root = read_tree(domain_xml, path)
    name = root.text_of("name")
    if not name:
        raise ImageFormatError(path, "the domain XML has no name")
    if len(name) > MAX_NAME_SIZE:
        raise ImageFormatError(path, f"the domain XML's name has {len(name)} characters, more than {MAX_NAME_SIZE}")
    os_element = root.child("os")
    os_type = os_element.child("type") if os_element else None
    metadata = root.child("metadata")
    record = metadata.child(_our("save-image")) if metadata else None
    launch = record.child(_our("launch")) if record else None
    parsed = ParsedDomain(
        name=name,
        uuid=_uuid(root.text_of("uuid"), path),
        memory=_memory(root.child("memory"), path),
        vcpus=_number(root.text_of("vcpu").strip() or "0", "vcpu", path),
        machine=os_type.attributes.get("machine", "") if os_type else "",
        launch=_from_elements(LaunchRecord, launch, path) if launch else None,
        save_facts=_from_elements(SaveFacts, record, path) if record else None,
        voucher=record.attributes.get("voucher", "") if record else "",
    )
    if record and record.attributes.get("checksum") not in (None, "", _checksum(_record_values(record, path))):
        raise ImageFormatError(
            path,
            "our record in the domain XML is not as it was written: its checksum differs",
            cure="If it was changed on purpose, remove the attribute checksum from its element save-image",
        )
    return parsed


def with_voucher(domain_xml: str, voucher: str, path: str = _ORIGIN) -> str:
    """The XML with another voucher in our record, or, where that is empty, as it is.

    :raises ImageFormatError: the XML is not well-formed, beyond the limits, or has no record of ours.
    """
    data, root = read_tree(domain_xml, path)
    metadata = root.child("metadata")
    record = metadata.child(_our("save-image")) if metadata else None
    if record is None:
        raise ImageFormatError(path, "the domain XML has no record of this collection")
    if not voucher:
        return domain_xml
    if "voucher" in record.attributes:
        return edited(data, [record.attribute_edit(data, "voucher", voucher)])
    end = record.start + len(record.start_tag(data)) - (2 if record.start_tag(data).endswith(b"/>") else 1)
    return edited(data, [(end, end, f" voucher={quoteattr(voucher)}".encode())])


def redact(domain_xml: str, path: str = _ORIGIN) -> str:
    """The XML with secrets hidden, for results and logs: passwords of graphics, and those on command lines.

    Our record has no voucher any more, and no checksum where a secret was in it.

    :raises ImageFormatError: the XML is not well-formed or beyond the limits (then show nothing of it), or our record
        makes no sense.
    """
    data, root = read_tree(domain_xml, path)
    edits: list[tuple[int, int, bytes]] = []
    records: list[Element] = []
    waiting = [root]
    while waiting:
        element = waiting.pop()
        if element.tag == _our("save-image"):
            if element.attributes.get("checksum"):
                records.append(element)
            if element.attributes.get("voucher"):
                edits.append(element.attribute_edit(data, "voucher", ""))
        if element.tag in (_our("argument"), _our("unit-argument"), _our("surroundings")):
            shown = redact_argument(_decode_text(element, path))
            if shown != _decode_text(element, path):
                name = element.tag[len(_our("")) :]
                edits.append((element.start, element.end(data), _element(name, shown).encode()))
            continue
        waiting.extend(element.children)
        for name, value in element.attributes.items():
            is_argument = (element.tag, name) == (f"{_QEMU_NAMESPACE} arg", "value")
            shown = redact_argument(value) if is_argument else HIDDEN if name in ("passwd", "password") else value
            if shown != value:
                edits.append(element.attribute_edit(data, name, shown))
        if element.tag == "entry" and not element.children:  # of sysinfo: SMBIOS OEM strings, fw_cfg blobs
            text = element.text
            shown = HIDDEN if element.attributes.get("name", "").startswith("opt/") else redact_argument(text)
            if text and shown != text:
                edits.append((element.start + len(element.start_tag(data)), element.end_tag, escape(shown).encode()))
    for record in records:
        content = record.start + len(record.start_tag(data))
        if any(content <= start < record.end_tag for start, _end, _replacement in edits):
            edits.append(record.attribute_edit(data, "checksum", ""))
    return edited(data, edits)


# --- our record -------------------------------------------------------------------------------------------------

_ELEMENT_OF_FIELD = {"argv": "argument", "unit_argv": "unit-argument"}
_Record = t.TypeVar("_Record", LaunchRecord, SaveFacts)


def _our(name: str) -> str:
    return f"{NAMESPACE} {name}"


def _record(save_facts: SaveFacts, launch: LaunchRecord | None) -> str:
    values = [*_to_values(save_facts), *(_to_values(launch) if launch else ())]
    lines = [f'<vmops:save-image xmlns:vmops="{NAMESPACE}" checksum="{_checksum(values)}">']
    lines += ["      " + _element(name, text) for name, text in _to_values(save_facts)]
    if launch:
        lines += ["      <vmops:launch>"]
        lines += ["        " + _element(name, text) for name, text in _to_values(launch)]
        lines += ["      </vmops:launch>"]
    return "\n".join([*lines, "    </vmops:save-image>"])


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
        elif element.tag.startswith(_our("")):
            yield element.tag[len(_our("")) :], _decode_text(element, path)


def _checksum(values: t.Iterable[tuple[str, str]]) -> str:
    """Of the record's values, not its bytes, which libvirt may lay out anew."""
    text = "".join(f"{name}\0{value}\0" for name, value in values)
    return f"crc32:{zlib.crc32(text.encode('utf-8', 'surrogateescape')):08x}"


def _from_elements(kind: type[_Record], parent: Element, path: str) -> _Record:
    values: dict[str, t.Any] = {}
    for field in dataclasses.fields(kind):
        name = _element_name(field.name)
        texts = [_decode_text(element, path) for element in parent.children_named(_our(name))]
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
    number = _number(text, name, path)
    if name in ("uid", "gid") and number > _MAX_ID:
        raise ImageFormatError(path, f"our record in the domain XML has an impossible {name}: {number}")
    return number


def _element_name(field_name: str) -> str:
    return _ELEMENT_OF_FIELD.get(field_name, field_name.replace("_", "-"))


def _element(name: str, text: str) -> str:
    encoding = ""
    if _needs_encoding(text):
        encoding = ' encoding="base64"'
        text = base64.b64encode(text.encode("utf-8", "surrogateescape")).decode()
    return f"<vmops:{name}{encoding}>{escape(text)}</vmops:{name}>"


def _decode_text(element: Element, path: str) -> str:
    if element.attributes.get("encoding") != "base64":
        return element.text
    try:
        return base64.b64decode(element.text.strip(), validate=True).decode("utf-8", "surrogateescape")
    except (binascii.Error, ValueError) as error:
        raise ImageFormatError(path, f"our record in the domain XML has broken base64: {error}") from error


def _needs_encoding(text: str) -> bool:
    """Whether XML cannot hold the text, or libvirt might change it when it formats the metadata anew."""
    return text != text.strip() or re.search("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", text) is not None


# --- values -----------------------------------------------------------------------------------------------------


def _number(text: str, what: str, path: str) -> int:
    if not re.fullmatch(r"[0-9]{1,20}", text):
        raise ImageFormatError(path, f"the domain XML's {what} is not a number: {text[:40]!r}")
    return int(text)


def _uuid(text: str, path: str) -> str:
    """As libvirt reads it, where dashes and blanks may be left out or put anywhere."""
    digits = re.sub(r"[\s-]", "", text).lower()
    if not digits:
        return ""
    if not re.fullmatch(r"[0-9a-f]{32}", digits):
        raise ImageFormatError(path, f"the domain XML's uuid makes no sense: {text[:40]!r}")
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _memory(element: Element | None, path: str) -> int:
    """Bytes, from libvirt's ``scaledInteger``: KiB without a unit, ``KB`` is 1000, ``K`` and ``KiB`` are 1024."""
    if element is None:
        return 0
    value = _number(element.text.strip(), "memory", path)
    unit = element.attributes.get("unit", "KiB")
    if unit.lower() in ("b", "byte", "bytes"):
        return value
    match = re.fullmatch(r"([kmgtpe])(i?b)?", unit, re.IGNORECASE | re.ASCII)
    if not match:
        raise ImageFormatError(path, f"the domain XML's memory has an unknown unit: {unit[:40]!r}")
    base = 1000 if (match.group(2) or "").lower() == "b" else 1024
    return int(value * base ** ("kmgtpe".index(match.group(1).lower()) + 1))
