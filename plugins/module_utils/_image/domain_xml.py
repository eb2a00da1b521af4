# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The libvirt domain XML in a save image, with our own record (:mod:`record`) in its ``<metadata>``.

Format: https://libvirt.org/formatdomain.html.

XML from elsewhere is kept byte for byte: our record is inserted and replaced as text, at places that a parser found.
"""

from __future__ import annotations

import dataclasses
import re

from ansible_collections.vmops.qemu.plugins.module_utils._errors import ImageFormatError, RequestError
from ansible_collections.vmops.qemu.plugins.module_utils._image.record import (
    LaunchRecord,
    SaveFacts,
    decode_text,
    element_text,
    needs_encoding,
    our,
    parse_number,
    read_record,
    record_text,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.xml_tree import (
    Element,
    edited,
    escape,
    quoteattr,
    read_tree,
)
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.command_line import HIDDEN, redact_argument

MAX_NAME_SIZE = 1024
"""Characters of a VM's name at most: it is in each message."""

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
        if isinstance(value, str) and needs_encoding(value):
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
    record = record_text(save_facts, launch).encode()
    metadata = root.child("metadata")
    if metadata is None:
        return edited(data, [(root.end_tag, root.end_tag, b"  <metadata>\n    " + record + b"\n  </metadata>\n")])
    older = metadata.children_named(our("save-image"))
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
    return _parsed(read_tree(domain_xml, path)[1], path)


def parse_and_redact(domain_xml: str, path: str = _ORIGIN) -> tuple[ParsedDomain, str]:
    """As :func:`parse` and :func:`redact`, which both raise, with the XML read once."""
    data, root = read_tree(domain_xml, path)
    return _parsed(root, path), _redacted(data, root, path)


def _parsed(root: Element, path: str) -> ParsedDomain:
    name = root.text_of("name")
    if not name:
        raise ImageFormatError(path, "the domain XML has no name")
    if len(name) > MAX_NAME_SIZE:
        raise ImageFormatError(path, f"the domain XML's name has {len(name)} characters, more than {MAX_NAME_SIZE}")
    os_element = root.child("os")
    os_type = os_element.child("type") if os_element else None
    metadata = root.child("metadata")
    record = metadata.child(our("save-image")) if metadata else None
    save_facts, launch = read_record(record, path) if record else (None, None)
    return ParsedDomain(
        name=name,
        uuid=_uuid(root.text_of("uuid"), path),
        memory=_memory(root.child("memory"), path),
        vcpus=parse_number(root.text_of("vcpu").strip() or "0", "vcpu", path),
        machine=os_type.attributes.get("machine", "") if os_type else "",
        launch=launch,
        save_facts=save_facts,
        voucher=record.attributes.get("voucher", "") if record else "",
    )


def with_voucher(domain_xml: str, voucher: str, path: str = _ORIGIN) -> str:
    """The XML with another voucher in our record, or, where that is empty, as it is.

    :raises ImageFormatError: the XML is not well-formed, beyond the limits, or has no record of ours.
    """
    data, root = read_tree(domain_xml, path)
    metadata = root.child("metadata")
    record = metadata.child(our("save-image")) if metadata else None
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
    return _redacted(*read_tree(domain_xml, path), path)


def _redacted(data: bytes, root: Element, path: str) -> str:
    edits: list[tuple[int, int, bytes]] = []
    records: list[Element] = []
    waiting = [root]
    while waiting:
        element = waiting.pop()
        if element.tag == our("save-image"):
            if element.attributes.get("checksum"):
                records.append(element)
            if element.attributes.get("voucher"):
                edits.append(element.attribute_edit(data, "voucher", ""))
        if element.tag in (our("argument"), our("unit-argument"), our("surroundings")):
            text = decode_text(element, path)
            shown = redact_argument(text)
            if shown != text:
                name = element.tag[len(our("")) :]
                edits.append((element.start, element.end(data), element_text(name, shown).encode()))
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


# --- values -----------------------------------------------------------------------------------------------------


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
    value = parse_number(element.text.strip(), "memory", path)
    unit = element.attributes.get("unit", "KiB")
    if unit.lower() in ("b", "byte", "bytes"):
        return value
    match = re.fullmatch(r"([kmgtpe])(i?b)?", unit, re.IGNORECASE | re.ASCII)
    if not match:
        raise ImageFormatError(path, f"the domain XML's memory has an unknown unit: {unit[:40]!r}")
    base = 1000 if (match.group(2) or "").lower() == "b" else 1024
    return int(value * base ** ("kmgtpe".index(match.group(1).lower()) + 1))
