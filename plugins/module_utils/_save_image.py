# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Managing the file of a save image, read from top to bottom: what is there, what is asked for, the steps between.

Nothing in here knows of a running QEMU. The steps are those of ``_image/edit``, ``_image/archive`` and
``_image/expand``, which an interruption leaves so that the next run finds its way; each run first finishes, or undoes,
what an earlier one left.
"""

from __future__ import annotations

import dataclasses
import os
import secrets
import shlex
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    ConflictError,
    ImageError,
    ImageNotFoundError,
    ImagePartialError,
    RequestError,
    one_line,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image import domain_xml, edit
from ansible_collections.vmops.qemu.plugins.module_utils._image.archive import continue_archive, create_archive
from ansible_collections.vmops.qemu.plugins.module_utils._image.archive_files import remove_archive_leftovers
from ansible_collections.vmops.qemu.plugins.module_utils._image.archive_reader import is_same_image, read_archive_head
from ansible_collections.vmops.qemu.plugins.module_utils._image.archive_record import unfinished_archive
from ansible_collections.vmops.qemu.plugins.module_utils._image.compressor import require_tool
from ansible_collections.vmops.qemu.plugins.module_utils._image.expand import expand_archive, undo_archive
from ansible_collections.vmops.qemu.plugins.module_utils._image.head import ImageHead
from ansible_collections.vmops.qemu.plugins.module_utils._image.header import (
    MAGIC_COMPLETE,
    MAGIC_PARTIAL,
    ImageFormat,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_file import ImageFile
from ansible_collections.vmops.qemu.plugins.module_utils._image.info import image_result, image_word
from ansible_collections.vmops.qemu.plugins.module_utils._image.names import (
    SUFFIXES,
    archive_path,
    find_archives,
    image_path,
    require_image_of,
    split_archive_path,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.place import remove_image, require_writable_directory
from ansible_collections.vmops.qemu.plugins.module_utils._image.trust import require_vouchable_image
from ansible_collections.vmops.qemu.plugins.module_utils._image.vouching import is_vouched
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.command_line import redact_argument
from ansible_collections.vmops.qemu.plugins.module_utils._situation import Situation
from ansible_collections.vmops.qemu.plugins.module_utils._user import user_name
from ansible_collections.vmops.qemu.plugins.module_utils._vouching_key import make_key, read_key

_NONE = "none"


@dataclasses.dataclass(frozen=True)
class SaveImageRequest:
    """The options of ``qemu_save_image``, as its documentation describes them; None leaves a part as it is."""

    name: str | None
    path: str | None
    save_dir: str
    state: str = "present"
    domain_xml: str | None = None
    vm_state: str | None = None
    image_version: int | None = None
    archive: str | None = None
    space: str = "whole"
    vouch: bool = False
    check_mode: bool = False


@dataclasses.dataclass(frozen=True)
class _Found:
    """A complete image and its head; ``archive`` is the format of its archive, None for a plain image.

    ``signed`` is whether it is vouched for with a key that there is in this run alone (check mode).
    """

    head: ImageHead
    archive: ImageFormat | None
    signed: bool = False

    def shown(self) -> str:
        """For diff mode, with secrets hidden."""
        header = self.head.header
        lines = [
            "state: " + ("archived" if self.archive else "complete"),
            f"archive: {self.archive.label if self.archive else _NONE}",
            f"image_version: {header.version}",
            f"vm_state: {'running' if header.was_running else 'paused'}",
            *self._shown_vouched(),
            "domain_xml: |",
        ]
        xml = domain_xml.redact(self.head.xml, self.head.path).rstrip("\n")
        return "\n".join([*lines, *(f"  {line}".rstrip() for line in xml.split("\n"))]) + "\n"

    def _shown_vouched(self) -> list[str]:
        """What is vouched for, so that whoever does it sees what it is."""
        domain = self.head.domain()
        if not self.signed and not is_vouched(domain):
            return ["vouched: false"]
        lines = ["vouched: true"]
        record = domain.launch
        if record:
            command = " ".join(shlex.quote(redact_argument(word)) for word in record.argv)
            values = {
                "vm": f"{domain.name} {domain.uuid}".rstrip(),
                "command": command,
                "program": record.executable,
                "user": f"{record.uid} ({user_name(record.uid)})",
                "group": record.gid,
                "umask": record.umask,
                "directory": record.cwd,
                "unit": record.unit or _NONE,
            }
            lines += [f"  {key}: {one_line(str(value))}" for key, value in values.items()]
        return lines


class SaveImageOperation:
    """One run on one image."""

    def __init__(self, request: SaveImageRequest) -> None:
        self.request = request
        path = image_path(request.path, request.save_dir, request.name)
        #: The image's path; an archive is named by either.
        self.path = split_archive_path(path)[0]
        #: What was done, or would be, in order.
        self.done: list[str] = []
        self.warnings: list[str] = []
        #: Whether a file was removed that was asked to be absent.
        self.removed = False
        #: With which the record is vouched for; None where that is not asked for.
        self._key: bytes | None = None

    @property
    def situation(self) -> Situation:
        """How the image is now. Whether a guest runs that was saved in it, nobody looks at here."""
        word = image_word(self.path)
        return Situation(image="removed" if self.removed and word == "absent" else word)

    def run(self) -> dict[str, t.Any]:
        """Do it.

        :returns: the module's return values.
        :raises VmopsError: what is asked for cannot be done, or failed.
        """
        if self.request.state == "absent":
            return self._remove()
        if self.request.archive not in (None, _NONE):
            require_tool(ImageFormat.from_label(self.request.archive))
        if self.request.vouch:
            # In check mode none is made, and one that nobody else has will do.
            self._key = make_key() if not self.request.check_mode else read_key() or secrets.token_bytes(32)
        try:
            with self._open(self.path) as image:
                return self._with_image(image)
        except ImageNotFoundError:
            if os.path.lexists(self.path):
                raise
            return self._with_archive()

    # --- present ---

    def _with_image(self, image: ImageFile) -> dict[str, t.Any]:
        self._finish_earlier_run(image)
        head = image.head()
        if not head.header.complete:
            if self.request.check_mode and self.done:  # it would be by now
                return self._result(None, None)
            if not os.path.lexists(self.path):
                return self._with_archive()
            raise ImagePartialError(
                self.path,
                "the image is partial: its save never finished",
                cure="Save the VM again if it runs; else remove the image with state: absent",
            )
        if not self.request.check_mode:
            remove_archive_leftovers(self.path)
        found = _Found(head, None)
        require_image_of(self.path, head.domain().name, self.request.name)
        self._settle_archives(image)
        return self._reach(found, self._plan(found), image)

    def _with_archive(self) -> dict[str, t.Any]:
        formats = find_archives(self.path)
        if not formats and self.request.check_mode:
            return self._without_image()
        if not formats:
            raise ImageNotFoundError(
                self.path, "there is no image", cure="Check name, path and save_dir, or save the VM first"
            )
        if len(formats) > 1:
            names = ", ".join(archive_path(self.path, each) for each in formats)
            raise ConflictError(f"There is more than one archive of {self.path}: {names}", cure="Remove all but one")
        source = archive_path(self.path, formats[0])
        found = _Found(read_archive_head(source), formats[0])
        require_image_of(source, found.head.domain().name, self.request.name)
        planned = self._plan(found)
        if (planned.head, planned.archive) == (found.head, found.archive):
            return self._result(found, planned)
        if self.request.archive is None:
            raise ConflictError(
                f"{source} is an archive, in which nothing can be changed",
                cure="Expand it with archive: none; or give archive: "
                + formats[0].label
                + " to have it archived again",
            )
        self.done.append(f"expanded from {source}")
        if self.request.check_mode:
            require_writable_directory(os.path.dirname(self.path))
            return self._reach(_Found(found.head, None), planned, None, found)
        with edit.open_for_edit(source) as packed:
            expand_archive(packed)
        with edit.open_for_edit(self.path) as image:
            return self._reach(_Found(image.head(), None), planned, image, found)

    def _without_image(self) -> dict[str, t.Any]:
        """In check mode there is none: an earlier task may only have said that it would make it."""
        self.warnings.append(
            f"There is no image at {self.path}: nothing of it could be checked. Without check mode this fails, unless a"
            " task before this one makes the image"
        )
        if self._has_changes() or self.request.archive is not None:
            self.done.append("changed as asked for, if it is there by then")
        return self._result(None, None, "" if self.done else "absent")

    def _plan(self, found: _Found) -> _Found:
        """What there shall be."""
        request = self.request
        if self._key:
            source = archive_path(self.path, found.archive) if found.archive else self.path
            require_vouchable_image(source)
        head = edit.plan_head(found.head, request.domain_xml, request.vm_state, request.image_version, self._key)
        wanted = found.archive
        if request.archive is not None:
            wanted = None if request.archive == _NONE else ImageFormat.from_label(request.archive)
        if wanted and wanted != found.archive and head.header.format not in (ImageFormat.RAW, ImageFormat.SPARSE):
            raise RequestError(
                f"{self.path} is in the format {head.header.format.label}, so it is compressed already",
                cure="Leave archive out",
            )
        return _Found(head, wanted, signed=self._key is not None)

    def _reach(
        self, found: _Found, planned: _Found, image: ImageFile | None, before: _Found | None = None
    ) -> dict[str, t.Any]:
        """Change a plain image into what is planned, by the steps that are missing.

        :param image: None in check mode, where there is only an archive yet.
        """
        before = before or found
        old, new = found.head, planned.head
        changes = []
        if new.header.version != old.header.version:
            changes.append(f"converted to version {new.header.version}")
        if new.header.was_running != old.header.was_running:
            changes.append(f"set to be {'running' if new.header.was_running else 'paused'} after a restore")
        if self.request.domain_xml is not None and new.xml != old.xml:
            changes.append("given the new domain XML")
        if self._key and not is_vouched(old.domain()):
            changes.append("vouched for")
        self.done += changes
        if changes and image and not self.request.check_mode:
            edit.write_head(image, old, new)
        if planned.archive:
            self.done.append(f"archived as {archive_path(self.path, planned.archive)}")
            if self.request.check_mode or not image:
                require_writable_directory(os.path.dirname(self.path))
            else:
                create_archive(image, planned.archive, self.request.space == "tight")
        return self._result(before, planned)

    def _finish_earlier_run(self, image: ImageFile) -> None:
        """Undo, or finish, what an interrupted run left of this image."""
        if edit.has_journal(image):
            partial = image.magic() == MAGIC_PARTIAL if self.request.check_mode else edit.recover_head(image)
            if partial:
                self.done.append("put back as it was before an interrupted change")
        left = unfinished_archive(image)
        if left is None:
            return
        if self.request.archive is None:
            raise ImagePartialError(
                self.path,
                f"the image is being archived with {left.format}, and an earlier run of that was interrupted",
                cure=f"Finish it with archive: {left.format}, or undo it with archive: none",
            )
        finish = self.request.archive == left.format and not self._has_changes()
        self.done.append("archived to the end" if finish else "made whole again after an interrupted archiving")
        if not self.request.check_mode:
            if finish:
                continue_archive(image, left)
            else:
                undo_archive(image, left)

    def _has_changes(self) -> bool:
        request = self.request
        return request.vouch or (request.domain_xml, request.vm_state, request.image_version) != (None, None, None)

    def _settle_archives(self, image: ImageFile) -> None:
        """What to do about archives beside a complete image."""
        for image_format in find_archives(self.path):
            other = archive_path(self.path, image_format)
            if self.request.archive is None:
                self.warnings.append(f"There is an archive beside the image, too: {other}")
            elif is_same_image(image, image_format):
                # An earlier run ended just before it removed one of them. Archiving anew overwrites it, if need be.
                if not self.request.check_mode:
                    remove_image(other)
                if self.request.archive == _NONE:
                    self.done.append(f"freed of the archive that it was expanded from, {other}")
            elif self.request.archive == _NONE:
                self.warnings.append(f"There is an archive of another save beside the image, which was left: {other}")
            else:
                raise ConflictError(
                    f"{other} is an archive of another save than {self.path}, and is not replaced",
                    cure="Move or remove one of them",
                )

    # --- absent ---

    def _remove(self) -> dict[str, t.Any]:
        before: _Found | None = None
        removed = []
        for image_format in [None, *SUFFIXES]:
            path = archive_path(self.path, image_format) if image_format else self.path
            try:
                with self._open(path) as file:
                    found = self._require_ours(file, image_format)
                    if found:  # one that is damaged may go, whosever it was
                        require_image_of(path, found.head.domain().name, self.request.name)
                    before = before or found
                    if not self.request.check_mode:
                        edit.drop_journal(file)
                        remove_image(path, file.file_id)
                        self.removed = True
                removed.append(path)
            except ImageNotFoundError:
                if os.path.lexists(path):
                    raise
        if not self.request.check_mode:
            remove_archive_leftovers(self.path)
        self.done += [f"removed ({path})" for path in removed]
        return self._result(before, None, "removed" if removed else "absent")

    def _require_ours(self, file: ImageFile, image_format: ImageFormat | None) -> _Found | None:
        """Refuse to remove what is no save image; damaged ones may go.

        :returns: what it is, where that can be read.
        """
        try:
            if image_format:
                return _Found(read_archive_head(file.path), image_format)
            head = file.head()
            domain_xml.redact(head.xml, file.path)
            return _Found(head, None)
        except RequestError:  # no tool to look into it
            raise
        except ImageError as error:
            if image_format or file.magic() not in (MAGIC_COMPLETE, MAGIC_PARTIAL):
                raise ConflictError(
                    f"{file.path} is not a save image, so it is not removed ({error.problem})",
                    cure="Remove it with ansible.builtin.file if that is what you want",
                ) from error
            return None

    # --- both ---

    def _open(self, path: str) -> t.ContextManager[ImageFile]:
        """For reading in check mode, else for an exclusive use."""
        return ImageFile.open(path) if self.request.check_mode else edit.open_for_edit(path)

    def _result(self, before: _Found | None, after: _Found | None, gone: str = "") -> dict[str, t.Any]:
        would = "would be " if self.request.check_mode else "was "
        if gone == "absent":
            message = f"There is no image at {self.path}"
        elif self.done:
            message = f"{self.path} {would}{', then '.join(self.done)}"
        else:
            message = f"{self.path} is as asked for"
        shown = "state: absent\n" if gone else after.shown() if after else ""
        return {
            "changed": bool(self.done),
            "msg": message,
            "image": image_result(self.path),
            "warnings": self.warnings,
            "diff": {
                "before": before.shown() if before else ("state: absent\n" if gone == "absent" else ""),
                "after": shown,
                "before_header": self.path,
                "after_header": self.path,
            },
        }
