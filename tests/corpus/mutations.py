# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How good save images are spoilt: kinds of mutations, and what must come of each.

A case is chosen by its number and the seed alone, so that each can be made again. What must come of it:

- ``REFUSED``: a named problem.
- ``HARMLESS``: a named problem, or nothing that a restore reads has changed; the kind says why that is so.
- ``FITTING``: as ``HARMLESS``, but what has changed may also be something that a restore compares with the QEMU that
  shall load the image (its VM's name and UUID, machine type, RAM blocks), and so refuses there.
- ``SILENT``: a named problem, or what no structure tells of: the guest's memory and devices. Only a digest finds it.
- ``EXPANDED``: the compressed formats' streams: a named problem, or one that the tool tells when it expands the image,
  or the same stream comes out.
"""

from __future__ import annotations

import base64
import dataclasses
import enum
import json
import random
import re
import struct
from collections.abc import Callable
from typing import Optional

from corpus.layout import HEADER_SIZE, MIB, WORDS, Block, Layout, Range

PAGE = 4096
XML_LIMIT = 4 * MIB
NAMESPACE = "urn:vmops:qemu:save-image:1"


class Expect(enum.Enum):
    """What must come of a mutation."""

    REFUSED = "refused"
    HARMLESS = "harmless"
    FITTING = "fitting"
    SILENT = "silent"
    EXPANDED = "expanded"


@dataclasses.dataclass(frozen=True)
class Mutation:
    """What is done to a copy of a good image, in this order."""

    #: The stream moves to this offset first, with all that follows; None leaves it where it is.
    move_stream: Optional[int] = None
    #: The file's length; what is new is a hole.
    size: Optional[int] = None
    #: Ranges that become holes.
    holes: tuple[Range, ...] = ()
    #: Bytes that are written, each at its offset.
    writes: tuple[tuple[int, bytes], ...] = ()


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of mutations: ``make`` returns None for an image to which it cannot be done."""

    name: str
    expect: Expect
    make: Callable[[random.Random, Layout], Optional[Mutation]]
    #: Why it is no harm where nothing refuses it.
    why: str = ""
    #: Facts (of Facts.differences) that may change without harm.
    may_change: frozenset[str] = frozenset()
    weight: int = 1


KINDS: list[Kind] = []

Make = Callable[[random.Random, Layout], Optional[Mutation]]


def kind(
    name: str, expect: Expect, why: str = "", may_change: tuple[str, ...] = (), weight: int = 1
) -> Callable[[Make], Make]:
    """Register what makes mutations of a kind."""

    def register(make: Make) -> Make:
        KINDS.append(Kind(name, expect, make, why, frozenset(may_change), weight))
        return make

    return register


def case(seed: str, number: int, layouts: dict[str, Layout]) -> tuple[Kind, str, Mutation]:
    """The kind, the image's name and the mutation of a case; kinds take turns, images are drawn."""
    rng = random.Random(f"{seed}:{number}")
    turns = [each for each in KINDS for _turn in range(each.weight)]
    each = turns[number % len(turns)]
    names = sorted(layouts)
    for _round in range(20):
        rng.shuffle(names)
        for name in names:
            made = each.make(rng, layouts[name])
            if made is not None:
                return each, name, made
    raise AssertionError(f"no image for {each.name}")


# --- pieces -----------------------------------------------------------------------------------------------------


def write(offset: int, data: bytes) -> Mutation:
    return Mutation(writes=((offset, data),))


def flip(rng: random.Random, layout: Layout, region: str, bits: int = 1) -> Optional[Mutation]:
    """Other values of one bit, or of some, anywhere in a region."""
    ranges = [where for where in layout.regions.get(region, []) if where[1] > where[0]]
    if not ranges:
        return None
    writes: dict[int, int] = {}
    for _bit in range(bits):
        start, end = rng.choice(ranges)
        offset = rng.randrange(start, end)
        old = writes.get(offset, layout.read((offset, offset + 1))[0])
        writes[offset] = old ^ 1 << rng.randrange(8)
    changed = {offset: new for offset, new in writes.items() if layout.read((offset, offset + 1)) != bytes([new])}
    return Mutation(writes=tuple((offset, bytes([new])) for offset, new in changed.items()))


def flips(
    region: str, expect: Expect, why: str = "", may_change: tuple[str, ...] = (), weight: int = 1, bits: int = 1
) -> None:
    """Register flips in a region."""
    name = f"flip {region}" if bits == 1 else f"flip {bits} bits of {region}"
    kind(name, expect, why, may_change, weight)(lambda rng, layout: flip(rng, layout, region, bits))


def noise(rng: random.Random, layout: Layout, region: str) -> Optional[Mutation]:
    """Up to 64 bytes of noise in a region."""
    ranges = [where for where in layout.regions.get(region, []) if where[1] > where[0]]
    if not ranges:
        return None
    start, end = rng.choice(ranges)
    length = min(rng.randint(1, 64), end - start)
    offset = rng.randint(start, end - length)
    data = rng.randbytes(length)
    return write(offset, data) if data != layout.read((offset, offset + length)) else None


EXTREMES = (0, 1, 2, 3, 7, 8, 92, 255, 256, 4096, 65535, 1 << 20, 1 << 24)


def extreme(rng: random.Random, size: int, near: tuple[int, ...]) -> bytes:
    """A number of so many bytes, big-endian: a small one, one at an end of its range, or beside one that matters."""
    top = 1 << size * 8
    choice = [*EXTREMES, *(top >> shift for shift in range(1, 4)), *(top - less for less in range(1, 4))]
    choice += [(1 << 32) - 1, 1 << 32, (1 << 46), (1 << 46) + 4096, *(top - PAGE * less for less in (1, 2, 512))]
    choice += [value + step for value in near for step in (-PAGE, -1, 0, 1, PAGE)]
    return int(rng.choice(choice) % top).to_bytes(size, "big")


# --- the file's length ------------------------------------------------------------------------------------------


@kind("cut off anywhere", Expect.EXPANDED, weight=3)
def _cut(rng: random.Random, layout: Layout) -> Mutation:
    return Mutation(size=rng.randrange(layout.size))


@kind("cut off at a border", Expect.EXPANDED, weight=3)
def _cut_at_border(rng: random.Random, layout: Layout) -> Mutation:
    borders = {edge for ranges in layout.regions.values() for where in ranges for edge in where}
    edge = rng.choice(sorted(borders)) + rng.choice((-1, 0, 1))
    return Mutation(size=min(max(0, edge), layout.size - 1))


@kind("last bytes lost", Expect.EXPANDED)
def _cut_end(rng: random.Random, layout: Layout) -> Mutation:
    return Mutation(size=layout.size - rng.choice((1, 2, 3, 4, 5, 6, 7, 8, 100, 511, 512, 4096)))


@kind("blocks lost at the end, and the length kept", Expect.EXPANDED)
def _torn_end(rng: random.Random, layout: Layout) -> Mutation:
    lost = rng.randint(1, min(layout.size - layout.stream, MIB))
    return Mutation(holes=((layout.size - lost, layout.size),))


@kind("zeros after the end", Expect.EXPANDED, "writers of plain streams pad them; QEMU stops at the stream's end")
def _zeros_after(rng: random.Random, layout: Layout) -> Mutation:
    return Mutation(size=layout.size + rng.choice((1, 2, 3, 4, 512, 4096, MIB, rng.randint(1, 10 * MIB))))


@kind("garbage after the end", Expect.EXPANDED)
def _garbage_after(rng: random.Random, layout: Layout) -> Mutation:
    data = rng.randbytes(rng.choice((1, 2, 6, 100, 5000)))
    return write(layout.size, data.rstrip(b"\0") or b"x")


@kind("a second end after the end", Expect.EXPANDED)
def _end_twice(_rng: random.Random, layout: Layout) -> Optional[Mutation]:
    if layout.compressed:
        return None
    tail = layout.read((layout.only("devices")[1], layout.size)).rstrip(b"\0")
    return write(layout.size, tail)


# --- the header -------------------------------------------------------------------------------------------------

_ALIKE = "versions 2 and 3 differ in how they mark sparse alone"
_RUNS = "whether the guest shall run is the operator's to change: virsh save-image-edit does it"
_NOBODY = "no reader looks at them"
_WENT_ON = "a checkpoint is the same image, and says that it is one; all but 0 and 1 is refused"
#: What the words say that a reader may find otherwise.
_SAID = ("header.version", "header.was_running", "header.checkpoint")

flips("magic", Expect.REFUSED)
flips("version", Expect.HARMLESS, _ALIKE, ("header.version",))
flips("data_len", Expect.REFUSED)
flips("was_running", Expect.HARMLESS, _RUNS, ("header.was_running",))
flips("compressed", Expect.REFUSED)
flips("cookie_offset", Expect.REFUSED)
flips("features", Expect.HARMLESS, "version 2 has no features")
flips("unused", Expect.HARMLESS, _NOBODY)
flips("checkpoint", Expect.HARMLESS, _WENT_ON, ("header.checkpoint",))


@kind("header noise", Expect.HARMLESS, _NOBODY, _SAID, weight=2)
def _header_noise(rng: random.Random, layout: Layout) -> Optional[Mutation]:
    return noise(rng, layout, rng.choice(("magic", *WORDS, "unused")))


@kind("header word, an extreme", Expect.HARMLESS, f"{_ALIKE}; {_RUNS}; {_WENT_ON}", _SAID, 6)
def _header_extreme(rng: random.Random, layout: Layout) -> Optional[Mutation]:
    start, end = layout.only(rng.choice(list(WORDS)))
    near = (layout.size, layout.size - HEADER_SIZE, layout.stream, layout.only("xml")[1] - HEADER_SIZE)
    data = extreme(rng, 4, near)[::-1]
    return write(start, data) if data != layout.read((start, end)) else None


@kind("header words exchanged", Expect.HARMLESS, _NOBODY, _SAID, 2)
def _header_swap(rng: random.Random, layout: Layout) -> Optional[Mutation]:
    one, other = (layout.only(word)[0] for word in rng.sample(list(WORDS), 2))
    first, second = layout.read((one, one + 4)), layout.read((other, other + 4))
    return Mutation(writes=((one, second), (other, first))) if first != second else None


@kind("header word in the other byte order", Expect.REFUSED)
def _header_word_order(rng: random.Random, layout: Layout) -> Optional[Mutation]:
    start, end = layout.only(rng.choice([word for word in WORDS if word != "features"]))
    data = layout.read((start, end))
    return write(start, data[::-1]) if data != data[::-1] else None


@kind("header in the other byte order", Expect.HARMLESS, "plain streams have no host's words", ("header.byte_order",))
def _header_order(_rng: random.Random, layout: Layout) -> Mutation:
    words = struct.unpack("<19I", layout.read((16, HEADER_SIZE)))
    return write(16, struct.pack(">19I", *words))


@kind("magic of a partial image", Expect.REFUSED)
def _partial(_rng: random.Random, _layout: Layout) -> Mutation:
    return write(0, b"LibvirtQemudPart")


@kind("the whole head lost", Expect.REFUSED)
def _no_head(rng: random.Random, layout: Layout) -> Mutation:
    return Mutation(holes=((0, rng.choice((512, 4096, layout.stream))),))


# --- domain XML and cookie --------------------------------------------------------------------------------------

#: What a restore takes from the stream, or does not need, whatever the XML says. Another voucher starts nothing.
_SHOWN = ("domain.memory", "domain.vcpus", "domain.machine", "domain.voucher", "domain.xml", "head.cookie")
#: The XML is another one, in an image that has no cookie any more.
_REPLACED = (*_SHOWN, "header.cookie_offset", "header.data_length")
_OTHER_XML = "a restore takes name, UUID and our record from the XML, and compares the first two with the QEMU's"

flips("xml", Expect.FITTING, _OTHER_XML, _SHOWN, weight=8)
flips("xml", Expect.FITTING, _OTHER_XML, _SHOWN, bits=8)
flips("xml_end", Expect.HARMLESS, "the zeros after it end the XML, too", _SHOWN)
flips("cookie", Expect.HARMLESS, "the cookie is libvirt's own", ("head.cookie",))
flips("cookie_end", Expect.HARMLESS, "the cookie is libvirt's own", ("head.cookie",))
flips("padding", Expect.HARMLESS, "no reader looks at the padding")


@kind("XML noise", Expect.FITTING, _OTHER_XML, _SHOWN, weight=3)
def _xml_noise(rng: random.Random, layout: Layout) -> Optional[Mutation]:
    return noise(rng, layout, rng.choice(("xml", "xml", "cookie")))


@kind("NUL in the XML", Expect.REFUSED)
def _xml_nul(rng: random.Random, layout: Layout) -> Mutation:
    return write(rng.randrange(*layout.only("xml")), b"\0")


@kind("no end of the XML", Expect.REFUSED)
def _xml_endless(rng: random.Random, layout: Layout) -> Mutation:
    start = layout.only("xml_end")[0]
    return write(start, rng.choice((b" ", b"x")) * (layout.stream - start))


@kind("XML that is not UTF-8", Expect.REFUSED)
def _xml_encoding(rng: random.Random, layout: Layout) -> Mutation:
    bad = rng.choice((b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xe2\x82", b"\x80", b"\xfe\xff"))
    start, end = layout.only("xml")
    return write(rng.randrange(start, end - len(bad)), bad)


def _replace_text(layout: Layout, text: bytes) -> Mutation:
    """Put another XML into the image, without a cookie; the stream moves where it does not fit before it."""
    moved = None
    stream = layout.stream
    if HEADER_SIZE + len(text) + 1 > stream:
        moved = stream = HEADER_SIZE + len(text) + 1
    writes = [(HEADER_SIZE, text.ljust(stream - HEADER_SIZE, b"\0"))]
    writes += [(WORDS["cookie_offset"], bytes(4)), (WORDS["data_len"], struct.pack("<I", stream - HEADER_SIZE))]
    return Mutation(move_stream=moved, writes=tuple(writes))


def _around(layout: Layout, inside: str, before: str = "") -> bytes:
    """The image's own XML with something more in it; where, the image's domain is as it was."""
    text = layout.text("xml")
    return (before + text.replace("</domain>", inside + "</domain>")).encode("utf-8", "surrogatepass")


def _in_record(layout: Layout, pattern: str, replacement: str) -> Optional[bytes]:
    """The image's own XML with something else in our record."""
    text = layout.text("xml")
    changed = re.sub(pattern, lambda _match: replacement, text, count=1)
    return changed.encode() if changed != text else None


_ENTITIES = "".join(
    f'<!ENTITY a{level} "{f"&a{level - 1};" * 10}">' if level else '<!ENTITY a0 "ha">' for level in range(12)
)
_QUADRATIC = f'<!ENTITY q "{"q" * 20000}">'


@kind("XML with a DOCTYPE: entity bombs, external entities", Expect.REFUSED, weight=3)
def _doctype(rng: random.Random, layout: Layout) -> Mutation:
    declarations, used = rng.choice(
        (
            (f"[{_ENTITIES}]", "&a11;"),
            (f"[{_QUADRATIC}]", "&q;" * 8000),
            ('[<!ENTITY x SYSTEM "file:///etc/passwd">]', "&x;"),
            ('[<!ENTITY x SYSTEM "http://127.0.0.1:9/x">]', "&x;"),
            ('[<!ENTITY % p SYSTEM "file:///etc/passwd"> %p;]', ""),
            ("[<!ENTITY % a \"<!ENTITY b 'x'>\"> %a; %a;]", "&b;"),
            ('SYSTEM "file:///dev/zero"', ""),
            ('PUBLIC "x" "file:///etc/passwd"', ""),
            ("", ""),
            ("[<!ATTLIST domain type CDATA 'qemu'>]", ""),
            (f"[{'<!-- x -->' * 5000}]", ""),
        )
    )
    opening = rng.choice(("", "\n", "<!-- x -->", "<?x y?>", "<?xml version='1.0'?>\n"))
    doctype = f"{opening}<!DOCTYPE domain {declarations}>"
    return _replace_text(layout, _around(layout, f"<description>{used}</description>", doctype))


def _bomb(rng: random.Random) -> str:
    """Much in little: what a parser may take long for, or much memory."""
    many = rng.choice((1000, 10000, 14000))
    uri = "u" * rng.choice((300, 30000))
    return rng.choice(
        (
            "<a>" * many + "</a>" * many,
            "<a>" * 150,
            "<a/>" * many,
            "<a " + " ".join(f"a{number}=''" for number in range(many // 2)) + "/>",
            f"<a b='{'x' * 60000}'/>",
            f"<a b='{'&#38;' * 12000}'/>",
            f"<a xmlns='{uri}'>" + "".join(f"<b{number}/>" for number in range(many // 2)) + "</a>",
            f"<a xmlns:p='{uri}' " + " ".join(f"p:a{number}=''" for number in range(many // 3)) + "/>",
            "<a " + " ".join(f"xmlns:p{number}='u'" for number in range(many // 4)) + "/>",
            "<a " + "xmlns" * many + "='u'/>",
            "<a " + ":" * 60000 + "='u'/>",
            "<!--" + "-" * 60000 + "-->",
            "<!-- " + "x" * 60000,
            "<![CDATA[" + "]" * 60000 + "]]>",
            "<?" + "x" * 60000 + "?>",
            "&#0;",
            "&#xd800;",
            "&#x110000;",
            "&amp" * 15000,
            "<a a='1' a='2'/>",
            "\x01",
            "\ud800",
            "</domain>",
            "<metadata>" * 50 + "</metadata>" * 50,
        )
    )


@kind("XML bombs", Expect.HARMLESS, "what no restore reads may be as long as it fits", _REPLACED, 6)
def _xml_bomb(rng: random.Random, layout: Layout) -> Mutation:
    return _replace_text(layout, _around(layout, _bomb(rng)))


@kind("XML that is another document", Expect.REFUSED)
def _other_document(rng: random.Random, layout: Layout) -> Mutation:
    text = rng.choice(
        (
            b"",
            b"x",
            b"<domain/>",
            b"<domain><name/></domain>",
            b"<network><name>n</name></network>",
            b"<d:domain xmlns:d='urn:x'><name>n</name></d:domain>",
            b"\xff\xfe<\0d\0/\0>\0",
            b"{}",
            b"<domain><name>n</name></domain><domain/>",
            b"<?xml version='1.0' encoding='UTF-16'?><domain>",
            b"<domain>" * 12000,
            b"<" * 60000,
            b"<!DOCTYPE" * 6000,
            layout.read(layout.only("xml"))[:-9],
        )
    )
    return _replace_text(layout, text)


@kind("XML beyond 4 MiB", Expect.REFUSED, weight=2)
def _xml_too_long(rng: random.Random, layout: Layout) -> Optional[Mutation]:
    if layout.sparse:
        return None
    filler = rng.choice((" ", "x", "<a/>", "]]", "<!---->", "\u00e9"))
    room = XML_LIMIT + rng.choice((1, 2, 100, MIB)) - len(layout.text("xml"))
    return _replace_text(layout, _around(layout, f"<x>{filler * (room // len(filler.encode()) + 1)}"))


def _wide(rng: random.Random) -> str:
    """Nearly 4 MiB of XML."""
    count = 3_900_000
    return rng.choice(
        (
            f"<x>{'y' * count}</x>",
            f"<x y='{'z' * count}'/>",
            "<a/>" * 90_000,
            "<a b='c'/>" * 90_000,
            "<a/>" * (count // 4),
            "<a " + " ".join(f"a{number}=''" for number in range(count // 12)) + "/>",
            f"<a xmlns='{'u' * 2_000_000}'>" + "".join(f"<b{number}/>" for number in range(90_000)) + "</a>",
            f"<a xmlns:p='{'u' * 1_000_000}' " + " ".join(f"p:a{number}=''" for number in range(200_000)) + "/>",
            f"<a {'xmlns' * (count // 5)}='u'/>",
            f"<a xmlns:{'p' * 1_000_000}='u'/>",
            f"<!--{'- ' * (count // 2)}-->",
            f"<v:save-image xmlns:v='{NAMESPACE}'><v:argument>{'A' * count}</v:argument></v:save-image>",
            f"<sysinfo><entry name='opt/x'>{'=' * count}</entry></sysinfo>",
            f"<sysinfo><entry>{'io.systemd.credential:' * (count // 22)}</entry></sysinfo>",
            f"<graphics {' ' * count} passwd='x'/>",
            "<graphics passwd='x'/>" * 90_000,
        )
    )


@kind("XML of nearly 4 MiB", Expect.HARMLESS, "what no restore reads may be as long as it fits", _REPLACED, 3)
def _xml_long(rng: random.Random, layout: Layout) -> Optional[Mutation]:
    if layout.sparse:
        return None
    text = _around(layout, _wide(rng))
    return _replace_text(layout, text) if len(text) <= XML_LIMIT else None


@kind("XML with impossible values", Expect.FITTING, "a restore takes memory and CPUs from the stream", _REPLACED, 3)
def _xml_value(rng: random.Random, layout: Layout) -> Optional[Mutation]:
    number = rng.choice(("", "-1", "0x10", "1e9", "9" * 20, "9" * 21, "9" * 60000, "٣", "1 2", "nan", "1.5", " 1 "))
    unit = rng.choice(("", " unit='bytes'", " unit='EiB'", " unit='sack'", f" unit='{'k' * 60000}'", " unit=''"))
    element, tail = rng.choice((("memory", unit), ("vcpu", ""), ("uuid", ""), ("name", "")))
    text = re.sub(
        rf"<{element}\b.*?</{element}>", f"<{element}{tail}>{number}</{element}>", layout.text("xml"), count=1
    )
    if element in ("uuid", "name") and not number.strip():
        return None
    return _replace_text(layout, text.encode())


@kind("XML with two of a kind", Expect.FITTING, "the first one counts", _REPLACED)
def _xml_twice(rng: random.Random, layout: Layout) -> Mutation:
    more = rng.choice(
        ("<name>other</name>", "<uuid>x</uuid>", "<memory>1</memory>", "<os/>", "<metadata/>", "<vcpu>7</vcpu>")
    )
    return _replace_text(layout, _around(layout, more))


def _element_of_record(name: str, value: bytes) -> str:
    return f'<vmops:{name} encoding="base64">{base64.b64encode(value).decode()}</vmops:{name}>'


@kind("our record with impossible values", Expect.REFUSED, weight=4)
def _record_value(rng: random.Random, layout: Layout) -> Optional[Mutation]:
    name = rng.choice(("uid", "gid"))
    identity = f"<vmops:{name}>{{}}</vmops:{name}>"
    pattern, replacement = rng.choice(
        (
            (rf"<vmops:{name}>.*?</vmops:{name}>", identity.format(rng.choice((-1, (1 << 32) - 1, 1 << 32, 1 << 64)))),
            (rf"<vmops:{name}>.*?</vmops:{name}>", identity.format(rng.choice(("", "root", "1e3", "0x0", "9" * 5000)))),
            (rf"<vmops:{name}>.*?</vmops:{name}>", ""),
            (r"<vmops:cwd>.*?</vmops:cwd>", _element_of_record("cwd", b"/\0/")),
            (r"<vmops:executable>.*?</vmops:executable>", _element_of_record("executable", b"\0")),
            (r"<vmops:argument>.*?</vmops:argument>", _element_of_record("argument", b"q\0")),
            (r"<vmops:argument>.*?</vmops:argument>", '<vmops:argument encoding="base64">!</vmops:argument>'),
            (r"<vmops:argument>.*?</vmops:argument>", '<vmops:argument encoding="base64">QQ</vmops:argument>'),
            (r"<vmops:argument>.*?</vmops:argument>", '<vmops:argument encoding="base64">é</vmops:argument>'),
            (r"<vmops:saved-at>.*?</vmops:saved-at>", ""),
            (r"<vmops:parallel-channels>.*?<", "<vmops:parallel-channels>many<"),
        )
    )
    text = _in_record(layout, pattern, replacement)
    return _replace_text(layout, text) if text else None


@kind("our record with another command line", Expect.REFUSED, weight=4)
def _record_argument(rng: random.Random, layout: Layout) -> Optional[Mutation]:
    """As damage would, not as an attacker, who would make the record's checksum anew."""
    text = layout.read(layout.only("xml"))
    arguments = list(re.finditer(rb"<vmops:argument>(?!-)([^<]+)</vmops:argument>", text))
    if not arguments:
        return None
    match = rng.choice(arguments)
    place = rng.randrange(match.start(1), match.end(1))
    letter = rng.choice([value for value in b"abcdefgh0123456789/.-" if value != text[place]])
    return write(HEADER_SIZE + place, bytes([letter]))


@kind("our record with other disks", Expect.REFUSED, weight=4)
def _record_disks(rng: random.Random, layout: Layout) -> Optional[Mutation]:
    """As damage would, too: a number, a letter or a bracket of what is said of a disk."""
    text = layout.read(layout.only("xml"))
    match = re.search(rb"<vmops:surroundings>([^<]+)</vmops:surroundings>", text)
    if match is None:
        return None
    place = rng.randrange(match.start(1), match.end(1))
    letter = rng.choice([value for value in b"abcdefgh0123456789/.-{}[]," if value != text[place]])
    return write(HEADER_SIZE + place, bytes([letter]))


@kind(
    "our record in another place",
    Expect.HARMLESS,
    "a record that is not in its place is not looked at",
    ("domain.launch", "domain.save_facts", *_REPLACED),
)
def _record_moved(rng: random.Random, layout: Layout) -> Optional[Mutation]:
    pattern, replacement = rng.choice(
        (
            ("<metadata>", "<metadata/><metadata>"),
            (NAMESPACE, f"{NAMESPACE}0"),
            ("<vmops:save-image", "<x/><vmops:save-image"),
        )
    )
    text = _in_record(layout, re.escape(pattern), replacement) if NAMESPACE in layout.text("xml") else None
    return _replace_text(layout, text) if text else None


# --- the stream's start and the RAM blocks' rows ----------------------------------------------------------------

_COMPARED = "a restore compares machine type and RAM blocks with the QEMU's"
_LOADED = "QEMU refuses what it does not know when it loads the stream"

flips("stream_magic", Expect.REFUSED)
flips("machine_mark", Expect.REFUSED)
flips("machine_length", Expect.REFUSED)
flips("machine", Expect.FITTING, _COMPARED)
flips("capabilities", Expect.REFUSED, weight=2)
flips("ram_section", Expect.REFUSED, weight=2)
flips("ram_total", Expect.REFUSED, weight=2)
flips("block_rows", Expect.FITTING, _COMPARED, weight=6)
flips("ram_marks", Expect.SILENT, weight=2)


@kind("stream's start, noise", Expect.FITTING, f"{_COMPARED}; {_LOADED}", weight=3)
def _start_noise(rng: random.Random, layout: Layout) -> Optional[Mutation]:
    if layout.compressed:
        return None
    return noise(rng, layout, rng.choice(("stream_magic", "machine_length", "machine", "capabilities", "block_rows")))


@kind("stream's start, an extreme", Expect.REFUSED, weight=3)
def _start_extreme(rng: random.Random, layout: Layout) -> Optional[Mutation]:
    region = rng.choice(("machine_length", "capability_count", "ram_total"))
    if region not in layout.regions:
        return None
    start, end = layout.only(region)
    data = extreme(rng, end - start, (layout.size, sum(block.length for block in layout.blocks)))
    if region == "ram_total":
        data = data[:-2] + bytes([data[-2] & 0xFC, 4])  # the flags are another matter
    return write(start, data) if data != layout.read((start, end)) else None


def _of_block(rng: random.Random, layout: Layout, number: str) -> Optional[tuple[Block, Range]]:
    blocks = [block for block in layout.blocks if number in block.numbers]
    if not blocks:
        return None
    block = rng.choice(blocks)
    return block, block.numbers[number]


def _extreme_in_row(number: str) -> None:
    @kind(f"RAM block's {number}, an extreme", Expect.REFUSED, weight=2)
    def _make(rng: random.Random, layout: Layout) -> Optional[Mutation]:
        found = _of_block(rng, layout, number)
        if found is None:
            return None
        start, end = found[1]
        edges = {edge for block in layout.blocks for where in (block.row, block.bitmap, block.pages) for edge in where}
        data = extreme(rng, end - start, (layout.size, *sorted(edges)))
        return write(start, data) if data != layout.read((start, end)) else None


for _number in ("name_length", "length", "mapped_version", "page_size", "bitmap_offset", "pages_offset"):
    _extreme_in_row(_number)


@kind("RAM blocks that overlap", Expect.REFUSED, weight=3)
def _overlap(rng: random.Random, layout: Layout) -> Optional[Mutation]:
    if not layout.sparse:
        return None
    one, other = rng.sample(layout.blocks, 2)
    what = rng.choice(("bitmap", "pages", "both", "bitmap in pages", "pages in bitmap"))
    sources = {"bitmap": (other.bitmap, None), "pages": (None, other.pages), "both": (other.bitmap, other.pages)}
    bitmap, pages = sources.get(what, (other.pages, None) if what == "bitmap in pages" else (None, other.bitmap))
    writes = []
    for place, number in ((bitmap, "bitmap_offset"), (pages, "pages_offset")):
        if place:
            writes.append((one.numbers[number][0], struct.pack(">Q", place[0])))
    return Mutation(writes=tuple(writes))


@kind("bitmap or pages a little beside their place", Expect.REFUSED, weight=3)
def _beside(rng: random.Random, layout: Layout) -> Optional[Mutation]:
    found = _of_block(rng, layout, rng.choice(("bitmap_offset", "pages_offset")))
    if found is None:
        return None
    start, end = found[1]
    old = int.from_bytes(layout.read((start, end)), "big")
    new = old + rng.choice((-1, 1)) * rng.choice((1, 8, 64, 512, PAGE, 2 * PAGE, MIB, 16 * MIB))
    return write(start, struct.pack(">Q", new)) if new >= 0 else None


@kind("bitmap or pages outside the file", Expect.REFUSED, weight=2)
def _outside(rng: random.Random, layout: Layout) -> Optional[Mutation]:
    found = _of_block(rng, layout, rng.choice(("bitmap_offset", "pages_offset")))
    if found is None:
        return None
    beyond = layout.size + rng.choice((0, 1, MIB, 1 << 40, (1 << 62) - layout.size, (1 << 63) - layout.size))
    return write(found[1][0], struct.pack(">Q", beyond // MIB * MIB + MIB))


@kind("wrong page size", Expect.REFUSED, weight=3)
def _page_size(rng: random.Random, layout: Layout) -> Optional[Mutation]:
    if not layout.sparse:
        return None
    size = rng.choice((0, 1, 512, 1024, 2048, 3000, 4095, 4097, 8192, 16384, 65536, 131072, 1 << 21, 1 << 63))
    chosen = layout.blocks if rng.random() < 0.5 else [rng.choice(layout.blocks)]
    return Mutation(writes=tuple((block.numbers["page_size"][0], struct.pack(">Q", size)) for block in chosen))


@kind("two RAM blocks' names exchanged", Expect.FITTING, _COMPARED)
def _names(rng: random.Random, layout: Layout) -> Optional[Mutation]:
    pairs = [
        (one, other)
        for one in layout.blocks
        for other in layout.blocks
        if one is not other and one.length != other.length and len(one.name) == len(other.name)
    ]
    if not pairs:
        return None
    one, other = rng.choice(pairs)
    writes = tuple((block.row[0] + 1, name.encode()) for block, name in ((one, other.name), (other, one.name)))
    return Mutation(writes=writes)


@kind("a RAM block that is there twice", Expect.REFUSED)
def _block_twice(rng: random.Random, layout: Layout) -> Optional[Mutation]:
    pairs = [
        (one, other)
        for one in layout.blocks
        for other in layout.blocks
        if one is not other and len(one.name) == len(other.name)
    ]
    if not pairs:
        return None
    one, other = rng.choice(pairs)
    return write(one.row[0] + 1, other.name.encode())


# --- bitmaps and pages ------------------------------------------------------------------------------------------

flips("bitmaps", Expect.SILENT, weight=4)
flips("pages", Expect.SILENT, weight=6)
flips("page_words", Expect.SILENT, weight=3)
flips("gaps", Expect.HARMLESS, "nothing is read between a bitmap and the pages")


def _set_bits(block: Block, bits: int) -> Mutation:
    length = block.bitmap[1] - block.bitmap[0]
    return write(block.bitmap[0], (bits & (1 << length * 8) - 1).to_bytes(length, "little"))


@kind("bitmap bits beyond the last page", Expect.REFUSED, weight=2)
def _beyond(rng: random.Random, layout: Layout) -> Optional[Mutation]:
    blocks = [block for block in layout.blocks if layout.sparse and block.page_count % 64]
    if not blocks:
        return None
    block = rng.choice(blocks)
    bits = int.from_bytes(layout.read(block.bitmap), "little")
    return _set_bits(block, bits | 1 << rng.randrange(block.page_count, -(-block.page_count // 64) * 64))


@kind("pages promised in holes", Expect.REFUSED, weight=3)
def _promised(rng: random.Random, layout: Layout) -> Optional[Mutation]:
    if not layout.sparse:
        return None
    block = rng.choice(layout.blocks)
    absent = sorted(set(range(block.page_count)) - set(layout.present(block)))
    if not absent:
        return None
    bits = int.from_bytes(layout.read(block.bitmap), "little")
    for page in rng.sample(absent, min(len(absent), rng.choice((1, 1, 2, 100)))):
        bits |= 1 << page
    return _set_bits(block, bits)


@kind("pages lost into holes", Expect.REFUSED, weight=3)
def _lost(rng: random.Random, layout: Layout) -> Optional[Mutation]:
    if not layout.sparse:
        return None
    place = rng.choice(layout.regions["pages"])
    return Mutation(holes=(place,))


@kind("bitmap, all ones", Expect.REFUSED)
def _ones(rng: random.Random, layout: Layout) -> Optional[Mutation]:
    blocks = [block for block in layout.blocks if layout.sparse and len(layout.present(block)) < block.page_count]
    return _set_bits(rng.choice(blocks), -1) if blocks else None


@kind("bitmap, all zeros", Expect.SILENT)
def _zeros(rng: random.Random, layout: Layout) -> Optional[Mutation]:
    blocks = [block for block in layout.blocks if layout.sparse and layout.present(block)]
    return _set_bits(rng.choice(blocks), 0) if blocks else None


@kind("bitmap noise", Expect.SILENT, weight=2)
def _bitmap_noise(rng: random.Random, layout: Layout) -> Optional[Mutation]:
    return noise(rng, layout, "bitmaps")


@kind("two pages exchanged", Expect.SILENT, weight=2)
def _pages_exchanged(rng: random.Random, layout: Layout) -> Optional[Mutation]:
    if layout.compressed:
        return None
    one, other = rng.sample(layout.regions["pages"], 2)
    first, second = layout.read(one), layout.read(other)
    return Mutation(writes=((one[0], second), (other[0], first))) if first != second else None


@kind("page of zeros", Expect.SILENT)
def _page_zeros(rng: random.Random, layout: Layout) -> Optional[Mutation]:
    if layout.compressed:
        return None
    place = rng.choice(layout.regions["pages"])
    return write(place[0], bytes(PAGE))


@kind("page noise", Expect.SILENT)
def _page_noise(rng: random.Random, layout: Layout) -> Optional[Mutation]:
    return noise(rng, layout, "pages") if not layout.compressed else None


@kind("data in an absent page", Expect.HARMLESS, "a page that the bitmap leaves out is zeros, whatever is there")
def _absent(rng: random.Random, layout: Layout) -> Optional[Mutation]:
    if not layout.sparse:
        return None
    block = rng.choice(layout.blocks)
    absent = sorted(set(range(block.page_count)) - set(layout.present(block)))
    return write(block.pages[0] + rng.choice(absent) * PAGE, rng.randbytes(PAGE)) if absent else None


# --- devices and the stream's end -------------------------------------------------------------------------------

_DESCRIPTION = "QEMU reads past the description; a restore counts its CPUs alone"

flips("devices", Expect.SILENT, weight=6)
flips("end", Expect.REFUSED)
flips("description_mark", Expect.REFUSED)
flips("description_length", Expect.REFUSED)
flips("description", Expect.HARMLESS, _DESCRIPTION, ("stream.sections",), weight=3)


@kind("device noise", Expect.SILENT, weight=2)
def _device_noise(rng: random.Random, layout: Layout) -> Optional[Mutation]:
    return noise(rng, layout, "devices") if not layout.compressed else None


@kind("devices, zeros", Expect.SILENT)
def _device_zeros(rng: random.Random, layout: Layout) -> Optional[Mutation]:
    if layout.compressed:
        return None
    start, end = layout.only("devices")
    offset = rng.randrange(start, end)
    data = bytes(min(end - offset, rng.choice((8, 64, 512, 4096))))
    return write(offset, data) if data != layout.read((offset, offset + len(data))) else None


def _description(layout: Layout, text: bytes) -> Mutation:
    """Another description, and nothing after it."""
    start = layout.only("end")[0]
    data = b"\0\6" + struct.pack(">I", len(text)) + text
    return Mutation(size=start + len(data), writes=((start, data),))


def _devices(instance: str, name: str = '"x"', more: str = "") -> bytes:
    return f'{{"devices":[{{"name":{name},"instance_id":{instance}{more}}}]}}'.encode()


@kind("hostile description", Expect.HARMLESS, _DESCRIPTION, ("stream.sections",), 4)
def _hostile_description(rng: random.Random, layout: Layout) -> Optional[Mutation]:
    if layout.compressed:
        return None
    many = rng.choice((1000, 100_000))
    text = rng.choice(
        (
            b"",
            b"{",
            b"null",
            b"[" * many,
            b'{"devices":' * many,
            b'{"devices":[' + b"[]," * many + b"[]]}",
            b'{"devices":[],"devices":[{}]}',
            b'{"devices":[' + b'{"name":"a","instance_id":1},' * (many // 10) + b'{"name":"a","instance_id":1}]}',
            _devices("1" * many),
            _devices("-" + "1" * 4000),
            _devices("1e308"),
            _devices("1e999"),
            _devices("NaN"),
            _devices("Infinity"),
            _devices("null"),
            _devices('"7"'),
            _devices("true"),
            _devices("1", name="null"),
            _devices("1", name=json.dumps("\ud800")),
            _devices("1", name=json.dumps("\x1b[2J\n")),
            _devices("1", name="[" * 500 + "]" * 500),
            _devices("1", name='"' + "n" * many + '"'),
            _devices("1", more=',"version":"x"'),
            _devices("1", more=',"version":-1'),
            b"\xff\xfe" + '{"devices":[]}'.encode("utf-16-le"),
            b"\xef\xbb\xbf" + _devices("1"),
            rng.randbytes(5000).replace(b"\0", b"x").replace(b"\6", b"x"),
        )
    )
    return _description(layout, text)


@kind("description of nearly 16 MiB", Expect.HARMLESS, _DESCRIPTION, ("stream.sections",))
def _long_description(rng: random.Random, layout: Layout) -> Optional[Mutation]:
    if layout.compressed:
        return None
    size = rng.choice((16 * MIB - 100, 16 * MIB + 100))
    piece, around = rng.choice(
        (
            (b"[],", b'{"devices":[],"x":[%b0]}'),
            (b'"":{},', b'{"devices":[],"x":{%b"a":0}}'),
            (b"{},", b'{"devices":[%b{}]}'),
            (b"1.5,", b'{"devices":[],"x":[%b0]}'),
            (b'"ab",', b'{"devices":[],"x":[%b0]}'),
            (b"1", b'{"devices":[],"x":%b}'),
            (b" ", b'{"devices":[]%b}'),
            (b'{"name":"a","instance_id":1},', b'{"devices":[%b{"name":"a","instance_id":1}]}'),
            (b"\xf0\x9f\x98\x80", b'{"devices":[],"x":"%b"}'),
            (b"\\", b'{"devices":[],"x":"%b"}'),
        )
    )
    return _description(layout, around.replace(b"%b", piece * (size // len(piece))))


# --- compressed streams -----------------------------------------------------------------------------------------


@kind("flip compressed_stream", Expect.EXPANDED, "the tools do not look at each bit of their own headers", weight=6)
def _flip_compressed(rng: random.Random, layout: Layout) -> Optional[Mutation]:
    return flip(rng, layout, "compressed_stream")


@kind(
    "compressed stream's first bytes",
    Expect.EXPANDED,
    "the tools do not look at each bit of their own headers",
    weight=3,
)
def _compressed_start(rng: random.Random, layout: Layout) -> Optional[Mutation]:
    if not layout.compressed:
        return None
    offset = layout.stream + rng.randrange(40)
    return write(offset, bytes([rng.randrange(256)]))


@kind("compressed stream, noise", Expect.EXPANDED, weight=2)
def _compressed_noise(rng: random.Random, layout: Layout) -> Optional[Mutation]:
    return noise(rng, layout, "compressed_stream")


# --- the whole --------------------------------------------------------------------------------------------------


@kind("zeros over 4 KiB anywhere", Expect.SILENT, weight=3)
def _zero_block(rng: random.Random, layout: Layout) -> Optional[Mutation]:
    if layout.compressed:
        return None
    ranges = [where for ranges in layout.regions.values() for where in ranges]
    offset = rng.choice(ranges)[0] // PAGE * PAGE
    length = min(PAGE, layout.size - offset)
    return write(offset, bytes(length)) if any(layout.read((offset, offset + length))) else None


@kind("noise all over", Expect.REFUSED)
def _noise_all_over(rng: random.Random, layout: Layout) -> Mutation:
    regions = [name for name, ranges in layout.regions.items() if any(end > start for start, end in ranges)]
    writes: list[tuple[int, bytes]] = []
    for region in ("magic", *regions):
        mutation = noise(rng, layout, region)
        writes += mutation.writes if mutation else ()
    return Mutation(writes=tuple(writes))
