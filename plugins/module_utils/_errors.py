# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The one exception tree of the collection.

Everything below the modules raises from this tree; only a module's ``main()`` turns an error into ``fail_json``.
An error says what happened and to what, how guest and image are now, and what to do about it.

::

    VmopsError
        RequestError                    what is asked for
            ConflictError               ... is forbidden by what is there already
                BusyError               ... by another run, whose end may be waited for
                GuestGoneError          ... by a guest that has shut down or crashed
                RunDirectoryError       ... as there is no place for locks
            NotRestorableError          ... would make an image that cannot be restored
            LockHeldError               ... is locked by a process that is no run
        ImageError                      the file
            ImageNotFoundError
            ImageAccessError
                ImageSpaceError
            ImagePartialError
            ImageFormatError
            ImageUnsupportedError
            ImageUnsafeError            ... others may have written it
            NotVouchedError             ... nobody vouches for it
        VouchingKeyError
        VmNotFoundError                 the process
        VmAmbiguousError
        MonitorError                    ... its QMP socket
            MonitorMissingError
            MonitorProtocolError
            MonitorHumanError           ... which it cannot open
            MonitorForeignError
            MonitorBusyError
            MonitorLostError
            CommandError                ... QEMU's own words
        GuestAgentError                 the program in the guest
        UnsupportedByQemuError
        MigrationError
        MismatchError                   the image and the process
            ForeignQemuError
            DiskMismatchError
        UnitError                       systemd
        LaunchError
        HostMemoryError                 the host
        OperationTimeoutError           the run itself
        InterruptedOperationError
        NotBegunError                   ... of one VM of several
        HostRunError                    ... over all VMs of a host
"""

from __future__ import annotations

import re
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._situation import Situation

#: Control characters, line separators, marks that turn the direction of text, and halves of characters.
_NOT_SHOWN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def one_line(text: str) -> str:
    """A text for people in one line, with ``\\n`` and the like for what would not be seen as it is.

    Names, paths and QEMU's words come from others: a line break in one must not forge a line of a log, nor an escape
    sequence play tricks on a terminal.
    """
    return _NOT_SHOWN.sub(lambda found: found.group().encode("unicode_escape").decode("ascii"), text)


#: What no UTF-8 can hold: Python's stand-ins for the bytes of a name that is none.
_NO_UTF8 = re.compile("[\ud800-\udfff]")


def tellable(value: t.Any) -> t.Any:
    """A module's return value, with ``\\udcff`` and the like, as in messages, for what is no UTF-8.

    Names of VMs and files may be any bytes. Ansible (ansible-core 2.19) refuses a result with one of these, so that one
    user's QEMU would keep all of the host from being told of.
    """
    if isinstance(value, str):
        return _NO_UTF8.sub(lambda found: found.group().encode("unicode_escape").decode("ascii"), value)
    if isinstance(value, dict):
        return {tellable(key): tellable(content) for key, content in value.items()}
    return [tellable(content) for content in value] if isinstance(value, (list, tuple)) else value


class VmopsError(Exception):
    """Base of all errors that this collection raises.

    :param what: what happened, naming the VM or the file, as a full sentence without the final full stop.
    :param cure: what the operator should do, as a full sentence without the final full stop; where nothing better is
        known, what is told is the ``usual_cure`` of its kind.
    :param situation: how guest and image are now; operations fill it in.
    :param problems: ``problems``, as modules return it, where the error is about what surrounds the VM.
    """

    #: Empty where each error of this kind says for itself what to do.
    usual_cure: t.ClassVar[str] = ""

    def __init__(
        self,
        what: str,
        *,
        cure: str = "",
        situation: Situation | None = None,
        problems: list[dict[str, t.Any]] | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.cure = cure
        self.situation = situation
        self.problems = problems

    def __str__(self) -> str:
        return self._told(self.cure)

    def _told(self, cure: str) -> str:
        sentences = (part.strip().rstrip(".") for part in (self.what, self._situation.sentence, cure))
        return " ".join(f"{sentence}." for sentence in sentences if sentence)

    def as_result(self) -> dict[str, t.Any]:
        """The keys that a failed module returns for this error."""
        cure = self.cure or self.usual_cure
        result: dict[str, t.Any] = {
            "msg": one_line(self._told(cure)),
            "error": type(self).__name__,
            "guest_state": one_line(self._situation.sentence),
            "cure": one_line(cure),
            **self._situation.words(),
        }
        return result if self.problems is None else {**result, "problems": self.problems}

    @property
    def _situation(self) -> Situation:
        return self.situation or Situation()


class RequestError(VmopsError):
    """The options contradict each other, or ask for what cannot be done; nothing was touched."""


class ConflictError(RequestError):
    """What is there already (an image, a VM) forbids the operation without ``force`` or an operator's decision."""


class GuestGoneError(ConflictError):
    """The guest has shut down or crashed, and its QEMU is still there: there is nothing to save."""


class BusyError(ConflictError):
    """Another run of this collection is at work on the VM or the image: the same task may be run again at its end."""


class RunDirectoryError(ConflictError):
    """There is no directory of this user's alone for the locks that keep two runs of his apart, so none is begun."""


class NotRestorableError(RequestError):
    """What surrounds the VM would keep its image from being restored, or make another machine of it."""


class LockHeldError(RequestError):
    """A lock is held by a process that is no run of this user's, so that it is of no use to wait for its end."""


# --- the file ---------------------------------------------------------------------------------------------------


class ImageError(VmopsError):
    """Something is wrong with a save image."""

    def __init__(self, path: str, what: str, *, cure: str = "", situation: Situation | None = None) -> None:
        super().__init__(f"{path}: {what}", cure=cure, situation=situation)
        self.path = path
        self.problem = what


class ImageNotFoundError(ImageError):
    """There is no file at the path."""

    usual_cure = "Check name, path and save_dir (vmops.qemu.qemu_save_image_info lists a directory)"


class ImageAccessError(ImageError):
    """The file or its directory cannot be read, written, created, flushed or renamed."""

    usual_cure = "See to the file and its directory, then run the task again"


class ImageSpaceError(ImageAccessError):
    """The file system is, or would become, full."""


class ImagePartialError(ImageError):
    """The image carries the partial magic: its save never finished."""

    usual_cure = "Save the VM again if it runs; else start it from its disks, and remove the file"


class ImageFormatError(ImageError):
    """The bytes are not those of a save image, or contradict each other (magic, lengths, XML, stream)."""

    usual_cure = "Use an intact copy of the file; or remove it, and start the VM from its disks"


class ImageUnsupportedError(ImageError):
    """A save image that this collection does not know how to read (version, features, format)."""


class ImageUnsafeError(ImageError):
    """The image, or a directory on its way, is writable by others: what it says must not be run.

    Or the file system gives a new image to others.
    """


class NotVouchedError(ImageError):
    """Nobody vouches for what the image records: its QEMU may have written it, so it must not be run."""


class VouchingKeyError(VmopsError):
    """The key with which this user vouches for images cannot be made or read, or others could know it."""


# --- the process ------------------------------------------------------------------------------------------------


class VmNotFoundError(VmopsError):
    """No running QEMU is the VM that is asked for, or it offers no QMP socket."""


class VmAmbiguousError(VmopsError):
    """More than one running QEMU may be the VM that is asked for."""


class MonitorError(VmopsError):
    """The QMP socket cannot be used."""

    usual_cure = "See whether QEMU still runs and answers, then run the task again"


class MonitorMissingError(MonitorError):
    """Nothing listens at the QMP socket's path."""


class MonitorProtocolError(MonitorError):
    """Something listens there, but it does not speak QMP."""


class MonitorHumanError(MonitorError):
    """The VM has a human monitor alone, through which its QEMU cannot open a QMP one."""


class MonitorForeignError(MonitorError):
    """Another process answers at the QMP socket than the one that is looked for, or it is not known which."""


class MonitorBusyError(MonitorError):
    """The monitor did not greet in time: another client holds it, or QEMU hangs."""


class MonitorLostError(MonitorError):
    """The connection ended in the middle of the work: QEMU died or closed it."""


class CommandError(MonitorError):
    """QEMU answered a command with an error."""

    def __init__(self, command: str, error_class: str, description: str) -> None:
        super().__init__(
            f"QEMU refused {command}: {description}", cure="Correct what QEMU says, then run the task again"
        )
        self.command = command
        self.error_class = error_class
        self.description = description


class GuestAgentError(VmopsError):
    """The guest's agent cannot be reached, or does not do what it is asked: told in a result, and never a failure."""

    usual_cure = "See to the agent in the guest, or have its clock set there"


class UnsupportedByQemuError(VmopsError):
    """This QEMU lacks what the request needs."""


class MigrationError(VmopsError):
    """QEMU's migration to or from the image failed."""

    usual_cure = "Remove the reason that QEMU names, then run the task again"


class MismatchError(VmopsError):
    """The image does not fit the QEMU that shall load it (machine type, memory, CPU, name, uuid)."""


class ForeignQemuError(MismatchError):
    """The QEMU that shall load the image is that of a user who may not have the guest's memory."""


class DiskMismatchError(MismatchError):
    """The VM's disks are not as they were when it was saved, or it cannot be known whether they are."""


class UnitError(VmopsError):
    """systemd could not be asked about a unit, or the unit could not be changed."""

    usual_cure = "See what systemd says of it (systemctl status, journalctl), then run the task again"


class LaunchError(VmopsError):
    """A QEMU for the restore could not be started, or ended before it answered."""


class HostMemoryError(VmopsError):
    """The host, or the VM's place in it, has not the memory that a restore takes; nothing was started."""


class OperationTimeoutError(VmopsError):
    """The operation was not done within its ``timeout``."""

    @classmethod
    def of(cls, subject: str, timeout: float, situation: Situation, awaited: str = "") -> OperationTimeoutError:
        """:param subject: who it is about. :param timeout: seconds. :param awaited: what took so long, as a noun."""
        return cls(
            f"The work on {subject} was not done within {timeout:g} seconds"
            + (f"; it waited for {awaited}" if awaited else ""),
            situation=situation,
            cure="Find out why that takes so long, or allow it more time"
            if awaited
            else "Raise timeout, or find out what is slow (bandwidth, the disk under the image)",
        )


class InterruptedOperationError(VmopsError):
    """The operation was cancelled by a signal."""

    usual_cure = "Run the task again when the reason is gone"

    @classmethod
    def of(cls, subject: str, by: str, situation: Situation | None = None) -> InterruptedOperationError:
        """:param subject: who it is about. :param by: what asked for it, such as the name of a signal."""
        return cls(
            f"The work on {subject} was interrupted by {by}",
            situation=situation,
            cure="Run the task again when the reason is gone",
        )


class NotBegunError(VmopsError):
    """A run of several did not begin, because of what became of another one."""

    usual_cure = "Run the task again when the reason is gone"


class HostRunError(VmopsError):
    """Not all of a host's VMs are as was asked for.

    :param result: the other return values of the module, as of a run that succeeded, with what became of each VM.
    """

    def __init__(self, what: str, *, cure: str, situation: Situation, result: dict[str, t.Any]) -> None:
        super().__init__(what, cure=cure, situation=situation)
        self.result = result

    def as_result(self) -> dict[str, t.Any]:
        """The keys that a failed module returns for this error."""
        told = super().as_result()
        return {**self.result, **{key: value for key, value in told.items() if value or key not in self.result}}
