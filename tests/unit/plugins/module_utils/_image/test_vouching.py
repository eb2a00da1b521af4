# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import dataclasses
import re

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._errors import ImageFormatError
from ansible_collections.vmops.qemu.plugins.module_utils._image.domain_xml import embed, parse, redact, with_voucher
from ansible_collections.vmops.qemu.plugins.module_utils._image.record import LaunchRecord, SaveFacts
from ansible_collections.vmops.qemu.plugins.module_utils._image.vouching import is_vouched, vouch, why_not_vouched
from ansible_collections.vmops.qemu.plugins.module_utils._vouching_key import make_key

XML = "<domain type='kvm'><name>web1</name><uuid>11111111-2222-3333-4444-555555555555</uuid></domain>"
FACTS = SaveFacts("0.1.0", "10.0.2", "2026-03-01T09:30:00Z", "sha256:0", 2, "1:2", '{"version":1}')
LAUNCH = LaunchRecord(["qemu", "-name", "web1", "\udcff"], "/srv", "/usr/bin/qemu", 7, 8, "0027", "web1.service")


def vouched(facts=FACTS, launch=LAUNCH, xml=XML):
    return vouch(embed(xml, facts, launch), make_key())


def swap(value):
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    return [*value, "-S"] if isinstance(value, list) else value + "x"


@pytest.mark.parametrize(
    ("record", "field"),
    [(record, field.name) for record in (FACTS, LAUNCH) for field in dataclasses.fields(record)],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_value_is_vouched_for(record, field):
    voucher = parse(vouched()).voucher
    changed = dataclasses.replace(record, **{field: swap(getattr(record, field))})
    facts, launch = (changed, LAUNCH) if record is FACTS else (FACTS, changed)
    domain = parse(with_voucher(embed(XML, facts, launch), voucher))
    assert "rewritten" in why_not_vouched(domain)
    assert is_vouched(parse(vouched(facts, launch)))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("<name>web1<", "<name>web2<"),
        ("<uuid>1111", "<uuid>2111"),
        ("<vmops:argument>web1</vmops:argument>", ""),
        ("<vmops:argument>-name</vmops:argument>", "<vmops:argument>-name</vmops:argument><vmops:argument/>"),
        ("-name</vmops:argument>", "-name</vmops:argument><vmops:argument>-S</vmops:argument>"),
        ("<vmops:uid>7</vmops:uid>", "<vmops:uid>0</vmops:uid>"),
    ],
)
def test_rewritten_as_text(old, new):
    xml = re.sub(' checksum="[^"]*"', "", vouched())
    assert is_vouched(parse(xml))
    assert old in xml
    assert not is_vouched(parse(xml.replace(old, new)))


def test_neighbours_are_not_run_together():
    """Words that would be the same where they are put one after the other."""
    voucher = parse(vouched(launch=dataclasses.replace(LAUNCH, argv=["a", "bc"]))).voucher
    for argv in (["ab", "c"], ["abc"], ["a", "bc", ""], ['a","bc']):
        xml = embed(XML, FACTS, dataclasses.replace(LAUNCH, argv=argv))
        assert not is_vouched(parse(with_voucher(xml, voucher)))


def test_without_how_it_was_started():
    assert is_vouched(parse(vouched(launch=None)))
    voucher = parse(vouched(launch=None)).voucher
    assert not is_vouched(parse(with_voucher(embed(XML, FACTS, LAUNCH), voucher)))


def test_laid_out_anew():
    """As libvirt does it, which keeps attributes and values."""
    xml = (
        vouched()
        .replace("\n", "")
        .replace("<vmops:", "<v:")
        .replace("</vmops:", "</v:")
        .replace("xmlns:vmops", "xmlns:v")
    )
    xml = xml.replace("<domain type='kvm'><name>web1</name>", "<domain type='kvm' id='3'>\n\n  <name>web1</name>")
    assert is_vouched(parse(xml))


def test_more_fields_in_a_later_version():
    """A field that is as it is by default changes nothing, so that none of an older version's images is lost."""

    @dataclasses.dataclass(frozen=True)
    class Later(LaunchRecord):
        slice: str = ""

    domain = parse(vouched())
    later = Later(**dataclasses.asdict(LAUNCH))
    assert is_vouched(dataclasses.replace(domain, launch=later))
    assert not is_vouched(dataclasses.replace(domain, launch=dataclasses.replace(later, slice="x")))


def test_order_of_the_kinds_of_errors(own_key):
    xml = vouched()
    assert why_not_vouched(parse(XML)) == "it has no record of this collection"
    assert "older version" in why_not_vouched(parse(embed(XML, FACTS, LAUNCH)))
    own_key.chmod(0o644)
    assert "mode 0o644" in why_not_vouched(parse(xml))
    own_key.unlink()
    assert "no key" in why_not_vouched(parse(xml))
    own_key.write_text("0" * 64 + "\n")
    own_key.chmod(0o600)
    assert "on another host" in why_not_vouched(parse(xml))
    assert is_vouched(parse(vouched()))


@pytest.mark.parametrize("voucher", ["hmac-sha256:", "ä", "hmac-sha256:" + "0" * 64, "md5:0"])
def test_what_is_no_voucher(voucher):
    vouched()
    assert not is_vouched(parse(with_voucher(embed(XML, FACTS, LAUNCH), voucher)))


def test_again_is_the_same():
    assert vouch(vouched(), make_key()) == vouched()
    assert with_voucher(vouched(), "") == vouched()


def test_without_a_record():
    with pytest.raises(ImageFormatError, match="no record"):
        vouch(XML, make_key())
    with pytest.raises(ImageFormatError, match="no record"):
        with_voucher(XML, "x")


def test_record_without_anything_in_it():
    xml = "<domain><name>n</name><metadata><v:save-image xmlns:v='urn:vmops:qemu:save-image:1'/></metadata></domain>"
    assert 'voucher="x"/>' in with_voucher(xml, "x")


def test_is_shown_to_nobody():
    assert parse(vouched()).voucher not in redact(vouched())
    assert 'voucher=""' in redact(vouched())
    assert 'checksum=""' not in redact(vouched())
