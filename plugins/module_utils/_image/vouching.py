# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who vouches for what an image records: its QEMU was handed a descriptor, and can write whatever it likes into it.

The voucher is an HMAC-SHA256 (RFC 2104) with the key of the user who saved (``_vouching_key``), in the attribute
``voucher`` of our record. It is over the values that are believed, the VM's name and UUID and all of the record, and
not over bytes, as libvirt may lay out XML anew. A field with its default value is left out, so that an image stays
vouched for when a later version of this collection records more.

It says that this user's run recorded these words of this VM, not when: words of an earlier save of the same VM are
vouched for, too.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._errors import ImageFormatError, VouchingKeyError
from ansible_collections.vmops.qemu.plugins.module_utils._image import domain_xml
from ansible_collections.vmops.qemu.plugins.module_utils._image.record import LaunchRecord, SaveFacts
from ansible_collections.vmops.qemu.plugins.module_utils._vouching_key import read_key

_ALGORITHM = "hmac-sha256"


def vouch(xml: str, key: bytes, path: str = "the domain XML") -> str:
    """The domain XML with a voucher for our record, as it is in this text.

    :param path: the image's path, for errors.
    :raises ImageFormatError: the XML makes no sense, or has no record of ours.
    """
    domain = domain_xml.parse(xml, path)
    if domain.save_facts is None:
        raise ImageFormatError(path, "the domain XML has no record of this collection")
    return domain_xml.with_voucher(xml, _voucher(domain, key), path)


def is_vouched(domain: domain_xml.ParsedDomain) -> bool:
    """Whether this user, on this host or one with the same key, vouches for what is in ``domain``."""
    return not why_not_vouched(domain)


def why_not_vouched(domain: domain_xml.ParsedDomain) -> str:
    """Why this user does not vouch for what is in ``domain``, as a clause; the empty string where he does."""
    if domain.save_facts is None:
        return "it has no record of this collection"
    if not domain.voucher:
        return "it was saved by an older version of this collection, or without a key"
    try:
        key = read_key()
    except VouchingKeyError as error:
        return error.what[:1].lower() + error.what[1:]
    if key is None:
        return "this user has no key on this host yet"
    if not hmac.compare_digest(domain.voucher.encode("utf-8", "surrogateescape"), _voucher(domain, key).encode()):
        return "it was saved by another user or on another host, or its record was rewritten since"
    return ""


def _voucher(domain: domain_xml.ParsedDomain, key: bytes) -> str:
    text = json.dumps(
        ["vmops.qemu record 1", domain.name, domain.uuid, _values(domain.save_facts), _values(domain.launch)],
        separators=(",", ":"),
    )
    return f"{_ALGORITHM}:{hmac.new(key, text.encode('ascii'), hashlib.sha256).hexdigest()}"


def _values(record: LaunchRecord | SaveFacts | None) -> list[tuple[str, t.Any]] | None:
    """The fields that are not as they are by default, by name; None where there is no record."""
    if record is None:
        return None
    found = []
    for field in dataclasses.fields(record):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if getattr(record, field.name) != default:
            found.append((field.name, getattr(record, field.name)))
    return sorted(found)
