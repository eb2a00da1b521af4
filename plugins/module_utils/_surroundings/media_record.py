# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Media as an image records them: values for JSON, and back with a strict look at each, as images come from others."""

from __future__ import annotations

import os
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.media import Medium, MediumFile

#: More than any VM has; what is beyond is not recorded, and then is one too many at the restore.
_MAX_MEDIA = 1024
_MAX_FILES = 256

#: Characters of a path (PATH_MAX bytes), a name, or a reason.
_MAX_TEXT = 4096

_INTEGERS = {
    "size": (0, 2**63 - 1),
    "mtime_ns": (-(2**63), 2**63 - 1),
    "inode": (0, 2**64 - 1),
    "device_number": (0, 2**64 - 1),
}


def record_media(media: t.Iterable[Medium]) -> list[dict[str, t.Any]]:
    """The record of media, as values for JSON that :func:`parse_media` takes.

    Names are cut where they are too long to be real, and so is a chain of too many files: the rest is uncheckable.
    """
    found = []
    for medium in list(media)[:_MAX_MEDIA]:
        files = [dict(vars(file)) for file in medium.files[:_MAX_FILES]]
        if len(medium.files) > _MAX_FILES:
            files[-1]["uncheckable"] = f"it is the first of {len(medium.files) - _MAX_FILES + 1} that are not recorded"
        record: dict[str, t.Any] = {**vars(medium), "files": files}
        del record["is_rewritten"]
        for part in (record, *files):
            part.update({key: value[:_MAX_TEXT] for key, value in part.items() if isinstance(value, str)})
        found.append(record)
    return found


def parse_media(value: object) -> list[Medium]:
    """The media of a record.

    :raises ValueError: it is none; the message says where, in a clause without any of its texts.
    """
    return [_parse_medium(item, f"disk {number}") for number, item in enumerate(_a_list(value, "it", _MAX_MEDIA), 1)]


def _parse_medium(value: object, place: str) -> Medium:
    fields = _a_dict(value, place)
    files = _a_list(fields.get("files"), f"files of {place}", _MAX_FILES)
    read_only = fields.get("read_only")
    if not isinstance(read_only, bool):
        raise ValueError(f"read_only of {place} is neither true nor false")
    backend, qdev, node = (_a_text(fields, key, place) for key in ("backend", "qdev", "node"))
    return Medium(
        backend,
        qdev,
        node,
        read_only=read_only,
        files=tuple(_parse_file(item, f"file {number} of {place}") for number, item in enumerate(files, 1)),
        place=_a_text({"place": "", **fields}, "place", place),  # not in images of earlier versions
    )


def _parse_file(value: object, place: str) -> MediumFile:
    fields = _a_dict(value, place)
    texts = {key: _a_text(fields, key, place) for key in ("path", "format", "uncheckable")}
    if not texts["uncheckable"] and not os.path.isabs(texts["path"]):
        raise ValueError(f"path of {place} is not absolute")
    integers = {key: _an_integer(fields, key, place) for key in _INTEGERS}
    texts["identity"] = _a_text({"identity": "", **fields}, "identity", place)  # not in images of earlier versions
    return MediumFile(**t.cast(t.Dict[str, t.Any], {**texts, **integers}))


def _a_list(value: object, place: str, most: int) -> list[t.Any]:
    if not isinstance(value, list):
        raise ValueError(f"{place} is not a list")
    if len(value) > most:
        raise ValueError(f"{place} has more than {most} parts")
    return value


def _a_dict(value: object, place: str) -> dict[str, t.Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{place} is not an object")
    return value


def _a_text(fields: dict[str, t.Any], key: str, place: str) -> str:
    value = fields.get(key)
    if not isinstance(value, str) or len(value) > _MAX_TEXT or "\0" in value:
        raise ValueError(f"{key} of {place} is not a text of {_MAX_TEXT} characters at most, without a NUL")
    return value


def _an_integer(fields: dict[str, t.Any], key: str, place: str) -> int:
    value = fields.get(key)
    least, most = _INTEGERS[key]
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{key} of {place} is not an integer from {least} to {most}")
    return value
