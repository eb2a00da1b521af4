# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""XML from elsewhere, read within limits, with the places of its elements, so that it can be changed as text."""

from __future__ import annotations

import re
import xml.parsers.expat

from ansible_collections.vmops.qemu.plugins.module_utils._errors import ImageFormatError

MAX_XML_SIZE = 4 * 1024 * 1024
"""Bytes of XML that are parsed at most; libvirt's own protocol carries no more."""
MAX_XML_DEPTH = 100
MAX_XML_ELEMENTS = 100_000
MAX_XML_ATTRIBUTES = 100_000
MAX_NAMESPACE_SIZE = 256
"""Bytes of a namespace's name at most: parsers repeat it for each element and attribute that is in it."""

_BEFORE_ROOT = re.compile(rb"\s+|<\?.*?\?>|<!--.*?-->", re.DOTALL)
_ATTRIBUTE = re.compile(rb"""=\s*["']""")
_LONG_NAMESPACE = re.compile(
    rb"""xmlns(?::[^\s:=]*)?\s*=\s*(?:"[^"]{%(size)d}|'[^']{%(size)d})""" % {b"size": MAX_NAMESPACE_SIZE + 1}
)


class Element:
    """An element and where it stands: ``start`` is the offset of its start tag, ``end_tag`` that of its end tag."""

    __slots__ = ("_pieces", "attributes", "children", "end_tag", "start", "tag")

    def __init__(self, tag: str, attributes: dict[str, str], start: int) -> None:
        self.tag = tag
        self.attributes = attributes
        self.children: list[Element] = []
        self.start = start
        self.end_tag = start
        self._pieces: list[str] = []

    def add_text(self, text: str) -> None:
        """Add a piece of text, of which a parser finds several."""
        self._pieces.append(text)

    @property
    def text(self) -> str:
        """The text in it, that of its children left out."""
        return "".join(self._pieces)

    def children_named(self, tag: str) -> list[Element]:
        """Its children with this tag, in order."""
        return [child for child in self.children if child.tag == tag]

    def child(self, tag: str) -> Element | None:
        """Its first child with this tag."""
        return next(iter(self.children_named(tag)), None)

    def text_of(self, tag: str) -> str:
        """The text of its first child with this tag; empty where there is none."""
        child = self.child(tag)
        return child.text if child else ""

    def start_tag(self, data: bytes) -> bytes:
        """Its start tag, or the whole of an empty element; ``data`` is what the offsets count in."""
        match = re.compile(rb"""<(?:[^"'>]+|"[^"]*"|'[^']*')*>""").match(data, self.start)
        return match.group() if match else b""  # always matches: a parser has found it well-formed

    def end(self, data: bytes) -> int:
        """The offset after the element."""
        start_tag = self.start_tag(data)
        return self.start + len(start_tag) if start_tag.endswith(b"/>") else data.index(b">", self.end_tag) + 1

    def attribute_edit(self, data: bytes, name: str, value: str) -> tuple[int, int, bytes]:
        """What :func:`edited` does to give an attribute that it has another value."""
        for match in re.finditer(rb"""\s([^\s=]+)\s*=\s*("[^"]*"|'[^']*')""", self.start_tag(data)):
            if match.group(1) == name.encode():
                return self.start + match.start(2), self.start + match.end(2), quoteattr(value).encode()
        return self.start, self.start, b""


def read_tree(text: str, path: str) -> tuple[bytes, Element]:
    """Parse within limits; returns the UTF-8 bytes that the elements' offsets count in, and the root."""
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ImageFormatError(path, f"the domain XML is not Unicode text: {error.reason}") from error
    if len(data) > MAX_XML_SIZE:
        raise ImageFormatError(path, f"the domain XML has {len(data)} bytes, more than {MAX_XML_SIZE}")
    _require_harmless(data, path)
    roots: list[Element] = []
    open_elements: list[Element] = []
    count = 0
    parser = xml.parsers.expat.ParserCreate("UTF-8", " ")
    parser.buffer_text = True

    def start_element(tag: str, attributes: dict[str, str]) -> None:
        nonlocal count
        count += 1
        if count > MAX_XML_ELEMENTS or len(open_elements) >= MAX_XML_DEPTH:
            raise ImageFormatError(path, "the domain XML has too many elements, or too many inside each other")
        element = Element(tag, attributes, parser.CurrentByteIndex)
        (open_elements[-1].children if open_elements else roots).append(element)
        open_elements.append(element)

    def end_element(_tag: str) -> None:
        open_elements.pop().end_tag = parser.CurrentByteIndex

    def character_data(piece: str) -> None:
        open_elements[-1].add_text(piece)

    parser.StartElementHandler = start_element
    parser.EndElementHandler = end_element
    parser.CharacterDataHandler = character_data
    try:
        parser.Parse(data, True)
    except xml.parsers.expat.ExpatError as error:
        raise ImageFormatError(path, f"the domain XML is not well-formed: {error}") from error
    if roots[0].tag != "domain":
        raise ImageFormatError(path, f"the XML is not a domain's but a {roots[0].tag[:40]!r} document")
    return data, roots[0]


def _require_harmless(data: bytes, path: str) -> None:
    """Refuse what makes much of little, before the parser sees it: it goes on to the end, whatever a handler raises.

    Entities need a DOCTYPE, which stands before the root element. (Parsers before expat 2.4 expand them without limit.)
    """
    position = 3 if data.startswith(b"\xef\xbb\xbf") else 0
    while True:
        match = _BEFORE_ROOT.match(data, position)
        if not match:
            break
        position = match.end()
    if data.startswith(b"<!DOCTYPE", position):
        raise ImageFormatError(path, "the domain XML has a DOCTYPE, which is not accepted")
    if sum(1 for _match in _ATTRIBUTE.finditer(data)) > MAX_XML_ATTRIBUTES:
        raise ImageFormatError(path, f"the domain XML has more than {MAX_XML_ATTRIBUTES} attributes")
    if _LONG_NAMESPACE.search(data):
        raise ImageFormatError(path, f"the domain XML has a namespace of more than {MAX_NAMESPACE_SIZE} bytes")


def edited(data: bytes, edits: list[tuple[int, int, bytes]]) -> str:
    """Replace each range (start, end) by its bytes."""
    pieces, position = [], 0
    for start, end, replacement in sorted(edits):
        pieces += [data[position:start], replacement]
        position = end
    return b"".join([*pieces, data[position:]]).decode("utf-8")


# Not those of xml.sax.saxutils, which loads an HTTP client with it: 27 modules, in each run.


def escape(text: str) -> str:
    """A text as it stands in an element."""
    return text.replace("&", "&amp;").replace(">", "&gt;").replace("<", "&lt;")


def quoteattr(value: str) -> str:
    """An attribute's value with its quotes; line ends and tabs stay what they are."""
    escaped = escape(value).replace("\n", "&#10;").replace("\r", "&#13;").replace("\t", "&#9;")
    if '"' in escaped and "'" not in escaped:
        return f"'{escaped}'"
    return '"' + escaped.replace('"', "&quot;") + '"'
